"""Plugins of which each call gets an instance of its own: no call sees anything of another."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from wasmtime import WasmtimeError

from zeno_fast.errors import PluginCrashed, PluginUnavailable, SlotTimeout
from zeno_fast.host.functions import HostFunctions
from zeno_fast.permissions import Permissions
from zeno_fast.wasm import engine as engines
from zeno_fast.wasm import ticks

from .conftest import ECHO, FINE, Load, Plugin, answering, data, module

MIB = 1 << 20
ASK = '(import "env" "host_file_read" (func $ask (param i32 i32) (result i32)))'
NO, YES = 3072, 2048
ANSWERS = data(YES, FINE + "\0") + data(NO, '{"success":false,"error":"spoilt"}\0')


@pytest.fixture(autouse=True)
def parked_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the public API's clock end as soon as it is idle: every test waits for its thread."""
    monkeypatch.setattr(ticks, "PARK_AFTER_NS", 5_000_000)


@pytest.fixture
def new_engines() -> Iterator[None]:
    """Make engines of the test's own, which no later test gets to see."""
    engines._engine.cache_clear()
    yield
    engines._engine.cache_clear()


def in_threads(count: int, calls: int, plugin: Plugin) -> None:
    """Call a plugin from several threads; every answer must be 1."""
    slot = plugin.slot("run")

    def work(_: int) -> list[Any]:
        return [slot.call(None, 30.0, None) for _ in range(calls)]

    with ThreadPoolExecutor(count) as threads:
        for answers in threads.map(work, range(count)):
            assert answers == [1] * calls


# Refuses if anything is not as the module says, then changes all that it can.
STATE = module(
    f"""
    (if (i32.ne (global.get $count) (i32.const 5)) (then (return (i32.const {NO}))))
    (if (i64.ne (global.get $wide) (i64.const -7)) (then (return (i32.const {NO}))))
    (if (f64.ne (global.get $real) (f64.const 0.5)) (then (return (i32.const {NO}))))
    (if (ref.is_null (global.get $function)) (then) (else (return (i32.const {NO}))))
    (if (i32.load (i32.const 8192)) (then (return (i32.const {NO}))))
    (if (i32.ne (i32.load8_u (i32.const 9000)) (i32.const 100)) (then (return (i32.const {NO}))))
    (if (i32.ne (memory.size) (i32.const 2)) (then (return (i32.const {NO}))))
    (if (i32.ne (table.size $t) (i32.const 4)) (then (return (i32.const {NO}))))
    (if (ref.is_null (table.get $t (i32.const 0))) (then (return (i32.const {NO}))))
    (if (ref.is_null (table.get $t (i32.const 1))) (then) (else (return (i32.const {NO}))))
    (memory.init $passive (i32.const 9100) (i32.const 0) (i32.const 4))
    (table.init $t $more (i32.const 2) (i32.const 0) (i32.const 1))
    (global.set $count (i32.const 6))
    (global.set $wide (i64.const 1))
    (global.set $real (f64.const 1))
    (global.set $function (ref.func $nothing))
    (i32.store (i32.const 8192) (i32.const -1))
    (i32.store8 (i32.const 9000) (i32.const 1))
    (drop (memory.grow (i32.const 3)))
    (table.set $t (i32.const 0) (ref.null func))
    (table.set $t (i32.const 1) (ref.func $nothing))
    (drop (table.grow $t (ref.func $nothing) (i32.const 1000)))
    (data.drop $passive)
    (elem.drop $more)
    (i32.const {YES})""",
    ANSWERS
    + """
    (data (i32.const 9000) "data") (data $passive "more")
    (global $count (mut i32) (i32.const 5)) (global $wide (mut i64) (i64.const -7))
    (global $real (mut f64) (f64.const 0.5)) (global $function (mut funcref) (ref.null func))
    (table $t 4 5000 funcref)
    (elem (table $t) (i32.const 0) func $nothing) (elem $more func $nothing)
    (func $nothing)""",
)


