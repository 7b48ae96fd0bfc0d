"""Makes the slots of one sidecar plugin callable, and starts its process again when it died."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Any

from zeno_fast._call import Call, NotSent, RequestTemplate
from zeno_fast._slot import DirectSlot, Route
from zeno_fast.binary import open_executable
from zeno_fast.driver import Parameters, Scope
from zeno_fast.errors import (
    PluginCrashed,
    PluginLoadError,
    PluginUnavailable,
    SlotError,
    SlotTimeout,
    ZenoError,
)
from zeno_fast.host.functions import HostFunctions
from zeno_fast.log import plugin_logger
from zeno_fast.manifest import Manifest
from zeno_fast.plugin import GuestDescription, SlotDefinition
from zeno_fast.sidecar.future import SlotFuture
from zeno_fast.sidecar.monitor import Monitor
from zeno_fast.sidecar.process import Process, make_environment
from zeno_fast.sidecar.worker import Worker
from zeno_fast.slots import parse_slots

HANDSHAKE_TIMEOUT = 10.0  # seconds for each life-cycle slot, where the manifest sets no timeout
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
        default_timeout: Seconds a call may take where neither caller nor manifest says.
        on_described: Is told what the guest offers when a first call started it.
    """

    def __init__(
        self,
        manifest: Manifest,
        host: HostFunctions,
        monitor: Monitor,
        executor: Executor,
        default_timeout: float,
        on_described: Callable[[GuestDescription], None],
    ) -> None:
        self.manifest = manifest
        self.executor = executor
        self.timeout = manifest.sidecar.timeout or default_timeout
        self._host = host
        self._monitor = monitor
        self._on_described = on_described
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._closed = False
        self._described = False
        self._silent = False
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
        with self._lock:
            try:
                worker, description = self._launch()
            except (PluginCrashed, PluginUnavailable) as error:
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
        self.worker(time.monotonic_ns() + int(self.timeout * 1e9))

    def bind(self, definition: SlotDefinition) -> SidecarSlot:
        """Return the callable form of one slot."""
        return SidecarSlot(self, definition)

    def status(self) -> dict[str, Any]:
        """Say whether the process runs, its pid, and what was counted."""
        worker = self.running_worker
        status: dict[str, Any] = {
            "state": "closed" if self._closed else "running" if worker else "stopped",
            "restarts": self._restarts,
            "consecutive_failures": self._failures,
            "last_failure": self._last_cause or None,
            "transport": "stdio",
            "sandbox": "none",
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
                "noise_lines": worker.channel.noise,
            }
        return status

    def begin_close(self) -> None:
        """Take no more calls and ask the process to end; `close` waits for it."""
        self._closed = True
        self.route.channel = None
        worker = self._worker
        if worker is not None:
            worker.begin_stop()

    def close(self) -> None:
        """End the process and wait until it is gone. Idempotent."""
        self.begin_close()
        with self._lock:
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.stop()
            self._executable.close()

    # -- the running process ------------------------------------------------------------------

    def worker(self, deadline_ns: int) -> Worker:
        """Return the running process, started first where there is none.

        Raises PluginUnavailable, PluginCrashed, PluginLoadError or SlotTimeout.
        """
        worker = self.running_worker
        if worker is not None:
            return worker
        left = (deadline_ns - time.monotonic_ns()) / 1e9
        if not self._lock.acquire(timeout=max(0.0, left)):
            raise SlotTimeout(
                f"plugin {self.manifest.name!r} was still starting when the time was up",
                plugin=self.manifest.name,
            )
        try:
            worker = self.running_worker
            if worker is not None:
                return worker
            self._refuse_if_unavailable()
            first = self._worker is None
            try:
                worker, description = self._launch()
            except PluginLoadError as error:
                self._failures += 1
                self._last_cause = str(error)
                raise
            self._worker = worker
            self._restarts += not first
            announce = not self._described
            self._described = True
        finally:
            self._lock.release()
        if announce:
            self._on_described(description)
        return worker

    @property
    def running_worker(self) -> Worker | None:
        """The running process, or None where one has to be started first."""
        worker = self._worker
        return None if worker is None or worker.channel.lost else worker

    async def worker_async(self, deadline_ns: int) -> Worker:
        """Return the running process as `worker` does, without blocking the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.executor, self.worker, deadline_ns)

    def succeeded(self) -> None:
        """Forgive the failures before a call that was answered."""
        self._failures = 0
        self._open_route()

    def _open_route(self) -> None:
        """Let callers use the channel directly, where nothing has to be done around a call."""
        worker = self.running_worker
        if worker is not None and self.manifest.sidecar.keep_alive and not self._failures:
            self.route.channel = worker.channel

    @property
    def failures(self) -> int:
        """Number of times in a row that the process died."""
        return self._failures

    def release(self, worker: Worker) -> None:
        """End the process after its last call, where `keep_alive` is off."""
        if not self.manifest.sidecar.keep_alive and worker.channel.retire():
            self.executor.submit(worker.stop)

    def resubmit(self, call: Call) -> None:
        """Send a future's call again that never reached the guest."""
        self.executor.submit(self._resubmit, call)

    def _resubmit(self, call: Call) -> None:
        future: Future[Any] = call.future
        template = RequestTemplate(call.slot)
        try:
            data = self.exchange(template, call.parameters, call.deadline, call.scope)
        except ZenoError as error:
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
            worker = self.worker(deadline_ns)
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
        if self._closed:
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
                "gave no answer to plugin_init or plugin_register_slots; it is used without them%s",
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
        return Worker(
            manifest, process, self._host, self._monitor, self.executor, self.resubmit, self._ended
        )

    def _greet(self, worker: Worker) -> GuestDescription:
        limit = self.manifest.sidecar.timeout or HANDSHAKE_TIMEOUT
        answers = []
        for template in (INIT,) if self._described else (INIT, REGISTER_SLOTS):
            deadline_ns = time.monotonic_ns() + int(limit * 1e9)
            try:
                answers.append(worker.channel.call(template, NO_PARAMETERS, deadline_ns, None))
            except SlotError:
                answers.append(None)
            except NotSent as error:
                raise worker.crash() from error
        info = answers[0] if isinstance(answers[0], dict) and "error" not in answers[0] else {}
        slots = parse_slots(answers[1], self.manifest.name) if len(answers) > 1 else None
        return GuestDescription(info, slots)

    def _ended(self, crash: PluginCrashed) -> None:
        """Count an end that nobody asked for; a clean one between two calls is none."""
        self.route.channel = None
        if self._closed:
            return
        if crash.exit_status != 0:
            self._failures += 1
            self._last_cause = str(crash)
        plugin_logger(self.manifest.name).warning("%s", crash)


