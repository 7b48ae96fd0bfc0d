"""What a sidecar plugin written in Python imports: its functions become slots.

    from zeno_fast.guest import Plugin
    plugin = Plugin("stats", version="1.0.0")

    @plugin.slot
    def mean(values: list[float], digits: int = 2) -> float:
        return round(sum(values) / len(values), digits)

    plugin.run()

A slot takes its parameters by name and returns what JSON can carry. A generator streams: what it
yields is sent at once, what it returns is the final answer. Coroutines run in an event loop beside
other slots. What the plugin and its child processes print goes to the host's log. The file needs
the standard library alone, and uses orjson where it is installed: a plugin may carry a copy.
"""

from __future__ import annotations

import binascii
import contextlib
import dataclasses
import enum
import functools
import importlib
import inspect
import itertools
import json
import logging
import math
import os
import queue
import re
import signal
import sys
import threading
import time
import traceback
import types
import typing
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence, Set
from concurrent.futures import Future, wait
from contextvars import ContextVar
from typing import Any, TypeVar, overload

__all__ = ["Call", "Cancelled", "HostError", "LogHandler", "Plugin", "SlotError", "current", "host"]

Function = TypeVar("Function", bound=Callable[..., Any])
Slot = Callable[..., Any]

PLAIN = frozenset((dict, list, str, int, float, bool, type(None)))  # what JSON has itself
SCALARS = frozenset((str, int, float, bool, type(None)))
FORMATS: dict[str, Any] = {  # of memoryviews, by NumPy's name without the byte order
    "i1": "b", "u1": "B", "b1": "?", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q",
    "u8": "Q", "f4": "f", "f8": "d",
}  # fmt: skip
LEAD = object()  # in the queue of calls: whoever finds it reads the ring
NAMES = {
    letter: ("|" if name.endswith("1") else "<" if sys.byteorder == "little" else ">") + name
    for name, letter in FORMATS.items()
}
HUNG_UP = "the host has closed the connection"
INPUT_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "bool"), (int, "int"), (float, "float"), (str, "string"), (bytes, "any"),
    (bytearray, "any"), (memoryview, "any"), (Mapping, "object"), (Sequence, "list"), (Set, "list"),
)  # fmt: skip

_orjson: Any = None
with contextlib.suppress(ImportError):
    _orjson = importlib.import_module("orjson")


class SlotError(Exception):
    """Raised by a slot to answer that it failed: the caller gets the text, and `data` with it."""

    def __init__(self, text: str, data: Any = None) -> None:
        super().__init__(text)
        self.data = data


class HostError(Exception):
    """The host refused a call, or gave no answer in time."""


class Cancelled(BaseException):
    """The caller has given up; not an `Exception`, so that a slot does not catch it by mistake."""


class Call:
    """The call that a slot works on; `current()` returns it.

    Attributes:
        id: The host's name for it, None where it gave none.
        context: What the request carried as its `context`.
        deadline: When the caller gives up, on the clock of `time.monotonic`, or None.
        cancelled: Whether the caller has given up.
    """

    __slots__ = (
        "binary", "cancelled", "context", "deadline", "id", "key", "parameters", "slot", "task",
    )  # fmt: skip

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.id = request.get("id")
        self.slot = request.get("slot_name")
        self.parameters = request.get("parameters")
        self.context = request.get("context")
        self.binary = request.get("binary") is True  # there are bytes in the parameters
        self.deadline = None
        if isinstance(limit := request.get("timeout_ms"), (int, float)):
            self.deadline = time.monotonic() + min(limit, 1e12) / 1000
        self.cancelled = False
        self.key = b"" if self.id is None or self.id == "" else _dumps(self.id)
        self.task: Any = None  # of a coroutine

    def check(self) -> None:
        """Raise Cancelled if the caller has given up."""
        if self.cancelled:
            raise Cancelled

    def message(self, kind: bytes) -> bytes:
        """Return the begin of a message of this type about the call."""
        return b'{"type":"%b","id":%b,' % (kind, self.key) if self.key else b'{"type":"%b",' % kind


_current: ContextVar[Call] = ContextVar("current")


