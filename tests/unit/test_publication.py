"""The status of a manager, seen from other processes; and the commands that show it."""

from __future__ import annotations

import json
import os
import pty
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault.ways import wait_until

import zeno_fast
from zeno_fast import PluginManager
from zeno_fast.publication import _addresses, published

HOST = """\
import sys, time
from zeno_fast import PluginManager
manager = PluginManager()
manager.publish_status()
manager.load_plugin(sys.argv[1])
manager.call("work")
print("ready", flush=True)
time.sleep(1000)
"""
GUEST = """
for request in requests():
    if not lifecycle(request, "work"):
        answer(request, 1)
"""


def mine() -> list[dict]:
    return [host for host in published() if host["pid"] == os.getpid()]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(zeno_fast.__file__).parents[1]), **more}


@pytest.fixture
def host(make_plugin, no_leaks):
    """A program that publishes the status of one plugin with two processes."""
    folder = make_plugin(GUEST, sidecar="workers: 2")
    process = subprocess.Popen(
        [sys.executable, "-c", HOST, folder], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_status_is_seen_until_its_manager_is_closed(no_leaks, make_plugin):
    with PluginManager() as manager:
        assert mine() == []
        manager.publish_status()
        manager.publish_status()
        manager.load_plugin(make_plugin(GUEST))
        manager.call("work")
        (document,) = mine()
        assert document["plugins"]["scripted"]["calls"] == 1
        with PluginManager() as other:
            other.publish_status()
            assert len(mine()) == 2
    assert mine() == []


def test_the_environment_publishes_every_manager(no_leaks, monkeypatch):
    monkeypatch.setenv("ZENO_FAST_PUBLISH", "1")
    with PluginManager():
        assert len(mine()) == 1


def test_a_client_that_reads_nothing_keeps_nobody_for_long(manager, make_plugin, monkeypatch):
    manager.publish_status()
    manager.load_plugin(make_plugin(GUEST))
    monkeypatch.setattr(manager, "status", lambda: {"plugins": {}, "more": "x" * (8 << 20)})
    ((address, _),) = [found for found in _addresses() if found[1] == os.getpid()]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        began = time.monotonic()
        (document,) = mine()
        assert time.monotonic() - began < 5
    assert len(document["more"]) == 8 << 20


def test_a_host_that_is_killed_leaves_nothing(host):
    assert host.pid in [document["pid"] for document in published()]
    host.kill()
    host.wait()
    wait_until(lambda: host.pid not in [pid for _, pid in _addresses()])


def test_a_forked_child_keeps_no_address(run_python):
    ended = run_python(
        """
        import os, time
        from zeno_fast import PluginManager
        from zeno_fast.publication import _addresses
        manager = PluginManager()
        manager.publish_status()
        parent = os.getpid()
        ready, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(ready, 1)
            os._exit(0)
        manager.close()
        print([pid for _, pid in _addresses() if pid == parent])
        os.write(go, b"x")
        os.waitpid(child, 0)
        """
    )
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zeno_fast.cli", *arguments],
        env=environment(), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_status_shows_plugins_and_their_processes(host):
    ended = run("status", str(host.pid))
    assert ended.returncode == 0, ended.stderr
    title, headings, plugin, *workers = ended.stdout.splitlines()
    assert title.startswith(f"pid {host.pid} ")
    assert headings.split() == [
        "plugin", "state", "pid", "uptime", "restarts", "calls", "calls/s", "errors", "pending",
        "p50", "p99", "memory", "sandbox",
    ]  # fmt: skip
    assert plugin.split()[:2] == ["scripted", "running"]
    assert len(workers) == 2
    data = json.loads(run("status", str(host.pid), "--output", "json").stdout)
    assert data["hosts"][0]["plugins"]["scripted"]["calls"] == 1
    assert run("top", str(host.pid)).stdout.splitlines()[0] == title  # no terminal: once


def test_without_a_program_that_publishes_a_sentence_says_how_to():
    ended = run("status", "1")
    assert ended.returncode == 2
    assert "manager.publish_status()" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_top_is_live_and_ends_with_q(host):
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "zeno_fast.cli", "top", str(host.pid), "--interval", "0.2"],
        env=environment(TERM="xterm", COLUMNS="200", LINES="40"), stdin=slave, stdout=slave,
        stderr=slave,
    ) as process:  # fmt: skip
        os.close(slave)
        shown = b""
        try:
            deadline = time.monotonic() + 20
            while shown.count(b"scripted") < 3:
                assert time.monotonic() < deadline, shown
                if select.select([master], [], [], 1)[0]:
                    try:
                        shown += os.read(master, 65536)
                    except OSError as error:  # it has ended
                        raise AssertionError(shown.decode()) from error
            os.write(master, b"q")
            while select.select([master], [], [], 0.5)[0]:
                try:
                    if not os.read(master, 65536):
                        break
                except OSError:
                    break  # the terminal has closed
            assert process.wait(10) == 0
        finally:
            process.kill()
            os.close(master)
