"""What a module compiled from AssemblyScript imports where its author has changed nothing."""

from __future__ import annotations

import struct

from zeno_fast.errors import ProtocolError
from zeno_fast.wasm.wasi import Caller

MOST_BYTES = 4096  # of a message that is shown
SIZE = struct.Struct("<I")


def abort(guest: Caller, message: int, file: int, line: int, column: int) -> int:
    """End the guest's call with the message of a failed assertion or an exception."""
    place = f" at {_text(guest, file)}:{line}:{column}" if file else ""
    raise ProtocolError(f"aborted: {_text(guest, message) or 'no message'}{place}")


def _text(guest: Caller, address: int) -> str:
    """Return a string: UTF-16, with its size in bytes before it."""
    if address < SIZE.size:
        return ""
    (nbytes,) = SIZE.unpack(guest.read(address - SIZE.size, SIZE.size))
    return guest.read(address, min(nbytes, MOST_BYTES)).decode("utf-16-le", "replace")
