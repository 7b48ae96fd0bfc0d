"""Instances of WASM plugins: thrown away after any trap, waited for while all of them are busy."""

from __future__ import annotations

import threading
import time
from concurrent.futures import wait
from typing import Any

import pytest
from fault.bounds import within
from fault.wasm_guests import ANSWER, LATE, expect, importing, in_threads
from fault.ways import wait_until
from wasm.conftest import data, module

from zeno_fast import PluginCrashed, PluginUnavailable, ProtocolError, SlotTimeout

pytestmark = pytest.mark.usefixtures("healthy_wasm")

# Name -> what ends the guest, the error, what its message says of it.
TRAPS: dict[str, tuple[str, type[Exception], str]] = {
    "unreachable": ("unreachable", PluginCrashed, "unreachable"),
    "division": ("(drop (i32.div_u (i32.const 1) (global.get $none)))", PluginCrashed, "divide"),
    "overflow": (
        "(drop (i32.div_s (i32.const 0x80000000) (i32.sub (global.get $none) (i32.const 1))))",
        PluginCrashed,
        "overflow",
    ),
    "conversion": (
        "(drop (i32.trunc_f64_s (f64.div (f64.const 0) (f64.const 0))))",
        PluginCrashed,
        "conversion",
    ),
    "memory": ("(drop (i32.load (i32.const -5)))", PluginCrashed, "out of bounds memory"),
    "copy": (
        "(memory.copy (i32.const -9) (i32.const 0) (i32.const 10))",
        PluginCrashed,
        "out of bounds memory",
    ),
    "table": ("(call_indirect $t (i32.const 9))", PluginCrashed, "table"),
    "no function": ("(call_indirect $t (i32.const 1))", PluginCrashed, "uninitialized"),
    "type": (
        "(drop (call_indirect $t (result i32) (i32.const 0)))",
        PluginCrashed,
        "indirect call type",
    ),
    "stack": ("(call $deep)", PluginCrashed, "stack"),
    "exception": ("(throw $e)", PluginCrashed, "exception"),
    "exit": ("(call $exit (i32.const 0))", PluginCrashed, "exit status 0"),
    "loop": ("(loop $l (br $l))", SlotTimeout, "did not end"),
    "host call": (
        "(drop (call $host_env_get (i32.const -1) (i32.const 10)))",
        PluginCrashed,
        "host_env_get was called with nonsense",
    ),
    "answer": ("(return (i32.const -1))", ProtocolError, "outside"),
}
# Traps in the slot `run`, after it has changed all that it can; `fine` answers 1 in an instance in
# which that never happened, and traps in any other.
SPOILING = """
  (if (i32.eq (i32.load8_u (local.get $name)) (i32.const 114)) (then
    (global.set $spoilt (i32.const 1))
    (memory.fill (i32.const 8192) (i32.const 7) (i32.const 57344))
    (i32.store8 (i32.const 2071) (i32.const 50))
    (drop (memory.grow (i32.const 3)))
    (table.set $t (i32.const 2) (ref.func $deep))
    (data.drop $d) (elem.drop $s)
    {}))
  (if (global.get $spoilt) (then unreachable))
  (if (i32.load (i32.const 8192)) (then unreachable))
  (if (i32.gt_u (memory.size) (i32.const 3)) (then unreachable))
  (if (i32.eqz (ref.is_null (table.get $t (i32.const 2)))) (then unreachable))
  (memory.init $d (i32.const 9000) (i32.const 0) (i32.const 4))
  (i32.store (i32.const 9000) (i32.const 0))
  (i32.const 2048)"""
MORE = (
    """
(global $spoilt (mut i32) (i32.const 0)) (global $none (mut i32) (i32.const 0)) (tag $e)
(table $t 4 funcref) (elem (i32.const 0) $deep) (elem $s funcref (ref.func $deep))
(data $d "data")
(func $deep (call $deep) (call $deep))"""
    + ANSWER
)
IMPORTS = importing("host_env_get") + (
    '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
)


def spoiling(how: str) -> str:
    return module(SPOILING.format(TRAPS[how][0]), MORE, imports=IMPORTS)


@pytest.mark.parametrize("how", TRAPS)
def test_f4_an_instance_is_thrown_away_after_a_trap(manager, load_wasm, how):
    _, error, says = TRAPS[how]
    plugin = load_wasm(spoiling(how), slots=("run", "fine"), instances=1)
    for count in range(1, 4):
        assert [manager.call("fine") for _ in range(3)] == [1, 1, 1]
        with within(LATE):
            timeout = 0.02 if how == "loop" else 20
            expect(manager, error, rf"(?s)slot 'run'.*{says}|{says}", timeout=timeout)
        status = plugin.status()
        assert (status["broken"], status["instances"], status["busy"]) == (count, 0, 0)
    assert manager.call("fine") == 1


