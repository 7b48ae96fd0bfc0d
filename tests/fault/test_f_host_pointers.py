"""Pointers, lengths and amounts that make no sense, given to the functions of the host."""

from __future__ import annotations

import logging
import struct
from contextlib import suppress
from typing import Any

import pytest
from fault.bounds import MIB, watch_memory, within
from fault.wasm_guests import LATE, doing, expect, importing
from wasm.conftest import ALLOC, data, module

from zeno_fast import PluginCrashed, PluginLoadError, ProtocolError, SlotTimeout, ZenoError

pytestmark = pytest.mark.usefixtures("healthy_wasm")

SIZE = 2 * 65536  # of the guests' memory
PERMISSIONS: dict[str, list[str]] = {
    "database": ["*"],
    "network": ["*"],
    "filesystem": ["missing"],  # of a folder that is there the library would do the writing
    "env": ["*"],
    "scope": ["read", "write"],
}
ASKED = ["db_query", "http_request", "scope_get", "scope_set", "file_read", "file_write", "env_get"]
HOST_LOG = '(import "env" "host_log" (func $log (param i32 i32 i32 i32)))'
OUTSIDE = [
    (0xFFFF_FFF0, 0x20),
    (0xFFFF_FFFF, 0xFFFF_FFFF),
    (0x8000_0000, 0x8000_0000),
    (0, 0xFFFF_FFFF),
    (1, 0xFFFF_FFFF),
    (SIZE, 1),
    (SIZE - 1, 2),
    (SIZE + 1, 0),
]


def wasi(name: str, nparameters: int = 4) -> str:
    return (
        f'(import "wasi_snapshot_preview1" "{name}" '
        f"(func $wasi (param {'i32 ' * nparameters}) (result i32)))"
    )


def raw(at: int, content: bytes) -> str:
    """Write a data segment."""
    return f'(data (i32.const {at}) "{"".join(f"{chr(92)}{byte:02x}" for byte in content)}")'


def consts(*values: int) -> str:
    return " ".join(f"(i32.const {value})" for value in values)


def by_slot(bodies: list[str]) -> tuple[str, tuple[str, ...]]:
    """Do one thing in the slot `a`, the next in `b` and so on, nothing in the last, `z`."""
    test = "(if (i32.eq (i32.load8_u (local.get $name)) (i32.const {})) (then {}))"
    chosen = "".join(test.format(97 + n, body) for n, body in enumerate(bodies))
    return chosen, (*(chr(97 + n) for n in range(len(bodies))), "z")


@pytest.fixture
def callbacks(manager):
    """Answer every host call, and keep what was asked."""
    asked: list[Any] = []

    def answer(parameters: Any) -> Any:
        asked.append(parameters)
        return {}

    for name in ASKED:
        manager.set_host_callback(name, answer)
    return asked


@pytest.mark.parametrize("function", ASKED)
def test_f5_a_host_call_with_a_span_outside_of_memory_ends_the_guest(
    manager, load_wasm, callbacks, function
):
    body, slots = by_slot([f"(drop (call $host_{function} {consts(*span)}))" for span in OUTSIDE])
    plugin = load_wasm(
        doing(body, imports=importing(f"host_{function}")),
        slots=slots,
        instances=1,
        permissions=PERMISSIONS,
    )
    for count, slot in enumerate(slots[:-1], 1):
        expect(
            manager,
            PluginCrashed,
            f"(?s)host_{function} was called with nonsense.*outside of the guest's memory",
            slot=slot,
        )
        assert plugin.status()["broken"] == count
    assert manager.call("z") == 1
    assert not callbacks


@pytest.mark.parametrize("which", ["level", "message"])
def test_f5_a_log_message_from_outside_of_memory_ends_the_guest(manager, load_wasm, caplog, which):
    spans = [(*span, 2048, 1) if which == "level" else (2048, 1, *span) for span in OUTSIDE]
    body, slots = by_slot([f"(call $log {consts(*span)})" for span in spans])
    load_wasm(doing(body, imports=HOST_LOG), slots=slots, instances=1)
    for slot in slots[:-1]:
        expect(manager, PluginCrashed, "host_log was called with nonsense", slot=slot)
    assert manager.call("z") == 1


