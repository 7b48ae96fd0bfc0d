"""Starting, watching and ending sidecar processes: what each costs, and how soon a death is known.

usage: python benchmarks/bench_supervision.py [--rounds N] [--calls N]

The baseline of a start is `subprocess.Popen` of the same guest with the same pipes, greeted in the
same way. A death is timed from the signal to the exception in the caller's hand; the end of the
host from SIGKILL until neither the guest nor a grandchild in a session of its own is left.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import orjson

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

from guests.build import build
from report import show, summary, write

from zeno_fast import PluginCrashed, PluginManager

SLEEPER = """\
import os, sys, json, subprocess, time
child = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL)
for line in sys.stdin:
    request = json.loads(line)
    if request["slot_name"] == "sleeper.work":
        time.sleep(1000)
    data = {"pids": [os.getpid(), child.pid]}
    print(json.dumps({"type": "guest_response", "id": request["id"], "success": True,
                      "data": data}), flush=True)
"""

HOST = """\
import sys, time
from zeno_fast import PluginManager
manager = PluginManager()
manager.load_plugin(sys.argv[1])
print(*manager.call("sleeper.pids")["pids"], flush=True)
manager.call("sleeper.work", timeout=1000)
"""


def popen_start(guest: Path) -> None:
    """Start the guest and greet it as the manager does, and end it."""
    process = subprocess.Popen(
        [guest / "guest"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        bufsize=0, cwd=guest, start_new_session=True,
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    for slot in ("plugin_init", "plugin_register_slots", "echo"):
        request = {"type": "guest_call", "id": "1", "slot_name": slot, "parameters": {}}
        process.stdin.write(orjson.dumps(request) + b"\n")
        process.stdout.readline()
    yield_time.append(time.perf_counter())
    process.stdin.close()
    process.wait()
    process.stdout.close()
    process.stderr.close()


def manager_start(guest: Path) -> None:
    """Load the plugin, call it once, and close."""
    with PluginManager() as manager:
        name = manager.load_plugin(guest).name
        manager.call(f"{name}.echo", {"value": 1})
        yield_time.append(time.perf_counter())


yield_time: list[float] = []


def starts(guest: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Time a start up to the first answer, and the host's processor time of start and end."""
    sides = {"Popen": popen_start, "zeno_fast": manager_start}
    samples: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            began, used = time.perf_counter(), time.process_time()
            side(guest)
            samples.setdefault(f"{name}, first answer", []).append(yield_time.pop() - began)
            samples.setdefault(f"{name}, host's processor", []).append(time.process_time() - used)
    return {name: summary(taken) for name, taken in samples.items()}


def make_sleeper(folder: Path) -> Path:
    plugin = folder / "sleeper"
    plugin.mkdir()
    (plugin / "guest.py").write_text(SLEEPER, encoding="utf-8")
    (plugin / "manifest.yaml").write_text(
        textwrap.dedent("""\
            name: sleeper
            type: sidecar
            binary: guest.py
            sidecar: {max_retries: 100000}
            slots: [{name: sleeper.work}, {name: sleeper.pids}]
        """),
        encoding="utf-8",
    )
    return plugin


def deaths(sleeper: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Time from a guest's SIGKILL to the caller's exception, and to the next answer."""
    known, back = [], []
    with PluginManager() as manager:
        manager.load_plugin(sleeper)
        for _ in range(rounds):
            pid = manager.call("sleeper.pids")["pids"][0]
            killed = 0.0

            def kill(pid: int = pid) -> None:
                nonlocal killed
                killed = time.perf_counter()
                os.kill(pid, signal.SIGKILL)

            timer = threading.Timer(0.05, kill)
            timer.start()
            with contextlib.suppress(PluginCrashed):
                manager.call("sleeper.work", timeout=20)
            known.append(time.perf_counter() - killed)
            timer.join()
            manager.call("sleeper.pids")
            back.append(time.perf_counter() - killed)
    return {
        "death to exception": summary(known),
        "death to next answer (Python guest)": summary(back),
    }


def host_deaths(sleeper: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Time from the host's SIGKILL until the guest and its grandchild are gone."""
    taken = []
    for _ in range(rounds):
        host = subprocess.Popen(
            [sys.executable, "-c", HOST, sleeper], stdout=subprocess.PIPE, text=True
        )
        assert host.stdout
        pids = [int(pid) for pid in host.stdout.readline().split()]
        time.sleep(0.05)
        began = time.perf_counter()
        host.kill()
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            time.sleep(0.001)
        taken.append(time.perf_counter() - began)
        host.wait()
        host.stdout.close()
    return {"SIGKILL of the host to nothing left": summary(taken)}


def pool(folder: Path, calls: int) -> dict[str, float]:
    """Count calls a second of a slot that works for a while, by the number of processes."""
    rates = {}
    for workers in (1, 2):
        plugin = folder / f"pool{workers}"
        plugin.mkdir()
        (plugin / "guest.py").write_text(
            SLEEPER.replace("time.sleep(1000)\n", "sum(range(20000))\n", 1), encoding="utf-8"
        )
        (plugin / "manifest.yaml").write_text(
            f"name: sleeper\ntype: sidecar\nbinary: guest.py\nsidecar: {{workers: {workers}}}\n"
            "slots: [{name: sleeper.work}]\n",
            encoding="utf-8",
        )
        with PluginManager() as manager:
            manager.load_plugin(plugin)
            rounds = []
            for _ in range(5):
                began = time.perf_counter()
                for _ in manager.map("sleeper.work", ({} for _ in range(calls))):
                    pass
                rounds.append(calls / (time.perf_counter() - began))
            rates[f"{workers} workers"] = round(statistics.median(rounds))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--calls", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        guest = build("c", folder)
        sleeper = make_sleeper(folder)
        results: dict[str, object] = {}
        rows = starts(guest, options.rounds)
        show(rows, "Popen, first answer")
        results["start"] = rows
        rows = deaths(sleeper, max(1, options.rounds // 4))
        show(rows, "death to exception")
        results["death"] = rows
        rows = host_deaths(sleeper, max(1, options.rounds // 8))
        show(rows, "SIGKILL of the host to nothing left")
        results["death of the host"] = rows
        results["pool, calls a second of map"] = rates = pool(folder, options.calls)
        print(rates)
    print(write("supervision", results, correct=True))


if __name__ == "__main__":
    main()
