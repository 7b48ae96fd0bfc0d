"""Starts the processes of one sidecar plugin and greets each, until it is ready for calls."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from zeno_fast._call import Call, NotSent, RequestTemplate
from zeno_fast._shm import Arena, Buffer
from zeno_fast.binary import open_executable
from zeno_fast.errors import MessageTooLarge, PluginCrashed, PluginLoadError, SlotError, SlotTimeout
from zeno_fast.host.context import HostCall
from zeno_fast.host.functions import HostFunctions
from zeno_fast.log import plugin_logger
from zeno_fast.manifest import Manifest
from zeno_fast.plugin import GuestDescription, check_protocol
from zeno_fast.sidecar.monitor import Monitor
from zeno_fast.sidecar.process import Process, ProcessLimits, make_environment
from zeno_fast.sidecar.sharing import Sharing
from zeno_fast.sidecar.worker import Worker
from zeno_fast.slots import parse_slots

HANDSHAKE_TIMEOUT = 10.0  # seconds for each life-cycle slot, where the manifest sets no timeout
HARD_LIMIT = 2  # times `max_memory`: what the kernel refuses to go beyond, in the middle of a call
INIT = RequestTemplate("plugin_init")
REGISTER_SLOTS = RequestTemplate("plugin_register_slots")
NO_PARAMETERS = b"{}"

OnEnd = Callable[[Worker, PluginCrashed, bool], None]


class WorkerFactory:
    """Makes workers; owns the program that they run until `close`.

    Args:
        manifest: What to start and how; already validated.
        host: What the guest may ask of the host.
        monitor: Watches the processes.
        executor: Runs host calls.
        max_message: Bytes of one message, either way, where the manifest says nothing.
        resubmit: Takes a future's call that another process may have.
        on_end: Is told of each process that ended by itself.
        on_spent: Is told of each process that has been given its last call.
        on_described: Is told once what the guest offers.
    """

    def __init__(
        self,
        manifest: Manifest,
        host: HostFunctions,
        monitor: Monitor,
        executor: Executor,
        max_message: int,
        resubmit: Callable[[Call], None],
        on_end: OnEnd,
        on_spent: Callable[[Worker], None],
        on_described: Callable[[GuestDescription], None],
    ) -> None:
        self._manifest = manifest
        self._host = host
        self._monitor = monitor
        self._executor = executor
        self._max_message = max_message
        self._resubmit = resubmit
        self._on_end = on_end
        self._on_spent = on_spent
        self._on_described = on_described
        self._silent = False
        self._executable = open_executable(manifest)
        self.buffers: weakref.WeakValueDictionary[int, Buffer] = weakref.WeakValueDictionary()
        self.arena: Arena | None = None
        if manifest.sidecar.transport != "stdio":
            with contextlib.suppress(OSError):  # then bytes go as base64
                self.arena = Arena(manifest.sidecar.arena_size)
        self.described = False
        self.host_calls: set[HostCall] = set()

    @property
    def longest_start(self) -> float:
        """Seconds that starting and greeting a process takes at most."""
        return 2 * (self._manifest.sidecar.timeout or HANDSHAKE_TIMEOUT)

    def close(self) -> None:
        """Let go of the program and of the arena; processes that run are not affected."""
        self._executable.close()
        if self.arena is not None:
            self.arena.close()

    def spawn(self) -> Worker:
        """Start a process. Raises PluginLoadError."""
        manifest = self._manifest
        executable = self._executable
        options = manifest.sidecar
        sharing = Sharing(options, self.arena, self._silent)
        try:
            process = Process(
                manifest.name,
                executable.argv,
                manifest.folder,
                make_environment(manifest) | sharing.environment,
                executable.pass_fds + sharing.pass_fds,
                ProcessLimits(
                    options.max_files,
                    None if options.max_memory is None else HARD_LIMIT * options.max_memory,
                ),
            )
        except BaseException:
            sharing.close()
            raise
        sharing.started()
        worker = Worker(
            manifest, process, sharing, self._host, self._monitor, self._executor, self._resubmit,
            self._on_end, self._on_spent, self._max_message, self.host_calls,
        )  # fmt: skip
        worker.may_be_pinged = not self._silent
        return worker

    def greet(self, worker: Worker) -> Worker:
        """Ask a process that was just started what it is; return it once it is ready for calls.

        One that says nothing is taken to know no life-cycle slots, and another one that was not
        asked is returned in its place. Raises PluginLoadError, PluginCrashed, PluginUnavailable or
        ProtocolError; the process is gone then.
        """
        description = GuestDescription()
        if not self._silent:
            try:
                description = self._ask(worker)
            except SlotTimeout:
                worker = self._replace_silent(worker)
            except BaseException:
                worker.stop()
                raise
        if not self.described:
            self.described = True
            self._on_described(description)
        return worker

    def _replace_silent(self, worker: Worker) -> Worker:
        stderr = worker.stderr
        worker.stop()
        self._silent = True
        plugin_logger(self._manifest.name).warning(
            "gave no answer to plugin_init or plugin_register_slots, sent as one JSON object "
            "a line; it is used without them%s",
            f"; last on stderr: {stderr}" if stderr else "",
        )
        return self.spawn()

    def _ask(self, worker: Worker) -> GuestDescription:
        answer = self._ask_for(worker, INIT)
        info = answer if isinstance(answer, dict) and "error" not in answer else {}
        check_protocol(info, self._manifest)
        worker.use_features(GuestDescription(info).features, list(self.buffers.values()))
        slots = None
        if not self.described:
            slots = parse_slots(self._ask_for(worker, REGISTER_SLOTS), self._manifest.name)
        return GuestDescription(info, slots)

    def _ask_for(self, worker: Worker, template: RequestTemplate) -> Any:
        """Call a life-cycle slot; return its data, or None where the guest does not know it."""
        manifest = self._manifest
        limit = manifest.sidecar.timeout or HANDSHAKE_TIMEOUT
        deadline_ns = time.monotonic_ns() + int(limit * 1e9)
        try:
            return worker.channel.call(template, NO_PARAMETERS, deadline_ns, None)
        except SlotError:
            return None
        except MessageTooLarge as error:
            raise PluginLoadError(
                f"plugin {manifest.name!r} did not start: {error}",
                plugin=manifest.name, folder=manifest.folder,
            ) from error  # fmt: skip
        except NotSent as error:
            raise worker.crash() from error
