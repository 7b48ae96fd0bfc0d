"""What a second thread, on a second core, adds to calls of a WASM slot that works a while."""

from __future__ import annotations

import os
import statistics
import threading
import time
from typing import Any

import wasm_guests
from wasm_sides import Call, bind, caller, open_driver

from zeno_fast.manifest import WasmOptions

WORK = 20e-6  # seconds of a call that the guest works, about
TRIAL = 100_000  # turns of the guest's loop in the calls that tell how long one takes


def threads(rounds: int, calls: int) -> tuple[dict[str, Any], bool]:
    """Compare calls per second of two threads with those of one.

    How far the machine lets two threads work at the same time at all is measured beside: the same
    work in one long call of each thread.
    """
    if len(os.sched_getaffinity(0)) < 2:
        print("there is only one core")
        return {"not_measured": "there was only one core"}, True
    driver = open_driver(wasm_guests.work(), WasmOptions(instances=2))
    call = caller(bind(driver, "work"))
    parameters = {"n": _turns(call)}
    long = {"n": parameters["n"] * calls}
    correct = call(parameters) == parameters and call(long) == long
    rates: dict[str, list[float]] = {
        "one thread": [], "two threads": [],
        "one thread, one long call": [], "two threads, one long call": [],
    }  # fmt: skip
    for _ in range(rounds):
        for name, taken in rates.items():
            nthreads = 2 if name.startswith("two") else 1
            if name.endswith("long call"):
                taken.append(nthreads * calls / _seconds(call, long, 1, nthreads))
            else:
                taken.append(nthreads * calls / _seconds(call, parameters, calls, nthreads))
    driver.close()
    results: dict[str, Any] = {"rounds": rounds}
    for which, choose in (("median", statistics.median), ("best", max)):
        chosen = {name: choose(taken) for name, taken in rates.items()}
        gain = chosen["two threads"] / chosen["one thread"]
        most = chosen["two threads, one long call"] / chosen["one thread, one long call"]
        print(f"{which} of {rounds} rounds:")
        for name, rate in chosen.items():
            print(f"{name:<26}  {rate:9.0f} times the work a second, {1e6 / rate:7.2f} us each")
        print(f"two threads make {gain:.2f} times the calls of one; the machine allows {most:.2f}")
        results[which] = {
            "calls_per_second": {name: round(rate) for name, rate in chosen.items()},
            "times_with_two_threads": round(gain, 2),
            "times_that_the_machine_allows": round(most, 2),
        }
    return results, correct


def _turns(call: Call) -> int:
    """Return how often the guest's loop turns in WORK."""
    taken = []
    for _ in range(20):
        began = time.perf_counter()
        call({"n": TRIAL})
        taken.append(time.perf_counter() - began)
    return max(1, round(TRIAL * WORK / min(taken)))


def _seconds(call: Call, parameters: dict[str, Any], calls: int, nthreads: int) -> float:
    """Return how long threads take that call so often each, from the first to begin."""
    ready = threading.Barrier(nthreads)
    spans = []

    def run() -> None:
        ready.wait()
        began = time.perf_counter()
        for _ in range(calls):
            call(parameters)
        spans.append((began, time.perf_counter()))

    running = [threading.Thread(target=run) for _ in range(nthreads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return max(end for _, end in spans) - min(began for began, _ in spans)
