"""What one line of a guest's output can mean, read another way than the channel reads it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

MAX_OBJECTS = 400  # places in one line where an object is looked for
RESPONSE = "guest_response"
BLANK = b"\x00\xef\xbb\xbf\t\r\n "
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|"|[{}\[\]]', re.DOTALL)
OPENS = re.compile(rb'\{\s*"')
FRAMED = re.compile(rb"\s*content-length\s*:", re.IGNORECASE)


class Meaning(NamedTuple):
    """What a line means.

    Attributes:
        certain: Whether every right reading of the line finds exactly `messages`, and no other.
        messages: The message in it; if not certain, all that anybody could find.
        noise: Whether it surely is, or has beside its message, what is no message.
    """

    certain: bool
    messages: list[dict[str, Any]]
    noise: bool


@functools.lru_cache(maxsize=256)  # each case is run several times
def read_line(line: bytes, answer_head: bytes) -> Meaning:
    """Say what a line, without its end, means.

    Args:
        answer_head: How an answer that is spelt as usual begins, up to the number in its id.
    """
    line = line.rstrip(b"\r ")
    if not line:
        return Meaning(True, [], False)
    if FRAMED.match(line):
        return Meaning(False, list(_objects(line)), False)
    if line.startswith(b"{"):
        whole = _load(line)
        if whole is not None:
            return _whole(whole)
    elif not OPENS.search(line):
        return Meaning(True, [], bool(line.strip(BLANK)))
    found = list(_objects(line))
    data = re.fullmatch(
        re.escape(answer_head) + rb'(\d+)","success":true,"data":(.*?)(?:,"error":null)?\}',
        line, re.DOTALL,
    )  # fmt: skip
    if data is not None:  # orjson has a limit of depth, and the data is one level less deep
        value = _load_any(data[2])
        if value:
            id = answer_head.rpartition(b'"')[2] + data[1]
            found.append({"type": RESPONSE, "id": id.decode(), "success": True, "data": value[0]})
    begin, end = line.find(b"{"), line.rfind(b"}") + 1
    whole = _load(line[begin:end]) if begin > 0 else None
    if whole is not None and b"{" not in line[end:] and len(found) == 1:
        # Text in front of one message, as PHP leaves it there.
        meaning = _whole(whole)
        return meaning._replace(noise=bool(line[:begin].strip(BLANK)) or meaning.noise)
    return Meaning(False, found, False)


def _whole(value: dict[str, Any]) -> Meaning:
    kind = value.get("type")
    if kind == "guest_chunk":  # is nobody's here; whether it counts as noise is not said
        return Meaning(False, [], False)
    if is_message(value):
        return Meaning(True, [value], False)
    return Meaning(True, [], True)


def is_message(value: dict[str, Any]) -> bool:
    """Tell whether an object is an answer or a host call."""
    kind = value.get("type")
    return kind in (RESPONSE, "host_call") or (not kind and "success" in value)


def _objects(line: bytes) -> Iterator[dict[str, Any]]:
    """Find every message in a line, those inside of others too."""
    for count, found in enumerate(re.finditer(rb"\{", line)):
        if count == MAX_OBJECTS:
            return
        end = _object_end(line, found.start())
        value = _load(line[found.start() : end]) if end else None
        if value is not None and is_message(value):
            yield value


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


def _load(text: bytes) -> dict[str, Any] | None:
    value = _load_any(text)
    return value[0] if value and isinstance(value[0], dict) else None


def _load_any(text: bytes) -> tuple[Any] | None:
    try:
        return (orjson.loads(text),)
    except orjson.JSONDecodeError:
        return None
