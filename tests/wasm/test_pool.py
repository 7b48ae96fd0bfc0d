"""WASM plugins under many callers: threads, futures, generators and event loops."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest

from zeno_fast.errors import (
    InvalidParameters,
    PluginCrashed,
    PluginUnavailable,
    SlotTimeout,
)
from zeno_fast.host.functions import HostFunctions
from zeno_fast.plugin import InputDefinition

from .conftest import ECHO, FINE, Load, Plugin, data, module

ASK = '(import "env" "host_file_read" (func $ask (param i32 i32) (result i32)))'
# Asks the host before it answers 1, so that a test can hold it inside a call.
HELD = module(
    "(drop (call $ask (i32.const 0) (i32.const 0))) (i32.const 2048)",
    data(2048, FINE + "\0"),
    imports=ASK,
)
LOOP = module("(loop $l (br $l)) (i32.const 0)")


class Gate(HostFunctions):
    """Holds every guest that asks until `open` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.inside = threading.Semaphore(0)
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def call(self, *arguments: Any) -> Any:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self.inside.release()
        assert self.open.wait(30)
        with self._lock:
            self._now -= 1
        return {}


def test_a_thousand_calls_from_8_threads_each_get_their_own_answer(load: Load) -> None:
    slot = load(ECHO, instances=3).slot()

    def work(thread: int) -> bool:
        return all(
            slot.call({"n": n, "t": thread, "x": "x" * (n % 3000)}, None, None)
            == {"n": n, "t": thread, "x": "x" * (n % 3000)}
            for n in range(1000)
        )

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))


def test_no_more_calls_run_at_once_than_there_may_be_instances(load: Load) -> None:
    gate = Gate()
    plugin = load(HELD, gate, instances=2)
    slot = plugin.slot()
    with ThreadPoolExecutor(6) as threads:
        calls = [threads.submit(slot.call, None, None, None) for _ in range(6)]
        for _ in range(2):
            assert gate.inside.acquire(timeout=10)
        while plugin.driver.status()["waiting"] < 4:
            time.sleep(0.001)
        gate.open.set()
        assert [call.result() for call in calls] == [1] * 6
    assert gate.most == 2
    status = plugin.driver.status()
    assert (status["instances"], status["busy"], status["waiting"]) == (2, 0, 0)


def test_waiting_for_an_instance_counts_against_the_deadline(load: Load) -> None:
    gate = Gate()
    slot = load(HELD, gate, instances=1).slot()
    with ThreadPoolExecutor(1) as threads:
        holding = threads.submit(slot.call, None, None, None)
        assert gate.inside.acquire(timeout=10)
        begun = time.perf_counter()
        with pytest.raises(SlotTimeout, match=r"not begun within 0\.05 s.*wasm\.instances"):
            slot.call(None, 0.05, None)
        assert 0.05 <= time.perf_counter() - begun < 1.0
        gate.open.set()
        assert holding.result() == 1
    assert slot.call(None, None, None) == 1


def test_a_waiter_gets_the_place_of_a_guest_that_broke(load: Load) -> None:
    slot = load(LOOP, instances=1).slot()
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(slot.call, None, 0.1 * n, None) for n in range(1, 5)]
        for call in calls:
            assert isinstance(call.exception(), SlotTimeout)


def test_closing_ends_calls_in_flight_and_those_that_wait(load: Load) -> None:
    gate = Gate()
    plugin = load(HELD, gate, instances=1)
    slot = plugin.slot()
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(slot.call, None, None, None) for _ in range(2)]
        assert gate.inside.acquire(timeout=10)
        while plugin.driver.status()["waiting"] < 1:
            time.sleep(0.001)
        plugin.driver.close()
        gate.open.set()
        # The one in flight may still find its way out before it is interrupted.
        errors = [error for call in calls if (error := call.exception()) is not None]
        assert errors
        assert all(isinstance(error, PluginUnavailable) for error in errors)
    with pytest.raises(PluginUnavailable):
        slot.call(None, None, None)


def test_closing_ends_a_loop_at_once(load: Load, way: str) -> None:
    if way == "public":
        pytest.skip("the package's public API can only end a guest at its deadline")
    plugin = load(LOOP)
    future = plugin.slot().submit(None, 30.0, None)
    while not plugin.driver.status()["busy"]:
        time.sleep(0.001)
    begun = time.perf_counter()
    plugin.driver.close()
    with pytest.raises(PluginUnavailable, match="was closed"):
        future.result(10)
    assert time.perf_counter() - begun < 5.0


def test_a_plugin_may_be_closed_from_within_its_own_call(load: Load) -> None:
    class Closer(HostFunctions):
        def call(self, *arguments: Any) -> Any:
            plugin.driver.close()
            return {}

    plugin = load(HELD, Closer(), instances=1)
    future = plugin.slot().submit(None, None, None)
    assert isinstance(future.exception(10), PluginUnavailable) or future.result() == 1


def test_submitted_calls_are_futures_of_the_data_or_of_the_refusal(load: Load) -> None:
    plugin = load(ECHO)
    slot = plugin.slot(inputs={"n": InputDefinition("n", "int", required=True)})
    parameters = {"n": 1}
    future = slot.submit(parameters, None, None)
    parameters["n"] = 2  # it was encoded already
    assert future.result(10) == {"n": 1}
    assert isinstance(slot.submit({}, None, None).exception(), InvalidParameters)


def test_map_answers_in_order_and_takes_endless_generators(load: Load) -> None:
    slot = load(ECHO, instances=2).slot()
    endless = ({"n": n} for n in itertools.count())
    answers = slot.map(endless, None, None)
    assert [answer["n"] for answer in itertools.islice(answers, 500)] == list(range(500))
    assert next(endless)["n"] < 600  # it was not read far ahead