def current() -> Call:
    """Return the call that the running slot works on. Raises LookupError outside of a slot."""
    return _current.get()


class Plugin:
    """The slots of one plugin, served by `run`.

    Args:
        name: As in the manifest.
        threads: How many slots run at the same time; one of them in the main thread.
    """

    def __init__(
        self, name: str, *, version: str = "", author: str = "", description: str = "",
        threads: int = 1,
    ) -> None:  # fmt: skip
        self.name = name
        self.threads = threads
        self.info: dict[str, Any] = {
            "name": name, "version": version, "author": author, "description": description,
            "language": "Python", "protocol": 1,
            "features": ["binary", "cancel", "deadline", "stream"],
        }  # fmt: skip
        self.slots: dict[str, Slot] = {}
        self.definitions: list[dict[str, Any]] = []
        self.init_hooks: list[Slot] = []
        self.shutdown_hooks: list[Slot] = []

    @overload
    def slot(self, name: Function, /) -> Function: ...
    @overload
    def slot(self, name: str | None = None, /, **about: Any) -> Callable[[Function], Function]: ...
    def slot(self, name: Any = None, /, **about: Any) -> Any:
        """Make a slot of a function; its annotations and its docstring describe the inputs.

        What may be null has to be annotated so: `int | None`, `Any | None`.

        Args:
            name: The slot's name; by default the plugin's and the function's, as in `stats.mean`.
            about: More of the slot's definition: `description` (else the first paragraph of the
                docstring), `example`, `outputs`, `idempotent`.
        """
        if callable(name):
            return self.slot()(name)

        def declare(function: Function) -> Function:
            slot = name or f"{self.name}.{function.__name__}"
            if slot in self.slots or slot in ("plugin_init", "plugin_register_slots"):
                raise ValueError(f"there is a slot {slot!r} already")
            described, absent = _describe(function)
            definition = {"name": slot, **described, **about}
            _dumps(definition)  # raises here, where the author sees it, what JSON cannot carry
            self.definitions.append(definition)
            self.slots[slot] = functools.partial(function, **absent) if absent else function
            return function

        return declare

    def on_init(self, function: Function) -> Function:
        """Call `function` once, when the host greets the plugin."""
        self.init_hooks.append(function)
        return function

    def on_shutdown(self, function: Function) -> Function:
        """Call `function` after the last slot, before the process ends."""
        self.shutdown_hooks.append(function)
        return function

    def run(self) -> None:
        """Serve the host until it closes its end or sends SIGTERM; for the main thread, once.

        Since this module was imported by a sidecar, and elsewhere from now on, what reads
        descriptor 0 finds nothing, and what is written to 1 goes to stderr.
        """
        host.server = server = _Server(self)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # else it is the plugin's own
            signal.signal(signal.SIGTERM, lambda *_: server.stop())
        with contextlib.ExitStack() as stack:
            for hook in reversed(self.shutdown_hooks):
                stack.callback(server.run_hook, hook)
            server.serve()


