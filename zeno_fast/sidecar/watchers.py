"""Who reads a channel while no thread waits on it: an event loop, or the manager's monitor."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from zeno_fast._call import Call
from zeno_fast._channel import Channel
from zeno_fast._leadership import PUMP_AGAIN, PUMP_ENDED, PUMP_STOOD_DOWN, PUMP_WANTS_WRITE
from zeno_fast.sidecar.monitor import Monitor

if TYPE_CHECKING:
    from zeno_fast.sidecar.stream import ChunkBuffer

IDLE_AFTER = 0.05  # seconds without a call after which the monitor watches a channel's stdout
WAITS = 8  # calls for whose answer one turn of an event loop waits a moment
COMPACT_ABOVE = 1024  # deadlines kept before those of finished calls are thrown out


POSTPONED = 0.05  # seconds after which a deadline is looked at again


def expire_in_loop(channel: Channel, call: Call) -> asyncio.TimerHandle:
    """Expire a call at its deadline, by a timer of the running loop; return the timer."""
    loop = asyncio.get_running_loop()

    def expire() -> None:
        if not channel.expire(call):
            loop.call_later(POSTPONED, expire)

    return loop.call_later((call.deadline - time.monotonic_ns()) / 1e9, expire)


class LoopWatcher:
    """Reads one channel for the calls of one event loop; lives in the loop's thread.

    It watches duplicates of the channel's descriptors, which are its own to close, so that the
    channel may close at any time and from any thread.
    """

    is_loop = True

    def __init__(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        self._read_fd = -1
        self._write_fd = -1  # only while output waits, or the guest would not see its input end
        self._channel = channel
        self._loop = loop
        self._armed = False
        self._arming = False
        self._settling = False
        self._settled: deque[Call] = deque()
        self._waiting = 0
        self._waits = WAITS
        self._read_fd = os.dup(channel.read_fd)
        channel.add_watcher(self)

    def arm(self) -> None:
        """Watch from now on; called in the loop's thread after a call was started."""
        if not self._armed and self._read_fd >= 0:
            self._armed = True
            self._loop.add_reader(self._read_fd, self._ready)
            if self._channel.lost:
                self._ready()
        if self._channel.turn_is_due:
            self._ready()
        self._watch_writing(self._channel.wants_write)

    def arm_soon(self) -> None:
        """Watch if any call of this loop is pending; called from any thread."""
        if self._waiting and not self._arming and (not self._armed or self._turn_is_due()):
            self._arming = True
            self._in_loop(self._arm_now)

    def _turn_is_due(self) -> bool:
        """Tell whether the output is in a state that no watched event will show."""
        return self._channel.turn_is_due or (self._channel.wants_write and self._write_fd < 0)

    def stand_down(self) -> None:
        """Go on: this loop is told when it has to read for calls of its own."""

    def may_wait(self) -> bool:
        """Tell whether the loop may be kept for a moment by a call that is answered soon.

        Now and then it may not, so that a task whose calls are all answered at once still lets
        the loop's other tasks have their turn.
        """
        waits = self._waits
        if waits == WAITS:
            self._loop.call_soon(self._allow_waits)
        elif not waits:
            return False
        self._waits = waits - 1
        return True

    def _allow_waits(self) -> None:
        self._waits = WAITS

    def is_running(self) -> bool:
        """Tell whether the calling code runs in the loop."""
        return asyncio._get_running_loop() is self._loop

    def make_future(self) -> asyncio.Future[object]:
        """Return a future of the loop."""
        return self._loop.create_future()

    def expect(self, count: int) -> None:
        """Count a call that was started (1) or whose caller has gone (-1)."""
        self._waiting += count

    def deliver(self, call: Call) -> None:
        """Settle the future of a finished call, in the loop's thread."""
        if self.is_running():
            call.settle()
            return
        self._settled.append(call)
        if not self._settling:
            self._settling = True
            self._in_loop(self._settle)

    def deliver_chunk(self, sink: ChunkBuffer) -> None:
        """Let a stream's task look at what came for it; called from any thread."""
        if self.is_running():
            sink.wake()
        else:
            self._in_loop(sink.wake)

    def release(self, timer: asyncio.TimerHandle | None) -> None:
        """Forget a call that `expect` counted, and its timer; called from any thread."""
        if self.is_running():
            self._release_now(timer)
        else:
            self._in_loop(lambda: self._release_now(timer))

    def _release_now(self, timer: asyncio.TimerHandle | None) -> None:
        self._waiting -= 1
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Stop watching and close the descriptors; called from any thread."""
        self._channel.remove_watcher(self)
        if self.is_running():
            self._close_now()
        else:
            self._in_loop(self._close_now)

    def __del__(self) -> None:
        # A loop that was closed before it ran `_close_now` has forgotten this watcher by then.
        self._close_descriptors()

    def _in_loop(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            # The loop is closed: nobody awaits its futures, and its selector has let go.
            self._channel.remove_watcher(self)
            self._close_descriptors()

    def _arm_now(self) -> None:
        self._arming = False
        self.arm()
        self._ready()

    def _settle(self) -> None:
        self._settling = False
        while self._settled:
            self._settled.popleft().settle()

    def _ready(self) -> None:
        flags = self._channel.pump()
        if flags & (PUMP_ENDED | PUMP_STOOD_DOWN):
            self._disarm()
        elif flags & PUMP_AGAIN:
            self._loop.call_soon(self._ready)
        else:
            self._watch_writing(bool(flags & PUMP_WANTS_WRITE))

    def _watch_writing(self, wanted: bool) -> None:
        if wanted and self._write_fd < 0 <= self._channel.write_fd:
            self._write_fd = os.dup(self._channel.write_fd)
            self._loop.add_writer(self._write_fd, self._ready)
        elif not wanted and self._write_fd >= 0:
            self._loop.remove_writer(self._write_fd)
            os.close(self._write_fd)
            self._write_fd = -1

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            self._loop.remove_reader(self._read_fd)
        self._watch_writing(False)

    def _close_now(self) -> None:
        self._disarm()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        for fd in (self._read_fd, self._write_fd):
            if fd >= 0:
                os.close(fd)
        self._read_fd = self._write_fd = -1


class MonitorWatcher:
    """Reads one channel in the monitor's thread: for futures, for noise, and for deadlines.

    While threads call, it stands down; once no call has come for a moment it watches again, so that
    a guest that prints between calls never fills its pipe.
    """

    is_loop = False

    def __init__(
        self, channel: Channel, monitor: Monitor, resubmit: Callable[[Call], None]
    ) -> None:
        self._channel = channel
        self._monitor = monitor
        self._resubmit = resubmit
        self._armed = False
        self._arming = False
        self._write_fd = -1  # watched while output waits; borrowed from the channel
        self._closed = False
        self._seen_calls = 0
        self._deadlines: list[tuple[int, int, Call]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        channel.add_watcher(self)
        self.arm_soon()

    def track(self, call: Call) -> None:
        """Expire a started call at its deadline."""
        with self._lock:
            if len(self._deadlines) > COMPACT_ABOVE and len(self._deadlines) > 4 * (
                self._channel.in_flight + self._channel.queued
            ):
                self._deadlines = [entry for entry in self._deadlines if not entry[2].finished]
                heapq.heapify(self._deadlines)
            heapq.heappush(self._deadlines, (call.deadline, next(self._numbers), call))
            first = self._deadlines[0][2] is call
        if first:
            self._monitor.run_soon(self._schedule)

    def arm_soon(self) -> None:
        """Watch from now on; called from any thread."""
        if not self._arming and (not self._armed or self._turn_is_due()):
            self._arming = True
            self._monitor.run_soon(self._arm_now)

    def _turn_is_due(self) -> bool:
        """Tell whether the output is in a state that no watched event will show."""
        return self._channel.turn_is_due or (self._channel.wants_write and self._write_fd < 0)

    def deliver(self, call: Call) -> None:
        """Settle the future of a finished call; one that another process may have is sent again."""
        if call.repeatable:
            self._resubmit(call)
        else:
            call.settle()

    def stand_down(self) -> None:
        """Watch no more until no call has come for a moment: a thread looks for itself."""
        if self._armed:
            self._monitor.run_soon(self._stand_down_now)

    def stop_writing(self) -> None:
        """Let go of the channel's write end, which is about to be closed."""
        if self._write_fd >= 0:
            self._monitor.run_and_wait(self._unwatch_write)

    def close(self) -> None:
        """Stop watching; the channel's descriptors may be closed afterwards."""
        self._channel.remove_watcher(self)
        self._closed = True
        with self._lock:
            self._deadlines.clear()  # they keep the calls, and those their loops' descriptors
        self._monitor.run_and_wait(self._disarm)

    def _arm_now(self) -> None:
        self._arming = False
        if self._closed or self._channel.read_fd < 0:
            return
        if not self._armed:
            self._armed = True
            self._monitor.watch(self._channel.read_fd, self._ready)
        self._ready()

    def _ready(self) -> None:
        if self._closed:
            return
        flags = self._channel.pump()
        if flags & PUMP_ENDED:
            self._disarm()
        elif flags & PUMP_STOOD_DOWN:
            self._disarm()
            self._arm_when_idle()
        elif flags & PUMP_AGAIN:
            self._monitor.run_soon(self._ready)
        elif flags & PUMP_WANTS_WRITE:
            if self._write_fd < 0 <= self._channel.write_fd:
                self._write_fd = self._channel.write_fd
                self._monitor.watch(self._write_fd, self._ready, write=True)
        else:
            self._unwatch_write()

    def _stand_down_now(self) -> None:
        if self._armed:
            self._disarm()
            if self._channel.resting:  # for a call that came in the meantime
                self.arm_soon()
            else:
                self._arm_when_idle()

    def _arm_when_idle(self) -> None:
        self._seen_calls = self._channel.calls
        self._monitor.run_at(time.monotonic() + IDLE_AFTER, self._arm_if_idle)

    def _arm_if_idle(self) -> None:
        if self._closed or self._armed:
            return
        if self._channel.led_by_thread or self._channel.calls != self._seen_calls:
            self._arm_when_idle()
        else:
            self._arm_now()

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            self._monitor.unwatch(self._channel.read_fd)
        self._unwatch_write()

    def _unwatch_write(self) -> None:
        if self._write_fd >= 0:
            self._monitor.unwatch(self._write_fd)
            self._write_fd = -1

    def _schedule(self) -> None:
        with self._lock:
            if self._deadlines and not self._closed:
                self._monitor.run_at(self._deadlines[0][0] / 1e9, self._expire_due)

    def _expire_due(self) -> None:
        now = time.monotonic_ns()
        due: list[Call] = []
        with self._lock:
            while self._deadlines and (
                self._deadlines[0][0] <= now or self._deadlines[0][2].finished
            ):
                due.append(heapq.heappop(self._deadlines)[2])
        for call in due:
            self._expire(call)
        self._schedule()

    def _expire(self, call: Call) -> None:
        if not self._channel.expire(call):
            self._monitor.run_at(time.monotonic() + POSTPONED, lambda: self._expire(call))
