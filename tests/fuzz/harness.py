"""Runs one case against a real Channel over real pipes, beside the model of it."""

from __future__ import annotations

import fcntl
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

from fuzz.asking import ask
from fuzz.cases import ASKING, MAX_CALLS, Case, Step, expand
from fuzz.guest import FuzzFailure, Guest
from fuzz.model import Model
from fuzz.owner import FEATURES, PREFIX, Owner, Sink, Watcher, lost, make_channel
from fuzz.table import Outcome, encoded, encoded_line

from zeno_fast._call import Call, NotSent, RequestTemplate
from zeno_fast._leadership import PUMP_ENDED
from zeno_fast.errors import SlotError, ZenoError

DEADLINE_NS = 600_000_000_000  # never passes by itself
ONE_READ = 30_000  # bytes
JOIN_EVERY = 8  # turns; a thread that waits yields the processor, which may take long
TIME_LIMIT = 5.0  # seconds of processor time that a run may take
WARM_UP_NUMBER = MAX_CALLS
WARM_UP = b'{"type":"guest_response","id":"%s","success":true,"data":null}\n'
# What a call may end with. Anything else that comes out of the channel is a failure.
ACCEPTED = (
    "SlotError",
    "ProtocolError",
    "MessageTooLarge",
    "SlotTimeout",
    "PluginCrashed",
    "NotSent",
    "Lost",
)
COUNTERS = ("calls", "stray", "late", "noise", "in_flight", "queued", "lost")

Cut = Callable[[bytes], Iterator[bytes]]


