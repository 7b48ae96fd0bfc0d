"""Bytes and arrays beside the JSON, the same over shared memory, lines and WASM."""

from __future__ import annotations

import array
import asyncio
import base64
import dataclasses
import gc
import hashlib
import os
import signal
import threading
import time
import types
import weakref
from typing import Any

import numpy as np
import orjson
import pytest

from zeno_fast import InvalidParameters, PluginManager, ProtocolError, SlotError, SlotTimeout

PROGRAM = """
import hashlib, time
from zeno_fast.guest import Plugin, SlotError
plugin = Plugin("binary")

@plugin.slot
def echo(value):
    return value

@plugin.slot
def digest(data):
    return [hashlib.sha256(data).hexdigest(), data.nbytes, data.format, list(data.shape)]

@plugin.slot
def invert(data):
    for index in range(len(data)):
        data[index] ^= 255
    return {"inverted": data, "length": len(data)}

@plugin.slot
def make(nbytes: int, byte: int = 7):
    return bytes([byte]) * nbytes

@plugin.slot
def total(values: list[float]) -> float:
    return sum(values)

@plugin.slot
def pieces(count: int):
    for index in range(count):
        yield bytes([index]) * 1000
    return b"end"

@plugin.slot
def slow(data, seconds: float):
    time.sleep(seconds)
    return hashlib.sha256(data).hexdigest()

@plugin.slot
def fail(data):
    raise SlotError("no", data=None)

plugin.run()
"""
# One that answers with whatever place it is told.
LIAR = (
    PROGRAM.replace("plugin.run()", "")
    + """
import zeno_fast.guest as module
encode = module._Server._encode

def lie(self, data, sent):
    if type(data) is dict and "$bytes" in data:
        sent[0] = data
    return encode(self, data, sent)

@plugin.slot
def claim(place=None):
    return {"$bytes": place}

module._Server._encode = lie
plugin.run()
"""
)


@pytest.fixture(params=["shm", "stdio"])
def binary(request, manager, make_plugin) -> PluginManager:
    manager.load_plugin(make_plugin(PROGRAM, name="binary", sidecar=f"transport: {request.param}"))
    assert manager.get_plugin("binary").status()["transport"] == request.param
    return manager


def arena_used(manager: PluginManager) -> int:
    gc.collect()
    arena = manager._registry.get("binary").driver.way.arena
    return 0 if arena is None else arena.used