class Host:
    """What the host does for a plugin; safe from any thread.

    Each method waits for the host's answer, raises HostError where it refuses, and Cancelled where
    the slot's caller gives up. A coroutine calls them by `asyncio.to_thread`, not to block others.
    """

    server: _Server | None = None

    def call(self, function: str, parameters: Any = None, timeout: float | None = None) -> Any:
        """Call a function of the host and return its data.

        It waits for `timeout` seconds, by default until the running call's deadline if it has one.
        """
        if self.server is None:
            raise HostError(f"{function}: no host is connected before run()")
        return self.server.call_host(function, parameters or {}, timeout)

    def log(self, level: str, message: str) -> None:
        """Write to the host's log (debug, info, warn, error) and wait for nothing."""
        parameters = {"level": level, "message": str(message)}
        if self.server is None or not self.server.send_host_call("log", parameters):
            _report(f"{level}: {message}")

    def db_query(self, connection: str, sql: str, params: Sequence[Any] = ()) -> Any:
        """Run a query and return what the host makes of its rows, `{"rows": [...]}` mostly."""
        return self.call("db_query", {"connection": connection, "sql": sql, "params": list(params)})

    def http_request(self, method: str, url: str, headers: Any = None, body: Any = None) -> Any:
        """Send an HTTP request and return `{"status", "headers", "body"}`."""
        request = {"method": method, "url": url, "headers": headers or {}, "body": body}
        return self.call("http_request", request)

    def scope_get(self, key: str) -> Any:
        """Return a value of the scope that the call was made with, None where there is none."""
        return _member(self.call("scope_get", {"key": key}), "value")

    def scope_set(self, key: str, value: Any) -> None:
        """Set a value of the scope that the call was made with."""
        self.call("scope_set", {"key": key, "value": value})

    def file_read(self, path: str) -> Any:
        """Return the content of a file."""
        return _member(self.call("file_read", {"path": path}), "content")

    def file_write(self, path: str, content: str) -> None:
        """Replace the content of a file."""
        self.call("file_write", {"path": path, "content": content})

    def env_get(self, name: str) -> Any:
        """Return a variable of the host's environment."""
        return _member(self.call("env_get", {"name": name}), "value")


host = Host()


