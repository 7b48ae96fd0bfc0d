"""The one thread of a manager that watches what no caller waits for.

It drains stderr, sees processes end, reads for futures that nobody waits on, and runs timers. It
stands between no call and its answer: where a thread or an event loop waits, they read themselves.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger("zeno_fast.monitor")

TICK = 1.0  # seconds
LONGEST_WAIT = 3600.0  # seconds; a selector cannot express some of the deadlines that callers can

Job = Callable[[], None]


class Monitor:
    """A thread with a selector; started by its first use, ended by `close`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._jobs: deque[Job] = deque()
        self._timers: list[tuple[float, int, Job]] = []
        self._numbers = itertools.count()
        self._ticks: tuple[Job, ...] = ()
        self._ticking = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._woken = False
        self._closing = False
        self._owner_pid = os.getpid()

    def run_soon(self, job: Job) -> None:
        """Run a job in the monitor's thread; safe from any thread, never blocks."""
        self._jobs.append(job)
        if not self._woken:
            self._woken = True
            self._wake()
        if self._thread is None:
            self._start()

    def run_and_wait(self, job: Job, timeout: float = 5.0) -> None:
        """Run a job in the monitor's thread and wait until it has run."""
        if threading.current_thread() is self._thread:
            job()
            return
        done = threading.Event()

        def run() -> None:
            try:
                job()
            finally:
                done.set()

        self.run_soon(run)
        thread = self._thread
        deadline = time.monotonic() + timeout
        while not done.wait(0.1):
            # After a fork, and while the interpreter ends, there is no such thread any more.
            if thread is None or not thread.is_alive() or time.monotonic() > deadline:
                return

    def run_at(self, when: float, job: Job) -> None:
        """Run a job at a monotonic time in seconds; only the monitor's thread may call this."""
        heapq.heappush(self._timers, (when, next(self._numbers), job))

    def run_in(self, delay: float, job: Job) -> None:
        """Run a job in the monitor's thread after some seconds; safe from any thread."""
        when = time.monotonic() + delay
        self.run_soon(lambda: self.run_at(when, job))

    def add_tick(self, job: Job) -> None:
        """Run a job once a second, or less often where there is much to do, until `remove_tick`."""
        with self._lock:
            first = not self._ticking
            self._ticking = True
            self._ticks = (*self._ticks, job)
        if first:
            self.run_in(TICK, self._tick)

    def remove_tick(self, job: Job) -> None:
        """Run a job no more that `add_tick` was given, or was not."""
        with self._lock:
            self._ticks = tuple(one for one in self._ticks if one != job)

    def _tick(self) -> None:
        for job in self._ticks:
            self._run_job(job)
        with self._lock:
            self._ticking = bool(self._ticks)
            if self._ticking:
                self.run_at(time.monotonic() + TICK, self._tick)

    def watch(self, fd: int, job: Job, *, write: bool = False) -> None:
        """Run a job whenever `fd` is ready; only the monitor's thread may call this."""
        self._selector.register(fd, selectors.EVENT_WRITE if write else selectors.EVENT_READ, job)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`, watched or not; only the monitor's thread may call this."""
        if fd >= 0 and fd in self._selector.get_map():
            self._selector.unregister(fd)

    def close(self) -> None:
        """End the thread and wait for it. Idempotent."""
        if self._closing:
            return
        self._closing = True
        thread = self._thread
        if thread is not None and os.getpid() == self._owner_pid:
            self._wake()
            if thread is not threading.current_thread():
                thread.join(5.0)
        with self._lock:
            self._selector.close()
            os.close(self._wake_in)
            os.close(self._wake_out)
            self._wake_in = self._wake_out = -1

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._closing:
                return
            self._selector.register(self._wake_out, selectors.EVENT_READ, None)
            thread = threading.Thread(target=self._run, name="zeno_fast monitor", daemon=True)
            thread.start()
            self._thread = thread

    def _wake(self) -> None:
        with self._lock:
            if self._wake_in < 0:
                return
            # Full, it holds wakes that were not seen yet: one more would tell nothing.
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_in, b"\0")

    def _run(self) -> None:
        while not self._closing:
            timeout = None
            if self._timers:
                timeout = min(max(0.0, self._timers[0][0] - time.monotonic()), LONGEST_WAIT)
            events = self._selector.select(timeout)
            for key, _ in events:
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_out, 4096)
                else:
                    self._run_job(key.data)
            self._woken = False  # before the jobs are taken: one added from now on wakes anew
            while self._jobs:
                self._run_job(self._jobs.popleft())
            while self._timers and self._timers[0][0] <= time.monotonic():
                self._run_job(heapq.heappop(self._timers)[2])

    def _run_job(self, job: Job) -> None:
        try:
            job()
        except Exception:  # one plugin's trouble must not end the watch over the others
            logger.exception("a job of the monitor failed")