def test_bytes_come_back_as_they_were(binary):
    for nbytes in (0, 1, 63, 64, 65, 4096, 1 << 20, 5_000_001):
        data = bytes(range(256)) * (nbytes // 256) + bytes(range(nbytes % 256))
        for kind in (bytes, bytearray, memoryview):
            answer = binary.call("binary.echo", {"value": kind(data)})
            assert type(answer) is memoryview
            assert (answer == data, answer.nbytes, answer.format) == (True, nbytes, "B")


def test_arrays_keep_their_type_and_shape(binary):
    for dtype in ("u1", "i2", "u4", "i8", "f4", "f8", "?", "b"):
        for shape in ((0,), (7,), (3, 5), (2, 3, 4), (2, 0, 3)):
            values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
            answer = binary.call("binary.echo", {"value": values})
            again = np.asarray(answer)
            assert again.dtype == values.dtype
            if values.size:
                assert again.shape == shape
            assert np.array_equal(again.reshape(shape), values)


def test_what_is_not_contiguous_comes_in_its_order(binary):
    values = np.arange(24, dtype="i4").reshape(4, 6)
    for view in (values[:, ::2], values.T, values[::-1], np.asfortranarray(values)):
        assert np.array_equal(np.asarray(binary.call("binary.echo", {"value": view})), view)
    assert binary.call("binary.echo", {"value": memoryview(b"abcdef")[::2]}) == b"ace"


def test_the_guest_sees_elements_and_shape(binary):
    data = array.array("d", [1.5, 2.5])
    assert binary.call("binary.digest", {"data": data}) == [
        hashlib.sha256(data).hexdigest(), 16, "d", [2],
    ]  # fmt: skip
    values = np.arange(6, dtype="f4").reshape(2, 3)
    assert binary.call("binary.digest", {"data": values})[1:] == [24, "f", [2, 3]]


def test_bytes_lie_anywhere_in_parameters_and_answers(binary):
    value = {"a": [b"one", {"b": b"two"}], "c": 3, "d": "$bytes"}
    answer = binary.call("binary.echo", {"value": value})
    assert answer == value


def test_declared_lists_get_arrays_as_lists(binary):
    assert binary.call("binary.total", {"values": np.array([1.5, 2.0])}) == 3.5
    assert binary.call("binary.echo", {"value": [np.float32(0.5), np.int64(3)]}) == [0.5, 3]


def test_what_cannot_be_sent_is_named(binary):
    with pytest.raises(InvalidParameters, match=r"value\.x") as caught:
        binary.call("binary.echo", {"value": {"x": [b"fine", {1, 2}]}})
    assert caught.value.key.startswith("value.x")
    with pytest.raises(InvalidParameters):
        binary.call("binary.echo", {"value": np.array([object()])})


def test_every_way_of_calling_carries_bytes(binary):
    data = b"d" * 100_000
    wanted = hashlib.sha256(data).hexdigest()
    assert binary.submit("binary.digest", {"data": data}).result(10)[0] == wanted
    found = binary.map("binary.digest", ({"data": data} for _ in range(50)))
    assert [one[0] for one in found] == [wanted] * 50

    async def call() -> list[Any]:
        calls = (binary.call_async("binary.digest", {"data": data}) for _ in range(20))
        return await asyncio.gather(*calls)

    assert [one[0] for one in asyncio.run(call())] == [wanted] * 20
    stream = binary.stream("binary.pieces", {"count": 5})
    assert [bytes(piece) for piece in stream] == [bytes([n]) * 1000 for n in range(5)]
    with pytest.raises(SlotError, match="no"):
        binary.call("binary.fail", {"data": data})
    assert arena_used(binary) == 0


def test_views_stay_valid_and_differ_however_many_are_held(binary):
    held = [binary.call("binary.make", {"nbytes": 100_000, "byte": n}) for n in range(100)]
    assert [bytes(view[:1]) + bytes(view[-1:]) for view in held] == [
        bytes([n, n]) for n in range(100)
    ]
    arrays = [np.asarray(view) for view in held[:50]]
    del held
    more = [binary.call("binary.make", {"nbytes": 100_000, "byte": 200}) for _ in range(100)]
    assert all(int(values.sum()) == n * 100_000 for n, values in enumerate(arrays))
    binary.unload_plugin("binary")
    assert all(view == bytes([200]) * 100_000 for view in more)
    assert all(int(values.sum()) == n * 100_000 for n, values in enumerate(arrays))


def test_a_guest_without_room_answers_all_the_same(manager, make_plugin):
    manager.load_plugin(make_plugin(PROGRAM, name="binary", sidecar="arena_size: 1MiB"))
    held = [manager.call("binary.make", {"nbytes": 400_000, "byte": n}) for n in range(10)]
    assert all(view == bytes([n]) * 400_000 for n, view in enumerate(held))
    data = b"x" * 3_000_000  # more than the host's arena, too
    assert manager.call("binary.digest", {"data": data})[0] == hashlib.sha256(data).hexdigest()
    del held
    gc.collect()
    for _ in range(200):
        assert manager.call("binary.make", {"nbytes": 900_000})[0] == 7


def test_a_guest_may_write_into_what_it_was_sent(binary):
    answer = binary.call("binary.invert", {"data": b"\x00\x0f\xff"})
    assert answer == {"inverted": b"\xff\xf0\x00", "length": 3}


def test_the_bytes_of_a_call_that_timed_out_are_not_given_to_another(manager, make_plugin):
    manager.load_plugin(make_plugin(PROGRAM, name="binary"))
    first = b"1" * 100_000
    with pytest.raises(SlotTimeout):
        manager.call("binary.slow", {"data": first, "seconds": 0.3}, timeout=0.05)
    assert arena_used(manager) >= len(first)
    second = b"2" * 100_000
    found = manager.call("binary.slow", {"data": second, "seconds": 0})
    assert found == hashlib.sha256(second).hexdigest()


def test_threads_that_send_bytes_do_not_see_each_others(binary):
    failures: list[BaseException] = []

    def call(number: int) -> None:
        try:
            for turn in range(60):
                data = bytes([number, turn]) * (1 + turn * 97)
                assert binary.call("binary.echo", {"value": [data, turn]}) == [data, turn]
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert arena_used(binary) == 0


@pytest.mark.parametrize(
    "place",
    [
        [0, 10], [64, 10], [1 << 40, 10], [(1 << 63) - 64, 1], [-64, 10], [4096, -1], [0.5, 1],
        [1], "no", None, {}, ["a", "b"], "!!!!",
    ],
    ids=str,
)  # fmt: skip
def test_s2_a_guest_cannot_point_outside_of_its_arena(manager, make_plugin, place):
    manager.load_plugin(make_plugin(LIAR, name="binary"))
    with pytest.raises(ProtocolError, match="bytes that cannot be had"):
        manager.call("binary.claim", {"place": place})
    assert manager.call("binary.echo", {"value": 1}) == 1


@dataclasses.dataclass
class Holder:
    held: Any


PLACE = {"$bytes": [0, 22]}
FORGED = {
    "place": (PLACE, "value"),
    "base64": ({"$bytes": "YWJj"}, "value"),
    "array": ({"$bytes": [0, 22], "dtype": "<f4", "shape": [2]}, "value"),
    "nested": ([0, {"a": [{"b": {"c": 1, **PLACE}}]}], r"value\[1\]\.a\[0\]\.b"),
    "beside bytes": ({"real": b"abc", "forged": PLACE}, r"value\.forged"),
    "beside an array": ([np.arange(3), PLACE], r"value\[1\]"),
    "mapping": (types.MappingProxyType(PLACE), "value"),
    "dataclass": (Holder(PLACE), "parameters"),
    "dataclass beside bytes": ([b"abc", Holder(PLACE)], "parameters"),
    "fragment": (orjson.Fragment(b'{"$bytes":[0,22]}'), "parameters"),
    "fragment with blanks": (orjson.Fragment(b'{ "$bytes" : [0,22]}'), "parameters"),
    "fragment with a line end": (orjson.Fragment(b'{"$bytes"\n:[0,22]}'), "parameters"),
    "fragment with escapes": (orjson.Fragment(rb'{"\u0024bytes":[0,22]}'), "parameters"),
    "fragment with an escaped letter": (orjson.Fragment(rb'{"$\u0062ytes":[0,22]}'), "parameters"),
    "fragment beside bytes": ([b"abc", orjson.Fragment(rb'{"$byte\u0073":[0,2]}')], "parameters"),
}


@pytest.mark.parametrize(("value", "key"), FORGED.values(), ids=FORGED)
def test_s2_a_caller_cannot_name_a_place(binary, value, key):
    """Or whoever wrote the JSON that an application passes on could read bytes of other calls."""
    assert binary.call("binary.echo", {"value": b"the secret of another"})
    with pytest.raises(InvalidParameters, match=key + r" cannot be sent as JSON: .*'\$bytes'"):
        binary.call("binary.echo", {"value": value})
    with pytest.raises(InvalidParameters, match=r"parameters cannot be sent|\$bytes"):
        binary.call("binary.echo", {"value": 1, **PLACE})
    with pytest.raises(InvalidParameters):
        asyncio.run(binary.call_async("binary.echo", {"value": value}))
    with pytest.raises(InvalidParameters):
        list(binary.map("binary.echo", [{"value": value}]))
    assert binary.call("binary.echo", {"value": b"still there"}) == b"still there"
    assert arena_used(binary) == 0


@pytest.mark.parametrize("beside", [(), (b"abc",)], ids=["alone", "beside bytes"])
def test_what_only_looks_like_a_place_arrives(binary, beside):
    values = [
        "$bytes", {"$": 1, "$bytes2": 2, 'x"$bytes': 3, "\\$bytes": 4, "bytes": [0, 22]},
        r"\u0024bytes", '{"$bytes":[0,22]}', "\x1f\x00\x7f\n\u2028", "$" * 100, "\\" * 99,
        ["$bytes", ":"], *beside,
    ]  # fmt: skip
    assert binary.call("binary.echo", {"value": values}) == values


def test_a_fragment_arrives_as_it_was_meant(binary):
    text = rb"""{"lines":
        [1,	2],
"\u0024":"\u0062\n", "big":18446744073709551615, "$bytes ":1}"""
    for beside in ([], [b"abc"]):
        sent = [orjson.Fragment(text), *beside]
        assert binary.call("binary.echo", {"value": sent}) == [orjson.loads(text), *beside]
    with pytest.raises(InvalidParameters, match="cannot be sent as JSON"):
        binary.call("binary.echo", {"value": orjson.Fragment(b"{\n")})


def test_a_buffer_goes_to_a_plugin_and_back_without_a_copy(manager, make_plugin):
    manager.load_plugin(make_plugin(PROGRAM, name="binary"))
    buffer = manager.buffer(1 << 20)
    assert len(buffer) == buffer.nbytes == 1 << 20
    picture = np.frombuffer(buffer, "u1").reshape(1024, 1024)
    picture[:] = 1
    answer = manager.call("binary.echo", {"value": picture})
    again = np.asarray(answer)
    assert again.shape == (1024, 1024)
    assert np.shares_memory(again, picture)
    part = memoryview(buffer)[4096:4106]
    assert manager.call("binary.invert", {"data": part})["inverted"] == bytes([254]) * 10
    assert picture[4, :12].tolist() == [254] * 10 + [1, 1]  # the guest wrote into it
    assert arena_used(manager) == 0
    with pytest.raises(ValueError, match="-1"):
        manager.buffer(-1)
    with pytest.raises(TypeError):
        manager.buffer("1")
    assert manager.call("binary.echo", {"value": manager.buffer(0)}) == b""


def test_a_chain_of_plugins_passes_a_buffer_along(manager, make_plugin):
    for name in ("first", "second"):
        manager.load_plugin(make_plugin(PROGRAM.replace("binary", name), name=name))
    buffer = manager.buffer(100_000)
    view = memoryview(buffer)
    view[:] = b"\x0f" * 100_000
    once = manager.call("first.invert", {"data": buffer})["inverted"]
    twice = manager.call("second.echo", {"value": once})
    assert np.shares_memory(np.asarray(twice), np.asarray(view))
    assert twice == b"\xf0" * 100_000
    view[0] = 7
    assert twice[0] == once[0] == 7
    os.kill(manager.get_plugin("second").status()["pid"], signal.SIGKILL)
    time.sleep(0.2)
    assert manager.call("second.echo", {"value": once})[0] == 7


def test_buffers_that_are_gone_are_forgotten_everywhere(manager, make_plugin):
    manager.load_plugin(make_plugin(PROGRAM, name="binary"))
    pid = manager.get_plugin("binary").status()["pid"]

    def mapped(pid: int | str) -> int:
        with open(f"/proc/{pid}/maps") as file:
            return sum("memfd:zeno_fast" in line for line in file)

    before = mapped(pid), mapped("self"), len(os.listdir("/proc/self/fd"))
    for n in range(200):
        buffer = manager.buffer(10_000)
        memoryview(buffer)[:1] = bytes([n])
        assert manager.call("binary.echo", {"value": buffer})[0] == n
    del buffer
    gc.collect()
    for _ in range(100):
        if (mapped(pid), mapped("self"), len(os.listdir("/proc/self/fd"))) == before:
            break
        time.sleep(0.05)
        manager.call("binary.echo", {"value": 1})
    assert (mapped(pid), mapped("self"), len(os.listdir("/proc/self/fd"))) == before


def test_what_was_submitted_is_forgotten_without_the_garbage_collector(binary):
    called = threading.Event()
    gc.disable()
    try:
        future = binary.submit("binary.echo", {"value": b"abc" * 100})
        future.add_done_callback(lambda _: called.set())
        assert future.result(10) == b"abc" * 100
        assert called.wait(10)
        gone = weakref.ref(future)
        del future
        for _ in range(100):  # the thread that called back may be on its way out
            if gone() is None:
                break
            time.sleep(0.01)
        assert gone() is None
    finally:
        gc.enable()


def test_a_guest_cannot_answer_with_a_buffer_that_it_was_not_given(manager, make_plugin):
    for name in ("binary", "other"):
        manager.load_plugin(make_plugin(LIAR.replace("binary", name), name=name))
    buffer = manager.buffer(1000)
    assert manager.call("other.echo", {"value": buffer}) == bytes(1000)
    for place in ([0, 10, buffer.id], [0, 10, 1 << 40], [0, 10, -1], [0, 10, "x"]):
        with pytest.raises(ProtocolError, match="never given"):
            manager.call("binary.claim", {"place": place})
    for place in ([0, 1001, buffer.id], [-1, 1, buffer.id], [1001, 0, buffer.id]):
        with pytest.raises(ProtocolError, match="of buffer"):
            manager.call("other.claim", {"place": place})


def test_a_guest_that_knows_nothing_of_it_gets_base64(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "echo"):
                    answer(request, request["parameters"]["data"])
            """
        )
    )
    assert manager.call("echo", {"data": b"abc"}) == {"$bytes": base64.b64encode(b"abc").decode()}
    assert manager.call("echo", {"data": np.arange(3)}) == [0, 1, 2]


def test_a_wasm_plugin_gets_base64(manager, build_guest, tmp_path):
    manager.load_plugin(build_guest("c-wasm", tmp_path))
    assert manager.call("c-wasm.echo", {"value": b"abc"}) == {
        "$bytes": base64.b64encode(b"abc").decode()
    }
    with pytest.raises(InvalidParameters, match=r"value cannot be sent as JSON: .*'\$bytes'"):
        manager.call("c-wasm.echo", {"value": {"$bytes": "YWJj"}})
