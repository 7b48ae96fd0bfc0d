"""A small call to a WASM slot, beside the same guest through wasmtime's public Python API.

usage: python benchmarks/bench_wasm.py [--rounds N] [--calls N]

The baseline is what no way of calling can avoid: orjson, encoding the same request and decoding
the same answer. Taken twice: pinned to one core, and free.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import wasmtime

sys.path.insert(0, str(Path(__file__).parent))

from report import measure, show, summary, write

from zeno_fast.host.functions import HostFunctions
from zeno_fast.manifest import Manifest, WasmOptions
from zeno_fast.plugin import SlotDefinition
from zeno_fast.wasm.driver import WasmDriver

# Answers {"success":true,"data":<parameters>,"error":null}; `free` takes everything back.
GUEST = r"""(module
  (memory (export "memory") 64)
  (global $heap (mut i32) (i32.const 65536))
  (func $alloc (export "alloc") (param $n i32) (result i32) (local $at i32)
    (local.set $at (global.get $heap))
    (global.set $heap (i32.and (i32.add (i32.add (local.get $at) (local.get $n)) (i32.const 7))
      (i32.const -8)))
    (local.get $at))
  (func (export "free") (param $at i32) (global.set $heap (local.get $at)))
  (func (export "plugin_execute")
    (param $name i32) (param $nname i32) (param $request i32) (param $n i32) (result i32)
    (local $out i32) (local $from i32)
    (local.set $from (i32.add (local.get $request) (i32.add (local.get $nname) (i32.const 29))))
    (local.set $n (i32.sub (local.get $n) (i32.add (local.get $nname) (i32.const 30))))
    (local.set $out (call $alloc (i32.add (local.get $n) (i32.const 64))))
    (memory.copy (local.get $out) (i32.const 1024) (i32.const 23))
    (memory.copy (i32.add (local.get $out) (i32.const 23)) (local.get $from) (local.get $n))
    (memory.copy (i32.add (local.get $out) (i32.add (local.get $n) (i32.const 23)))
      (i32.const 1100) (i32.const 15))
    (local.get $out))
  (data (i32.const 1024) "{\22success\22:true,\22data\22:")
  (data (i32.const 1100) ",\22error\22:null}\00"))"""
SLOT = "bench.echo"
PAYLOADS: dict[str, dict[str, Any]] = {
    "small": {"name": "world", "count": 3, "tags": ["a", "b"]},
    "4KiB": {"text": "x" * 4096},
    "64KiB": {"text": "x" * 65536},
}

Call = Callable[[dict[str, Any]], Any]


def open_driver(binary: bytes) -> tuple[WasmDriver, Call]:
    """Return the slot as callers of the library get it."""
    folder = Path(__file__).parent
    manifest = Manifest(
        name="bench", folder=folder, file=folder / "manifest.yaml", type="wasm",
        wasm=WasmOptions(instances=1),
    )  # fmt: skip
    driver = WasmDriver(manifest, binary, HostFunctions(), 30.0)
    driver.load()
    slot = driver.bind(SlotDefinition(SLOT, plugin="bench"))
    bound = slot.call
    return driver, lambda parameters: bound(parameters, None, None)


def public_api(binary: bytes) -> Call:
    """Call the same guest as the package's documentation shows it, with orjson."""
    config = wasmtime.Config()
    config.epoch_interruption = True  # a host that cannot stop a guest would be no comparison
    engine = wasmtime.Engine(config)
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(1)
    linker = wasmtime.Linker(engine)
    exports = linker.instantiate(store, wasmtime.Module(engine, binary)).exports(store)
    memory, alloc, free = exports["memory"], exports["alloc"], exports["free"]
    execute = exports["plugin_execute"]
    assert isinstance(memory, wasmtime.Memory)
    assert isinstance(alloc, wasmtime.Func)
    assert isinstance(free, wasmtime.Func)
    assert isinstance(execute, wasmtime.Func)
    name = SLOT.encode()

    def call(parameters: dict[str, Any]) -> Any:
        request = orjson.dumps({"slot_name": SLOT, "parameters": parameters})
        at = alloc(store, len(request) + len(name))
        memory.write(store, request + name, at)
        answer = execute(store, at + len(request), len(name), at, len(request))
        # A generous guess at the size, so that the end is not looked for byte by byte.
        found = memory.read(store, answer, answer + len(request) + 256)
        message = orjson.loads(found[: found.index(0)])
        free(store, at)
        return message["data"] if message["success"] else None

    return call


def only_json(payload: dict[str, Any]) -> Call:
    """Do what any way of calling has to: encode the request, decode the answer."""
    answer = orjson.dumps({"success": True, "data": payload, "error": None})

    def call(parameters: dict[str, Any]) -> Any:
        orjson.dumps({"slot_name": SLOT, "parameters": parameters})
        return orjson.loads(answer)["data"]

    return call


def compare(binary: bytes, rounds: int, calls: int) -> tuple[dict[str, Any], bool]:
    """Measure every payload; also say whether every side gave the right answer."""
    results: dict[str, Any] = {}
    driver, direct = open_driver(binary)
    public = public_api(binary)
    correct = driver.status()["call"] == "direct"
    for size, payload in PAYLOADS.items():
        sides = {"orjson alone": only_json(payload), "zeno_fast": direct, "public API": public}
        correct = correct and all(call(payload) == payload for call in sides.values())
        timed = {
            name: (lambda call=call, payload=payload: call(payload)) for name, call in sides.items()
        }
        rows = {
            name: summary(found)
            for name, found in measure(timed, rounds=rounds, calls=calls).items()
        }
        print(f"- {size}")
        show(rows, "orjson alone")
        faster = rows["public API"]["median_us"] / rows["zeno_fast"]["median_us"]
        print(f"{faster:.1f} times faster than the public API")
        results[size] = {**rows, "times_faster_than_public_api": round(faster, 1)}
    driver.close()
    return results, correct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=500)
    options = parser.parse_args()
    binary = bytes(wasmtime.wat2wasm(GUEST))
    cores = os.sched_getaffinity(0)
    results: dict[str, Any] = {}
    correct = True
    for where, affinity in (("one core", {min(cores)}), ("free", cores)):
        os.sched_setaffinity(0, affinity)
        print(f"-- {where}")
        results[where], right = compare(binary, options.rounds, options.calls)
        correct = correct and right
    print(write("wasm", results, correct=correct))
    if not correct:
        sys.exit("an answer was wrong, or the direct way was not taken; the figures mean nothing")


if __name__ == "__main__":
    main()
