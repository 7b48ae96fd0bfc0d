"""Partial results: a plain and an async iterator over what a slot sends before its answer."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest

from zeno_fast import (
    InvalidParameters,
    MessageTooLarge,
    PluginCrashed,
    PluginManager,
    SlotError,
    SlotNotFound,
    SlotTimeout,
    UsageError,
)

# Answers with ids, or bare; tells in `seen` which calls were cancelled.
GUEST = """
import threading
IDS = {ids}
cancelled = []

def say(request, **message):
    if IDS:
        message = {{"type": message.pop("kind"), "id": request["id"], **message}}
    elif message.pop("kind") == "guest_chunk":
        message["type"] = "guest_chunk"
    put(message)

def run(request):
    slot, given = request["slot_name"], request["parameters"]
    if slot == "plugin_init":
        data = {{"name": "scripted", "features": ["cancel"]}}
    elif slot == "plugin_register_slots":
        inputs = {{"n": {{"type": "int", "required": True}}}}
        names = ("count", "endless", "fail", "die", "seen", "echo", "big")
        data = [{{"name": name, "inputs": inputs if name == "count" else {{}}}} for name in names]
    elif slot == "count":
        for n in range(given["n"]):
            say(request, kind="guest_chunk", data=n)
        data = "counted"
    elif slot == "endless":
        number = 0
        while request["id"] not in cancelled:
            say(request, kind="guest_chunk", data=number)
            number += 1
            time.sleep(0.001)
        return
    elif slot == "fail":
        say(request, kind="guest_chunk", data="before")
        say(request, kind="guest_response", success=False, error="no more")
        return
    elif slot == "die":
        say(request, kind="guest_chunk", data="before")
        os._exit(7)
    elif slot == "big":
        while True:
            say(request, kind="guest_chunk", data="x" * 1000)
    elif slot == "seen":
        data = cancelled
    else:
        data = given
    say(request, kind="guest_response", success=True, data=data)

for request in requests():
    if request["type"] == "cancel":
        cancelled.append(request["id"])
    elif IDS and request["slot_name"] in ("endless", "big"):
        threading.Thread(target=run, args=(request,), daemon=True).start()
    else:
        run(request)
