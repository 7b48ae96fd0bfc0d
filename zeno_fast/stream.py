"""What `PluginManager.stream` returns: the partial results of one call, then its final one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any

from zeno_fast.errors import UsageError


class Stream(ABC, Iterator[Any], AsyncIterator[Any]):
    """A plain and an async iterator over what a slot sends before its final answer.

    The first `next` sends the request, which its timeout counts from. The iteration ends with the
    final answer, or raises what a call would have raised. Closing it earlier, by `close`, by the
    end of a `with`, or by dropping it, gives the call up. One thread or task at a time uses it.

    Attributes:
        slot: The slot that is called.
    """

    def __init__(self, slot: str) -> None:
        self.slot = slot
        self._done = False
        self._has_result = False
        self._result: Any = None

    @property
    def result(self) -> Any:
        """The data of the final answer. Raises UsageError before the iteration has come to it."""
        if not self._has_result:
            raise UsageError(
                f"the stream of slot {self.slot!r} has no result "
                + ("as it was closed or failed" if self._done else "before it was read to its end"),
                slot=self.slot,
            )
        return self._result

    def __iter__(self) -> Stream:
        return self

    def __aiter__(self) -> Stream:
        return self

    @abstractmethod
    def __next__(self) -> Any: ...

    @abstractmethod
    async def __anext__(self) -> Any: ...

    @abstractmethod
    def close(self) -> None:
        """Give the call up if it has not ended. Idempotent, from any thread."""

    async def aclose(self) -> None:
        """Do what `close` does, for `contextlib.aclosing`."""
        self.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _end(self, data: Any) -> None:
        """Take the final answer."""
        self._done = self._has_result = True
        self._result = data


class WholeStream(Stream):
    """The stream of a guest that has only its final answer to give.

    Args:
        call: Makes the call in this thread and returns its data.
        call_async: Makes it from an event loop.
    """

    def __init__(
        self,
        slot: str,
        call: Callable[[], Any],
        call_async: Callable[[], Awaitable[Any]],
    ) -> None:
        super().__init__(slot)
        self._call = call
        self._call_async = call_async

    def __next__(self) -> Any:
        if not self._done:
            self._done = True
            self._end(self._call())
        raise StopIteration

    async def __anext__(self) -> Any:
        if not self._done:
            self._done = True
            self._end(await self._call_async())
        raise StopAsyncIteration

    def close(self) -> None:
        """Not begin the call."""
        self._done = True
