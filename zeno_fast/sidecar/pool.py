"""Keeps as many processes of one plugin as its manifest and its calls ask for."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import Counter
from concurrent.futures import Executor, Future, wait
from typing import Any

from zeno_fast._shm import Buffer
from zeno_fast._slot import Route
from zeno_fast.errors import PluginCrashed, PluginUnavailable, ZenoError
from zeno_fast.events import EventHub
from zeno_fast.manifest import Manifest
from zeno_fast.processes import is_stopped, resident_nbytes
from zeno_fast.sidecar.breaker import HALF_OPEN, OPEN, Breaker
from zeno_fast.sidecar.factory import WorkerFactory
from zeno_fast.sidecar.monitor import Monitor
from zeno_fast.sidecar.worker import Worker

DRAIN_STEP = 0.01  # seconds between two looks at whether the last call of a process has ended
SHORTEST_DRAIN_STEP = 0.0005
HEALTHY_AFTER = 60.0  # seconds that a process has to run for earlier failures to be forgiven
JITTER = 0.1  # by this part of it at most a bound is lower than the manifest's

_Start = Future[Worker]


class WorkerPool:
    """The processes of one sidecar plugin: started, shared out, restarted, replaced, ended.

    Safe from any thread. A process takes calls from when it was greeted until it ends or is to be
    replaced; then it finishes those it has. A replacement that is not urgent takes its place first.

    Args:
        manifest: How many, and when they are to be replaced.
        factory: Starts and greets one.
        monitor: Runs what is due later.
        jobs: Runs what blocks: starts and stops.
        events: Is told of all that happens.

    Attributes:
        route: Where calls go without asking the pool.
        breaker: Says when a start is allowed.
    """

    def __init__(
        self,
        manifest: Manifest,
        factory: WorkerFactory,
        monitor: Monitor,
        jobs: Executor,
        events: EventHub,
    ) -> None:
        options = manifest.sidecar
        self._manifest = manifest
        self._plugin = manifest.name
        self._options = options
        self._factory = factory
        self._monitor = monitor
        self._jobs = jobs
        self._events = events
        least, self._most = options.workers
        # Where the manifest gives no range, what is idle for so long may all end.
        self._least = 0 if options.idle_ttl and least == self._most else least
        self._eager = options.auto_start and options.keep_alive
        self._lock = threading.RLock()
        self._workers: tuple[Worker, ...] = ()  # those that take calls; replaced, never changed
        self._starts: dict[_Start, bool] = {}  # those to come, and whether their job has begun
        self._greeted: set[Worker] = set()  # started, and not ready yet
        self._leaving: set[Worker] = set()
        self._replacing: set[Worker] = set()
        self._resting = False  # it ends without a call, and of its own will: the next one starts it
        self._owed = 0  # processes that ended by themselves and were not started again yet
        self._ending = False  # nothing is started any more
        self._closed = False  # and everything is being ended
        self._owner_pid = os.getpid()
        self.restarts = 0
        self.recycled: Counter[str] = Counter()
        self.breaker = Breaker(manifest.name, options.max_retries)
        self.route = Route()
        monitor.add_tick(self._look_after)

    # -- who takes a call ---------------------------------------------------------------------

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The processes that take calls at this moment; the same object until that changes."""
        workers = self._workers
        for worker in workers:
            if worker.channel.lost or worker.channel.spent:
                return tuple(one for one in workers if not (one.channel.lost or one.channel.spent))
        return workers

    def give(self, buffer: Buffer) -> bool:
        """Let the processes have a buffer; return whether all that take calls have it."""
        with self._lock:
            workers, coming = self._workers, tuple(self._greeted)
        for worker in coming:
            worker.give(buffer)  # one that is not greeted yet gets it then
        return all([worker.give(buffer) for worker in workers])

    @property
    def leaving(self) -> int:
        """Number of processes that finish their last calls or are being ended."""
        self._forget_gone()
        return len(self._leaving)

    def _forget_gone(self) -> None:
        with self._lock:
            self._leaving = {worker for worker in self._leaving if not worker.torn_down}

    def pick(self) -> Worker | None:
        """Return the least busy process, or None where none runs.

        Where all are busy and there may be more, another one is begun.
        """
        workers = self.workers
        if not workers:
            return None
        if len(workers) == 1 and self._most == 1:
            return workers[0]
        best = min(workers, key=lambda worker: worker.channel.pending)
        if best.channel.pending and self._may_grow():
            self._grow()
        return best

    def start(self) -> Future[Worker]:
        """Return the future of a process: one that runs, or one that is starting.

        Raises PluginUnavailable where none may be started.
        """
        with self._lock:
            worker = self.pick()
            if worker is not None:
                running: Future[Worker] = Future()
                running.set_result(worker)
                return running
            self._resting = False
            for start in self._starts:
                return start
            return self._begin()

    def release(self, worker: Worker) -> bool:
        """End a process after its last call; return whether it was one of these."""
        if worker not in self._workers:
            return worker in self._leaving
        if worker.channel.retire():
            self._take_out(worker)
            self._submit_stop(worker)
        return True

    def succeeded(self) -> None:
        """Forgive the failures before a call that was answered."""
        with self._lock:
            closed = self.breaker.succeeded()
        self._lead()
        if closed:
            self._emit("breaker_closed", "answers again; its earlier failures are forgiven")

    def reset(self) -> None:
        """Forgive all failures and start again what is missing."""
        self.succeeded()
        self._keep_least()

    # -- starting -----------------------------------------------------------------------------

    def _may_grow(self) -> bool:
        return not self._ending and len(self._workers) + len(self._starts) < self._most

    def _grow(self) -> None:
        with self._lock:
            if self._may_grow() and self.breaker.state != OPEN:
                self._begin()

    def _keep_least(self) -> None:
        """Begin as many starts as are missing."""
        with self._lock:
            if not self._eager or self._resting or not self._factory.described:
                return
            while (
                not self._ending
                and len(self._workers) + len(self._starts) < self._least
                and self.breaker.state != OPEN
                and not (self._starts and self.breaker.state == HALF_OPEN)
            ):
                self._begin()

    def _begin(self) -> _Start:
        """Begin a start, after the delay that earlier failures demand; called with the lock."""
        if self._ending:
            raise self._is_closed()
        delay = self.breaker.delay()
        start: _Start = Future()
        self._starts[start] = False
        if delay > 0:
            self._monitor.run_in(delay, lambda: self._submit_start(start))
        else:
            self._submit_start(start)
        self._lead()
        return start

    def _submit_start(self, start: _Start) -> None:
        try:
            self._jobs.submit(self._start, start)
        except RuntimeError:  # the interpreter is shutting down
            self._fail(start, self._is_closed())

    def _start(self, start: _Start) -> None:
        with self._lock:
            if start not in self._starts:
                return  # the pool was closed meanwhile
            self._starts[start] = True
        try:
            worker = self._make()
        except ZenoError as error:
            self._failed(str(error))
            self._fail(start, error)
            self._keep_least()
            return
        except BaseException as error:
            self._fail(start, error)
            raise
        with self._lock:
            self._starts.pop(start, None)
            self._greeted.discard(worker)
            late = self._ending
            if not late:
                self._workers += (worker,)
                restarted = self._owed > 0
                self._owed -= restarted
                self.restarts += restarted
        if late:
            worker.stop()
            start.set_exception(self._is_closed())
            return
        self._lead()
        self._emit(
            "worker_started", f"pid {worker.pid} takes calls", logging.DEBUG, pid=worker.pid,
            restart=restarted,
        )  # fmt: skip
        if worker.end is not None:  # since it was greeted
            self.ended(worker, *worker.end)
        start.set_result(worker)
        self._share_out(worker)
        self._keep_least()

    def _make(self) -> Worker:
        """Start a process and greet it; it is among the greeted until the caller takes it."""
        worker = self._factory.spawn()
        with self._lock:
            self._greeted.add(worker)
        if self._closed:
            worker.begin_stop()
        try:
            ready = self._factory.greet(worker)
        except BaseException:
            with self._lock:
                self._greeted.discard(worker)
            raise
        with self._lock:
            self._greeted.discard(worker)
            self._greeted.add(ready)
        ready.calls_at_start = ready.seen_calls = ready.channel.calls
        if self._options.max_jobs:
            ready.channel.take_only(self._lowered(self._options.max_jobs))
        if self._options.ttl:
            ready.expires = time.monotonic() + self._options.ttl * (1 - JITTER * random.random())
        return ready

    def _lowered(self, jobs: int) -> int:
        """Spread the numbers of jobs, so that processes are not replaced all at once."""
        return jobs - random.randint(0, int(jobs * JITTER))

    def _share_out(self, newcomer: Worker) -> None:
        """Let calls that queue behind others, unsent, be dealt out anew."""
        for worker in self.workers:
            if worker is not newcomer:
                worker.channel.shed()

    def _fail(self, start: _Start, error: BaseException) -> None:
        with self._lock:
            if self._starts.pop(start, None) is None:
                return
        self._lead()
        start.set_exception(error)

    def _is_closed(self) -> PluginUnavailable:
        return PluginUnavailable(f"plugin {self._plugin!r} is closed", plugin=self._plugin)

    def _lead(self) -> None:
        """Let calls go to the processes directly where nothing has to be done around them."""
        with self._lock:
            if self._ending or not self._options.keep_alive or self.breaker.failures:
                self.route.lead_to((), False)
            else:
                self.route.lead_to(
                    tuple(worker.channel for worker in self._workers), self._may_grow()
                )

    # -- ending -------------------------------------------------------------------------------

    def ended(self, worker: Worker, crash: PluginCrashed, busy: bool) -> None:
        """Count an end that nobody asked for, and start another in its place.

        A clean end between two calls is no failure.
        """
        if not self._take_out(worker):
            if worker not in self._greeted:
                self._emit("worker_exited", str(crash), logging.WARNING, pid=worker.pid)
            return
        with self._lock:
            self._owed += 1
        self._emit(
            "worker_exited", str(crash), logging.WARNING, pid=worker.pid,
            exit_status=crash.exit_status, signal=crash.signal, busy=busy,
        )  # fmt: skip
        if busy or crash.exit_status != 0:
            self._failed(str(crash))
        elif worker.channel.calls == worker.calls_at_start:
            self._resting = True
        self._keep_least()

    def _failed(self, cause: str) -> None:
        with self._lock:
            if self._closed:
                return
            opened = self.breaker.failed(cause)
            failures = self.breaker.failures
        self._lead()
        if opened:
            self._emit(
                "breaker_opened",
                f"failed {failures} times in a row, more than sidecar.max_retries "
                f"({self._options.max_retries}) allows; its calls are refused for a while",
                logging.ERROR, failures=failures, cause=cause,
            )  # fmt: skip

    def spent(self, worker: Worker) -> None:
        """Replace a process that was given its last call; in the middle of a call."""
        self._monitor.run_soon(lambda: self._recycle(worker, "max_jobs"))

    def _recycle(self, worker: Worker, reason: str) -> None:
        """End a process when its last call has ended; in the monitor's thread."""
        if self._take_out(worker):
            self.recycled[reason] += 1
            self._emit(
                "worker_recycled", f"pid {worker.pid} is replaced: {reason}", logging.DEBUG,
                pid=worker.pid, reason=reason,
            )  # fmt: skip
            self._drain(worker)
            self._keep_least()

    def _replace(self, worker: Worker, reason: str) -> None:
        """Recycle a process, once another one takes its calls where there would be too few."""
        with self._lock:
            if worker in self._replacing or self._ending:
                return
            if len(self._workers) > self._least or not self._eager:
                start = None
            elif self.breaker.failures:
                return  # this is no time to end one that works
            else:
                start = self._begin()
                self._replacing.add(worker)
        if start is None:
            self._recycle(worker, reason)
            return

        def go_on(start: _Start) -> None:
            self._replacing.discard(worker)
            if start.exception() is None:
                self._monitor.run_soon(lambda: self._recycle(worker, reason))

        start.add_done_callback(go_on)

    def _take_out(self, worker: Worker) -> bool:
        """Let a process get no more calls; return whether it got any until now."""
        with self._lock:
            workers = tuple(one for one in self._workers if one is not worker)
            taken = len(workers) < len(self._workers)
            self._workers = workers
            self._leaving.add(worker)  # until nothing of it is left
        self._forget_gone()
        self._lead()
        return taken

    def _drain(self, worker: Worker) -> None:
        """End a process that gets no more calls once it has none left; in the monitor's thread."""
        if worker.is_drained():
            self._submit_stop(worker)
        else:
            self._monitor.run_in(DRAIN_STEP, lambda: self._drain(worker))

    def _submit_stop(self, worker: Worker) -> None:
        try:
            self._jobs.submit(self._stop, worker)
        except RuntimeError:  # the interpreter is shutting down, and `close` waits for it
            worker.begin_stop()

    def _stop(self, worker: Worker) -> None:
        worker.stop()
        self._forget_gone()

    def drain(self) -> None:
        """Start nothing more, give out no more calls, and wait until all have ended, or `close`."""
        with self._lock:
            self._ending = True
            workers, self._workers = self._workers, ()
            self._leaving.update(workers)
        self._lead()
        pause = SHORTEST_DRAIN_STEP
        while not self._closed and not all(worker.is_drained() for worker in workers):
            time.sleep(pause)
            pause = min(2 * pause, DRAIN_STEP)

    def begin_close(self) -> None:
        """Start nothing more and ask all processes to end; `close` waits for them."""
        with self._lock:
            self._closed = self._ending = True
            workers = {*self._workers, *self._leaving, *self._greeted}
        self._lead()
        for worker in workers:
            worker.begin_stop()

    def close(self) -> None:
        """End all processes and wait until they are gone. Idempotent."""
        self.begin_close()
        self._monitor.remove_tick(self._look_after)
        with self._lock:
            waiting = [start for start, begun in self._starts.items() if not begun]
            running = [start for start, begun in self._starts.items() if begun]
            workers = {*self._workers, *self._leaving}
            self._workers = ()
        for start in waiting:
            self._fail(start, self._is_closed())
        for worker in workers:
            worker.stop()
        if os.getpid() == self._owner_pid:
            # They find the pool closed and end what they started.
            wait(running, self._options.stop_timeout + self._factory.longest_start)

    # -- once a second ------------------------------------------------------------------------

    def _look_after(self) -> None:
        """Look at each process: whether it lives, and whether its time has come."""
        options = self._options
        now = time.monotonic()
        for worker in self.workers:
            channel = worker.channel
            worker.look(bool(channel.pending) and is_stopped(worker.pid))
            worker.forget_buffers()
            if self.breaker.failures and worker.uptime > HEALTHY_AFTER:
                self.succeeded()
            if channel.pending or channel.calls != worker.seen_calls:
                worker.seen_calls = channel.calls
                worker.idle_since = now
            if worker.expires and now >= worker.expires:
                self._replace(worker, "ttl")
            elif options.max_memory and resident_nbytes(worker.pid) > options.max_memory:
                self._replace(worker, "max_memory")
            elif (
                options.idle_ttl
                and now - worker.idle_since >= options.idle_ttl
                and len(self._workers) > self._least
            ):
                self._recycle(worker, "idle_ttl")
        self._keep_least()

    # -- looking ------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Say how the processes do, in values that JSON can carry."""
        with self._lock:
            workers, starts, leaving = self._workers, len(self._starts), self.leaving
            breaker = self.breaker.status()
            causes = [{"time": when, "cause": cause} for when, cause in self.breaker.causes]
            recycled = dict(self.recycled)
        if self._closed:
            state = "closed"
        elif any(not worker.channel.lost for worker in workers):
            state = "running"
        elif starts:
            state = "starting"
        else:
            state = "unavailable" if breaker["state"] == OPEN else "stopped"
        return {
            "state": state,
            "restarts": self.restarts,
            "consecutive_failures": breaker["failures"],
            "last_failure": self.breaker.last_cause or None,
            "failures": causes,
            "breaker": breaker,
            "recycled": recycled,
            "starting": starts,
            "leaving": leaving,
            "workers": [worker.status() for worker in workers],
        }

    def _emit(self, kind: str, message: str, level: int = logging.INFO, **details: Any) -> None:
        self._events.emit(kind, self._plugin, message, level, **details)
