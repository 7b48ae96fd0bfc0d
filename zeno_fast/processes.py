"""What the system tells of a running process; nothing where it has no /proc."""

from __future__ import annotations

import os

PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped by a signal; one that a debugger holds is not."""
    # The name before the state may hold anything, but no more than 16 bytes of it.
    return _read(pid, "stat").rpartition(b")")[2][1:2] == b"T"


def resident_nbytes(pid: int) -> int:
    """Return the memory that a process has in use; 0 where that is unknown."""
    fields = _read(pid, "statm").split()
    return int(fields[1]) * PAGE_NBYTES if len(fields) > 1 else 0


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""
