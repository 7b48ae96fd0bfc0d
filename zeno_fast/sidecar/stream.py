"""The stream of a sidecar's slot: chunks as they come, over the channel that all calls share."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from zeno_fast._call import Call, NotSent
from zeno_fast._envelope import parameters_of
from zeno_fast.driver import Scope, Superseded
from zeno_fast.errors import SlotError, UsageError
from zeno_fast.sidecar.watchers import LoopWatcher, expire_in_loop
from zeno_fast.stream import Stream

if TYPE_CHECKING:
    from zeno_fast._slot import DirectSlot
    from zeno_fast.sidecar.driver import SidecarDriver
    from zeno_fast.sidecar.worker import Worker


class ChunkBuffer:
    """The chunks of one call that wait to be read; does not keep the stream that reads them.

    Args:
        limit: Bytes of chunks that may wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: deque[tuple[Any, int]] = deque()
        self._nbytes = 0
        self.waiter: asyncio.Future[Any] | None = None

    def __len__(self) -> int:
        return len(self._chunks)

    def feed(self, data: Any, nbytes: int) -> bool:
        """Take a chunk, in the middle of reading; return whether there was room for it."""
        if self._nbytes + nbytes > self._limit:
            return False
        self._nbytes += nbytes
        self._chunks.append((data, nbytes))
        return True

    def take(self) -> Any:
        """Return the next chunk."""
        data, nbytes = self._chunks.popleft()
        self._nbytes -= nbytes
        return data

    def clear(self) -> None:
        """Drop all chunks."""
        self._chunks.clear()

    def wake(self) -> None:
        """Let the task that waits look again; in the event loop's thread."""
        waiter = self.waiter
        if waiter is not None and not (waiter.done() or waiter.get_loop().is_closed()):
            waiter.set_result(None)


