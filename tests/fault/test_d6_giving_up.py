"""Callers that go before their answer comes, at each point of a call's life."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from fault.ways import WAYS, call_by, wait_until

GUEST = """
import itertools
lines = requests()
while request := next(lines, None):
    if request.get("type") == "host_response" or greeted(request, "hold", "echo"):
        continue
    phase = request["parameters"].get("phase")
    if request["parameters"].get("chunk"):
        chunk(request, "first")
    if phase == "sent":
        mark("here")
        wait_for("go")
    elif phase == "half":
        whole, put_whole = [], put
        put = whole.append
        answer(request, request["parameters"])
        put = put_whole
        text = json.dumps(whole[0]) + "\\n"
        sys.stdout.write(text[:len(text) // 2])
        wait_until_read()
        mark("here")
        wait_for("go")
        sys.stdout.write(text[len(text) // 2:])
        sys.stdout.flush()
        continue
    elif phase == "host call":
        put({"type": "host_call", "id": "h", "function": "asked", "parameters": {}})
        others = []
        for response in lines:
            if response.get("type") == "host_response":
                break
            others.append(response)
        lines = itertools.chain(others, lines)
    answer(request, request["parameters"])
"""

PHASES = ["queued", "sent", "half", "host call"]


class Scene:
    """One plugin whose next call stays where its phase says until `release`."""

    def __init__(self, manager, folder, phase):
        self.manager = manager
        self.phase = phase
        self.plugin = manager.load_plugin(folder)
        self.pid = self.plugin.status()["pid"]
        self.asked = threading.Event()
        self.released = threading.Event()
        manager.set_host_callback("asked", self._asked)
        self.ahead = None
        if phase == "queued":
            self.ahead = manager.submit("hold", {"phase": "sent"}, timeout=60)
            wait_until((self.plugin.folder / "here").exists)

    def _asked(self, _):
        self.asked.set()
        self.released.wait(20)
        return "told"

    @property
    def parameters(self):
        return {"phase": "" if self.phase == "queued" else self.phase}

    def reached(self):
        """Tell whether the call is in its phase."""
        if self.phase == "queued":
            status = self.plugin.status()
            return status["in_flight"] + status["queued"] == 2
        if self.phase == "host call":
            return self.asked.is_set()
        return (self.plugin.folder / "here").exists()

    def check(self):
        """Let the guest go on and see that nothing is left of the call that was given up."""
        self.released.set()
        (self.plugin.folder / "go").touch()
        if self.ahead is not None:
            assert self.ahead.result(20) == {"phase": "sent"}
        for way, n in itertools.product(WAYS[:4], range(3)):
            assert call_by(way, self.manager, "echo", {"n": n}, 20) == {"n": n}
        status = self.plugin.status()
        assert (status["pid"], status["restarts"]) == (self.pid, 0)
        assert (status["in_flight"], status["queued"]) == (0, 0)


@pytest.fixture(params=PHASES)
def scene(request, manager, make_guest, healthy) -> Iterator[Scene]:
    scene = Scene(manager, make_guest(GUEST), request.param)
    try:
        yield scene
    finally:
        scene.released.set()
        (scene.plugin.folder / "go").touch()


async def cancel_when_reached(scene, awaitable):
    task = asyncio.ensure_future(awaitable)
    while not scene.reached():
        await asyncio.sleep(0.002)
        assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_d6_a_task_is_cancelled(scene):
    asyncio.run(
        cancel_when_reached(scene, scene.manager.call_async("hold", scene.parameters, timeout=60))
    )
    scene.check()


def test_d6_a_task_that_reads_a_stream_is_cancelled(scene):
    async def main():
        stream = scene.manager.stream("hold", scene.parameters, timeout=60)
        await cancel_when_reached(scene, anext_of(stream))
        await stream.aclose()

    asyncio.run(main())
    scene.check()


async def anext_of(stream):
    return await stream.__anext__()


@contextlib.contextmanager
def interrupted(scene, ready=lambda: True):
    """Interrupt the main thread once the call is where it shall be; it must be told at once."""
    over = threading.Event()
    # It is ignored in what a script's shell runs in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt():
        wait_until(lambda: over.is_set() or (scene.reached() and ready()))
        if not over.is_set():
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        over.set()
        thread.join(20)
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("way", ["call", "result", "map", "stream"])
def test_d6_the_user_interrupts(scene, way):
    manager = scene.manager
    futures = []
    with interrupted(scene, lambda: way != "result" or futures):
        if way == "call":
            manager.call("hold", scene.parameters, timeout=60)
        elif way == "map":
            next(manager.map("hold", [scene.parameters], timeout=60))
        elif way == "stream":
            next(manager.stream("hold", scene.parameters, timeout=60))
        else:
            futures.append(manager.submit("hold", scene.parameters, timeout=60))
            futures[0].result()
    if way == "result":
        assert futures[0].cancel()  # the future outlives the wait for it
    gc.collect()
    scene.check()


def test_d6_a_future_is_cancelled(scene):
    future = scene.manager.submit("hold", scene.parameters, timeout=60)
    wait_until(scene.reached)
    assert future.cancel()
    scene.check()


@pytest.mark.parametrize("scene", PHASES[1:], indirect=True)
@pytest.mark.parametrize("ending", ["close", "collected"])
def test_d6_a_map_is_left_early(scene, ending):
    for _ in range(50):
        begun = scene.plugin.status()["workers"][0]["calls"]
        answers = scene.manager.map("hold", [{}, scene.parameters, {"n": 1}, {"n": 2}], timeout=60)
        assert next(answers) == {}
        if scene.plugin.status()["workers"][0]["calls"] > begun + 1:
            break
        answers.close()  # a busy machine makes the list look slow, and those are not read ahead
    wait_until(scene.reached)  # with two more behind it
    if ending == "close":
        answers.close()
    del answers
    gc.collect()
    scene.check()


async def leave_at_first(scene, stream):
    async for item in stream:
        assert item == "first"
        while not scene.reached():
            await asyncio.sleep(0.002)
        await stream.aclose()


@pytest.mark.parametrize(
    ("scene", "ending"),
    [(phase, how) for phase in PHASES[1:] for how in ("close", "aclose")]
    + [("sent", "with"), ("sent", "collected")],
    indirect=["scene"],
)
def test_d6_a_stream_is_left_early(scene, ending):
    stream = scene.manager.stream("hold", scene.parameters | {"chunk": True}, timeout=60)
    if ending == "aclose":
        asyncio.run(leave_at_first(scene, stream))
    else:
        assert next(stream) == "first"
        wait_until(scene.reached)
        if ending == "close":
            stream.close()
            assert list(stream) == []
        elif ending == "with":
            with pytest.raises(ZeroDivisionError), stream:
                raise ZeroDivisionError
    del stream
    gc.collect()
    scene.check()


def test_d6_a_call_that_was_given_up_and_answered_has_no_deadline_any_more(
    manager, make_bare_guest, healthy
):
    manager.load_plugin(make_bare_guest(GUEST))
    plugin = manager.get_plugin("scripted")
    pid = plugin.status()["pid"]
    here, go = plugin.folder / "here", plugin.folder / "go"
    given_up = manager.submit("hold", {"phase": "sent"}, timeout=0.5)
    wait_until(here.exists)
    assert given_up.cancel()
    over = time.monotonic() + 0.5
    go.touch()
    assert manager.call("echo", {"n": 1}, timeout=20) == {"n": 1}
    here.unlink()
    go.unlink()
    later = manager.submit("hold", {"phase": "sent"}, timeout=60)
    wait_until(here.exists)
    wait_until(lambda: time.monotonic() > over + 0.2)  # when it would have timed out
    go.touch()
    assert later.result(20) == {"phase": "sent"}
    assert plugin.status()["pid"] == pid
