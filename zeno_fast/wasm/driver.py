"""The driver of WASM plugins."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from zeno_fast import _wasmtime
from zeno_fast.errors import PluginLoadError, PluginUnavailable, UsageError, ZenoError
from zeno_fast.limits import NO_LIMITS, WasmLimits
from zeno_fast.platforms import processors
from zeno_fast.plugin import GuestDescription, SlotDefinition, check_protocol
from zeno_fast.statistics import PluginStatistics
from zeno_fast.wasm.hostcalls import HostCalls
from zeno_fast.wasm.pool import InstancePool
from zeno_fast.wasm.program import compile_program
from zeno_fast.wasm.slot import WasmSlot
from zeno_fast.wasm.startup import GuestMaker

if TYPE_CHECKING:
    from zeno_fast.driver import Driver
    from zeno_fast.host.functions import HostFunctions
    from zeno_fast.manifest import Manifest


INNER_THREADS = 512  # made as needed
DRAIN_GRACE = 1.0  # seconds after its deadline that a call may take to end


class WasmDriver:
    """Makes the slots of one WASM plugin callable; safe from any thread.

    Args:
        manifest: Already validated.
        code: The module: the very bytes whose checksum was checked.
        host: What the guest may ask for.
        default_timeout: Seconds that a call may take where neither it nor the manifest says.
        limits: What the manifest may ask for at most.

    Raises PluginLoadError where the manifest asks for more.

    Attributes:
        timeout: Seconds that a call may take where it does not say.
        public: Why guests are called through the `wasmtime` package's public API, or "".
        successor: Who answers in this driver's place, or None.
        statistics: Counts the calls of each slot.
    """

    def __init__(
        self,
        manifest: Manifest,
        code: bytes,
        host: HostFunctions,
        default_timeout: float,
        limits: WasmLimits = NO_LIMITS,
    ) -> None:
        self._options = limits.agree(manifest, default_timeout)
        assert self._options.timeout is not None
        self.timeout = self._options.timeout
        self.public = ""
        self.successor: Driver | None = None
        self.statistics = PluginStatistics()
        self._manifest = manifest
        self._code = code
        self._host = host
        # Reentrant: the garbage collector may close a forgotten manager at any moment.
        self._lock = threading.RLock()
        self._pool: InstancePool | None = None
        self._executors: dict[str, ThreadPoolExecutor] = {}
        self._closed = False

    @property
    def pool(self) -> InstancePool:
        """The plugin's instances. Raises UsageError before `load`."""
        if self._pool is None:
            raise UsageError(f"plugin {self._manifest.name!r} is not loaded")
        return self._pool

    def load(self) -> GuestDescription:
        """Compile the module, make its first instance and ask what it offers.

        Raises PluginLoadError; nothing is left then.
        """
        manifest = self._manifest
        program = compile_program(manifest, self._options, self._code)
        self._code = b""
        host_calls = HostCalls(manifest, self._host)
        maker = GuestMaker(program, host_calls)
        self.public = maker.public
        limit = manifest.wasm.instances or processors()
        pool = InstancePool(maker, program.failures, limit, manifest.wasm.fresh)
        host_calls.pool = pool
        with self._lock:
            if self._closed:
                raise self._unavailable()
            self._pool = pool
        try:
            description = pool.open(_wasmtime.deadline_ns(self.timeout))
            check_protocol(description.info, manifest)
        except BaseException as error:
            self.close()
            if isinstance(error, ZenoError) and not isinstance(error, PluginLoadError):
                raise PluginLoadError(
                    f"plugin {manifest.name!r} could not be started: {error}",
                    plugin=manifest.name,
                    folder=manifest.folder,
                ) from error
            raise
        return description

    def start(self) -> GuestDescription:
        """Do what `load` does: no guest waits for its first call."""
        return self.load()

    @property
    def reaches_callbacks(self) -> bool:
        """Whether the manifest grants what the host answers by callbacks."""
        granted = self._manifest.permissions
        return bool(granted.network or granted.filesystem or granted.env or granted.database)

    @property
    def described(self) -> bool:
        """Whether the guest has been asked what it offers: `load` does it."""
        return self._pool is not None

    def describe(self) -> None:
        """Do nothing, as `load` has asked the guest already."""

    def bind(self, definition: SlotDefinition) -> WasmSlot:
        """Return the callable form of one slot; only after `load`."""
        return WasmSlot(definition, self)

    def executor(self) -> ThreadPoolExecutor:
        """Return the threads in which submitted calls run, as many as there may be instances.

        Raises PluginUnavailable after `close`.
        """
        return self._executor_of("", self.pool.limit)

    def inner_executor(self) -> ThreadPoolExecutor:
        """Return the threads for what host functions submit, which others may wait for.

        Raises PluginUnavailable after `close`.
        """
        return self._executor_of("-inner", INNER_THREADS)

    def _executor_of(self, suffix: str, nthreads: int) -> ThreadPoolExecutor:
        with self._lock:
            if self._closed:
                raise self._unavailable()
            executor = self._executors.get(suffix)
            if executor is None:
                executor = self._executors[suffix] = ThreadPoolExecutor(
                    nthreads, thread_name_prefix=f"zeno-{self._manifest.name}{suffix}"
                )
            return executor

    def status(self) -> dict[str, Any]:
        """Say how the guest does, in values that JSON can carry."""
        state = "closed" if self._closed else "new" if self._pool is None else "ready"
        if self.successor is not None and not self._closed:
            state = "draining"
        status: dict[str, Any] = {"state": state, "call": "public" if self.public else "direct"}
        if self.public:
            status["call_reason"] = self.public
        if self._pool is not None:
            status.update(self._pool.status())
        return status | self.statistics.status()

    def reset(self) -> None:
        """Do nothing: what failed is not held against the next instance."""

    def supersede(self, successor: Driver) -> None:
        """Let another driver answer; end the guests once the calls in flight have ended."""
        self.successor = successor
        try:
            self.pool.supersede()
            self.pool.drain(DRAIN_GRACE)
        finally:
            self.close()

    def begin_close(self) -> None:
        """Take no more calls and end those in flight; never blocks, `close` must follow."""
        with self._lock:
            self._closed = True
        if self._pool is not None:
            self._pool.begin_close()

    def close(self) -> None:
        """End all instances; calls in flight fail with PluginUnavailable. May be repeated."""
        self.begin_close()
        if self._pool is not None:
            self._pool.close()
        with self._lock:
            executors, self._executors = self._executors, {}
        for executor in executors.values():
            # Calls that were not begun fail in these threads, which may be the one that closes.
            executor.shutdown(wait=False)

    def _unavailable(self) -> PluginUnavailable:
        name = self._manifest.name
        return PluginUnavailable(f"plugin {name!r} was closed", plugin=name)
