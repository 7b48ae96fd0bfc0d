"""Two plugins under eight threads that call in every way, while guests trap, hang and refuse."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import threading
import time
from collections import Counter
from typing import Any

import pytest

from zeno_fast import _wasm
from zeno_fast.errors import PluginCrashed, SlotError, SlotTimeout
from zeno_fast.wasm.public_api import PublicGuest
from zeno_fast.wasm.slot import WasmSlot

from .conftest import ECHO_BODY, ECHO_DATA, Load, Plugin, data, module

SECONDS = 2.5
THREADS = 8
PATIENCE = 60.0  # seconds; only `loop` is called with less
REFUSAL = data(3072, '{"success":false,"error":"no"}\0')
# Slots: `trap`, `loop`, `refuse`, and any other echoes. Each call takes memory and gives none back,
# so that instances wear out as well.
IF_NAMED = "(if (i32.eq (i32.load8_u (local.get $name)) (i32.const {})) (then {}))"
MIXED = module(
    "(local $unused i32)"
    + ECHO_BODY.replace(
        "(local.set $p",
        IF_NAMED.format(ord("t"), "unreachable")
        + IF_NAMED.format(ord("l"), "(loop $l (br $l))")
        + IF_NAMED.format(ord("r"), "(return (i32.const 3072))")
        + "(local.set $p",
        1,
    ),
    ECHO_DATA + REFUSAL,
)
ODD = ["trap", "loop", "refuse"]


class Caller:
    """Calls one plugin or the other from one thread, and counts what it gets from each."""

    def __init__(self, number: int, plugins: list[Plugin]) -> None:
        self.counts: list[Counter[str]] = [Counter() for _ in plugins]
        self.wrong: list[Any] = []
        self._number = number
        self._random = random.Random(number)
        self._serial = 0
        self._slots = [{name: plugin.slot(name) for name in ("echo", *ODD)} for plugin in plugins]

    def run(self, until: float) -> None:
        """Call until that moment, in one way after the other."""
        ways = [self.call, self.submit, self.map, self.call_async]
        try:
            while time.monotonic() < until:
                which = self._random.randrange(len(self._slots))
                self._random.choice(ways)(which)
        except BaseException as error:  # noqa: BLE001 - the test's thread looks at it
            self.wrong.append(error)

    def parameters(self) -> dict[str, Any]:
        self._serial += 1
        size = self._random.choice((0, 10, 300, 3000))
        return {"thread": self._number, "n": self._serial, "x": chr(97 + self._number) * size}

    def chosen(self, which: int) -> tuple[WasmSlot, dict[str, Any], float]:
        """Return what to call, mostly `echo`, with what, and how long to wait for it."""
        odd = self._random.randrange(40)
        name = ODD[odd] if odd < len(ODD) else "echo"
        return self._slots[which][name], self.parameters(), 0.02 if name == "loop" else PATIENCE

    def note(self, which: int, slot: WasmSlot, sent: Any, outcome: Any) -> None:
        """Count an outcome; keep it where it is not what the slot is to do."""
        counts = self.counts[which]
        if slot.name == "echo" and outcome == sent:
            counts["answered"] += 1
        elif slot.name == "refuse" and isinstance(outcome, SlotError):
            counts["refused"] += 1
        elif slot.name == "trap" and isinstance(outcome, PluginCrashed):
            counts["trapped"] += 1
        elif slot.name == "loop" and isinstance(outcome, SlotTimeout):
            # The others were never begun, or ended as their instance was made.
            counts["ended" if "slot 'loop' did not end" in str(outcome) else "waited"] += 1
        else:
            self.wrong.append((slot.name, sent, outcome))

    def call(self, which: int) -> None:
        for _ in range(10):
            slot, sent, timeout = self.chosen(which)
            try:
                outcome = slot.call(sent, timeout, None)
            except (SlotError, SlotTimeout, PluginCrashed) as error:
                outcome = error
            self.note(which, slot, sent, outcome)

    def submit(self, which: int) -> None:
        chosen = [self.chosen(which) for _ in range(10)]
        futures = [slot.submit(sent, timeout, None) for slot, sent, timeout in chosen]
        for (slot, sent, _), future in zip(chosen, futures, strict=True):
            outcome = future.exception(PATIENCE) or future.result()
            self.note(which, slot, sent, outcome)

    def map(self, which: int) -> None:
        slot = self._slots[which]["echo"]
        many = [self.parameters() for _ in range(20)]
        for sent, outcome in zip(many, slot.map(many, PATIENCE, None), strict=True):
            self.note(which, slot, sent, outcome)

    def call_async(self, which: int) -> None:
        chosen = [self.chosen(which) for _ in range(20)]

        async def work() -> list[Any]:
            return await asyncio.gather(
                *(slot.call_async(sent, timeout, None) for slot, sent, timeout in chosen),
                return_exceptions=True,
            )

        for (slot, sent, _), outcome in zip(chosen, asyncio.run(work()), strict=True):
            self.note(which, slot, sent, outcome)


def guests() -> int:
    gc.collect()
    return sum(isinstance(item, (_wasm.Guest, PublicGuest)) for item in gc.get_objects())


@pytest.mark.parametrize(
    "options",
    [
        ({"instances": 1}, {"instances": 3}),
        ({"instances": 2}, {"instances": 2, "fresh": True}),
    ],
    ids=["1 and 3", "2 and 2 fresh"],
)
def test_every_answer_is_its_callers_and_every_call_is_counted(
    load: Load, way: str, caplog: pytest.LogCaptureFixture, options: tuple[dict[str, Any], ...]
) -> None:
    caplog.set_level(logging.CRITICAL, "zeno_fast")  # each trap is logged
    before = guests()
    plugins = [load(MIXED, memory=192 << 10, **some) for some in options]
    callers = [Caller(number, plugins) for number in range(THREADS)]
    until = time.monotonic() + SECONDS
    threads = [threading.Thread(target=caller.run, args=(until,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE + SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    assert [wrong for caller in callers for wrong in caller.wrong] == []
    for which, (plugin, some) in enumerate(zip(plugins, options, strict=True)):
        counts: Counter[str] = sum((caller.counts[which] for caller in callers), Counter())
        status = plugin.driver.status()
        assert (status["busy"], status["waiting"]) == (0, 0)
        assert status["instances"] <= (0 if some.get("fresh") else some["instances"])
        assert status["served"] == counts["answered"] + counts["refused"]
        assert counts["answered"] > 100
        ended = counts["trapped"] + counts["ended"]
        if way == "direct":
            assert status["broken"] == ended
        else:  # an instance that ended by itself, but late, is used again
            assert counts["trapped"] <= status["broken"] <= ended
        assert counts["trapped"] > 0
        assert some.get("fresh") or status["recycled"] > 0
    for plugin in plugins:
        plugin.driver.close()
        assert plugin.driver.status()["instances"] == 0
    del plugins, plugin, callers, threads, thread
    assert guests() <= before
