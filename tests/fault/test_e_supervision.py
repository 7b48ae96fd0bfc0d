"""E1 to E9, A8, A12, A13: restarts, pools of processes, and who is taken for dead."""

from __future__ import annotations

import asyncio
import collections
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fault.bounds import within
from fault.ways import WAYS, alive, call_by, wait_until

from zeno_fast import PluginCrashed, PluginManager, PluginUnavailable, SlotTimeout, ZenoError
from zeno_fast.sidecar import breaker, pool
from zeno_fast.sidecar import worker as worker_module

SLOTS = """
slots:
  - {name: work}
  - {name: safe, idempotent: true}
"""
# Notes each of its starts and ends in the folder, and says in each answer who gave it.
WORKER = """
with open("starts", "a") as file:
    file.write(f"{os.getpid()}\\n")
held = []
for request in requests():
    if lifecycle(request, "work", "safe"):
        continue
    parameters = request["parameters"]
    with open("ledger", "a") as file:
        file.write(f"{parameters.get('n')}\\n")
    if "grow" in parameters:
        held.append(bytearray(b"x") * parameters["grow"])
    if "once" in parameters and not os.path.exists(parameters["once"]):
        open(parameters["once"], "w").close()
        os._exit(9)
    time.sleep(parameters.get("seconds", 0))
    if "exit" in parameters:
        os._exit(parameters["exit"])
    answer(request, os.getpid())
"""


# What makes of the worker one that ends after two requests.
TWO = """
held = []
def two():
    lines = requests()
    yield next(lines)
    yield next(lines)
"""


