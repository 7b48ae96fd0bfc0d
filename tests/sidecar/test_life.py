"""How sidecars start, die, are started again and end with their manager."""

from __future__ import annotations

import logging
import os
import signal
import time

import pytest

from zeno_fast import (
    PluginCrashed,
    PluginLoadError,
    PluginManager,
    PluginUnavailable,
    SlotNotFound,
    UsageError,
)

ECHO = """
for request in requests():
    if lifecycle(request, "echo", "pid", "die"):
        continue
    if request["slot_name"] == "pid":
        answer(request, os.getpid())
    elif request["slot_name"] == "die":
        sys.stderr.write("last words\\n")
        sys.stderr.flush()
        how = request["parameters"]["how"]
        if how == "half":
            sys.stdout.write('{"type":"guest_response","id":"')
            sys.stdout.flush()
            os._exit(1)
        if how < 0:
            os.kill(os.getpid(), -how)
        os._exit(how)
    else:
        answer(request, request["parameters"])
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("how", "exit_status", "signal_number"),
    [(0, 0, None), (1, 1, None), (3, 3, None), (-9, None, 9), (-11, None, 11), ("half", 1, None)],
)
def test_a8_a_call_fails_at_once_when_the_process_dies(
    manager, make_plugin, how, exit_status, signal_number
):
    manager.load_plugin(make_plugin(ECHO))
    began = time.monotonic()
    with pytest.raises(PluginCrashed, match="last words") as caught:
        manager.call("die", {"how": how}, timeout=20)
    assert time.monotonic() - began < 5  # the default time-out is 30 s, the call's own 20
    assert (caught.value.exit_status, caught.value.signal) == (exit_status, signal_number)
    assert "'die'" in str(caught.value)
    assert manager.call("echo", {"n": 1}) == {"n": 1}


def test_a7_an_exit_is_seen_although_a_grandchild_holds_stdout_open(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            import subprocess
            for request in requests():
                if not lifecycle(request, "fork"):
                    child = subprocess.Popen(["sleep", "20"], start_new_session=False)
                    print("grandchild", child.pid, file=sys.stderr, flush=True)
                    os._exit(4)
            """
        )
    )
    began = time.monotonic()
    with pytest.raises(PluginCrashed, match="exit status 4") as caught:
        manager.call("fork", timeout=15)
    assert time.monotonic() - began < 5
    # It outlives its parent until supervision does better.
    grandchild = int(caught.value.stderr.split()[-1])
    deadline = time.monotonic() + 5
    while alive(grandchild):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_max_retries_counts_failures_in_a_row_and_not_in_the_life_of_the_host(manager, make_plugin):
    manager.load_plugin(make_plugin(ECHO, sidecar="max_retries: 2"))
    for _ in range(6):  # each forgiven by the answer after it
        with pytest.raises(PluginCrashed):
            manager.call("die", {"how": 1})
        assert manager.call("echo", {}) == {}
    for _ in range(3):
        with pytest.raises(PluginCrashed):
            manager.call("die", {"how": 1})
    with pytest.raises(PluginUnavailable, match=r"max_retries \(2\).*last words"):
        manager.call("echo", {})
    manager.reload_plugin("scripted")
    assert manager.call("echo", {"n": 1}) == {"n": 1}


def test_a_process_that_died_between_two_calls_is_started_again(manager, make_plugin):
    manager.load_plugin(make_plugin(ECHO))
    first = manager.call("pid")
    os.kill(first, signal.SIGKILL)
    for _ in range(500):
        if not alive(first):
            break
        time.sleep(0.01)
    assert manager.call("pid", timeout=10) != first


DEAF = """
for request in requests():
    if lifecycle(request, "pid", "deafen"):
        continue
    if request["slot_name"] == "deafen":
        os.close(0)
    answer(request, os.getpid())
    if request["slot_name"] == "deafen":
        time.sleep(0.3)
        os._exit(0)
"""


@pytest.mark.parametrize("way", ["call", "submit", "map"])
def test_a_request_of_which_the_guest_read_nothing_goes_to_another_process(
    manager, make_plugin, way
):
    manager.load_plugin(make_plugin(DEAF))
    deaf = manager.call("deafen")
    if way == "call":
        answers = [manager.call("pid")]
    elif way == "submit":
        answers = [manager.submit("pid").result(10)]
    else:
        answers = list(manager.map("pid", [{}] * 3))
    assert deaf not in answers
    assert len(set(answers)) == 1


