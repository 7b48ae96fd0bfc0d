"""What a channel has to do with what a guest prints: the table that a run is compared with.

Where the protocol leaves no choice, the table says what each call is given. Where it does, as for
calls that wait for others, it says what a call may be given: never more than was printed for it.
"""

from __future__ import annotations

import re

from fuzz.cases import Case
from fuzz.lines import CHUNK, HOST_CALL, Message, Reading, read_line, read_long_line
from fuzz.table import CHUNKS, LATER, Entry, Table, encoded

FRAME_HEADER = re.compile(rb"content-length: *(\d{1,9})\s*", re.IGNORECASE)


class Model(Table):
    """Reads the same output as the channel and keeps the table."""

    def __init__(self, case: Case, prefix: bytes) -> None:
        super().__init__(case, prefix)
        self._loose = False  # a call may be queued: when it is sent depends on how output is cut
        self._head = b'{"type":"guest_response","id":"' + prefix
        self._header = self._framed = -1
        self._partial = b""
        self._stale = 0
        self._printed = 0

    # -- what the host does -------------------------------------------------------------------

    def start(self, kind: str) -> None:
        """A call was started."""
        entry = Entry(kind, began=self._printed)
        waits = any(other.state != "done" for other in self.entries)
        self.entries.append(entry)
        if self._ended:
            entry.finish(("error", "NotSent"))
            return
        if not self._ids and waits:
            entry.state = "queued" if self._ids is False else "sent"
            self._loose = True
            self.comparable = False
            self._doubt_all()
        if self._loose or self._ended is None:
            self._doubt(entry)
        self._stale = len(self._partial)

    def sent(self, call: int, id: bytes) -> None:
        """The request of a call was seen, with this id."""
        self._numbers[id.decode()] = call

    def expire(self, call: int) -> None:
        """The deadline of a call passed."""
        entry = self.entries[call]
        entry.errors.add("SlotTimeout")
        if not self._drop_call(entry, ("error", "SlotTimeout")):
            return
        if not self._ids:
            self._end("NotSent")
        elif entry.kind != "ping":
            self.counts["overran"] += 1
        elif entry.began == self._printed:
            entry.cancelled = False
            self._end("PluginCrashed")

    def abandon(self, call: int) -> None:
        """The caller of a call went away."""
        entry = self.entries[call]
        if entry.state != "done":
            entry.allow(("gone",), LATER)
        if self._drop_call(entry, ("gone",)) and not self._ids:
            entry.give_up(("gone",), self._case.features)
            self.counts["abandoned"] += 1

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
        if 0 <= self._framed <= len(self._partial) and not self._ended:
            if self._ended is False and len(self._partial) <= self._case.limit:
                self._end("ProtocolError")
            else:
                self._may_have_ended()

    def eof(self) -> None:
        """The guest closed its output: what it printed last may lack the end of its line."""
        self._take_line(self._partial, self._printed + 1)
        self._partial = b""
        self._doubt_cancels()

    def close(self) -> None:
        """The owner ended the channel, as it does once the process is gone."""
        self._doubt_cancels()
        for entry in self.entries:
            if entry.state != "done":
                entry.finish(("error", "NotSent" if entry.state == "queued" else "Lost"))
        self._ended = True

    def _take_line(self, line: bytes, end: int) -> None:
        if self._ended:
            return
        if 0 <= self._framed <= len(line):  # did the end of the line come with it?
            self._may_have_ended()
            self.comparable = False
        header, stale = self._header, self._stale
        self._header = self._framed = -1
        self._stale = 0
        certain = self._ended is False and not self._loose
        if len(line) > self._case.limit:
            self._take_long_line(line, certain, stale)
            return
        reading = read_line(line, self._head)
        if not line.strip(b"\r "):
            self._framed = header
        self.messages += len(reading.messages) + (reading.deep is not None)
        if not certain or not reading.certain or (stale and self._ids is None):
            self._take_uncertain(line, reading, end)
        elif reading.deep is None:
            self._take_parts(line, reading, 0 if self._ids else stale, end)
        elif not stale and self._waits(reading.deep.get("id")):
            self._take_answer(reading.deep, end)
        else:
            self._take_uncertain(line, reading, end)

    def _waits(self, id: object) -> bool:
        """Tell whether the call with this id certainly waits for its answer."""
        entry = self._find(id)
        return entry is not None and entry.sure and entry.state == "sent"

    def _take_parts(self, line: bytes, reading: Reading, stale: int, end: int) -> None:
        parts = reading.parts
        begun = self._find(reading.cut_off)
        if begun is not None and begun.pending:
            parts = parts[1:]
            self._fail(begun, "ProtocolError")
            self._take_noise(b"")
        for begin, part in parts:
            if self._ended:
                break
            if not isinstance(part, dict):
                self._take_noise(part)
            elif begin < stale and not part.get("id") and part.get("type") != HOST_CALL:
                self._count_stray(None)
            elif part.get("type") == HOST_CALL:
                self.host_calls.append(encoded(part))
            elif part.get("type") == CHUNK:
                self._take_chunk(part, len(line.rstrip(b"\r ")))
            else:
                self._take_answer(part, end)

    def _take_noise(self, text: bytes) -> None:
        self.counts["noise"] += 1
        if not self._answered:
            header = FRAME_HEADER.fullmatch(text)
            self._header = int(header[1]) if header else -1
        if self._case.strict:
            self._end("ProtocolError")

    def _take_chunk(self, message: Message, nbytes: int) -> None:
        id = message.get("id")
        entry = self._find(id)
        if (id is None or id == "") and not self._ids:
            pending = [other for other in self.entries if other.pending]
            for other in pending if self._ids is None else []:
                self._take_maybe_chunk(other, message, nbytes)
            entry = pending[0] if len(pending) == 1 else None
        if entry is None or entry.kind != "stream" or entry.state != "sent":
            return
        if not entry.sure:
            self._take_maybe_chunk(entry, message, nbytes)
        elif len(entry.chunks) < CHUNKS:
            entry.chunks.append(encoded([nbytes, message.get("data")]))
        elif self._ids:
            self._drop_call(entry, ("error", "MessageTooLarge"))
        else:
            entry.give_up(("error", "MessageTooLarge"), self._case.features)
            self.counts["abandoned"] += 1

    def _take_answer(self, message: Message, end: int) -> None:
        id = message.get("id")
        entry = self._find(id)
        pending = [other for other in self.entries if other.pending]
        if entry is not None and entry.pending:
            self._give(entry, message, end)
            self._ids = True if entry.sure else self._ids or None
        elif (id is not None and id != "") or not pending:
            self._count_stray(id)
        elif self._ids is None or any(not other.sure for other in pending):
            self._take_uncertain(b"", Reading([(0, message)]), end)
        elif not self._ids:
            self._give(pending[0], message, end)
        elif len(pending) == 1:
            self._fail(pending[0], "ProtocolError")
            self.counts["stray"] += 1
        else:
            self._count_stray(None)

    def _take_long_line(self, line: bytes, certain: bool, stale: int) -> None:
        """Find out for whom a line is of which nobody reads more than the begin and the end."""
        self.messages += 1  # an answer that names its call counts as one
        reading = read_long_line(line, self._prefix)
        named = self._find(reading.id)
        alone = [entry for entry in self.entries if entry.pending]
        if not certain or not reading.certain or self._ids is None:
            self._take_uncertain_long_line(named)
        elif reading.host_call is not None:
            self.refused.append(encoded(reading.host_call))
        elif named is not None and named.pending:
            self._fail(named, "MessageTooLarge")
            self._ids = True if named.sure else self._ids or None
            self._answered = True
        elif reading.id is not None:
            self._count_stray(reading.id)
        elif not self._ids and not stale and alone and line.startswith(b"{"):
            if reading.may_answer:
                self._fail(alone[0], "MessageTooLarge")
                self._answered = True
            else:
                self._take_uncertain_long_line(None)
        else:
            self._take_noise(b"")
