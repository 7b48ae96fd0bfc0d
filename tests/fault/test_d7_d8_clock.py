"""A wall clock that jumps, and a host that stands still for longer than its deadlines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from fault.ways import wait_until

import zeno_fast

GUEST = """
for request in requests():
    if greeted(request, "hold", "echo", "silence"):
        continue
    if request["slot_name"] == "silence":
        continue
    if request["slot_name"] == "hold":
        mark("here")
        wait_for("go")
    answer(request, request["parameters"])
    if request["slot_name"] == "hold":
        mark("answered")
"""

JUMPS = """
import asyncio, json, os, sys, threading, time
from concurrent.futures import wait
from zeno_fast import PluginManager, SlotTimeout

def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.002)

def submitted(slot, parameters, timeout):
    future = manager.submit(slot, parameters, timeout=timeout)
    wait([future], 60)
    return future.result(0)

ways = {{
    "call": lambda *given: manager.call(*given[:2], timeout=given[2]),
    "submit": submitted,
    "call_async": lambda *given: asyncio.run(manager.call_async(*given[:2], timeout=given[2])),
    "map": lambda *given: next(manager.map(given[0], [given[1]], timeout=given[2])),
}}

def hold(way):
    try:
        held[way] = ways[way]("hold", {{"way": way}}, 20)
    except Exception as error:
        held[way] = repr(error)

def time_out(way):
    began = time.monotonic()
    try:
        ways[way]("silence", {{}}, 0.3)
    except SlotTimeout:
        took.append(time.monotonic() - began)

folder = {folder!r}
held, took, late = {{}}, [], []
manager = PluginManager()
manager.load_plugin(folder)
pid = manager.get_plugin("scripted").status()["pid"]
jumped = []
for way in ways:
    thread = threading.Thread(target=hold, args=(way,))
    thread.start()
    wait_for(folder + "/here")
    before = time.time()
    shim.shim_shift_clock({seconds})
    jumped.append(time.time() - before)
    thread.join(0.05)  # nothing ends it but its answer
    late.append(thread.is_alive())
    open(folder + "/go", "w").close()
    thread.join(20)
    os.remove(folder + "/here")
    os.remove(folder + "/go")
    shim.shim_shift_clock(0)
same = manager.get_plugin("scripted").status()["pid"] == pid
uptime = manager.get_plugin("scripted").status()["uptime"]
for way in ways:
    manager.call("echo", timeout=20)
    thread = threading.Thread(target=time_out, args=(way,), daemon=True)
    thread.start()
    thread.join(0.05)  # it waits by now, if the machine is not very busy
    shim.shim_shift_clock({seconds})
    thread.join(10)
    shim.shim_shift_clock(0)
last = manager.call("echo", {{"n": 1}}, timeout=20)
manager.close()
print(json.dumps({{
    "jumped": min(map(abs, jumped)), "held": held, "late": late, "same": same, "took": took,
    "uptime": uptime, "last": last,
}}))
"""


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_d7_only_the_monotonic_clock_counts(run_under_shim, make_guest, seconds):
    folder = make_guest(GUEST, sidecar="cancel_timeout: 20")
    done = run_under_shim(JUMPS.format(folder=str(folder), seconds=seconds))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["jumped"] > 3599  # so it was tried
    assert report["late"] == [True] * 4
    assert report["held"] == {way: {"way": way} for way in ("call", "submit", "call_async", "map")}
    assert report["same"]
    assert 0 <= report["uptime"] < 60
    assert len(report["took"]) == 4
    assert min(report["took"]) > 0.299
    assert max(report["took"]) < 5
    assert report["last"] == {"n": 1}


STANDS_STILL = """
import asyncio, json, sys, threading
from zeno_fast import PluginManager, SlotTimeout

names = {names!r}
manager = PluginManager({folder!r})
pids = {{name: manager.get_plugin(name).status()["pid"] for name in names}}
outcomes = {{}}

def hold(name):
    way = name.rpartition("_")[0]
    sent = {{"name": name}}
    try:
        if way == "call":
            got = manager.call(name, sent, timeout=1.5)
        elif way == "submit":
            got = manager.submit(name, sent, timeout=1.5).result()
        elif way == "task":
            got = asyncio.run(manager.call_async(name, sent, timeout=1.5))
        else:
            got = next(manager.map(name, [sent], timeout=1.5))
        outcomes[name] = "answered" if got == sent else repr(got)
    except SlotTimeout:
        outcomes[name] = "timed out"
    except Exception as error:
        outcomes[name] = repr(error)

threads = [threading.Thread(target=hold, args=(name,)) for name in names]
for thread in threads:
    thread.start()
print(json.dumps(pids), flush=True)
for thread in threads:
    thread.join(30)
wrong = [
    (name, n) for name in names for n in range(5)
    if manager.call(name, {{"name": [name, n]}}, timeout=20) != {{"name": [name, n]}}
]
same = {{name: manager.get_plugin(name).status()["pid"] == pids[name] for name in names}}
print(json.dumps({{"outcomes": outcomes, "wrong": wrong, "same": same}}), flush=True)
manager.close()
"""

HOLDS_ONCE = """
held = False
for request in requests():
    if greeted(request, os.environ["ZENO_PLUGIN_NAME"]):
        continue
    if not held:
        held = True
        mark("here")
        wait_for("go")
    answer(request, request["parameters"])
    mark("answered")
"""
NAMES = ["call", "submit", "task", "map"]


def is_stopped(pid: int) -> bool:
    """Tell whether every thread of a process stands still."""
    return all(
        (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
        for task in Path(f"/proc/{pid}/task").iterdir()
    )


@pytest.mark.parametrize("guests", ["run", "stand still"])
def test_d8_a_host_that_stood_still_takes_the_answers_and_kills_nobody(
    make_ids_guest, make_bare_guest, tmp_path, guests, no_leaks
):
    if not Path("/proc/self/task").exists():
        pytest.skip("whether a process is stopped is read from /proc, which this system lacks")
    folder = tmp_path / "plugins"
    for name in NAMES:
        make_ids_guest(HOLDS_ONCE, name=f"{name}_ids", folder=folder)
        make_bare_guest(HOLDS_ONCE, name=f"{name}_bare", folder=folder)
    names = [f"{name}_{style}" for name in NAMES for style in ("ids", "bare")]
    host = subprocess.Popen(
        [sys.executable, "-c",
         textwrap.dedent(STANDS_STILL).format(names=names, folder=str(folder))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(zeno_fast.__file__).parents[1])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert host.stdout is not None
        pids = json.loads(host.stdout.readline()).values()
        wait_until(lambda: all((folder / name / "here").exists() for name in names))
        os.kill(host.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        wait_until(lambda: is_stopped(host.pid))
        if guests == "stand still":
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
        for name in names:
            (folder / name / "go").touch()
        if guests == "run":
            wait_until(lambda: all((folder / name / "answered").exists() for name in names))
        time.sleep(max(0.0, stopped + 2.5 - time.monotonic()))  # past every deadline
        os.kill(host.pid, signal.SIGCONT)
        if guests == "stand still":
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        out, err = host.communicate(timeout=40)
    finally:
        if host.poll() is None:
            host.kill()
            host.communicate()
    assert host.returncode == 0, err
    report = json.loads(out)
    assert report["same"] == dict.fromkeys(names, True)
    assert report["wrong"] == []
    if guests == "run":
        assert report["outcomes"] == dict.fromkeys(names, "answered")
    else:
        assert set(report["outcomes"].values()) <= {"answered", "timed out"}
        assert len(report["outcomes"]) == len(names)
