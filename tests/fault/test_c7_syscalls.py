"""System calls that are cut short, interrupted or refused: every answer is right all the same."""

from __future__ import annotations

import json
import threading

import pytest
from fault.ways import wait_until

# Pauses are longer than the host's blocking read lasts, which is ended from another thread.
ECHO = """
def put_in_two(value):
    line = (json.dumps(value) + "\\n").encode()
    os.write(1, line[:len(line) // 2])
    time.sleep(0.006)
    os.write(1, line[len(line) // 2:])

put_whole = put
for request in requests():
    if not greeted(request, "echo"):
        put = put_in_two if request["parameters"].get("pause") else put_whole
        answer(request, request["parameters"])
"""

EVERY_WAY = """
import asyncio, json, random, sys, threading
from zeno_fast import PluginManager

KINDS, PERCENT, SEED, FOLDER = {kinds}, {percent}, {seed}, {folder!r}

def parameters(number, nbytes=0):
    return {{"n": number, "text": chr(97 + number % 26) * nbytes}}

def check(got, sent):
    assert got == sent, (str(got)[:200], str(sent)[:200])

def calls(base):
    for number in range(base, base + 300):
        sent = parameters(number, number % 3 * 700)
        check(manager.call("echo", sent, timeout=10), sent)

def futures(base):
    sent = [parameters(number) for number in range(base, base + 300)]
    for future, one in [(manager.submit("echo", one, timeout=10), one) for one in sent]:
        check(future.result(10), one)

def mapped(base):
    sent = [parameters(number, 100) for number in range(base, base + 800)]
    for got, one in zip(manager.map("echo", sent, timeout=10), sent, strict=True):
        check(got, one)

def tasks(base):
    async def main():
        sent = [parameters(number) for number in range(base, base + 300)]
        got = await asyncio.gather(
            *(manager.call_async("echo", one, timeout=10) for one in sent))
        check(got, sent)
    asyncio.run(main())

def paused(base):
    for number in range(base, base + 60):
        sent = parameters(number) | {{"pause": True}}
        check(manager.call("echo", sent, timeout=10), sent)

def large(base):
    for number in range(base, base + 3):
        sent = parameters(number, 1 << 20)
        check(manager.call("echo", sent, timeout=10), sent)

trouble = []

def safely(function, base):
    try:
        function(base)
    except BaseException as error:
        trouble.append(f"{{function.__name__}}: {{error!r}}")

manager = PluginManager()
manager.load_plugin(FOLDER)
pid = manager.get_plugin("scripted").status()["pid"]
shim.shim_inject(KINDS, PERCENT, SEED)
ways = [calls, futures, mapped, tasks, paused, large]
for number, way in enumerate(ways):  # each alone, then all at once
    safely(way, 1000 * number)
threads = [
    threading.Thread(target=safely, args=(way, 1000 * number + 10_000), daemon=True)
    for number, way in enumerate(ways)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(15)
stuck = [thread.name for thread in threads if thread.is_alive()]
shim.shim_inject(0, 0, 0)
status = manager.get_plugin("scripted").status()
manager.close()
print(json.dumps({{
    "trouble": trouble, "stuck": stuck, "same": status["pid"] == pid,
    "noise": status["noise_lines"], "stray": status["stray_answers"],
    "injected": [shim.shim_injected(kind) for kind in range(4)],
}}))
"""

FAULTS = {"interrupted": 1, "refused": 2, "cut short": 4 | 8, "all of them": 15}


@pytest.mark.parametrize(
    ("faults", "seed"), [*((faults, 1) for faults in FAULTS), ("all of them", 2)]
)
def test_c7_every_answer_is_right_whatever_becomes_of_a_system_call(
    run_under_shim, make_guest, faults, seed
):
    kinds = FAULTS[faults]
    done = run_under_shim(
        EVERY_WAY.format(kinds=kinds, percent=20, seed=seed, folder=str(make_guest(ECHO)))
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    struck = [count > 50 for count in report.pop("injected")]
    assert struck == [bool(kinds & (1 << kind)) for kind in range(4)]
    assert report == {"trouble": [], "stuck": [], "same": True, "noise": 0, "stray": 0}


SILENCE = """
import asyncio, json, logging, os, threading, time
from zeno_fast import PluginManager, SlotTimeout

FOLDER = {folder!r}
logging.disable()  # that a guest was killed

def ways():
    yield lambda: manager.call("silence", timeout=0.1)
    yield lambda: asyncio.run(manager.call_async("silence", timeout=0.1))
    yield lambda: manager.submit("silence", timeout=0.1).result()
    yield lambda: list(manager.map("silence", [{{}}], timeout=0.1))

def time_out(way):
    began = time.monotonic()
    try:
        way()
    except SlotTimeout:
        took.append(time.monotonic() - began)

manager = PluginManager()
manager.load_plugin(FOLDER)
took = []
for number in range(20):
    assert manager.call("echo", {{"n": number}}, timeout=10) == {{"n": number}}
    shim.shim_inject(1 << EINTR | 1 << EAGAIN, 80, number)
    way = list(ways())[number % 4]
    thread = threading.Thread(target=time_out, args=(way,), daemon=True)
    thread.start()
    thread.join(5)
    shim.shim_inject(0, 0, 0)
    if len(took) <= number:
        break
else:
    manager.close()
print(json.dumps(took), flush=True)
os._exit(0)  # a thread that hangs would keep it from ending
"""


def test_c7_a_call_times_out_on_time_although_most_system_calls_fail(run_under_shim, make_guest):
    folder = make_guest(
        """
        for request in requests():
            if not greeted(request, "echo", "silence") and request["slot_name"] != "silence":
                answer(request, request["parameters"])
        """
    )
    done = run_under_shim(SILENCE.format(folder=str(folder)))
    assert (done.returncode, done.stderr) == (0, "")
    took = json.loads(done.stdout)
    assert len(took) == 20
    assert min(took) > 0.099
    assert max(took) < 3  # for ever, where the end of one blocking read got lost


def test_c5_a_burst_that_ends_where_reading_pauses_keeps_no_queued_call_waiting(
    manager, make_bare_guest, healthy
):
    # The answer and what is printed behind it are eight reads of 64 KiB, to the byte.
    manager.load_plugin(
        make_bare_guest(
            """
            fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20)
            for request in requests():
                if request["slot_name"] == "burst":
                    wait_for("go")
                    line = json.dumps({"success": True, "data": request["parameters"]}).encode()
                    os.write(1, line.ljust(63) + b"\\n" + (b"x" * 63 + b"\\n") * (8 * 1024 - 1))
                elif not greeted(request, "burst", "echo"):
                    answer(request, request["parameters"])
            """
        )
    )
    plugin = manager.get_plugin("scripted")
    burst = manager.submit("burst", {"n": 0}, timeout=20)
    wait_until(lambda: plugin.status()["in_flight"] == 1)

    def go() -> None:
        wait_until(lambda: plugin.status()["queued"] == 1)
        (plugin.folder / "go").touch()

    thread = threading.Thread(target=go)
    thread.start()
    # This thread reads the answer of the other call, and then has to send its own.
    assert manager.call("echo", {"n": 1}, timeout=10) == {"n": 1}
    thread.join(20)
    assert burst.result(10) == {"n": 0}
