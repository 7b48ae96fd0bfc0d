"""The form of a case: what is called and what the guest prints, as a text that can be mutated.

A line that is one of the directives below is a step; all other lines, with their ends, are what the
guest prints at that point. Any bytes are a case, so that a mutation never makes an invalid one.

    %ids           first, a call that the guest answers with its id, so that it is given many
    %strict        sidecar.strict is set
    %features      the guest wants to be told of cancelled calls and of deadlines
    %limit N       bytes of the longest line that is allowed
    %calls N       start N calls; %streams N: N calls whose chunks are taken
    %ping          ask a guest that returns ids whether it is still there
    %call          call from a thread, which finds in the pipe what is printed next
    %last          the same, and the guest closes its stdout behind it
    %soon          the same from an event loop, which waits for no more than a moment
    %expire N      the deadline of the N-th call of the case passes; %abandon N: its caller goes
    %eof           the guest closes its stdout

In what is printed `<id:N>` stands for the id of the N-th call, `<pre>` for what all ids begin
with, `<fill:N>` for N letters, `<pad:N>` for as many as give its line N bytes, `<deep:N>` and
`<shut:N>` for N brackets, and `<cut>` takes away the end of its line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

MAX_CALLS = 40
MAX_STEPS = 60
MAX_PRINTED = 300_000  # bytes of one step; more only takes longer
DEFAULT_LIMIT = 1 << 20
LEAST_LIMIT = 512

DIRECTIVE = re.compile(
    rb"%(?:(ids|strict|features|call|last|soon|ping|eof)"
    rb"|(limit|calls|streams|expire|abandon) (\d{1,6}))\r?\n?",
    re.DOTALL,
)
PLACEHOLDER = re.compile(rb"<(id|fill|deep|shut):(\d{1,6})>|(<pre>)|<cut>\r?\n?")
LINE = re.compile(rb"[^\n]*\n|[^\n]+")  # splitlines knows ends that are none here
PAD = re.compile(rb"<pad:(\d{1,6})>")
ASKING = ("call", "last", "soon")


class Step(NamedTuple):
    """One thing that happens, named as its directive is, or `print`.

    Attributes:
        text: What is printed; with `call`, `last` and `soon`, from before they begin.
    """

    kind: str
    number: int = 0
    text: bytes = b""


@dataclass(frozen=True)
class Case:
    """What `parse` made of a text."""

    steps: tuple[Step, ...]
    ids: bool
    strict: bool
    features: bool
    limit: int


def parse(text: bytes) -> Case:
    """Read a case; what goes beyond the limits of one is left out."""
    steps: list[Step] = []
    printed: list[bytes] = []
    settings: set[str] = set()
    limit = DEFAULT_LIMIT
    calls = 0

    def flush() -> None:
        text = b"".join(printed)
        printed.clear()
        if steps and steps[-1].kind in ASKING:
            steps[-1] = steps[-1]._replace(text=text)
        elif text:
            steps.append(Step("print", text=text))

    for line in LINE.findall(text):
        found = DIRECTIVE.fullmatch(line)
        if found is None:
            printed.append(line)
            continue
        flush()
        kind = (found[1] or found[2]).decode()
        number = int(found[3] or 0)
        if kind in ("ids", "strict", "features"):
            settings.add(kind)
        elif kind == "limit":
            limit = max(LEAST_LIMIT, number)
        elif kind in ("calls", "streams", "ping", *ASKING):
            number = min(number if found[3] else 1, MAX_CALLS - calls)
            calls += number
            if number:
                steps.append(Step(kind, number))
        else:
            steps.append(Step(kind, number))
    flush()
    return Case(
        tuple(steps[:MAX_STEPS]),
        "ids" in settings,
        "strict" in settings,
        "features" in settings,
        limit,
    )


def expand(text: bytes, prefix: bytes, ids: dict[int, bytes], last: int) -> bytes:
    """Put in what the placeholders stand for.

    Args:
        last: The number of the last call; one that has no id yet is given a likely one.
    """
    room = MAX_PRINTED

    def stand_in(found: re.Match[bytes]) -> bytes:
        nonlocal room
        if found[3]:
            return prefix
        if not found[1]:
            return b""
        number = int(found[2])
        if found[1] == b"id":
            return ids.get(number) or b"%s%d" % (prefix, last + number + 1 - len(ids))
        number = min(number, room)
        room -= number
        return {b"fill": b"x", b"deep": b"[", b"shut": b"]"}[found[1]] * number

    def pad(line: bytes) -> bytes:
        nonlocal room
        found = PAD.search(line)
        if found is None:
            return line
        number = int(found[1]) - len(line.rstrip(b"\n")) + len(found[0])
        number = max(0, min(number, room))
        room -= number
        return line[: found.start()] + b"x" * number + line[found.end() :]

    text = PLACEHOLDER.sub(stand_in, text)
    return b"".join(map(pad, LINE.findall(text))) if PAD.search(text) else text