class LogHandler(logging.Handler):
    """Sends the records of `logging` to the host's log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            number = min(max(record.levelno // 10, 1), 4)
            host.log(("debug", "info", "warn", "error")[number - 1], self.format(record))
        except Exception:  # noqa: BLE001 - logging's own rule: a handler reports and goes on
            self.handleError(record)


class _Server:
    """Serves one plugin: a thread reads, slots run in the main thread and as many as are wanted."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._slots: dict[str, Slot] = {
            **plugin.slots,
            "plugin_init": self._greet,
            "plugin_register_slots": lambda **_: plugin.definitions,
        }
        self._input, self._output = _protocol or _take_descriptors()
        self._ring = _open_ring(self._input, self._output)
        if self._ring is not None:
            plugin.info["features"].append("shm")
            if self._ring.has_arena:
                plugin.info["features"].append("arena")
            if self._ring.has_buffers:
                plugin.info["features"].append("buffers")
        self._uses_ring = self._has_greeted = False
        self._greeted = threading.Event()
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lead = threading.Lock()  # of who reads the ring
        self._idle = 0  # workers that wait while somebody else does
        self._relieved = False  # it is the thread that reads for all of them
        self._calls: dict[bytes, Call] = {}
        self._replies: dict[str, tuple[queue.SimpleQueue[Any], Call | None]] = {}
        self._numbers = itertools.count(1)
        self._stopping = self._input_ended = self._output_ended = False
        self._fatal: BaseException | None = None
        self._asyncio: Any = None  # imported late: that takes as long as all the rest
        self._loop: Any = None
        self._futures: set[Future[Any]] = set()
        # Reentrant, since a signal handler or a finaliser may log in the middle of a write.
        self._lock = threading.RLock()
        self._unsent: deque[bytes] = deque()

    def serve(self) -> None:
        """Answer calls until the input ends or `stop`. Raises what ends the process."""
        threading.Thread(target=self._read, daemon=True).start()
        others = range(self._plugin.threads - 1)
        pool = [threading.Thread(target=self._work, daemon=True) for _ in others]
        for thread in pool:
            thread.start()
        self._work()
        while pool and self._fatal is None:
            pool.pop().join()
        if self._fatal is None:
            wait(list(self._futures))
        if self._fatal is not None:
            raise self._fatal

    def stop(self) -> None:
        """Begin no more calls; safe from a signal handler."""
        self._stopping = True
        self._queue.put(None)
        if self._uses_ring:
            self._ring.wake()

    def run_hook(self, hook: Slot) -> None:
        """Call a hook, in the event loop if it is a coroutine function."""
        result = hook()
        if isinstance(result, Coroutine):
            self._start_task(result).result()

    def _greet(self, **_: Any) -> dict[str, Any]:
        while self._plugin.init_hooks:
            self.run_hook(self._plugin.init_hooks.pop(0))
        self._has_greeted = True
        return self._plugin.info

    def _read(self) -> None:
        try:
            with open(self._input, "rb", 1 << 16) as stream:
                for line in stream:
                    slot = self._take(line)
                    if slot == "plugin_init" and self._ring is not None:
                        self._greeted.wait()  # what comes after the answer may come another way
                        if self._uses_ring:
                            break
                while self._uses_ring and self._ring.wait_busy():
                    self._read_for_others()
        finally:
            self._end_input()

    def _end_input(self) -> None:
        self._input_ended = True
        for reply, _ in list(self._replies.values()):
            reply.put({"error": HUNG_UP})
        self._queue.put(None)

    # In shared memory whoever waits for something reads, so that no thread stands between a call
    # and its answer: a worker without a call, a slot that waits for the host, and else the thread
    # that has read the lines, once a slot has kept its worker for some milliseconds.

    def _receive(self, timeout: float | None = None) -> bool:
        """Take one message from the ring; return False at the end. Needs `_lead`."""
        message = self._ring.receive(timeout)
        if message is None:
            self._end_input()
            return False
        if message:
            self._take(message)
        return True

    def _read_for_others(self) -> None:
        if self._lead.acquire(blocking=False):
            try:
                self._relieved = True
                while self._idle == 0 and self._receive():
                    pass
            finally:
                self._relieved = False
                self._lead.release()
            self._queue.put(LEAD)

    def _next_call(self) -> Call | None:
        """Wait for a call that a worker is to run; None when it is to end."""
        call: Call | None
        while True:
            if not self._uses_ring or self._queue.qsize() or self._input_ended:
                call = self._queue.get()
            elif self._lead.acquire(blocking=False):
                try:
                    self._receive()
                finally:
                    self._lead.release()
                if self._stopping:
                    return None
                continue
            else:
                self._idle += 1
                if self._relieved:
                    self._ring.wake()
                call = self._queue.get()
                self._idle -= 1
            if call is LEAD:
                continue
            if self._idle and self._uses_ring and call is not None:
                self._queue.put(LEAD)  # for a worker with nothing to do, while this one is busy
            return call

    def _wait_for(self, reply: queue.SimpleQueue[Any], timeout: float | None) -> Any:
        """Return the host's answer. Raises queue.Empty."""
        if not self._uses_ring:
            return reply.get(timeout=timeout)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not reply.qsize() and not self._input_ended:
            left = deadline - time.monotonic()
            if left <= 0:
                raise queue.Empty
            if self._lead.acquire(blocking=False):
                try:
                    self._receive(min(left, 1e6))
                finally:
                    self._lead.release()
            else:  # somebody reads, but may stop
                with contextlib.suppress(queue.Empty):
                    return reply.get(timeout=min(left, 0.02))
        return reply.get()

    def _take(self, line: bytes) -> Any:
        """Act on one message from the host; return the slot that it calls, if any."""
        try:
            message = _loads(line)
            kind = message.get("type")
            if kind == "guest_call" or not kind:
                call = Call(message)
                self._calls[call.key] = call
                self._queue.put(call)
                return call.slot
            if kind == "host_response":
                reply, _ = self._replies.get(str(message.get("id")), (None, None))
                if reply is not None:
                    reply.put(message)
            elif kind == "forget_buffers":
                for id in message["buffers"]:
                    self._ring.forget(id)
            elif kind == "cancel":
                given_up = self._calls.pop(_dumps(message.get("id")), None)
                if given_up is not None:
                    self._cancel(given_up)
        except (AttributeError, ValueError, OverflowError, RecursionError):
            _report(f"ignored a line that is no message: {line[:80]!r}")
        return None

    def _cancel(self, call: Call) -> None:
        # Before anything else: whoever begins to run it, or to wait for it, looks here afterwards.
        call.cancelled = True
        for reply, owner in list(self._replies.values()):
            if owner is call:
                reply.put(None)
        if call.task is not None:
            self._loop.call_soon_threadsafe(call.task.cancel)

    def _work(self) -> None:
        while (call := self._next_call()) is not None and not self._stopping:
            if not call.cancelled:
                self._run(call)
            if not self._greeted.is_set() and call.slot == "plugin_init":
                self._take_up_ring()
        self._queue.put(None)  # for the next one in the pool

    def _take_up_ring(self) -> None:
        """Go on in shared memory, if the host was told so just now."""
        if self._ring is not None and self._has_greeted:
            with self._lock:
                self._ring.use()
                self._uses_ring = True
        self._greeted.set()

    def _run(self, call: Call) -> None:
        slot = self._slots.get(str(call.slot))
        if slot is None:
            self._answer(call, error=f"unknown slot {call.slot!r}")
            return
        token = _current.set(call)
        try:
            parameters = call.parameters or {}
            if call.binary:
                parameters = self._with_views(parameters)
            data = slot(**parameters)
            if type(data) not in PLAIN:
                if isinstance(data, Generator):
                    data = self._stream(call, data)
                elif isinstance(data, (Coroutine, AsyncGenerator)):
                    self._start_task(self._run_task(call, data))
                    return
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer
            self._fail(call, error)
        else:
            self._answer(call, data)
        finally:
            _current.reset(token)

    def _stream(self, call: Call, generator: Generator[Any, None, Any]) -> Any:
        with contextlib.closing(generator):
            while True:
                try:
                    chunk = next(generator)
                except StopIteration as stop:
                    return stop.value
                self._send_chunk(call, chunk)

    def _start_task(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        self._asyncio = importlib.import_module("asyncio")
        with self._lock:
            if self._loop is None:
                self._loop = self._asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True).start()
        future: Future[Any] = self._asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    async def _run_task(self, call: Call, slot: Any) -> None:
        call.task = self._asyncio.current_task()
        if call.cancelled:
            call.task.cancel()
        try:
            data = await (slot if isinstance(slot, Coroutine) else self._stream_async(call, slot))
        except BaseException as error:  # noqa: BLE001 - as above
            self._fail(call, error)
        else:
            self._answer(call, data)

    async def _stream_async(self, call: Call, generator: AsyncGenerator[Any, None]) -> None:
        async with contextlib.aclosing(generator):
            async for chunk in generator:
                self._send_chunk(call, chunk)

    def _answer(self, call: Call, data: Any = None, error: str | None = None) -> None:
        """Send the final answer: a failure where there is an error."""
        self._calls.pop(call.key, None)
        sent: dict[int, Any] = {}
        try:
            payload = self._encode(data, sent)
        except Exception as problem:  # noqa: BLE001 - an object may fail in any way of its own
            payload = b"null"
            error = error or f"the answer cannot be sent as JSON: {problem!r}"
        head = call.message(b"guest_response")
        if error is None:
            tail = b',"binary":true' if sent else b""
            self._send(b'%b"success":true,"data":%b,"error":null%b}\n' % (head, payload, tail))
        else:
            reason = _dumps(error)
            self._send(b'%b"success":false,"data":%b,"error":%b}\n' % (head, payload, reason))

    def _encode(self, data: Any, sent: dict[int, Any]) -> bytes:
        """Encode an answer; note in `sent` what stands for bytes in it."""
        if type(data) in SCALARS:
            return _dumps(data)

        def stand_in(value: Any) -> Any:
            dtype = getattr(value, "dtype", None)
            if not isinstance(value, (bytes, bytearray, memoryview)) and (
                dtype is None or not getattr(value, "ndim", 0) or dtype.str[1:] not in FORMATS
            ):
                return _plain(value)
            if id(value) in sent:
                return sent[id(value)]
            view = memoryview(value)
            if not view.c_contiguous:
                view = memoryview(view.tobytes())
            flat = view.cast("B") if view.nbytes else memoryview(b"")
            place = self._ring.put(flat) if self._uses_ring and self._ring.has_arena else None
            found: dict[str, Any] = {"$bytes": place}
            if place is None:
                found["$bytes"] = binascii.b2a_base64(flat, newline=False).decode()
            if dtype is not None:
                found |= {"dtype": dtype.str, "shape": list(value.shape)}
            elif view.format != "B" or view.ndim != 1:
                found |= {"dtype": NAMES[view.format], "shape": list(view.shape or ())}
            sent[id(value)] = found
            return found

        return _dumps(data, stand_in)

    def _with_views(self, value: Any) -> Any:
        """Return parameters with memoryviews where the host has sent bytes."""
        if isinstance(value, list):
            return [self._with_views(member) for member in value]
        if not isinstance(value, dict):
            return value
        place = value.get("$bytes")
        if place is None:
            return {key: self._with_views(member) for key, member in value.items()}
        if isinstance(place, str):
            view = memoryview(bytearray(binascii.a2b_base64(place)))
        else:
            view = self._ring.bytes_at(*place)
        dtype, shape = value.get("dtype"), value.get("shape")
        if dtype is None:
            return view
        letter = FORMATS.get(str(dtype)[1:])
        if letter is None or dtype[0] == (">" if sys.byteorder == "little" else "<"):
            raise SlotError(f"elements of the type {dtype} are not understood here")
        if shape is None or len(shape) == 1 or 0 in shape:
            return view.cast(letter)
        return view.cast(letter, shape)

    def _fail(self, call: Call, error: BaseException) -> None:
        """Answer with what a slot raised, or end the process if that was meant to."""
        if isinstance(error, SlotError):
            self._answer(call, error.data, str(error))
        elif isinstance(error, (SystemExit, KeyboardInterrupt)):
            self._fatal = error
            self.stop()
        elif isinstance(error, (Cancelled, getattr(self._asyncio, "CancelledError", Cancelled))):
            self._answer(call, error="cancelled")
        else:
            _report(f"error: slot {call.slot!r} failed", error)
            self._answer(call, error=f"{type(error).__name__}: {error}")

    def _send_chunk(self, call: Call, chunk: Any) -> None:
        call.check()
        sent: dict[int, Any] = {}
        payload = self._encode(chunk, sent)
        tail = b',"binary":true' if sent else b""
        self._send(b'%b"data":%b%b}\n' % (call.message(b"guest_chunk"), payload, tail))

    def send_host_call(self, function: str, parameters: Any, id: str = "") -> bool:
        """Send a call to the host; return whether it is there."""
        id = id or f"guest-{next(self._numbers)}"
        message = {"type": "host_call", "id": id, "function": function, "parameters": parameters}
        call = _current.get(None)
        if call is not None and call.id is not None:
            message["call_id"] = call.id  # or the host would not know whose scope is meant
        self._send(_dumps(message) + b"\n")
        return not self._output_ended

    def call_host(self, function: str, parameters: Mapping[str, Any], timeout: float | None) -> Any:
        """Call a function of the host, as `Host.call` says."""
        call = _current.get(None)
        if timeout is None and call is not None and call.deadline is not None:
            timeout = max(0.0, call.deadline - time.monotonic())
        id = f"guest-{next(self._numbers)}"
        reply: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._replies[id] = (reply, call)
        try:
            if call is not None:
                call.check()
            sent = not self._input_ended and self.send_host_call(function, parameters, id)
            message = self._wait_for(reply, timeout) if sent else {"error": HUNG_UP}
        except queue.Empty:
            raise HostError(f"{function}: no answer within {timeout:g} s") from None
        finally:
            del self._replies[id]
        if message is None:
            raise Cancelled
        if message.get("success") is not True:
            raise HostError(str(message.get("error") or f"{function}: refused without a reason"))
        return message.get("data")

    def _send(self, line: bytes) -> None:
        with self._lock:
            self._unsent.append(line)
            if len(self._unsent) > 1:
                return  # to the write below that was interrupted, where this line has its turn
            try:
                while self._unsent:
                    rest = memoryview(self._unsent[0])
                    if self._uses_ring:
                        self._ring.send(rest[:-1])
                        rest = rest[:0]
                    while rest:
                        rest = rest[os.write(self._output, rest) :]
                    self._unsent.popleft()
            except OSError:
                # Nobody reads any more, so that no call is of use to anybody.
                self._output_ended = True
                self._unsent.clear()
                for call in list(self._calls.values()):
                    self._cancel(call)
                self.stop()