@pytest.mark.parametrize("fresh", [False, True])
def test_f4_what_a_trap_left_behind_is_never_seen_by_other_threads(manager, load_wasm, fresh):
    hows = [how for how in TRAPS if how != "loop"]
    names = {how: f"hostile{number}" for number, how in enumerate(hows)}
    for how, name in names.items():
        load_wasm(
            spoiling(how),
            name=name,
            slots=(f"run {name}", f"fine {name}"),
            instances=3,
            fresh=fresh,
        )

    def work(number):
        for n in range(4 * len(hows)):
            how = hows[(n + number) % len(hows)]
            if (n + number // 2) % 3 == 0:
                with pytest.raises(TRAPS[how][1], match=f"'{names[how]}'"):
                    manager.call(f"run {names[how]}", timeout=30)
            else:
                assert manager.call(f"fine {names[how]}", timeout=30) == 1

    in_threads(8, work)
    for name in names.values():
        status = manager.get_plugin(name).status()
        assert (status["busy"], status["waiting"]) == (0, 0)
        assert status["instances"] <= 3


def test_f4_instances_that_trap_while_others_wait_are_replaced(manager, load_wasm):
    plugin = load_wasm(spoiling("unreachable"), slots=("run", "fine"), instances=2)
    futures = [manager.submit("run" if n % 2 else "fine", timeout=30) for n in range(200)]
    outcomes = [future.exception(30) or future.result() for future in futures]
    assert outcomes[::2] == [1] * 100
    assert {type(outcome) for outcome in outcomes[1::2]} == {PluginCrashed}
    status = plugin.status()
    assert (status["broken"], status["busy"], status["waiting"]) == (100, 0, 0)


# -- F8 ---------------------------------------------------------------------------------------

# Asks the host before it answers 1, so that a test can hold it inside a call.
HELD = module(
    "(drop (call $host_db_query (i32.const 4000) (i32.const 21))) (i32.const 2048)",
    ANSWER + data(4000, '{"connection":"main"}'),
    imports=importing("host_db_query"),
)


class Gate:
    """Holds every guest that queries until it is opened."""

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self, _: Any) -> Any:
        self.inside.release()
        assert self.open.wait(30)
        return {}


@pytest.fixture
def gate(manager):
    gate = Gate()
    manager.set_host_callback("db_query", gate)
    yield gate
    gate.open.set()


def hold(manager, gate, count):
    """Begin calls that keep as many instances busy."""
    held = [threading.Thread(target=manager.call, args=("run",)) for _ in range(count)]
    for thread in held:
        thread.start()
        assert gate.inside.acquire(timeout=20)
    return held


@pytest.mark.parametrize("fresh", [False, True])
def test_f8_a_call_waits_for_an_instance_until_its_deadline(manager, load_wasm, gate, fresh):
    plugin = load_wasm(
        HELD, permissions={"database": ["*"]}, instances=2, fresh=fresh, timeout=20.0
    )
    held = hold(manager, gate, 2)
    busy = (
        r"plugin 'hostile': slot 'run' was not begun within 0\.1 s, as all 2 instances were "
        r"busy \(see `wasm\.instances`"
    )
    for _ in range(2):
        began = time.monotonic()
        expect(manager, SlotTimeout, busy, timeout=0.1)
        assert 0.1 <= time.monotonic() - began < 0.1 + LATE
    began = time.monotonic()
    with pytest.raises(SlotTimeout):
        manager.submit("run", timeout=0.1).result(20)
    assert time.monotonic() - began < 0.1 + LATE
    status = plugin.status()
    assert (status["instances"], status["busy"], status["waiting"]) == (2, 2, 0)
    late = manager.submit("run", timeout=20)
    gate.open.set()
    assert late.result(20) == 1
    for thread in held:
        thread.join(20)
    status = plugin.status()
    assert (status["busy"], status["waiting"], status["broken"]) == (0, 0, 0)


def test_f8_no_time_to_wait_is_an_error_at_once(manager, load_wasm, gate):
    load_wasm(HELD, permissions={"database": ["*"]}, instances=1)
    held = hold(manager, gate, 1)
    with within(LATE):
        expect(manager, SlotTimeout, r"not begun within 0 s.*wasm\.instances", timeout=0)
    gate.open.set()
    held[0].join(20)


def test_f8_many_that_wait_are_served_one_after_the_other(manager, load_wasm, gate):
    plugin = load_wasm(HELD, permissions={"database": ["*"]}, instances=2)
    held = hold(manager, gate, 2)
    answers: list[Any] = []
    waiting = [
        threading.Thread(target=lambda: answers.append(manager.call("run"))) for _ in range(40)
    ]
    for thread in waiting:
        thread.start()
    wait_until(lambda: plugin.status()["waiting"] == 40)
    gate.open.set()
    for thread in [*held, *waiting]:
        thread.join(20)
    assert answers == [1] * 40
    status = plugin.status()
    assert (status["instances"], status["busy"], status["waiting"]) == (2, 0, 0)
    assert (status["served"], status["broken"]) == (42, 0)


def test_f8_those_that_wait_hear_at_once_that_the_plugin_was_closed(manager, load_wasm, gate):
    load_wasm(HELD, permissions={"database": ["*"]}, instances=1)
    errors: list[BaseException] = []

    def call():
        try:
            manager.call("run", timeout=30)
        except PluginUnavailable as error:
            errors.append(error)

    held = threading.Thread(target=call)
    held.start()
    assert gate.inside.acquire(timeout=20)
    waiting = [threading.Thread(target=call) for _ in range(5)]
    for thread in waiting:
        thread.start()
    futures = [manager.submit("run", timeout=30) for _ in range(5)]
    wait_until(lambda: manager.get_plugin("hostile").status()["waiting"] >= 5)
    with within(LATE):
        manager.unload_plugin("hostile")
        for thread in waiting:
            thread.join(20)
        assert not wait(futures, 20).not_done
    gate.open.set()
    held.join(20)
    assert len(errors) >= 5
    assert all("'hostile' was closed" in str(error) for error in errors)
    for future in futures:
        assert isinstance(future.exception(), PluginUnavailable)