def test_auto_start_false_starts_the_process_with_the_first_call(manager, make_plugin):
    plugin = manager.load_plugin(make_plugin(ECHO, sidecar="auto_start: false"))
    assert plugin.status()["state"] == "stopped"
    assert not plugin.slots
    assert manager.call("echo", {"n": 1}) == {"n": 1}
    assert manager.get_plugin("scripted").status()["state"] == "running"
    assert set(manager.slots) == {"echo", "pid", "die"}


def test_auto_start_false_with_declared_slots_starts_nothing_to_look_one_up(manager, make_plugin):
    manager.load_plugin(
        make_plugin(ECHO, sidecar="auto_start: false", manifest="slots: [{name: echo}]")
    )
    with pytest.raises(SlotNotFound):
        manager.call("nowhere")
    assert manager.get_plugin("scripted").status()["state"] == "stopped"
    assert manager.call("echo", {"n": 1}) == {"n": 1}


def test_keep_alive_false_ends_the_process_when_it_is_idle(manager, make_plugin):
    manager.load_plugin(make_plugin(ECHO, sidecar="keep_alive: false"))
    first = manager.call("pid")
    for _ in range(500):
        if not alive(first):
            break
        time.sleep(0.01)
    assert not alive(first)
    assert manager.call("pid") != first


def test_a_guest_that_ignores_the_end_of_its_input_is_killed_after_its_grace(make_plugin, no_leaks):
    with PluginManager() as manager:
        manager.load_plugin(
            make_plugin(
                """
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                for request in requests():
                    if not lifecycle(request, "pid"):
                        answer(request, os.getpid())
                while True:
                    time.sleep(1)
                """,
                sidecar="stop_timeout: 0.2",
            )
        )
        pid = manager.call("pid")
        began = time.monotonic()
    assert not alive(pid)
    assert time.monotonic() - began < 5  # 0.2 for the input, 1 for SIGTERM, then SIGKILL


def test_a10_a_guest_that_takes_its_time_to_stop_is_let_finish(make_plugin, no_leaks, tmp_path):
    with PluginManager() as manager:
        manager.load_plugin(
            make_plugin(
                f"""
                for request in requests():
                    lifecycle(request, "echo")
                time.sleep(0.5)
                print("bye " * 100000, flush=True)  # more than a pipe holds
                open({str(tmp_path / "flushed")!r}, "w").close()
                """
            )
        )
    assert (tmp_path / "flushed").exists()


def test_closing_many_stubborn_guests_takes_one_grace_and_not_one_each(make_plugin, no_leaks):
    program = """
    for request in requests():
        lifecycle(request)
    time.sleep(0.5)
    """
    with PluginManager() as manager:
        for number in range(6):
            manager.load_plugin(make_plugin(program, name=f"slow{number}"))
        began = time.monotonic()
    assert time.monotonic() - began < 2.5


@pytest.mark.parametrize("ending", ["pass", "sys.exit(1)", "raise RuntimeError", "os._exit(0)"])
def test_a1_no_sidecar_is_left_when_the_host_ends(make_plugin, run_python, ending):
    folder = make_plugin(ECHO)
    done = run_python(
        f"""
        import os, sys
        from zeno_fast import PluginManager
        manager = PluginManager()
        manager.load_plugin({str(folder)!r})
        print(manager.call("pid"), flush=True)
        {ending}
        """
    )
    pid = int(done.stdout)
    for _ in range(300):
        if not alive(pid):
            break
        time.sleep(0.01)
    assert not alive(pid)
    if ending == "pass":
        assert done.stderr == ""


