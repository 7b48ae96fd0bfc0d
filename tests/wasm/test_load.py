"""What a WASM plugin must be to load, and what is said of one that is not."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wasmtime
from wasmtime import _ffi

from zeno_fast import _wasmtime
from zeno_fast.errors import PluginLoadError, PluginUnavailable, UsageError
from zeno_fast.host.functions import HostFunctions
from zeno_fast.wasm import library, startup
from zeno_fast.wasm.driver import WasmDriver
from zeno_fast.wasm.library import find_mismatch

from .conftest import ALLOC, ECHO, FINE, Load, answering, data, make_manifest, module

EXIT = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
LOG = '(import "env" "host_log" (func $log (param i32 i32 i32 i32)))'
SAY = data(3000, "info") + data(3010, "hello from the guest")
SAY_HELLO = "(call $log (i32.const 3000) (i32.const 4) (i32.const 3010) (i32.const 20))"
COMPONENT = b"\0asm\x0d\0\1\0rest"


def lifecycle(name: str, answer: str, at: int) -> str:
    return f'(func (export "{name}") (result i32) (i32.const {at}))' + data(at, answer + "\0")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (b"", "is empty"),
        (b"#!/bin/sh\n", "is not WASM: it begins with"),
        (b"(module)", "WASM's text format"),
        (b"\x7fELF\2\1\1\0", "native program.*type: sidecar"),
        (b"MZ\x90\0", "native program"),
        (COMPONENT, "is a WASM component, and plugins are modules"),
        (b"\0asm\2\0\0\0", "WASM of version 2"),
        (b"\0asm\1\0\0\0garbage", "cannot be compiled"),
        (b"\0asm\1\0\0", "version"),
    ],
)
def test_what_is_no_module_is_refused_with_a_reason(load: Load, code: bytes, problem: str) -> None:
    with pytest.raises(PluginLoadError, match=problem) as caught:
        load(code)
    assert "plugin 'test': /plugins/test/plugin.wasm" in str(caught.value)


def test_text_loads_from_a_file_that_is_called_so(way: str) -> None:
    manifest = make_manifest("plugin.wat")
    for code in (ECHO.encode(), bytes(wasmtime.wat2wasm(ECHO))):
        driver = WasmDriver(manifest, code, HostFunctions(), 30.0)
        driver.load()
        driver.close()
    with pytest.raises(PluginLoadError, match="text format"):
        WasmDriver(manifest, b"(modul", HostFunctions(), 30.0).load()


def test_every_missing_export_is_named(load: Load) -> None:
    with pytest.raises(PluginLoadError, match="does not export memory, alloc, plugin_execute"):
        load("(module)")
    with pytest.raises(PluginLoadError, match=r"does not export alloc$"):
        load(answering(FINE, alloc=""))


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ('(func (export "plugin_init") (result f64) (f64.const 0))', r"plugin_init \(must be"),
        ('(global (export "plugin_register_slots") i32 (i32.const 0))', "plugin_register_slots"),
        ('(func (export "_initialize") (param i32))', "_initialize"),
    ],
)
def test_an_export_of_a_wrong_type_is_named(load: Load, wrong: str, problem: str) -> None:
    with pytest.raises(PluginLoadError, match=f"exports with a wrong type: {problem}"):
        load(answering(FINE, wrong))


def test_all_wrong_exports_are_named_at_once(load: Load) -> None:
    wat = """(module (memory (export "memory") i64 1)
      (func (export "alloc") (param i64) (result i64) (local.get 0))
      (func (export "plugin_execute") (param i32 i32) (result i32) (i32.const 0)))"""
    with pytest.raises(PluginLoadError, match=r"memory \(must.* alloc \(must.* plugin_execute \("):
        load(wat)


def test_unknown_imports_are_listed(load: Load) -> None:
    imports = """(import "env" "seed" (func (result f64)))
      (import "env" "host_exec" (func)) (import "wasi_unstable" "proc_exit" (func (param i32)))"""
    with pytest.raises(
        PluginLoadError, match=r"env\.seed, env\.host_exec, wasi_unstable\.proc_exit"
    ):
        load(answering(FINE, imports=imports))


def test_a_known_import_with_another_signature_is_named(load: Load) -> None:
    imports = '(import "env" "host_log" (func (param i32)))'
    with pytest.raises(PluginLoadError, match=r"wrong signature: env\.host_log"):
        load(answering(FINE, imports=imports))


def test_a_memory_above_the_limit_is_refused(load: Load) -> None:
    with pytest.raises(PluginLoadError, match="memory"):
        load(ECHO, memory=1 << 16)


@pytest.mark.parametrize("envelope", [False, True])
def test_a_guest_says_who_it_is_and_what_it_offers(load: Load, envelope: bool) -> None:
    info, slots = '{"name":"guest","version":"2.0"}', '[{"name":"a.b","inputs":{"n":"int"}}]'
    if envelope:
        info = f'{{"success":true,"data":{info}}}'
        slots = f'{{"success":true,"data":{{"slots":{slots}}}}}'
    description = load(
        answering(
            FINE,
            lifecycle("plugin_init", info, 5000) + lifecycle("plugin_register_slots", slots, 6000),
        )
    ).description
    assert description.info == {"name": "guest", "version": "2.0"}
    assert description.slots is not None
    assert [slot.name for slot in description.slots] == ["a.b"]
    assert description.slots[0].inputs["n"].type == "int"


@pytest.mark.parametrize(
    "answer",
    [
        '{"success":true,"data":{"error":"Unknown slot"}}',
        '{"success":false,"error":"Unknown slot"}',
        '{"error":"Unknown slot"}',
        "null",
        "nonsense",
        "",
        "7",
    ],
)
def test_a_guest_that_knows_no_life_cycle_loads(load: Load, answer: str) -> None:
    more = lifecycle("plugin_init", answer, 5000) + lifecycle("plugin_register_slots", answer, 6000)
    plugin = load(answering(FINE, more))
    assert (dict(plugin.description.info), plugin.description.slots) == ({}, None)
    assert plugin.call() == 1


@pytest.mark.parametrize("pointer", ["0", "0xffffffff"])
def test_a_life_cycle_answer_that_is_nowhere_is_ignored_or_an_error(
    load: Load, pointer: str, caplog: pytest.LogCaptureFixture
) -> None:
    wat = answering(FINE, f'(func (export "plugin_init") (result i32) (i32.const {pointer}))')
    if pointer == "0":
        assert load(wat).description.info == {}
        assert "the answer of plugin_init is ignored" in caplog.text
    else:
        with pytest.raises(PluginLoadError, match="outside"):
            load(wat)


@pytest.mark.parametrize(
    ("start", "problem"),
    [
        ('(func (export "_initialize") unreachable)', "_initialize: .*unreachable"),
        ('(func (export "plugin_init") (result i32) unreachable)', "plugin_init: .*unreachable"),
        ('(func (export "_start") (call $exit (i32.const 3)))', "exit status 3 in _start"),
        ("(func $s unreachable) (start $s)", "its start: .*unreachable"),
        ('(func (export "plugin_init") (result i32) (loop (br 0)) (i32.const 0))', "did not end"),
        ("(func $s (loop (br 0))) (start $s)", "did not end"),
    ],
)
def test_a_guest_that_fails_to_start_is_a_load_error_and_leaves_nothing(
    load: Load, start: str, problem: str
) -> None:
    with pytest.raises(PluginLoadError, match=problem):
        load(answering(FINE, start, imports=EXIT), timeout=0.2)


@pytest.mark.parametrize(
    "start",
    [
        '(func (export "_initialize") {say})',
        '(func (export "_start") {say})',
        '(func (export "_start") {say} (call $exit (i32.const 0)))',
        "(func $s {say}) (start $s)",
    ],
)
def test_a_guests_own_start_runs_once_and_may_call_the_host(
    load: Load, start: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plugin = load(answering(FINE, start.format(say=SAY_HELLO) + SAY, imports=EXIT + LOG))
    assert plugin.call() == 1
    assert [record.message for record in caplog.records] == ["hello from the guest"]
    assert caplog.records[0].name == "zeno_fast.plugin.test"


def test_a_reactor_is_not_started_as_a_command_too(load: Load) -> None:
    both = '(func (export "_initialize")) (func (export "_start") unreachable)'
    assert load(answering(FINE, both)).call() == 1


def test_plugin_cleanup_runs_when_the_plugin_is_closed(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cleanup = f'(func (export "plugin_cleanup") {SAY_HELLO})'
    plugin = load(answering(FINE, cleanup + SAY, imports=LOG))
    assert not caplog.records
    plugin.driver.close()
    plugin.driver.close()
    assert [record.message for record in caplog.records] == ["hello from the guest"]


def test_a_cleanup_that_traps_is_only_logged(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    load(answering(FINE, '(func (export "plugin_cleanup") unreachable)')).driver.close()
    assert "plugin_cleanup failed" in caplog.text


def test_a_closed_plugin_takes_no_calls(load: Load) -> None:
    plugin = load(ECHO)
    slot = plugin.slot()
    plugin.driver.close()
    for call in (
        lambda: slot.call({}, None, None),
        lambda: slot.submit({}, None, None).result(),
        lambda: list(slot.map([{}], None, None)),
    ):
        with pytest.raises(PluginUnavailable, match="was closed"):
            call()
    assert plugin.driver.status()["state"] == "closed"


def test_a_slot_needs_a_loaded_plugin() -> None:
    driver = WasmDriver(make_manifest(), b"", HostFunctions(), 30.0)
    with pytest.raises(UsageError, match="not loaded"):
        driver.pool  # noqa: B018
    driver.close()


def changed(**different: Any) -> Any:
    """Stand in for the package's module of C functions, but for what is different."""
    members = {name: getattr(_ffi, name) for name in dir(_ffi) if name.startswith(("w", "W"))}
    return SimpleNamespace(**{"dll": _ffi.dll, **members, **different})