def test_no_state_is_left_between_calls(load: Load) -> None:
    plugin = load(STATE, fresh=True)
    assert [plugin.call(slot="run") for _ in range(50)] == [1] * 50
    assert plugin.driver.status()["broken"] == 0


def test_no_state_is_left_between_calls_of_eight_threads(load: Load) -> None:
    plugin = load(STATE, fresh=True, instances=5)
    in_threads(8, 40, plugin)
    status = plugin.driver.status()
    assert (status["served"], status["busy"], status["broken"]) == (320, 0, 0)
    assert status["instances"] == 0


def test_without_fresh_the_same_guest_finds_what_it_left(load: Load) -> None:
    plugin = load(STATE, instances=1)
    assert plugin.call(slot="run") == 1
    with pytest.raises(Exception, match="spoilt"):
        plugin.call(slot="run")


# Fills 100 KB at a time from 64 KiB to the end of several MB, grown pages and all; before that it
# looks for anything but zero there. `spoil` fills, `look` and `run` only look, and `trap` fills.
DIRT = module(
    f"""
    (local $at i32) (local $end i32) (local $found i64) (local $letter i32)
    (local.set $letter (i32.load8_u (local.get $name)))
    (if (i32.eq (memory.grow (i32.const 78)) (i32.const -1)) (then unreachable))
    (local.set $at (i32.const 131072))
    (local.set $end (i32.mul (memory.size) (i32.const 65536)))
    (loop $next
      (local.set $found (i64.or (local.get $found) (i64.load (local.get $at))))
      (br_if $next (i32.lt_u
        (local.tee $at (i32.add (local.get $at) (i32.const 8))) (local.get $end))))
    (if (i64.ne (local.get $found) (i64.const 0)) (then (return (i32.const {NO}))))
    (if (i32.or (i32.eq (local.get $letter) (i32.const {ord("s")}))
                (i32.eq (local.get $letter) (i32.const {ord("t")})))
      (then (memory.fill (i32.const 131072) (i32.const 0xA5)
              (i32.sub (local.get $end) (i32.const 131072)))))
    (if (i32.eq (local.get $letter) (i32.const {ord("t")})) (then unreachable))
    (i32.const {YES})""",
    ANSWERS,
).replace('(memory (export "memory") 2)', '(memory (export "memory") 3)')


@pytest.mark.parametrize("instances", [1, 4])
def test_memory_that_a_call_dirtied_is_zero_in_every_later_one(load: Load, instances: int) -> None:
    plugin = load(DIRT, fresh=True, instances=instances)
    assert plugin.call(slot="look") == 1
    for _ in range(4):
        assert plugin.call(slot="spoil") == 1
        with pytest.raises(PluginCrashed):
            plugin.call(slot="trap")
    for count in range(200):
        # Dirty pages are made between the looks as well: pools take what was used last first.
        assert plugin.call(slot="spoil" if count % 4 == 3 else "look") == 1
    assert plugin.driver.status()["broken"] == 4


def test_memory_of_one_plugin_is_not_seen_in_another(load: Load) -> None:
    plugins = [load(DIRT, fresh=True, instances=2) for _ in range(3)]
    for count in range(30):
        assert plugins[count % 3].call(slot="spoil") == 1
        assert plugins[(count + 1) % 3].call(slot="look") == 1


