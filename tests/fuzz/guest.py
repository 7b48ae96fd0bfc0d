"""Stands in for a sidecar: prints what a case says, and reads what it is asked."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterable

import orjson

PAUSE = 0.003  # seconds after which a read that blocks is ended from outside
PATIENCE = 0.02  # seconds after which a guest that cannot print looks whether it has to


class FuzzFailure(AssertionError):
    """A case did what it must not do."""


class Guest:
    """The other ends of a channel's pipes.

    Attributes:
        ids: Those of the calls that were asked, or are sure to be asked next.
        sent_at: How much was printed before the request of a call was seen.
        cancels: The ids of the calls that the guest was told are given up.
        last: The number in the last id.
    """

    def __init__(self, prefix: bytes) -> None:
        self.stdout, self._out = os.pipe()
        self._in, self.stdin = os.pipe()
        os.set_blocking(self._out, False)
        os.set_blocking(self._in, False)
        self._prefix = prefix
        self.features = False  # whether it has asked for them
        self._requests = b""
        self._foretold: dict[int, int] = {}
        self.ids: dict[int, bytes] = {}
        self.sent_at: dict[int, int] = {}
        self.cancels: list[bytes] = []
        self.last = 0
        self.printed = 0
        self.open = True

    def close(self) -> None:
        """Close both ends."""
        os.close(self._in)
        self.close_stdout()

    def close_stdout(self) -> None:
        """Close stdout."""
        if self.open:
            self.open = False
            os.close(self._out)

    def put(self, piece: bytes) -> int:
        """Print as much as the pipe takes; return how much."""
        if not piece or not self.open:
            return 0
        try:
            count = os.write(self._out, piece)
        except BlockingIOError:
            return 0
        self.printed += count
        return count

    def print_all(self, pieces: Iterable[bytes], stop: threading.Event) -> None:
        """Print, however long it takes, until `stop` is set."""
        for index, piece in enumerate(pieces):
            at = 0
            while at < len(piece) and not stop.is_set():
                count = self.put(piece[at:])
                at += count
                if not count:
                    select.select([], [self._out], [], PATIENCE)
            if index == 0:
                time.sleep(PAUSE)

    def foretell(self, number: int) -> bytes:
        """Return the id of a call that is about to be made."""
        self._foretold[number] = self.printed
        self.last += 1
        self.ids[number] = b"%s%d" % (self._prefix, self.last)
        return self.ids[number]

    def read_requests(self, sent: Callable[[int, bytes], None]) -> None:
        """Read what the host sent, and check that each request is whole and sent once."""
        while True:
            try:
                text = os.read(self._in, 1 << 20)
            except BlockingIOError:
                return
            if not text:
                return
            *lines, self._requests = (self._requests + text).split(b"\n")
            for line in lines:
                self._read_request(orjson.loads(line), sent)

    def _read_request(self, request: dict[str, object], sent: Callable[[int, bytes], None]) -> None:
        if request["type"] == "host_response":
            return
        id = str(request["id"]).encode()
        if request["type"] == "cancel":
            self.cancels.append(id)
            return
        number = request["parameters"]["n"]
        foretold = number in self._foretold
        if number in self.sent_at or (id in self.ids.values() and not foretold):
            raise FuzzFailure(f"request {number} or its id {id!r} was sent twice")
        if not id.startswith(self._prefix) or (foretold and self.ids[number] != id):
            raise FuzzFailure(f"{id!r} is no id that could be known beforehand")
        if ("timeout_ms" in request) != self.features:
            raise FuzzFailure(f"the deadline in {request} is not what was asked for")
        self.last = max(self.last, int(id[len(self._prefix) :]))
        self.sent_at[number] = self._foretold.pop(number, self.printed)
        self.ids[number] = id
        if not foretold:
            sent(number, id)
