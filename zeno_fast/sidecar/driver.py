"""Makes the slots of one sidecar plugin callable, and starts its process again when it died."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import chain
from typing import Any

import orjson

from zeno_fast._call import Call, NotSent, RequestTemplate
from zeno_fast._pipeline import Pipeline
from zeno_fast._slot import DirectSlot, Route
from zeno_fast.binary import open_executable
from zeno_fast.driver import BoundSlot, Driver, Parameters, Scope, Superseded, latest
from zeno_fast.errors import (
    MessageTooLarge,
    PluginCrashed,
    PluginLoadError,
    PluginUnavailable,
    ProtocolError,
    SlotError,
    SlotTimeout,
    ZenoError,
)
from zeno_fast.host.context import HostCall, current_host_call
from zeno_fast.host.functions import HostFunctions
from zeno_fast.log import plugin_logger
from zeno_fast.manifest import Manifest
from zeno_fast.plugin import GuestDescription, SlotDefinition, check_protocol
from zeno_fast.sidecar.future import SlotFuture
from zeno_fast.sidecar.monitor import Monitor
from zeno_fast.sidecar.process import Process, make_environment
from zeno_fast.sidecar.stream import SidecarStream
from zeno_fast.sidecar.worker import Worker
from zeno_fast.slots import parse_slots
from zeno_fast.stream import Stream

HANDSHAKE_TIMEOUT = 10.0  # seconds for each life-cycle slot, where the manifest sets no timeout
DRAIN_GRACE_NS = 1_000_000_000  # after its deadline that a call may take to end
WINDOW = 256  # calls of one `map` that are pending at the same time
WINDOW_NBYTES = 4 * 1024 * 1024  # and their size
INIT = RequestTemplate("plugin_init")
REGISTER_SLOTS = RequestTemplate("plugin_register_slots")
NO_PARAMETERS = b"{}"


class SidecarDriver:
    """Calls one sidecar plugin; owns its process until `close`.

    Args:
        manifest: What to start and how; already validated.
        host: What the guest may ask of the host.
        monitor: Watches the process.
        executor: Runs host calls and the callbacks of futures.
        jobs: Runs what the driver does itself: starting, stopping, sending again.
        default_timeout: Seconds a call may take where neither caller nor manifest says.
        max_message: Bytes of one message, either way, where the manifest says nothing.
        on_described: Is told what the guest offers when a first call started it.

    Attributes:
        successor: Who answers in this driver's place, or None.
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
    ) -> None:
        self.manifest = manifest
        self.executor = executor
        self.jobs = jobs
        self.timeout = manifest.sidecar.timeout or default_timeout
        self.max_message = max_message
        self._host = host
        self._monitor = monitor
        self._on_described = on_described
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._launching: Worker | None = None
        self._starting: Future[Worker] | None = None
        self._retired: set[Worker] = set()
        self.successor: Driver | None = None
        self._closed = False
        self._described = False
        self._silent = False
        self._host_calls: set[HostCall] = set()
        self._failures = 0
        self._restarts = 0
        self._last_cause = ""
        self._executable = open_executable(manifest)
        self.route = Route()

    def load(self) -> GuestDescription | None:
        """Start the process and ask what it offers; None where the first call is to start it."""
        if not self.manifest.sidecar.auto_start:
            return None
        return self.start()

    def start(self) -> GuestDescription:
        """Start the process now, whatever `auto_start` says. Raises PluginLoadError."""
        try:
            worker, description = self._launch()
        except (PluginCrashed, PluginUnavailable, ProtocolError) as error:
            raise PluginLoadError(
                f"plugin {self.manifest.name!r} did not start: {error}",
                plugin=self.manifest.name,
                folder=self.manifest.folder,
            ) from error
        self._worker = worker
        self._described = True
        self._open_route()
        return description

    @property
    def described(self) -> bool:
        """Whether the guest has been asked what it offers."""
        return self._described

    def describe(self) -> None:
        """Start the process if none runs, so that what it offers gets known."""
        try:
            self.worker(time.monotonic_ns() + int(self.timeout * 1e9))
        except Superseded as moved:
            moved.driver.describe()

    def bind(self, definition: SlotDefinition) -> SidecarSlot:
        """Return the callable form of one slot."""
        return SidecarSlot(self, definition)

    def status(self) -> dict[str, Any]:
        """Say whether the process runs, its pid, and what was counted."""
        worker = self.running_worker
        state = "closed" if self._closed else "running" if worker else "stopped"
        if self.successor is not None and not self._closed:
            state = "draining"
        status: dict[str, Any] = {
            "state": state,
            "restarts": self._restarts,
            "consecutive_failures": self._failures,
            "last_failure": self._last_cause or None,
            "transport": "stdio",
            "sandbox": "none",
            "host_calls": len(self._host_calls),
        }
        if worker is not None:
            status |= {
                "pid": worker.pid,
                "uptime": round(worker.uptime, 3),
                "calls": worker.channel.calls,
                "in_flight": worker.channel.in_flight,
                "queued": worker.channel.queued,
                "returns_ids": worker.channel.returns_ids,
                "stray_answers": worker.channel.stray,
                "late_answers": worker.channel.late,
                "noise_lines": worker.channel.noise,
            }
        return status

    def supersede(self, successor: Driver) -> None:
        """Let another driver answer; end the process once the calls in flight have ended."""
        with self._lock:
            self.successor = successor
            self.route.channel = None
            worker, self._worker = self._worker, None
            if worker is not None:
                self._retired.add(worker)
        try:
            if worker is not None:
                self._drain(worker)
        finally:
            self.close()

    def _drain(self, worker: Worker) -> None:
        """Wait until a process has no calls left, at most until their deadlines, or `close`."""
        channel = worker.channel
        began_ns = time.monotonic_ns()
        pause = 0.0005
        while not (channel.retire() or channel.lost or self._closed):
            if time.monotonic_ns() > max(began_ns, channel.latest_deadline_ns) + DRAIN_GRACE_NS:
                return
            channel.pump()  # whoever has calls here may read on much later, as with `map`
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def begin_close(self) -> None:
        """Take no more calls and ask the process to end; `close` waits for it."""
        self._closed = True
        self.route.channel = None
        for worker in (self._worker, self._launching, *list(self._retired)):
            if worker is not None:
                worker.begin_stop()

    def close(self) -> None:
        """End the process and wait until it is gone. Idempotent."""
        self.begin_close()
        with self._lock:
            starting, worker = self._starting, self._worker
            retired = list(self._retired)
            self._worker = None
        if worker is not None:
            worker.stop()
        for old in retired:
            old.stop()
        if starting is not None:
            # It finds the driver closed and ends what it started.
            wait([starting], self.manifest.sidecar.stop_timeout + HANDSHAKE_TIMEOUT)
        self._executable.close()

    # -- the running process ------------------------------------------------------------------

    def worker(self, deadline_ns: int) -> Worker:
        """Return the running process, started first where there is none.

        Raises PluginUnavailable, PluginCrashed, PluginLoadError, SlotTimeout or Superseded.
        """
        worker = self.running_worker
        if worker is not None:
            return worker
        try:
            starting = self._begin_start()
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
        """Return the running process as `worker` does, without blocking the event loop."""
        try:
            starting = asyncio.wrap_future(self._begin_start())
            left = (deadline_ns - time.monotonic_ns()) / 1e9
            done, _ = await asyncio.wait([starting], timeout=max(0.0, left))
            if not done:
                raise self._still_starting()
            return starting.result()
        except ZenoError:
            if self.successor is None:
                raise
        return await self._answering().worker_async(deadline_ns)

    def _answering(self) -> SidecarDriver:
        """Return who answers now. Raises Superseded where that is no sidecar."""
        driver = latest(self)
        if isinstance(driver, SidecarDriver):
            return driver
        raise Superseded(driver)

    def slot_of(self, moved: Superseded, slot: str) -> BoundSlot:
        """Return a slot of the driver that answers now; the parameters are checked already."""
        return moved.driver.bind(SlotDefinition(slot, plugin=self.manifest.name))

    def _still_starting(self) -> SlotTimeout:
        return SlotTimeout(
            f"plugin {self.manifest.name!r} was still starting when the time was up",
            plugin=self.manifest.name,
        )

    def _begin_start(self) -> Future[Worker]:
        """Start a process off the callers' threads, one for all who wait, whatever their time."""
        with self._lock:
            if self._starting is None or self._starting.done():
                worker = self.running_worker
                if worker is not None:
                    running: Future[Worker] = Future()
                    running.set_result(worker)
                    return running
                self._refuse_if_unavailable()
                self._starting = self.jobs.submit(self._start)
            return self._starting

    def _start(self) -> Worker:
        first = self._worker is None
        try:
            worker, description = self._launch()
        except PluginLoadError as error:
            self._failed(str(error))
            raise
        if not self._described:
            self._on_described(description)
            self._described = True
        with self._lock:
            if not self._closed and self.successor is None:
                self._worker = worker
                self._restarts += not first
                return worker
        worker.stop()
        raise PluginUnavailable(
            f"plugin {self.manifest.name!r} was closed while it started", plugin=self.manifest.name
        )

    @property
    def running_worker(self) -> Worker | None:
        """The running process, or None where one has to be started first."""
        worker = self._worker
        return None if worker is None or worker.channel.lost else worker

    def succeeded(self) -> None:
        """Forgive the failures before a call that was answered."""
        driver = latest(self)
        if isinstance(driver, SidecarDriver):
            driver._failures = 0
            driver._open_route()

    def _open_route(self) -> None:
        """Let callers use the channel directly, where nothing has to be done around a call."""
        with self._lock:
            worker = self.running_worker
            if worker is not None and self.manifest.sidecar.keep_alive and not self._failures:
                self.route.channel = worker.channel

    @property
    def failures(self) -> int:
        """Number of times in a row that the process died."""
        driver = latest(self)
        return driver._failures if isinstance(driver, SidecarDriver) else 0

    def release(self, worker: Worker) -> None:
        """End the process after its last call, where `keep_alive` is off."""
        if not worker.keep_alive and worker.channel.retire():
            self._retired.add(worker)
            self.jobs.submit(self._stop_retired, worker)

    def _stop_retired(self, worker: Worker) -> None:
        worker.stop()
        self._retired.discard(worker)

    def resubmit(self, call: Call) -> None:
        """Send a future's call again that never reached the guest."""
        try:
            # Not among the jobs, which the process that it waits for is started by.
            self.executor.submit(self._resubmit, call)
        except RuntimeError:  # the interpreter is shutting down
            call.future.cancel()

    def _resubmit(self, call: Call) -> None:
        future: Future[Any] = call.future
        try:
            data = self.exchange(
                RequestTemplate(call.slot), call.parameters, call.deadline, call.scope
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the future's
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(data)

    def exchange(
        self, template: RequestTemplate, payload: bytes, deadline_ns: int, scope: Scope | None
    ) -> Any:
        """Call in this thread, on another process where one ended before it got the request."""
        while True:
            try:
                worker = self.worker(deadline_ns)
            except Superseded as moved:
                slot = self.slot_of(moved, template.slot)
                return slot.call(orjson.loads(payload), seconds_until(deadline_ns), scope)
            try:
                data = worker.channel.call(template, payload, deadline_ns, scope)
            except NotSent:
                continue
            except SlotError:
                self.succeeded()
                raise
            finally:
                self.release(worker)
            self.succeeded()
            return data

    def _refuse_if_unavailable(self) -> None:
        if self._closed or self.successor is not None:
            raise PluginUnavailable(
                f"plugin {self.manifest.name!r} is closed", plugin=self.manifest.name
            )
        limit = self.manifest.sidecar.max_retries
        if self._failures > limit:
            raise PluginUnavailable(
                f"plugin {self.manifest.name!r} failed {self._failures} times in a row, more than "
                f"sidecar.max_retries ({limit}) allows; reload it once the cause is mended. "
                f"Last: {self._last_cause}",
                plugin=self.manifest.name,
            )

    def _launch(self) -> tuple[Worker, GuestDescription]:
        """Start a process and greet it; called with the lock held."""
        worker = self._spawn()
        if self._silent:
            return worker, GuestDescription()
        try:
            return worker, self._greet(worker)
        except SlotTimeout:
            stderr = worker.stderr
            worker.stop()
            self._silent = True
            plugin_logger(self.manifest.name).warning(
                "gave no answer to plugin_init or plugin_register_slots, sent as one JSON object "
                "a line; it is used without them%s",
                f"; last on stderr: {stderr}" if stderr else "",
            )
            return self._spawn(), GuestDescription()
        except BaseException:
            worker.stop()
            raise

    def _spawn(self) -> Worker:
        manifest = self.manifest
        executable = self._executable
        process = Process(
            manifest.name,
            executable.argv,
            manifest.folder,
            make_environment(manifest),
            executable.pass_fds,
        )
        worker = Worker(
            manifest, process, self._host, self._monitor, self.executor, self.resubmit,
            self._ended, self.max_message, self._host_calls,
        )  # fmt: skip
        worker.may_be_pinged = not self._silent
        self._launching = worker
        if self._closed:  # by now: whoever closed it has not seen this process
            worker.begin_stop()
        return worker

    def _greet(self, worker: Worker) -> GuestDescription:
        limit = self.manifest.sidecar.timeout or HANDSHAKE_TIMEOUT
        answers = []
        for template in (INIT,) if self._described else (INIT, REGISTER_SLOTS):
            deadline_ns = time.monotonic_ns() + int(limit * 1e9)
            try:
                answers.append(worker.channel.call(template, NO_PARAMETERS, deadline_ns, None))
            except SlotError:
                answers.append(None)
            except MessageTooLarge as error:
                raise PluginLoadError(
                    f"plugin {self.manifest.name!r} did not start: {error}",
                    plugin=self.manifest.name, folder=self.manifest.folder,
                ) from error  # fmt: skip
            except NotSent as error:
                raise worker.crash() from error
        info = answers[0] if isinstance(answers[0], dict) and "error" not in answers[0] else {}
        check_protocol(info, self.manifest)
        features = info.get("features")
        worker.channel.use_features(features if isinstance(features, list) else ())
        slots = parse_slots(answers[1], self.manifest.name) if len(answers) > 1 else None
        return GuestDescription(info, slots)

    def _ended(self, crash: PluginCrashed, busy: bool) -> None:
        """Count an end that nobody asked for; a clean one between two calls is none."""
        self.route.channel = None
        if self._closed:
            return
        if busy or crash.exit_status != 0:
            self._failed(str(crash))
        plugin_logger(self.manifest.name).warning("%s", crash)

    def _failed(self, cause: str) -> None:
        self._failures += 1
        self._last_cause = cause


class SidecarSlot(DirectSlot):
    """One slot of a sidecar plugin, ready to be called."""

    def __init__(self, driver: SidecarDriver, definition: SlotDefinition) -> None:
        super().__init__(definition, driver.route, driver.timeout, driver.exchange)
        self._driver = driver

    def submit(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Future[Any]:
        """Start the call and return a future of its data."""
        driver = self._driver
        future = SlotFuture(driver.executor)
        try:
            payload = self.encode(parameters)
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
            return slot.submit(orjson.loads(payload), seconds_until(deadline_ns), scope)
        except ZenoError as error:
            future.set_exception(error)
        return future

    def stream(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Stream:
        """Return the stream of a call, which begins with its first item."""
        driver = self._driver
        options = driver.manifest.sidecar
        current = current_host_call()
        return SidecarStream(
            driver,
            self.template,
            self.encode(parameters),
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
                source = chain((orjson.loads(held),), source)
            yield from moved.driver.bind(self.definition).map(source, timeout, scope)
        finally:
            calls.close()

    async def call_async(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Any:
        """Call the slot from a running event loop."""
        driver = self._driver
        payload = self.encode(parameters)
        deadline_ns = self.deadline_ns(timeout)
        while True:
            worker = driver.running_worker
            if worker is None:
                try:
                    worker = await driver.worker_async(deadline_ns)
                except Superseded as moved:
                    slot = driver.slot_of(moved, self.template.slot)
                    seconds = seconds_until(deadline_ns)
                    return await slot.call_async(orjson.loads(payload), seconds, scope)
            try:
                data = worker.ask(self.template, payload, deadline_ns, scope)
                if type(data) is Call:
                    data = await worker.answer(data)
            except NotSent:
                continue
            finally:
                driver.release(worker)
            if driver.failures:
                driver.succeeded()
            return data


def seconds_until(deadline_ns: int) -> float:
    """Return the seconds until a deadline on the clock of `time.monotonic_ns`, 0 or more."""
    return max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
