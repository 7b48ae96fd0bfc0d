"""Time-outs: on time, told to the guest, counted from the call, and what comes after them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import time

import pytest
from fault.ways import WAYS, WORKER, alive, call_by, wait_until

from zeno_fast import PluginCrashed, SlotTimeout


@pytest.fixture(params=WAYS)
def way(request):
    return request.param


def test_d1_a_call_fails_at_once_and_not_at_its_time_out_when_the_process_dies(
    manager, make_guest, healthy, way
):
    manager.load_plugin(make_guest("FEATURES = ['deadline']" + WORKER))
    pid = manager.get_plugin("scripted").status()["pid"]
    died = []

    def kill(_):
        died.append(time.monotonic())
        os.kill(pid, signal.SIGKILL)

    manager.set_host_callback("working", kill)
    with pytest.raises(PluginCrashed) as caught:
        call_by(way, manager, "work", {"seconds": 60}, 60)
    assert time.monotonic() - died[0] < 2
    assert caught.value.signal == signal.SIGKILL
    assert manager.call("echo", {"n": 1}) == {"n": 1}


def test_d1_calls_that_the_dead_process_never_got_are_answered_by_the_next(
    manager, make_guest, healthy
):
    manager.load_plugin(
        make_guest(
            """
            for request in requests():
                if greeted(request, "hold", "echo"):
                    continue
                if request["slot_name"] == "hold":
                    mark("held")
                    time.sleep(60)
                answer(request, request["parameters"])
            """,
            sidecar="max_retries: 3",
        )
    )
    plugin = manager.get_plugin("scripted")
    held = manager.submit("hold", timeout=60)
    wait_until((plugin.folder / "held").exists)
    behind = [manager.submit("echo", {"n": n}, timeout=60) for n in range(20)]
    queued = plugin.status()["queued"]  # all of them, where answers have no ids; else none
    os.kill(plugin.status()["pid"], signal.SIGKILL)
    assert isinstance(held.exception(5), PluginCrashed)
    outcomes = [future.exception(10) for future in behind]
    assert queued in (0, 20)
    if queued:
        assert [future.result() for future in behind] == [{"n": n} for n in range(20)]
    else:
        assert all(isinstance(outcome, PluginCrashed) for outcome in outcomes)


def test_d2_callers_time_out_on_time(manager, make_guest, healthy, way):
    manager.load_plugin(make_guest("FEATURES = []" + WORKER))
    late = []
    for _ in range(5):
        assert manager.call("echo", {"n": 1}) == {"n": 1}  # a process is there
        began = time.monotonic()
        with pytest.raises(SlotTimeout, match="'work'"):
            call_by(way, manager, "work", {"seconds": 60}, 0.1)
        late.append(time.monotonic() - began - 0.1)
    assert min(late) > -0.001
    assert statistics.median(late) < 0.02
    assert max(late) < 2


def test_d2_the_error_says_how_long_the_call_had(manager, make_bare_guest):
    manager.load_plugin(make_bare_guest("FEATURES = []" + WORKER))
    work = {"seconds": 0.15}
    for way in WAYS:
        with pytest.raises(SlotTimeout, match=r"within 0\.2\d s"):
            call_by(way, manager, "work", {"seconds": 60}, 0.2)
        assert manager.call("echo", {"n": 1}) == {"n": 1}
    with pytest.raises(SlotTimeout, match=r"within 0\.2\d s"):
        # Each has its time from when the one before it was answered.
        list(manager.map("work", [work, work, work, {"seconds": 60}], timeout=0.2))


NO_DESCRIPTOR = """
import json, os, threading, time
from zeno_fast import PluginManager, SlotTimeout

def call():
    try:
        manager.call("work", {{"seconds": 60}}, timeout=0.5)
    except SlotTimeout:
        took.append(time.monotonic() - began)

