"""One sidecar process and the launcher that starts it, from its start to its end."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import stat
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zeno_fast import permissions
from zeno_fast.errors import PluginLoadError
from zeno_fast.plugin import PROTOCOL

if TYPE_CHECKING:
    from zeno_fast.manifest import Manifest

# What a process needs to start at all and to find its files; never the host's whole environment.
PASSED_ON = frozenset((
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ",
    "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "WINDIR", "COMSPEC", "PATHEXT",
))  # fmt: skip

LAUNCHER = Path(__file__).parent.parent / "_launcher"
MESSAGE = struct.Struct("=iii")  # kind, number, step; see ext/launcher
STEP_FOLDER, STEP_EXEC = 2, 3
START_LIMIT = 30.0  # seconds; only a file system that hangs makes an exec take long
ANSWER_LIMIT = 1.0  # seconds in which a launcher tells of an end or does as it is told
SLICE = 0.02  # seconds between two looks where no descriptor tells, or another thread was told
STANDARD = 3  # descriptors below this one are the program's own


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """What the kernel lets a process have; None for as much as the host.

    Attributes:
        max_files: Number of open files.
        max_memory: Bytes of memory of its own that it may map.
    """

    max_files: int | None = None
    max_memory: int | None = None


def make_environment(manifest: Manifest) -> dict[str, str]:
    """Return all that a sidecar gets to see of the environment."""
    environment = {name: value for name, value in os.environ.items() if name in PASSED_ON}
    environment.update(permissions.granted_variables(manifest.permissions))
    environment.update(manifest.sidecar.env)
    environment.update(
        ZENO_PLUGIN_NAME=manifest.name, ZENO_SIDECAR="true", ZENO_PROTOCOL=str(PROTOCOL)
    )
    return environment


class Process:
    """A started sidecar; owns the process and its stderr, lends out its stdin and stdout.

    The launcher is this process's child and the sidecar's parent; what is to be done to the sidecar
    is asked of it, so that no process is ever signalled by a number that may be another's by now.
    Safe from any thread. In a forked child of the host it is inert: the process is not the child's.

    Args:
        argv: Program, by its path, and arguments.
        folder: Its working directory.
        environment: All it gets to see.
        pass_fds: Descriptors that it inherits beside 0, 1 and 2.
        limits: What it may use.

    Attributes:
        pid: The sidecar's.
        exit_fd: Readable once the sidecar has ended; -1 where the system has no pidfds.

    Raises PluginLoadError where the program cannot be started.
    """

    def __init__(
        self,
        plugin: str,
        argv: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        limits: ProcessLimits = ProcessLimits(),
    ) -> None:
        self._plugin = plugin
        self._argv = argv
        self._folder = folder
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()
        self._status: int | None = None
        self._reaped = False
        self._closing = 0.0
        self._launcher_pid = 0
        self.exit_fd = self._launcher_fd = self.stdin_fd = self.stdout_fd = self.stderr_fd = -1
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inherited: list[int] = []
        try:
            stdin, self.stdin_fd = _pipe(inherited, reads=True)
            self.stdout_fd, stdout = _pipe(inherited, reads=False)
            self.stderr_fd, stderr = _pipe(inherited, reads=False)
            control = _above_standard(theirs.detach(), inherited)
            self._launcher_pid = self._spawn(
                (stdin, stdout, stderr), control, environment, pass_fds, limits
            )
            while inherited:
                os.close(inherited.pop())
            self.pid = self._wait_for_start()
        except BaseException:
            while inherited:
                os.close(inherited.pop())
            for fd in (self.stdin_fd, self.stdout_fd):
                if fd >= 0:
                    os.close(fd)
            self.close()
            raise
        self.started = time.monotonic()

    # -- starting -----------------------------------------------------------------------------

    def _spawn(
        self,
        streams: tuple[int, int, int],
        control: int,
        environment: Mapping[str, str],
        pass_fds: Sequence[int],
        limits: ProcessLimits,
    ) -> int:
        """Start the launcher and return its pid."""
        arguments = [
            str(LAUNCHER),
            str(os.getpid()),
            str(control),
            str(limits.max_files or 0),
            str(limits.max_memory or 0),
            ",".join(map(str, pass_fds)) or "-",
            str(self._folder),
            "--",
            *self._argv,
        ]
        pairs = [*zip(streams, range(STANDARD), strict=True)]
        # What keeps its number goes there and back: a duplicate loses the close-on-exec flag, and
        # not every libc takes it from a descriptor that is duplicated onto itself.
        spare = 1 + max(*streams, control, *pass_fds)
        for fd in (control, *pass_fds):
            pairs += [(fd, spare), (spare, fd)]
        try:
            return os.posix_spawn(
                LAUNCHER,
                arguments,
                dict(environment),
                file_actions=[
                    *((os.POSIX_SPAWN_DUP2, fd, target) for fd, target in pairs),
                    (os.POSIX_SPAWN_CLOSE, spare),
                ],
                setsigmask=signal.valid_signals(),
            )
        except OSError as error:
            hint = ""
            if not LAUNCHER.exists():
                hint = "; in a source tree, run `pip install -e .` to have it built"
            raise self._error(
                f"the launcher {LAUNCHER} could not be started: {error.strerror}{hint}"
            ) from error

    def _wait_for_start(self) -> int:
        """Return the sidecar's pid once it runs its program."""
        kind, number, step = "", 0, 0
        fds: list[int] = []
        if _readable(self._control.fileno(), START_LIMIT):
            data, fds, _, _ = socket.recv_fds(self._control, MESSAGE.size, 2)
            if len(data) == MESSAGE.size:
                code, number, step = MESSAGE.unpack(data)
                kind = chr(code)
        if len(fds) == 2:
            self.exit_fd, self._launcher_fd = fds
        else:
            for fd in fds:  # there was no descriptor left for the other
                os.close(fd)
        self._control.setblocking(False)
        if kind == "S":
            return number
        if kind == "E":
            raise self._error(self._why_not(number, step))
        raise self._error("its launcher ended before it had started the program")

    def _why_not(self, number: int, step: int) -> str:
        """Say in words why the program does not run."""
        reason = os.strerror(number)
        if step == STEP_FOLDER:
            return f"its folder {self._folder} cannot be entered: {reason}"
        if step != STEP_EXEC:
            return f"its process could not be made: {reason}"
        program = self._argv[0]
        text = f"{program} could not be started: {reason} (errno {number})"
        try:
            mode = stat.S_IMODE(os.stat(program).st_mode)
        except OSError:
            return text
        text += f"; its mode is {mode:04o}"
        hints = {
            errno.ENOENT: "the file is there, so its interpreter or its loader is not",
            errno.EACCES: "it, or its interpreter, is not executable, or its file system is "
            "mounted `noexec`",
            errno.ENOEXEC: f"it is no program for this machine ({os.uname().machine}), and no "
            "script whose first line names its interpreter",
            errno.ETXTBSY: "the file is still open for writing; is it being copied?",
        }
        return f"{text}; {hints[number]}" if number in hints else text

    def _error(self, problem: str) -> PluginLoadError:
        return PluginLoadError(
            f"plugin {self._plugin!r}: {problem}", plugin=self._plugin, folder=self._folder
        )

    # -- watching -----------------------------------------------------------------------------

    @property
    def launcher_pid(self) -> int:
        """The launcher's process id."""
        return self._launcher_pid

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the signal's number, or None while it runs."""
        if os.getpid() != self._owner_pid:
            return None
        with self._lock:
            if self._status is None:
                self._look()
            return self._status

    def _look(self) -> None:
        """Take what the launcher has told, if anything; called with the lock held."""
        try:
            data = self._control.recv(MESSAGE.size)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if len(data) == MESSAGE.size:
            self._status = os.waitstatus_to_exitcode(MESSAGE.unpack(data)[1])
        else:
            # The launcher has ended before the sidecar, and so the kernel has killed that.
            self._status = -signal.SIGKILL

    def wait(self, timeout: float) -> int | None:
        """Wait up to `timeout` seconds for the end; return as `returncode` does."""
        deadline = time.monotonic() + timeout
        if os.getpid() != self._owner_pid:
            return None
        if self.exit_fd < 0 or not _readable(self.exit_fd, timeout):
            while self.returncode is None and time.monotonic() < deadline:
                time.sleep(min(SLICE, max(0.0, deadline - time.monotonic())))
            return self.returncode
        told_by = time.monotonic() + ANSWER_LIMIT
        while self.returncode is None:
            if time.monotonic() > told_by:
                self._kill_launcher()
            _readable(self._control.fileno(), SLICE)
        return self.returncode

    # -- ending -------------------------------------------------------------------------------

    def signal_group(self, number: int) -> None:
        """Have SIGTERM sent to the process's group, or SIGKILL to all that it started."""
        if os.getpid() != self._owner_pid or self.returncode is not None:
            return
        try:
            self._control.send(b"K" if number == signal.SIGKILL else b"T")
        except OSError:
            self._kill_launcher()  # it reads nothing any more

    def kill(self) -> int | None:
        """End it and all that it started now, and wait for it."""
        self.signal_group(signal.SIGKILL)
        status = self.wait(ANSWER_LIMIT)
        if status is None and os.getpid() == self._owner_pid:
            self._kill_launcher()  # stopped, perhaps by the sidecar; the kernel kills that with it
            status = self.wait(ANSWER_LIMIT)
        return status

    def _kill_launcher(self) -> None:
        if self._launcher_fd >= 0:
            signal.pidfd_send_signal(self._launcher_fd, signal.SIGKILL)
        elif not self._reaped:
            os.kill(self._launcher_pid, signal.SIGKILL)

    def begin_close(self) -> None:
        """Let go of the launcher, which ends what is left; `reap` tells when that is done."""
        if self._closing:
            return
        self._closing = time.monotonic()
        self._control.close()
        for fd in (self.stderr_fd, self.exit_fd):
            if fd >= 0:
                os.close(fd)
        self.stderr_fd = self.exit_fd = -1

    def reap(self) -> bool:
        """Return whether the launcher has ended, and with it all that the sidecar started."""
        if self._reaped:
            return True
        if os.getpid() == self._owner_pid and self._launcher_pid and not self._has_ended():
            if time.monotonic() > self._closing + 2 * ANSWER_LIMIT:
                self._kill_launcher()
            return False
        self._reaped = True
        if self._launcher_fd >= 0:
            os.close(self._launcher_fd)
            self._launcher_fd = -1
        return True

    def _has_ended(self) -> bool:
        """Reap the launcher if it has ended; return whether it has."""
        fd = self._launcher_fd
        try:
            if fd >= 0:
                return os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG) is not None
            return os.waitid(os.P_PID, self._launcher_pid, os.WEXITED | os.WNOHANG) is not None
        except ChildProcessError:
            # The application ignores SIGCHLD, or waits for children that are not its own.
            return fd < 0 or _readable(fd, 0)

    def close(self) -> None:
        """Let go of everything but the pipes, and wait until nothing is left. Idempotent."""
        self.begin_close()
        while not self.reap():
            if self._launcher_fd >= 0:
                _readable(self._launcher_fd, SLICE)
            else:
                time.sleep(SLICE)


def describe_end(status: int | None) -> str:
    """Say in words how a process ended."""
    if status is None:
        return "was given up"
    if status < 0:
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"
    return f"ended with exit status {status}"


def _readable(fd: int, timeout: float) -> bool:
    """Wait until a descriptor is readable; return whether it is."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(min(timeout, 1e6) * 1000))


def _pipe(inherited: list[int], *, reads: bool) -> tuple[int, int]:
    """Make a pipe, of which the child inherits one end, the one to read from or the other."""
    ends = [*os.pipe()]
    index = 0 if reads else 1
    ends[index] = _above_standard(ends[index], inherited)
    return ends[0], ends[1]


def _above_standard(fd: int, inherited: list[int]) -> int:
    """Move a descriptor out of the way of 0, 1 and 2, which the host may have closed."""
    if fd < STANDARD:
        import fcntl  # noqa: PLC0415 - a host without standard streams is rare

        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STANDARD)
        os.close(fd)
        fd = moved
    inherited.append(fd)
    return fd
