"""The form of a case: what is called and what the guest prints, as a text that can be mutated.

A line that is one of the directives below is a step; all other lines, with their ends, are what the
guest prints at that point. Any bytes are a case, so that a mutation never makes an invalid one.

    %ids           first, a call that the guest answers with its id, so that it is given many
    %strict        sidecar.strict is set
    %limit N       bytes of the longest line that is allowed
    %calls N       start N calls
    %expire N      the deadline of the N-th call of the case passes; %abandon N: its caller goes
    %eof           the guest closes its stdout

In what is printed `<id:N>` stands for the id of the N-th call, `<pre>` for what all ids begin
with, `<fill:N>` for N letters, `<deep:N>` and `<shut:N>` for N brackets, and `<cut>` takes away the
end of its line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

MAX_CALLS = 40
MAX_STEPS = 60
MAX_PRINTED = 300_000  # bytes of one step; more only takes longer
MAX_EXPIRED = 2  # a guest that lets more time out, and is silent, counts as hung
DEFAULT_LIMIT = 1 << 20

DIRECTIVE = re.compile(
    rb"%(?:(ids|strict|eof)|(limit|calls|expire|abandon) (\d{1,6}))\r?\n?", re.DOTALL
)
PLACEHOLDER = re.compile(rb"<(id|fill|deep|shut):(\d{1,6})>|(<pre>)|<cut>\r?\n?")


class Step(NamedTuple):
    """One thing that happens: `calls`, `expire`, `abandon`, `print` or `eof`."""

    kind: str
    number: int = 0
    text: bytes = b""


@dataclass(frozen=True)
class Case:
    """What `parse` made of a text."""

    steps: tuple[Step, ...]
    ids: bool
    strict: bool
    limit: int


def parse(text: bytes) -> Case:
    """Read a case; what goes beyond the limits of one is left out."""
    steps: list[Step] = []
    printed: list[bytes] = []
    ids = strict = False
    limit = DEFAULT_LIMIT
    calls = expired = 0

    def flush() -> None:
        if printed:
            steps.append(Step("print", text=b"".join(printed)))
            printed.clear()

    for line in re.findall(rb"[^\n]*\n|[^\n]+", text):  # splitlines knows ends that are none here
        found = DIRECTIVE.fullmatch(line)
        if found is None:
            printed.append(line)
            continue
        flush()
        kind = (found[1] or found[2]).decode()
        number = int(found[3] or 0)
        if kind == "ids":
            ids = True
        elif kind == "strict":
            strict = True
        elif kind == "limit":
            limit = max(64, number)
        elif kind == "calls":
            number = min(number, MAX_CALLS - calls)
            calls += number
            steps.append(Step(kind, number))
        elif kind != "expire" or expired < MAX_EXPIRED:
            expired += kind == "expire"
            steps.append(Step(kind, number))
    flush()
    return Case(tuple(steps[:MAX_STEPS]), ids, strict, limit)


def expand(text: bytes, prefix: bytes, ids: dict[int, bytes]) -> bytes:
    """Put in what the placeholders stand for; a call that has no id yet is given a likely one."""
    room = MAX_PRINTED

    def stand_in(found: re.Match[bytes]) -> bytes:
        nonlocal room
        if found[3]:
            return prefix
        if not found[1]:
            return b""
        number = int(found[2])
        if found[1] == b"id":
            return ids.get(number) or b"%s%d" % (prefix, number + 1)
        number = min(number, room)
        room -= number
        return {b"fill": b"x", b"deep": b"[", b"shut": b"]"}[found[1]] * number

    return PLACEHOLDER.sub(stand_in, text)