took, taken = [], []
manager = PluginManager()
manager.load_plugin({folder!r})
manager.call("echo")
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    began = time.monotonic()
thread = threading.Thread(target=call, daemon=True)
thread.start()
thread.join(5)
print(json.dumps(took), flush=True)
os._exit(0)  # a thread that hangs would keep it from ending
"""


def test_d2_a_call_times_out_although_the_host_has_no_descriptor_left(make_ids_guest, run_python):
    folder = make_ids_guest("FEATURES = []" + WORKER)
    done = run_python(NO_DESCRIPTOR.format(folder=str(folder)))
    assert done.returncode == 0, done.stderr
    (took,) = json.loads(done.stdout)
    assert 0.499 < took < 3


def test_d2_a_guest_that_announces_it_is_told_of_the_cancellation(manager, make_ids_guest, way):
    manager.load_plugin(make_ids_guest("FEATURES = ['cancel']" + WORKER))
    pid = manager.get_plugin("scripted").status()["pid"]
    with pytest.raises(SlotTimeout):
        call_by(way, manager, "work", {"seconds": 60}, 0.2)
    assert manager.call("cancelled", timeout=10) == 1
    assert manager.get_plugin("scripted").status()["pid"] == pid
    assert manager.call("echo", {"n": 1}) == {"n": 1}


def test_d2_a_caller_that_goes_has_the_guest_told_which_may_then_answer_at_once(
    manager, make_guest
):
    manager.load_plugin(make_guest("FEATURES = ['cancel']" + WORKER))
    pid = manager.get_plugin("scripted").status()["pid"]
    asyncio.run(cancel_once_it_works(manager))
    assert manager.call("echo", {"n": 1}, timeout=10) == {"n": 1}
    assert manager.call("cancelled", timeout=10) == 1
    assert manager.get_plugin("scripted").status()["pid"] == pid


async def cancel_once_it_works(manager):
    loop = asyncio.get_running_loop()
    working = asyncio.Event()
    manager.set_host_callback("working", lambda _: loop.call_soon_threadsafe(working.set))
    task = asyncio.ensure_future(manager.call_async("work", {"seconds": 60}, timeout=60))
    await asyncio.wait_for(working.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_d2_a_guest_that_does_not_announce_it_is_sent_no_cancellation(manager, make_ids_guest, way):
    program = "FEATURES = []" + WORKER
    manager.load_plugin(make_ids_guest(program))
    with pytest.raises(SlotTimeout):
        call_by(way, manager, "work", {"seconds": 0.3}, 0.1)
    assert manager.call("kinds") == ["guest_call"]


def test_d2_a_late_answer_is_dropped_and_counted(manager, make_plugin, healthy, way):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "echo"):
                    while request["parameters"].get("late") and not os.path.exists("go"):
                        time.sleep(0.002)
                    answer(request, request["parameters"])
            """
        )
    )
    plugin = manager.get_plugin("scripted")
    pid = plugin.status()["pid"]
    with pytest.raises(SlotTimeout):
        call_by(way, manager, "echo", {"late": True}, 0.1)
    assert plugin.status()["late_answers"] == 0
    (plugin.folder / "go").touch()
    for n in range(5):
        assert call_by(way, manager, "echo", {"n": n}, 10) == {"n": n}
    assert plugin.status()["late_answers"] == 1
    assert (plugin.status()["pid"], plugin.status()["in_flight"]) == (pid, 0)


def test_d2_a_guest_that_stays_silent_is_killed_after_its_grace(manager, make_plugin, healthy, way):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "echo"):
                    time.sleep(request["parameters"].get("seconds", 0))
                    answer(request, request["parameters"])
            """,
            sidecar="cancel_timeout: 0.5",
        )
    )
    pid = manager.get_plugin("scripted").status()["pid"]
    began = time.monotonic()
    with pytest.raises(SlotTimeout):
        call_by(way, manager, "echo", {"seconds": 60}, 0.1)
    wait_until(lambda: not alive(pid))  # although nobody calls
    assert 0.55 < time.monotonic() - began < 5
    assert manager.call("echo", {"n": 1}, timeout=10) == {"n": 1}
    assert manager.get_plugin("scripted").status()["pid"] != pid


def test_d2_a_guest_without_ids_is_replaced_and_its_late_answer_goes_to_nobody(
    manager, make_bare_guest, healthy, way
):
    manager.load_plugin(make_bare_guest("FEATURES = []" + WORKER))
    for n in range(3):
        pid = manager.get_plugin("scripted").status()["pid"]
        with pytest.raises(SlotTimeout):
            call_by(way, manager, "work", {"seconds": 0.12}, 0.1)
        assert call_by(way, manager, "echo", {"n": n}, 10) == {"n": n}
        assert manager.get_plugin("scripted").status()["pid"] != pid
        assert not alive(pid)
