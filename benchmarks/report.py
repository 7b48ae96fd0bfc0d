"""What every benchmark shares: interleaved rounds, medians, and the JSON file they end in."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("zeno_fast", "orjson", "wasmtime", "cython")


def measure(
    sides: dict[str, Callable[[], object]], *, rounds: int, calls: int
) -> dict[str, list[float]]:
    """Time each side in turn, round by round, so that a noisy moment meets them all.

    Args:
        sides: What is called, by the name of the side.
        calls: Number of calls timed one by one in a round.

    Returns:
        Seconds of every call, by side.
    """
    samples: dict[str, list[float]] = {name: [] for name in sides}
    clock = time.perf_counter
    for function in sides.values():
        for _ in range(min(calls, 200)):
            function()
    for _ in range(rounds):
        for name, function in sides.items():
            taken = samples[name]
            for _ in range(calls):
                began = clock()
                function()
                taken.append(clock() - began)
    return samples


def summary(samples: list[float]) -> dict[str, float]:
    """Return median, p99 and least of samples in seconds, as microseconds."""
    ordered = sorted(samples)
    return {
        "median_us": round(statistics.median(ordered) * 1e6, 3),
        "p99_us": round(ordered[int(len(ordered) * 0.99)] * 1e6, 3),
        "min_us": round(ordered[0] * 1e6, 3),
        "samples": len(ordered),
    }


def write(
    name: str, results: dict[str, Any], *, correct: bool, packages: tuple[str, ...] = ()
) -> Path:
    """Write results with the machine and the versions that they were measured on.

    Args:
        packages: What was compared, beside what every benchmark uses.
    """
    document = {
        "benchmark": name,
        "correct": correct,
        "machine": {
            "system": platform.system(),
            "release": platform.release(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "versions": {package: _version(package) for package in PACKAGES + packages},
        "commit": _commit(),
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path


def show(rows: dict[str, dict[str, float]], baseline: str) -> None:
    """Print one line a side, with its ratio to the baseline."""
    base = rows[baseline]["median_us"]
    width = max(map(len, rows))
    for name, row in rows.items():
        ratio = row["median_us"] / base
        print(
            f"{name:<{width}}  median {row['median_us']:9.2f} us  p99 {row['p99_us']:9.2f} us"
            f"  {ratio:8.2f} x {baseline}"
        )
    sys.stdout.flush()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
