"""Event loops, threads and futures on one sidecar at the same time."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError
from itertools import count, islice

import pytest

from zeno_fast import InvalidParameters, PluginCrashed, SlotError, SlotTimeout

ECHO = """
for request in requests():
    if lifecycle(request, "echo", "sleep", "fail", "die"):
        continue
    parameters = request["parameters"]
    if request["slot_name"] == "sleep":
        time.sleep(parameters["seconds"])
    if request["slot_name"] == "die":
        os._exit(5)
    if request["slot_name"] == "fail":
        fail(request, "no")
    else:
        answer(request, parameters)
"""


@pytest.fixture
def echo(manager, make_plugin):
    manager.load_plugin(make_plugin(ECHO))
    return manager


def test_h2_ten_thousand_tasks_in_one_loop(echo):
    async def main():
        return await asyncio.gather(*(echo.call_async("echo", {"n": n}) for n in range(10_000)))

    assert asyncio.run(main()) == [{"n": n} for n in range(10_000)]


def test_one_manager_serves_one_loop_after_another(echo):
    for n in range(5):
        assert asyncio.run(echo.call_async("echo", {"n": n})) == {"n": n}


def test_h4_two_loops_and_threads_share_one_sidecar(echo):
    failures = []

    async def tasks(number):
        for step in range(100):
            sent = [{"n": [number, step, k]} for k in range(10)]
            if await asyncio.gather(*(echo.call_async("echo", one) for one in sent)) != sent:
                failures.append(sent)

    def calls(number):
        for step in range(300):
            if echo.call("echo", {"n": [number, step]}) != {"n": [number, step]}:
                failures.append(number)

    threads = [threading.Thread(target=asyncio.run, args=(tasks(n),)) for n in range(2)]
    threads += [threading.Thread(target=calls, args=(n,)) for n in range(2, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures


def test_a_loop_that_calls_synchronously_from_its_own_thread_is_served(echo):
    async def main():
        task = asyncio.ensure_future(echo.call_async("echo", {"n": 1}))
        await asyncio.sleep(0)
        direct = echo.call("echo", {"n": 2}, timeout=10)
        return direct, await task

    assert asyncio.run(main()) == ({"n": 2}, {"n": 1})


def test_errors_reach_the_task(echo):
    async def main():
        with pytest.raises(SlotError, match="no"):
            await echo.call_async("fail")
        with pytest.raises(InvalidParameters):
            await echo.call_async("echo", {"x": object()})
        with pytest.raises(PluginCrashed, match="exit status 5"):
            await echo.call_async("die")
        return await echo.call_async("echo", {"n": 1})

    assert asyncio.run(main()) == {"n": 1}


def test_d2_a_task_times_out_on_time_and_the_next_answer_is_right(echo):
    async def main():
        began = time.monotonic()
        with pytest.raises(SlotTimeout):
            await echo.call_async("sleep", {"seconds": 0.5}, timeout=0.1)
        took = time.monotonic() - began
        return took, await echo.call_async("echo", {"n": 1})

    took, answer = asyncio.run(main())
    assert 0.095 < took < 0.4
    assert answer == {"n": 1}


def test_d6_a_cancelled_task_leaves_the_channel_usable(echo):
    async def main():
        task = asyncio.ensure_future(echo.call_async("sleep", {"seconds": 0.2}))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await asyncio.gather(*(echo.call_async("echo", {"n": n}) for n in range(50)))

    assert asyncio.run(main()) == [{"n": n} for n in range(50)]


def test_d6_a_cancelled_task_leaves_a_guest_without_ids_usable(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                time.sleep(request["parameters"].get("seconds", 0))
                put({"success": True, "data": request["parameters"]})
            """,
            manifest="slots: [{name: echo}]",
        )
    )

    async def main():
        task = asyncio.ensure_future(manager.call_async("echo", {"seconds": 0.2}))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await asyncio.gather(*(manager.call_async("echo", {"n": n}) for n in range(20)))

    pid = manager.get_plugin("scripted").status()["pid"]
    assert asyncio.run(main()) == [{"n": n} for n in range(20)]
    assert manager.get_plugin("scripted").status()["pid"] == pid


def test_futures_time_out_although_nobody_waits_on_them(echo):
    future = echo.submit("sleep", {"seconds": 1}, timeout=0.1)
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(0.9)
    assert isinstance(future.exception(), SlotTimeout)


def test_a_futures_callback_may_call_a_slot(echo):
    answers = []
    called = threading.Event()

    def again(future):
        answers.append(echo.call("echo", {"again": future.result()}))
        called.set()

    echo.submit("echo", {"n": 1}).add_done_callback(again)
    assert called.wait(10)
    assert answers == [{"again": {"n": 1}}]


def test_a_cancelled_future_drops_its_answer(echo):
    slow = echo.submit("sleep", {"seconds": 0.2})
    queued = echo.submit("echo", {"n": 1})
    assert queued.cancel()
    assert slow.result() == {"seconds": 0.2}
    assert echo.call("echo", {"n": 2}) == {"n": 2}


def test_map_answers_in_order_from_an_endless_source(echo):
    answers = echo.map("echo", ({"n": n} for n in count()))
    assert list(islice(answers, 5000)) == [{"n": n} for n in range(5000)]
    answers.close()
    assert echo.call("echo", {"n": 1}) == {"n": 1}


def test_map_ends_with_the_first_failure(echo):
    answers = echo.map("echo", [{"n": 1}, {"n": object()}, {"n": 3}])
    with pytest.raises(InvalidParameters):
        list(answers)
    assert list(echo.map("echo", [])) == []


def test_an_event_loop_that_was_closed_with_a_call_in_flight_disturbs_nobody(echo):
    async def leave():
        task = asyncio.ensure_future(echo.call_async("sleep", {"seconds": 0.1}))
        await asyncio.sleep(0)
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(leave())
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    assert [echo.call("echo", {"n": n}) for n in range(20)] == [{"n": n} for n in range(20)]


def test_a_task_whose_calls_are_answered_at_once_does_not_starve_the_others(echo):
    async def main() -> int:
        turns = 0
        done = asyncio.Event()

        async def count() -> None:
            nonlocal turns
            while not done.is_set():
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        for number in range(2000):
            assert await echo.call_async("echo", {"n": number}) == {"n": number}
        done.set()
        await counting
        return turns

    assert asyncio.run(main()) > 2000 // 10


def test_d6_a_cancelled_future_releases_the_thread_that_waits_for_it(echo):
    future = echo.submit("sleep", {"seconds": 30}, timeout=60)
    outcome = []

    def wait_for_it() -> None:
        try:
            outcome.append(future.result())
        except CancelledError as error:
            outcome.append(error)

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    time.sleep(
        0.05
    )  # most likely it reads by now; where it does not, it has nothing to be freed of
    began = time.monotonic()
    assert future.cancel()
    thread.join(10)
    assert time.monotonic() - began < 5
    assert isinstance(outcome[0], CancelledError)
