"""A small call to the C guest over pipes: zeno_fast against what a user would write by hand.

usage: python benchmarks/bench_sidecar.py [--rounds N] [--calls N]

Baselines: the least that Python can do (os.write, a buffered readline and orjson), and asyncio's
subprocess streams with orjson. Every side talks to its own process of the same guest. Taken
twice: pinned to one core, and free.
"""

from __future__ import annotations

import argparse
import asyncio
import os
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


def serial(folder: Path, rounds: int, calls: int) -> tuple[dict[str, dict[str, float]], bool]:
    minimal = MinimalLoop(folder / "guest")
    with PluginManager() as manager:
        slot = f"{manager.load_plugin(folder).name}.echo"
        parameters = {"value": VALUE}
        correct = manager.call(slot, parameters) == minimal.call(slot, parameters) == VALUE
        samples = measure(
            {
                "minimal loop": lambda: minimal.call(slot, parameters),
                "zeno_fast": lambda: manager.call(slot, parameters),
            },
            rounds=rounds,
            calls=calls,
        )
    minimal.close()
    return {name: summary(taken) for name, taken in samples.items()}, correct


async def from_a_loop(
    folder: Path, rounds: int, calls: int
) -> tuple[dict[str, dict[str, float]], bool]:
    process = await asyncio.create_subprocess_exec(
        folder / "guest", stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder
    )
    assert process.stdin and process.stdout
    samples: dict[str, list[float]] = {"asyncio subprocess": [], "zeno_fast call_async": []}
    with PluginManager() as manager:
        slot = f"{manager.load_plugin(folder).name}.echo"
        request = {
            "type": "guest_call", "id": "1", "slot_name": slot, "parameters": {"value": VALUE},
        }  # fmt: skip
        correct = True
        for _ in range(rounds):
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
    with PluginManager() as manager:
        slot = f"{manager.load_plugin(folder).name}.echo"
        rates = []
        for _ in range(3):
            began = time.perf_counter()
            for _ in manager.map(slot, ({"value": n} for n in range(calls))):
                pass
            rates.append(calls / (time.perf_counter() - began))
    return {"calls_per_second": round(sorted(rates)[1])}


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
        for where, affinity in (("one core", {min(cores)}), ("free", cores)):
            os.sched_setaffinity(0, affinity)
            rows, right = serial(guest, options.rounds, options.calls)
            loop_rows, loop_right = asyncio.run(
                from_a_loop(guest, options.rounds, options.calls // 2)
            )
            correct &= right and loop_right
            print(f"-- {where}")
            show(rows, "minimal loop")
            show(loop_rows, "asyncio subprocess")
            rate = pipelined(guest, 100 * options.calls)
            print(f"map: {rate['calls_per_second']} calls a second")
            results[where] = {"serial": rows, "event loop": loop_rows, "map": rate}
        os.sched_setaffinity(0, cores)
    print(write("sidecar", results, correct=correct))
    if not correct:
        sys.exit("an answer was wrong; the figures mean nothing")


if __name__ == "__main__":
    main()
