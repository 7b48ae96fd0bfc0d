"""Starting and ending while calls come: deadlines hold, nobody is forgotten, nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from itertools import count

import pytest

from zeno_fast import PluginCrashed, PluginManager, PluginUnavailable, ProtocolError, SlotTimeout

SLOW_START = """
time.sleep(1.5 if os.path.exists("slow") else 0)
for request in requests():
    if lifecycle(request, "echo", "die"):
        continue
    if request["slot_name"] == "die":
        os._exit(request["parameters"].get("status", 1))
    answer(request, request["parameters"])
"""


def test_d4_waiting_for_a_start_counts_against_the_deadline(manager, make_plugin):
    folder = make_plugin(SLOW_START, sidecar="stop_timeout: 0")
    manager.load_plugin(folder)
    (folder / "slow").touch()
    with pytest.raises(PluginCrashed):
        manager.call("die")
    began = time.monotonic()
    with pytest.raises(SlotTimeout, match="still starting"):
        manager.call("echo", {}, timeout=0.2)
    with pytest.raises(SlotTimeout, match="still starting"):
        asyncio.run(manager.call_async("echo", {}, timeout=0.2))
    assert isinstance(manager.submit("echo", {}, timeout=0.2).exception(), SlotTimeout)
    assert time.monotonic() - began < 1.4
    assert manager.call("echo", {"n": 1}, timeout=20) == {"n": 1}


def test_a_first_call_does_not_block_the_event_loop(manager, make_plugin):
    folder = make_plugin(SLOW_START, sidecar="auto_start: false")
    (folder / "slow").touch()
    manager.load_plugin(folder)

    async def main():
        task = asyncio.ensure_future(manager.call_async("echo", {"n": 1}))
        longest = 0.0
        while not task.done():
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)
        return await task, longest

    answer, longest = asyncio.run(main())
    assert answer == {"n": 1}
    assert longest < 1  # the start alone takes 1.5 s


def test_e9_a_hundred_first_callers_start_one_process(manager, make_plugin, tmp_path):
    program = f"open({str(tmp_path / 'starts')!r}, 'a').write('x')\n" + SLOW_START.lstrip()
    manager.load_plugin(make_plugin(program, sidecar="auto_start: false"))
    outcomes = []

    def first(number):
        outcomes.append(manager.call("echo", {"n": number}) == {"n": number})

    threads = [threading.Thread(target=first, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert outcomes == [True] * 100
    assert (tmp_path / "starts").read_text() == "x"


def test_a13_closing_during_a_start_ends_what_was_started(make_plugin, no_leaks):
    folder = make_plugin(SLOW_START, sidecar="stop_timeout: 0")
    with PluginManager() as manager:
        manager.load_plugin(folder)
        (folder / "slow").touch()
        with pytest.raises(PluginCrashed):
            manager.call("die")
        future = threading.Thread(target=lambda: manager.submit("echo", {}).exception())
        future.start()
        time.sleep(0.1)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    future.join(5)
    assert not future.is_alive()


def test_a_clean_exit_during_a_call_counts_as_a_failure(manager, make_plugin):
    manager.load_plugin(make_plugin(SLOW_START, sidecar="max_retries: 2"))
    for _ in range(3):
        with pytest.raises(PluginCrashed, match="exit status 0"):
            manager.call("die", {"status": 0})
    with pytest.raises(PluginUnavailable):
        manager.call("echo")


def test_a_call_without_time_does_not_cost_a_guest_without_ids_its_life(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                put({"success": True, "data": request["parameters"]})
            """,
            manifest="slots: [{name: echo}]",
        )
    )
    pid = manager.get_plugin("scripted").status()["pid"]
    for _ in range(5):
        with pytest.raises(SlotTimeout):
            manager.call("echo", {"n": 1}, timeout=0)
    assert manager.call("echo", {"n": 2}) == {"n": 2}
    assert manager.get_plugin("scripted").status()["pid"] == pid


@pytest.mark.parametrize(
    "data", ["NaN", '"\\ud800"', "[" * 2000, '"cut off', "1" * 400 + "x"], ids=lambda d: d[:8]
)
def test_b9_an_answer_that_is_no_json_fails_its_call_at_once(manager, make_plugin, data):
    manager.load_plugin(
        make_plugin(
            f"""
            for request in requests():
                if not lifecycle(request, "ask"):
                    print('{{"type":"guest_response","id":"' + request["id"]
                          + '","success":true,"data":' + {data!r} + '}}', flush=True)
            """
        )
    )
    began = time.monotonic()
    with pytest.raises(ProtocolError, match="no valid JSON"):
        manager.call("ask", timeout=20)
    assert time.monotonic() - began < 5


