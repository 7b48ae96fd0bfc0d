"""Calls to the C guest over pipes: zeno_fast against C and against what a user would write.

usage: python benchmarks/bench_sidecar.py [--rounds N] [--calls N]

Baselines: a host in C (pingpong.c) that sends the same bytes to the same guest and decodes nothing;
the least that Python can do (os.write, a buffered readline and orjson); asyncio's subprocess
streams with orjson; orjson alone. Every side talks to its own process of the same guest. Taken
twice: pinned to one core, and free.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

from guests.build import build
from report import measure, show, summary, write

from zeno_fast import PluginManager

VALUE = {"user": 1, "name": "Ada", "tags": ["a", "b"]}
ANSWER = b'{"type":"guest_response","id":"z01234567.1234","success":true,"data":1234}'


class MinimalLoop:
    """The least that a Python program can do to call a line-JSON guest."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=program.parent
        )
        assert self.process.stdin and self.process.stdout
        self.fd = self.process.stdin.fileno()
        self.readline = self.process.stdout.readline
        self.number = 0

    def call(self, slot: str, parameters: object) -> object:
        self.number += 1
        os.write(
            self.fd,
            orjson.dumps(
                {
                    "type": "guest_call",
                    "id": str(self.number),
                    "slot_name": slot,
                    "parameters": parameters,
                }
            )
            + b"\n",
        )
        return orjson.loads(self.readline())["data"]

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class CHost:
    """The host in C, built once; times calls of the guest that all send the same bytes."""

    def __init__(self, folder: Path, guest: Path) -> None:
        self.program = folder / "pingpong"
        self.guest = guest
        source = Path(__file__).parent / "pingpong.c"
        subprocess.run(["cc", "-O2", str(source), "-o", str(self.program)], check=True)

    def time(self, slot: str, parameters: object, calls: int) -> list[float]:
        """Return the seconds of each call."""
        request = {"type": "guest_call", "id": "z01234567.1234", "slot_name": slot}
        done = subprocess.run(
            [self.program, self.guest, str(calls)],
            input=orjson.dumps(request | {"parameters": parameters}) + b"\n",
            stdout=subprocess.PIPE,
            check=True,
        )
        return [int(line) / 1e9 for line in done.stdout.split()]


def serial(
    host: CHost, folder: Path, rounds: int, calls: int
) -> tuple[dict[str, dict[str, float]], bool]:
    minimal = MinimalLoop(folder / "guest")
    samples: dict[str, list[float]] = {"C host": []}
    with PluginManager() as manager:
        slot = f"{manager.load_plugin(folder).name}.echo"
        parameters = {"value": VALUE}
        correct = manager.call(slot, parameters) == minimal.call(slot, parameters) == VALUE
        sides = {
            "minimal loop": lambda: minimal.call(slot, parameters),
            "zeno_fast": lambda: manager.call(slot, parameters),
        }
        for _ in range(rounds):
            samples["C host"] += host.time(slot, parameters, calls)
            for name, taken in measure(sides, rounds=1, calls=calls).items():
                samples.setdefault(name, []).extend(taken)
    minimal.close()
    return {name: summary(taken) for name, taken in samples.items()}, correct


async def from_a_loop(
    host: CHost, folder: Path, rounds: int, calls: int
) -> tuple[dict[str, dict[str, float]], bool]:
    process = await asyncio.create_subprocess_exec(
        folder / "guest", stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder
    )
    assert process.stdin and process.stdout
    samples: dict[str, list[float]] = {
        "C host": [], "asyncio subprocess": [], "zeno_fast call_async": [],
    }  # fmt: skip
    with PluginManager() as manager:
        slot = f"{manager.load_plugin(folder).name}.echo"
        request = {
            "type": "guest_call", "id": "1", "slot_name": slot, "parameters": {"value": VALUE},
        }  # fmt: skip
        correct = True
        for _ in range(rounds):
            samples["C host"] += host.time(slot, {"value": VALUE}, calls)
            for _ in range(calls):
                began = time.perf_counter()
                process.stdin.write(orjson.dumps(request) + b"\n")
                data = orjson.loads(await process.stdout.readline())["data"]
                samples["asyncio subprocess"].append(time.perf_counter() - began)
                correct &= data == VALUE
            for _ in range(calls):
                began = time.perf_counter()
                data = await manager.call_async(slot, {"value": VALUE})
                samples["zeno_fast call_async"].append(time.perf_counter() - began)
                correct &= data == VALUE
    process.stdin.close()
    await process.wait()
    return {name: summary(taken) for name, taken in samples.items()}, correct


