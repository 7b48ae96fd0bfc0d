"""The part of WASI that the host answers itself.

The library's own `fd_write` hands each write to another thread, one that a forked child does not
have, and its `poll_oneoff` sleeps past any deadline. Everything else of WASI stays with it.
"""

from __future__ import annotations

import struct
import time
from typing import Protocol

from zeno_fast import _wasmtime
from zeno_fast.errors import ProtocolError
from zeno_fast.log import GuestLog

MODULE = "wasi_snapshot_preview1"
SUCCESS, EBADF, EINVAL, ENOTSUP = 0, 8, 28, 58
IOVEC = struct.Struct("<II")
# userdata, tag; then either clock, timeout, precision and flags, or a descriptor
SUBSCRIPTION = struct.Struct("<QB7xI4xQQH6x")
EVENT = struct.Struct("<QHB5xQH6x")  # userdata, error, tag, bytes, flags
CLOCK_TAG, READ_TAG, WRITE_TAG = 0, 1, 2
REALTIME = 0
ABSOLUTE = 1
HANGUP = 1
# What is done in one go: while the host works no deadline ends the guest.
MOST_PARTS = 1024
MOST_BYTES = 1 << 20
MOST_SUBSCRIPTIONS = 4096
NAP_NS = 20_000_000  # how long a sleeping guest may take to notice that it was closed


class Caller(Protocol):
    """The guest that asks, as far as it is known here."""

    streams: tuple[GuestLog, GuestLog]

    @property
    def deadline(self) -> int:
        """Of the running call; nanoseconds by the clock of `_wasmtime.now_ns`."""
        ...

    @property
    def interrupted(self) -> bool:
        """Whether the guest is to end."""
        ...

    def read(self, address: int, nbytes: int) -> bytes:
        """Return bytes of the guest's memory. Raises ProtocolError."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Change bytes of the guest's memory. Raises ProtocolError."""
        ...


def fd_write(guest: Caller, fd: int, parts: int, nparts: int, written: int) -> int:
    """Write to stdout or stderr, which are logged; there is nothing else to write to."""
    if fd not in (1, 2):
        return EBADF
    nbytes = 0
    for address, size in IOVEC.iter_unpack(guest.read(parts, 8 * min(nparts, MOST_PARTS))):
        # The rest the guest writes next, as after any write that took only a part.
        taken = min(size, MOST_BYTES - nbytes)
        guest.streams[fd - 1].feed(guest.read(address, taken))
        nbytes += taken
        if taken < size:
            break
    guest.write(written, struct.pack("<I", nbytes))
    return SUCCESS


def poll_oneoff(guest: Caller, subscriptions: int, events: int, count: int, ready: int) -> int:
    """Wait for the first of some moments, but not beyond the call's deadline."""
    if count == 0:
        return EINVAL
    if count > MOST_SUBSCRIPTIONS:
        raise ProtocolError(f"poll_oneoff was called for {count} events")
    asked = list(SUBSCRIPTION.iter_unpack(guest.read(subscriptions, SUBSCRIPTION.size * count)))
    happened = [
        _stream_event(userdata, tag, fd) for userdata, tag, fd, _, _, _ in asked if tag != CLOCK_TAG
    ]
    moments = []
    for userdata, tag, clock, timeout, _, flags in asked:
        if tag != CLOCK_TAG:
            continue
        if not flags & ABSOLUTE:
            moments.append((_wasmtime.now_ns() + timeout, userdata))
        elif clock == REALTIME:
            moments.append((_wasmtime.now_ns() + timeout - time.time_ns(), userdata))
        else:  # counted from a moment that only the library knows
            happened.append(EVENT.pack(userdata, ENOTSUP, CLOCK_TAG, 0, 0))
    if not happened:
        first = min(moments)[0]
        _sleep(guest, first)
        happened = [
            EVENT.pack(userdata, SUCCESS, CLOCK_TAG, 0, 0)
            for moment, userdata in moments
            if moment <= first
        ]
    guest.write(events, b"".join(happened))
    guest.write(ready, struct.pack("<I", len(happened)))
    return SUCCESS


def _stream_event(userdata: int, tag: int, fd: int) -> bytes:
    """Say at once that stdin has ended and that the other streams can be written to."""
    if tag == READ_TAG and fd == 0:
        return EVENT.pack(userdata, SUCCESS, tag, 0, HANGUP)
    error = SUCCESS if tag == WRITE_TAG and fd in (1, 2) else EBADF
    return EVENT.pack(userdata, error, tag, 0, 0)


def _sleep(guest: Caller, moment: int) -> None:
    moment = min(moment, guest.deadline)
    while not guest.interrupted and (left := moment - _wasmtime.now_ns()) > 0:
        time.sleep(min(left, NAP_NS) / 1e9)