def test_memory_is_zero_when_eight_threads_dirty_it(load: Load) -> None:
    plugin = load(DIRT, fresh=True, instances=6)
    spoil, look, trap = (plugin.slot(name) for name in ("spoil", "look", "trap"))

    def work(number: int) -> None:
        for n in range(12):
            which = (number + n) % 4
            if which == 0:
                with pytest.raises(PluginCrashed):
                    trap.call(None, 30.0, None)
            else:
                assert (spoil if which == 1 else look).call(None, 30.0, None) == 1

    with ThreadPoolExecutor(8) as threads:
        for _ in threads.map(work, range(8)):
            pass
    status = plugin.driver.status()
    assert (status["busy"], status["waiting"], status["broken"]) == (0, 0, 8 * 12 // 4)


# -- the life of an instance ------------------------------------------------------------------

LIFE_CYCLE = module(
    f"""
    (if (i32.ne (global.get $state) (i32.const 7)) (then (return (i32.const {NO}))))
    (global.set $state (i32.const 8)) (i32.const {YES})""",
    ANSWERS
    + data(4000, '{"name":"test","version":"3.2.1"}\0')
    + data(4200, '[{"name":"run"}]\0')
    + "".join(data(5000 + 100 * n, str(n)) for n in range(4))
    + """
    (global $state (mut i32) (i32.const 0))
    (func $ran (param $bit i32) (param $at i32)
      (global.set $state (i32.or (global.get $state) (local.get $bit)))
      (drop (call $ask (local.get $at) (i32.const 1))))
    (func (export "_initialize") (call $ran (i32.const 1) (i32.const 5000)))
    (func (export "plugin_init") (result i32)
      (call $ran (i32.const 2) (i32.const 5100)) (i32.const 4000))
    (func (export "plugin_register_slots") (result i32)
      (call $ran (i32.const 4) (i32.const 5200)) (i32.const 4200))
    (func (export "plugin_cleanup") (call $ran (i32.const 8) (i32.const 5300)))""",
    imports=ASK,
)


class Notes(HostFunctions):
    """Counts what the guests say that they run: `_initialize` is 0, `plugin_cleanup` is 3."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def call(self, plugin: Any, parameters: Any, scope: Any, host_call: Any) -> Any:
        with self._lock:
            self.seen[parameters["path"]] += 1
        return {}


FILES = Permissions(filesystem=("*",))


def test_the_life_cycle_runs_in_each_instance(load: Load) -> None:
    notes = Notes()
    plugin = load(LIFE_CYCLE, notes, fresh=True, permissions=FILES)
    assert plugin.description.info["version"] == "3.2.1"
    first = plugin.driver.status()["instances"]  # the one that was asked what it offers
    made = 1 - first
    for count in range(1, 11):
        assert plugin.call(slot="run") == 1
        assert notes.seen["3"] == count + made
    assert {notes.seen[number] for number in "012"} == {10 + made}
    plugin.driver.close()
    assert set(notes.seen.values()) == {10 + made}


def test_the_life_cycle_runs_as_often_in_eight_threads(load: Load) -> None:
    notes = Notes()
    plugin = load(LIFE_CYCLE, notes, fresh=True, instances=3, permissions=FILES)
    in_threads(8, 25, plugin)
    plugin.driver.close()
    assert len(set(notes.seen.values())) == 1
    assert notes.seen["0"] - 200 in (0, 1)


def test_a_guest_that_trapped_is_not_asked_to_clean_up(load: Load) -> None:
    notes = Notes()
    wat = LIFE_CYCLE.replace("(global.set $state (i32.const 8))", "unreachable")
    plugin = load(wat, notes, fresh=True, permissions=FILES)
    before = notes.seen["3"]
    for _ in range(5):
        with pytest.raises(PluginCrashed):
            plugin.call(slot="run")
    assert notes.seen["3"] == before
    assert notes.seen["0"] >= 5


def test_a_cleanup_that_fails_costs_no_answer(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    plugin = load(answering(FINE, '(func (export "plugin_cleanup") unreachable)'), fresh=True)
    caplog.clear()
    assert [plugin.call(slot="run") for _ in range(5)] == [1] * 5
    failed = [record for record in caplog.records if "plugin_cleanup failed" in record.getMessage()]
    assert len(failed) == 5
    assert plugin.driver.status()["instances"] == 0


def test_a_start_that_fails_in_a_later_instance_is_the_calls_failure(load: Load) -> None:
    class Switch(HostFunctions):
        fine = True

        def call(self, plugin: Any, parameters: Any, scope: Any, host_call: Any) -> Any:
            if not self.fine:
                raise KeyboardInterrupt
            return {}

    switch = Switch()
    plugin = load(LIFE_CYCLE, switch, fresh=True, permissions=FILES)
    plugin.call(slot="run")
    switch.fine = False
    with pytest.raises(KeyboardInterrupt):
        plugin.call(slot="run")
    switch.fine = True
    assert plugin.call(slot="run") == 1
    assert plugin.driver.status()["instances"] == 0


# -- modules of unusual shape -----------------------------------------------------------------

BODY = "(if (i32.eqz (call_indirect $t (result i32) (i32.const {index}))) (then unreachable))"
ONE = "(func $one (result i32) (i32.const 1))"


@pytest.mark.parametrize("fresh", [False, True])
def test_a_module_may_have_several_tables(load: Load, fresh: bool) -> None:
    more = ANSWERS + "(table $t 10 funcref) (elem (table $t) (i32.const 9) func $one)" + ONE
    more += "".join(f"(table {n + 1} funcref)" for n in range(5)) + "(table 3 externref)"
    body = BODY.format(index=9) + f"(i32.const {YES})"
    plugin = load(module(body, more), fresh=fresh)
    assert [plugin.call(slot="run") for _ in range(5)] == [1] * 5


@pytest.mark.parametrize("elements", [10_000, 100_000, 1_000_000])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_module_may_have_a_large_table(load: Load, fresh: bool, elements: int) -> None:
    last = elements - 1
    more = f"(table $t {elements} funcref) (elem (table $t) (i32.const {last}) func $one)" + ONE
    plugin = load(
        module(BODY.format(index=last) + f"(i32.const {YES})", ANSWERS + more),
        fresh=fresh,
        table=elements,
    )
    assert [plugin.call(slot="run") for _ in range(5)] == [1] * 5


@pytest.mark.parametrize("fresh", [False, True])
def test_a_module_may_have_instances_of_more_than_a_megabyte(load: Load, fresh: bool) -> None:
    # As those of large guests have, whose tables name forty thousand functions.
    more = "".join(f"(global (mut i64) (i64.const {n}))" for n in range(70_000))
    plugin = load(answering(FINE, more), fresh=fresh)
    assert [plugin.call(slot="run") for _ in range(3)] == [1] * 3


@pytest.mark.parametrize("table", [1_000_001, 3_000_000])
def test_a_table_larger_than_the_pools_is_made_the_usual_way(load: Load, table: int) -> None:
    more = f"(table $t {table} funcref) (elem (table $t) (i32.const {table - 1}) func $one)" + ONE
    wat = module(BODY.format(index=table - 1) + f"(i32.const {YES})", ANSWERS + more)
    plugin = load(wat, fresh=True, table=table)
    assert [plugin.call(slot="run") for _ in range(3)] == [1] * 3


def test_a_memory_of_more_than_a_gigabyte_may_be_asked_for(load: Load) -> None:
    wat = answering(FINE).replace(
        '(memory (export "memory") 2)', '(memory (export "memory") 20000)'
    )
    plugin = load(wat, fresh=True, memory=2 << 30)
    assert [plugin.call(slot="run") for _ in range(3)] == [1] * 3


def test_the_bound_of_memory_holds_in_each_instance(load: Load) -> None:
    grow = f"""(if (i32.eq (memory.grow (i32.const 30)) (i32.const -1))
      (then (return (i32.const {NO})))) (i32.const {YES})"""
    assert load(module(grow, ANSWERS), fresh=True, memory=2 * MIB).call(slot="run") == 1
    small = load(module(grow, ANSWERS), fresh=True, memory=MIB)
    for _ in range(3):
        with pytest.raises(Exception, match="spoilt"):
            small.call(slot="run")


def test_a_loop_ends_at_its_deadline_and_others_are_served(load: Load) -> None:
    wat = module(
        f"""(if (i32.eq (i32.load8_u (local.get $name)) (i32.const {ord("l")}))
          (then (loop $l (br $l)))) (i32.const {YES})""",
        ANSWERS,
    )
    plugin = load(wat, fresh=True, instances=2)
    for _ in range(5):
        with pytest.raises(SlotTimeout):
            plugin.call(slot="loop", timeout=0.02)
        assert plugin.call(slot="run") == 1
    status = plugin.driver.status()
    assert (status["instances"], status["busy"], status["broken"]) == (0, 0, 5)


def test_large_requests_and_answers_are_whole(load: Load) -> None:
    plugin = load(ECHO, fresh=True)
    for size in (0, 1000, 3 * MIB, 10):
        assert plugin.call({"x": "x" * size}) == {"x": "x" * size}


# -- the pool's end ---------------------------------------------------------------------------

HELD = module(
    f"(drop (call $ask (i32.const 4000) (i32.const 1))) (i32.const {YES})",
    ANSWERS + data(4000, "a"),
    imports=ASK,
)


class Gate(HostFunctions):
    """Holds every guest that asks until `open` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.inside = threading.Semaphore(0)

    def call(self, *arguments: Any) -> Any:
        self.inside.release()
        assert self.open.wait(30)
        return {}


@pytest.fixture
def two_pooled(monkeypatch: pytest.MonkeyPatch, new_engines: None) -> None:
    monkeypatch.setattr(engines, "POOLED_INSTANCES", 2)


def test_a_call_that_finds_the_processes_instances_used_up_says_so(
    two_pooled: None, load: Load
) -> None:
    gate = Gate()
    plugin = load(HELD, gate, fresh=True, instances=4, permissions=FILES)
    slot = plugin.slot("run")
    with ThreadPoolExecutor(2) as threads:
        held = [threads.submit(slot.call, None, None, None) for _ in range(2)]
        try:
            for _ in range(2):
                assert gate.inside.acquire(timeout=20)
            for _ in range(5):
                with pytest.raises(PluginUnavailable, match=r"no place.*wasm\.fresh") as caught:
                    slot.call(None, None, None)
                assert "'test'" in str(caught.value)
        finally:
            gate.open.set()
        assert [call.result(20) for call in held] == [1, 1]
    assert [slot.call(None, None, None) for _ in range(5)] == [1] * 5
    status = plugin.driver.status()
    assert (status["instances"], status["busy"], status["waiting"]) == (0, 0, 0)


def test_two_plugins_share_the_processes_instances(two_pooled: None, load: Load) -> None:
    gate = Gate()
    holding = load(HELD, gate, fresh=True, instances=4, permissions=FILES)
    other = load(answering(FINE), fresh=True)
    # The one that was made when it was loaded has a place, until its first call.
    assert other.call(slot="run") == 1
    with ThreadPoolExecutor(2) as threads:
        held = [threads.submit(holding.call, slot="run") for _ in range(2)]
        try:
            for _ in range(2):
                assert gate.inside.acquire(timeout=20)
            with pytest.raises(PluginUnavailable, match=r"no place"):
                other.call(slot="run")
        finally:
            gate.open.set()
        assert [call.result(20) for call in held] == [1, 1]
    assert other.call(slot="run") == 1


def test_as_many_calls_as_there_are_places_wait_for_no_one(two_pooled: None, load: Load) -> None:
    plugin = load(STATE, fresh=True, instances=2)
    in_threads(8, 20, plugin)


def test_a_plugin_without_fresh_takes_no_place(two_pooled: None, load: Load) -> None:
    gate = Gate()
    plugin = load(HELD, gate, instances=4, permissions=FILES)
    with ThreadPoolExecutor(4) as threads:
        held = [threads.submit(plugin.call, slot="run") for _ in range(4)]
        try:
            for _ in range(4):
                assert gate.inside.acquire(timeout=20)
        finally:
            gate.open.set()
        assert [call.result(20) for call in held] == [1] * 4


@pytest.mark.parametrize("error", [WasmtimeError, AttributeError])
def test_where_there_is_no_pool_each_call_gets_an_instance_all_the_same(
    load: Load,
    new_engines: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[Exception],
) -> None:
    def refuse(config: Any) -> Any:
        raise error("there is no pool")

    monkeypatch.setattr(engines, "_pooled", refuse)
    plugins = [load(STATE, fresh=True) for _ in range(2)]
    for plugin in plugins:
        assert [plugin.call(slot="run") for _ in range(5)] == [1] * 5
    (record,) = [record for record in caplog.records if "pool" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert "there is no pool" in record.getMessage()