class SidecarSlot(DirectSlot):
    """One slot of a sidecar plugin, ready to be called."""

    def __init__(self, driver: SidecarDriver, definition: SlotDefinition) -> None:
        super().__init__(definition, driver.route, driver.timeout)
        self._driver = driver

    def call_slowly(self, payload: bytes, deadline_ns: int, scope: Scope | None) -> Any:
        """Call with encoded parameters, starting a process where none runs."""
        return self._driver.exchange(self.template, payload, deadline_ns, scope)

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
            if not driver.manifest.sidecar.keep_alive:
                future.add_done_callback(lambda _: driver.release(worker))
        except ZenoError as error:
            future.set_exception(error)
        return future

    def map(
        self, many: Iterable[Parameters], timeout: float | None, scope: Scope | None
    ) -> Iterator[Any]:
        """Call once for each of `many`, pipelined; yield the data in order."""
        driver = self._driver
        source = iter(many)
        window: deque[tuple[Worker, Call, bytes, int]] = deque()
        exhausted = False
        try:
            while window or not exhausted:
                if not exhausted and len(window) <= WINDOW // 2:
                    payloads = self._take(source, WINDOW - len(window))
                    exhausted = not payloads
                    window.extend(self._start_many(payloads, timeout, scope))
                if not window:
                    break
                worker, call, payload, deadline_ns = window.popleft()
                try:
                    data = worker.channel.wait_for(call)
                except NotSent:
                    data = driver.exchange(self.template, payload, deadline_ns, scope)
                if driver.failures:
                    driver.succeeded()
                yield data
        finally:
            workers = {worker for worker, *_ in window}
            for worker, call, *_ in window:
                worker.channel.abandon(call)
            for worker in workers:
                driver.release(worker)

    def _take(self, source: Iterator[Parameters], count: int) -> list[bytes]:
        """Encode the next parameters: at most `count`, and not much more than the window's size."""
        payloads = []
        nbytes = 0
        for parameters in islice(source, count):
            payloads.append(self.encode(parameters))
            nbytes += len(payloads[-1])
            if nbytes >= WINDOW_NBYTES:
                break
        return payloads

    def _start_many(
        self, payloads: list[bytes], timeout: float | None, scope: Scope | None
    ) -> Iterator[tuple[Worker, Call, bytes, int]]:
        deadline_ns = self.deadline_ns(timeout)
        while payloads:
            worker = self._driver.worker(deadline_ns)
            try:
                calls = worker.channel.start_many(self.template, payloads, deadline_ns, scope)
            except NotSent:
                continue
            return zip(
                [worker] * len(calls), calls, payloads, [deadline_ns] * len(calls), strict=True
            )
        return iter(())

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
                worker = await driver.worker_async(deadline_ns)
            try:
                data = await worker.call_async(self.template, payload, deadline_ns, scope)
            except NotSent:
                continue
            finally:
                driver.release(worker)
            if driver.failures:
                driver.succeeded()
            return data
