"""Makes the slots of one sidecar plugin callable, whichever of its processes answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import chain
from typing import Any

from zeno_fast._bytes import BinaryWay
from zeno_fast._call import Call, NotSent, RequestTemplate
from zeno_fast._envelope import parameters_of
from zeno_fast._pipeline import Pipeline
from zeno_fast._shm import Buffer
from zeno_fast._slot import DirectSlot
from zeno_fast.driver import BoundSlot, Driver, Parameters, Scope, Superseded, latest
from zeno_fast.errors import (
    PluginCrashed,
    PluginLoadError,
    PluginUnavailable,
    ProtocolError,
    SlotError,
    SlotTimeout,
    ZenoError,
)
from zeno_fast.events import EventHub
from zeno_fast.host.context import current_host_call
from zeno_fast.host.functions import HostFunctions
from zeno_fast.manifest import Manifest
from zeno_fast.plugin import GuestDescription, SlotDefinition
from zeno_fast.sidecar.factory import WorkerFactory
from zeno_fast.sidecar.future import SlotFuture
from zeno_fast.sidecar.monitor import Monitor
from zeno_fast.sidecar.pool import WorkerPool
from zeno_fast.sidecar.stream import SidecarStream
from zeno_fast.sidecar.worker import Worker
from zeno_fast.statistics import PluginStatistics
from zeno_fast.stream import Stream

WINDOW = 256  # calls of one `map` that are pending at the same time
WINDOW_NBYTES = 4 * 1024 * 1024  # and their size
REPEATS = 2  # times that the call of an idempotent slot is sent again after its process died
COUNTS = (
    "in_flight", "queued", "stray_answers", "late_answers", "noise_lines", "memory",
)  # fmt: skip


class SidecarDriver:
    """Calls one sidecar plugin; owns its processes until `close`.

    Args:
        manifest: What to start and how; already validated.
        host: What the guest may ask of the host.
        monitor: Watches the processes.
        executor: Runs host calls and the callbacks of futures.
        jobs: Runs what the driver does itself: starting, stopping.
        default_timeout: Seconds a call may take where neither caller nor manifest says.
        max_message: Bytes of one message, either way, where the manifest says nothing.
        on_described: Is told what the guest offers when a first call started it.
        events: Is told of starts, ends and restarts.

    Attributes:
        successor: Who answers in this driver's place, or None.
        statistics: Counts the calls of each slot.
        way: How bytes go to its processes.
    """

    def __init__(
        self,
        manifest: Manifest,
        host: HostFunctions,
        monitor: Monitor,
        executor: Executor,
        jobs: Executor,
        default_timeout: float,
        max_message: int,
        on_described: Callable[[GuestDescription], None],
        events: EventHub,
    ) -> None:
        self.manifest = manifest
        self.executor = executor
        self.timeout = manifest.sidecar.timeout or default_timeout
        self.max_message = max_message
        self._on_described = on_described
        self._loading = False
        self._description = GuestDescription()
        self._closed = False
        self.successor: Driver | None = None
        self.statistics = PluginStatistics()
        self.way = BinaryWay()
        self._factory = WorkerFactory(
            manifest, host, monitor, executor, max_message, self.resubmit, self._ended,
            self._spent, self._take_description,
        )  # fmt: skip
        self._pool = WorkerPool(manifest, self._factory, monitor, jobs, events)
        self.route = self._pool.route

    def load(self) -> GuestDescription | None:
        """Start the first process and ask what it offers; None where the first call starts it."""
        if not self.manifest.sidecar.auto_start:
            return None
        return self.start()

    def start(self) -> GuestDescription:
        """Start a process now, whatever `auto_start` says. Raises PluginLoadError."""
        self._loading = True
        try:
            self._pool.start().result()
        except (PluginCrashed, PluginUnavailable, ProtocolError) as error:
            raise PluginLoadError(
                f"plugin {self.manifest.name!r} did not start: {error}",
                plugin=self.manifest.name,
                folder=self.manifest.folder,
            ) from error
        finally:
            self._loading = False
        return self._description

    @property
    def described(self) -> bool:
        """Whether the guest has been asked what it offers."""
        return self._factory.described

    def describe(self) -> None:
        """Start a process if none runs, so that what it offers gets known."""
        try:
            self.worker(time.monotonic_ns() + int(self.timeout * 1e9))
        except Superseded as moved:
            moved.driver.describe()

    def bind(self, definition: SlotDefinition) -> SidecarSlot:
        """Return the callable form of one slot."""
        return SidecarSlot(self, definition)

    def status(self) -> dict[str, Any]:
        """Say whether processes run, their pids, and what was counted."""
        status = self._pool.status()
        workers = status["workers"]
        if self.successor is not None and not self._closed:
            status["state"] = "draining"
        status |= {
            "transport": workers[0]["transport"] if workers else self.manifest.sidecar.transport,
            "sandbox": "none",
            "host_calls": len(self._factory.host_calls),
        }
        if workers:
            # Of the first, which is the only one where the manifest does not ask for more.
            status |= {name: workers[0][name] for name in ("pid", "uptime", "returns_ids")}
            status |= {name: sum(worker[name] for worker in workers) for name in COUNTS}
        return status | self.statistics.status()

    def reset(self) -> None:
        """Forgive all failures: a plugin that was refused is started again."""
        self._pool.reset()

    def supersede(self, successor: Driver) -> None:
        """Let another driver answer; end the processes once the calls in flight have ended."""
        self.successor = successor
        try:
            self._pool.drain()
        finally:
            self.close()

    def begin_close(self) -> None:
        """Take no more calls and ask the processes to end; `close` waits for them."""
        self._closed = True
        self._pool.begin_close()

    def close(self) -> None:
        """End the processes and wait until they are gone. Idempotent."""
        self.begin_close()
        self._pool.close()
        self._factory.close()

    # -- the running processes ----------------------------------------------------------------

    def worker(self, deadline_ns: int) -> Worker:
        """Return the least busy process, started first where there is none.

        Raises PluginUnavailable, PluginCrashed, PluginLoadError, SlotTimeout or Superseded.
        """
        worker = self._pool.pick()
        if worker is not None:
            return worker
        try:
            starting = self._start()
            left = (deadline_ns - time.monotonic_ns()) / 1e9
            return starting.result(min(max(0.0, left), threading.TIMEOUT_MAX))
        except FutureTimeout as error:
            if not starting.done():
                raise self._still_starting() from error
            if self.successor is None:
                raise  # the start's own
        except ZenoError:
            if self.successor is None:
                raise
        return self._answering().worker(deadline_ns)

    async def worker_async(self, deadline_ns: int) -> Worker:
        """Return a process as `worker` does, without blocking the event loop."""
        worker = self._pool.pick()
        if worker is not None:
            return worker
        try:
            starting = asyncio.wrap_future(self._start())
            left = (deadline_ns - time.monotonic_ns()) / 1e9
            done, _ = await asyncio.wait([starting], timeout=max(0.0, left))
            if not done:
                raise self._still_starting()
            return starting.result()
        except ZenoError:
            if self.successor is None:
                raise
        return await self._answering().worker_async(deadline_ns)

    @property
    def running_workers(self) -> tuple[Worker, ...]:
        """The processes that take calls now."""
        driver = latest(self)
        return driver._pool.workers if isinstance(driver, SidecarDriver) else ()

    def workers(self, deadline_ns: int) -> tuple[Worker, ...]:
        """Return all that take calls, at least one. Raises as `worker` does."""
        worker = self.worker(deadline_ns)
        return self.running_workers or (worker,)

    def _answering(self) -> SidecarDriver:
        """Return who answers now. Raises Superseded where that is no sidecar."""
        driver = latest(self)
        if isinstance(driver, SidecarDriver):
            return driver
        raise Superseded(driver)

    def slot_of(self, moved: Superseded, slot: str) -> BoundSlot:
        """Return a slot of the driver that answers now; the parameters are checked already."""
        return moved.driver.bind(SlotDefinition(slot, plugin=self.manifest.name))

    def _start(self) -> Future[Worker]:
        if self._closed:
            raise PluginUnavailable(
                f"plugin {self.manifest.name!r} is closed", plugin=self.manifest.name
            )
        return self._pool.start()

    def _still_starting(self) -> SlotTimeout:
        text = f"plugin {self.manifest.name!r} was still starting when the time was up"
        cause = self._pool.breaker.last_cause if self.failures else ""
        return SlotTimeout(
            f"{text}; it failed {self.failures} times before: {cause}" if cause else text,
            plugin=self.manifest.name,
        )

    def succeeded(self) -> None:
        """Forgive the failures before a call that was answered."""
        driver = latest(self)
        if isinstance(driver, SidecarDriver) and driver._pool.breaker.failures:
            driver._pool.succeeded()

    @property
    def failures(self) -> int:
        """Number of times in a row that a process died."""
        driver = latest(self)
        return driver._pool.breaker.failures if isinstance(driver, SidecarDriver) else 0

    def release(self, worker: Worker) -> None:
        """End a process after its last call, where `keep_alive` is off; it may be a successor's."""
        driver: Driver | None = self
        while not worker.keep_alive and isinstance(driver, SidecarDriver):
            if driver._pool.release(worker):
                return
            driver = driver.successor

    def resubmit(self, call: Call) -> None:
        """Send a future's call again that another process may have."""
        try:
            # Not among the jobs, which the process that it waits for is started by.
            self.executor.submit(self._resubmit, call)
        except RuntimeError:  # the interpreter is shutting down
            call.future.cancel()

    def _resubmit(self, call: Call) -> None:
        future: Future[Any] = call.future
        try:
            data = self.exchange(call.request, call.parameters, call.deadline, call.scope)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the future's
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(data)

    def exchange(
        self, template: RequestTemplate, payload: bytes, deadline_ns: int, scope: Scope | None
    ) -> Any:
        """Call in this thread, on another process where one ended before it got the request.

        The call of an idempotent slot is repeated, too, when its process ended in the middle.
        """
        repeats = REPEATS if template.idempotent else 0
        while True:
            try:
                worker = self.worker(deadline_ns)
            except Superseded as moved:
                slot = self.slot_of(moved, template.slot)
                parameters = parameters_of(payload, self.way.arena)
                return slot.call(parameters, seconds_until(deadline_ns), scope)
            try:
                data = worker.channel.call(template, payload, deadline_ns, scope)
            except NotSent:
                continue
            except PluginCrashed:
                if not repeats:
                    raise
                repeats -= 1
                continue
            except SlotError:
                self.succeeded()
                raise
            finally:
                self.release(worker)
            self.succeeded()
            return data

    # -- what the pool and its processes report -----------------------------------------------

    def _take_description(self, description: GuestDescription) -> None:
        self._description = description
        features = description.features
        self.way.arrays = "binary" in features
        self.way.arena = self._factory.arena if "arena" in features else None
        self.way.give = self._give if "buffers" in features else None
        if not self._loading:
            self._on_described(description)

    def _give(self, buffer: Buffer) -> bool:
        """Let all processes have a buffer, also those to come; return whether they have."""
        buffers = self._factory.buffers
        if buffer.id not in buffers:
            buffers[buffer.id] = buffer
        return self._pool.give(buffer)

    def _ended(self, worker: Worker, crash: PluginCrashed, busy: bool) -> None:
        self._pool.ended(worker, crash, busy)

    def _spent(self, worker: Worker) -> None:
        self._pool.spent(worker)


