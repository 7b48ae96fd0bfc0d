"""Which host call the running code works on, so that what it calls inherits its deadline."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 32  # host functions that call slots that call host functions, and so on


@dataclass(frozen=True, slots=True, eq=False)  # two calls for the same are still two
class HostCall:
    """A host function that runs for a guest.

    Attributes:
        plugin: Name of the plugin whose guest asks.
        function: What it asks for, such as `db_query`.
        deadline_ns: When the call that the guest works on expires, on the clock of
            `time.monotonic_ns`; None where it is not known.
        outer: The host call in which that call was made, or None.
        channel: What the guest belongs to that waits for this: the channel to a sidecar's
            process, a WASM plugin's instances, or None.
    """

    plugin: str
    function: str
    deadline_ns: int | None = None
    outer: HostCall | None = None
    channel: Any = None

    @property
    def deadline(self) -> float | None:
        """When the guest's call expires, in seconds of `time.monotonic`; None if not known."""
        return None if self.deadline_ns is None else self.deadline_ns / 1e9

    def remaining(self) -> float | None:
        """Return the seconds until the deadline, 0 or more; None where there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def depth(self) -> int:
        """How many host calls this one runs in, itself included."""
        depth = 1
        outer = self.outer
        while outer is not None:
            depth += 1
            outer = outer.outer
        return depth

    def holds_up(self, channel: Any) -> bool:
        """Tell whether the guest behind a channel waits until this host call has ended."""
        call: HostCall | None = self
        while call is not None:
            if call.channel is channel:
                return True
            call = call.outer
        return False


CURRENT: ContextVar[HostCall | None] = ContextVar("zeno_fast.host_call", default=None)


def current_host_call() -> HostCall | None:
    """Return the host call that the calling code works on, or None outside of one.

    A host function asks it how much time is left, and for whom it works. Slot calls that it makes
    inherit the deadline without that.
    """
    return CURRENT.get()
