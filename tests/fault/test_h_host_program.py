"""Hosts with many threads, with loops of every kind, with both at once, and what they call back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import selectors
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fault.ways import WAYS, call_by, wait_until

from zeno_fast import PluginUnavailable, SlotTimeout

ECHO = """
for request in requests():
    if request.get("type") == "host_response" or greeted(request, "echo", "chunks"):
        continue
    if request["slot_name"] == "chunks":
        for n in range(request["parameters"]["count"]):
            chunk(request, [request["parameters"]["n"], n])
    if "wait_for" in request["parameters"]:
        wait_for(request["parameters"]["wait_for"])
    answer(request, request["parameters"])
"""
LIMIT = 60.0  # seconds in which everything has to be over on two busy cores


@pytest.fixture(scope="session", autouse=True)
def loops_of_the_process() -> None:
    """Have libuv make the pipe that it keeps for good, before a count."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()


@pytest.fixture
def echo(manager, make_guest, healthy):
    manager.load_plugin(make_guest(ECHO))
    return manager


def run_all(jobs: list[Callable[[], None]]) -> None:
    """Run jobs in threads of their own, begun together; raise what one of them raised."""
    trouble: list[BaseException] = []
    together = threading.Barrier(len(jobs))

    def run(job: Callable[[], None]) -> None:
        together.wait(LIMIT)
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the test's
            trouble.append(error)

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LIMIT
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not [thread for thread in threads if thread.is_alive()]
    if trouble:
        raise trouble[0]


def test_h1_a_hundred_threads_call_one_plugin(echo):
    def job(number: int) -> Callable[[], None]:
        def work() -> None:
            for n in range(30):
                assert echo.call("echo", {"n": [number, n]}, timeout=LIMIT) == {"n": [number, n]}

        return work

    run_all([job(number) for number in range(100)])
    status = echo.get_plugin("scripted").status()
    assert (status["in_flight"], status["queued"]) == (0, 0)


def test_h2_ten_thousand_tasks_call_a_guest_without_ids(manager, make_bare_guest, healthy):
    manager.load_plugin(make_bare_guest(ECHO))

    async def main():
        return await asyncio.gather(*(manager.call_async("echo", {"n": n}) for n in range(10_000)))

    assert asyncio.run(main()) == [{"n": n} for n in range(10_000)]


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "uvloop":
        uvloop = pytest.importorskip("uvloop", reason="`pip install uvloop` would bring it")
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
    if kind == "select":
        return asyncio.SelectorEventLoop(selectors.SelectSelector())
    return asyncio.new_event_loop()


