"""What the fault tests measure with: time, memory, and who waits for an answer."""

from __future__ import annotations

import asyncio
import ctypes
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from zeno_fast import PluginManager

MIB = 1024 * 1024


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer; the bound is far above what a loaded machine needs."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"took {took:.1f} s"


def watch_memory() -> Callable[[], int]:
    """Begin to watch; the function tells by how many bytes the host has grown at its largest."""
    ctypes.CDLL(None).malloc_trim(0)  # or what an earlier test has freed would hide a growth
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    except OSError as error:
        pytest.skip(f"the peak of resident memory cannot be reset: {error}")
    before = _memory("VmRSS")
    return lambda: _memory("VmHWM") - before


def resident() -> int:
    """Return the bytes of memory that the host takes now."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is not taken
    return _memory("VmRSS")


def _memory(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def call_each_way(
    manager: PluginManager, slot: str, parameters: dict[str, Any], timeout: float
) -> Iterator[Callable[[], Any]]:
    """Call from a thread, from an event loop, and as a future that nobody reads for."""
    yield lambda: manager.call(slot, parameters, timeout=timeout)
    yield lambda: asyncio.run(manager.call_async(slot, parameters, timeout=timeout))

    def submitted() -> Any:
        future = manager.submit(slot, parameters, timeout=timeout)
        assert not wait([future], timeout + 10).not_done
        return future.result()

    yield submitted


def pid_of(manager: PluginManager) -> int:
    """Return the pid of the plugin under test; the same pid is the same process."""
    return int(manager.get_plugin("scripted").status()["pid"])
