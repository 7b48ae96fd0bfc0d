"""When a plugin whose process keeps failing may be started again."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from zeno_fast.errors import PluginUnavailable

FIRST_DELAY = 0.1  # seconds before the second start in a row after failures; the first has none
LONGEST_DELAY = 30.0  # to which it grows, twice as long each time
FIRST_REST = 30.0  # seconds for which an open breaker refuses calls
LONGEST_REST = 600.0  # to which it grows with each start after it that fails
CAUSES = 10  # failures that are remembered

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"


class Breaker:
    """Counts failures in a row: delays the next start, and after too many refuses it for a while.

    The delays and rests are spread at random by up to half, so that plugins that fail for one
    reason do not all come back at one moment. Not safe from several threads by itself: its driver
    calls it under a lock.

    Args:
        plugin: The plugin's name, for messages.
        max_retries: Failures in a row after which starting again is allowed.
        clock: Monotonic seconds.
        spread: A random number from 0 to 1.

    Attributes:
        failures: Number of failures since a call was answered.
        causes: The last failures, oldest first, as (seconds since the epoch, text).
    """

    def __init__(
        self,
        plugin: str,
        max_retries: int,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._plugin = plugin
        self._limit = max_retries
        self._clock = clock
        self._spread = spread
        self.failures = 0
        self.causes: deque[tuple[float, str]] = deque(maxlen=CAUSES)
        self._first_failed = 0.0
        self._start_at = 0.0
        self._open_until = 0.0
        self._rest = FIRST_REST

    @property
    def state(self) -> str:
        """`closed`, `open`, or `half-open` where the next start decides."""
        if self.failures <= self._limit:
            return CLOSED
        return OPEN if self._clock() < self._open_until else HALF_OPEN

    @property
    def last_cause(self) -> str:
        """The text of the last failure, or ""."""
        return self.causes[-1][1] if self.causes else ""

    def failed(self, cause: str) -> bool:
        """Count a failure; return whether it opened the breaker."""
        now = self._clock()
        self.causes.append((time.time(), cause))
        self.failures += 1
        if self.failures == 1:
            self._first_failed = now
        if self.failures > self._limit:
            self._open_until = now + self._spread_out(self._rest)
            self._rest = min(2 * self._rest, LONGEST_REST)
            return True
        if self.failures > 1:
            # The exponent is bounded, too: max_retries may be a large number.
            delay = min(FIRST_DELAY * 2 ** min(self.failures - 2, 30), LONGEST_DELAY)
            self._start_at = now + self._spread_out(delay)
        return False

    def succeeded(self) -> bool:
        """Forgive all failures; return whether that closed the breaker."""
        closed = self.failures > self._limit
        self.failures = 0
        self._start_at = self._open_until = 0.0
        self._rest = FIRST_REST
        return closed

    def delay(self) -> float:
        """Return the seconds for which the next start has to wait.

        Raises PluginUnavailable while the breaker is open.
        """
        now = self._clock()
        if self.state != OPEN:
            return max(0.0, self._start_at - now) if self.failures <= self._limit else 0.0
        raise PluginUnavailable(
            f"plugin {self._plugin!r} failed {self.failures} times in a row within "
            f"{now - self._first_failed:.1f} s, more than sidecar.max_retries ({self._limit}) "
            f"allows; it is tried again in {self._open_until - now:.0f} s, or at once after "
            f"manager.reset_plugin({self._plugin!r}) or a reload. Last: {self.last_cause}",
            plugin=self._plugin,
        )

    def status(self) -> dict[str, Any]:
        """Say how it stands, in values that JSON can carry."""
        state = self.state
        wait = self._open_until if state == OPEN else self._start_at
        return {
            "state": state,
            "failures": self.failures,
            "limit": self._limit,
            "next_start_in": round(max(0.0, wait - self._clock()), 3),
        }

    def _spread_out(self, seconds: float) -> float:
        return seconds * (0.5 + 0.5 * self._spread())
