"""A1 to A6, A9, A11, A14, A15, H6: nothing of a sidecar outlives it or its host."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fault.bounds import within
from fault.trees import STUBBORN, end, gone_within, processes_of, start_host
from fault.ways import alive, wait_until

import zeno_fast.sidecar.process as process_module
from zeno_fast import PluginCrashed, PluginLoadError, PluginManager
from zeno_fast.sidecar.process import LAUNCHER, Process, ProcessLimits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the launcher is Linux's")

TRIALS = int(os.environ.get("ZENO_FAST_TRIALS", "40"))
GONE_WITHIN = 2.0 if os.environ.get("CI") else 1.0  # seconds; the promise is 1 on a machine at rest
SOURCE = Path(__file__).parents[2] / "ext" / "launcher" / "launcher_linux.c"


# -- A1 to A3, A5: the host ends -------------------------------------------------------------------


ENDINGS = {
    "return": "pass",
    "sys.exit": "sys.exit(3)",
    "an exception": "raise RuntimeError('on purpose')",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "os._exit": "os._exit(4)",
    "abort": "os.abort()",
    "SIGSEGV": "import ctypes; ctypes.string_at(0)",
}


@pytest.mark.parametrize("how", ENDINGS)
def test_a1_a3_nothing_outlives_a_host_that_ends(make_plugin, how):
    folder = make_plugin(STUBBORN, sidecar="stop_timeout: 0.1")
    host = start_host(folder, ENDINGS[how])
    assert host.stdout
    assert host.stdout.readline() == "ready\n"
    end(host)
    assert gone_within(folder, GONE_WITHIN)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGKILL", "SIGSEGV"])
def test_a2_a3_a5_nothing_outlives_a_host_that_is_killed(make_plugin, number):
    folder = make_plugin(STUBBORN, sidecar="stop_timeout: 0.1")
    host = start_host(folder)
    assert host.stdout
    assert host.stdout.readline() == "ready\n"
    wait_until(lambda: len(processes_of(folder)) >= 4)  # the guest and what it has left
    os.killpg(host.pid, getattr(signal, number))
    end(host)
    assert gone_within(folder, GONE_WITHIN)


def test_a3_nothing_outlives_a_killed_host_whose_forked_child_holds_its_descriptors(make_plugin):
    folder = make_plugin(STUBBORN)
    host = start_host(folder, "print(os.fork() or '', flush=True); time.sleep(1000)")
    assert host.stdout
    assert host.stdout.readline() == "ready\n"
    child = int("".join(host.stdout.readline() for _ in range(2)).strip())
    try:
        os.kill(host.pid, signal.SIGKILL)
        host.wait(10)
        assert alive(child)
        assert gone_within(folder, GONE_WITHIN)
    finally:
        os.kill(child, signal.SIGKILL)
        end(host)


def test_a3_a_launcher_whose_host_is_gone_by_then_starts_nothing(tmp_path):
    ended = subprocess.run(
        [LAUNCHER, "1", "1", "0", "0", "-", tmp_path, "--", "/bin/touch", "started"],
        timeout=10, check=False,
    )  # fmt: skip
    assert ended.returncode == 0
    assert not (tmp_path / "started").exists()


def kill_hosts(folder: Path, trials: int, launcher: str = "") -> bool:
    """Kill hosts at any moment, several at a time; return whether nothing was left of each."""
    for _ in range(0, trials, 4):
        hosts = [start_host(folder, launcher=launcher) for _ in range(4)]
        for host in hosts:
            assert host.stdout
            if random.random() < 0.7:
                host.stdout.readline()
            else:
                time.sleep(random.uniform(0, 0.2))
            host.kill()
        for host in hosts:
            end(host)
        if not gone_within(folder, GONE_WITHIN):
            return False
    return True


@pytest.mark.timeout(60 + TRIALS)
def test_a3_a5_hosts_that_are_killed_at_any_moment_leave_nothing(make_plugin):
    assert kill_hosts(make_plugin(STUBBORN), TRIALS)


def test_a3_the_check_fails_for_a_launcher_that_kills_nothing(make_plugin, tmp_path):
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}; `apt install gcc` would bring it")
    text = SOURCE.read_text(encoding="utf-8")
    mutant = tmp_path / "launcher.c"
    assert text.count("kill(child, SIGKILL)") == 1
    mutant.write_text(text.replace("kill(child, SIGKILL)", "(void)child"), encoding="utf-8")
    subprocess.run([compiler, "-O2", mutant, "-o", tmp_path / "launcher"], check=True, timeout=60)
    folder = make_plugin(STUBBORN)
    try:
        assert not kill_hosts(folder, 4, str(tmp_path / "launcher"))
    finally:
        for pid in processes_of(folder):
            os.kill(pid, signal.SIGKILL)


# -- A6, H6: wrappers, zombies and the application's own children ----------------------------------


def test_a6_a_wrapper_and_the_program_that_it_starts_both_end(manager, make_plugin):
    folder = make_plugin(STUBBORN, sidecar="stop_timeout: 0.1")
    (folder / "run.sh").write_text(f"{sys.executable} guest.py\n", encoding="utf-8")
    manifest = folder / "manifest.yaml"
    manifest.write_text(manifest.read_text().replace("./guest.py", "run.sh"), encoding="utf-8")
    manager.load_plugin(folder)
    wait_until(lambda: len(processes_of(folder)) >= 5)
    with within(5):
        manager.unload_plugin("scripted")
    assert gone_within(folder, GONE_WITHIN)


CRASHING = """
for request in requests():
    if not lifecycle(request, "die", "echo"):
        if request["slot_name"] == "die":
            os._exit(7)
        answer(request, request["parameters"])
