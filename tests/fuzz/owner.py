"""Stands in for those whom a channel tells things: its worker, its watchers, and its streams."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

from fuzz.cases import Case
from fuzz.table import CHUNKS, encoded, encoded_line

from zeno_fast._call import Call
from zeno_fast._channel import Channel
from zeno_fast._pipe import Pipe
from zeno_fast.errors import ZenoError

PREFIX_SEED = "0fedcba9"  # so that a case is the same whenever it is run
PREFIX = b"z" + PREFIX_SEED.encode() + b"."
FEATURES = ("cancel", "deadline")


class Owner:
    """Stands in for a Worker: notes what the channel reports."""

    def __init__(self) -> None:
        self.events: list[tuple[str, bytes]] = []
        self.host_calls: list[dict[str, Any]] = []
        self.ended_event = threading.Event()
        self.channel: Channel | None = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)

        def note(*values: Any) -> None:
            plain = [value for value in values if isinstance(value, (bytes, int, str, dict))]
            self.events.append((name, encoded(plain)))

        return note

    def host_call(self, message: dict[str, Any]) -> None:
        self.events.append(("host_call", encoded(message)))
        self.host_calls.append(message)
        if self.channel is not None:  # whom it is for; that is looked up in the middle of reading
            self.channel.sole_call()
            self.channel.pending_call(message.get("call_id"))

    def refuse_host_call(self, id: Any, reason: str) -> None:
        self.events.append(("refuse_host_call", encoded(id)))
        if self.channel is not None:
            self.channel.send(encoded_line({"type": "host_response", "id": id, "success": False}))

    def ended(self) -> None:
        self.events.append(("ended", b""))
        self.ended_event.set()


class Watcher:
    """Stands in for the watcher of a loop, or for that of the monitor."""

    def __init__(self, is_loop: bool) -> None:
        self.is_loop = is_loop
        self.delivered: list[Call] = []
        self.shown: list[Sink] = []

    def make_future(self) -> object:
        return object()

    def deliver(self, call: Call) -> None:
        self.delivered.append(call)

    def deliver_chunk(self, sink: Sink) -> None:
        self.shown.append(sink)

    def arm_soon(self) -> None:
        pass


class Sink:
    """Takes the chunks of one stream; there is room for so many."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.fed = False  # since `Call.unready`

    def feed(self, data: Any, nbytes: int) -> bool:
        if len(self.chunks) == CHUNKS:
            return False
        self.chunks.append(encoded([nbytes, data]))
        self.fed = True
        return True


class Lost(ZenoError):
    """What the harness ends a channel with, as a worker does when its process is gone."""


def lost(call: Call) -> Lost:
    """Make the error of a call that a channel had when it was ended."""
    return Lost(f"slot {call.slot}")


def make_channel(read_fd: int, write_fd: int, owner: Owner, case: Case) -> Channel:
    """Make the channel; the only place that knows its arguments."""
    with mock.patch.object(secrets, "token_hex", return_value=PREFIX_SEED):
        pipe = Pipe(read_fd, write_fd, -1, case.limit)
        channel = owner.channel = Channel(pipe, owner, "fuzz", 1000, 1 << 20, case.strict)
    return channel
