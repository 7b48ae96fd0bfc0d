"""WASM guests that take all the time, stack, memory and tables that they can get."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from fault.bounds import MIB, watch_memory, within
from fault.wasm_guests import ANSWER, IF_RUN, LATE, SLOT, doing, doing_in_run, expect, in_threads
from wasm.conftest import ALLOC, data, module

from zeno_fast import PluginCrashed, PluginLoadError, SlotTimeout

pytestmark = pytest.mark.usefixtures("healthy_wasm")

WASI = """
(import "wasi_snapshot_preview1" "{}" (func $ask (param i32 i32 i32 i32) (result i32)))"""
RANDOM = '(import "wasi_snapshot_preview1" "random_get" (func $ask (param i32 i32) (result i32)))'

# Name -> what the slot does, what else is in the module, what it imports.
ENDLESS = {
    "loop": ("(loop $l (br $l))", "", ""),
    "loop with two ends": ("(loop $l (br_table $l $l (i32.const 1)))", "", ""),
    "tail call": ("(call $f)", "(func $f (return_call $f))", ""),
    "mutual tail calls": (
        "(call $f)",
        "(func $f (return_call $g)) (func $g (return_call $f))",
        "",
    ),
    "tail call through a table": (
        "(call $f)",
        "(table $t 1 funcref) (elem (i32.const 0) $f)"
        "(func $f (return_call_indirect $t (i32.const 0)))",
        "",
    ),
    "exceptions": (
        "(loop $l (block $h (try_table (catch_all $h) (throw $e))) (br $l))",
        "(tag $e)",
        "",
    ),
    "large fills": (
        "(drop (memory.grow (i32.const 1000)))"
        "(loop $l (memory.fill (i32.const 65536) (i32.const 1) (i32.const 65536000)) (br $l))",
        "",
        "",
    ),
    "growing by nothing": ("(loop $l (drop (memory.grow (i32.const 0))) (br $l))", "", ""),
    "refused growth": ("(loop $l (drop (memory.grow (i32.const 65000))) (br $l))", "", ""),
    "host calls": (
        "(loop $l (drop (call $ask (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0)))"
        "(br $l))",
        "",
        WASI.format("fd_write"),
    ),
    "long sleeps": (
        "(loop $l (drop (call $ask"
        " (i32.const 4000) (i32.const 8000) (i32.const 1) (i32.const 3000))) (br $l))",
        r'(data (i32.const 4016) "\01") (data (i32.const 4024) "\00\00\00\00\00\00\00\01")',
        WASI.format("poll_oneoff"),
    ),
    "much randomness": (
        "(drop (memory.grow (i32.const 1000)))"
        "(loop $l (drop (call $ask (i32.const 65536) (i32.const 65536000))) (br $l))",
        "",
        RANDOM,
    ),
}


@pytest.mark.parametrize("how", ENDLESS)
def test_f1_a_guest_without_an_end_is_ended_at_its_deadline(manager, load_wasm, how):
    body, more, imports = ENDLESS[how]
    load_wasm(doing_in_run(body, more, imports=imports), slots=("run", "fine"), instances=1)
    for _ in range(2):  # the second has an instance that was made for it
        began = time.monotonic()
        expect(manager, SlotTimeout, rf"{SLOT} did not end within 0\.05 s", timeout=0.05)
        assert 0.05 <= time.monotonic() - began < 0.05 + LATE
        assert manager.call("fine", timeout=20) == 1


DEEP = {
    "itself": ("(call $f)", "(func $f (call $f) (call $f))"),
    "each other": (
        "(call $f)",
        "(func $f (call $g) (call $g)) (func $g (call $f) (call $f))",
    ),
    "itself through a table": (
        "(call $f)",
        "(table $t 1 funcref) (elem (i32.const 0) $f)"
        "(func $f (call_indirect $t (i32.const 0)) (call_indirect $t (i32.const 0)))",
    ),
    "itself with a large frame": (
        "(drop (call $f (i64.const 1)))",
        "(func $f (param i64) (result i64) (local "
        + "i64 " * 20_000
        + ")"
        + "".join(
            f"(local.set {n} (i64.add (local.get {n - 1}) (local.get 0)))" for n in range(1, 999)
        )
        + "(drop (call $f (local.get 998)))"
        + "".join(f"(local.set 0 (i64.xor (local.get 0) (local.get {n})))" for n in range(1, 999))
        + "(local.get 0))",
    ),
}


@pytest.mark.parametrize("how", DEEP)
def test_f1_a_guest_that_calls_without_an_end_runs_out_of_stack(manager, load_wasm, how):
    body, more = DEEP[how]
    load_wasm(doing_in_run(body, more), slots=("run", "fine"), instances=1)
    for _ in range(3):
        with within(LATE):
            expect(manager, PluginCrashed, "slot 'run': call stack exhausted")
        with within(LATE):
            error = manager.submit("run").exception(20)  # in a thread with a stack of its own
        assert isinstance(error, PluginCrashed)
        assert manager.call("fine") == 1


SMALL_STACK = """
    import threading
    from zeno_fast import PluginManager, ZenoError

    def call():
        try:
            manager.call("run")
        except ZenoError as error:
            print(error)

    with PluginManager() as manager:
        manager.load_plugin({folder!r})
        threading.stack_size({nbytes})
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
"""


@pytest.mark.parametrize("kib", [1024, 256, 128])
def test_f1_a_guest_takes_no_more_stack_than_its_thread_has(way, make_wasm, run_python, kib):
    # A thread's stack has 128 KiB where the C library is musl.
    folder = make_wasm(doing("(call $f)", "(func $f (call $f) (call $f))"))
    ended = run_python(SMALL_STACK.format(folder=str(folder), nbytes=kib << 10))
    assert ended.returncode == 0, ended.stderr[-300:]
    assert "plugin 'hostile'" in ended.stdout and "stack" in ended.stdout


def test_f1_memory_grows_to_its_limit_and_not_beyond(manager, load_wasm):
    # Takes all there is, writes to each page, and asks for more.
    body = """
      (if (i32.ne (i32.const -1) (memory.grow (i32.const 0xffffffff))) (then unreachable))
      (if (i32.ne (i32.const -1) (memory.grow (i32.const 511))) (then unreachable))
      (if (i32.eq (i32.const -1) (memory.grow (i32.const 510))) (then unreachable))
      (memory.fill (i32.const 131072) (i32.const 7) (i32.const 33423360))
      (if (i32.ne (i32.const -1) (memory.grow (i32.const 1))) (then unreachable))"""
    plugin = load_wasm(doing(body), instances=1, memory=32 * MIB)
    grown = watch_memory()
    for number in range(1, 6):
        with within(LATE):
            assert manager.call("run") == 1
        assert plugin.status()["recycled"] == number
    assert grown() < 100 * MIB


def test_f1_a_table_grows_to_its_limit_and_not_beyond(manager, load_wasm):
    body = """
      (if (i32.ne (i32.const -1) (table.grow $t (ref.null func) (i32.const 0x7fffffff)))
        (then unreachable))
      (loop $l (br_if $l
        (i32.ne (i32.const -1) (table.grow $t (ref.func $execute) (i32.const 100000)))))
      (if (i32.gt_u (table.size $t) (i32.const 10000000)) (then unreachable))"""
    load_wasm(doing(body, "(table $t 1 funcref) (elem declare func $execute)"), instances=1)
    for _ in range(2):
        with within(5):
            assert manager.call("run") == 1


@pytest.mark.parametrize("when", ["call", "load"])
def test_f1_many_tables_take_no_more_memory_than_a_plugin_may_have(manager, load_wasm, when):
    # A hundred are allowed in a module. Each entry takes 8 bytes of the host's memory.
    size = 1 if when == "call" else 999_001
    tables = "".join(f"(table $t{n} {size} funcref)" for n in range(100))
    fill = {
        "call": "(drop (table.grow $t{} (ref.func $execute) (i32.const 999000)))",
        "load": "(table.fill $t{} (i32.const 0) (ref.func $execute) (i32.const 999000))",
    }[when]
    body = "".join(fill.format(n) for n in range(100))
    grown = watch_memory()
    with within(20), suppress(PluginCrashed, PluginLoadError):  # which is as good as an answer
        load_wasm(
            doing(body, tables + "(elem declare func $execute)"),
            instances=1,
            memory=64 * MIB,
        )
        manager.call("run")
    assert grown() < 256 * MIB


def with_memory(npages: int, more: str = "") -> str:
    """Write a guest with an initial memory of this size."""
    return doing("", more).replace(
        '(memory (export "memory") 2)', f'(memory (export "memory") {npages})'
    )


@pytest.mark.parametrize("npages", [513, 65536])
def test_f1_an_initial_memory_above_the_limit_is_refused(load_wasm, npages):
    with within(5), pytest.raises(PluginLoadError, match=r"'hostile'.*memory.*wasm\.memory"):
        load_wasm(with_memory(npages), memory=32 * MIB)


def test_f1_an_initial_table_above_the_limit_is_refused(load_wasm):
    with within(5), pytest.raises(PluginLoadError, match=r"'hostile'.*table.*wasm\.table"):
        load_wasm(doing("", "(table 100000000 funcref)"))


@pytest.mark.parametrize("place", [131_072, 0xFFFF_FFFF, 130_000])
def test_f1_a_data_segment_outside_of_memory_is_refused(load_wasm, place):
    with within(5), pytest.raises(PluginLoadError, match=r"'hostile'.*out of bounds"):
        load_wasm(doing("", data(place, "x" * 2000)))


@pytest.mark.parametrize("kind", ["active", "passive"])
def test_f1_a_huge_data_segment_is_loaded_or_refused(manager, load_wasm, kind):
    nbytes = 10 * MIB
    place = "(i32.const 65536)" if kind == "active" else ""
    with within(30):
        load_wasm(with_memory(512, f'(data {place} "{"A" * nbytes}")'), memory=32 * MIB)
    for _ in range(3):
        assert manager.call("run") == 1


MANY = {
    "functions": "".join(f"(func (param i32) (result i32) (i32.const {n}))" for n in range(5000)),
    "locals": f"(func (local {'i64 ' * 49_999}))",
    "globals": "".join(f"(global (mut i64) (i64.const {n}))" for n in range(20_000)),
    "exports": "".join(f'(export "e{n}" (func $execute))' for n in range(5000)),
    "parameters": f"(func (param {'i64 ' * 1000}))",
    "nested blocks": f"(func {'(block ' * 2000}{')' * 2000})",
}


@pytest.mark.parametrize("what", MANY)
def test_f1_thousands_of_a_kind_are_loaded_or_refused(manager, load_wasm, what):
    with within(30):
        load_wasm(doing("", MANY[what]))
    for _ in range(3):
        assert manager.call("run") == 1


@pytest.mark.parametrize(
    "export", ["_initialize", "_start", "plugin_init", "plugin_register_slots"]
)
def test_f1_a_guest_that_does_not_start_is_given_up_at_its_deadline(manager, load_wasm, export):
    result = "(result i32)" if export.startswith("plugin") else ""
    loop = f'(func (export "{export}") {result} (loop $l (br $l)) unreachable)'
    began = time.monotonic()
    with pytest.raises(PluginLoadError, match=f"'hostile'.*{export} did not end"):
        load_wasm(doing("", loop), timeout=0.1)
    assert 0.1 <= time.monotonic() - began < 0.1 + LATE


def test_f1_a_start_section_without_an_end_is_given_up_at_its_deadline(manager, load_wasm):
    began = time.monotonic()
    with pytest.raises(PluginLoadError, match=r"'hostile'.*its start did not end"):
        load_wasm(doing("", "(func $l (loop $l (br $l))) (start $l)"), timeout=0.1)
    assert 0.1 <= time.monotonic() - began < 0.1 + LATE


# -- F2 ---------------------------------------------------------------------------------------

# Loops in `run`, and for as long as the name says in `last1` to `last9`.
LOOPING = module(
    IF_RUN.format("(loop $l (br $l))")
    + """
    (if (i32.eq (i32.load8_u (local.get $name)) (i32.const 108)) (then
      (local.set $nlen (i32.mul (i32.const 100000)
        (i32.sub (i32.load8_u (i32.add (local.get $name) (i32.const 4))) (i32.const 48))))
      (loop $l (br_if $l (local.tee $nlen (i32.sub (local.get $nlen) (i32.const 1)))))))
    (i32.const 2048)""",
    ANSWER,
    alloc=ALLOC,
)
LAST = tuple(f"last{n}" for n in range(1, 10))
FUEL = r"plugin 'hostile' used up its fuel of 2000000 in slot '{}' \(see `wasm\.fuel`"
# A fresh instance has to be made within the limit, too.
TIME = r"plugin 'hostile': (slot 'run'|a fresh instance) did not end within 0\.{} s"
OPTIONS = {
    "reused": {"instances": 2},
    "fresh": {"instances": 2, "fresh": True},
}


@pytest.fixture(params=OPTIONS)
def options(request):
    return OPTIONS[request.param]


def test_f2_fuel_is_each_calls_own(manager, load_wasm, options):
    load_wasm(LOOPING, slots=("run", *LAST), fuel=2_000_000, **options)

    def work(number):
        for n in range(6):
            with within(LATE):
                expect(manager, PluginCrashed, FUEL.format("run"), timeout=30)
                expect(manager, PluginCrashed, FUEL.format("last9"), slot="last9", timeout=30)
                assert manager.call("last3", timeout=30) == 1
                assert manager.call(f"last{1 + (n + number) % 3}", timeout=30) == 1

    in_threads(4, work)


def test_f2_the_deadline_holds_where_the_fuel_would_last(manager, load_wasm, options):
    load_wasm(LOOPING, slots=("run", *LAST), fuel=10**15, **options)

    def work(number):
        for _ in range(3):
            began = time.monotonic()
            # Of four threads two wait for the others' instances, some for all of their time.
            with pytest.raises(SlotTimeout, match=r"did not end|not begun within 0\.1 s"):
                manager.call("run", timeout=0.1)
            assert 0.1 <= time.monotonic() - began < 0.1 + LATE
            assert manager.call("last1", timeout=30) == 1

    in_threads(4, work)
    expect(manager, SlotTimeout, TIME.format("1"), timeout=0.1)


def test_f2_fuel_and_deadline_hold_beside_each_other(manager, load_wasm, options):
    load_wasm(LOOPING, slots=("run", *LAST), fuel=300_000_000, **options)
    load_wasm(
        LOOPING.replace("(i32.const 114)", "(i32.const 83)"),
        name="second",
        slots=("Sloop",),
        fuel=2_000_000,
        **options,
    )

    def work(number):
        for n in range(4):
            if (number + n) % 2:
                with pytest.raises(
                    SlotTimeout, match=rf"{TIME.format('02')}|not begun within 0\.02 s"
                ):
                    manager.call("run", timeout=0.02)
            else:
                with pytest.raises(PluginCrashed, match="plugin 'second' used up its fuel"):
                    manager.call("Sloop", timeout=30)
            assert manager.call("last2", timeout=30) == 1

    in_threads(4, work)


def test_f2_starting_takes_of_the_fuel_and_of_the_time(manager, load_wasm, options):
    start = '(func (export "_initialize") (loop $l (br $l)))'
    with pytest.raises(
        PluginLoadError, match=r"'hostile'.*used up its fuel of 10000 in _initialize"
    ):
        load_wasm(doing("", start), fuel=10_000, **options)
    with pytest.raises(PluginLoadError, match=r"'hostile'.*_initialize did not end"):
        load_wasm(doing("", start), fuel=10**15, timeout=0.1, **options)
