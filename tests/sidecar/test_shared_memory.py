"""Messages through shared memory: taken up, given up, and in the hands of a guest that lies."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sidecar.ring_guest import assert_threads_pass_large_messages

from zeno_fast import PluginCrashed, ProtocolError, SlotError, SlotTimeout, ZenoError
from zeno_fast._shm import Segment

SECONDS = float(os.environ.get("ZENO_FAST_SECONDS", "4"))

# A guest that speaks the protocol of zeno_ring.h in the clear, so that it can break it.
RAW = """
import mmap, struct, threading
fence = threading.Lock()  # which has to keep this guest's stores before its loads
fd, size = map(int, os.environ["ZENO_SHM"].split(":"))
memory = mmap.mmap(fd, size)
# In one store, where struct would put zeros there first, which the host could see.
words, halves = memoryview(memory).cast("Q"), memoryview(memory).cast("I")
RING = struct.unpack_from("<I", memory, 12)[0]
heads = {"in": 256, "out": 512}
data = {"in": 4096, "out": 4096 + RING}
place = {"in": 0, "out": 0}

def get64(at):
    return words[at // 8]

def set64(at, value):
    words[at // 8] = value & (1 << 64) - 1

def take():
    while get64(heads["in"]) == place["in"]:
        halves[(heads["in"] + 8) // 4] = 1
        fence.acquire()
        fence.release()
        if get64(heads["in"]) == place["in"] and not os.read(0, 100):
            sys.exit(0)
    message = b""
    while True:
        at = data["in"] + place["in"] % RING
        length, more = struct.unpack_from("<II", memory, at)
        for index in range(length):
            where = data["in"] + (place["in"] + 8 + index) % RING
            message += memory[where:where + 1]
        place["in"] += 8 + (length + 7) // 8 * 8
        set64(heads["in"] + 128, place["in"])
        if not more:
            return json.loads(message)

def record(text, length=None, flags=0):
    text = text.encode()
    at = data["out"] + place["out"] % RING
    struct.pack_into("<II", memory, at, len(text) if length is None else length, flags)
    for index, byte in enumerate(text):
        memory[data["out"] + (place["out"] + 8 + index) % RING] = byte
    place["out"] += 8 + (len(text) + 7) // 8 * 8

def publish():
    set64(heads["out"], place["out"])
    os.write(1, b"\\n")

def reply(request, value, **more):
    message = {"type": "guest_response", "id": request["id"], "success": True, "data": value}
    record(json.dumps(message | more))
    publish()

greeting = json.loads(sys.stdin.buffer.readline())
answer(greeting, {"name": "scripted", "features": ["shm"]})
"""
# One that has the guest library do it.
PYTHON = """
from zeno_fast.guest import Plugin
plugin = Plugin("binary")

@plugin.slot
def echo(value):
    return value

plugin.run()
"""
NAMES = """
def serve(*names):
    while True:
        request = take()
        if request["slot_name"] == "plugin_register_slots":
            reply(request, [{"name": name} for name in names])
        elif request["slot_name"] != "plugin_init":
            yield request
        else:
            reply(request, {})
"""


@pytest.fixture
def ring(manager, build_guest, tmp_path):
    manager.load_plugin(build_guest("c-ring", tmp_path))
    assert manager.get_plugin("c-ring").status()["transport"] == "shm"
    return manager


def test_a_guest_that_announces_it_gets_its_messages_in_shared_memory(ring):
    assert ring.call("c-ring.echo", {"value": [1, {"a": None}]}) == [1, {"a": None}]
    assert list(ring.map("c-ring.echo", ({"value": n} for n in range(2000)))) == [*range(2000)]
    assert ring.submit("c-ring.echo", {"value": 5}).result(5) == 5
    with pytest.raises(SlotError, match="no"):
        ring.call("c-ring.fail", {"message": "no"})


def test_s7_a_message_larger_than_the_ring_is_streamed(ring):
    for nbytes in (4096, 65536, 1 << 18, 1 << 20, 5 << 20):
        for extra in (-1, 0, 1):
            text = "x" * (nbytes + extra)
            assert ring.call("c-ring.echo", {"value": text}) == text
            assert ring.call("c-ring.size", {"text": text}) == len(text)


def test_many_threads_and_loops_share_one_ring(ring):
    failures: list[BaseException] = []

    def call(number: int) -> None:
        try:
            for turn in range(300):
                value = [number, turn, "v" * (turn * 7 % 3000)]
                assert ring.call("c-ring.echo", {"value": value}) == value
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failures.append(error)

    async def call_many(number: int) -> None:
        for turn in range(100):
            values = [[number, turn, index] for index in range(10)]
            calls = (ring.call_async("c-ring.echo", {"value": value}) for value in values)
            assert await asyncio.gather(*calls) == values

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    threads += [
        threading.Thread(target=lambda n=number: asyncio.run(call_many(n))) for number in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("guest", ["c-ring", "binary"])
def test_threads_with_messages_above_the_rings_size_are_all_served(
    manager, build_guest, make_plugin, tmp_path, guest
):
    folder = make_plugin(PYTHON, name=guest) if guest == "binary" else build_guest(guest, tmp_path)
    manager.load_plugin(folder)
    assert manager.get_plugin(guest).status()["transport"] == "shm"
    assert_threads_pass_large_messages(manager, guest)


def test_a_sleeping_guest_and_a_sleeping_host_are_woken(ring):
    for pause in (0.0, 0.001, 0.2):  # beyond what either waits awake
        time.sleep(pause)
        assert ring.call("c-ring.sleep", {"seconds": pause}) == pause
    future = ring.submit("c-ring.sleep", {"seconds": 0.2})
    began = time.monotonic()
    assert future.result(5) == 0.2
    assert time.monotonic() - began < 2

    async def sleep() -> float:
        return await ring.call_async("c-ring.sleep", {"seconds": 0.2})

    began = time.monotonic()
    assert asyncio.run(sleep()) == 0.2
    assert time.monotonic() - began < 2


def test_an_idle_pair_uses_no_processor_time(ring):
    ring.call("c-ring.echo", {"value": 1})
    pid = ring.get_plugin("c-ring").status()["pid"]

    def ticks() -> int:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    time.sleep(0.3)
    before, mine = ticks(), time.process_time()
    time.sleep(3)
    assert ticks() - before <= 1
    assert time.process_time() - mine < 0.05


def test_what_the_guest_prints_is_logged_and_never_waits_for_long(ring, caplog):
    caplog.set_level("INFO")
    assert ring.call("c-ring.spam", {"lines": 20000}) == 20000
    assert ring.call("c-ring.echo", {"value": 1}) == 1
    time.sleep(0.3)
    assert "noise 0 on stdout" in caplog.text


def test_a_call_that_timed_out_leaves_the_ring_usable(ring):
    with pytest.raises(SlotTimeout):
        ring.call("c-ring.sleep", {"seconds": 0.3}, timeout=0.05)
    assert ring.call("c-ring.echo", {"value": "next"}) == "next"


def test_a_guest_that_dies_takes_only_its_calls_along(ring):
    with pytest.raises(PluginCrashed, match="crashing as it was told"):
        ring.call("c-ring.crash", {})
    assert ring.call("c-ring.echo", {"value": 2}) == 2
    pid = ring.get_plugin("c-ring").status()["pid"]
    future = ring.submit("c-ring.sleep", {"seconds": 30})
    time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(PluginCrashed):
        future.result(5)
    assert ring.call("c-ring.echo", {"value": 3}) == 3
    assert ring.get_plugin("c-ring").status()["transport"] == "shm"


@pytest.mark.parametrize(
    ("transport", "guest", "used", "why"),
    [
        ("auto", "c-ring", "shm", None),
        ("shm", "c-ring", "shm", None),
        ("stdio", "c-ring", "stdio", "the manifest says"),
        ("auto", "c", "stdio", "did not announce"),
        ("shm", "c", "stdio", "did not announce"),
        ("auto", "c-no-ids", "stdio", "did not announce"),
    ],
)
def test_the_manifest_decides_and_status_says_why(
    manager, build_guest, tmp_path, transport, guest, used, why
):
    folder = build_guest(guest, tmp_path)
    manifest = folder / "manifest.yaml"
    text = manifest.read_text()
    assert "sidecar:\n" in text
    manifest.write_text(text.replace("sidecar:\n", f"sidecar:\n  transport: {transport}\n", 1))
    manager.load_plugin(folder)
    assert manager.call(f"{guest}.echo", {"value": 1}) == 1
    worker = manager.get_plugin(guest).status()["workers"][0]
    assert worker["transport"] == used
    assert why is None or why in worker["why_stdio"]
    assert (why is None) == ("why_stdio" not in worker)


def test_a_host_without_shared_memory_speaks_in_lines(manager, build_guest, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("zeno_fast.sidecar.sharing.Segment", refuse)
    manager.load_plugin(build_guest("c-ring", tmp_path))
    assert manager.call("c-ring.echo", {"value": 1}) == 1
    worker = manager.get_plugin("c-ring").status()["workers"][0]
    assert "Too many open files" in worker["why_stdio"]


def test_a_guest_by_the_description_alone_is_understood(manager, make_plugin):
    script = (
        RAW + NAMES + "for request in serve('echo'):\n    reply(request, request['parameters'])\n"
    )
    manager.load_plugin(make_plugin(script))
    assert manager.get_plugin("scripted").status()["transport"] == "shm"
    for n in range(50):
        assert manager.call("echo", {"n": n, "text": "t" * n}) == {"n": n, "text": "t" * n}
    assert list(manager.map("echo", [{"n": n} for n in range(100)])) == [
        {"n": n} for n in range(100)
    ]


LIES = {
    "a cursor ahead of the ring": "set64(512, place['out'] + RING + 8); os.write(1, b'\\n')",
    "a cursor behind": "set64(512, place['out'] - 8); os.write(1, b'\\n')",
    "a cursor far away": "set64(512, 1 << 63); os.write(1, b'\\n')",
    "a cursor that is odd": "set64(512, place['out'] + 3); os.write(1, b'\\n')",
    "a record longer than what is there": "record('xx', 4000); publish()",
    "a record of four gigabytes": "record('xx', 0xFFFFFFFF); publish()",
    "flags that nobody knows": "record('xx', None, 6); publish()",
}


@pytest.mark.parametrize("lie", LIES)
def test_s2_a_guest_that_lies_is_replaced(manager, make_plugin, lie):
    script = (
        RAW + NAMES + "for request in serve('echo', 'lie'):\n"
        "    if request['slot_name'] == 'echo':\n"
        "        reply(request, request['parameters'])\n"
        f"    else:\n        {LIES[lie]}\n        time.sleep(60)\n"
    )
    manager.load_plugin(make_plugin(script, sidecar="stop_timeout: 0"))
    for _ in range(2):
        assert manager.call("echo", {"n": 1}) == {"n": 1}
        began = time.monotonic()
        with pytest.raises(ProtocolError, match="shared memory"):
            manager.call("lie", timeout=20)
        assert time.monotonic() - began < 5
    future = manager.submit("lie")
    with pytest.raises(ProtocolError, match="shared memory"):
        future.result(10)
    assert manager.call("echo", {"n": 2}) == {"n": 2}


def test_s2_a_guest_that_says_it_read_what_was_never_sent_is_replaced(manager, make_plugin):
    script = (
        RAW + NAMES + "for request in serve('echo', 'lie'):\n"
        "    if request['slot_name'] == 'lie':\n        set64(256 + 128, 1 << 40)\n"
        "    reply(request, request['parameters'])\n"
    )
    manager.load_plugin(make_plugin(script, sidecar="stop_timeout: 0"))
    assert manager.call("echo", {"n": 1}) == {"n": 1}
    manager.call("lie")
    with pytest.raises(ProtocolError, match="shared memory"):
        manager.call("echo", {"text": "x" * (1 << 18)}, timeout=20)
    assert manager.call("echo", {"n": 2}) == {"n": 2}


def test_s2_flags_that_the_guest_sets_at_will_do_no_harm(manager, make_plugin):
    script = (
        "import threading\n" + RAW + NAMES + "def scribble():\n"
        "    while True:\n"
        "        for at in (264, 264 + 128, 520, 520 + 128):\n"
        "            halves[at // 4] = 0xFFFFFFFF\n"
        "        time.sleep(0.0002)\n"
        "threading.Thread(target=scribble, daemon=True).start()\n"
        "for request in serve('echo'):\n    reply(request, request['parameters'])\n"
    )
    manager.load_plugin(make_plugin(script))
    for n in range(3000):
        assert manager.call("echo", {"n": n}) == {"n": n}


@pytest.mark.timeout(120 + 3 * SECONDS)
def test_s2_a_guest_that_scribbles_all_over_the_memory_does_the_host_no_harm(manager, make_plugin):
    script = (
        "import random, threading\n" + RAW + NAMES + "if os.fork() == 0:\n"
        "    places = [256, 264, 384, 392, 512, 520, 640, 648]\n"
        "    time.sleep(0.05 * random.random())\n"
        "    while os.getppid() > 1:\n"
        "        if random.random() < 0.5:\n"
        "            at = random.choice(places)\n"
        "            value = random.choice([get64(at) + random.randrange(-512, 512), 0,\n"
        "                random.getrandbits(64), get64(at) + 8 * random.randrange(1 << 15)])\n"
        "            set64(at, value)\n"
        "        else:\n"
        "            at = data['out'] + random.randrange(RING)\n"
        "            memory[at] = random.getrandbits(8)\n"
        "            at = data['out'] + get64(512) % RING // 8 * 8\n"
        "            struct.pack_into('<I', memory, at, random.getrandbits(random.randrange(33)))\n"
        "        time.sleep(random.choice([0, 0.0001, 0.001]))\n"
        "    os._exit(0)\n"
        "for request in serve('echo'):\n    reply(request, request['parameters'])\n"
    )
    options = "stop_timeout: 0\nworkers: 2\nmax_retries: 1000000"
    manager.load_plugin(make_plugin(script, sidecar=options))
    outcomes: collections.Counter[str] = collections.Counter()
    until = time.monotonic() + SECONDS

    def call() -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            text = "t" * random.choice([0, 10, 1000, 300_000])
            try:
                answer = manager.call("echo", {"text": text}, timeout=0.5)
                outcome = "answer" if answer == {"text": text} else "another answer"
            except ZenoError as error:
                outcome = type(error).__name__
            except Exception as error:  # noqa: BLE001 - shown by the test's own thread
                outcome = repr(error)
            if time.monotonic() - began > 5:
                outcome = f"late: {outcome}"
            outcomes[outcome] += 1

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 60)
    assert not any(thread.is_alive() for thread in threads)
    assert set(outcomes) <= {
        "answer", "another answer", "ProtocolError", "SlotTimeout", "PluginCrashed",
        "PluginUnavailable", "SlotError",
    }  # fmt: skip
    assert outcomes["answer"] > 3
    assert outcomes["ProtocolError"] > 3


def test_s4_the_memory_has_no_name_and_no_other_size(manager, build_guest, tmp_path):
    before = sorted(os.listdir("/dev/shm"))
    manager.load_plugin(build_guest("c-ring", tmp_path))
    manager.call("c-ring.echo", {"value": 1})
    assert sorted(os.listdir("/dev/shm")) == before
    segment = Segment(4096)
    for size in (0, 1 << 30):
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(segment.fd, size)
    assert not os.get_inheritable(segment.fd)
    segment.close_fd()


def test_s5_nothing_is_left_of_guests_that_were_killed(manager, build_guest, tmp_path, no_leaks):
    def mappings() -> int:
        with open("/proc/self/maps") as file:
            return sum("memfd:zeno_fast" in line for line in file)

    gc.collect()  # what other tests have left
    before = mappings()
    folder = build_guest("c-ring", tmp_path)
    manager.load_plugin(folder)
    for _ in range(3):
        os.kill(manager.get_plugin("c-ring").status()["pid"], signal.SIGKILL)
        time.sleep(0.1)
        assert manager.call("c-ring.echo", {"value": 1}) == 1
    # Of the process that runs, its plugin's, and one that is just ending.
    assert mappings() - before <= 3
    manager.unload_plugin("c-ring")
    deadline = time.monotonic() + 5
    while mappings() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert mappings() <= before


def holders() -> set[int]:
    """Return the processes, of those that may be asked, that have memory of ours mapped."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if "memfd:zeno_fast" in path.read_text():
                found.add(int(path.parent.name))
    return found


HOST = """
import sys, time
from zeno_fast import PluginManager

manager = PluginManager()
manager.load_plugin(sys.argv[1])
buffer = manager.buffer(1 << 20)
assert manager.call("binary.echo", {"value": buffer}) == bytes(1 << 20)
held = manager.call("binary.echo", {"value": bytes(100_000)})
print(manager.get_plugin("binary").status()["pid"], flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("killed", ["the host", "the guest and the host", "the host and the guest"])
def test_s5_nothing_is_left_of_hosts_that_were_killed(make_plugin, tmp_path, killed):
    folder = make_plugin(PYTHON, name="binary")
    files = sorted(os.listdir("/dev/shm"))
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert host.stdout is not None
    guest = int(host.stdout.readline())
    both = {host.pid, guest}
    assert both <= holders()
    victims = {"the host": [host.pid], "the guest and the host": [guest, host.pid]}
    for victim in victims.get(killed, [host.pid, guest]):
        with contextlib.suppress(ProcessLookupError):  # the guest's launcher may be quicker
            os.kill(victim, signal.SIGKILL)
    host.stdout.close()
    host.wait(5)
    deadline = time.monotonic() + 5
    while holders() & both and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not holders() & both
    assert sorted(os.listdir("/dev/shm")) == files
