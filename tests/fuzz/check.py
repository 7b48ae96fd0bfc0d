"""Says whether a case is right: against the model, and whichever way its output is cut."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

from fuzz.cases import Case, parse
from fuzz.guest import FuzzFailure
from fuzz.harness import Cut, Run
from fuzz.model import Model
from fuzz.table import LATER, Entry, Outcome

# What else a call may be told where the table is not certain.
UNDECIDED = frozenset({"ProtocolError", "NotSent", "Lost"})
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
        sent_at = run.guest.sent_at.get(number, LATER)
        _check_outcome(f"call {number}", outcome, entry, sent_at)
        _check_chunks(run, number, entry)
    _check_cancels(run)
    _check_reports(run, model, "host_call", model.host_calls, model.maybe_host_calls)
    _check_reports(run, model, "refuse_host_call", model.refused, None)
    _check_counts(run, model)
    accepted = sum(1 for outcome in run.outcomes if outcome != ("error", "NotSent"))
    admitted = run.counts["calls"] - case.ids
    if not len(run.guest.sent_at) <= accepted or admitted > len(model.entries):
        raise FuzzFailure(f"{run.counts} after {len(run.guest.sent_at)} requests")


def _check_outcome(name: str, outcome: Outcome, entry: Entry, sent_at: int) -> None:
    if entry.sure or entry.known:
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


def _check_chunks(run: Run, number: int, entry: Entry) -> None:
    sink = run.sinks.get(number)
    if sink is None:
        return
    name = f"stream {number} was given {sink.chunks!s:.300}"
    if entry.sure and sink.chunks != entry.chunks:
        raise FuzzFailure(f"{name}, not {entry.chunks!s:.300}")
    if not Counter(sink.chunks) <= Counter(entry.chunks + entry.maybe_chunks):
        raise FuzzFailure(f"{name}, which was not printed for it")
    shown = sum(1 for other in run.loop_watcher.shown if other is sink)
    if shown not in (0, len(sink.chunks)):
        raise FuzzFailure(f"{name}, of which its loop was told {shown} times")


def _sure_cancels(run: Run) -> list[bytes]:
    """Return the ids of cancelled calls, but of those that need not have been told."""
    numbers = {id: number for number, id in run.guest.ids.items()}
    return [id for id in run.guest.cancels if run.model.entries[numbers[id]].cancelled is not None]


def _check_cancels(run: Run) -> None:
    """Whose calls were given up, and only whose, the guest is told so once."""
    numbers = {id: number for number, id in run.guest.ids.items()}
    cancelled = Counter(numbers.get(id) for id in run.guest.cancels)
    for number, entry in enumerate(run.model.entries):
        count = cancelled.pop(number, 0)
        if count != (count > 0 if entry.cancelled is None else entry.cancelled):
            raise FuzzFailure(f"call {number} was cancelled {count} times, not {entry.cancelled}")
    if cancelled:
        raise FuzzFailure(f"calls were cancelled that nobody made: {cancelled}")


def _check_reports(
    run: Run, model: Model, name: str, sure: list[bytes], maybe: list[bytes] | None
) -> None:
    reported = [message for event, message in run.events if event == name]
    if model.counted and reported != sure:
        raise FuzzFailure(f"{name} was reported with {reported}, not {sure}")
    if not Counter(sure) <= Counter(reported):
        raise FuzzFailure(f"{name} was reported with {reported}, and not with each of {sure}")
    if maybe is not None and not Counter(reported) <= Counter(sure + maybe):
        raise FuzzFailure(f"{name} was reported with {reported}, which nobody printed")


def _check_counts(run: Run, model: Model) -> None:
    reports = Counter(name for name, _ in run.events)
    if run.counts["noise"] != reports["noise"]:
        raise FuzzFailure(f"{run.counts} are counted, and reported are {reports}")
    if not reports["stray"] <= run.counts["stray"] <= model.messages:
        raise FuzzFailure(f"{run.counts} are counted, and reported are {reports}")
    if not model.counted:
        return
    found = {
        "noise": run.counts["noise"],
        "stray": run.counts["stray"],
        "late": run.counts["late"],
        "stray reports": reports["stray"],
        "hung": reports["hung"],
        "overran": reports["overran"],
        "abandoned": reports["abandoned"],
    }
    expected = {name: model.counts[name] for name in found}
    if found != expected:
        raise FuzzFailure(f"counted are {found}, not {expected}")


def _compare(one: Run, other: Run) -> None:
    for what, left, right in (
        ("outcomes", one.outcomes, other.outcomes),
        ("reports", one.events, other.events),
        ("counters", one.counts, other.counts),
        ("cancelled calls", _sure_cancels(one), _sure_cancels(other)),
    ):
        if left != right:
            raise FuzzFailure(
                f"cut in another way, the {what} are {right!s:.900}, not {left!s:.900}"
            )
