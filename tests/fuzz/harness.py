"""Runs one case against a real Channel over real pipes, and compares the result with the model."""

from __future__ import annotations

import fcntl
import os
import secrets
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import orjson
from fuzz.cases import MAX_CALLS, Case, expand
from fuzz.model import Model, Outcome, encoded, encoded_line

from zeno_fast._call import Call, NotSent, RequestTemplate
from zeno_fast._channel import PUMP_ENDED, Channel
from zeno_fast._pipe import Pipe
from zeno_fast.errors import SlotError, ZenoError

PREFIX_SEED = "0fedcba9"  # so that a case is the same whenever it is run
PREFIX = b"z" + PREFIX_SEED.encode() + b"."
DEADLINE_NS = 600_000_000_000  # never passes by itself
ONE_READ = 30_000  # bytes
JOIN_EVERY = 8  # turns; a thread that waits yields the processor, which may take long
TIME_LIMIT = 5.0  # seconds of processor time that a run may take
WARM_UP_NUMBER = MAX_CALLS
WARM_UP = b'{"type":"guest_response","id":"%s","success":true,"data":null}\n'
# What a call may end with. Anything else that comes out of the channel is a failure.
ACCEPTED = ("SlotError", "ProtocolError", "MessageTooLarge", "SlotTimeout", "NotSent", "Lost")
COUNTERS = ("calls", "stray", "noise", "in_flight", "queued", "lost")

Cut = Callable[[bytes], Iterator[bytes]]


class FuzzFailure(AssertionError):
    """A case did what it must not do."""


class Lost(ZenoError):
    """What the harness ends a channel with, as a worker does when its process is gone."""


class Owner:
    """Stands in for a Worker: notes what the channel reports."""

    is_loop = False  # as a watcher

    def __init__(self) -> None:
        self.events: list[tuple[str, bytes]] = []
        self.host_calls: list[dict[str, Any]] = []
        self.delivered: list[Call] = []

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

    def deliver(self, call: Call) -> None:
        self.delivered.append(call)


def make_channel(read_fd: int, write_fd: int, owner: Owner, case: Case) -> Channel:
    """Make the channel; the only place that knows its arguments."""
    with mock.patch.object(secrets, "token_hex", return_value=PREFIX_SEED):
        pipe = Pipe(read_fd, write_fd, -1, case.limit)
        return Channel(pipe, owner, "fuzz", 1000, 1 << 20, case.strict)


