"""What it takes to load a WASM plugin of 5 MB in a process that begins, with and without a cache.

usage: python benchmarks/wasm_load.py MODULE zeno_fast|public  (run by bench_wasm.py; seconds)
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import wasm_guests
import wasmtime
from report import show, summary
from wasm_sides import bind, caller, open_driver

from zeno_fast.manifest import WasmOptions

FUNCTIONS = 2900  # of 1.7 kB each
STEPS = 60
OPERATIONS = ("add", "sub", "mul", "xor", "and", "or", "shl", "shr_u", "rotl")
SIDES = {"zeno_fast": "zeno_fast", "public API": "public"}
COLD = 3  # loads with an empty cache take seconds


def load(rounds: int, _calls: int) -> tuple[dict[str, Any], bool]:
    """Load the same module again and again, each time in another process."""
    samples: dict[str, list[float]] = {f"{side}, cached": [] for side in SIDES}
    samples |= {f"{side}, no cache yet": [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder, "big.wasm")
        module.write_bytes(wasm_guests.echo(_functions()))
        for number in range(rounds):
            for side, name in SIDES.items():
                cache = Path(folder, f"cache {name} {min(number, COLD - 1)}")
                if number < COLD:
                    samples[f"{side}, no cache yet"].append(_in_a_process(module, name, cache))
                samples[f"{side}, cached"].append(_in_a_process(module, name, cache))
        nbytes = module.stat().st_size
    rows = {name: summary(taken) for name, taken in samples.items()}
    print(f"a module of {nbytes / 1e6:.1f} MB")
    show(rows, "public API, cached")
    return {"nbytes": nbytes, **rows}, True


def _in_a_process(module: Path, side: str, cache: Path) -> float:
    done = subprocess.run(
        [sys.executable, __file__, module, side],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(done.stdout)


def _functions() -> str:
    """Write functions that no two lines of are the same, so that a cache's packing gains little."""
    chance = random.Random(5)
    functions = []
    for number in range(FUNCTIONS):
        steps = []
        for _ in range(STEPS):
            outer, inner = chance.choices(OPERATIONS, k=2)
            steps.append(
                f"(local.set $x (i32.{outer}"
                f" (i32.{inner} (local.get $x) (i32.const {chance.getrandbits(31)}))"
                f" (i32.load offset={chance.getrandbits(16)}"
                " (i32.and (local.get $x) (i32.const 65532)))))"
            )
            if chance.random() < 0.3:
                steps.append(
                    f"(if (i32.lt_u (local.get $x) (i32.const {chance.getrandbits(31)}))"
                    f" (then (local.set $x (call $f{chance.randrange(FUNCTIONS)} (local.get $x)))))"
                )
        functions.append(
            f"(func $f{number} (param $x i32) (result i32) {' '.join(steps)} (local.get $x))"
        )
    return "\n".join(functions)


def _load_here(code: bytes, side: str) -> float:
    """Return the seconds until the guest could be called, which it is then."""
    began = time.perf_counter()
    if side == "zeno_fast":
        driver = open_driver(code, WasmOptions(instances=1))
        taken = time.perf_counter() - began
        if caller(bind(driver))({"n": 1}) != {"n": 1}:
            sys.exit("the answer was wrong")
        driver.close()
        return taken
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.cache = True
    engine = wasmtime.Engine(config)
    store = wasmtime.Store(engine)
    wasmtime.Linker(engine).instantiate(store, wasmtime.Module(engine, code))
    return time.perf_counter() - began


if __name__ == "__main__":
    print(_load_here(Path(sys.argv[1]).read_bytes(), sys.argv[2]))
