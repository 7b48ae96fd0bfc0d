"""Calls that look for their answer at once, which is in the pipe before they are made."""

from __future__ import annotations

import copy
import threading
import time
from typing import TYPE_CHECKING

from fuzz.guest import PATIENCE
from fuzz.owner import lost

from zeno_fast._call import Call

if TYPE_CHECKING:
    from fuzz.harness import Run

AT_ONCE = 30_000  # bytes that one read takes, whatever is buffered
SOON_NS = 1_000_000  # of a call that gets no answer
BOUND_NS = 20_000_000_000  # of one that must get one


def ask(run: Run, kind: str, text: bytes) -> None:
    """Do a step of one of these kinds."""
    number = len(run.calls)
    run.calls.append(None)
    run.model.start("call")
    if run.channel.lost or not run.guest.open:
        text = b""
    else:
        run.model.sent(number, run.guest.foretell(number))
        text = run.expand(text)
    if kind == "soon":
        _ask_soon(run, number, text)
        run.model.print(text)
    elif kind == "last" or _is_answered(run, number, text):
        _call(run, number, text, kind == "last")
        run.model.print(text)
    else:
        first, rest = text[:AT_ONCE], text[AT_ONCE:]
        run.guest.put(first)
        run.direct[number] = _call_within(run, number, SOON_NS)
        run.model.print(first)
        run.model.expire(number)
        run.turn(len(first))
        run.learn()
        for piece in run.cut(rest):
            run.write(piece)
        run.model.print(rest)
    run.learn()


def _is_answered(run: Run, number: int, text: bytes) -> bool:
    """Tell whether a call is sure to end by what is printed."""
    trial = copy.deepcopy(run.model)
    trial.print(text)
    return trial.entries[number].settled


def _ask_soon(run: Run, number: int, text: bytes) -> None:
    pieces = run.cut(text)
    piece = next(pieces, b"")
    piece = piece[run.guest.put(piece) :]
    deadline_ns = time.monotonic_ns() + BOUND_NS

    payload = b'{"n":%d}' % number
    found: list[object] = []

    def ask_soon() -> None:
        channel, watcher = run.channel, run.loop_watcher
        found.append(channel.ask_soon(run.template, payload, deadline_ns, None, watcher))

    outcome = run.take(number, ask_soon)
    if found and isinstance(found[0], Call):
        run.expect_delivery(number, found[0])
    else:
        run.direct[number] = run.take(number, lambda: found[0]) if found else outcome
    run.turn(len(text))
    run.learn()
    run.write(piece)
    for piece in pieces:
        run.write(piece)


def _call(run: Run, number: int, text: bytes, last: bool) -> None:
    """Call while another thread prints, and closes stdout where this is the last that it does."""
    stop = threading.Event()
    pieces = list(run.cut(text))

    def print_all() -> None:
        run.guest.print_all(pieces, stop)
        if last:
            run.guest.close_stdout()
            while not stop.is_set() and not run.owner.ended_event.wait(PATIENCE):
                pass
            if run.owner.ended_event.is_set():
                run.channel.lose(lost)

    if pieces:
        pieces[0] = pieces[0][run.guest.put(pieces[0]) :]
    if not last and not any(pieces):
        run.direct[number] = _call_within(run, number, BOUND_NS)
        run.turn(len(text))
        return
    printer = threading.Thread(target=print_all)
    printer.start()
    try:
        run.direct[number] = _call_within(run, number, BOUND_NS)
        while printer.is_alive() and not run.channel.lost:
            run.turn(len(text))
            printer.join(0.001)
    finally:
        stop.set()
        printer.join()
    run.turn(len(text))


def _call_within(run: Run, number: int, nanoseconds: int) -> tuple[object, ...]:
    deadline_ns = time.monotonic_ns() + nanoseconds
    payload = b'{"n":%d}' % number
    return run.take(number, lambda: run.channel.call(run.template, payload, deadline_ns, None))
