"""Fuzz the host of WASM guests with modules that are nearly right.

    python tests/fuzz/fuzz_wasm.py --seconds 60 --seed 1
    ZENO_FAST_WASM=public python tests/fuzz/fuzz_wasm.py --replay build/fuzz/1-2345.wasm

Whatever a module does, loading and calling it gives an answer or a ZenoError, in time, and another
plugin is served as ever. A run is made again by its seed: the N-th module follows from the seed and
N alone. Every module is written to a file before it is run, so that one which ends the process is
kept, too.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

import wasmtime
from fuzz.modules import make_case
from wasm.conftest import ECHO, Plugin, make_manifest

from zeno_fast.errors import PluginLoadError, ZenoError
from zeno_fast.host.functions import HostFunctions
from zeno_fast.permissions import Permissions
from zeno_fast.wasm.driver import WasmDriver

COMMAND = "python tests/fuzz/fuzz_wasm.py"
HANG = 60.0  # seconds after which the process says where it is, and ends
MEMORY = 4 << 20
TIMEOUT = 0.2  # of a call, in seconds
LATE = 5.0  # seconds by which a busy machine may be late
REARM_EVERY = 16  # modules; the clock of a hang is not free
PARAMETERS: tuple[dict[str, Any], ...] = (
    {},
    {"n": 1},
    {"text": "żółw" * 1000, "list": [1.5, None]},
)
# No folder, in which a module could do whatever it likes.
GRANTED = Permissions(network=("*",), env=("ZENO",), database=("*",), scope=frozenset({"write"}))


class FuzzFailure(Exception):
    """The host did what it must not do."""


def load(code: bytes) -> Plugin:
    """Load a module with small limits. Raises PluginLoadError."""
    host = HostFunctions()
    for name in ("db_query", "http_request", "env_get"):
        host.set_callback(name, lambda parameters: {"value": parameters})
    manifest = make_manifest(memory=MEMORY, timeout=TIMEOUT, instances=1, permissions=GRANTED)
    driver = WasmDriver(manifest, code, host, TIMEOUT)
    try:
        return Plugin(driver, driver.load())
    except BaseException:
        driver.close()
        raise


def check(code: bytes) -> str:
    """Load and call a module and say what became of it. Raises FuzzFailure, or what was wrong."""
    began = time.monotonic()
    outcome = "answered"
    try:
        plugin = load(code)
    except PluginLoadError:
        outcome = "refused"
    else:
        for parameters in PARAMETERS:
            try:
                plugin.call(parameters, scope={})
            except ZenoError as error:
                outcome = type(error).__name__
        status = plugin.driver.status()
        if status["busy"] or status["waiting"] or status["memory"] > MEMORY:
            raise FuzzFailure(f"the plugin's status is {status}")
        plugin.driver.close()
    took = time.monotonic() - began
    if took > (len(PARAMETERS) + 2) * TIMEOUT + LATE:
        raise FuzzFailure(f"it took {took:.1f} s")
    return outcome


def check_healthy(plugin: Plugin, number: int) -> None:
    """Raise FuzzFailure where a plugin does not echo."""
    if plugin.call({"n": number}, timeout=LATE) != {"n": number}:
        raise FuzzFailure("another plugin was not served")


def fuzz(seconds: float, seed: int, failures: Path, most: int) -> tuple[Counter[str], int]:
    """Run modules for a while; return how many had which outcome, and how many failed."""
    outcomes: Counter[str] = Counter()
    failed = number = 0
    failures.mkdir(parents=True, exist_ok=True)
    current = failures / f"current-{os.getpid()}.wasm"
    healthy = load(bytes(wasmtime.wat2wasm(ECHO)))
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until and number < most:
            code = make_case(seed, number)
            current.write_bytes(code)
            if number % REARM_EVERY == 0:
                faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
            try:
                outcomes[check(code)] += 1
                check_healthy(healthy, number)
            except Exception:  # noqa: BLE001 - whatever it is, it is what is looked for
                failed += 1
                path = failures / f"{seed}-{number}.wasm"
                path.write_bytes(code)
                traceback.print_exc(limit=-3)
                print(f"replay with: {COMMAND} --replay {path}", flush=True)
            number += 1
    finally:
        faulthandler.cancel_dump_traceback_later()
        healthy.driver.close()
    current.unlink()
    return outcomes, failed


def main() -> int:
    """Run from the command line; the status is 1 where a module failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--most", type=int, default=sys.maxsize, help="modules, at most")
    parser.add_argument("--seed", type=int, default=None, help="by default another each time")
    parser.add_argument("--failures", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--replay", type=Path, nargs="+", help="run these modules only")
    options = parser.parse_args()
    logging.disable()
    if options.replay:
        for path in options.replay:
            print(f"{path}: {check(path.read_bytes())}")
        return 0
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    outcomes, failed = fuzz(options.seconds, seed, options.failures, options.most)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    print(f"{outcomes.total()} modules: {counts}; {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