class Run:
    """One run of a case with one way to cut the output into pieces.

    Args:
        joined: Whether the answers are waited for as `map` does it, else as futures.

    Attributes:
        calls: Those that were started, or None for one that was not, or was answered at once.
        direct: What such calls were given.
    """

    def __init__(self, case: Case, cut: Cut, joined: bool) -> None:
        self.case = case
        self.cut = cut
        self._joined = joined
        self.template = RequestTemplate("fuzz.slot")
        self._began = time.thread_time()
        self._turns = 0
        self._delivered: set[int] = set()
        self.owner = Owner()
        self.watcher = Watcher(False)
        self.loop_watcher = Watcher(True)
        self.calls: list[Call | None] = []
        self.direct: dict[int, Outcome] = {}
        self.sinks: dict[int, Sink] = {}
        self.abandoned: set[int] = set()
        self.outcomes: list[Outcome] = []
        self.counts: dict[str, int] = {}
        self.guest = Guest(PREFIX)
        self.channel = make_channel(self.guest.stdout, self.guest.stdin, self.owner, case)
        self.channel.add_watcher(self.loop_watcher)
        self.model = Model(case, PREFIX)

    @property
    def events(self) -> list[tuple[str, bytes]]:
        """What the owner was told."""
        return self.owner.events

    def run(self) -> None:
        """Do all steps, and end the channel; raises FuzzFailure."""
        try:
            self._warm_up()
            if self.case.features:
                self.channel.use_features(FEATURES)
                self.guest.features = True
            for step in self.case.steps:
                self._step(step)
            self._finish()
        finally:
            self.channel.lose(lost)
            self.channel.close()
            self.guest.close()

    def _warm_up(self) -> None:
        if not self.case.ids:
            return
        call = self._start(WARM_UP_NUMBER, "call")
        self.learn()
        self.write(WARM_UP % self.guest.ids.pop(WARM_UP_NUMBER))
        self.turn()
        if call is None or not call.finished or not self.channel.returns_ids:
            raise FuzzFailure("the first, plain answer was not taken")
        self.watcher.delivered.clear()
        self.guest.sent_at.clear()
        self.guest.printed = 0

    def _step(self, step: Step) -> None:
        kind, number = step.kind, step.number
        if kind in ASKING and self.case.ids:
            ask(self, kind, step.text)
        elif kind in ("calls", "streams", "ping", *ASKING):
            self._start_calls(number, {"streams": "stream", "ping": "ping"}.get(kind, "call"))
            self._print(step.text)
        elif kind == "print":
            self._print(step.text)
        elif number < len(self.calls):
            self._give_up(kind, number, self.calls[number])
        if kind in ("eof", "last"):
            self._end_output()

    def _give_up(self, kind: str, number: int, call: Call | None) -> None:
        if kind == "expire" and number not in self.abandoned:
            self.model.expire(number)
            if call is not None:
                self.channel.expire(call)
        elif kind == "abandon":
            self.model.abandon(number)
            if call is not None and not call.finished:
                self.abandoned.add(number)
                self.channel.abandon(call)

    def _end_output(self) -> None:
        self.guest.close_stdout()
        self.turn()
        self.model.eof()
        self.channel.finish_reading()
        self.lose()

    # -- the host's side ----------------------------------------------------------------------

    def _start(self, number: int, kind: str) -> Call | None:
        """Start one call; None where the channel takes no more."""
        template, payload = self.template, b'{"n":%d}' % number
        deadline = time.monotonic_ns() + DEADLINE_NS
        try:
            if kind == "ping" and self.case.ids:
                self._delivered.add(number)
                return self.channel.start_ping(template, payload, deadline, object(), self.watcher)
            if kind == "stream":
                sink = self.sinks[number] = Sink()
                watcher = None if self._joined else self.loop_watcher
                return self.channel.start_stream(template, payload, deadline, None, sink, watcher)
            if self._joined:
                return self.channel.start_stream(template, payload, deadline, None, None, None)
            return self.channel.start(template, payload, deadline, None, object(), self.watcher)
        except NotSent:
            return None
        finally:
            if not self._joined:
                self._delivered.add(number)

    def _start_calls(self, count: int, kind: str) -> None:
        for _ in range(count):
            call = self._start(len(self.calls), kind)
            self.calls.append(call)
            self.model.start(kind if self.case.ids or kind != "ping" else "call")
            self.learn()

    def expect_delivery(self, number: int, call: Call) -> None:
        """Note a call that was started for a loop."""
        self.calls[number] = call
        self._delivered.add(number)

    def turn(self, nbytes: int = 0) -> None:
        """Have the channel read `nbytes`, as a watcher or a thread that waits would."""
        self._turns += 1
        if self._joined and self._turns % JOIN_EVERY == 1:
            for call in self.calls:
                if call is not None and not call.finished:
                    self.channel.join(call, time.monotonic_ns())
                    break
        # Up to half of the channel's buffer is read at once, and the next call is sent when there
        # was nothing to read.
        turns = 0
        while self.channel.pump() != PUMP_ENDED:
            turns += 1
            if turns > 100:
                raise FuzzFailure("the channel does not read what there is")
            if nbytes < ONE_READ and not self.channel.queued:
                break
            if turns > 1 and not self._unread():
                break
        self._look_at_streams()

    def _unread(self) -> bool:
        return fcntl.ioctl(self.channel.read_fd, termios.FIONREAD, b"\0\0\0\0") != b"\0\0\0\0"

    def _look_at_streams(self) -> None:
        for number, sink in self.sinks.items():
            call = self.calls[number] if number < len(self.calls) else None
            if call is not None and sink.fed:
                sink.fed = False
                if not call.ready:
                    raise FuzzFailure(f"stream {number} has a chunk and is not ready")
                call.unready()

    def lose(self) -> None:
        """End the channel."""
        self.channel.lose(lost)
        self.model.close()

    # -- the guest's side ---------------------------------------------------------------------

    def expand(self, text: bytes) -> bytes:
        """Put in what the placeholders of a case stand for at this moment."""
        return expand(text, PREFIX, self.guest.ids, self.guest.last)

    def _print(self, text: bytes) -> None:
        text = self.expand(text) if self.guest.open else b""
        for piece in self.cut(text):
            self.write(piece)
        self.model.print(text)

    def write(self, piece: bytes) -> None:
        """Print something, and have it read."""
        while piece and not self.channel.lost:
            written = self.guest.put(piece)
            piece = piece[written:]
            waiting = self.channel.queued
            self.turn(written)
            # At once: what is printed from here on may answer what was sent by now.
            if waiting or self.owner.host_calls:
                self.learn()
            if time.thread_time() - self._began > TIME_LIMIT:
                raise FuzzFailure(f"took more than {TIME_LIMIT} seconds")

    def learn(self) -> None:
        """Answer the guest's calls, and have it read what it was sent."""
        for message in self.owner.host_calls:
            answer = {"type": "host_response", "id": message.get("id"), "success": True}
            self.channel.send(encoded_line(answer))
        self.owner.host_calls.clear()
        while True:
            self.guest.read_requests(self._sent)
            if not self.channel.wants_write or self.channel.lost:
                break
            self.channel.flush()

    def _sent(self, number: int, id: bytes) -> None:
        if number != WARM_UP_NUMBER:
            self.model.sent(number, id)

    # -- the result ---------------------------------------------------------------------------

    def _finish(self) -> None:
        self.learn()
        counts = {name: int(getattr(self.channel, name)) for name in COUNTERS}
        if not self.channel.lost and counts["in_flight"] + counts["queued"] > len(self.calls):
            raise FuzzFailure(f"more is pending than was called: {counts}")
        self.lose()
        if self.channel.in_flight or self.channel.queued or not self.channel.lost:
            raise FuzzFailure("a channel that was ended has calls")
        self.counts = counts
        for number, call in enumerate(self.calls):
            self.outcomes.append(self._outcome(number, call))

    def _outcome(self, number: int, call: Call | None) -> Outcome:
        if call is None:
            return self.direct.get(number, ("error", "NotSent"))
        delivered = self.watcher.delivered + self.loop_watcher.delivered
        times = sum(1 for other in delivered if other is call)
        if number in self.abandoned:
            if times or (call.finished and call.take() is not None):
                raise FuzzFailure(f"call {number} was given up, and was given something")
            return ("gone",)
        if not call.finished:
            raise FuzzFailure(f"call {number} was never finished")
        if times != (number in self._delivered):
            raise FuzzFailure(f"call {number} was finished {times} times")
        return self.take(number, call.take)

    def take(self, number: int, function: Callable[[], Any]) -> Outcome:
        """Say what a function gives that takes the answer to a call."""
        try:
            return ("data", encoded(function()))
        except SlotError as error:
            return ("SlotError", str(error), encoded(error.data))
        except (ZenoError, NotSent) as error:
            if type(error).__name__ not in ACCEPTED:
                raise FuzzFailure(f"call {number} ended with {error!r}") from error
            return ("error", type(error).__name__)