@pytest.mark.parametrize("function", ["host_scope_get", "host_env_get", "host_file_read"])
def test_f5_an_empty_span_at_the_very_end_of_memory_is_none_outside(
    manager, load_wasm, callbacks, function
):
    body = f"(drop (call ${function} (i32.const {SIZE}) (i32.const 0)))"
    load_wasm(doing(body, imports=importing(function)), permissions=PERMISSIONS)
    assert manager.call("run") == 1


def test_f5_after_a_call_with_nonsense_the_guest_asks_for_nothing_more(
    manager, load_wasm, callbacks
):
    query = '{"connection":"main"}'
    body = f"""
      (drop (call $host_db_query (i32.const -1) (i32.const 10)))
      (drop (call $host_db_query (i32.const 4000) (i32.const {len(query)})))"""
    load_wasm(
        doing(body, data(4000, query), imports=importing("host_db_query")),
        permissions=PERMISSIONS,
    )
    expect(manager, PluginCrashed, "host_db_query was called with nonsense")
    assert not callbacks


# Function of WASI, its parameters; the guest has an entry (0xfffffff0, 0x20) of a list at 4000, and
# one (5000, 4) at 4008.
IOVECS = struct.pack("<IIII", 0xFFFF_FFF0, 0x20, 5000, 4)
OURS = {
    "fd_write, entry outside": ("fd_write", (1, 4000, 1, 3000)),
    "fd_write, second entry outside": ("fd_write", (2, 4000, 2, 3000)),
    "fd_write, list outside": ("fd_write", (1, SIZE - 7, 1, 3000)),
    "fd_write, list far outside": ("fd_write", (1, 0xFFFF_FFF8, 2, 3000)),
    "fd_write, count overflows": ("fd_write", (1, SIZE - 8, 0x2000_0001, 3000)),
    "fd_write, result outside": ("fd_write", (1, 4008, 1, SIZE - 3)),
    "fd_write, result far outside": ("fd_write", (1, 4008, 1, 0xFFFF_FFFE)),
    "poll_oneoff, list outside": ("poll_oneoff", (SIZE - 47, 6000, 1, 3000)),
    "poll_oneoff, list far outside": ("poll_oneoff", (0xFFFF_FFF0, 6000, 1, 3000)),
    "poll_oneoff, count overflows": ("poll_oneoff", (7000, 6000, 0x0555_5556, 3000)),
    "poll_oneoff, largest count": ("poll_oneoff", (7000, 6000, 0xFFFF_FFFF, 3000)),
    "poll_oneoff, events outside": ("poll_oneoff", (7000, SIZE - 31, 1, 3000)),
    "poll_oneoff, events far outside": ("poll_oneoff", (7000, 0xFFFF_FFFF, 1, 3000)),
    "poll_oneoff, result outside": ("poll_oneoff", (7000, 6000, 1, SIZE - 3)),
}


@pytest.mark.parametrize("case", OURS)
def test_f5_output_and_sleep_outside_of_memory_end_the_guest(manager, load_wasm, case):
    function, values = OURS[case]
    load_wasm(
        doing(f"(drop (call $wasi {consts(*values)}))", raw(4000, IOVECS), imports=wasi(function)),
        instances=1,
    )
    for _ in range(2):
        with within(LATE):
            expect(manager, PluginCrashed, "outside of the guest's memory|called for [0-9]+ events")


