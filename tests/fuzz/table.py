"""What the model says of each call, and how outcomes are written so that they can be compared."""

from __future__ import annotations

import marshal
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson
from fuzz.cases import Case
from fuzz.lines import CHUNK, HOST_CALL, Message, Reading, objects

NO_REASON = "the guest reported a failure without a reason"
CHUNKS = 4  # that a stream of the harness takes; one more is refused
LATER = 1 << 60  # more than anybody prints

Outcome = tuple[Any, ...]


def encoded(data: Any) -> bytes:
    """Encode data so that 1, 1.0 and True differ, however deeply it is nested."""
    return marshal.dumps(data, 0)


def encoded_line(message: dict[str, Any]) -> bytes:
    """Encode a message as a line."""
    try:
        return orjson.dumps(message, None, orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # an id that is nested more deeply than can be written
        return b'{"type":"host_response","id":null,"success":false}\n'


def outcome_of(message: dict[str, Any]) -> Outcome:
    """Say what a call is given by an answer."""
    success, error = message.get("success"), message.get("error")
    data = encoded(message.get("data"))
    if success is True or (success is None and not error):
        return ("data", data)
    if not isinstance(error, str):
        error = "" if error is None else orjson.dumps(error).decode()
    return ("SlotError", error or NO_REASON, data)


@dataclass(eq=False)
class Entry:
    """What the table says of one call.

    Attributes:
        kind: `call`, `stream` or `ping`.
        state: `queued`, `sent`, `done`, or `gone`: nobody waits for its answer, but the guest's
            next call does.
        exact: What it must be given; good only where `sure`, or where it is `known`.
        allowed: What it may be given, and how much was printed up to where that ends.
        errors: With what else it may end.
        chunks: What its stream is given, if `sure`; `maybe_chunks` may be besides if not.
        cancelled: Whether the guest is told that it was given up; None: it may be.
        began: How much was printed before it was started.
    """

    kind: str = "call"
    state: str = "sent"
    sure: bool = True
    exact: Outcome | None = None
    known: bool = False
    allowed: dict[Outcome, int] = field(default_factory=dict)
    errors: set[str] = field(default_factory=set)
    chunks: list[bytes] = field(default_factory=list)
    maybe_chunks: list[bytes] = field(default_factory=list)
    cancelled: bool | None = False
    began: int = 0

    @property
    def pending(self) -> bool:
        """Whether the guest has it."""
        return self.state in ("sent", "gone")

    @property
    def settled(self) -> bool:
        """Whether it certainly has what it is given."""
        return self.sure and self.state == "done"

    def finish(self, outcome: Outcome) -> None:
        if self.state != "gone":
            self.exact = outcome
        self.state = "done"

    def give_up(self, outcome: Outcome, cancelled: bool) -> None:
        """Give it an outcome while its answer is still awaited."""
        self.exact, self.state = outcome, "gone"
        self.cancelled = cancelled
        self.known = True

    def allow(self, outcome: Outcome, end: int) -> None:
        self.allowed[outcome] = max(self.allowed.get(outcome, 0), end)


class Table:
    """All entries, and how they change.

    Attributes:
        entries: A call each, in the order in which they were started.
        host_calls: Those that must be reported, in order; `maybe_host_calls` may be besides.
        refused: The ids of host calls that are too long.
        counts: Of what is counted or reported; good only where `counted`.
        comparable: Whether the result must be the same however the output is cut.
        messages: How many answers were printed, at most.
    """

    def __init__(self, case: Case, prefix: bytes) -> None:
        self.entries: list[Entry] = []
        self.host_calls: list[bytes] = []
        self.maybe_host_calls: list[bytes] = []
        self.refused: list[bytes] = []
        self.counts: Counter[str] = Counter()
        self.counted = True
        self.comparable = True
        self.messages = 0
        self._case = case
        self._ids: bool | None = case.ids  # None: not known
        self._ended: bool | None = False
        self._answered = case.ids
        self._prefix = prefix.decode()
        self._numbers: dict[str, int] = {}
        self._given_up: set[str] = set()

    def _find(self, id: object) -> Entry | None:
        """Return the call with this id, or None."""
        call = self._numbers.get(id) if isinstance(id, str) else None
        return self.entries[call] if call is not None else None

    def _drop_call(self, entry: Entry, outcome: Outcome) -> bool:
        """Nobody waits for the answer any more; return whether that is beyond doubt."""
        if entry.state in ("done", "gone"):
            return False
        if not entry.sure or self._ids is None or self._ended is None:
            entry.cancelled = None
            self._doubt(entry)
            if not self._ids or entry.kind == "ping":
                self._may_have_ended()
            return False
        entry.finish(outcome)
        if self._ids:
            entry.cancelled = self._case.features
            number = self.entries.index(entry)
            self._given_up |= {id for id, call in self._numbers.items() if call == number}
        return True

    def _give(self, entry: Entry, message: Message, end: int) -> None:
        entry.allow(outcome_of(message), end)
        if entry.sure:
            self.counts["late"] += entry.state == "gone"
            entry.finish(outcome_of(message))
            self._answered = True

    def _fail(self, entry: Entry, error: str) -> None:
        entry.errors.add(error)
        if entry.sure:
            entry.finish(("error", error))

    def _count_stray(self, id: object) -> None:
        """Count an answer to a call that was given up, or to none."""
        if isinstance(id, str) and id in self._given_up:
            self._given_up.remove(id)
            self.counts["late"] += 1
        else:
            self.counts["stray"] += 1
            self.counts["stray reports"] += 1

    def _doubt(self, entry: Entry) -> None:
        if entry.state != "done":
            entry.sure = False
            self.counted = False

    def _doubt_all(self) -> None:
        self.counted = False
        for entry in self.entries:
            self._doubt(entry)

    def _may_have_ended(self) -> None:
        self._ended = self._ended or None
        self._doubt_all()

    def _end(self, error: str) -> None:
        """The channel gave the guest up; every call that it has is told so."""
        self._ended = True
        self._doubt_cancels()
        self.counts["hung"] += 1
        for entry in self.entries:
            if entry.state != "done":
                entry.finish(("error", "NotSent" if entry.state == "queued" else error))

    def _doubt_cancels(self) -> None:
        """What was not written by now, for a stream with too many chunks, is not written."""
        for entry in self.entries:
            if entry.kind == "stream" and entry.cancelled:
                entry.cancelled = None

    def _take_maybe_chunk(self, entry: Entry, message: Message, nbytes: int) -> None:
        self._doubt(entry)
        entry.maybe_chunks.append(encoded([nbytes, message.get("data")]))
        entry.errors.add("MessageTooLarge")
        entry.cancelled = None

    def _take_uncertain(self, line: bytes, reading: Reading, end: int) -> None:
        """Note all that could be made of a line."""
        self.counted = False
        certain = reading.certain and reading.deep is None
        if self._case.strict and (not certain or len(reading.messages) < len(reading.parts)):
            self._may_have_ended()
        if re.search(rb"content-length", line, re.IGNORECASE) and not self._answered:
            self._may_have_ended()
        for id in re.findall(re.escape(self._prefix.encode()) + rb"\d+", line):
            if id.decode() in self._numbers:
                self._doubt(self.entries[self._numbers[id.decode()]])
        messages = reading.messages if certain else list(objects(line))
        for message in messages + ([reading.deep] if reading.deep else []):
            if message.get("type") == HOST_CALL:
                self.maybe_host_calls.append(encoded(message))
                continue
            id = message.get("id")
            for entry in self.entries:
                if entry.state == "done" or not (id is None or id == "" or entry is self._find(id)):
                    continue
                self._doubt(entry)
                if message.get("type") != CHUNK:
                    entry.allow(outcome_of(message), end)
                    self._ids = self._ids or None
                elif entry.kind == "stream":
                    self._take_maybe_chunk(entry, message, len(line.rstrip(b"\r ")))

    def _take_uncertain_long_line(self, named: Entry | None) -> None:
        self.counted = False
        if self._case.strict:
            self._may_have_ended()
        for entry in self.entries:
            if named is entry or not self._ids:
                self._doubt(entry)
            entry.errors.add("MessageTooLarge")
        self._ids = self._ids or None