def pipelined(folder: Path, calls: int) -> dict[str, float]:
    """Time `map` as a whole, beside what encoding and decoding its messages takes alone."""
    with PluginManager() as manager:
        slot = f"{manager.load_plugin(folder).name}.echo"
        taken: dict[str, list[float]] = {"map": [], "JSON alone": []}
        for _ in range(5):
            began = time.perf_counter()
            for _ in manager.map(slot, ({"value": n} for n in range(calls))):
                pass
            taken["map"].append(time.perf_counter() - began)
            began = time.perf_counter()
            for n in range(calls):
                request = {"type": "guest_call", "id": "z01234567.1234", "slot_name": slot}
                orjson.dumps(request | {"parameters": {"value": n}})
                orjson.loads(ANSWER)
            taken["JSON alone"].append(time.perf_counter() - began)
    rates = {name: calls / statistics.median(times) for name, times in taken.items()}
    return {
        "calls_per_second": round(rates["map"]),
        "json_alone_per_second": round(rates["JSON alone"]),
    }


def large(host: CHost, folder: Path) -> dict[str, dict[str, float]]:
    """Time calls that carry much each way, beside C for the bytes and orjson for the JSON."""
    rows = {}
    with PluginManager() as manager:
        slot = f"{manager.load_plugin(folder).name}.echo"
        for mib, calls in ((1, 40), (16, 6)):
            parameters = {"value": "x" * (mib << 20)}
            answer = orjson.dumps(parameters)
            sides = {
                "orjson alone": lambda sent=parameters, got=answer: (
                    orjson.dumps(sent), orjson.loads(got),
                ),
                "zeno_fast": lambda sent=parameters: manager.call(slot, sent),
            }  # fmt: skip
            samples: dict[str, list[float]] = {"C host": []}
            for _ in range(5):
                samples["C host"] += host.time(slot, parameters, calls)
                for name, taken in measure(sides, rounds=1, calls=calls).items():
                    samples.setdefault(name, []).extend(taken)
            rows |= {f"{mib} MiB, {name}": summary(taken) for name, taken in samples.items()}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=1000)
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    results: dict[str, object] = {}
    correct = True
    with tempfile.TemporaryDirectory() as folder:
        guest = build("c", Path(folder))
        host = CHost(Path(folder), guest / "guest")
        for where, affinity in (("one core", {min(cores)}), ("free", cores)):
            os.sched_setaffinity(0, affinity)
            rows, right = serial(host, guest, options.rounds, options.calls)
            loop_rows, loop_right = asyncio.run(
                from_a_loop(host, guest, options.rounds, options.calls // 2)
            )
            correct &= right and loop_right
            print(f"-- {where}")
            show(rows, "C host")
            show(loop_rows, "C host")
            rate = pipelined(guest, 100 * options.calls)
            print(", ".join(f"{name}: {value}" for name, value in rate.items()))
            large_rows = large(host, guest)
            show(large_rows, "1 MiB, C host")
            results[where] = {
                "serial": rows, "event loop": loop_rows, "map": rate, "large": large_rows,
            }  # fmt: skip
        os.sched_setaffinity(0, cores)
    print(write("sidecar", results, correct=correct))
    if not correct:
        sys.exit("an answer was wrong; the figures mean nothing")


if __name__ == "__main__":
    main()