def _take_descriptors() -> tuple[int, int]:
    """Move the protocol from descriptors 0 and 1 to new ones that no other program inherits."""
    protocol = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    if hasattr(sys.stdout, "reconfigure"):
        # As stderr has it, so that the lines of both stay in order and none is an error.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    return protocol


def _open_ring(input: int, output: int) -> Any:
    """Return the plugin's end of the memory that the host shares with it, or None."""
    if "ZENO_SHM" in os.environ:
        with contextlib.suppress(ImportError, OSError):  # a copy of this file may be on its own
            return importlib.import_module("zeno_fast._guest_ring").GuestRing(input, output)
    return None


def _describe(function: Slot) -> tuple[dict[str, Any], dict[str, None]]:
    """Return what defines a slot, and the parameters that are None where a call lacks them."""
    text = inspect.getdoc(function) or ""
    arguments = text.partition("\nArgs:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^ {4}(\w+)[^:\n]*:(.+(?:\n {5,}.+)*)", arguments, re.MULTILINE)
    described = {name: " ".join(words.split()) for name, words in found}
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - an annotation of what only type checkers import
        hints = {}
    inputs: dict[str, dict[str, Any]] = {}
    absent: dict[str, None] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise TypeError(f"{function.__name__}: {name} cannot be given by name")
        kind, optional = _input_type(hints.get(name))
        default = parameter.default
        inputs[name] = {"type": kind, "required": default is parameter.empty and not optional}
        if default is parameter.empty and optional:
            absent[name] = None
        elif type(default) in PLAIN:
            inputs[name]["default"] = default
        if name in described:
            inputs[name]["description"] = described[name]
    return {"description": " ".join(text.partition("\n\n")[0].split()), "inputs": inputs}, absent


