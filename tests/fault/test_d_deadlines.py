"""Deadlines that reach the guest and the host functions, and the queue that counts against them."""

from __future__ import annotations

import itertools
import os
import threading
import time

import pytest
from fault.ways import WAYS, WORKER, call_by, wait_until

import zeno_fast
from zeno_fast import PluginUnavailable, SlotTimeout


@pytest.fixture(params=WAYS)
def way(request):
    return request.param


def test_d3_a_guest_that_announces_it_is_given_the_time_that_is_left(manager, make_guest):
    manager.load_plugin(
        make_guest(
            """
            features = ["deadline"]
            for request in requests():
                if not greeted(request, "left", features=features):
                    answer(request, request.get("timeout_ms"))
            """
        )
    )
    for way, timeout in itertools.product(WAYS, (0.5, 7.25, 3600)):
        left = call_by(way, manager, "left", {}, timeout)
        assert type(left) is int
        assert 0 < left <= timeout * 1000
        assert timeout < 1 or left > timeout * 1000 - 1000


def test_d3_a_guest_that_does_not_announce_it_is_sent_no_deadline(manager, make_guest):
    manager.load_plugin(
        make_guest(
            """
            for request in requests():
                if not greeted(request, "members"):
                    answer(request, sorted(request))
            """
        )
    )
    for way in WAYS:
        members = call_by(way, manager, "members", {}, 10)
        assert members == ["id", "parameters", "slot_name", "type"]


ASKS = """
lines = requests()
for request in lines:
    if not greeted(request, "ask"):
        put({"type": "host_call", "id": "h", "function": "asked", "parameters": {}})
        for response in lines:
            if response.get("type") == "host_response":
                break
        answer(request, response.get("data"))
"""


def test_d3_a_host_function_knows_for_whom_it_works_and_until_when(manager, make_guest):
    manager.load_plugin(make_guest(ASKS))
    seen = []

    def asked(_):
        current = zeno_fast.current_host_call()
        seen.append((current.plugin, current.function, current.deadline, current.remaining()))
        return "told"

    manager.set_host_callback("asked", asked)
    for way in WAYS:
        began = time.monotonic()
        assert call_by(way, manager, "ask", {}, 7.5) == "told"
        plugin, function, deadline, remaining = seen.pop()
        assert (plugin, function) == ("scripted", "asked")
        assert began + 7.5 <= deadline <= time.monotonic() + 7.5
        assert 0 < remaining <= 7.5
    assert zeno_fast.current_host_call() is None


@pytest.mark.parametrize("inner", WAYS)
def test_d3_a_slot_call_inside_a_host_function_inherits_the_deadline(
    manager, make_ids_guest, inner
):
    manager.load_plugin(make_ids_guest(ASKS))
    manager.load_plugin(make_ids_guest("FEATURES = []" + WORKER, name="other"))
    took = []
    given_up, outer_failed = threading.Event(), threading.Event()

    def asked(_):
        began = time.monotonic()
        try:
            call_by(inner, manager, "work", {"seconds": 60}, 50)
        except SlotTimeout:
            took.append(time.monotonic() - began)
        given_up.set()
        outer_failed.wait(10)  # which is due at the same moment

    manager.set_host_callback("asked", asked)
    with pytest.raises(SlotTimeout):
        manager.call("ask", timeout=0.3)
    outer_failed.set()
    assert given_up.wait(10)
    assert took
    assert took[0] < 3


HOLDS = """
seen = []
for request in requests():
    if greeted(request, "hold", "echo", "seen", features=["deadline"]):
        continue
    seen.append(request["parameters"].get("n"))
    if request["slot_name"] == "hold":
        wait_for("go")
    if request["slot_name"] == "seen":
        answer(request, [seen, request.get("timeout_ms")])
    else:
        answer(request, request["parameters"])
"""


def test_d4_the_wait_in_the_queue_counts_against_the_deadline(manager, make_guest, healthy, way):
    manager.load_plugin(make_guest(HOLDS))
    plugin = manager.get_plugin("scripted")
    pid = plugin.status()["pid"]
    held = manager.submit("hold", {"n": "held"}, timeout=60)
    wait_until(lambda: plugin.status()["in_flight"] == 1)
    began = time.monotonic()
    with pytest.raises(SlotTimeout):
        call_by(way, manager, "echo", {"n": "queued"}, 0.2)
    assert 0.199 < time.monotonic() - began < 2
    assert plugin.status()["queued"] == 0
    (plugin.folder / "go").touch()
    assert held.result(20) == {"n": "held"}
    assert manager.call("echo", {"n": 1}) == {"n": 1}
    if not plugin.status()["returns_ids"]:
        assert manager.call("seen")[0][:3] == ["held", 1, None]  # it never got the other
    assert plugin.status()["pid"] == pid


def test_d4_the_guest_is_given_what_the_queue_has_left(manager, make_bare_guest):
    manager.load_plugin(make_bare_guest(HOLDS))
    plugin = manager.get_plugin("scripted")
    held = manager.submit("hold", timeout=60)
    wait_until(lambda: plugin.status()["in_flight"] == 1)
    began = time.monotonic()
    queued = manager.submit("seen", timeout=60)
    wait_until(lambda: time.monotonic() > began + 0.3)
    (plugin.folder / "go").touch()
    assert queued.result(20)[1] <= 59_700
    held.result(20)


def test_d4_a_full_queue_refuses_at_once(manager, make_guest, healthy):
    manager.load_plugin(make_guest(HOLDS, sidecar="max_queue: 4"))
    plugin = manager.get_plugin("scripted")
    held = [manager.submit("hold", {"n": n}, timeout=60) for n in range(4)]
    for way in WAYS:
        began = time.monotonic()
        with pytest.raises(PluginUnavailable, match="max_queue"):
            call_by(way, manager, "echo", {}, 60)
        assert time.monotonic() - began < 1
    (plugin.folder / "go").touch()
    assert [future.result(20) for future in held] == [{"n": n} for n in range(4)]
    for way in WAYS:
        assert call_by(way, manager, "echo", {"n": 1}, 20) == {"n": 1}


def test_d5_a_host_function_that_blocks_in_c_keeps_no_caller(manager, make_guest, healthy, way):
    manager.load_plugin(make_guest(ASKS, sidecar="cancel_timeout: 20"))
    plugin = manager.get_plugin("scripted")
    blocked_out, blocked_in = os.pipe()
    manager.set_host_callback("asked", lambda _: len(os.read(blocked_out, 1)))
    try:
        began = time.monotonic()
        with pytest.raises(SlotTimeout):
            call_by(way, manager, "ask", {}, 0.2)
        assert time.monotonic() - began < 2
        assert plugin.status()["host_calls"] == 1  # and can be seen while it lasts
    finally:
        os.write(blocked_in, b"x")
        wait_until(lambda: plugin.status()["host_calls"] == 0)
        os.close(blocked_out)
        os.close(blocked_in)
    manager.set_host_callback("asked", lambda _: [1])
    assert call_by(way, manager, "ask", {}, 20) == [1]