class SidecarStream(Stream):
    """Reads the chunks of one call; see `Stream`.

    Args:
        blocks: Of shared memory, to which the payload refers.
        timeout_ns: Of the whole call.
        deadline_ns: When it expires at the latest, however late it begins.
        limit: Bytes of chunks that may wait to be read.
    """

    def __init__(
        self,
        driver: SidecarDriver,
        slot: DirectSlot,
        payload: bytes,
        blocks: list[Any] | None,
        timeout_ns: int,
        deadline_ns: int | None,
        scope: Scope | None,
        limit: int,
    ) -> None:
        super().__init__(slot.template.slot)
        self._driver = driver
        self._sender = slot
        self._template = slot.template
        self._payload = payload
        self._blocks = blocks
        self._timeout_ns = timeout_ns
        self._latest_ns = deadline_ns
        self._deadline_ns = 0
        self._scope = scope
        self._chunks = ChunkBuffer(limit)
        self._worker: Worker | None = None
        self._call: Call | None = None
        self._watcher: LoopWatcher | None = None
        self._timer: asyncio.TimerHandle | None = None

    # -- plain ---------------------------------------------------------------------------------

    def __next__(self) -> Any:
        try:
            while not self._chunks and not self._done:
                self._advance()
        except BaseException:
            self.close()
            raise
        if not self._chunks:
            raise StopIteration
        return self._take_chunk()

    def _advance(self) -> None:
        """Begin the call, wait for more of it, or take its end."""
        call, worker = self._call, self._worker
        if call is None or worker is None:
            self._begin()
        elif self._watcher is not None:
            raise UsageError(f"the stream of slot {self.slot!r} is read by an event loop")
        elif call.finished:
            self._take_end(call)
        else:
            worker.channel.wait_ready(call)

    def _begin(self) -> None:
        deadline_ns = self._deadline()
        while self._call is None:
            try:
                worker = self._driver.worker(deadline_ns)
            except Superseded as moved:
                slot = self._driver.slot_of(moved, self.slot)
                self._end(slot.call(*self._arguments(deadline_ns)))
                return
            try:
                self._call = worker.channel.start_stream(
                    self._template, self._payload, deadline_ns, self._scope, self._chunks, None
                )
            except NotSent:
                continue
            self._worker = worker
            worker.track(self._call)

    # -- async ---------------------------------------------------------------------------------

    async def __anext__(self) -> Any:
        try:
            while not self._chunks and not self._done:
                await self._advance_async()
        except BaseException:
            self.close()
            raise
        if not self._chunks:
            raise StopAsyncIteration
        return self._take_chunk()

    async def _advance_async(self) -> None:
        call = self._call
        if call is None:
            await self._begin_async()
        elif self._watcher is None:
            raise UsageError(f"the stream of slot {self.slot!r} is read by a thread")
        elif call.finished:
            self._take_end(call)
        elif not self._watcher.is_running():
            raise UsageError(f"the stream of slot {self.slot!r} is read by another event loop")
        elif self._chunks.waiter is not None and not self._chunks.waiter.done():
            raise UsageError(f"the stream of slot {self.slot!r} is read by another task")
        else:
            self._chunks.waiter = self._watcher.make_future()
            await self._chunks.waiter

    async def _begin_async(self) -> None:
        deadline_ns = self._deadline()
        while self._call is None:
            try:
                worker = await self._driver.worker_async(deadline_ns)
            except Superseded as moved:
                slot = self._driver.slot_of(moved, self.slot)
                self._end(await slot.call_async(*self._arguments(deadline_ns)))
                return
            try:
                watcher = worker.loop_watcher()
                self._call = worker.channel.start_stream(
                    self._template, self._payload, deadline_ns, self._scope, self._chunks, watcher
                )
            except NotSent:
                continue
            self._worker = worker
            worker.track(self._call)
            self._watcher = watcher
            watcher.expect(1)
            watcher.arm()
            self._timer = expire_in_loop(worker.channel, self._call)

    # -- both ----------------------------------------------------------------------------------

    def _arguments(self, deadline_ns: int) -> tuple[Any, float, Scope | None]:
        """Return what the call is made with where a driver of another kind has to make it."""
        left = max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
        return parameters_of(self._payload, self._driver.way.arena), left, self._scope

    def _deadline(self) -> int:
        """Return the call's deadline, which the first use sets."""
        if not self._deadline_ns:
            self._deadline_ns = time.monotonic_ns() + self._timeout_ns
            if self._latest_ns is not None:
                self._deadline_ns = min(self._deadline_ns, self._latest_ns)
        return self._deadline_ns

    def _take_chunk(self) -> Any:
        chunk = self._chunks.take()
        if not self._chunks and self._call is not None:
            # Between the two nothing is lost: whoever waits looks at the chunks first.
            self._call.unready()
        return chunk

    def _take_end(self, call: Call) -> None:
        """Take the final answer or raise the error; what was not sent is begun anew."""
        try:
            data = call.take()
        except NotSent:
            self._let_go()
            return
        except SlotError:
            self._blocks = None
            self._driver.succeeded()
            raise
        self._blocks = None
        self._let_go()
        self._end(data)
        self._driver.succeeded()

    def close(self) -> None:
        """Give the call up if it has not ended."""
        self._done = True
        self._chunks.clear()
        if self._call is not None:  # the guest may go on for a while
            self._sender.hold_late(self._blocks)
        self._blocks = None
        self._let_go()

    def _let_go(self) -> None:
        call, worker, watcher, timer = self._call, self._worker, self._watcher, self._timer
        self._call = self._worker = self._watcher = self._timer = None
        if worker is None or call is None:
            return
        worker.channel.abandon(call)
        if watcher is not None:
            watcher.release(timer)
            watcher.deliver_chunk(self._chunks)  # a task may wait for more, which will not come
        self._driver.release(worker)

    def __del__(self) -> None:
        # In whatever thread and whatever moment it is: not in the middle of the channel's work.
        call = getattr(self, "_call", None)
        if call is not None and self._worker is not None:
            self._worker.let_go_later(call, self._watcher, self._timer, self._driver.release)
