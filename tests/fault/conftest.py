"""Guests of both styles of answering, and a healthy plugin beside the one that is at fault."""

from __future__ import annotations

import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from zeno_fast import PluginManager

Load = Callable[..., None]
SERVED_WITHIN = 2.5  # seconds for one call of the healthy plugin; some milliseconds are usual

# `frame` and `envelope` make the answer that `write` or `put` sends; either style has its own.
GUEST = '''\
def write(data):
    """Write bytes to stdout, beside Python's buffer."""
    data = memoryview(data)
    while data:
        data = data[os.write(1, data):]

def envelope(request, data):
    """Return the line of an answer whose data is this value."""
    return frame(request, json.dumps(data)).encode() + b"\\n"

'''
STYLES = {
    "ids": '''\
def frame(request, data):
    """Return an answer whose data is this JSON, without a line end."""
    return ('{"type":"guest_response","id":"' + request["id"] + '","success":true,"data":'
            + data + '}')

''',
    "no-ids": """\
def frame(request, data):
    return '{"success":true,"data":' + data + '}'

def answer(request, data):
    put({"success": True, "data": data})

def fail(request, error):
    put({"success": False, "error": error})

""",
}

HEALTHY = """
for request in requests():
    if request.get("type") != "host_response" and not lifecycle(request, "healthy"):
        put({"type": "host_call", "id": request["id"], "function": "healthy_host_function",
             "call_id": request["id"], "parameters": request["parameters"]})
        response = json.loads(sys.stdin.readline())
        answer(request, response["data"])
"""


@pytest.fixture(params=list(STYLES))
def style(request: pytest.FixtureRequest) -> str:
    """How the guest answers: with the id of the request, or by the bare envelope."""
    return str(request.param)


@pytest.fixture
def load_as(manager: PluginManager, make_plugin: Callable[..., Path]) -> Load:
    """Load a guest of a given style; its program has `write`, `frame` and `envelope` at hand."""

    def load(style: str, program: str, *, sidecar: str = "stop_timeout: 0", **rest: Any) -> None:
        text = GUEST + STYLES[style] + textwrap.dedent(program)
        manager.load_plugin(make_plugin(text, sidecar=sidecar, **rest))

    return load


@pytest.fixture
def load(load_as: Load, style: str) -> Load:
    """Load a guest that answers in the style under test."""

    def load_in_style(program: str, **rest: Any) -> None:
        load_as(style, program, **rest)

    return load_in_style


class Healthy:
    """Calls a second plugin of the same manager all the time, from a thread of its own.

    Every call comes back through a host function and every second one as a future, so that
    whoever holds up the manager's threads is found out, too.
    """

    def __init__(self, manager: PluginManager) -> None:
        self.served = 0
        self.slowest = 0.0
        self.failures: list[str] = []
        self._manager = manager
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="healthy caller")
        self._thread.start()

    def call_once(self) -> None:
        """Call the plugin now; what is wrong is kept in `failures`."""
        sent = {"n": self.served}
        began = time.monotonic()
        try:
            if self.served % 2:
                got = self._manager.call("healthy", sent, timeout=30)
            else:
                future = self._manager.submit("healthy", sent, timeout=30)
                wait([future], 40)  # unlike `result`, it leaves the reading to the monitor
                got = future.result(0)
        except Exception as error:  # noqa: BLE001 - it is reported by the thread that checks
            self.failures.append(repr(error))
            return
        self.slowest = max(self.slowest, time.monotonic() - began)
        if got != sent:
            self.failures.append(f"sent {sent}, got {got}")
        self.served += 1

    def _run(self) -> None:
        while not self._done.wait(0.005) and not self.failures:
            self.call_once()

    def finish(self) -> None:
        """Stop calling, and fail the test if the plugin was not served throughout."""
        self._done.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.call_once()
        assert not self.failures
        assert self.slowest < SERVED_WITHIN


@pytest.fixture
def healthy(manager: PluginManager, make_plugin: Callable[..., Path]) -> Iterator[Healthy]:
    """A healthy plugin in the same manager; fails the test that does not let it be served."""
    manager.set_host_callback("healthy_host_function", lambda parameters: parameters)
    manager.load_plugin(make_plugin(HEALTHY, name="healthy"))
    healthy = Healthy(manager)
    yield healthy
    healthy.finish()