"""


@pytest.mark.parametrize(
    "prologue",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "threading.Thread(target=reap, daemon=True).start()",
        "signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))",
    ],
    ids=["ignores SIGCHLD", "waits for any child", "handles SIGCHLD"],
)
def test_h6_a6_the_applications_own_way_with_children_does_no_harm(
    make_plugin, run_python, prologue
):
    folder = make_plugin(CRASHING)
    ended = run_python(
        f"""
        import os, signal, subprocess, threading, time
        from zeno_fast import PluginCrashed, PluginManager
        seen = []
        def reap():
            while True:
                try:
                    os.waitpid(-1, 0)
                except ChildProcessError:
                    time.sleep(0.001)
        {prologue}
        with PluginManager() as manager:
            manager.load_plugin({str(folder)!r})
            for _ in range(3):
                try:
                    manager.call("die", timeout=10)
                except PluginCrashed as crash:
                    print(crash.exit_status)
                print(manager.call("echo", {{"n": 1}}, timeout=10))
        own = subprocess.Popen(["sleep", "0.1"])
        own.wait()
        left = open(f"/proc/self/task/{{os.getpid()}}/children").read().split()
        print("left", left)
        """
    )
    assert ended.stderr.count("ended with exit status 7") == 3
    assert ended.stdout == "7\n{'n': 1}\n" * 3 + "left []\n", ended.stderr


# -- A9: the ladder --------------------------------------------------------------------------------


def test_a9_a_guest_that_ignores_everything_is_gone_soon_after_its_grace(
    manager, make_plugin, caplog
):
    folder = make_plugin(STUBBORN, sidecar="stop_timeout: 0.3")
    caplog.set_level("DEBUG", "zeno_fast.plugin.scripted")
    manager.load_plugin(folder)
    began = time.monotonic()
    manager.unload_plugin("scripted")
    assert 1.3 <= time.monotonic() - began < 3
    assert gone_within(folder, GONE_WITHIN)
    told = [record.getMessage() for record in caplog.records]
    steps = ["the end of its input; it is sent SIGTERM", "SIGTERM; it is killed", "was to stop"]
    positions = [next(n for n, text in enumerate(told) if step in text) for step in steps]
    assert positions == sorted(positions)


# -- A11, A12: whom a signal reaches ---------------------------------------------------------------


def test_a11_no_process_is_signalled_by_its_number(make_plugin, no_leaks, monkeypatch):
    def fail(*_):
        raise AssertionError("a number may be somebody else's by now")

    with PluginManager() as manager:
        manager.load_plugin(make_plugin(CRASHING, sidecar="stop_timeout: 0"))
        monkeypatch.setattr(os, "kill", fail)
        monkeypatch.setattr(os, "killpg", fail)
        for _ in range(5):
            with pytest.raises(PluginCrashed):
                manager.call("die", timeout=10)
            assert manager.call("echo", {"n": 1}, timeout=10) == {"n": 1}


HOSTILE = """
for request in requests():
    if not lifecycle(request, "launcher", "echo"):
        if request["slot_name"] == "launcher":
            os.kill(os.getppid(), request["parameters"]["number"])
        answer(request, os.getpid())
