"""Guests written in WAT, and the driver that runs them in both of its ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from zeno_fast.host.functions import HostFunctions
from zeno_fast.manifest import Manifest, WasmOptions
from zeno_fast.permissions import Permissions
from zeno_fast.plugin import GuestDescription, SlotDefinition
from zeno_fast.wasm.driver import WasmDriver
from zeno_fast.wasm.slot import WasmSlot

# A bump allocator that grows memory and answers 0 where it may not.
ALLOC = """
(global $heap (mut i32) (i32.const 65536))
(func $alloc (export "alloc") (param $n i32) (result i32)
  (local $at i32) (local $lack i32)
  (if (i32.eqz (local.get $n)) (then unreachable))
  (local.set $at (global.get $heap))
  (local.set $lack
    (i32.sub (i32.add (local.get $at) (local.get $n)) (i32.mul (memory.size) (i32.const 65536))))
  (if (i32.gt_s (local.get $lack) (i32.const 0)) (then
    (if (i32.eq (i32.const -1) (memory.grow
          (i32.add (i32.div_u (local.get $lack) (i32.const 65536)) (i32.const 1))))
      (then (return (i32.const 0))))))
  (global.set $heap (i32.add (local.get $at) (local.get $n)))
  (local.get $at))
"""
# Answers {"success":true,"data":<the parameters>}; $end is what stands behind the data.
ECHO_BODY = """
  (local $out i32) (local $p i32) (local $n i32)
  (local.set $p (i32.add (local.get $req) (i32.add (local.get $nlen) (i32.const 29))))
  (local.set $n (i32.sub (local.get $rlen) (i32.add (local.get $nlen) (i32.const 30))))
  (local.set $out (call $alloc (i32.add (local.get $n) (i32.const 64))))
  (memory.copy (local.get $out) (i32.const 1024) (i32.const 23))
  (memory.copy (i32.add (local.get $out) (i32.const 23)) (local.get $p) (local.get $n))
  (memory.copy (i32.add (local.get $out) (i32.add (local.get $n) (i32.const 23)))
    (i32.const 1100) (i32.const 8))
  (local.get $out)
"""


def text(value: str) -> str:
    """Write a string as WAT does."""
    return '"' + "".join(f"\\{byte:02x}" for byte in value.encode()) + '"'


def data(at: int, value: str) -> str:
    """Write a data segment of a module."""
    return f"(data (i32.const {at}) {text(value)})"


def module(execute: str, more: str = "", *, alloc: str = ALLOC, imports: str = "") -> str:
    """Write a module: `execute` is the body of plugin_execute, `more` any other fields."""
    return f"""(module {imports}
      (memory (export "memory") 2)
      {alloc}
      {more}
      (func $execute (export "plugin_execute")
        (param $name i32) (param $nlen i32) (param $req i32) (param $rlen i32) (result i32)
        {execute}))"""


def answering(answer: str, more: str = "", **rest: str) -> str:
    """Write a module whose slots all give the same answer."""
    return module("(i32.const 2048)", data(2048, answer + "\0") + more, **rest)


ECHO_DATA = data(1024, '{"success":true,"data":') + data(1100, "}\0junk{}")
ECHO = module(ECHO_BODY, ECHO_DATA)
FINE = '{"success":true,"data":1}'


class Plugin:
    """A loaded plugin and its slots."""

    def __init__(self, driver: WasmDriver, description: GuestDescription) -> None:
        self.driver = driver
        self.description = description

    def slot(self, name: str = "echo", **definition: Any) -> WasmSlot:
        return self.driver.bind(SlotDefinition(name, plugin="test", **definition))

    def call(
        self,
        parameters: dict[str, Any] | None = None,
        *,
        slot: str = "echo",
        timeout: float | None = None,
        scope: MutableMapping[str, Any] | None = None,
    ) -> Any:
        return self.slot(slot).call(parameters, timeout, scope)


def make_manifest(binary: str = "plugin.wasm", **options: Any) -> Manifest:
    permissions = options.pop("permissions", Permissions())
    return Manifest(
        name="test",
        folder=Path("/plugins/test"),
        file=Path("/plugins/test/manifest.yaml"),
        type="wasm",
        binary_path=Path("/plugins/test") / binary,
        permissions=permissions,
        wasm=WasmOptions(**options),
    )


@pytest.fixture(params=["direct", "public"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with guests called directly, and through the package's public API."""
    monkeypatch.setenv("ZENO_FAST_WASM", request.param)
    return str(request.param)


Load = Callable[..., Plugin]


@pytest.fixture
def load(way: str, no_leaks: None) -> Iterator[Load]:
    """Load a plugin from WAT or from bytes; options are those of the manifest's `wasm`."""
    drivers: list[WasmDriver] = []

    def load_it(
        code: str | bytes,
        host: HostFunctions | None = None,
        timeout: float = 30.0,
        **options: Any,
    ) -> Plugin:
        if isinstance(code, str):
            code = bytes(wasmtime.wat2wasm(code))
        driver = WasmDriver(make_manifest(**options), code, host or HostFunctions(), timeout)
        drivers.append(driver)
        return Plugin(driver, driver.load())

    yield load_it
    for driver in drivers:
        driver.close()
