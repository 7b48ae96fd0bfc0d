"""What the slots of one plugin have counted, for `status`."""

from __future__ import annotations

from typing import Any

from zeno_fast._statistics import SlotStatistics


class PluginStatistics:
    """The statistics of each slot of a plugin; they outlive the processes that answer."""

    def __init__(self) -> None:
        self._slots: dict[str, SlotStatistics] = {}

    def of(self, slot: str) -> SlotStatistics:
        """Return what counts the calls of a slot."""
        return self._slots.setdefault(slot, SlotStatistics())

    def status(self) -> dict[str, Any]:
        """Return the counts and latencies of all slots, and of each that was called."""
        total = SlotStatistics()
        slots = dict(self._slots)
        for statistics in slots.values():
            total.merge(statistics)
        return {
            **total.summary(),
            "slot_statistics": {
                name: slots[name].summary() for name in sorted(slots) if slots[name].calls
            },
        }
