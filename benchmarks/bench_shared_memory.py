"""The same guests over shared memory and over pipes: small calls, many calls, and bytes.

usage: python benchmarks/bench_shared_memory.py [--rounds N] [--calls N]

Both sides are zeno_fast, each with a process of its own of the same guest, which take turns.
`asleep` calls after a pause in which guest and host have fallen asleep.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

from guests.build import build
from report import measure, show, summary, write

from zeno_fast import PluginManager

VALUE = {"user": 1, "name": "Ada", "tags": ["a", "b"]}
PAUSE = 0.002  # seconds, in which whoever waits awake gives up
SIZES = {
    "4 KiB": 4 << 10,
    "64 KiB": 64 << 10,
    "1 MiB": 1 << 20,
    "16 MiB": 16 << 20,
    "64 MiB": 64 << 20,
}
PYTHON_GUEST = """#!/usr/bin/env python3
from zeno_fast.guest import Plugin
plugin = Plugin("NAME")

@plugin.slot
def echo(value):
    return value

@plugin.slot
def length(value):
    return len(value)

plugin.run()
"""
Rows = dict[str, dict[str, float]]


def set_transport(folder: Path, transport: str) -> Path:
    """Have a plugin spoken to over one transport, and named after it."""
    manifest = folder / "manifest.yaml"
    text = manifest.read_text()
    name = text.partition("name: ")[2].split()[0]
    text = text.replace(f"name: {name}", f"name: {name}-{transport}", 1)
    manifest.write_text(text.replace("sidecar:\n", f"sidecar:\n  transport: {transport}\n", 1))
    return folder


def make_python_guest(folder: Path, transport: str) -> Path:
    """Write a plugin that uses zeno_fast.guest."""
    root = folder / f"python-{transport}"
    root.mkdir()
    (root / "guest.py").write_text(PYTHON_GUEST.replace("NAME", root.name))
    (root / "manifest.yaml").write_text(
        f"name: {root.name}\ntype: sidecar\nbinary: ./guest.py\n"
        f"sidecar: {{protocol: json-rpc, transport: {transport}}}\n"
    )
    return root


def small(manager: PluginManager, guest: str, rounds: int, calls: int) -> tuple[Rows, bool]:
    """Time calls one after another, awake and asleep."""
    sides = {
        transport: lambda slot=f"{guest}-{transport}.echo": manager.call(slot, {"value": VALUE})
        for transport in ("shm", "stdio")
    }
    correct = all(call() == VALUE for call in sides.values())
    rows = {
        name: summary(taken) for name, taken in measure(sides, rounds=rounds, calls=calls).items()
    }
    asleep: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(max(10, rounds * 25)):
        for name, call in sides.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            call()
            asleep[name].append(time.perf_counter() - began)
    return rows | {f"{name}, asleep": summary(taken) for name, taken in asleep.items()}, correct


def many(manager: PluginManager, guest: str, calls: int) -> dict[str, int]:
    """Return how many calls a second `map` makes."""
    taken: dict[str, list[float]] = {"shm": [], "stdio": []}
    for _ in range(5):
        for transport, times in taken.items():
            began = time.perf_counter()
            for _ in manager.map(f"{guest}-{transport}.echo", ({"value": n} for n in range(calls))):
                pass
            times.append(time.perf_counter() - began)
    return {name: round(calls / statistics.median(times)) for name, times in taken.items()}


def large(manager: PluginManager, calls: int) -> tuple[dict[str, Rows], bool]:
    """Time calls that carry bytes to a Python guest: there, and there and back."""
    found: dict[str, Rows] = {}
    correct = True
    for transport, limit in (("shm", 64 << 20), ("stdio", 1 << 20)):
        slot = f"python-{transport}"
        rows: Rows = {}
        for size, nbytes in SIZES.items():
            if nbytes > limit:
                continue
            data = os.urandom(nbytes)
            correct &= manager.call(f"{slot}.length", {"value": data}) == nbytes
            correct &= manager.call(f"{slot}.echo", {"value": data}) == data
            sides = {
                f"{size} there": lambda s=slot, sent=data: manager.call(
                    f"{s}.length", {"value": sent}
                ),
                f"{size} there and back": lambda s=slot, sent=data: manager.call(
                    f"{s}.echo", {"value": sent}
                ),
                f"{size}, one copy": lambda sent=data: bytearray(sent),
            }
            count = max(5, min(calls, (64 << 20) // nbytes))
            taken = measure(sides, rounds=5, calls=count)
            rows |= {name: summary(samples) for name, samples in taken.items()}
        found[transport] = rows
    return found, correct


def buffers(manager: PluginManager, calls: int) -> tuple[Rows, bool]:
    """Time calls that pass memory of `manager.buffer`, there and back."""
    sides = {}
    correct = True
    for size, nbytes in SIZES.items():
        buffer = manager.buffer(nbytes)
        memoryview(buffer)[:] = bytes(nbytes)  # so that all of it is there
        answer = manager.call("python-shm.echo", {"value": buffer})
        correct &= answer.nbytes == nbytes
        sides[size] = lambda sent=buffer: manager.call("python-shm.echo", {"value": sent})
    taken = measure(sides, rounds=20, calls=calls)
    return {name: summary(samples) for name, samples in taken.items()}, correct


def ten(manager: PluginManager, rounds: int, calls: int) -> tuple[Rows, bool]:
    """Time ten sidecars that are all called at once, by threads and by one event loop."""
    samples: dict[str, list[float]] = {}
    answers: list[object] = []

    def call(slot: str) -> None:
        for _ in range(calls):
            answers.append(manager.call(slot, {"value": VALUE}))

    async def call_async(slot: str) -> None:
        for _ in range(calls):
            answers.append(await manager.call_async(slot, {"value": VALUE}))

    async def gather(transport: str) -> None:
        await asyncio.gather(*(call_async(f"ten{n}-{transport}.echo") for n in range(10)))

    def run(transport: str) -> None:
        with ThreadPoolExecutor(10) as threads:
            list(threads.map(call, (f"ten{n}-{transport}.echo" for n in range(10))))

    for round_number in range(rounds):
        for transport in ("shm", "stdio"):
            for way, function in (
                ("ten threads", lambda t=transport: run(t)),
                ("one event loop", lambda t=transport: asyncio.run(gather(t))),
            ):
                began = time.perf_counter()
                function()
                if round_number:
                    taken = (time.perf_counter() - began) / (10 * calls)
                    samples.setdefault(f"{transport}, {way}", []).append(taken)
    correct = all(answer == VALUE for answer in answers)
    return {name: summary(taken) for name, taken in samples.items()}, correct


def load(manager: PluginManager, folder: Path) -> None:
    """Load what is compared, over each transport."""
    for transport in ("shm", "stdio"):
        place = folder / transport
        place.mkdir()
        guest = build("c-ring", place)
        for n in range(10):
            copy = shutil.copytree(guest, place / f"ten{n}")
            manifest = (copy / "manifest.yaml").read_text()
            name = manifest.partition("name: ")[2].split()[0]
            (copy / "manifest.yaml").write_text(manifest.replace(name, f"ten{n}", 1))
            manager.load_plugin(set_transport(copy, transport))
        manager.load_plugin(set_transport(guest, transport))
        manager.load_plugin(make_python_guest(folder, transport))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=1000)
    options = parser.parse_args()
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder, PluginManager() as manager:
        load(manager, Path(folder))
        correct = True
        for guest, calls in (("c-ring", options.calls), ("python", options.calls // 4)):
            print(f"-- small calls to {guest}")
            rows, right = small(manager, guest, options.rounds, calls)
            correct &= right
            show(rows, "stdio")
            rate = many(manager, guest, 100 * calls)
            print(", ".join(f"map over {name}: {value} calls/s" for name, value in rate.items()))
            results[guest] = {"small": rows, "map, calls per second": rate}
        print("-- ten sidecars at once, a call")
        rows, right = ten(manager, max(3, options.rounds // 2), options.calls // 4)
        correct &= right
        show(rows, "stdio, ten threads")
        results["ten sidecars, a call"] = rows
        found, right = large(manager, options.calls)
        correct &= right
        for transport, sizes in found.items():
            print(f"-- bytes over {transport}")
            show(sizes, "4 KiB there")
        results["bytes"] = found
        rows, right = buffers(manager, options.calls // 4)
        correct &= right
        print("-- memory of manager.buffer, there and back")
        show(rows, "4 KiB")
        results["buffers"] = rows
    print(write("shared_memory", results, correct=correct))
    if not correct:
        sys.exit("an answer was wrong; the figures mean nothing")


if __name__ == "__main__":
    main()