def test_map_runs_long_calls_in_all_instances_at_once(load: Load) -> None:
    class Slow(Gate):
        def call(self, *arguments: Any) -> Any:
            time.sleep(0.004)  # what makes the call long
            return super().call(*arguments)

    host = Slow()
    timer = threading.Timer(0.5, host.open.set)  # far longer than three calls take to begin
    plugin = load(HELD, host, instances=3)
    answers = plugin.slot().map([{}] * 20, None, None)
    host.open.set()
    assert [next(answers), next(answers)] == [1, 1]  # these show that calls are long
    host.open.clear()
    timer.start()
    assert list(answers) == [1] * 18
    assert host.most == 3


def test_map_raises_where_the_call_failed_and_stops(load: Load) -> None:
    slot = load(module("unreachable")).slot()
    answers = slot.map(({} for _ in range(10)), None, None)
    with pytest.raises(PluginCrashed):
        next(answers)
    assert list(answers) == []


def test_a_thousand_tasks_in_one_event_loop(load: Load) -> None:
    slot = load(ECHO, instances=2).slot()

    async def work() -> list[Any]:
        return await asyncio.gather(*(slot.call_async({"n": n}, None, None) for n in range(1000)))

    assert asyncio.run(work()) == [{"n": n} for n in range(1000)]


def test_a_cancelled_task_leaves_the_plugin_usable(load: Load) -> None:
    gate = Gate()
    slot = load(HELD, gate, instances=1).slot()

    async def work() -> None:
        tasks = [asyncio.create_task(slot.call_async({}, None, None)) for _ in range(3)]
        while not gate.inside.acquire(blocking=False):
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in found)
        gate.open.set()
        assert await slot.call_async({}, None, None) == 1

    asyncio.run(work())
    assert gate.most == 1


def test_a_future_that_was_not_begun_can_be_cancelled(load: Load) -> None:
    gate = Gate()
    slot = load(HELD, gate, instances=1).slot()
    first = slot.submit({}, None, None)
    assert gate.inside.acquire(timeout=10)
    second = slot.submit({}, None, None)
    assert second.cancel()
    gate.open.set()
    assert first.result(10) == 1
    with pytest.raises(CancelledError):
        second.result(10)


def test_a_submitted_calls_wait_counts_against_its_deadline(load: Load) -> None:
    gate = Gate()
    slot = load(HELD, gate, instances=1).slot()
    first = slot.submit({}, None, None)
    assert gate.inside.acquire(timeout=10)
    second = slot.submit({}, 0.02, None)
    deadline = time.monotonic() + 0.05
    while time.monotonic() < deadline:
        time.sleep(0.001)
    gate.open.set()
    assert first.result(10) == 1
    assert isinstance(second.exception(10), SlotTimeout)


def test_a_second_plugin_is_served_while_the_first_hangs(load: Load) -> None:
    hanging: Plugin = load(LOOP)
    healthy = load(ECHO)
    future = hanging.slot().submit(None, 0.3, None)
    served = 0
    while not future.done():
        assert healthy.call({"n": served}) == {"n": served}
        served += 1
    assert isinstance(future.exception(), SlotTimeout)
    assert served > 100


@pytest.mark.parametrize("fresh", [False, True])
def test_an_exception_of_a_signal_handler_costs_no_place(load: Load, way: str, fresh: bool) -> None:
    if way == "public":
        pytest.skip("the package's own finalisers lose what they free when one is interrupted")

    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    plugin = load(ECHO, instances=2, fresh=fresh)
    before = signal.signal(signal.SIGALRM, stop)
    stopped = 0
    try:
        for n in range(1500):
            with contextlib.suppress(Stop):
                end = time.monotonic() + 0.01  # a finaliser may have swallowed it
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + n % 200))
                try:
                    while time.monotonic() < end:
                        plugin.call()
                except Stop:
                    stopped += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stopped > 500
    for _ in range(10):
        assert plugin.call({"n": 1}, timeout=20.0) == {"n": 1}
    assert plugin.driver.status()["busy"] == 0


def ended(child: int) -> int:
    """Return how a process ended; one that takes too long is killed."""
    deadline = time.monotonic() + 20
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.002)
    return found[1]


def test_the_child_of_a_fork_can_call_whatever_other_threads_did_meanwhile(
    load: Load, way: str
) -> None:
    if way == "public":
        pytest.skip("each of the package's calls takes locks that a fork may find taken")
    plugin = load(ECHO, instances=2)
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            plugin.call({"n": 1})

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            time.sleep(0.002)
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    status = 0 if plugin.call({"n": 2}, timeout=10.0) == {"n": 2} else 2
                finally:
                    os._exit(status)
            assert ended(child) == 0
    finally:
        done.set()
        for thread in threads:
            thread.join(20)


def test_a_log_handler_that_calls_the_plugin_it_logs_for_is_refused(load: Load) -> None:
    log = '(import "env" "host_log" (func $log (param i32 i32 i32 i32)))'
    say = "(call $log (i32.const 3000) (i32.const 4) (i32.const 3000) (i32.const 4))"
    more = data(2048, FINE + "\0") + data(3000, "info")
    plugin = load(module(say + "(i32.const 2048)", more, imports=log), instances=1)
    failures: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                plugin.call(timeout=20.0)
            except PluginUnavailable as error:
                failures.append(str(error))

    logger = logging.getLogger("zeno_fast.plugin.test")
    handler = Handler()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        assert plugin.call() == 1
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert len(failures) == 1 and "would wait for itself" in failures[0]