def starts(folder: Path) -> list[int]:
    """Return the pids of all processes that were started for a folder, in order."""
    file = folder / "starts"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def status(manager: PluginManager) -> dict:
    return manager.get_plugin("scripted").status()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an open breaker rest for half a second."""
    monkeypatch.setattr(breaker, "FIRST_REST", 0.5)
    monkeypatch.setattr(breaker, "FIRST_DELAY", 0.02)


# -- E1, E2, E4: failures in a row -----------------------------------------------------------------


def test_e1_e4_a_plugin_that_fails_again_and_again_is_refused_at_once(
    manager, make_plugin, healthy
):
    manager.load_plugin(make_plugin(WORKER, sidecar="max_retries: 2", manifest=SLOTS))
    events = []
    manager._events.subscribe(events.append)
    for _ in range(3):
        with pytest.raises(PluginCrashed):
            manager.call("work", {"exit": 7}, timeout=20)
    with within(0.5), pytest.raises(PluginUnavailable) as caught:
        manager.call("work", timeout=20)
    for words in ("'scripted' failed 3 times in a row", "max_retries (2)", "exit status 7"):
        assert words in str(caught.value)
    for way in WAYS:
        with within(0.5), pytest.raises(PluginUnavailable):
            call_by(way, manager, "work", {}, 20)
    found = status(manager)
    assert (found["state"], found["consecutive_failures"]) == ("unavailable", 3)
    assert "exit status 7" in found["last_failure"]
    assert [("exit status 7" in entry["cause"]) for entry in found["failures"]] == [True] * 3
    kinds = collections.Counter(event.kind for event in events if event.plugin == "scripted")
    assert (kinds["worker_exited"], kinds["breaker_opened"]) == (3, 1)
    manager.reset_plugin("scripted")
    assert manager.call("work", timeout=20)
    assert status(manager)["restarts"] == 3


def test_e2_a_start_after_the_rest_decides_and_an_answer_closes_the_breaker(
    manager, make_plugin, quick
):
    folder = make_plugin(WORKER, sidecar="max_retries: 0\nauto_start: false", manifest=SLOTS)
    manager.load_plugin(folder)
    with pytest.raises(PluginCrashed):
        manager.call("work", {"exit": 7}, timeout=20)
    with pytest.raises(PluginUnavailable):
        manager.call("work", timeout=20)
    wait_until(lambda: status(manager)["breaker"]["state"] == "half-open")
    with pytest.raises(PluginCrashed):
        manager.call("work", {"exit": 8}, timeout=20)
    with pytest.raises(PluginUnavailable, match="2 times in a row"):
        manager.call("work", timeout=20)
    wait_until(lambda: status(manager)["breaker"]["state"] == "half-open")
    assert manager.call("work", timeout=20)
    assert status(manager)["consecutive_failures"] == 0
    with pytest.raises(PluginCrashed):
        manager.call("work", {"exit": 7}, timeout=20)


def test_e2_failures_with_answers_between_them_never_open_the_breaker(manager, make_plugin):
    manager.load_plugin(make_plugin(WORKER, sidecar="max_retries: 1", manifest=SLOTS))
    for _ in range(8):
        with pytest.raises(PluginCrashed):
            manager.call("work", {"exit": 1}, timeout=20)
        assert manager.call("work", timeout=20)


def test_e3_a_plugin_that_crashes_at_its_start_costs_the_others_nothing(
    manager, make_plugin, healthy, tmp_path
):
    crashing = make_plugin(
        'open("starts", "a").write("1\\n")\nif os.path.exists("crash"): os._exit(1)\n' + WORKER,
        sidecar="max_retries: 5",
        manifest=SLOTS,
    )
    manager.load_plugin(crashing)
    (crashing / "crash").touch()
    with pytest.raises(PluginCrashed):
        manager.call("work", {"exit": 1}, timeout=20)
    served = healthy.served
    time.sleep(1.5)
    begun = len(starts(crashing)) - 2  # one that worked, which notes itself twice
    assert 2 <= begun <= 7  # at once, then after 0.05 to 0.1, 0.1 to 0.2, 0.2 to 0.4, ... seconds
    assert healthy.served > served + 20


def test_a_plugin_that_ends_between_calls_is_started_again_before_the_next(manager, make_plugin):
    folder = make_plugin(WORKER, manifest=SLOTS)
    manager.load_plugin(folder)
    os.kill(manager.call("work", timeout=20), signal.SIGKILL)
    wait_until(lambda: len(starts(folder)) == 2)
    wait_until(lambda: status(manager)["state"] == "running")
    assert manager.call("work", timeout=20) == starts(folder)[1]


def test_a_plugin_that_ends_in_peace_before_any_call_waits_for_one(manager, make_plugin):
    folder = make_plugin(
        WORKER.replace("requests():", "two():").replace("held = []", TWO), manifest=SLOTS
    )
    manager.load_plugin(folder)
    time.sleep(1.3)
    assert len(starts(folder)) == 1
    assert manager.call("work", timeout=20) == starts(folder)[1]


# -- A8: what a death costs ------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a8_a_call_whose_process_dies_fails_soon_and_is_not_repeated(
    manager, make_plugin, healthy, way
):
    folder = make_plugin(WORKER, manifest=SLOTS)
    manager.load_plugin(folder)
    with within(5), pytest.raises(PluginCrashed) as caught:
        call_by(way, manager, "work", {"n": 1, "once": "died"}, 20)
    assert caught.value.exit_status == 9
    assert (folder / "ledger").read_text() == "1\n"


@pytest.mark.parametrize("way", [way for way in WAYS if way != "stream"])
def test_a8_a_call_that_may_be_repeated_is(manager, make_plugin, healthy, way):
    folder = make_plugin(WORKER, manifest=SLOTS)
    manager.load_plugin(folder)
    pid = call_by(way, manager, "safe", {"n": 1, "once": "died"}, 20)
    assert pid == starts(folder)[-1]
    assert (folder / "ledger").read_text() == "1\n1\n"


def test_a8_a_call_that_kills_every_process_is_not_repeated_for_ever(manager, make_plugin):
    folder = make_plugin(WORKER, sidecar="max_retries: 50", manifest=SLOTS)
    manager.load_plugin(folder)
    with within(15), pytest.raises(PluginCrashed):
        manager.call("safe", {"n": 1, "exit": 3}, timeout=20)
    assert 3 <= len((folder / "ledger").read_text().split()) <= 4


# -- A12, E6, E8: who is dead, and who is only busy ------------------------------------------------


def test_a12_a_stopped_process_is_replaced_while_calls_wait_and_others_serve(
    manager, make_plugin, monkeypatch, healthy
):
    monkeypatch.setattr(worker_module, "STOPPED_TIMES", 2)
    folder = make_plugin(WORKER, sidecar="workers: 2", manifest=SLOTS)
    manager.load_plugin(folder)
    wait_until(lambda: len(status(manager)["workers"]) == 2)
    stopped = manager.submit("work", {"seconds": 0.3}, timeout=30)
    time.sleep(0.1)
    busy = next(worker for worker in status(manager)["workers"] if worker["in_flight"])["pid"]
    os.kill(busy, signal.SIGSTOP)
    for _ in range(5):
        assert manager.call("work", timeout=5) != busy
    with within(8), pytest.raises(PluginCrashed, match="stopped by a signal"):
        stopped.result(20)
    wait_until(lambda: len(status(manager)["workers"]) == 2)
    assert not alive(busy)


def test_e8_a_busy_process_is_not_dead(manager, make_plugin):
    folder = make_plugin(WORKER, manifest=SLOTS)
    manager.load_plugin(folder)
    with ThreadPoolExecutor(4) as executor:
        calls = [executor.submit(manager.call, "work", {"seconds": 1}, timeout=30) for _ in "1234"]
        assert {call.result() for call in calls} == {starts(folder)[0]}


def test_e6_a_pool_whose_processes_all_hang_recovers_by_the_calls_deadlines(manager, make_plugin):
    folder = make_plugin(WORKER, sidecar="workers: 2\ncancel_timeout: 0.3", manifest=SLOTS)
    manager.load_plugin(folder)
    wait_until(lambda: len(status(manager)["workers"]) == 2)
    calls = [manager.submit("work", {"seconds": 1000}, timeout=0.3) for _ in range(6)]
    for call in calls:
        with within(8), pytest.raises((SlotTimeout, PluginCrashed)):
            call.result(20)
    with within(5):
        while True:
            try:
                assert manager.call("work", timeout=1) not in starts(folder)[:2]
                break
            except (SlotTimeout, PluginCrashed):
                continue


# -- E7, E9: how many processes --------------------------------------------------------------------


def test_e7_no_process_is_given_more_than_max_jobs(manager, make_plugin):
    folder = make_plugin(WORKER, sidecar="workers: 2\nmax_jobs: 3", manifest=SLOTS)
    manager.load_plugin(folder)
    served = collections.Counter(manager.call("work", timeout=20) for _ in range(20))
    served += collections.Counter(manager.map("work", ({} for _ in range(40)), timeout=20))
    with ThreadPoolExecutor(8) as executor:
        served += collections.Counter(executor.map(lambda _: manager.call("work"), range(40)))

    async def many():
        return await asyncio.gather(*(manager.call_async("work", timeout=20) for _ in range(40)))

    served += collections.Counter(asyncio.run(many()))
    assert sum(served.values()) == 140
    assert max(served.values()) == 3
    assert status(manager)["recycled"]["max_jobs"] >= 40
    assert status(manager)["consecutive_failures"] == status(manager)["restarts"] == 0


def test_e7_max_jobs_are_spread(manager, make_plugin, monkeypatch):
    monkeypatch.setattr(pool, "JITTER", 0.9)
    folder = make_plugin(WORKER, sidecar="max_jobs: 20", manifest=SLOTS)
    manager.load_plugin(folder)
    served = collections.Counter(manager.call("work", timeout=20) for _ in range(150))
    assert len(set(list(served.values())[:-1])) > 2
    assert max(served.values()) <= 20


@pytest.mark.parametrize(
    ("sidecar", "reason"),
    [("ttl: 0.5", "ttl"), ("max_memory: 60MiB", "max_memory")],
)
def test_e7_a_process_is_replaced_after_its_calls_and_never_one_too_few(
    manager, make_plugin, sidecar, reason
):
    folder = make_plugin(WORKER, sidecar=f"workers: 2\n{sidecar}", manifest=SLOTS)
    manager.load_plugin(folder)
    wait_until(lambda: len(status(manager)["workers"]) == 2)
    first = set(starts(folder))
    if reason == "max_memory":
        grown = {manager.call("work", {"grow": 70 << 20}, timeout=20)}
    else:
        grown = first
    pending = [manager.submit("work", {"seconds": 2}, timeout=20) for _ in range(2)]
    fewest = 2
    deadline = time.monotonic() + 15
    while not grown.isdisjoint(worker["pid"] for worker in status(manager)["workers"]):
        assert time.monotonic() < deadline
        fewest = min(fewest, len(status(manager)["workers"]))
        time.sleep(0.002)
    assert fewest == 2
    assert {call.result(20) for call in pending} <= first
    wait_until(lambda: not any(alive(pid) for pid in grown))
    assert status(manager)["recycled"][reason] >= 1
    assert manager.call("work", timeout=20) not in grown


@pytest.mark.parametrize(("workers", "least"), [("1..3", 1), ("2", 0), ("0..2", 0)])
def test_e7_what_is_idle_ends_down_to_the_least(manager, make_plugin, workers, least):
    folder = make_plugin(WORKER, sidecar=f"workers: {workers}\nidle_ttl: 0.5", manifest=SLOTS)
    manager.load_plugin(folder)
    with ThreadPoolExecutor(6) as executor:
        for _ in range(3):
            list(executor.map(lambda _: manager.call("work", {"seconds": 0.1}), range(6)))
    assert len(status(manager)["workers"]) >= 2
    wait_until(lambda: len(status(manager)["workers"]) == least, 10)
    time.sleep(1.2)
    assert len(status(manager)["workers"]) == least
    assert sum(alive(pid) for pid in starts(folder)) == least
    assert manager.call("work", timeout=20)
    assert status(manager)["consecutive_failures"] == 0


@pytest.mark.parametrize("who", ["threads", "tasks"])
@pytest.mark.parametrize("auto_start", ["true", "false"])
def test_e9_five_hundred_callers_start_no_more_than_the_most(manager, make_plugin, auto_start, who):
    folder = make_plugin(WORKER, sidecar=f"workers: 1..4\nauto_start: {auto_start}", manifest=SLOTS)
    manager.load_plugin(folder)
    if who == "threads":
        with ThreadPoolExecutor(500) as executor:
            calls = list(executor.map(lambda _: manager.call("work", timeout=60), range(500)))
    else:

        async def many():
            return await asyncio.gather(*(manager.call_async("work") for _ in range(500)))

        calls = asyncio.run(many())
    wait_until(lambda: not status(manager)["starting"])
    assert len(calls) == 500
    assert set(calls) <= set(starts(folder))
    assert len(starts(folder)) <= 4


def test_calls_go_to_the_least_busy_process(manager, make_plugin):
    folder = make_plugin(WORKER, sidecar="workers: 2", manifest=SLOTS)
    manager.load_plugin(folder)
    wait_until(lambda: len(status(manager)["workers"]) == 2)
    slow = manager.submit("work", {"seconds": 1.5}, timeout=20)
    time.sleep(0.05)
    others = {manager.call("work", timeout=20) for _ in range(20)}
    assert not slow.done()
    assert slow.result(20) not in others


def test_what_waits_unsent_moves_on_to_a_process_that_becomes_ready(
    manager, make_bare_guest, tmp_path
):
    folder = make_bare_guest(WORKER, sidecar="workers: 1..2", manifest=SLOTS)
    manager.load_plugin(folder)
    began = time.monotonic()
    calls = [manager.submit("work", {"seconds": 0.5}, timeout=20) for _ in range(4)]
    assert len({call.result(20) for call in calls}) == 2
    assert time.monotonic() - began < 1.9  # one process alone would take two seconds


# -- A13: ends and starts at the same time ---------------------------------------------------------


@pytest.mark.parametrize("delay", [0, 0.01, 0.03, 0.1])
def test_a13_closing_twice_while_processes_start_leaves_nothing(make_plugin, no_leaks, delay):
    folder = make_plugin(WORKER, sidecar="workers: 1..4\nauto_start: false", manifest=SLOTS)
    manager = PluginManager()
    manager.load_plugin(folder)
    outcomes = []

    def call() -> None:
        try:
            outcomes.append(manager.call("work", {"seconds": 0.05}, timeout=20))
        except ZenoError as error:
            outcomes.append(error)

    callers = [threading.Thread(target=call) for _ in range(8)]
    closers = [threading.Thread(target=manager.close) for _ in range(3)]
    for thread in callers:
        thread.start()
    time.sleep(delay)
    with within(8):
        for thread in closers:
            thread.start()
        for thread in closers + callers:
            thread.join(20)
    assert len(outcomes) == 8
    assert not any(alive(pid) for pid in starts(folder))


def test_a15_e5_pools_that_come_and_go_leave_nothing(make_plugin, no_leaks):
    folder = make_plugin(WORKER, sidecar="workers: 2..3\nmax_jobs: 2", manifest=SLOTS)
    for _ in range(12):
        with PluginManager() as manager:
            manager.load_plugin(folder)
            list(manager.map("work", ({} for _ in range(9)), timeout=20))
    assert not any(alive(pid) for pid in starts(folder))