class Run:
    """One run of a case with one way to cut the output into pieces.

    Args:
        joined: Whether the answers are waited for as `map` does it, else as futures.
    """

    def __init__(self, case: Case, cut: Cut, joined: bool) -> None:
        self._case = case
        self._cut = cut
        self._joined = joined
        self._template = RequestTemplate("fuzz.slot")
        self._owner = Owner()
        self._began = time.thread_time()
        self._requests = b""
        self._ids: dict[int, bytes] = {}
        self._printed = 0
        self._turns = 0
        self._open = True
        self.calls: list[Call | None] = []
        self.abandoned: set[int] = set()
        self.sent_at: dict[int, int] = {}
        self.outcomes: list[Outcome] = []
        self.counts: dict[str, int] = {}
        self._read_fd, channel_out = os.pipe()
        channel_in, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._channel = make_channel(channel_in, channel_out, self._owner, case)
        self.model = Model(case, PREFIX)

    @property
    def events(self) -> list[tuple[str, bytes]]:
        """What the owner was told."""
        return self._owner.events

    def run(self) -> None:
        """Do all steps, and end the channel; raises FuzzFailure."""
        try:
            self._warm_up()
            for step in self._case.steps:
                self._step(step.kind, step.number, step.text)
            self._finish()
        finally:
            self._channel.lose(lambda call: Lost("the run failed"))
            self._channel.close()
            os.close(self._read_fd)
            if self._open:
                os.close(self._write_fd)

    def _warm_up(self) -> None:
        if not self._case.ids:
            return
        call = self._start(WARM_UP_NUMBER)
        self._learn()
        self._write(WARM_UP % self._ids.pop(WARM_UP_NUMBER))
        self._turn()
        if call is None or not call.finished or not self._channel.returns_ids:
            raise FuzzFailure("the first, plain answer was not taken")
        self._owner.delivered.clear()
        self.sent_at.clear()
        self._printed = 0

    def _step(self, kind: str, number: int, text: bytes) -> None:
        known = number < len(self.calls)
        call = self.calls[number] if known else None
        if kind == "calls":
            self._start_calls(number)
        elif kind == "print" and self._open:
            self._print(expand(text, PREFIX, self._ids))
        elif kind == "eof" and self._open:
            self._open = False
            os.close(self._write_fd)
            self._turn()
            self.model.eof()
            self._channel.finish_reading()
            self._lose()
        elif kind == "expire" and known and number not in self.abandoned:
            self.model.expire(number)
            if call is not None:
                self._channel.expire(call)
        elif kind == "abandon" and known:
            self.model.abandon(number)
            if call is not None and not call.finished:
                self.abandoned.add(number)
                self._channel.abandon(call)

    # -- the host's side ----------------------------------------------------------------------

    def _start(self, number: int) -> Call | None:
        """Start one call; None where the channel takes no more."""
        payload = b'{"n":%d}' % number
        deadline = time.monotonic_ns() + DEADLINE_NS
        try:
            if self._joined:
                return self._channel.start_many(self._template, [payload], deadline, None)[0]
            return self._channel.start(
                self._template, payload, deadline, None, object(), self._owner
            )
        except NotSent:
            return None

    def _start_calls(self, count: int) -> None:
        for _ in range(count):
            call = self._start(len(self.calls))
            self.calls.append(call)
            self.model.start()
            self._learn()

    def _turn(self, nbytes: int = 0) -> None:
        """Have the channel read `nbytes`, as a watcher or a thread that waits would."""
        self._turns += 1
        if self._joined and self._turns % JOIN_EVERY == 1:
            for call in self.calls:
                if call is not None and not call.finished:
                    self._channel.join(call, time.monotonic_ns())
                    break
        # Up to half of the channel's buffer is read at once, and the next call is sent when there
        # was nothing to read.
        turns = 0
        while self._channel.pump() != PUMP_ENDED:
            turns += 1
            if turns > 100:
                raise FuzzFailure("the channel does not read what there is")
            if nbytes < ONE_READ and not self._channel.queued:
                return
            if turns > 1 and not self._unread():
                return

    def _unread(self) -> bool:
        return fcntl.ioctl(self._channel.read_fd, termios.FIONREAD, b"\0\0\0\0") != b"\0\0\0\0"

    def _lose(self) -> None:
        self._channel.lose(lambda call: Lost(f"slot {call.slot}"))
        self.model.close()

    # -- the guest's side ---------------------------------------------------------------------

    def _print(self, text: bytes) -> None:
        for piece in self._cut(text):
            self._write(piece)
            if time.thread_time() - self._began > TIME_LIMIT:
                raise FuzzFailure(f"took more than {TIME_LIMIT} seconds")
        self.model.print(text)

    def _write(self, piece: bytes) -> None:
        while piece and not self._channel.lost:
            written = os.write(self._write_fd, piece)
            piece = piece[written:]
            self._printed += written
            waiting = self._channel.queued
            self._turn(written)
            # At once: what is printed from here on may answer what was sent by now.
            if waiting or self._owner.host_calls:
                self._answer_host_calls()
                self._learn()

    def _answer_host_calls(self) -> None:
        for message in self._owner.host_calls:
            answer = {"type": "host_response", "id": message.get("id"), "success": True}
            self._channel.send(encoded_line(answer))
        self._owner.host_calls.clear()

    def _learn(self) -> None:
        """Read what the host sent, and check that each request is whole and sent once."""
        try:
            self._requests += os.read(self._read_fd, 1 << 20)
        except BlockingIOError:
            return
        *lines, self._requests = self._requests.split(b"\n")
        for line in lines:
            request = orjson.loads(line)
            if request["type"] in ("host_response", "cancel"):
                continue
            number = request["parameters"]["n"]
            id = request["id"].encode()
            if number in self.sent_at or id in self._ids.values():
                raise FuzzFailure(f"request {number} or its id {id!r} was sent twice")
            if not id.startswith(PREFIX):
                raise FuzzFailure(f"{id!r} is no id that the harness can know beforehand")
            self.sent_at[number] = self._printed
            self._ids[number] = id
            if number != WARM_UP_NUMBER:
                self.model.sent(number, id)

    # -- the result ---------------------------------------------------------------------------

    def _finish(self) -> None:
        self._learn()
        counts = {name: int(getattr(self._channel, name)) for name in COUNTERS}
        if not self._channel.lost and counts["in_flight"] + counts["queued"] > len(self.calls):
            raise FuzzFailure(f"more is pending than was called: {counts}")
        self._lose()
        if self._channel.in_flight or self._channel.queued or not self._channel.lost:
            raise FuzzFailure("a channel that was ended has calls")
        self.counts = counts
        for number, call in enumerate(self.calls):
            self.outcomes.append(self._outcome(number, call))

    def _outcome(self, number: int, call: Call | None) -> Outcome:
        if call is None:
            return ("error", "NotSent")
        times = sum(1 for other in self._owner.delivered if other is call)
        if number in self.abandoned:
            if times or (call.finished and self._channel.wait_for(call) is not None):
                raise FuzzFailure(f"call {number} was given up, and was given something")
            return ("gone",)
        if not call.finished:
            raise FuzzFailure(f"call {number} was never finished")
        if times != (0 if self._joined else 1):
            raise FuzzFailure(f"call {number} was finished {times} times")
        try:
            return ("data", encoded(self._channel.wait_for(call)))
        except SlotError as error:
            return ("SlotError", str(error), encoded(error.data))
        except (ZenoError, NotSent) as error:
            if type(error).__name__ not in ACCEPTED:
                raise FuzzFailure(f"call {number} ended with {error!r}") from error
            return ("error", type(error).__name__)