"""


@pytest.fixture
def ids(manager, make_plugin) -> PluginManager:
    manager.load_plugin(make_plugin(GUEST.format(ids=True)))
    return manager


@pytest.fixture(params=[True, False], ids=["ids", "no ids"])
def either(request, manager, make_plugin) -> PluginManager:
    manager.load_plugin(make_plugin(GUEST.format(ids=request.param)))
    return manager


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


async def listed(stream) -> list:
    return [item async for item in stream]


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_every_chunk_comes_in_order_and_then_the_result(either, count):
    stream = either.stream("count", {"n": count})
    assert list(stream) == list(range(count))
    assert stream.result == "counted"
    assert list(stream) == []
    assert either.call("echo", {"a": 1}) == {"a": 1}


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_an_event_loop_gets_every_chunk_in_order(either, count):
    async def main() -> None:
        stream = either.stream("count", {"n": count})
        assert await listed(stream) == list(range(count))
        assert stream.result == "counted"
        assert await listed(stream) == []
        assert await either.call_async("echo", {"a": 1}) == {"a": 1}

    asyncio.run(main())


def test_a_failure_comes_after_the_chunks_before_it(either):
    stream = either.stream("fail")
    assert next(stream) == "before"
    with pytest.raises(SlotError, match="no more"):
        next(stream)
    assert list(stream) == []
    with pytest.raises(UsageError, match="no result"):
        _ = stream.result


def test_a_crash_comes_after_the_chunks_before_it(either):
    stream = either.stream("die")
    assert next(stream) == "before"
    with pytest.raises(PluginCrashed, match="status 7"):
        next(stream)
    assert either.call("echo", {"a": 1}) == {"a": 1}


def test_what_is_wrong_with_the_call_is_said_at_once(ids):
    with pytest.raises(SlotNotFound):
        ids.stream("nowhere")
    with pytest.raises(InvalidParameters, match="'n'"):
        ids.stream("count")


def test_a_stream_that_is_not_read_is_not_begun(ids):
    before = ids.get_plugin("scripted").status()["calls"]
    ids.stream("count", {"n": 1}).close()
    assert ids.get_plugin("scripted").status()["calls"] == before


@pytest.mark.parametrize("ending", ["close", "with", "drop", "timeout"])
def test_ending_a_stream_early_cancels_its_call(ids, ending):
    stream = ids.stream("endless", timeout=0.2 if ending == "timeout" else 20)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    if ending == "close":
        stream.close()
        assert list(stream) == []
    elif ending == "with":
        with stream:
            pass
    elif ending == "drop":
        del stream
        gc.collect()
    else:
        with pytest.raises(SlotTimeout):
            list(stream)
    wait_until(lambda: len(ids.call("seen")) == 1)
    wait_until(lambda: ids.get_plugin("scripted").status()["in_flight"] == 0)


@pytest.mark.parametrize("ending", ["aclose", "async with", "cancel", "timeout"])
def test_ending_a_stream_early_in_a_loop_cancels_its_call(ids, ending):
    async def main() -> None:
        stream = ids.stream("endless", timeout=0.2 if ending == "timeout" else 20)
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        if ending == "aclose":
            await stream.aclose()
            assert await listed(stream) == []
        elif ending == "async with":
            async with stream:
                pass
        elif ending == "cancel":
            task = asyncio.create_task(listed(stream))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with pytest.raises(SlotTimeout):
                await listed(stream)
        while len(await ids.call_async("seen")) < 1:
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_many_streams_and_calls_share_one_process(ids):
    wrong = []

    def run(count: int) -> None:
        for _ in range(5):
            if list(ids.stream("count", {"n": count})) != list(range(count)):
                wrong.append(count)

    async def main() -> None:
        async def one(count: int) -> None:
            if await listed(ids.stream("count", {"n": count})) != list(range(count)):
                wrong.append(count)

        await asyncio.gather(*(one(count) for count in range(40)))

    threads = [threading.Thread(target=run, args=(count,)) for count in range(1, 200, 40)]
    threads.append(threading.Thread(target=lambda: asyncio.run(main())))
    for thread in threads:
        thread.start()
    for number in range(200):
        assert ids.call("echo", {"n": number}) == {"n": number}
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert ids.get_plugin("scripted").status()["stray_answers"] == 0


def test_chunks_for_an_ordinary_call_are_dropped(either):
    assert either.call("count", {"n": 100}) == "counted"
    assert either.get_plugin("scripted").status()["noise_lines"] == 0


def test_what_waits_to_be_read_is_bounded(manager, make_plugin):
    manager.load_plugin(make_plugin(GUEST.format(ids=True), sidecar="max_response: 64KiB"))
    stream = manager.stream("big", timeout=20)
    assert len(next(stream)) == 1000

    def ended() -> bool:
        manager.call("echo")  # reads for the stream, too
        return manager.get_plugin("scripted").status()["in_flight"] == 0

    wait_until(ended)
    with pytest.raises(MessageTooLarge, match="max_response"):
        list(stream)


def test_a_thread_and_a_loop_cannot_read_one_stream(ids):
    stream = ids.stream("endless", timeout=20)
    next(stream)

    async def main() -> None:
        while True:
            await anext(stream)

    with pytest.raises(UsageError, match="by a thread"):
        asyncio.run(main())


def test_a_stream_of_a_process_that_has_ended_begins_on_another(ids):
    plugin = ids.get_plugin("scripted")
    pid = plugin.status()["pid"]
    with pytest.raises(PluginCrashed):
        list(ids.stream("die"))
    assert list(ids.stream("count", {"n": 3})) == [0, 1, 2]
    assert plugin.status()["pid"] != pid


def test_a_wasm_slot_has_a_result_and_no_chunks(manager, build_guest, tmp_path):
    manager.load_plugin(build_guest("c-wasm", tmp_path))
    stream = manager.stream("c-wasm.echo", {"value": [1]})
    assert (list(stream), stream.result) == ([], [1])

    async def main() -> None:
        stream = manager.stream("c-wasm.echo", {"value": [2]})
        assert (await listed(stream), stream.result) == ([], [2])

    asyncio.run(main())


def test_the_python_guest_streams_and_hears_of_cancels(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            from zeno_fast.guest import Plugin, current
            plugin = Plugin("scripted", threads=2)
            ended = []

            @plugin.slot("naturals")
            def naturals(n: int = 0):
                number = 0
                try:
                    while not n or number < n:
                        yield number
                        number += 1
                finally:
                    ended.append(number)
                return "all"

            @plugin.slot("ended")
            def how_many() -> int:
                return len(ended)

            @plugin.slot("left")
            def left() -> float:
                return current().deadline - time.monotonic()

            print("nothing that is printed does harm")
            plugin.run()
            """
        )
    )
    stream = manager.stream("naturals", {"n": 3})
    assert (list(stream), stream.result) == ([0, 1, 2], "all")
    with manager.stream("naturals") as endless:
        assert next(endless) == 0
    wait_until(lambda: manager.call("ended") == 2)
    assert 3 < manager.call("left", timeout=5) <= 5
    assert manager.get_plugin("scripted").status()["noise_lines"] == 0