def run_in(kind: str, main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a new loop of this kind, as asyncio.run does."""
    loop = new_loop(kind)
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


LOOPS = ["asyncio", "select", "uvloop"]


@pytest.fixture(params=LOOPS)
def loop_kind(request):
    new_loop(request.param).close()  # or the test is skipped
    return request.param


def test_h4_every_kind_of_loop_is_served(echo, loop_kind, tmp_path):
    async def main():
        sent = [{"n": n} for n in range(500)]
        assert await asyncio.gather(*(echo.call_async("echo", one) for one in sent)) == sent
        large = {"text": "x" * 1_000_000}  # more than a pipe takes at once, both ways
        assert (
            await asyncio.gather(*(echo.call_async("echo", large) for _ in range(3))) == [large] * 3
        )
        held = asyncio.ensure_future(
            echo.call_async("echo", {"wait_for": str(tmp_path / "go")}, timeout=LIMIT)
        )
        while not echo.get_plugin("scripted").status()["in_flight"]:
            await asyncio.sleep(0.002)
        behind = asyncio.ensure_future(echo.call_async("echo", {"n": 1}, timeout=LIMIT))
        with pytest.raises(SlotTimeout):
            await echo.call_async("echo", {"n": 2}, timeout=0.1)
        behind.cancel()
        with pytest.raises(asyncio.CancelledError):
            await behind
        (tmp_path / "go").touch()
        assert await held == {"wait_for": str(tmp_path / "go")}
        assert await echo.call_async("echo", {"n": 3}) == {"n": 3}

    for _ in range(2):  # one loop after the other
        run_in(loop_kind, main())
        (tmp_path / "go").unlink()
    assert echo.call("echo", {"n": 4}) == {"n": 4}


def test_h4_a_loop_that_was_closed_under_a_call_harms_nobody(
    echo, loop_kind, tmp_path, monkeypatch
):
    async def begin() -> asyncio.Task[Any]:
        go = {"wait_for": str(tmp_path / "go")}
        task = asyncio.ensure_future(echo.call_async("echo", go, timeout=LIMIT))
        while not echo.get_plugin("scripted").status()["in_flight"]:
            await asyncio.sleep(0.002)
        return task

    loop = new_loop(loop_kind)
    task = loop.run_until_complete(begin())
    loop.close()
    (tmp_path / "go").touch()
    for n in range(5):
        assert echo.call("echo", {"n": n}, timeout=20) == {"n": n}
    monkeypatch.setattr(task, "_log_destroy_pending", False, raising=False)
    echo.unload_plugin("scripted")  # which could raise what the loop says
    assert asyncio.run(echo.call_async("healthy", {"n": 1})) == {"n": 1}


@pytest.mark.parametrize("second", LOOPS[:2])
def test_h4_two_loops_of_different_kinds_share_one_sidecar(echo, second):
    first = "uvloop" if second == "select" else "select"
    new_loop(first).close()

    async def main(number: int) -> None:
        for step in range(30):
            sent = [{"n": [number, step, k]} for k in range(10)]
            assert await asyncio.gather(*(echo.call_async("echo", one) for one in sent)) == sent

    run_all([lambda: run_in(first, main(1)), lambda: run_in(second, main(2))])


def test_h4_without_a_loop_a_coroutine_says_so_and_harms_nobody(echo):
    coroutine = echo.call_async("echo", {"n": 1})
    with pytest.raises(RuntimeError, match="no running event loop"):
        coroutine.send(None)
    echo.call_async("echo", {"n": 2}).close()
    assert echo.call("echo", {"n": 3}) == {"n": 3}


def test_h1_h2_h4_threads_loops_futures_maps_and_streams_share_one_sidecar(echo):
    async def tasks(number: int) -> None:
        for step in range(20):
            sent = [{"n": [number, step, k]} for k in range(10)]
            assert await asyncio.gather(*(echo.call_async("echo", one) for one in sent)) == sent
            stream = echo.stream("chunks", {"n": [number, step], "count": 3}, timeout=LIMIT)
            got = [item async for item in stream]
            assert got == [[[number, step], n] for n in range(3)]

    def calls(number: int) -> None:
        for step in range(150):
            sent = {"n": [number, step], "text": "x" * (100_000 if step % 50 == 0 else 0)}
            assert echo.call("echo", sent, timeout=LIMIT) == sent

    def futures(number: int) -> None:
        sent = [{"n": [number, step]} for step in range(300)]
        started = [echo.submit("echo", one, timeout=LIMIT) for one in sent]
        assert [future.result(LIMIT) for future in started] == sent

    def mapped(number: int) -> None:
        sent = [{"n": [number, step]} for step in range(1000)]
        assert list(echo.map("echo", sent, timeout=LIMIT)) == sent

    def streamed(number: int) -> None:
        for step in range(30):
            parameters = {"n": [number, step], "count": 5}
            with echo.stream("chunks", parameters, timeout=LIMIT) as stream:
                assert list(stream) == [[[number, step], n] for n in range(5)]
            assert stream.result == parameters

    run_all(
        [
            lambda: asyncio.run(tasks(1)),
            lambda: asyncio.run(tasks(2)),
            lambda: calls(3),
            lambda: calls(4),
            lambda: calls(5),
            lambda: futures(6),
            lambda: mapped(7),
            lambda: streamed(8),
        ]
    )
    status = echo.get_plugin("scripted").status()
    assert (status["in_flight"], status["queued"], status["stray_answers"]) == (0, 0, 0)
    assert status["restarts"] == 0


# It serves other requests while it waits for the host, as a guest has to that is called back.
ASKS = """
def serve(request):
    if request.get("type") == "host_response" or greeted(request, "ask", "echo"):
        return
    if request["slot_name"] == "ask":
        put({"type": "host_call", "id": "h" + str(request["parameters"].get("n")),
             "function": "asked", "parameters": request["parameters"]})
        while True:
            response = next(lines)
            if response.get("type") == "host_response":
                break
            serve(response)
        answer(request, response.get("data") or "error: " + response["error"])
    else:
        answer(request, request["parameters"])

lines = requests()
for request in lines:
    serve(request)
"""


def test_h9_a_host_function_that_raises_is_a_refusal_to_the_guest(manager, make_guest, healthy):
    manager.load_plugin(make_guest(ASKS))
    errors = [ValueError("no good"), KeyboardInterrupt(), SystemExit(3), RecursionError("deep")]

    def asked(_):
        raise errors[-1]

    manager.set_host_callback("asked", asked)
    while errors:
        name = type(errors[-1]).__name__
        for way in WAYS[:4]:
            assert f"asked failed: {name}" in call_by(way, manager, "ask", {}, 20)
        errors.pop()
    assert manager.call("echo", {"n": 1}) == {"n": 1}


def test_h9_a_host_function_that_blocks_keeps_no_other_plugin_waiting(manager, make_guest, healthy):
    manager.load_plugin(make_guest(ASKS))
    release = threading.Event()
    entered = threading.Event()

    def asked(_):
        entered.set()
        return release.wait(LIMIT)

    manager.set_host_callback("asked", asked)
    try:
        waiting = [manager.submit("ask", {"n": n}, timeout=LIMIT) for n in range(5)]
        assert entered.wait(20)
        for n in range(20):
            assert manager.call("healthy", {"n": n}, timeout=5) == {"n": n}
        assert not any(future.done() for future in waiting)
    finally:
        release.set()
    assert [future.result(20) for future in waiting] == [True] * 5


@pytest.mark.parametrize("way", WAYS)
def test_h9_a_host_function_calls_back_a_guest_that_reads_meanwhile(
    manager, make_ids_guest, healthy, way
):
    manager.load_plugin(make_ids_guest(ASKS))
    manager.set_host_callback("asked", lambda _: call_by(way, manager, "echo", {"n": 1}, 20))
    for _ in range(3):
        assert call_by(way, manager, "ask", {}, 20) == {"n": 1}


@pytest.mark.parametrize("way", WAYS)
def test_h9_a_host_function_that_calls_back_a_guest_without_ids_is_refused_at_once(
    manager, make_bare_guest, healthy, way
):
    manager.load_plugin(make_bare_guest(ASKS))
    pid = manager.get_plugin("scripted").status()["pid"]
    took = []

    def asked(_):
        began = time.monotonic()
        try:
            return call_by(way, manager, "echo", {"n": 1}, 20)
        except PluginUnavailable:
            took.append(time.monotonic() - began)
            return "refused"

    manager.set_host_callback("asked", asked)
    assert call_by(way, manager, "ask", {}, 20) == "refused"
    assert max(took) < 2
    assert manager.call("echo", {"n": 1}) == {"n": 1}
    assert manager.get_plugin("scripted").status()["pid"] == pid


def test_h9_a_guest_that_cannot_be_called_back_costs_its_caller_the_deadline_and_no_more(
    manager, make_ids_guest, healthy
):
    # It leaves unread what is no response of the host.
    program = ASKS.replace("serve(response)", "later.append(response)").replace(
        "lines = requests()", "later = []\nlines = requests()"
    )
    manager.load_plugin(make_ids_guest(program))
    outcomes = []
    outer_failed = threading.Event()

    def asked(_):
        try:
            return manager.call("echo", {"n": 1}, timeout=30)
        except SlotTimeout as error:
            outcomes.append(error)
            outer_failed.wait(10)  # which is due at the same moment
            raise

    manager.set_host_callback("asked", asked)
    began = time.monotonic()
    with pytest.raises(SlotTimeout):
        manager.call("ask", timeout=0.4)
    outer_failed.set()
    assert 0.399 < time.monotonic() - began < 5
    wait_until(lambda: outcomes)  # in time, as it inherits the deadline
    assert time.monotonic() - began < 10
    gc.collect()
    # It goes on once the host has answered it.
    wait_until(lambda: manager.get_plugin("scripted").status()["late_answers"] == 1)
    assert manager.call("echo", {"n": 2}, timeout=20) == {"n": 2}
