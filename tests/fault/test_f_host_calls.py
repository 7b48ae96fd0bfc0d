"""What goes wrong while a WASM guest waits for the host: exceptions, re-entry, exits."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from typing import Any

import pytest
from fault.bounds import within
from fault.wasm_guests import ANSWER, LATE, doing, doing_in_run, expect, importing, in_threads
from wasm.conftest import data, module

from zeno_fast import (
    PluginCrashed,
    PluginUnavailable,
    SlotError,
    SlotTimeout,
)

pytestmark = pytest.mark.usefixtures("healthy_wasm")

PERMISSIONS = {"database": ["*"], "scope": ["read", "write"]}
QUERY = '{"connection":"main"}'
# Answers with what the host answers to a query; traps where that is nothing.
ASKING = module(
    f"""(local $p i32)
    (local.set $p (call $host_db_query (i32.const 4000) (i32.const {len(QUERY)})))
    (if (i32.eqz (local.get $p)) (then unreachable))
    (local.get $p)""",
    data(4000, QUERY),
    imports=importing("host_db_query"),
)
ERRORS: list[BaseException] = [ValueError("no good"), KeyboardInterrupt("now"), SystemExit(3)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_f3_a_host_function_that_raises_is_a_refusal_to_the_guest(manager, load_wasm, error):
    def refuse(_):
        raise error

    manager.set_host_callback("db_query", refuse)
    plugin = load_wasm(ASKING, permissions=PERMISSIONS, instances=1)
    for _ in range(2):
        with pytest.raises(SlotError, match=f"^db_query failed: {type(error).__name__}: {error}$"):
            manager.call("run")
    manager.set_host_callback("db_query", lambda _: "fine")
    assert manager.call("run") == "fine"
    assert plugin.status()["broken"] == 0  # nothing is wrong with the guest


# What logs is the only code of the user's that no host function guards.
LOGGING = module(
    """
    (if (i32.eq (i32.load8_u (local.get $name)) (i32.const 114)) (then
      (global.set $calls (i32.const 7))
      (call $log (i32.const 3000) (i32.const 4)
        (local.get $req) (local.get $rlen))))
    (if (i32.eq (i32.load8_u (local.get $name)) (i32.const 112)) (then
      (global.set $calls (i32.const 7))
      (i32.store (i32.const 3100) (local.get $req))
      (i32.store (i32.const 3104) (local.get $rlen))
      (drop (call $write (i32.const 2) (i32.const 3100) (i32.const 1) (i32.const 3200)))
      (i32.store8 (local.get $req) (i32.const 10))
      (i32.store (i32.const 3104) (i32.const 1))
      (drop (call $write (i32.const 2) (i32.const 3100) (i32.const 1) (i32.const 3200)))))
    (if (global.get $calls) (then unreachable))
    (i32.const 2048)""",
    "(global $calls (mut i32) (i32.const 0))" + ANSWER + data(3000, "info"),
    imports='(import "env" "host_log" (func $log (param i32 i32 i32 i32)))'
    '(import "wasi_snapshot_preview1" "fd_write"'
    " (func $write (param i32 i32 i32 i32) (result i32)))",
)


class Raising(logging.Handler):
    """Raises the error that a record names by its number."""

    def emit(self, record: logging.LogRecord) -> None:
        _, found, number = record.getMessage().partition('"error":')
        if found:
            error = ERRORS[int(number[0])]
            raise type(error)(*error.args, number.split("}")[0])


@pytest.fixture
def raising():
    logger = logging.getLogger("zeno_fast.plugin.hostile")
    handler = Raising()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.mark.parametrize("slot", ["run", "print"])
@pytest.mark.parametrize("number", range(len(ERRORS)), ids=lambda n: type(ERRORS[n]).__name__)
def test_f3_what_the_host_raises_reaches_the_caller_as_it_was(
    manager, load_wasm, raising, slot, number
):
    plugin = load_wasm(LOGGING, slots=("run", "print", "fine"), instances=1)
    for count in range(1, 3):
        with within(LATE), pytest.raises(type(ERRORS[number])) as caught:
            manager.call(slot, {"error": number})
        assert type(caught.value) is type(ERRORS[number])
        assert caught.value.args == (*ERRORS[number].args, str(number))
        assert plugin.status()["broken"] == count
        assert manager.call("fine") == 1  # which traps in an instance that ran on


def test_f3_an_exception_is_of_the_call_that_it_was_raised_in(manager, load_wasm, raising):
    load_wasm(LOGGING, slots=("run", "print", "fine"), instances=4)

    def work(number):
        for n in range(30):
            error = (number + n) % len(ERRORS)
            if n % 3 == 2:
                assert manager.call("fine", timeout=30) == 1
                continue
            with pytest.raises(type(ERRORS[error])) as caught:
                manager.call("run", {"error": error, "from": [number, n]}, timeout=30)
            assert caught.value.args[-1] == f'{error},"from":[{number},{n}]'

    in_threads(8, work)


# -- re-entry ---------------------------------------------------------------------------------


class CallBack:
    """A host function that calls a slot, and keeps what became of it and how long it took."""

    def __init__(self, call: Any) -> None:
        self.outcomes: list[Any] = []
        self.slowest = 0.0
        self._call = call

    def __call__(self, _: Any) -> Any:
        began = time.monotonic()
        try:
            found = self._call()
        except Exception as error:
            self.outcomes.append(error)
            raise
        finally:
            self.slowest = max(self.slowest, time.monotonic() - began)
        self.outcomes.append(found)
        return found


SELF = r"plugin 'hostile': slot 'run' .*all 1 instances were busy"


def test_f3_a_guest_that_calls_itself_through_the_host_is_refused(manager, load_wasm):
    back = CallBack(lambda: manager.call("run", timeout=20))
    manager.set_host_callback("db_query", back)
    plugin = load_wasm(ASKING, permissions=PERMISSIONS, instances=1)
    for _ in range(3):
        with within(LATE), pytest.raises(SlotError, match=f"PluginUnavailable: {SELF}"):
            manager.call("run", timeout=20)
        error = back.outcomes.pop()
        assert type(error) is PluginUnavailable
        assert (error.plugin, error.slot) == ("hostile", "run")
    assert (plugin.status()["busy"], plugin.status()["broken"]) == (0, 0)


def test_f3_a_guest_that_calls_itself_through_another_plugin_is_refused(manager, load_wasm):
    targets = itertools.cycle(["over", "run"])
    back = CallBack(lambda: manager.call(next(targets), timeout=20))
    manager.set_host_callback("db_query", back)
    hostile = load_wasm(ASKING, permissions=PERMISSIONS, instances=1)
    other = load_wasm(ASKING, name="other", slots=("over",), permissions=PERMISSIONS, instances=1)
    for _ in range(3):
        with within(LATE), pytest.raises(SlotError, match=f"PluginUnavailable: {SELF}"):
            manager.call("run", timeout=20)
    assert [plugin.status()["busy"] for plugin in (hostile, other)] == [0, 0]
    assert [plugin.status()["broken"] for plugin in (hostile, other)] == [0, 0]


@pytest.mark.parametrize("over", ["itself", "another plugin"])
def test_f3_a_guest_that_waits_for_itself_in_another_thread_is_refused(manager, load_wasm, over):
    targets = itertools.cycle(["run"] if over == "itself" else ["over", "run"])
    back = CallBack(lambda: manager.submit(next(targets), timeout=20).result())
    manager.set_host_callback("db_query", back)
    plugin = load_wasm(ASKING, permissions=PERMISSIONS, instances=1)
    load_wasm(ASKING, name="other", slots=("over",), permissions=PERMISSIONS, instances=1)
    with within(20 + LATE), pytest.raises(SlotError, match="PluginUnavailable: plugin 'hostile'"):
        manager.call("run", timeout=20)
    assert back.slowest < 2
    assert type(back.outcomes[0]) is PluginUnavailable
    assert (plugin.status()["busy"], plugin.status()["waiting"]) == (0, 0)


@pytest.mark.parametrize("how", ["call", "submit"])
def test_f3_a_guest_that_calls_itself_takes_of_the_instances_that_are_free(manager, load_wasm, how):
    def again():
        if len(back.outcomes) + next(depth) >= 3:
            return "bottom"
        if how == "call":
            return manager.call("run", timeout=20)
        return manager.submit("run", timeout=20).result()

    depth = itertools.count()
    back = CallBack(again)
    manager.set_host_callback("db_query", back)
    load_wasm(ASKING, permissions=PERMISSIONS, instances=4)
    with within(LATE):
        assert manager.call("run", timeout=20) == "bottom"
    assert back.outcomes == ["bottom"] * 4


def test_f3_a_call_for_another_reason_still_waits_for_the_only_instance(manager, load_wasm):
    # Calls from outside have nothing to do with the one that the host works for.
    entered, leave = threading.Event(), threading.Event()

    def hold(_):
        entered.set()
        assert leave.wait(20)
        return "done"

    manager.set_host_callback("db_query", hold)
    load_wasm(ASKING, permissions=PERMISSIONS, instances=1)
    first = manager.submit("run", timeout=20)
    assert entered.wait(20)
    others = [manager.submit("run", timeout=20) for _ in range(3)]
    direct: list[Any] = []
    thread = threading.Thread(target=lambda: direct.append(manager.call("run", timeout=20)))
    thread.start()
    assert not any(future.done() for future in others)
    leave.set()
    assert [future.result(20) for future in [first, *others]] == ["done"] * 4
    thread.join(20)
    assert direct == ["done"]


NESTED = """
    from zeno_fast import PluginManager, ZenoError
    with PluginManager() as manager:
        manager.set_host_callback("db_query", lambda _: manager.call("run", timeout=20))
        manager.load_plugin({folder!r})
        try:
            manager.call("run", timeout=20)
        except ZenoError as error:
            print(error)