class SidecarSlot(DirectSlot):
    """One slot of a sidecar plugin, ready to be called."""

    def __init__(self, driver: SidecarDriver, definition: SlotDefinition) -> None:
        super().__init__(
            definition,
            driver.route,
            driver.timeout,
            driver.exchange,
            driver.statistics.of(definition.name),
            driver.way,
        )
        self._driver = driver

    def submit(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Future[Any]:
        """Start the call and return a future of its data."""
        driver = self._driver
        future = SlotFuture(driver.executor)
        try:
            payload = self.encode(parameters)
            self._hold_for(future, self.kept_for(payload))
            deadline_ns = self.deadline_ns(timeout)
            while True:
                worker = driver.worker(deadline_ns)
                try:
                    worker.submit(future, self.template, payload, deadline_ns, scope)
                    break
                except NotSent:
                    continue
            if not worker.keep_alive:
                future.add_done_callback(lambda _: driver.release(worker))
        except Superseded as moved:
            slot = driver.slot_of(moved, self.template.slot)
            parameters = parameters_of(payload, driver.way.arena)
            return slot.submit(parameters, seconds_until(deadline_ns), scope)
        except ZenoError as error:
            future.set_exception(error)
        return future

    def _hold_for(self, future: Future[Any], blocks: list[Any] | None) -> None:
        """Hold what a call refers to until its guest has answered, or will not any more."""
        if blocks is None:
            return
        held = [blocks]  # the future keeps its callbacks for good

        def let_go(done: Future[Any]) -> None:
            blocks = held.pop()
            error = None if done.cancelled() else done.exception()
            if done.cancelled() or not isinstance(error, (SlotError, PluginCrashed, type(None))):
                self.hold_late(blocks)

        future.add_done_callback(let_go)

    def stream(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Stream:
        """Return the stream of a call, which begins with its first item."""
        driver = self._driver
        options = driver.manifest.sidecar
        current = current_host_call()
        payload = self.encode(parameters)
        return SidecarStream(
            driver,
            self,
            payload,
            self.kept_for(payload),
            self.timeout_ns(timeout),
            None if current is None else current.deadline_ns,
            scope,
            options.max_response or driver.max_message,
        )

    def map(
        self, many: Iterable[Parameters], timeout: float | None, scope: Scope | None
    ) -> Iterator[Any]:
        """Call once for each of `many`, pipelined; yield the data in order."""
        driver = self._driver
        width = max(1, min(WINDOW, driver.manifest.sidecar.max_queue // 2))
        source = iter(many)
        calls = Pipeline(self, driver, source, timeout, scope, width, WINDOW_NBYTES)
        try:
            yield from calls
        except Superseded as moved:
            held = calls.take_held()
            if held is not None:
                source = chain((parameters_of(held[0], driver.way.arena),), source)
            yield from moved.driver.bind(self.definition).map(source, timeout, scope)
        finally:
            calls.close()

    async def call_async(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Any:
        """Call the slot from a running event loop."""
        payload = self.encode(parameters)
        blocks = self.kept_for(payload)
        if blocks is None:
            return await self._call_async(payload, timeout, scope)
        try:
            return await self._call_async(payload, timeout, scope)
        except (SlotError, PluginCrashed):
            raise
        except BaseException:
            self.hold_late(blocks)
            raise
        finally:
            blocks = None  # which a traceback might keep

    async def _call_async(self, payload: bytes, timeout: float | None, scope: Scope | None) -> Any:
        driver = self._driver
        deadline_ns = self.deadline_ns(timeout)
        repeats = REPEATS if self.template.idempotent else 0
        channel = driver.route.pick()
        while True:
            try:
                worker = (
                    await driver.worker_async(deadline_ns) if channel is None else channel.owner
                )
            except Superseded as moved:
                slot = driver.slot_of(moved, self.template.slot)
                seconds = seconds_until(deadline_ns)
                parameters = parameters_of(payload, driver.way.arena)
                return await slot.call_async(parameters, seconds, scope)
            channel = None  # another time it may be the same one, whose end is not noticed yet
            try:
                data = worker.ask(self.template, payload, deadline_ns, scope)
                if type(data) is Call:
                    data = await worker.answer(data)
            except NotSent:
                continue
            except PluginCrashed:
                if not repeats:
                    raise
                repeats -= 1
                continue
            finally:
                driver.release(worker)
            driver.succeeded()
            return data


def seconds_until(deadline_ns: int) -> float:
    """Return the seconds until a deadline on the clock of `time.monotonic_ns`, 0 or more."""
    return max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