"""


def test_a3_a_sidecar_that_kills_its_launcher_dies_of_it_and_is_started_again(manager, make_plugin):
    folder = make_plugin(HOSTILE)
    manager.load_plugin(folder)
    pid = manager.call("echo", timeout=10)
    with within(5), contextlib.suppress(PluginCrashed):  # it may answer before it is gone
        manager.call("launcher", {"number": 9}, timeout=10)
    wait_until(lambda: not alive(pid))
    assert manager.call("echo", timeout=10) != pid


def test_a9_a_sidecar_that_stops_its_launcher_is_ended_all_the_same(make_plugin, no_leaks):
    folder = make_plugin(HOSTILE + "while True: time.sleep(1000)\n", sidecar="stop_timeout: 0.1")
    with PluginManager() as manager:
        manager.load_plugin(folder)
        manager.call("launcher", {"number": signal.SIGSTOP}, timeout=10)
        assert manager.call("echo", timeout=10)
        began = time.monotonic()
    assert time.monotonic() - began < 8
    assert gone_within(folder, GONE_WITHIN)


# -- A14: programs that do not start ---------------------------------------------------------------


def start(argv: list[str], folder: Path, **rest: object) -> Process:
    return Process("p", argv, folder, {"PATH": os.environ["PATH"]}, **rest)  # type: ignore[arg-type]


def test_a14_the_error_names_path_mode_and_reason(tmp_path, no_leaks):
    script = tmp_path / "script"
    script.write_bytes(b"echo hello\n")
    cases = {
        "No such file": [str(tmp_path / "missing")],
        "mode is 0644": [str(script)],
        "noexec": [str(tmp_path)],
    }
    script.chmod(0o644)
    for words, argv in cases.items():
        with within(5), pytest.raises(PluginLoadError, match=words) as caught:
            start(argv, tmp_path)
        assert argv[0] in str(caught.value)
        assert "errno" in str(caught.value)
    script.chmod(0o755)
    with pytest.raises(PluginLoadError, match=r"Exec format error.*no program for this machine"):
        start([str(script)], tmp_path)
    script.write_bytes(b"#!/no/such/interpreter\n")
    with pytest.raises(PluginLoadError, match="its interpreter or its loader is not"):
        start([str(script)], tmp_path)
    with pytest.raises(PluginLoadError, match=r"folder .*nowhere cannot be entered: No such file"):
        start(["/bin/true"], tmp_path / "nowhere")


def test_a14_a_program_that_is_being_written_is_tried_again_for_a_moment(tmp_path, no_leaks):
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    with open(program, "r+b") as writer:
        threading.Timer(0.03, writer.close).start()
        process = start([str(program)], tmp_path)
    assert finish(process) == 0
    with open(program, "r+b"), within(5), pytest.raises(PluginLoadError, match="Text file busy"):
        start([str(program)], tmp_path)


def test_a14_a_launcher_that_is_missing_says_what_to_do(tmp_path, no_leaks, monkeypatch):
    monkeypatch.setattr(process_module, "LAUNCHER", tmp_path / "launcher")
    with pytest.raises(PluginLoadError, match=r"launcher .* No such file.*pip install"):
        start(["/bin/true"], tmp_path)


# -- A15: what a child has, and what is left -------------------------------------------------------


def finish(process: Process) -> int | None:
    """Close a process's pipes, and wait until nothing is left of it."""
    os.close(process.stdin_fd)
    status = process.wait(10)
    os.close(process.stdout_fd)
    process.close()
    return status


def test_a15_a_child_has_its_streams_and_what_is_declared(tmp_path, no_leaks):
    declared, other = (os.open("/dev/null", os.O_RDONLY) for _ in range(2))
    os.set_inheritable(other, True)
    listing = "import os; print(*(int(fd) for fd in os.listdir('/proc/self/fd')), flush=True)"
    try:
        process = start([sys.executable, "-c", listing], tmp_path, pass_fds=(declared,))
        with open(os.dup(process.stdout_fd), "rb") as stdout:
            seen = {int(fd) for fd in stdout.readline().split()}
        assert finish(process) == 0
    finally:
        os.close(declared)
        os.close(other)
    assert seen - {0, 1, 2, declared} <= {min(set(range(3, 10)) - {declared})}  # of listdir itself


def test_a15_limits_reach_the_child(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            import resource
            for request in requests():
                if not lifecycle(request, "limits", "fill"):
                    if request["slot_name"] == "fill":
                        try:
                            answer(request, len(bytearray(1 << 30)))
                        except MemoryError:
                            answer(request, "no memory")
                    names = "NOFILE", "CORE", "DATA"
                    answer(request, [resource.getrlimit(getattr(resource, "RLIMIT_" + name))
                                     for name in names])
            """,
            sidecar="max_files: 100\nmax_memory: 128MiB",
        )
    )
    expected = [[100, 100], [0, 0], [256 << 20, 256 << 20]]
    assert manager.call("limits", timeout=10) == expected
    assert manager.call("fill", timeout=10) == "no memory"


@pytest.mark.timeout(60 + TRIALS)
def test_a15_starts_and_stops_leave_nothing(tmp_path, no_leaks):
    for _ in range(5):
        finish(start(["/bin/cat"], tmp_path))
    fds = len(os.listdir("/proc/self/fd"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5 * TRIALS):
        assert finish(start(["/bin/cat"], tmp_path)) == 0
    assert len(os.listdir("/proc/self/fd")) == fds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2048  # KiB
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    assert not children.split()


def test_the_launcher_is_small_and_idle_and_no_debugger_may_hold_it(tmp_path, no_leaks):
    process = start(["/bin/cat"], tmp_path, limits=ProcessLimits())
    about = Path(f"/proc/{process.launcher_pid}")
    try:
        used = (about / "stat").read_text().split()[13:15]
        time.sleep(1)
        assert (about / "stat").read_text().split()[13:15] == used
        status = dict(line.split(":\t", 1) for line in (about / "status").read_text().splitlines())
        assert int(status["VmRSS"].split()[0]) < 1024
        assert status["Threads"] == "1"
        # Files of a process that cannot be traced belong to root, whoever runs it.
        assert (about / "mem").stat().st_uid == 0
    finally:
        finish(process)