"""


@pytest.mark.parametrize("depth", [10, 5000, 9000, 1_000_000])
def test_f3_calls_within_calls_end_before_the_hosts_stack_does(way, make_wasm, run_python, depth):
    # Each takes as much of the stack as it may before it asks the host, which calls the slot again.
    deep = f"""(func $deep (param $n i32) (result i32)
      (if (result i32) (i32.eqz (local.get $n))
        (then (call $host_db_query (i32.const 4000) (i32.const {len(QUERY)})))
        (else (call $deep (i32.sub (local.get $n) (i32.const 1))))))"""
    code = module(
        f"(call $deep (i32.const {depth}))",
        deep + data(4000, QUERY),
        imports=importing("host_db_query"),
    )
    folder = make_wasm(code, permissions=PERMISSIONS, instances=40)
    with within(50):
        ended = run_python(NESTED.format(folder=str(folder)))
    assert (ended.returncode, ended.stdout.count("\n")) == (0, 1), ended.stderr[-500:]
    assert "host functions wait for each other" in ended.stdout or "stack" in ended.stdout


# -- exits ------------------------------------------------------------------------------------

EXIT = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'


@pytest.mark.parametrize("status", [0, 1, 125])
def test_f3_a_guest_that_exits_in_a_slot_has_crashed_with_its_status(manager, load_wasm, status):
    more = "(global $calls (mut i32) (i32.const 0))"
    body = f"""(if (global.get $calls) (then unreachable))
      (global.set $calls (i32.const 1)) (call $exit (i32.const {status}))"""
    plugin = load_wasm(doing_in_run(body, more, imports=EXIT), slots=("run", "fine"), instances=1)
    for count in range(1, 4):
        error = expect(
            manager, PluginCrashed, f"'hostile' ended with exit status {status} in slot 'run'"
        )
        assert isinstance(error, PluginCrashed)
        assert (error.exit_status, error.signal) == (status, None)
        assert plugin.status()["broken"] == count
        assert manager.call("fine") == 1


@pytest.mark.parametrize("status", [126, 255, -1, 1 << 30])
def test_f3_a_guest_that_exits_with_an_odd_status_has_crashed(manager, load_wasm, status):
    # Of more than 125 WASI makes a trap.
    load_wasm(doing(f"(call $exit (i32.const {status}))", imports=EXIT), instances=1)
    for _ in range(2):
        expect(manager, PluginCrashed, "slot 'run'")


@pytest.mark.parametrize("what", ["alloc", "free"])
def test_f3_a_guest_that_exits_beside_a_slot_has_crashed(manager, load_wasm, what):
    free = '(func (export "free") (param i32) (call $exit (i32.const 4)))'
    alloc = (
        '(func (export "alloc") (param i32) (result i32) (call $exit (i32.const 4)) unreachable)'
    )
    if what == "alloc":
        load_wasm(doing("", imports=EXIT, alloc=alloc), instances=1)
        expect(manager, PluginCrashed, "ended with exit status 4 in slot 'run'")
    else:  # the answer was given by then
        plugin = load_wasm(doing("", free, imports=EXIT), instances=1)
        assert [manager.call("run") for _ in range(3)] == [1, 1, 1]
        assert plugin.status()["broken"] == 3


def test_f3_exits_in_one_thread_are_not_seen_in_another(manager, load_wasm):
    body = """(call $exit (i32.sub (i32.load8_u (i32.add (local.get $name) (i32.const 1)))
        (i32.const 48)))"""
    slots = tuple(f"r{n}" for n in range(8))
    load_wasm(doing_in_run(body, imports=EXIT), slots=(*slots, "fine"), instances=3)

    def work(number):
        for _ in range(20):
            error = expect(
                manager, PluginCrashed, f"exit status {number}", slot=f"r{number}", timeout=30
            )
            assert getattr(error, "exit_status", None) == number
            assert manager.call("fine", timeout=30) == 1

    in_threads(8, work)


def test_f3_a_host_function_beyond_the_deadline_costs_no_more_than_itself(manager, load_wasm):
    def slow(_):
        time.sleep(0.3)
        return 1

    manager.set_host_callback("db_query", slow)
    load_wasm(ASKING, permissions=PERMISSIONS, instances=1)
    with within(0.3 + LATE):
        expect(manager, SlotTimeout, r"slot 'run' did not end within 0\.1 s", timeout=0.1)
    assert manager.call("run", timeout=20) == 1


@pytest.mark.parametrize("function", ["file_write", "scope_set", "env_get"])
def test_f3_an_answer_after_the_deadline_is_none(manager, load_wasm, function):
    # The guest runs no loop and calls nothing after that, where it could be ended.
    def slow(_):
        time.sleep(0.3)
        return {}

    class SlowScope(dict):
        def __setitem__(self, key, value):
            slow(None)

    manager.set_host_callback(function, slow)
    argument = '{"key":"k","name":"k","path":"f","content":""}'
    body = f"(drop (call $host_{function} (i32.const 4000) (i32.const {len(argument)})))"
    load_wasm(
        doing(body, data(4000, argument), imports=importing(f"host_{function}")),
        permissions={**PERMISSIONS, "filesystem": ["f"], "env": ["*"]},
        instances=1,
    )
    for _ in range(2):
        with (
            within(0.3 + LATE),
            pytest.raises(SlotTimeout, match=r"'hostile': slot 'run' did not end within 0\.1 s"),
        ):
            manager.call("run", timeout=0.1, scope=SlowScope())