# What the library answers itself: an error number or a trap, both are fine.
THEIRS = {
    "random_get": [(0xFFFF_FFF0, 0x20), (0, 0xFFFF_FFFF), (SIZE - 1, 2)],
    "args_get": [(0xFFFF_FFFF, 0xFFFF_FFFF)],
    "args_sizes_get": [(SIZE - 1, SIZE), (0xFFFF_FFFE, 0)],
    "environ_get": [(0xFFFF_FFFF, 0xFFFF_FFFF)],
    "environ_sizes_get": [(SIZE - 1, SIZE), (0xFFFF_FFFE, 0)],
    "fd_read": [(0, 4000, 1, 3000), (0, 0xFFFF_FFF8, 2, 3000), (0, 0, 0xFFFF_FFFF, 0)],
    "fd_fdstat_get": [(1, SIZE - 1), (1, 0xFFFF_FFFF)],
    "fd_prestat_get": [(3, 0xFFFF_FFFF)],
    "fd_prestat_dir_name": [(3, 0xFFFF_FFFF, 0xFFFF_FFFF)],
    "clock_res_get": [(0, SIZE - 1), (99, 0xFFFF_FFFF)],
    "fd_close": [(0,), (1,), (2,), (3,), (0xFFFF_FFFF,)],
    "fd_renumber": [(0, 1), (1, 0), (2, 0xFFFF_FFFF)],
}


@pytest.mark.parametrize("function", THEIRS)
def test_f5_nonsense_given_to_the_rest_of_wasi_is_an_error_of_the_guest(
    manager, load_wasm, function
):
    tries = THEIRS[function]
    body, slots = by_slot([f"(drop (call $wasi {consts(*values)}))" for values in tries])
    load_wasm(doing(body, raw(4000, IOVECS), imports=wasi(function, len(tries[0]))), slots=slots)
    for slot in slots[:-1]:
        with within(LATE):
            try:
                assert manager.call(slot, timeout=1) == 1
            except PluginCrashed as error:
                assert (error.plugin, error.slot) == ("hostile", slot)  # noqa: PT017
        assert manager.call("z") == 1


ABORT = '(import "env" "abort" (func $abort (param i32 i32 i32 i32)))'


@pytest.mark.parametrize("address", [0, 1, 3, 4, 4000, SIZE - 1, SIZE, 0x8000_0003, 0xFFFF_FFFF])
def test_f5_an_abort_with_a_text_that_is_nowhere_is_a_crash(manager, load_wasm, address):
    # What stands before each address says that the text is of nearly 4 GiB.
    filled = "(memory.fill (i32.const 1) (i32.const 0xfe) (i32.const 131071))"
    body = f"{filled} (call $abort (i32.const {{}}) (i32.const {{}}) (i32.const 1) (i32.const 2))"
    tries = [body.format(address, 0), body.format(0, address), body.format(address, address)]
    chosen, slots = by_slot(tries)
    load_wasm(doing(chosen, imports=ABORT), slots=slots, instances=1)
    for slot in slots[:-1]:
        with within(LATE):
            error = expect(manager, PluginCrashed, "aborted|outside of the guest's", slot=slot)
        assert len(str(error)) < 10_000
    assert manager.call("z") == 1


# -- where the answer of a host function goes ---------------------------------------------------

QUERY = '{"connection":"main"}'


def asking(alloc: str, after: str = "(local.get $p)", more: str = "") -> str:
    """Write a guest whose `alloc` does as it is told once the host answers it."""
    body = f"""(local $p i32)
      (global.set $asking (i32.const 1))
      (local.set $p (call $host_db_query (i32.const 4000) (i32.const {len(QUERY)})))
      {after}"""
    more += data(4000, QUERY) + "(global $asking (mut i32) (i32.const 0))"
    odd = f"""
      (func (export "alloc") (param $n i32) (result i32)
        (if (global.get $asking) (then (return {alloc})))
        (call $alloc (local.get $n)))"""
    return module(
        body,
        more + odd,
        imports=importing("host_db_query"),
        alloc=ALLOC.replace('(export "alloc")', ""),
    )


