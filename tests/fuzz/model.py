"""What a channel has to do with what a guest prints: the table that a run is compared with.

Where the protocol leaves no choice, the table says what each call is given. Where it does, as for
an answer that is damaged, it says what a call may be given: never more than was printed for it.
"""

from __future__ import annotations

import marshal
import re
from dataclasses import dataclass, field
from typing import Any

import orjson
from fuzz.cases import Case
from fuzz.lines import Meaning, read_line

NO_REASON = "the guest reported a failure without a reason"

# What else a call may be told where the table is not certain.
UNDECIDED = frozenset({"ProtocolError", "NotSent", "Lost"})

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


@dataclass
class Entry:
    """What the table says of one call.

    Attributes:
        state: `queued`, `sent`, `done` or `gone`, whose answer is dropped.
        exact: What it must be given; good only where `sure`.
        allowed: What it may be given, and how much was printed up to where that ends.
    """

    state: str = "sent"
    sure: bool = True
    exact: Outcome | None = None
    allowed: dict[Outcome, int] = field(default_factory=dict)
    errors: set[str] = field(default_factory=set)

    def finish(self, outcome: Outcome) -> None:
        self.state, self.exact = "done", outcome


class Model:
    """Reads the same output as the channel and keeps the table.

    Attributes:
        entries: A call each, in the order in which they were started.
        host_calls: Those that must be reported, in order; `maybe_host_calls` may be besides.
        comparable: Whether the result must be the same however the output is cut.
    """

    def __init__(self, case: Case, prefix: bytes) -> None:
        self.entries: list[Entry] = []
        self.host_calls: list[bytes] = []
        self.maybe_host_calls: list[bytes] = []
        self.comparable = True
        self.messages = 0
        self._strict = case.strict
        self._limit = case.limit
        self._ids: bool | None = case.ids  # None: not known
        self._ended: bool | None = False
        self._loose = False  # a call may be queued: when it is sent depends on how output is cut
        self._prefix = prefix.decode()
        self._head = b'{"type":"guest_response","id":"' + prefix
        self._numbers: dict[str, int] = {}
        self._partial = b""
        self._printed = 0

    # -- what the host does -------------------------------------------------------------------

    def start(self) -> None:
        """A call was started."""
        entry = Entry()
        pending = any(other.state != "done" for other in self.entries)
        self.entries.append(entry)
        if self._ended:
            entry.finish(("error", "NotSent"))
            return
        if not self._ids and pending:
            entry.state = "queued" if self._ids is False else "sent"
            self._loose = True
            self.comparable = False
            self._doubt_all()
        if self._loose or self._ended is None:
            entry.sure = False

    def sent(self, call: int, number: bytes) -> None:
        """The request of a call was seen, with this id."""
        self._numbers[number.decode()] = call

    def expire(self, call: int) -> None:
        """The deadline of a call passed."""
        entry = self.entries[call]
        entry.errors.add("SlotTimeout")
        if entry.state in ("done", "gone"):
            return
        if not entry.sure or self._ids is None or self._ended is None:
            self._doubt_all()
            self._ended = self._ended or None
            return
        entry.finish(("error", "SlotTimeout"))
        if not self._ids:
            self._end("NotSent")

    def abandon(self, call: int) -> None:
        """The caller of a call went away."""
        entry = self.entries[call]
        if entry.state == "done":
            return
        if not entry.sure or self._ids is None:
            self._doubt_all()
        elif self._ids:
            entry.finish(("gone",))
        else:
            entry.state = "gone"
        entry.allowed[("gone",)] = 1 << 60

    # -- what the guest prints ----------------------------------------------------------------

    def print(self, text: bytes) -> None:
        """The guest printed this."""
        lines = (self._partial + text).split(b"\n")
        end = self._printed - len(self._partial)
        self._printed += len(text)
        self._partial = lines.pop()
        for line in lines:
            end += len(line) + 1
            self._take_line(line, end)
        if len(self._partial) > self._limit:
            self._too_long()

    def eof(self) -> None:
        """The guest closed its output: what it printed last may lack the end of its line."""
        self._take_line(self._partial, self._printed + 1)
        self._partial = b""

    def close(self) -> None:
        """The owner ended the channel, as it does once the process is gone."""
        for entry in self.entries:
            if entry.state == "gone":
                entry.finish(("gone",))
            elif entry.state != "done":
                entry.finish(("error", "NotSent" if entry.state == "queued" else "Lost"))
        self._ended = True

    def _too_long(self) -> None:
        self.messages += 1  # an answer that names its call counts as one
        self._ended = self._ended or None
        self.comparable = False
        self._doubt_all()
        for entry in self.entries:
            entry.errors.add("MessageTooLarge")

    def _take_line(self, line: bytes, end: int) -> None:
        if self._ended:
            return
        if len(line) > self._limit:
            self._too_long()
        meaning = read_line(line, self._head)
        self.messages += len(meaning.messages)
        if meaning.certain and self._ended is False and not self._loose:
            self._take_certain(meaning, end)
        else:
            self._take_uncertain(meaning, line, end)

    def _take_certain(self, meaning: Meaning, end: int) -> None:
        if meaning.noise and self._strict:
            if meaning.messages:
                self._take_uncertain(meaning, b"", end)
            else:
                self._end("ProtocolError")
            return
        for message in meaning.messages:
            if message.get("type") == "host_call":
                self.host_calls.append(encoded(message))
                continue
            id = message.get("id")
            if id is None or id == "":
                self._take_bare(message, end)
            elif isinstance(id, str) and id in self._numbers:
                entry = self.entries[self._numbers[id]]
                if entry.state != "done":
                    self._give(entry, message, end)
                    self._ids = True if entry.sure else self._ids or None

    def _give(self, entry: Entry, message: dict[str, Any], end: int) -> None:
        outcome = outcome_of(message)
        entry.allowed.setdefault(outcome, 0)
        entry.allowed[outcome] = max(entry.allowed[outcome], end)
        if entry.sure:
            entry.finish(("gone",) if entry.state == "gone" else outcome)

    def _take_bare(self, message: dict[str, Any], end: int) -> None:
        pending = [entry for entry in self.entries if entry.state in ("sent", "gone")]
        if self._ids is None or any(not entry.sure for entry in pending):
            self._take_uncertain(Meaning(False, [message], False), b"", end)
        elif not self._ids:
            for entry in pending[:1]:
                self._give(entry, message, end)
        elif len(pending) == 1:
            pending[0].finish(("error", "ProtocolError"))

    def _take_uncertain(self, meaning: Meaning, line: bytes, end: int) -> None:
        """Note all that could be made of a line."""
        if self._strict and (meaning.noise or not meaning.certain):
            self._ended = None
            self._doubt_all()
        if re.match(rb"\s*content-length", line, re.IGNORECASE):
            self._ended = None
            self._doubt_all()
        for id in re.findall(re.escape(self._prefix.encode()) + rb"\d+", line):
            if id.decode() in self._numbers:
                self._doubt(self.entries[self._numbers[id.decode()]])
        for message in meaning.messages:
            if message.get("type") == "host_call":
                self.maybe_host_calls.append(encoded(message))
                continue
            id = message.get("id")
            named = self._numbers.get(id) if isinstance(id, str) else None
            open_ends = id is None or id == ""
            for number, entry in enumerate(self.entries):
                if entry.state != "done" and (number == named or open_ends):
                    self._doubt(entry)
                    self._give(entry, message, end)
                    self._ids = self._ids or None

    def _doubt(self, entry: Entry) -> None:
        if entry.state != "done":
            entry.sure = False

    def _doubt_all(self) -> None:
        for entry in self.entries:
            self._doubt(entry)

    def _end(self, error: str) -> None:
        """The channel gave the guest up; every call that it has is told so."""
        self._ended = True
        for entry in self.entries:
            if entry.state == "gone":
                entry.finish(("gone",))
            elif entry.state != "done":
                entry.finish(("error", error))
