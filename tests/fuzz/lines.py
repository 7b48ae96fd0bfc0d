"""What one line of a guest's output means, read another way than the channel reads it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

MAX_OBJECTS = 400  # places in one line where an object is looked for
MAX_TRIES = 16  # places where a message may begin; more need not be looked at
SHOWN = 512  # bytes at either end of a line in which an id is looked for
RESPONSE = "guest_response"
CHUNK = "guest_chunk"
HOST_CALL = "host_call"
BLANK = b"\x00\xef\xbb\xbf\t\r\n "
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|"|[{}\[\]]', re.DOTALL)
OPENS = re.compile(rb'\{\s*"')
ID = re.compile(rb'"id"\s*:\s*"([\w.]+)"')
ANY_ID = re.compile(rb'"id"\s*:\s*')
SAFE_ID = re.compile(rb'"[\w.]*"|(?:0|[1-9]\d{0,15})(?!\d)')

Message = dict[str, Any]


class Reading(NamedTuple):
    """What a line says.

    Attributes:
        parts: Messages and noise, each with where it begins, in order.
        certain: Whether there is no other right reading.
        deep: An answer that may be nested too deeply for whoever reads the line as one object.
        cut_off: The id in the begin of the line, where that is an answer which is no JSON.
    """

    parts: list[tuple[int, Message | bytes]]
    certain: bool = True
    deep: Message | None = None
    cut_off: str | None = None

    @property
    def messages(self) -> list[Message]:
        """The messages alone."""
        return [part for _, part in self.parts if isinstance(part, dict)]


class LongReading(NamedTuple):
    """What is known of a line that is too long.

    Attributes:
        host_call: The encoded id of the host call that it is, or None.
        id: The id that it names, if that may be one of a call, or None.
        certain: Whether `host_call` is beyond doubt.
        may_answer: Whether it does not say that it is no answer.
    """

    host_call: Any
    id: str | None
    certain: bool
    may_answer: bool


@functools.lru_cache(maxsize=256)  # each case is run several times
def read_line(line: bytes, answer_head: bytes) -> Reading:
    """Say what a line, without its end, means.

    Args:
        answer_head: How an answer that is spelt as usual begins, up to the number in its id.
    """
    line = line.rstrip(b"\r ")
    deep = None
    if not line:
        return Reading([])
    if line.startswith(b"{"):
        whole = _load(line)
        if whole is not None:
            return Reading([(0, whole if is_message(whole) else line)])
        deep = _deep_answer(line, answer_head)
    parts, certain = _split(line)
    id = first_id(line) if parts and isinstance(parts[0][1], bytes) else None
    if id is not None:
        # Who repeats its request in front of its answer, or answers anew, may be understood or not.
        certain = (
            certain
            and _load_begin(line) is None
            and all(message.get("id") != id for message in Reading(parts).messages)
        )
    return Reading(parts, certain, deep, id)


def is_message(value: Message) -> bool:
    """Tell whether an object is an answer, a chunk or a host call."""
    kind = value.get("type")
    return kind in (RESPONSE, HOST_CALL, CHUNK) or (not kind and "success" in value)


def is_ours(id: str | None, prefix: str) -> bool:
    """Tell whether an id may be that of a call."""
    return bool(id and re.fullmatch(re.escape(prefix) + r"[1-9][0-9]{0,18}", id))


def first_id(line: bytes) -> str | None:
    """Return the id among the first plain members of the object that a line begins with."""
    begin = line[:SHOWN].lstrip()
    if not begin.startswith(b"{"):
        return None
    found = ID.search(re.split(rb"[{}\[\]]", begin[1:], maxsplit=1)[0])
    return found[1].decode() if found else None


@functools.lru_cache(maxsize=256)
def read_long_line(line: bytes, prefix: str) -> LongReading:
    """Say for whom a line is that is too long to be read."""
    id = first_id(line)
    if not is_ours(id, prefix) and line.startswith(b"{"):
        found = ID.findall(line[-SHOWN:])
        id = found[-1].decode() if found else None
    id = id if is_ours(id, prefix) else None
    begin = line[:SHOWN].lstrip()
    if not begin.startswith(b"{"):
        return LongReading(None, id, True, False)
    flat = re.split(rb"[{}\[\]]", begin[1:], maxsplit=1)[0]
    kind = re.search(rb'"type"\s*:\s*"(host_call|guest_chunk)"', flat)
    ids = list(ANY_ID.finditer(begin, 0, len(flat) + 1))
    if kind is None and b'"type"' not in line[-SHOWN:] and b'"success"' in begin + line[-SHOWN:]:
        return LongReading(None, id, True, True)
    if kind is None or kind[1] == CHUNK.encode() or not ids:
        return LongReading(None, id, False, False)  # its end has a say, too
    value = SAFE_ID.match(begin, ids[0].end()) if len(ids) == 1 else None
    if value is None or value.end() == len(begin):
        return LongReading(None, id, False, False)
    return LongReading(orjson.loads(value[0]), id, True, False)


def objects(line: bytes) -> Iterator[Message]:
    """Find every message in a line, those inside of others too."""
    for count, found in enumerate(re.finditer(rb"\{", line)):
        if count == MAX_OBJECTS:
            return
        end = _object_end(line, found.start())
        value = _load(line[found.start() : end]) if end else None
        if value is not None and is_message(value):
            yield value


def _split(line: bytes) -> tuple[list[tuple[int, Message | bytes]], bool]:
    """Find the messages of a line between what is none; tell whether the line is certain."""
    parts: list[tuple[int, Message | bytes]] = []
    begin = done = tries = 0
    broken = False  # something has begun as a message does, and is none

    def add_noise(end: int) -> None:
        text = line[done:end].strip(BLANK)
        if text:
            parts.append((done, text))

    while (found := OPENS.search(line, begin)) and tries < MAX_TRIES:
        tries += 1
        at = found.start()
        end = _object_end(line, at)
        value = _load(line[at:end]) if end else None
        begin = end if value is not None else at + 1
        broken = broken or value is None
        if value is not None and is_message(value) and (value.get("id") or not broken):
            add_noise(at)
            parts.append((at, value))
            done = end
    add_noise(len(line))
    return parts, found is None


def _deep_answer(line: bytes, head: bytes) -> Message | None:
    """Read an answer whose data is one level less deep than the line is."""
    data = re.fullmatch(
        re.escape(head) + rb'(\d+)","success":true,"data":(.*?)(?:,"error":null)?\}',
        line, re.DOTALL,
    )  # fmt: skip
    value = _load_any(data[2]) if data else None
    if data is None or value is None:
        return None
    id = head.rpartition(b'"')[2] + data[1]
    return {"type": RESPONSE, "id": id.decode(), "success": True, "data": value[0]}


def _load_begin(line: bytes) -> Message | None:
    """Read the whole object that a line begins with, whatever is behind it."""
    return _load(line[: _object_end(line, line.find(b"{"))])


def _object_end(line: bytes, begin: int) -> int:
    """Return where the object that begins there ends, or 0."""
    depth = 0
    for found in TOKEN.finditer(line, begin):
        token = found[0]
        if token in b"{[":
            depth += 1
        elif token in b"}]":
            depth -= 1
            if depth == 0:
                return found.end()
        elif token == b'"':
            return 0
    return 0


def _load(text: bytes) -> Message | None:
    value = _load_any(text)
    return value[0] if value and isinstance(value[0], dict) else None


def _load_any(text: bytes) -> tuple[Any] | None:
    try:
        return (orjson.loads(text),)
    except orjson.JSONDecodeError:
        return None
