"""One child process, from its start to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
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

TERM_GRACE = 1.0  # seconds between SIGTERM and SIGKILL


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

    Safe from any thread. In a forked child of the host it is inert: the process is not the child's.

    Args:
        argv: Program and arguments.
        folder: Its working directory.
        environment: All it gets to see.
        pass_fds: Descriptors that it inherits beside 0, 1 and 2.

    Raises PluginLoadError where the program cannot be started.
    """

    def __init__(
        self,
        plugin: str,
        argv: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> None:
        try:
            self._popen = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=folder,
                env=dict(environment),
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
        except OSError as error:
            raise PluginLoadError(
                f"plugin {plugin!r}: {argv[0]} could not be started: {error.strerror or error}",
                plugin=plugin,
                folder=folder,
            ) from error
        self.pid = self._popen.pid
        self.started = time.monotonic()
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()
        assert self._popen.stdin and self._popen.stdout and self._popen.stderr
        # Detached, so that each descriptor has one owner: the channel the pipes, this class stderr.
        self.stdin_fd = _detach(self._popen.stdin)
        self.stdout_fd = _detach(self._popen.stdout)
        self.stderr_fd = _detach(self._popen.stderr)
        self._popen.stdin = self._popen.stdout = self._popen.stderr = None
        self.exit_fd = _open_pidfd(self.pid)

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the signal's number, or None while it runs."""
        if os.getpid() != self._owner_pid:
            return None
        return self._popen.poll()

    def wait(self, timeout: float) -> int | None:
        """Wait up to `timeout` seconds for the end; return as `returncode` does."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and what it started in its session, while it runs."""
        if os.getpid() != self._owner_pid:
            return
        with self._lock:
            # Not reaped yet, so neither its pid nor its group can belong to anybody else.
            if self._popen.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, number)

    def stop(self, timeout: float) -> int | None:
        """Wait for an end that its end of input asked for; insist after `timeout` seconds."""
        if os.getpid() != self._owner_pid:
            return None
        status = self.wait(timeout)
        if status is None:
            self.signal_group(signal.SIGTERM)
            status = self.wait(TERM_GRACE)
        if status is None:
            status = self.kill()
        return status

    def kill(self) -> int | None:
        """End it now and wait for it."""
        self.signal_group(signal.SIGKILL)
        return self.wait(10.0)

    def close(self) -> None:
        """Close the descriptors that are this class's own; the process must have ended."""
        for fd in (self.stderr_fd, self.exit_fd):
            if fd >= 0:
                os.close(fd)
        self.stderr_fd = self.exit_fd = -1


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


def _detach(stream: object) -> int:
    fd = os.dup(stream.fileno())  # type: ignore[attr-defined]
    stream.close()  # type: ignore[attr-defined]
    return fd


def _open_pidfd(pid: int) -> int:
    """Return a descriptor that is readable once the process has ended, or -1 without pidfds."""
    if not hasattr(os, "pidfd_open"):
        return -1
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1  # an old kernel or a seccomp filter: the end of its output tells, too