def test_the_installed_library_is_the_one_that_the_extension_was_written_for() -> None:
    assert _wasmtime.MISMATCH == ""
    assert find_mismatch(changed(), _wasmtime.STRUCT_SIZES) == ""


@pytest.mark.parametrize(
    ("different", "problem"),
    [
        ({"wasmtime_func_t": ctypes.c_uint64}, "wasmtime_func_t has 8 bytes, not 16"),
        ({"WASMTIME_EXTERN_MEMORY": ctypes.c_uint8(4)}, "WASMTIME_EXTERN_MEMORY is not 3"),
        ({"dll": SimpleNamespace()}, "no function wasmtime_func_call_unchecked"),
    ],
)
def test_a_library_that_is_laid_out_otherwise_is_noticed(
    different: dict[str, Any], problem: str
) -> None:
    assert problem in find_mismatch(changed(**different), _wasmtime.STRUCT_SIZES)


def test_a_library_that_is_older_than_any_that_was_tried_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in ("49.2.1", "unknown"):
        monkeypatch.setattr(library, "version", lambda _, number=number: number)
        found = find_mismatch(changed(), _wasmtime.STRUCT_SIZES)
        assert found.startswith(f"wasmtime {number} is not as expected: it is older than 50.0")


def test_the_slow_way_is_taken_and_said_once_where_the_library_differs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("ZENO_FAST_WASM", raising=False)
    monkeypatch.setattr(_wasmtime, "MISMATCH", "wasmtime 99 is not as expected")
    monkeypatch.setattr(startup, "_warned", [])
    for _ in range(2):
        code = bytes(wasmtime.wat2wasm(ECHO))
        driver = WasmDriver(make_manifest(), code, HostFunctions(), 30.0)
        driver.load()
        status = driver.status()
        driver.close()
        assert status["call"] == "public"
        assert status["call_reason"] == "wasmtime 99 is not as expected"
    assert caplog.text.count("the slow way") == 1