@pytest.mark.parametrize("text", ["", "x" * 100_000], ids=len)
@pytest.mark.parametrize("address", [SIZE - 20, SIZE, 0x8000_0000, 0xFFFF_FFF0, -1])
def test_f5_an_answer_of_the_host_is_not_written_outside_of_memory(
    manager, load_wasm, address, text
):
    manager.set_host_callback("db_query", lambda _: text)
    load_wasm(asking(f"(i32.const {address})"), permissions=PERMISSIONS, instances=1)
    for _ in range(2):
        expect(manager, PluginCrashed, "outside of the guest's memory")


def test_f5_an_alloc_that_gives_nothing_to_the_host_is_a_refusal(manager, load_wasm):
    manager.set_host_callback("db_query", lambda _: "x")
    load_wasm(asking("(i32.const 0)"), permissions=PERMISSIONS, instances=1)
    expect(manager, ProtocolError, "slot 'run' was answered with a null pointer")


@pytest.mark.parametrize("address", [1, 3, 5001, 65537])
def test_f5_an_odd_address_is_as_good_as_any(manager, load_wasm, address):
    manager.set_host_callback("db_query", lambda _: "it")
    load_wasm(asking(f"(i32.const {address})"), permissions=PERMISSIONS)
    assert [manager.call("run") for _ in range(3)] == ["it"] * 3


@pytest.mark.parametrize(
    ("alloc", "error", "says"),
    [
        ("unreachable", PluginCrashed, "unreachable"),
        ("(loop $l (br $l)) (i32.const 1)", SlotTimeout, "did not end"),
        ("(call $deep)", PluginCrashed, "stack"),
        (
            "(call $host_db_query (i32.const -1) (i32.const 9))",
            PluginCrashed,
            "alloc ended|nonsense",
        ),
    ],
    ids=["trap", "loop", "stack", "host call"],
)
def test_f5_an_alloc_that_fails_the_host_ends_the_guest(manager, load_wasm, alloc, error, says):
    manager.set_host_callback("db_query", lambda _: "x")
    deep = "(func $deep (result i32) (i32.add (call $deep) (call $deep)))"
    code = asking(f"(block (result i32) {alloc})", more=deep)
    load_wasm(code, permissions=PERMISSIONS, instances=1)
    for _ in range(2):
        with within(LATE):
            expect(manager, error, says, timeout=0.2)


def test_f5_an_alloc_that_asks_the_host_again_ends_at_last(manager, load_wasm):
    manager.set_host_callback("db_query", lambda _: "x")
    again = f"(call $host_db_query (i32.const 4000) (i32.const {len(QUERY)}))"
    load_wasm(asking(again), permissions=PERMISSIONS, instances=1)
    with within(10), pytest.raises(ZenoError, match="'hostile'"):
        manager.call("run", timeout=2)


@pytest.mark.parametrize("npages", [1, 100, 500])
@pytest.mark.parametrize("nbytes", [1, 3000, 1_000_000])
def test_f5_memory_that_moves_while_the_host_answers_gets_the_answer(
    manager, load_wasm, npages, nbytes
):
    # Grows before it gives an address at the new end, and once more after it.
    alloc = f"""(block (result i32)
      (drop (memory.grow (i32.const {npages + 20})))
      (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 1100000)))"""
    after = "(drop (memory.grow (i32.const 300))) (local.get $p)"
    manager.set_host_callback("db_query", lambda _: "x" * nbytes)
    load_wasm(asking(alloc, after), permissions=PERMISSIONS, instances=1)
    assert [manager.call("run") for _ in range(3)] == ["x" * nbytes] * 3


def test_f5_a_host_function_called_in_place_of_a_slot_finds_a_memory_or_says_so(manager, load_wasm):
    # The export is the import itself: nobody of the guest's stands between host and host.
    code = f"""(module {wasi("fd_write")}
      (memory (export "memory") 2) {ALLOC} (export "plugin_execute" (func $wasi)))"""
    load_wasm(code, instances=1)
    for _ in range(2):
        with within(LATE), pytest.raises(ZenoError, match="'hostile'"):
            manager.call("run", timeout=5)