def test_keep_alive_false_leaves_no_process_after_many_calls(make_plugin, no_leaks):
    with PluginManager() as manager:
        manager.load_plugin(
            make_plugin(
                """
                for request in requests():
                    if not lifecycle(request, "echo"):
                        answer(request, request["parameters"])
                time.sleep(0.2)
                """,
                sidecar="keep_alive: false",
            )
        )
        for n in range(20):
            assert manager.call("echo", {"n": n}) == {"n": n}
        assert list(manager.map("echo", [{"n": n} for n in range(20)])) == [
            {"n": n} for n in range(20)
        ]


def test_map_fits_into_a_small_queue(manager, make_plugin):
    manager.load_plugin(make_plugin(SLOW_START, sidecar="max_queue: 10"))
    assert list(manager.map("echo", ({"n": n} for n in range(200)))) == [
        {"n": n} for n in range(200)
    ]


def test_d6_an_interrupt_during_map_leaves_a_guest_without_ids_usable(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                time.sleep(request["parameters"].get("seconds", 0))
                put({"success": True, "data": request["parameters"]})
            """,
            manifest="slots: [{name: echo}]",
        )
    )
    main = threading.main_thread().ident
    threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        list(manager.map("echo", ({"seconds": 0.5} for _ in count())))
    assert manager.call("echo", {"n": 1}, timeout=20) == {"n": 1}


def test_h9_host_functions_that_call_the_same_plugin_again_do_not_deadlock(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            import threading
            waiting = {}
            lock = threading.Lock()
            def work(request):
                depth = request["parameters"]["depth"]
                if depth:
                    id = "h" + request["id"]
                    event = waiting[id] = threading.Event()
                    with lock:
                        put({"type": "host_call", "id": id, "function": "again",
                             "parameters": {"depth": depth - 1}})
                    event.wait()
                with lock:
                    answer(request, depth)
            for request in requests():
                if request.get("type") == "host_response":
                    waiting[request["id"]].set()
                elif not lifecycle(request, "dive"):
                    threading.Thread(target=work, args=(request,)).start()
            """
        )
    )
    manager.set_host_callback("again", lambda parameters: manager.call("dive", parameters))
    futures = [manager.submit("dive", {"depth": 3}, timeout=20) for _ in range(16)]
    assert [future.result(30) for future in futures] == [3] * 16


def test_h5_a_forked_child_is_told_to_make_a_manager_of_its_own(make_plugin, run_python):
    folder = make_plugin(SLOW_START)
    done = run_python(
        f"""
        import os, sys, warnings
        from zeno_fast import PluginManager, UsageError
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        manager = PluginManager()
        manager.load_plugin({str(folder)!r})
        child = os.fork()
        if not child:
            try:
                manager.call("echo", {{}}, timeout=5)
            except UsageError:
                with PluginManager() as own:
                    own.load_plugin({str(folder)!r})
                    os._exit(0 if own.call("echo", {{"n": 1}}) == {{"n": 1}} else 2)
            os._exit(1)
        for n in range(200):
            assert manager.call("echo", {{"n": n}}) == {{"n": n}}
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_h7_an_end_with_pending_futures_runs_their_callbacks_quietly(make_plugin, run_python):
    folder = make_plugin(
        SLOW_START.replace("answer(request, request", "time.sleep(60); answer(request, request"),
        sidecar="stop_timeout: 0",
    )
    done = run_python(
        f"""
        from zeno_fast import PluginManager
        manager = PluginManager()
        manager.load_plugin({str(folder)!r})
        for n in range(3):
            manager.submit("echo", {{}}).add_done_callback(lambda future: print("called back"))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "called back\n" * 3, "")


def test_processes_of_a_killed_worker_are_reaped(manager, make_plugin):
    manager.load_plugin(make_plugin(SLOW_START))
    pid = manager.get_plugin("scripted").status()["pid"]
    os.kill(pid, signal.SIGKILL)
    for _ in range(500):
        if not os.path.exists(f"/proc/{pid}"):
            break
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{pid}")