def test_h7_the_interpreters_end_with_calls_in_flight_is_silent(make_plugin, run_python):
    folder = make_plugin(
        ECHO.replace("answer(request, os.getpid())", "time.sleep(60)"),
        sidecar="stop_timeout: 0.1",
    )
    done = run_python(
        f"""
        import threading
        from zeno_fast import PluginManager
        manager = PluginManager()
        manager.load_plugin({str(folder)!r})
        future = manager.submit("pid")
        threading.Thread(target=future.exception, daemon=True).start()
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("ending", ["pass", "os._exit(0)"])
def test_h5_a_forked_child_neither_owns_nor_ends_the_plugins(make_plugin, run_python, ending):
    folder = make_plugin(ECHO)
    done = run_python(
        f"""
        import os, sys, warnings
        from zeno_fast import PluginManager
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        manager = PluginManager()
        manager.load_plugin({str(folder)!r})
        before = manager.call("pid")
        child = os.fork()
        if not child:
            {ending}
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert manager.call("pid") == before
        manager.close()
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import sys; sys.stderr.write('no config\\n'); sys.exit(7)", r"exit status 7.*no config"),
        ("import sys; sys.exit(0)", "exit status 0"),
        ("syntax error here", "SyntaxError"),
    ],
)
def test_a_program_that_exits_at_once_is_a_load_error_with_its_last_words(
    manager, make_plugin, program, told
):
    folder = make_plugin("")
    (folder / "guest.py").write_text(program)
    with pytest.raises(PluginLoadError, match=told):
        manager.load_plugin(folder)
    assert manager.list_plugins() == []


def test_a_guest_that_is_silent_to_life_cycle_slots_is_used_without_them(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not request["slot_name"].startswith("plugin_"):
                    answer(request, request["parameters"])
            """,
            sidecar="timeout: 0.3",
            manifest="slots: [{name: echo}]",
        )
    )
    assert manager.call("echo", {"n": 1}) == {"n": 1}


def test_section_5_sidecars_got_the_hosts_whole_environment(manager, make_plugin, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    monkeypatch.setenv("ALLOWED", "yes")
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "env"):
                    answer(request, {"env": dict(os.environ), "cwd": os.getcwd()})
            """,
            sidecar="env: {SET: here}",
            manifest="permissions: {env: [ALLOWED]}",
        )
    )
    told = manager.call("env")
    assert "SECRET_TOKEN" not in told["env"]
    assert told["env"]["ALLOWED"] == "yes"
    assert told["env"]["SET"] == "here"
    assert told["env"]["ZENO_PLUGIN_NAME"] == "scripted"
    assert (told["env"]["ZENO_SIDECAR"], told["env"]["ZENO_PROTOCOL"]) == ("true", "1")
    assert told["cwd"] == str(manager.get_plugin("scripted").folder.resolve())


def test_stderr_is_logged_under_the_plugins_name_with_its_level(manager, make_plugin, caplog):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "say"):
                    sys.stderr.write("[ERROR] broken\\nplain\\n" + "flood\\n" * 20000)
                    sys.stderr.flush()
                    answer(request, 1)
            """
        )
    )
    with caplog.at_level(logging.DEBUG, "zeno_fast.plugin.scripted"):
        assert manager.call("say", timeout=20) == 1
        manager.close()
    records = [r for r in caplog.records if r.name == "zeno_fast.plugin.scripted"]
    assert any(r.levelno == logging.ERROR and "broken" in r.getMessage() for r in records)
    assert any(r.levelno == logging.INFO and "plain" in r.getMessage() for r in records)
    assert len(records) < 2000  # rate-limited
    assert any("were not logged" in r.getMessage() for r in records)


def test_a_long_request_is_named_when_the_guest_dies_of_it(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            while True:
                line = os.read(0, 1 << 20)
                if b"plugin_" not in line:
                    os._exit(0)
                lifecycle(json.loads(line), "echo")
            """
        )
    )
    with pytest.raises(PluginCrashed, match=r"the request was 70012 bytes.*64 KiB"):
        manager.call("echo", {"value": "x" * 70000})


def test_a_closed_manager_refuses_calls(make_plugin, no_leaks):
    manager = PluginManager()
    manager.load_plugin(make_plugin(ECHO))
    manager.close()
    manager.close()
    with pytest.raises(UsageError, match="closed"):
        manager.call("echo", {})


def test_close_fails_a_call_in_flight(make_plugin, no_leaks):
    with PluginManager() as manager:
        manager.load_plugin(
            make_plugin(ECHO.replace("answer(request, os.getpid())", "time.sleep(30)"),
                        sidecar="stop_timeout: 0.1")
        )  # fmt: skip
        future = manager.submit("pid")
    assert isinstance(future.exception(5), PluginUnavailable)


def test_50_starts_and_stops_leave_nothing(make_plugin, no_leaks):
    folder = make_plugin(ECHO)
    with PluginManager() as manager:
        for _ in range(50):
            manager.load_plugin(folder)
            assert manager.call("echo", {"n": 1}) == {"n": 1}
            manager.unload_plugin("scripted")
