"""Calls to WASM slots: zeno_fast against other ways of calling the same guests.

usage: python benchmarks/bench_wasm.py [--rounds N] [--calls N] [--only NAME]...

The baseline is what no way of calling can avoid: orjson, encoding the same request and decoding
the same answer. What one call costs is taken twice: pinned to one core, and free. Extism and
pywasm3 take part where they are installed: pip install -e '.[bench]'. With `--only` the figures
are printed and the results file stays as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import wasm_calls
import wasm_load
import wasm_threads
from report import write
from wasm_sides import PACKAGES

Measurement = Callable[[int, int], tuple[dict[str, Any], bool]]

CALLS: dict[str, Measurement] = {
    "echo": wasm_calls.echo,
    "host-calls": wasm_calls.host_calls,
    "large": wasm_calls.large,
    "fresh": wasm_calls.fresh,
    "async": wasm_calls.from_a_loop,
}
# These need all cores.
FREE: dict[str, Measurement] = {"threads": wasm_threads.threads, "load": wasm_load.load}


def pin(cores: set[int]) -> None:
    """Keep all threads of this process on some cores: those that libraries have started, too."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), cores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument(
        "--only", action="append", choices=[*CALLS, *FREE], metavar="NAME",
        help=f"measure this alone and write no file; may be repeated: {', '.join([*CALLS, *FREE])}",
    )  # fmt: skip
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    results: dict[str, dict[str, Any]] = {}
    correct = True
    for where, affinity, measurements in (
        # Free first: nothing has been kept on one core by then.
        ("free", cores, FREE | CALLS),
        ("one core", {min(cores)}, CALLS),
    ):
        pin(affinity)
        results[where] = {}
        for name, function in measurements.items():
            if options.only and name not in options.only:
                continue
            print(f"-- {name}, {where}")
            results[where][name], right = function(options.rounds, options.calls)
            if not right:
                print(f"{name}: WRONG")
            correct = correct and right
    if not options.only:
        print(write("wasm", results, correct=correct, packages=PACKAGES))
    if not correct:
        sys.exit("an answer was wrong, or the direct way was not taken; the figures mean nothing")


if __name__ == "__main__":
    main()
