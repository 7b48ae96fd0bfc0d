"""One running sidecar: its process, its channel, its logs, and who watches them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any

import orjson

from zeno_fast._call import Call, NotSent, RequestTemplate
from zeno_fast._channel import Channel
from zeno_fast._pipe import Pipe
from zeno_fast.errors import PluginCrashed, PluginUnavailable
from zeno_fast.host.context import HostCall
from zeno_fast.host.functions import UNKNOWN_CALL, HostFunctions, HostRefusal
from zeno_fast.log import GuestLog, plugin_logger
from zeno_fast.processes import resident_nbytes
from zeno_fast.sidecar.future import SlotFuture
from zeno_fast.sidecar.monitor import Monitor
from zeno_fast.sidecar.process import Process, describe_end
from zeno_fast.sidecar.watchers import LoopWatcher, MonitorWatcher, expire_in_loop

if TYPE_CHECKING:
    from zeno_fast._shm import Buffer
    from zeno_fast.driver import Scope
    from zeno_fast.manifest import Manifest
    from zeno_fast.sidecar.sharing import Sharing

PING = RequestTemplate("plugin_init")
MAX_HOST_CALLS = 64  # of one guest at the same time
END_GRACE = 0.5  # seconds that a guest which closed its output may take to end
TERM_GRACE = 1.0  # seconds between SIGTERM and SIGKILL
OVERDUE_NS = 1_000_000_000  # after its deadline that a call may take to end
REAP_STEP = 0.002  # seconds between two looks at whether all that a process started has ended
STOPPED_TIMES = 3  # that a process is found stopped, a second apart, before it is given up
LONG_REQUEST = 64 * 1024  # bytes above which guests that read with a line limit die silently


class Worker:
    """Owns one sidecar process and the channel to it; safe from any thread.

    Args:
        process: Just started; owned from now on.
        max_message: Bytes of one message, either way, where the manifest sets no limit.
        all_host_calls: Holds those of this guest while they run, and of those before it.
        resubmit: Takes a future's call that another process may have.
        on_end: Is told once when the process ended by itself: why, and if calls were pending.
        on_spent: Is told when the channel was given its last call; must not block.

    Attributes:
        end: What `on_end` was told, or None.
        expires: Monotonic seconds after which it is to be replaced, or 0; its pool's to set, as are
            `calls_at_start`, `seen_calls` and `idle_since`.
    """

    def __init__(
        self,
        manifest: Manifest,
        process: Process,
        sharing: Sharing,
        host: HostFunctions,
        monitor: Monitor,
        executor: Executor,
        resubmit: Callable[[Call], None],
        on_end: Callable[[Worker, PluginCrashed, bool], None],
        on_spent: Callable[[Worker], None],
        max_message: int,
        all_host_calls: set[HostCall],
    ) -> None:
        self._manifest = manifest
        self._plugin = manifest.name
        self._process = process
        self._host = host
        self._monitor = monitor
        self._executor = executor
        self._on_end = on_end
        self._on_spent = on_spent
        self.end: tuple[PluginCrashed, bool] | None = None
        self.expires = 0.0
        self.calls_at_start = self.seen_calls = 0
        self._sharing = sharing
        self.idle_since = process.started
        self._logger = plugin_logger(self._plugin)
        self._stdout_log = GuestLog(self._plugin, "stdout")
        self._stderr_log = GuestLog(self._plugin, "stderr")
        self._stderr_lock = threading.Lock()
        self._host_calls: set[HostCall] = set()
        self._all_host_calls = all_host_calls
        self._pinging = False
        self.may_be_pinged = True
        self._killed_because = ""
        self._times_stopped = 0
        self._heard_when_stopped = -1
        self._insisting = False
        self._gone = False
        self._stopping = False
        self._torn_down = threading.Event()
        self._loops: dict[asyncio.AbstractEventLoop, LoopWatcher] = {}
        self._lock = threading.Lock()
        self._stop_began = 0.0
        os.set_blocking(process.stderr_fd, False)
        options = manifest.sidecar
        self.keep_alive = options.keep_alive
        self._overdue_ns = 0
        self._max_request = options.max_request or max_message
        self.max_response = options.max_response or max_message
        self.channel = Channel(
            Pipe(process.stdout_fd, process.stdin_fd, process.exit_fd, self.max_response),
            self, self._plugin, options.max_queue, self._max_request, options.strict,
        )  # fmt: skip
        self._watcher = MonitorWatcher(self.channel, monitor, resubmit)
        monitor.run_soon(self._watch_process)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def torn_down(self) -> bool:
        """Whether nothing of it is left."""
        return self._torn_down.is_set()

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._process.started

    @property
    def stderr(self) -> str:
        """The last lines of its stderr."""
        return "\n".join(self._stderr_log.tail)

    def status(self) -> dict[str, Any]:
        """Say how the process does, in values that JSON can carry."""
        channel = self.channel
        return {
            "pid": self.pid,
            "state": "running" if channel.pending else "idle",
            "uptime": round(self.uptime, 3),
            "calls": channel.calls,
            "in_flight": channel.in_flight,
            "queued": channel.queued,
            "transport": "shm" if channel.shared else "stdio",
            **({"why_stdio": self._sharing.why_lines} if self._sharing.why_lines else {}),
            "returns_ids": channel.returns_ids,
            "stray_answers": channel.stray,
            "late_answers": channel.late,
            "noise_lines": channel.noise,
            "memory": resident_nbytes(self.pid),
        }

    def is_drained(self) -> bool:
        """Tell whether it has no calls left and takes no more, or those it has are overdue."""
        channel = self.channel
        if channel.lost or channel.retire():
            return True
        if not self._overdue_ns:
            self._overdue_ns = time.monotonic_ns() + OVERDUE_NS
        channel.pump()  # whoever has calls here may read on much later, as with `map`
        return time.monotonic_ns() > max(self._overdue_ns, channel.latest_deadline_ns + OVERDUE_NS)

    def crash(self) -> PluginCrashed:
        """Say how the process ended between two calls; waits for its end."""
        return self._crash(self._process.wait(END_GRACE), None)

    def use_features(self, features: list[Any], buffers: Iterable[Buffer]) -> None:
        """Take note of what the guest understands, which it has said when it was greeted.

        Args:
            buffers: Those that calls may refer to already.
        """
        self.channel.use_features(features)
        self._sharing.take_up(self.channel, features, buffers)

    def give(self, buffer: Buffer) -> bool:
        """Let the process have a buffer; return whether it has it now."""
        return self._sharing.give(buffer, self.channel)

    def forget_buffers(self) -> None:
        """Have the process let go of buffers that nobody has any more."""
        self._sharing.forget_buffers(self.channel)

    # -- calls --------------------------------------------------------------------------------

    def submit(
        self, future: SlotFuture, template: RequestTemplate, payload: bytes, deadline_ns: int,
        scope: Scope | None,
    ) -> None:  # fmt: skip
        """Start a call whose answer goes to `future`. Raises as Channel.start does."""
        call = self.channel.start(template, payload, deadline_ns, scope, future, self._watcher)
        future.attach(self.channel, call)
        self._watcher.track(call)
        self._watcher.arm_soon()

    def ask(
        self, template: RequestTemplate, payload: bytes, deadline_ns: int, scope: Scope | None
    ) -> Any:
        """Start a call from a running event loop. Raises as Channel.call does.

        Returns its data where that is there by now, else the Call, for `answer`.
        """
        watcher = self.loop_watcher()
        if watcher.may_wait():
            call = self.channel.ask_soon(template, payload, deadline_ns, scope, watcher)
            if type(call) is not Call:
                return call
        else:
            future = watcher.make_future()
            call = self.channel.start(template, payload, deadline_ns, scope, future, watcher)
        self.track(call)
        watcher.expect(1)
        watcher.arm()
        return call

    def track(self, call: Call) -> None:
        """Have the deadline of a call kept that blocks others, whatever becomes of its caller."""
        if not self.channel.returns_ids:
            self._watcher.track(call)

    async def answer(self, call: Call) -> Any:
        """Return the data of a call that `ask` started, in the same loop."""
        timer = expire_in_loop(self.channel, call)
        try:
            return await call.future
        except BaseException:  # cancelled, or its coroutine was closed
            self.channel.abandon(call)
            raise
        finally:
            call.watcher.release(timer)
            call.let_go()

    def loop_watcher(self) -> LoopWatcher:
        """Return who reads for the calls of the running event loop. Raises NotSent at the end."""
        loop = asyncio.get_running_loop()
        return self._loops.get(loop) or self._watch_loop(loop)

    def let_go_later(
        self,
        call: Call,
        watcher: LoopWatcher | None,
        timer: asyncio.TimerHandle | None,
        release: Callable[[Worker], None],
    ) -> None:
        """Give up a stream that nobody holds any more; from any thread, at any moment."""

        def let_go() -> None:
            self.channel.abandon(call)
            if watcher is not None:
                watcher.release(timer)
            release(self)

        self._monitor.run_soon(let_go)

    def _watch_loop(self, loop: asyncio.AbstractEventLoop) -> LoopWatcher:
        with self._lock:
            for old in [loop for loop in self._loops if loop.is_closed()]:
                self._loops.pop(old).close()
            if self.channel.lost:
                raise NotSent  # or nobody might close what is made here
            try:
                watcher = self._loops[loop] = LoopWatcher(self.channel, loop)
            except (OSError, ValueError):
                if self.channel.lost:
                    raise NotSent from None  # its descriptors were closed just now
                raise
        return watcher

    # -- what the channel reports, in the middle of reading -----------------------------------

    def noise(self, text: bytes) -> None:
        """Log what the guest printed to stdout beside its messages."""
        self._stdout_log.line(text)

    def stray(self, message: dict[str, Any]) -> None:
        """Log an answer that belongs to no pending call."""
        self._logger.debug("dropped an answer to no pending call, id %r", message.get("id"))

    def host_call(self, message: dict[str, Any]) -> None:
        """Answer a host call, off the reading path."""
        if len(self._host_calls) >= MAX_HOST_CALLS:
            self._answer_host_call(
                message, error=f"more than {MAX_HOST_CALLS} host calls at the same time"
            )
            return
        function = message.get("function")
        if not isinstance(function, str):
            self._answer_host_call(message, error="function must be a string")
            return
        # Without a call_id, which is ours, a host call belongs to the only call that is pending.
        named = message.get("call_id")
        call = self.channel.sole_call() if named is None else self.channel.pending_call(named)
        scope = call.scope if call is not None else UNKNOWN_CALL
        host_call = HostCall(
            self._plugin,
            function,
            None if call is None else call.deadline,
            None if call is None else call.within,
            self.channel,
        )
        self._host_calls.add(host_call)
        self._all_host_calls.add(host_call)
        try:
            self._executor.submit(self._run_host_call, message, scope, host_call)
        except RuntimeError as error:  # the interpreter is shutting down
            self._forget_host_call(host_call)
            self._answer_host_call(message, error=str(error))

    def ended(self) -> None:
        """Find out why the guest's output ended."""
        self._monitor.run_soon(self._check_end)

    def abandoned(self, call: Call) -> None:
        """Watch the deadline of a call without a caller: the guest's next one waits for it."""
        self._watcher.track(call)

    def hung(self) -> None:
        """End a process that let a call time out and could not be asked again safely."""
        self._kill("it gave no usable answer")

    def _kill(self, reason: str) -> None:
        self._killed_because = reason
        self._process.signal_group(signal.SIGKILL)
        self._monitor.run_soon(self._check_end)

    def spent(self) -> None:
        """Have another process started: this one was just given its last call."""
        self._on_spent(self)

    def look(self, stopped: bool) -> None:
        """End a process that is found stopped, with calls pending, several times in a row."""
        heard = self.channel.heard
        if not stopped or heard != self._heard_when_stopped:
            self._times_stopped = 0
        self._heard_when_stopped = heard
        self._times_stopped += stopped
        if self._times_stopped == STOPPED_TIMES:
            self._kill("it was stopped by a signal and did not go on")

    def refuse_host_call(self, id: Any, reason: str) -> None:
        """Answer a host call that was too long to be read."""
        self._logger.warning("a host call was refused: %s", reason)
        self._answer_host_call({"id": id}, error=reason)

    def overran(self) -> None:
        """See whether a guest that let a call time out, and that returns ids, is still there."""
        if self._pinging or not self.may_be_pinged:
            return
        self._pinging = True
        grace_ns = int(self._manifest.sidecar.cancel_timeout * 1e9)
        answer: Future[Any] = Future()
        answer.add_done_callback(self._pinged)
        self._monitor.run_soon(lambda: self._ping(answer, time.monotonic_ns() + grace_ns))

    def _ping(self, answer: Future[Any], deadline_ns: int) -> None:
        try:
            call = self.channel.start_ping(PING, b"{}", deadline_ns, answer, self._watcher)
        except NotSent:
            return  # it is gone
        self._watcher.track(call)
        self._watcher.arm_soon()

    def _pinged(self, _: Future[Any]) -> None:
        self._pinging = False  # whatever it answered: silence is the channel's to judge

    def _run_host_call(
        self, message: dict[str, Any], scope: Scope | None, host_call: HostCall
    ) -> None:
        function = host_call.function
        try:
            data = self._host.call(self._manifest, message.get("parameters"), scope, host_call)
            self._answer_host_call(message, data=data)
        except HostRefusal as refusal:
            self._answer_host_call(message, error=str(refusal))
        except TypeError as error:
            self._logger.exception("the answer of host function %s is no JSON", function)
            self._answer_host_call(message, error=f"{function} gave no JSON: {error}")
        finally:
            self._forget_host_call(host_call)

    def _forget_host_call(self, host_call: HostCall) -> None:
        self._host_calls.discard(host_call)
        self._all_host_calls.discard(host_call)

    def _answer_host_call(
        self, message: dict[str, Any], *, data: Any = None, error: str | None = None
    ) -> None:
        id = message.get("id")
        if not isinstance(id, (str, int, float)):
            id = None  # what cannot be written again, such as deep nesting, among it
        response = {"type": "host_response", "id": id, "success": error is None}
        if error is None:
            response["data"] = data
        else:
            response["error"] = error
        line = orjson.dumps(response, None, orjson.OPT_APPEND_NEWLINE)
        if len(line) > self._max_request:
            reason = (
                f"the answer is {len(line)} bytes, above sidecar.max_request, {self._max_request}"
            )
            self._logger.warning("a host call was refused: %s", reason)
            self._answer_host_call(message, error=reason)
        else:
            self.channel.send(line)

    # -- the process's end, in the monitor's thread -------------------------------------------

    def _watch_process(self) -> None:
        if self._gone:
            return
        self._monitor.watch(self._process.stderr_fd, self._read_stderr)
        if self._process.exit_fd >= 0:
            self._monitor.watch(self._process.exit_fd, self._exited)

    def _read_stderr(self) -> None:
        with self._stderr_lock:
            if self._process.stderr_fd < 0:
                return  # it was read to its end, in the same turn of the monitor
            for _ in range(16):  # then the others' turn; a flood is still there next time
                try:
                    data = os.read(self._process.stderr_fd, 65536)
                except BlockingIOError:
                    return
                if not data:
                    self._stderr_log.finish()
                    self._monitor.unwatch(self._process.stderr_fd)
                    return
                self._stderr_log.feed(data)

    def _exited(self) -> None:
        self._monitor.unwatch(self._process.exit_fd)
        self._check_end()

    def _check_end(self) -> None:
        """Fail what is pending once the process is gone and its last words are read."""
        if self._gone or self._stopping:
            return
        status = self._process.returncode
        if status is None:
            # Its output ended, it did not: it has a moment to follow.
            if not self._insisting:
                self._insisting = True
                self._monitor.run_at(time.monotonic() + END_GRACE, self._insist_on_end)
            self._monitor.run_at(time.monotonic() + 0.005, self._check_end)
            return
        if not self.channel.lost and self.channel.led_by_thread:
            # That thread sees the end too, and reads what is left before it.
            self._monitor.run_at(time.monotonic() + 0.002, self._check_end)
            return
        self.channel.finish_reading()
        if not self._claim_end():
            return
        self._read_stderr()
        self._stderr_log.finish()
        # First, so that whoever is woken finds it counted.
        self.end = self._crash(status, None), self.channel.in_flight > 0
        self._on_end(self, *self.end)
        self.channel.lose(lambda call: self._crash(status, call))
        self._tear_down()

    def _insist_on_end(self) -> None:
        if not self._gone and not self._stopping and self._process.returncode is None:
            self._logger.warning("closed its stdin or stdout without ending; it is killed")
            self._process.signal_group(signal.SIGKILL)

    def _crash(self, status: int | None, call: Call | None) -> PluginCrashed:
        text = f"plugin {self._plugin!r} (pid {self.pid}) "
        if self._killed_because:
            text += f"was killed because {self._killed_because}"
        else:
            text += describe_end(status)
        if call is not None:
            text += f" during slot {call.slot!r}"
            if call.request_nbytes > LONG_REQUEST:
                text += (
                    f"; the request was {call.request_nbytes} bytes, and guests that read lines "
                    "with a limit, often 64 KiB, end when one is longer"
                )
        stderr = self.stderr
        text += f"; last on stderr: {stderr[-2000:]}" if stderr else "; nothing on stderr"
        return PluginCrashed(
            text,
            exit_status=status if status is not None and status >= 0 else None,
            signal=-status if status is not None and status < 0 else None,
            stderr=stderr,
            plugin=self._plugin,
            slot=call.slot if call else None,
        )

    # -- stopping -----------------------------------------------------------------------------

    def begin_stop(self) -> None:
        """Take no more calls, fail those in flight, and let the guest see the end of its input."""
        if self._gone or self._stopping:
            return
        self._stopping = True
        self._stop_began = time.monotonic()
        self.channel.lose(
            lambda call: PluginUnavailable(
                f"plugin {self._plugin!r} was closed during slot {call.slot!r}",
                plugin=self._plugin,
                slot=call.slot,
            )
        )
        self._close_loops()
        self._watcher.stop_writing()
        self.channel.close_write()
        self._watcher.arm_soon()
        self._monitor.run_in(self._manifest.sidecar.stop_timeout, self._ask_to_end)

    def _ask_to_end(self) -> None:
        """Send SIGTERM to a process that has not ended by the end of its input."""
        if self._runs():
            self._logger.info("did not end at the end of its input; it is sent SIGTERM")
            self._process.signal_group(signal.SIGTERM)
            self._monitor.run_in(TERM_GRACE, self._make_end)

    def _make_end(self) -> None:
        if self._runs():
            self._logger.warning("did not end at SIGTERM; it is killed")
            self._process.signal_group(signal.SIGKILL)

    def _runs(self) -> bool:
        return not self._gone and self._process.returncode is None

    def stop(self) -> None:
        """End the process and wait until it is gone; idempotent.

        The end of its input, SIGTERM and SIGKILL follow each other in the monitor's thread, so
        that many processes take no longer than one.
        """
        self.begin_stop()
        left = self._stop_began - time.monotonic() + self._manifest.sidecar.stop_timeout
        if self._process.wait(max(0.0, left) + TERM_GRACE + END_GRACE) is None:
            self._process.kill()  # nobody watches any more
        if self._claim_end():
            self._logger.debug(
                "%s %.3f s after it was to stop",
                describe_end(self._process.returncode), time.monotonic() - self._stop_began,
            )  # fmt: skip
            self._monitor.run_and_wait(self._read_stderr)
            self._tear_down()
        self._torn_down.wait(5.0)

    def _claim_end(self) -> bool:
        """Tell whether the caller is the one to tear this worker down."""
        with self._lock:
            claimed = not self._gone
            self._gone = True
        return claimed

    def _tear_down(self) -> None:
        """Close everything; the process has ended."""
        self._watcher.close()
        self._close_loops()
        self._monitor.run_and_wait(self._unwatch)
        self._sharing.close()
        # A thread may still be on its way out of the channel; it was woken.
        for _ in range(1000):
            if self.channel.close():
                break
            time.sleep(0.001)
        self._process.begin_close()
        self._reap()

    def _reap(self) -> None:
        """Wait until nothing is left of what the process started, without keeping the thread."""
        if self._process.reap():
            self._torn_down.set()
        else:
            self._monitor.run_in(REAP_STEP, self._reap)

    def _close_loops(self) -> None:
        with self._lock:
            loops = list(self._loops.values())
            self._loops.clear()
        for watcher in loops:
            watcher.close()

    def _unwatch(self) -> None:
        self._monitor.unwatch(self._process.stderr_fd)
        self._monitor.unwatch(self._process.exit_fd)
