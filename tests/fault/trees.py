"""Guests that do not want to end, hosts that are killed, and what is left of them afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import zeno_fast

# Ignores all it can, and leaves one child, one orphan and two in sessions of their own.
STUBBORN = """
import subprocess
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
    signal.signal(number, signal.SIG_IGN)

def leave(sessions):
    if os.fork() == 0:
        for _ in range(sessions):
            os.setsid()
            if os.fork():
                os._exit(0)
        for fd in range(3):
            os.close(fd)
        while True:
            time.sleep(1000)

leave(0)
leave(1)
leave(2)
for request in requests():
    lifecycle(request, "stubborn")
while True:
    time.sleep(1000)
"""

HOST = """\
import os, sys, threading, time
from pathlib import Path
import zeno_fast.sidecar.process as process
from zeno_fast import PluginManager
if {launcher!r}:
    process.LAUNCHER = Path({launcher!r})
manager = PluginManager()
thread = threading.Thread(target=manager.load_plugin, args=({folder!r},))
thread.start()
{meanwhile}
thread.join()
print("ready", flush=True)
{then}
"""


def start_host(
    folder: Path, then: str = "time.sleep(1000)", *, meanwhile: str = "", launcher: str = ""
) -> subprocess.Popen[str]:
    """Start a host of the plugin in `folder`, which a thread loads that ends before `then`."""
    text = HOST.format(folder=str(folder), then=then, meanwhile=meanwhile, launcher=launcher)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text)],
        env={**os.environ, "PYTHONPATH": str(Path(zeno_fast.__file__).parents[1])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def processes_of(folder: Path) -> list[int]:
    """Return the processes whose command line or working directory is in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            where = os.readlink(entry / "cwd")
        except OSError:
            continue
        # The host names the folder too, in its program's text.
        if (os.fsencode(folder) in command and b"-c\0" not in command) or where == str(folder):
            found.append(int(entry.name))
    return found


def gone_within(folder: Path, seconds: float) -> bool:
    """Wait until no process of a folder is left; return whether that was in time."""
    deadline = time.monotonic() + seconds
    while processes_of(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def end(host: subprocess.Popen[str]) -> str:
    """Wait for a host that ends; return what it printed to stderr."""
    _, errors = host.communicate(timeout=20)
    return errors
