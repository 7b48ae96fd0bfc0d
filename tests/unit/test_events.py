"""What happens to plugins beside their calls is told to who asked."""

from __future__ import annotations

import logging

import pytest
from fault.ways import wait_until

from zeno_fast import Event, PluginCrashed

CRASHING = """
for request in requests():
    if not lifecycle(request, "work"):
        if "exit" in request["parameters"]:
            os._exit(request["parameters"]["exit"])
        answer(request, os.getpid())
"""


def test_a_plugins_life_is_a_row_of_events(manager, make_plugin, caplog):
    caplog.set_level(logging.DEBUG, "zeno_fast.plugin.scripted")
    events: list[Event] = []
    end = manager.on_event(events.append)
    manager.load_plugin(make_plugin(CRASHING, sidecar="max_retries: 1"))
    for status in (3, 4):
        with pytest.raises(PluginCrashed):
            manager.call("work", {"exit": status}, timeout=20)
    manager.reset_plugin("scripted")
    wait_until(lambda: manager.get_plugin("scripted").status()["state"] == "running")
    manager.reload_plugin("scripted")
    manager.unload_plugin("scripted")
    end()
    kinds = [event.kind for event in events]
    expected = [
        "worker_started", "plugin_loaded", "worker_exited", "worker_started", "worker_exited",
        "breaker_opened", "breaker_closed", "worker_started", "worker_started", "plugin_reloaded",
        "plugin_unloaded",
    ]  # fmt: skip
    assert kinds == expected
    assert {event.plugin for event in events} == {"scripted"}
    exited = events[kinds.index("worker_exited")]
    assert exited.details["exit_status"] == 3
    assert exited.details["busy"] is True
    assert "exit status 3" in exited.message
    assert events[3].details["restart"] is True
    assert events[0].details["restart"] is False
    told = [record for record in caplog.records if hasattr(record, "zeno_event")]
    assert [record.zeno_event for record in told] == expected
    manager.load_plugin(make_plugin(CRASHING))
    assert len(events) == len(expected)


def test_a_handler_that_raises_keeps_no_other_from_being_told(manager, make_plugin, caplog):
    events: list[Event] = []

    def fail(event: Event) -> None:
        raise RuntimeError("on purpose")

    manager.on_event(fail)
    manager.on_event(events.append)
    manager.load_plugin(make_plugin(CRASHING))
    assert [event.kind for event in events] == ["worker_started", "plugin_loaded"]
    assert caplog.text.count("a subscriber failed") == 2
    assert manager.call("work", timeout=20)
