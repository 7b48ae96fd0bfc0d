"""The future of a submitted slot call, which reads its own answer while it is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zeno_fast._call import Call
    from zeno_fast._channel import Channel

FOREVER_NS = -1


def _call_back(
    executor: Executor, fn: Callable[[Future[Any]], object], future: Future[Any]
) -> None:
    try:
        executor.submit(fn, future)
    except RuntimeError:  # the interpreter is shutting down
        fn(future)


class SlotFuture(Future[Any]):
    """A `concurrent.futures.Future` of a slot's data.

    Callbacks run in `executor`: whoever read the answer must not be kept by them.
    """

    def __init__(self, executor: Executor) -> None:
        super().__init__()
        self._executor = executor
        self._channel: Channel | None = None
        self._call: Call | None = None
        self._read = False  # by a thread, along with its waiting

    def attach(self, channel: Channel, call: Call) -> None:
        """Note where the answer will come from."""
        self._channel = channel
        self._call = call

    def result(self, timeout: float | None = None) -> Any:
        """Return the data, or raise what the call would have raised; see Future.result."""
        return super().result(self._read_along(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call would have raised, or None; see Future.exception."""
        return super().exception(self._read_along(timeout))

    def cancel(self) -> bool:
        """Give the call up; its answer will be dropped."""
        cancelled = super().cancel()
        if cancelled and self._channel is not None and self._call is not None:
            self._channel.abandon(self._call)  # which wakes a thread that waits for it, too
        return cancelled

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call `fn` with this future when it is done; see Future.add_done_callback."""
        if self.done():
            super().add_done_callback(fn)
        else:
            # What the future keeps must not keep the future, or bytes in it would wait for the
            # garbage collector.
            super().add_done_callback(partial(_call_back, self._executor, fn))

    def _read_along(self, timeout: float | None) -> float | None:
        """Read the channel until the answer is there or time is up; return the time left."""
        channel, call = self._channel, self._call
        if channel is None or call is None or self._read or self.done():
            return timeout
        now = time.monotonic()
        until = FOREVER_NS if timeout is None else int((now + timeout) * 1e9)
        # Only one thread reads along; a second one waits as on any future.
        self._read = True
        try:
            channel.join(call, until)
        finally:
            self._read = False
        return None if timeout is None else max(0.0, now + timeout - time.monotonic())
