"""A clock that interrupts guests by raising their engine's epoch, for the public API."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import wasmtime

from zeno_fast import _wasmtime

TICK_NS = 2_000_000
PARK_AFTER_NS = 100_000_000


class Ticks:
    """Raises an engine's epoch every 2 ms while calls run. Safe from any thread.

    An epoch stands for a moment, so a clock that was kept waiting catches up, and callers count
    from the moment that the last epoch stands for: nobody is interrupted too early.
    """

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._engine = engine
        self._condition = threading.Condition()
        self._running = 0
        self._moment = 0  # what the last epoch stands for
        self._thread: threading.Thread | None = None

    @contextmanager
    def limit(self, store: wasmtime.Store, deadline: int) -> Iterator[None]:
        """Have a store's guest trap at `deadline`, if it still runs then."""
        with self._condition:
            if self._thread is None:
                self._moment = _wasmtime.now_ns()
                self._thread = threading.Thread(target=self._tick, name="zeno-ticks", daemon=True)
                self._thread.start()
            self._running += 1
            # An engine's epoch has 64 bits; a century is far enough away.
            away = min(deadline - self._moment, 10**18)
            store.set_epoch_deadline(max(1, away // TICK_NS + 2))
        try:
            yield
        finally:
            with self._condition:
                self._running -= 1

    def _tick(self) -> None:
        idle_since = 0
        while True:
            with self._condition:
                self._condition.wait(TICK_NS / 1e9)
                now = _wasmtime.now_ns()
                while self._moment + TICK_NS <= now:
                    self._engine.increment_epoch()
                    self._moment += TICK_NS
                if self._running:
                    idle_since = 0
                elif not idle_since:
                    idle_since = now
                elif now - idle_since > PARK_AFTER_NS:
                    self._thread = None
                    return


def ticks_of(engine: wasmtime.Engine) -> Ticks:
    """Return the clock of an engine, one for each engine and process."""
    return _ticks(engine, os.getpid())


@functools.cache
def _ticks(engine: wasmtime.Engine, _process: int) -> Ticks:
    return Ticks(engine)
