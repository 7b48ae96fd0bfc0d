"""What a call to a WASM slot gives, from guests that behave and guests that do not."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest

from zeno_fast.errors import (
    InvalidParameters,
    PluginCrashed,
    ProtocolError,
    SlotError,
    SlotTimeout,
)
from zeno_fast.plugin import InputDefinition

from .conftest import ALLOC, ECHO, ECHO_BODY, ECHO_DATA, FINE, Load, answering, data, module

# Runs ECHO_BODY, but first does something on the slots named so.
MISBEHAVING = module(
    """
    (if (i32.eq (i32.load8_u (local.get $name)) (i32.const 116)) (then unreachable))
    (if (i32.eq (i32.load8_u (local.get $name)) (i32.const 108)) (then (loop $l (br $l))))
    (if (i32.eq (i32.load8_u (local.get $name)) (i32.const 114)) (then (call $recurse)))
    (call $count)
    """
    + "(call $echo (local.get $name) (local.get $nlen) (local.get $req) (local.get $rlen))",
    ECHO_DATA
    + """
    (func $recurse (call $recurse) (call $recurse))
    (global $calls (mut i32) (i32.const 0))
    (func $count (global.set $calls (i32.add (global.get $calls) (i32.const 1))))
    (func (export "calls") (result i32) (global.get $calls))
    (func $echo (param $name i32) (param $nlen i32) (param $req i32) (param $rlen i32) (result i32)
    """
    + ECHO_BODY
    + ")",
)
# Answers with the number of calls that this instance has served, from 1 to 9.
COUNTING = module(
    """
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (if (i32.eq (i32.load8_u (local.get $name)) (i32.const 116)) (then unreachable))
    (i32.store8 (i32.const 1047) (i32.add (i32.const 48) (global.get $calls)))
    (i32.const 1024)""",
    "(global $calls (mut i32) (i32.const 0))" + data(1024, '{"success":true,"data":0}\0'),
)


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1, 2**53, 1.5, "", 'żółw 🐢 \u0000 \\ "', [], [1, [2]], {}, {"a": {}}],
    ids=repr,
)
def test_every_json_value_comes_back_as_it_was(load: Load, value: Any) -> None:
    assert load(ECHO).call({"value": value}) == {"value": value}


@pytest.mark.parametrize("nbytes", [0, 1, 2000, 2047, 2048, 2049, 65536, 1 << 20, 16 << 20])
def test_an_answer_of_any_size_is_whole(load: Load, nbytes: int) -> None:
    assert load(ECHO).call({"text": "x" * nbytes}) == {"text": "x" * nbytes}


def test_no_parameters_are_an_empty_object(load: Load) -> None:
    assert load(ECHO).call(None) == {}


def test_the_guest_sees_the_envelope_and_the_slot_name_both_terminated(load: Load) -> None:
    # Copies the request, or the name, to the place of the data, as a string without escapes.
    wat = module(
        r"""
        (if (i32.or (i32.load8_u (i32.add (local.get $req) (local.get $rlen)))
                    (i32.load8_u (i32.add (local.get $name) (local.get $nlen))))
          (then unreachable))
        (memory.copy (i32.const 1048) (local.get $name) (local.get $nlen))
        (i32.store8 (i32.add (i32.const 1048) (local.get $nlen)) (i32.const 34))
        (i32.store8 (i32.add (i32.const 1049) (local.get $nlen)) (i32.const 125))
        (i32.const 1024)""",
        data(1024, '{"success":true,"data":"'),
    )
    assert load(wat).call({"a": 1}, slot="żółw.run") == "żółw.run"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"success":true,"data":[1]}trailing', [1]),
        ('{"success":true,"data":"}"}{"success":false}', "}"),
        ('{"success":true,"data":2}\ufffd', 2),
        (' \n{"success":true,"data":3} \n', 3),
        ('{"success":true}', None),
        ('{"success":true,"data":4,"error":null}', 4),
        ('{"success":true,"data":5,"error":""}', 5),
    ],
)
def test_an_answer_ends_where_its_json_ends(load: Load, answer: str, expected: Any) -> None:
    assert load(answering(answer)).call() == expected


def test_an_answer_may_end_with_memory_itself(load: Load) -> None:
    wat = module(
        "(memory.copy (i32.const 131047) (i32.const 2048) (i32.const 25)) (i32.const 131047)",
        data(2048, '{"success":true,"data":7}'),
    )
    assert load(wat).call() == 7


def test_a_failure_is_the_guests_own_text_and_data(load: Load) -> None:
    plugin = load(answering('{"success":false,"error":"no such file","data":{"code":2}}'))
    with pytest.raises(SlotError, match=r"^no such file$") as caught:
        plugin.call()
    assert caught.value.data == {"code": 2}
    assert (caught.value.plugin, caught.value.slot) == ("test", "echo")


@pytest.mark.parametrize(
    ("address", "problem"),
    [("0", "null pointer"), ("131072", "outside"), ("0xffffffff", "outside")],
)
def test_an_answer_that_is_nowhere_is_refused(load: Load, address: str, problem: str) -> None:
    plugin = load(module(f"(i32.const {address})"))
    for _ in range(2):
        with pytest.raises(ProtocolError, match=problem):
            plugin.call()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("nonsense", "not JSON.*nonsense"),
        ('{"success":tru}x', "not JSON"),
        ("[1]", "with list"),
        ("null", "with NoneType"),
        ('"text"', "with str"),
    ],
)
def test_an_answer_that_is_no_envelope_is_refused(load: Load, answer: str, problem: str) -> None:
    plugin = load(answering(answer))
    for _ in range(2):
        with pytest.raises(ProtocolError, match=problem):
            plugin.call()
    assert plugin.driver.status()["broken"] == 0


def test_deeply_nested_json_without_an_end_is_refused(load: Load) -> None:
    wat = module(
        "(memory.fill (i32.const 2048) (i32.const 91) (i32.const 129024)) (i32.const 2048)"
    )
    with pytest.raises(ProtocolError, match="not JSON"):
        load(wat).call()


def test_a_trap_is_an_error_after_which_the_next_call_works(load: Load) -> None:
    plugin = load(MISBEHAVING, instances=1)
    with pytest.raises(PluginCrashed, match=r"slot 'trap': .*unreachable") as caught:
        plugin.call(slot="trap")
    assert (caught.value.plugin, caught.value.slot) == ("test", "trap")
    assert plugin.call({"a": 1}) == {"a": 1}
    assert plugin.driver.status()["broken"] == 1


def test_what_a_trapped_call_left_behind_is_never_seen(load: Load) -> None:
    plugin = load(COUNTING, instances=1)
    assert [plugin.call() for _ in range(3)] == [1, 2, 3]
    with pytest.raises(PluginCrashed):
        plugin.call(slot="trap")
    assert plugin.call() == 1


def test_an_instance_serves_one_call_where_the_manifest_says_fresh(load: Load) -> None:
    plugin = load(COUNTING, fresh=True)
    assert [plugin.call() for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("timeout", [0.02, 0.2])
def test_an_endless_loop_ends_on_time_and_the_next_call_works(load: Load, timeout: float) -> None:
    plugin = load(MISBEHAVING, instances=1)
    begun = time.perf_counter()
    with pytest.raises(SlotTimeout, match=rf"slot 'loop' did not end within {timeout:g} s"):
        plugin.call(slot="loop", timeout=timeout)
    elapsed = time.perf_counter() - begun
    assert timeout <= elapsed < timeout + 0.5  # a loaded machine wakes threads late
    assert plugin.call({"a": 1}) == {"a": 1}


def test_the_manifests_timeout_holds_where_the_call_names_none(load: Load) -> None:
    plugin = load(MISBEHAVING, timeout=0.05)
    with pytest.raises(SlotTimeout):
        plugin.call(slot="loop")


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_no_time_at_all_ends_a_loop_at_once(load: Load, timeout: float) -> None:
    with pytest.raises(SlotTimeout):
        load(MISBEHAVING).call(slot="loop", timeout=timeout)


def test_an_infinite_timeout_is_one(load: Load) -> None:
    assert load(ECHO).call({"a": 1}, timeout=float("inf")) == {"a": 1}


def test_one_calls_deadline_does_not_end_another(load: Load) -> None:
    wat = module(
        """
        (local $i i32)
        (local.set $i (i32.const 400000000))
        (loop $l (local.set $i (i32.sub (local.get $i) (i32.const 1)))
          (br_if $l (local.get $i)))
        (i32.const 2048)""",
        data(2048, '{"success":true,"data":1}\0'),
    )
    long = load(wat, instances=2)
    short = load(MISBEHAVING)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(long.call()))
    thread.start()
    for _ in range(5):
        with pytest.raises(SlotTimeout):
            short.call(slot="loop", timeout=0.01)
    thread.join()
    assert answers == [1]


def test_endless_recursion_is_a_crash(load: Load) -> None:
    plugin = load(MISBEHAVING)
    with pytest.raises(PluginCrashed, match="stack"):
        plugin.call(slot="recurse")
    assert plugin.call({"a": 1}) == {"a": 1}


def test_a_call_that_uses_up_its_fuel_is_ended(load: Load) -> None:
    plugin = load(MISBEHAVING, fuel=100_000)
    with pytest.raises(PluginCrashed, match=r"fuel of 100000 .*wasm\.fuel"):
        plugin.call(slot="loop")
    for _ in range(100):  # each call has its own
        assert plugin.call({"a": 1}) == {"a": 1}


def test_a_signal_handler_may_end_a_call_in_the_main_thread(load: Load, way: str) -> None:
    if way == "public":
        pytest.skip("the package's public API lets Python handle signals only between calls")

    class RangError(Exception):
        pass

    def ring(number: int, frame: object) -> None:
        raise RangError

    plugin = load(MISBEHAVING, instances=1)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(RangError):
            plugin.call(slot="loop", timeout=20.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert plugin.call({"a": 1}) == {"a": 1}


def test_parameters_that_do_not_fit_in_memory_are_refused_and_smaller_ones_work(load: Load) -> None:
    plugin = load(ECHO, memory=1 << 20, instances=1)
    with pytest.raises(PluginCrashed, match=r"no memory for .* 2000011 bytes .*wasm\.memory"):
        plugin.call({"text": "x" * 2_000_000})
    assert plugin.call({"a": 1}) == {"a": 1}


def test_a_guest_that_leaks_is_replaced_before_it_runs_out(load: Load) -> None:
    plugin = load(ECHO, memory=8 << 20, instances=1)
    for number in range(200):
        assert plugin.call({"text": "x" * 1_000_000, "n": number})["n"] == number
    status = plugin.driver.status()
    assert status["broken"] == 0
    assert status["recycled"] >= 50
    assert status["served"] == 200


def test_a_call_that_finds_no_room_in_a_used_guest_gets_a_fresh_one(load: Load) -> None:
    plugin = load(COUNTING, memory=4 << 20, instances=1)
    assert plugin.call({"text": "x" * 1_800_000}) == 1
    assert plugin.call({"text": "x" * 2_500_000}) == 1
    assert plugin.driver.status()["broken"] == 1


@pytest.mark.parametrize("address", ["0xfffffff0", "131000"])
def test_memory_outside_of_the_guests_own_is_not_written_to(load: Load, address: str) -> None:
    alloc = f'(func (export "alloc") (param i32) (result i32) (i32.const {address}))'
    with pytest.raises(PluginCrashed, match="outside of its own"):
        load(answering(FINE, alloc=alloc)).call({"text": "x" * 100})


def test_pointers_above_2_gib_are_unsigned(load: Load) -> None:
    wat = f"""(module (memory (export "memory") 32770)
      (func (export "alloc") (param i32) (result i32) (i32.const 0x80000010))
      (func (export "plugin_execute") (param $name i32) (param i32 i32 i32) (result i32)
        (i32.store8 (i32.const 0x80000417) (i32.load8_u (local.get $name)))
        (i32.const 0x80000400))
      (func $start (memory.copy (i32.const 0x80000400) (i32.const 2048) (i32.const 26)))
      {data(2048, '{"success":true,"data":0}')}
      (start $start))"""
    assert load(wat, memory=3 << 30).call(slot="7") == 7


def test_free_gets_what_alloc_gave_once_and_not_what_the_guest_returned(load: Load) -> None:
    # `free` traps unless it is given the last address of `alloc`, and only once.
    free = """
    (global $last (mut i32) (i32.const 0))
    (func (export "alloc") (param i32) (result i32)
      (if (global.get $last) (then unreachable))
      (global.set $last (call $alloc (local.get 0))) (global.get $last))
    (func (export "free") (param i32)
      (if (i32.ne (local.get 0) (global.get $last)) (then unreachable))
      (global.set $last (i32.const 0)))"""
    plugin = load(
        module(ECHO_BODY, ECHO_DATA + free, alloc=ALLOC.replace('(export "alloc")', "")),
        instances=1,
    )
    for size in (1, 100, 5000, 100):
        assert plugin.call({"text": "x" * size}) == {"text": "x" * size}
    assert plugin.driver.status()["broken"] == 0


@pytest.mark.parametrize("body", ["unreachable", "(loop $l (br $l))"])
def test_an_answer_is_given_though_free_fails(load: Load, body: str) -> None:
    plugin = load(module(ECHO_BODY, ECHO_DATA + f'(func (export "free") (param i32) {body})'))
    for size in (1, 5000):
        assert plugin.call({"text": "x" * size}, timeout=0.2) == {"text": "x" * size}
    assert plugin.driver.status()["broken"] == 2


def test_a_free_of_another_signature_is_left_alone(load: Load) -> None:
    wat = module(ECHO_BODY, ECHO_DATA + '(func (export "free") (param i32 i32) unreachable)')
    assert load(wat).call({"a": 1}) == {"a": 1}


def test_an_alloc_that_traps_is_a_crash(load: Load) -> None:
    alloc = '(func (export "alloc") (param i32) (result i32) unreachable)'
    with pytest.raises(PluginCrashed, match="unreachable"):
        load(answering(FINE, alloc=alloc)).call()


def test_a_memory_that_moves_during_the_call_is_read_where_it_is(load: Load) -> None:
    wat = module(
        """(drop (memory.grow (i32.const 500)))
        (memory.copy (i32.const 0x1f00000) (i32.const 2048) (i32.const 26))
        (i32.const 0x1f00000)""",
        data(2048, '{"success":true,"data":9}\0'),
    )
    assert load(wat).call() == 9


def test_parameters_are_checked_before_the_guest_is_bothered(load: Load) -> None:
    inputs = {"n": InputDefinition("n", "int", required=True)}
    slot = load(COUNTING, instances=1).slot(inputs=inputs)
    with pytest.raises(InvalidParameters, match="'n'"):
        slot.call({}, None, None)
    with pytest.raises(InvalidParameters, match="cannot be sent"):
        slot.call({"n": 1, "x": object()}, None, None)
    assert slot.call({"n": 1}, None, None) == 1