def test_f5_a_host_function_called_in_place_of_a_life_cycle_slot_harms_nobody(manager, load_wasm):
    imports = '(import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))'
    code = doing("", '(export "plugin_init" (func $yield))', imports=imports)
    with suppress(PluginLoadError):  # the library's function wants a memory
        load_wasm(code)
        assert manager.call("run") == 1


# -- how much the host does for one call ------------------------------------------------------

MUCH = 48 * MIB
FILL = f"""(drop (memory.grow (i32.const 800)))
  (memory.fill (i32.const 65536) (i32.const {{}}) (i32.const {MUCH}))"""
# Name -> what the memory is filled with, the call, what it imports.
AMPLIFIERS = {
    "lines": (
        10,
        "(i32.store (i32.const 4000) (i32.const 65536))"
        f"(i32.store (i32.const 4004) (i32.const {MUCH}))"
        "(drop (call $wasi (i32.const 1) (i32.const 4000) (i32.const 1) (i32.const 3000)))",
        wasi("fd_write"),
    ),
    "the same text again and again": (
        65,
        f"""(local.set $rlen (i32.const 0)) (loop $l
          (i32.store (i32.add (i32.const 20000) (local.get $rlen)) (i32.const 65536))
          (i32.store (i32.add (i32.const 20004) (local.get $rlen)) (i32.const {MUCH // 6}))
          (local.set $rlen (i32.add (i32.const 8) (local.get $rlen)))
          (br_if $l (i32.lt_u (local.get $rlen) (i32.const 8192))))
        (drop (call $wasi (i32.const 1) (i32.const 20000) (i32.const 1024) (i32.const 3000)))""",
        wasi("fd_write"),
    ),
    "events": (
        2,
        "(drop (call $wasi (i32.const 65536) (i32.const 65536)"
        f" (i32.const {MUCH // 48}) (i32.const 3000)))",
        wasi("poll_oneoff"),
    ),
    "moments": (
        0,
        "(drop (call $wasi (i32.const 65536) (i32.const 65536)"
        f" (i32.const {MUCH // 48}) (i32.const 3000)))",
        wasi("poll_oneoff"),
    ),
    "a log message": (
        65,
        f"(loop $l (call $log (i32.const 0) (i32.const 4) (i32.const 65536) (i32.const {MUCH}))"
        "(br $l))",
        HOST_LOG,
    ),
    "a level": (
        65,
        f"(loop $l (call $log (i32.const 65536) (i32.const {MUCH}) (i32.const 0) (i32.const 4))"
        "(br $l))",
        HOST_LOG,
    ),
    "nested brackets": (
        91,
        f"(loop $l (drop (call $host_db_query (i32.const 65536) (i32.const {MUCH}))) (br $l))",
        importing("host_db_query"),
    ),
    "a name": (
        65,
        f"(loop $l (drop (call $host_env_get (i32.const 65536) (i32.const {MUCH}))) (br $l))",
        importing("host_env_get"),
    ),
}


@pytest.mark.parametrize(
    ("how", "files"),
    [
        *((how, False) for how in AMPLIFIERS),
        ("lines", True),
        ("the same text again and again", True),
    ],
)
def test_f1_a_guest_keeps_the_host_busy_no_longer_than_its_deadline(
    manager, load_wasm, callbacks, tmp_path, how, files
):
    (tmp_path / "granted").mkdir()
    granted = [str(tmp_path / "granted")] if files else ["missing"]
    filling, body, imports = AMPLIFIERS[how]
    load_wasm(
        doing(FILL.format(filling) + body, imports=imports),
        memory=64 * MIB,
        instances=1,
        permissions={**PERMISSIONS, "filesystem": granted},
    )
    logger = logging.getLogger("zeno_fast.plugin.hostile")
    logger.disabled = True  # what is done with a message is up to the application
    grown = watch_memory()
    try:
        with within(0.2 + LATE):
            try:
                manager.call("run", timeout=0.2)
            except ZenoError as error:
                assert isinstance(error, (SlotTimeout, PluginCrashed))  # noqa: PT017
    finally:
        logger.disabled = False
    assert grown() < 300 * MIB
