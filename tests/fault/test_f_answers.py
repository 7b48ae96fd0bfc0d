"""Answers of WASM guests that are no JSON, not quite JSON, or more of it than can be taken."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fault.bounds import MIB, watch_memory, within
from fault.wasm_guests import LATE, expect
from wasm.conftest import ECHO, module

from zeno_fast import PluginCrashed, ProtocolError, SlotError

pytestmark = pytest.mark.usefixtures("healthy_wasm")


# Requests are small here, and the answer goes up to the end of memory.
BELOW = '(func (export "alloc") (param i32) (result i32) (i32.const 1024))'


def answering(answer: bytes, npages: int = 16) -> str:
    """Write a guest that answers with these bytes, whatever it is asked."""
    escaped = "".join(f"\\{byte:02x}" for byte in answer)
    code = module("(i32.const 2048)", f'(data (i32.const 2048) "{escaped}")', alloc=BELOW)
    return code.replace('(memory (export "memory") 2)', f'(memory (export "memory") {npages})')


def success(value: bytes) -> bytes:
    return b'{"success":true,"data":' + value + b"}\0"


# Name -> data that is no JSON.
NO_JSON = {
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "-Infinity": b"-Infinity",
    "invalid UTF-8": b'"\xff"',
    "UTF-8 that is cut off": b'"\xe2\x82"',
    "a surrogate in UTF-8": b'"\xed\xa0\x80"',
    "an overlong NUL": b'"\xc0\x80"',
    "beyond Unicode": b'"\xf4\x90\x80\x80"',
    "invalid UTF-8 in a key": b'{"\x80":1}',
    "a lone surrogate": b'"\\ud800"',
    "a control character": b'"\x01"',
    "a wrong escape": b'"\\x41"',
    "half an escape": b'"\\u12"',
    "a leading zero": b"01",
    "a plus": b"+1",
    "a hexadecimal number": b"0x10",
    "a quote of another kind": b"'a'",
    "a comment": b"1/**/",
    "a comma too many": b"[1,]",
    "a key that is none": b"{1:2}",
    "100000 lists": b"[" * 100_000 + b"]" * 100_000,
    "100000 lists without an end": b"[" * 100_000,
    "100000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a string without an end": b'"' + b"x" * 100_000,
    "a bracket of another kind": b"[1}",
}


@pytest.mark.parametrize("what", NO_JSON)
def test_f5_data_that_is_no_json_is_an_error_and_harms_nobody(manager, load_wasm, what):
    plugin = load_wasm(answering(success(NO_JSON[what])), instances=1)
    for _ in range(3):
        with within(LATE):
            error = expect(manager, ProtocolError, "slot 'run' was answered with what is not JSON")
        assert len(str(error)) < 1000  # it shows no more than the begin
    assert plugin.status()["broken"] == 0


# Name -> data, and what it may become; an error is as good where a number has no double.
NUMBERS = {
    "10^400": (b"1" + b"0" * 400, [10**400, math.inf]),
    "-10^400": (b"-1" + b"0" * 400, [-(10**400), -math.inf]),
    "1e400": (b"1e400", [math.inf]),
    "1e-400": (b"1e-400", [0.0]),
    "100000 digits": (b"7" * 100_000, [math.inf]),
    "100000 digits of a fraction": (b"0." + b"7" * 100_000, [7 / 9]),
    "an endless exponent": (b"1e" + b"9" * 1000, [math.inf]),
    "2^53+1": (b"9007199254740993", [2**53 + 1]),
    "2^63": (b"9223372036854775808", [2**63]),
    "2^64": (b"18446744073709551616", [2**64, float(2**64)]),
    "-2^63-1": (b"-9223372036854775809", [-(2**63) - 1, -float(2**63)]),
    "-0": (b"-0", [0]),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_f5_a_number_is_right_or_an_error(manager, load_wasm, what):
    text, right = NUMBERS[what]
    load_wasm(answering(success(text)), instances=1)
    for _ in range(3):
        with within(LATE):
            try:
                found = manager.call("run")
            except ProtocolError as error:
                assert "not JSON" in str(error) and math.inf in map(abs, right)  # noqa: PT017
            else:
                assert found in right


# Name -> answer, and what becomes of it.
ENVELOPES: dict[str, tuple[bytes, Any]] = {
    "nothing": (b"", ProtocolError),
    "white space": (b" \n\t\r", ProtocolError),
    "a byte order mark": (b"\xef\xbb\xbf" + success(b"1"), ProtocolError),
    "UTF-16": ('{"success":true}'.encode("utf-16"), ProtocolError),
    "a list": (b"[]", ProtocolError),
    "a string": (b'"x"', ProtocolError),
    "a number": (b"1", ProtocolError),
    "null": (b"null", ProtocolError),
    "success is 1": (b'{"success":1,"data":2}', SlotError),
    "success is a string": (b'{"success":"true","data":2}', SlotError),
    "success is a list": (b'{"success":[],"data":2}', SlotError),
    "success is null": (b'{"success":null,"data":2}', 2),
    "the error is an object": (b'{"success":false,"error":{"a":1}}', SlotError),
    "the error is deep": (
        b'{"success":false,"error":' + b"[" * 900 + b"]" * 900 + b"}",
        SlotError,
    ),
    "the error is long": (b'{"success":false,"error":"' + b"x" * 900_000 + b'"}', SlotError),
    "an empty object": (b"{}", None),
    "data twice": (success(b'1,"data":2'), 2),
    "success twice": (b'{"success":true,"success":false}', SlotError),
    "keys with escapes": (b'{"\\u0073uccess":true,"d\\u0061ta":3}', 3),
    "text behind it": (success(b"4")[:-1] + b"\xff\xfe{[", 4),
    "a second answer behind it": (success(b"5")[:-1] + success(b"6"), 5),
}


@pytest.mark.parametrize("what", ENVELOPES)
def test_f5_an_odd_envelope_is_understood_or_an_error(manager, load_wasm, what):
    answer, outcome = ENVELOPES[what]
    plugin = load_wasm(answering(answer), instances=1)
    for _ in range(3):
        with within(LATE):
            if isinstance(outcome, type):
                with pytest.raises(outcome) as caught:
                    manager.call("run")
                assert (caught.value.plugin, caught.value.slot) == ("hostile", "run")
            else:
                assert manager.call("run") == outcome
    assert plugin.status()["broken"] == 0


@pytest.mark.parametrize("depth", [1000, 1020])
def test_f5_deep_data_within_the_decoders_limit_is_whole(manager, load_wasm, depth):
    load_wasm(answering(success(b"[" * depth + b"]" * depth)), instances=1)
    found = manager.call("run")
    for _ in range(depth - 1):
        (found,) = found
    assert found == []


@pytest.mark.parametrize("byte", [0x20, 0x5B, 0x78, 0x22, 0x31, 0xFF], ids=hex)
def test_f5_all_of_memory_as_an_answer_is_an_error_in_time(manager, load_wasm, byte):
    # Nothing but one character up to the very end of memory, and no terminator.
    nbytes = 16 * MIB
    body = f"""(drop (memory.grow (i32.const {nbytes >> 16})))
      (memory.fill (i32.const 2048) (i32.const {byte})
        (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 2048)))
      (i32.const 2048)"""
    load_wasm(module(body), instances=1, memory=2 * nbytes)
    grown = watch_memory()
    for _ in range(2):
        with within(LATE):
            expect(manager, ProtocolError, "slot 'run' was answered with (what is not JSON|str)")
    assert grown() < 8 * nbytes


def test_f5_an_answer_of_as_much_as_a_guest_may_have_is_whole(manager, load_wasm):
    nbytes = 24 * MIB
    # {"success":true,"data":"xx...x"} with the data made at once.
    head = b'{"success":true,"data":"'
    escaped = "".join(f"\\{byte:02x}" for byte in head)
    body = f"""(drop (memory.grow (i32.const {(nbytes >> 16) + 2})))
      (memory.init $head (i32.const 65536) (i32.const 0) (i32.const {len(head)}))
      (memory.fill (i32.const {65536 + len(head)}) (i32.const 120) (i32.const {nbytes}))
      (i32.store16 (i32.const {65536 + len(head) + nbytes}) (i32.const 0x7d22))
      (i32.const 65536)"""
    load_wasm(module(body, f'(data $head "{escaped}")'), instances=1, memory=32 * MIB)
    for _ in range(2):
        with within(10):
            found = manager.call("run", timeout=20)
        assert len(found) == nbytes and found.count("x") == nbytes


@pytest.mark.parametrize("depth", [250, 254])
def test_f5_parameters_at_the_encoders_limit_reach_the_guest(manager, load_wasm, depth):

    load_wasm(ECHO)
    value: Any = []
    for _ in range(depth - 2):
        value = [value]
    assert manager.call("run", {"value": value}) == {"value": value}


def test_f5_parameters_larger_than_the_guest_are_refused_with_the_limit(manager, load_wasm):

    load_wasm(ECHO, memory=1 * MIB, instances=1)
    for _ in range(2):
        with pytest.raises(PluginCrashed, match=r"'hostile' gave no memory.*slot 'run'.*wasm\.mem"):
            manager.call("run", {"text": "x" * (2 * MIB)})
        assert manager.call("run", {"n": 1}) == {"n": 1}