def _input_type(annotation: Any) -> tuple[str, bool]:
    """Return how a slot definition names a type, and whether None is one of its values."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        kinds = {_input_type(each)[0] for each in arguments if each is not type(None)}
        kind = kinds.pop() if len(kinds) == 1 else "float" if kinds == {"int", "float"} else "any"
        return kind, type(None) in arguments
    kind = origin or annotation
    for base, name in INPUT_TYPES:
        if isinstance(kind, type) and issubclass(kind, base):
            return name, False
    return "any", False


def _dumps(value: Any, stand_in: Callable[[Any], Any] | None = None) -> bytes:
    """Encode JSON. Raises TypeError or ValueError, or what an object's own code raises."""
    if _orjson is not None:
        with contextlib.suppress(TypeError):  # keys that are no strings, lone surrogates
            if stand_in is not None:  # also for arrays
                return bytes(_orjson.dumps(value, stand_in))
            return bytes(_orjson.dumps(value, _plain, _orjson.OPT_SERIALIZE_NUMPY))
    encoder = _encoder if stand_in is None else _make_encoder(stand_in)
    return encoder.encode(value).encode("utf-8", "replace")


def _make_encoder(default: Callable[[Any], Any]) -> json.JSONEncoder:
    return json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=default)


def _plain(value: Any) -> Any:
    """Return what stands for an object in JSON, much the same with orjson and without."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (Set, tuple)):
        return list(value)
    if isinstance(value, enum.Enum):
        return value.value
    for method in ("isoformat", "tolist"):  # of dates and times, and of NumPy
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"{type(value).__name__} is no JSON")


# As soon as a sidecar imports this, so that nothing can print into the protocol before `run`.
_protocol = _take_descriptors() if os.environ.get("ZENO_SIDECAR") == "true" else None

_loads: Callable[[bytes], Any] = json.loads if _orjson is None else _orjson.loads
_encoder = _make_encoder(_plain)


def _member(data: Any, name: str) -> Any:
    """Return a member of the host's answer, or the answer itself where it is bare."""
    return data[name] if isinstance(data, dict) and name in data else data


def _report(text: str, error: BaseException | None = None) -> None:
    """Write to stderr, with the traceback of an error from the plugin's own code on."""
    if error is not None:
        text += "\n" + "".join(traceback.format_exception(error)).rstrip()
    with contextlib.suppress(AttributeError, OSError, ValueError):  # none, or closed at its end
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
