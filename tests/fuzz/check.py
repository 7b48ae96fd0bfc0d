"""Says whether a case is right: against the model, and whichever way its output is cut."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

from fuzz.cases import Case, parse
from fuzz.harness import Cut, FuzzFailure, Run
from fuzz.model import UNDECIDED, Entry, Model, Outcome

SINGLE = 400  # bytes at either end of what is printed that are fed one by one


def whole(text: bytes) -> Iterator[bytes]:
    """Cut nothing."""
    yield text


def in_bytes(text: bytes) -> Iterator[bytes]:
    """Cut into single bytes, but for the middle of what is long."""
    for at in range(min(len(text), SINGLE)):
        yield text[at : at + 1]
    if len(text) > 2 * SINGLE:
        yield text[SINGLE:-SINGLE]
    for at in range(max(SINGLE, len(text) - SINGLE), len(text)):
        yield text[at : at + 1]


def at_random(seed: int) -> Cut:
    """Cut into pieces of sizes that the seed decides."""

    def cut(text: bytes) -> Iterator[bytes]:
        rng = random.Random(seed)
        at = 0
        while at < len(text):
            size = rng.choice((1, 2, 7, 30, 100, 1 + len(text) // 10, 40000))
            yield text[at : at + size]
            at += size

    return cut


def check(
    text: bytes, seed: int | None = None, spoil: Callable[[Run], None] = lambda run: None
) -> int:
    """Run a case in several ways; return how many.

    Args:
        seed: Decides which way besides the plainest; None for all of them.
        spoil: Falsifies a finished run, to show that this is noticed.

    Raises FuzzFailure, or whatever the channel raised.
    """
    case = parse(text)
    cut = at_random(seed or 0)
    ways: list[tuple[str, Cut, bool]] = [
        ("in pieces, as futures", cut, False),
        ("in pieces, waited for", cut, True),
        ("whole, waited for", whole, True),
        ("in pieces, as futures", cut, False),
        ("in pieces, waited for", cut, True),
        ("in bytes, as futures", in_bytes, False),
        ("in bytes, waited for", in_bytes, True),
    ]
    if seed is not None:
        ways = [ways[seed % len(ways)]]
    ways.insert(0, ("whole, as futures", whole, False))
    first: Run | None = None
    for name, cut, joined in ways:
        run = Run(case, cut, joined)
        run.run()
        spoil(run)
        try:
            check_run(case, run)
            if first is not None and run.model.comparable:
                _compare(first, run)
        except FuzzFailure as failure:
            raise FuzzFailure(f"{name}: {failure}") from failure
        first = first or run
    return len(ways)


def check_run(case: Case, run: Run) -> None:
    """Compare one run with its model."""
    model = run.model
    for number, (outcome, entry) in enumerate(zip(run.outcomes, model.entries, strict=True)):
        _check_outcome(f"call {number}", outcome, entry, run.sent_at.get(number, 1 << 60))
    _check_host_calls(run, model)
    noise = sum(1 for name, _ in run.events if name == "noise")
    stray = sum(1 for name, _ in run.events if name == "stray")
    if run.counts["noise"] != noise:
        raise FuzzFailure(f"{run.counts['noise']} counted as noise, {noise} reported")
    if not stray <= run.counts["stray"] <= model.messages:
        raise FuzzFailure(f"{run.counts['stray']} counted as stray, {stray} reported")
    accepted = sum(1 for outcome in run.outcomes if outcome != ("error", "NotSent"))
    if not len(run.sent_at) <= accepted <= run.counts["calls"] - case.ids + len(model.entries):
        raise FuzzFailure(f"{run.counts} after {len(run.sent_at)} requests")


def _check_outcome(name: str, outcome: Outcome, entry: Entry, sent_at: int) -> None:
    if entry.sure:
        if outcome != entry.exact:
            raise FuzzFailure(f"{name} was given {outcome!s:.500}, not {entry.exact!s:.500}")
        return
    if outcome[0] == "error":
        if outcome[1] not in UNDECIDED | entry.errors:
            raise FuzzFailure(f"{name} ended with {outcome}")
    elif outcome not in entry.allowed:
        raise FuzzFailure(f"{name} was given {outcome!s:.500}, not {list(entry.allowed)!s:.500}")
    elif entry.allowed[outcome] <= sent_at and outcome != ("gone",):
        raise FuzzFailure(f"{name} was given {outcome!s:.500}, printed before it was asked")


def _check_host_calls(run: Run, model: Model) -> None:
    reported = [message for name, message in run.events if name == "host_call"]
    if not Counter(model.host_calls) <= Counter(reported):
        raise FuzzFailure(f"host calls {model.host_calls}, but reported were {reported}")
    if not Counter(reported) <= Counter(model.host_calls + model.maybe_host_calls):
        raise FuzzFailure(f"host calls were reported that nobody made: {reported}")


def _compare(one: Run, other: Run) -> None:
    for what, left, right in (
        ("outcomes", one.outcomes, other.outcomes),
        ("reports", one.events, other.events),
        ("counters", one.counts, other.counts),
    ):
        if left != right:
            raise FuzzFailure(
                f"cut in another way, the {what} are {right!s:.900}, not {left!s:.900}"
            )
