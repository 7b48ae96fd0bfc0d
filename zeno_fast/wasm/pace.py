"""Learns whether a slot's calls are short enough to be made in an event loop's own thread."""

from __future__ import annotations

SHORT_NS = 100_000  # below it a call costs less than handing it to another thread
LONG_NS = 1_000_000  # above it a call has kept a loop from its other tasks
PROOF = 3  # short calls in a row that are believed at first
MOST_PROOF = 4096
TURNS = 32  # calls in the loop's thread after which its other tasks get their turn


class Pace:
    """What is known of one slot's calls; for any thread, as nothing depends on being exact.

    Args:
        blocking: What the slot's definition says, or None to learn it.
    """

    def __init__(self, blocking: bool | None) -> None:
        self._blocking = blocking
        self._short = 0
        self._proof = PROOF
        self._turns = 0

    @property
    def is_short(self) -> bool:
        """Whether the next call may be made in the loop's thread."""
        if self._blocking is None:
            return self._short >= self._proof
        return not self._blocking

    def note(self, took_ns: int, in_loop: bool) -> None:
        """Learn from a call: how long it ran, and whether a loop waited for it meanwhile."""
        if took_ns < SHORT_NS:
            self._short += 1
            return
        self._short = 0
        if in_loop and took_ns > LONG_NS:
            self._proof = min(4 * self._proof, MOST_PROOF)

    def turn_is_due(self) -> bool:
        """Tell whether the loop's other tasks have waited for calls often enough."""
        self._turns += 1
        if self._turns < TURNS:
            return False
        self._turns = 0
        return True