SCRIPT = """
import sys
from pathlib import Path
import wasmtime
sys.path.insert(0, {here!r})
from conftest import ECHO, Plugin, make_manifest
from zeno_fast.errors import SlotTimeout
from zeno_fast.host.functions import HostFunctions
from zeno_fast.wasm.driver import WasmDriver

LOOP = ECHO.replace('(export "plugin_execute")', '').replace('(memory (export', '''
  (func (export "plugin_execute") (param i32 i32 i32 i32) (result i32)
    (if (i32.eq (i32.load8_u (local.get 0)) (i32.const 108)) (then (loop $l (br $l))))
    (call $execute (local.get 0) (local.get 1) (local.get 2) (local.get 3)))
  (memory (export''')
driver = WasmDriver(make_manifest(), bytes(wasmtime.wat2wasm(LOOP)), HostFunctions(), 30.0)
plugin = Plugin(driver, driver.load())

def check():
    assert plugin.call({{"a": 1}}) == {{"a": 1}}
    try:
        plugin.call(slot="loop", timeout=0.05)
    except SlotTimeout:
        return
    raise AssertionError("the loop ended")
"""


def run_script(body: str, **environment: str) -> None:
    """Run a program in an interpreter of its own; it must end well and say nothing."""
    here = str(Path(__file__).parent)
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT.format(here=here) + body],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_an_interpreter_that_ends_with_a_plugin_open_says_nothing(way: str) -> None:
    run_script("check()")


def test_an_interpreter_that_ends_during_a_call_in_a_thread_says_nothing(way: str) -> None:
    run_script(
        "import threading\n"
        "def loop():\n"
        "    try: plugin.call(slot='loop', timeout=0.3)\n"
        "    except SlotTimeout: pass\n"
        "threading.Thread(target=loop).start()"
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_calls_and_their_timeouts_work_in_the_child_of_a_fork(way: str) -> None:
    run_script(
        "import os, warnings\n"
        "warnings.simplefilter('ignore')\n"  # 3.12 warns of threads when it forks
        "check()\n"
        "child = os.fork()\n"
        "check()\n"
        "if child == 0:\n"
        "    code = bytes(wasmtime.wat2wasm(LOOP))\n"
        "    d = WasmDriver(make_manifest(), code, HostFunctions(), 9.0)\n"
        "    plugin = Plugin(d, d.load())\n"
        "    check()\n"
        "    os._exit(0)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0"
    )


def test_a_home_that_cannot_be_written_to_does_not_matter() -> None:
    run_script("check()", HOME="/proc/nowhere", XDG_CACHE_HOME="/proc/nowhere")


def test_wasmtime_is_not_imported_before_a_wasm_plugin_is_loaded() -> None:
    run_program = "import sys, zeno_fast; assert 'wasmtime' not in sys.modules"
    subprocess.run([sys.executable, "-c", run_program], check=True, timeout=60)


def test_a_module_without_names_is_a_plugin_too(load: Load) -> None:
    assert load(bytes(wasmtime.wat2wasm(module("(i32.const 9)", data(9, FINE), alloc=ALLOC))))
