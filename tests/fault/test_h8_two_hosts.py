"""H8, H5: the same plugin folder in two hosts, two versions in one, and children of the host."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fault.trees import end, start_host
from fault.ways import alive

from zeno_fast import PluginManager

TEXT = Path(__file__).parents[2] / "examples" / "plugins" / "text"
VERSIONED = """
for request in requests():
    if not lifecycle(request, "version", "pid"):
        answer(request, VERSION if request["slot_name"] == "version" else os.getpid())
"""


def test_h8_two_hosts_of_one_folder_have_processes_of_their_own(manager, make_plugin):
    folder = make_plugin("VERSION = 1\n" + VERSIONED)
    manager.load_plugin(folder)
    mine = manager.call("pid", timeout=20)
    host = start_host(folder, "print(manager.call('pid'), flush=True); time.sleep(1000)")
    assert host.stdout
    assert host.stdout.readline() == "ready\n"
    theirs = int(host.stdout.readline())
    assert theirs != mine
    host.kill()
    end(host)
    assert manager.call("pid", timeout=20) == mine


def test_h8_two_versions_of_one_plugin_serve_in_one_program(make_plugin, tmp_path, no_leaks):
    folders = [
        make_plugin(f"VERSION = {number}\n" + VERSIONED, folder=tmp_path / str(number))
        for number in (1, 2)
    ]
    with PluginManager() as one, PluginManager() as two:
        one.load_plugin(folders[0])
        two.load_plugin(folders[1])
        one.load_plugin(TEXT)
        two.load_plugin(TEXT)
        answers: dict[int, set[int]] = {1: set(), 2: set()}

        def call(manager: PluginManager, number: int) -> None:
            for _ in range(200):
                answers[number].add(manager.call("version", timeout=20))
                assert manager.call("text.stats", {"text": "a b"})["words"] == 2

        threads = [
            threading.Thread(target=call, args=pair) for pair in ((one, 1), (two, 2)) for _ in "12"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert answers == {1: {1}, 2: {2}}
        one.close()
        assert two.call("version", timeout=20) == 2


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_h5_processes_of_multiprocessing_neither_own_nor_end_the_plugins(
    manager, make_plugin, tmp_path, method
):
    folder = make_plugin("VERSION = 1\n" + VERSIONED)
    program = tmp_path / "host.py"
    program.write_text(
        f"""\
import multiprocessing, os, sys
from zeno_fast import PluginManager, UsageError

def work(_):
    return os.getpid()

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    with PluginManager() as manager:
        manager.load_plugin({str(folder)!r})
        before = manager.call("pid")
        with context.Pool(2) as pool:
            assert len(set(pool.map(work, range(20)))) >= 1
            assert manager.call("pid") == before
        assert manager.call("pid") == before
        child = context.Process(target=sys.exit)
        child.start()
        child.join()
        assert manager.call("pid") == before
    print(before)
""",
        encoding="utf-8",
    )
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", program], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert not alive(int(ended.stdout))
