"""Counts and latencies of slots: how exact they are, and that each call is counted once."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import wait
from pathlib import Path

import pytest

from zeno_fast import PluginCrashed, PluginManager, SlotError, SlotTimeout
from zeno_fast._statistics import SlotStatistics
from zeno_fast.statistics import PluginStatistics

GUEST = """
for request in requests():
    if not lifecycle(request, "work", "other"):
        parameters = request["parameters"]
        time.sleep(parameters.get("seconds", 0))
        if "exit" in parameters:
            os._exit(parameters["exit"])
        elif "error" in parameters:
            fail(request, "no")
        else:
            answer(request, parameters)
"""
TEXT = Path(__file__).parents[2] / "examples" / "plugins" / "text"


def call_in_every_way(manager: PluginManager, slot: str, parameters: dict) -> int:
    """Call a slot eight times and return that number."""

    async def from_loop() -> None:
        await manager.call_async(slot, parameters)
        stream = manager.stream(slot, parameters)
        async for _ in stream:
            pass

    manager.call(slot, parameters)
    manager.execute_slot(manager.slots[slot].plugin, slot, parameters)
    wait([manager.submit(slot, parameters)])
    assert len(list(manager.map(slot, [parameters] * 2))) == 2
    list(manager.stream(slot, parameters))
    asyncio.run(from_loop())
    return 8


@pytest.mark.parametrize("kind", ["sidecar", "wasm"])
def test_every_way_of_calling_counts_once(manager, make_plugin, kind):
    if kind == "sidecar":
        plugin = manager.load_plugin(make_plugin(GUEST))
        slot, parameters = "work", {"n": 1}
    else:
        plugin = manager.load_plugin(TEXT)
        slot, parameters = "text.stats", {"text": "one two"}
    assert plugin.status()["calls"] == 0
    assert plugin.status()["latency"] is None
    calls = call_in_every_way(manager, slot, parameters)
    calls += call_in_every_way(manager, slot, parameters)
    status = plugin.status()
    assert (status["calls"], status["errors"], status["timeouts"]) == (calls, 0, 0)
    assert list(status["slot_statistics"]) == [slot]
    latency = status["latency"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"] < 20
    assert 0 < latency["mean"] <= latency["max"]


def test_errors_and_timeouts_are_counted_and_outlive_the_process(manager, make_plugin):
    plugin = manager.load_plugin(make_plugin(GUEST, sidecar="cancel_timeout: 0.1"))
    manager.call("work", {})
    with pytest.raises(SlotError):
        manager.call("work", {"error": 1})
    with pytest.raises(SlotTimeout):
        manager.call("work", {"seconds": 0.3}, timeout=0.05)
    with pytest.raises(PluginCrashed):
        manager.call("other", {"exit": 3})
    status = plugin.status()
    assert (status["calls"], status["errors"], status["timeouts"]) == (4, 3, 1)
    assert status["slot_statistics"]["other"]["errors"] == 1
    assert status["slot_statistics"]["work"]["timeouts"] == 1
    assert 0.04 < status["slot_statistics"]["work"]["latency"]["max"] < 2


def test_latency_is_what_the_caller_waited(manager, make_plugin):
    plugin = manager.load_plugin(make_plugin(GUEST))
    for seconds in (0.01, 0.01, 0.01, 0.1):
        manager.call("work", {"seconds": seconds})
        time.sleep(0.02)
    latency = plugin.status()["latency"]
    assert 0.009 < latency["p50"] < 0.05
    assert 0.09 < latency["max"] < 0.5


def test_what_no_slot_has_counted_yet_is_nothing():
    statistics = PluginStatistics()
    assert statistics.of("a") is statistics.of("a")
    assert statistics.status() == {
        "calls": 0, "errors": 0, "timeouts": 0, "latency": None, "slot_statistics": {},
    }  # fmt: skip
    one = SlotStatistics()
    one.merge(SlotStatistics())
    assert one.calls == 0
