"""A manager's status for other processes of the same user, over a local socket.

On Linux the socket has an abstract address, which leaves nothing behind whatever ends the process:
`zeno_fast/UID/PID/NUMBER`. Elsewhere it is a file that only the user can reach. Whoever connects
gets one JSON document and the end of the stream.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

PREFIX = "zeno_fast"
CLIENT_LIMIT = 1.0  # seconds for one client to take its document
_numbers = itertools.count()
_LINUX = sys.platform == "linux"


class Publication:
    """Serves a status until it is closed; a daemon thread of its own waits for who asks.

    Args:
        status: Returns what is to be served; called in that thread.
    """

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status
        self._owner_pid = os.getpid()
        name = f"{os.getpid()}/{next(_numbers)}"
        self._path: Path | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        if _LINUX:
            self._socket.bind(f"\0{PREFIX}/{os.geteuid()}/{name}")
        else:
            self._path = _folder() / name.replace("/", "-")
            self._socket.bind(str(self._path))
        self._socket.listen(8)
        _open.add(self)
        self._thread = threading.Thread(target=self._run, name="zeno_fast status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Serve nobody any more. Idempotent."""
        _open.discard(self)
        if os.getpid() == self._owner_pid:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # which ends the thread's wait
            if self._thread is not threading.current_thread():
                self._thread.join(2 * CLIENT_LIMIT)
            if self._path is not None:
                self._path.unlink(missing_ok=True)
        self._socket.close()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            with client, contextlib.suppress(OSError):
                client.settimeout(CLIENT_LIMIT)
                if may_ask(client):
                    client.sendall(orjson.dumps(self._document(), default=str))

    def _document(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "program": " ".join(sys.argv) or sys.executable,
            "time": time.time(),
            **self._status(),
        }


_open: weakref.WeakSet[Publication] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for publication in list(_open):
        publication.close()


if hasattr(os, "register_at_fork"):
    # A child would keep the address, and answer nobody.
    os.register_at_fork(after_in_child=_let_go_in_child)


def may_ask(client: socket.socket) -> bool:
    """Tell whether the other side is this user, or root; off Linux the file's mode sees to it."""
    if not _LINUX:
        return True
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.geteuid())


def published() -> Iterator[dict[str, Any]]:
    """Yield the status of each manager of this user that publishes it, by their pids."""
    found = []
    for address, pid in _addresses():
        with contextlib.suppress(OSError, orjson.JSONDecodeError):
            found.append((pid, _ask(address)))
    yield from (document for _, document in sorted(found, key=lambda entry: entry[0]))


def _addresses() -> Iterator[tuple[str, int]]:
    if not _LINUX:
        for path in _folder().iterdir():
            yield str(path), int(path.name.partition("-")[0])
        return
    mine = f"@{PREFIX}/{os.geteuid()}/"
    lines = Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace").splitlines()
    # One line for the listening socket, and one for each connection to it.
    for name in sorted({line.split()[-1] for line in lines if mine in line}):
        if name.startswith(mine):
            yield "\0" + name[1:], int(name[len(mine) :].partition("/")[0])


def _ask(address: str) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2 * CLIENT_LIMIT)
        client.connect(address)
        if not may_ask(client):
            raise PermissionError("another user has taken the address")
        parts = []
        while part := client.recv(1 << 16):
            parts.append(part)
    document: dict[str, Any] = orjson.loads(b"".join(parts))
    return document


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"{PREFIX}-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder
