"""Guests that flood, stall, lie or half close: bounded time, bounded memory, the right answer."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import threading
import time
from concurrent.futures import wait

import pytest

from zeno_fast import PluginCrashed, PluginUnavailable, SlotTimeout

ECHO = """
for request in requests():
    if not lifecycle(request, "echo"):
        answer(request, request["parameters"])
"""


def call_each_way(manager, slot, parameters, timeout):
    """Call from a thread, from an event loop, and as a future that nobody reads for."""
    yield lambda: manager.call(slot, parameters, timeout=timeout)
    yield lambda: asyncio.run(manager.call_async(slot, parameters, timeout=timeout))

    def submitted():
        future = manager.submit(slot, parameters, timeout=timeout)
        assert not wait([future], timeout + 10).not_done
        return future.result()

    yield submitted


def resident_nbytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_c3_a_flood_on_stdout_does_not_keep_a_caller_beyond_its_deadline(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            for request in requests():
                if lifecycle(request, "big", "flood"):
                    continue
                if request["slot_name"] == "big":
                    answer(request, "x" * 100000)
                while request["slot_name"] == "flood":
                    os.write(1, b"n\\n" * 32768)
            """,
            sidecar="stop_timeout: 0",
        )
    )
    for attempt in call_each_way(manager, "flood", {}, 0.5):
        manager.call("big")  # the host's buffer has grown
        began = time.monotonic()
        with pytest.raises(SlotTimeout):
            attempt()
        assert time.monotonic() - began < 10
        manager.reload_plugin("scripted")


def test_c3_a_flood_without_ids_does_not_keep_those_who_wait(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            for request in requests():
                put({"success": True, "data": "one"})
                while request["slot_name"] == "flood":
                    os.write(1, b"n\\n" * 20000)
            """,
            sidecar="stop_timeout: 0",
            manifest="slots: [{name: flood}]",
        )
    )
    futures = [manager.submit("flood", timeout=1) for _ in range(3)]
    began = time.monotonic()
    outcomes = [future.exception(20) for future in futures]
    assert time.monotonic() - began < 15
    assert outcomes[0] is None
    assert all(isinstance(outcome, SlotTimeout) for outcome in outcomes[1:])


def test_c4_a_request_larger_than_the_pipe_arrives_whoever_waits_for_it(manager, make_plugin):
    manager.load_plugin(make_plugin(ECHO))
    parameters = {"value": "y" * 3_000_000}
    for attempt in call_each_way(manager, "echo", parameters, 20):
        assert manager.call("echo", {}) == {}
        time.sleep(0.1)  # the monitor watches the idle channel again
        assert attempt() == parameters


def test_c4_a_host_response_larger_than_the_pipe_arrives_whoever_waits(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            lines = requests()
            for request in lines:
                if not lifecycle(request, "ask"):
                    put({"type": "host_call", "id": "h1", "function": "blob", "parameters": {}})
                    answer(request, len(next(lines)["data"]))
            """
        )
    )
    manager.set_host_callback("blob", lambda _: "z" * 2_000_000)
    for attempt in call_each_way(manager, "ask", {}, 20):
        assert attempt() == 2_000_000


def test_b10_an_envelope_inside_a_log_line_is_nobodys_answer(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                inner = {"success": True, "data": "somebody else's"}
                put({"level": "info", "response": inner})
                put({"type": "progress", "response": inner})
                print("LOG", json.dumps({"response": inner}), "end")
                print('{"cut off": ' + json.dumps(inner))
                put({"success": True, "data": "right"})
            """,
            manifest="slots: [{name: ask}]",
        )
    )
    assert [manager.call("ask") for _ in range(5)] == ["right"] * 5


def test_d6_a_guest_without_ids_that_hangs_on_a_cancelled_call_is_replaced(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                time.sleep(request["parameters"].get("seconds", 0))
                put({"success": True, "data": "ok"})
            """,
            sidecar="stop_timeout: 0",
            manifest="slots: [{name: ask}]",
        )
    )

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(manager.call_async("ask", {"seconds": 60}, timeout=1), 0.2)
        return await manager.call_async("ask", timeout=20)

    assert asyncio.run(main()) == "ok"


@pytest.mark.parametrize("nbytes", [1000, 60_000, 150_000, 3_000_000])
def test_a8_an_answer_before_the_end_is_delivered(manager, make_plugin, nbytes):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "last"):
                    answer(request, "x" * request["parameters"]["nbytes"])
                    os._exit(0)
            """
        )
    )
    for attempt in call_each_way(manager, "last", {"nbytes": nbytes}, 20):
        assert len(attempt()) == nbytes
        manager.reload_plugin("scripted")


def test_c6_the_callers_of_a_guest_that_closed_its_stdin_are_served_by_others(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "close"):
                    answer(request, os.getpid())
                    os.close(0)
                    time.sleep(60)
            """,
            sidecar="stop_timeout: 0",
        )
    )
    for attempt in call_each_way(manager, "close", {}, 20):
        deaf = manager.call("close")
        time.sleep(0.1)
        began = time.monotonic()
        assert attempt() not in (None, deaf)  # it has had nothing of the request
        assert time.monotonic() - began < 5
        manager.reload_plugin("scripted")


def test_h9_a_host_call_is_answered_whatever_its_function_does(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            lines = requests()
            for request in lines:
                if not lifecycle(request, "ask"):
                    put({"type": "host_call", "id": "1", **request["parameters"]})
                    answer(request, next(lines).get("error"))
            """,
            manifest="permissions: {filesystem: [data], network: ['https://api.example.com/*']}",
        )
    )

    def leave(parameters):
        raise SystemExit(3)

    manager.set_host_callback("set", lambda _: {1, 2})
    manager.set_host_callback("huge", lambda _: 2**70)
    manager.set_host_callback("leave", leave)
    for function, parameters in [
        ("set", {}), ("huge", {}), ("leave", {}), ("file_read", {"path": "a\0b"}),
        ("file_read", {"path": "data/" + "a/" * 5000}), ("http_request", {"url": "http://[::1"}),
        ("http_request", {"url": "https://api.example.com:99999999/"}), ("scope_get", [1]),
    ]:  # fmt: skip
        asked = {"function": function, "parameters": parameters}
        assert manager.call("ask", asked, timeout=10), function


def test_c1_a_guest_that_never_reads_is_refused_more_before_the_host_is_full(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                while not lifecycle(request, "ask"):
                    print("still here", flush=True)  # or it would be taken to hang
                    time.sleep(0.001)
            """,
            sidecar="stop_timeout: 0",
        )
    )
    before = resident_nbytes()
    refused = None
    for _ in range(300):
        try:
            manager.call("ask", {"value": "y" * 1_000_000}, timeout=0.01)
        except SlotTimeout:
            continue
        except PluginUnavailable as error:
            refused = error
            break
    assert "does not read its input" in str(refused)
    assert resident_nbytes() - before < 150_000_000


def test_b12_a_flood_of_host_calls_whose_answers_are_not_read_is_bounded(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            line = b'{"type":"host_call","id":"1","function":"blob","parameters":{}}\\n'
            for request in requests():
                while not lifecycle(request, "flood"):
                    os.write(1, line * 100)
            """,
            sidecar="stop_timeout: 0",
        )
    )
    manager.set_host_callback("blob", lambda _: "z" * 100_000)
    before = resident_nbytes()
    with pytest.raises(SlotTimeout):
        manager.call("flood", timeout=3)
    assert resident_nbytes() - before < 250_000_000


def test_futures_do_not_hold_their_answers_until_their_deadline(manager, make_plugin):
    manager.load_plugin(make_plugin(ECHO))
    gc.collect()
    before = resident_nbytes()
    for _ in range(300):
        manager.submit("echo", {"value": "x" * 1_000_000}).result()
    assert resident_nbytes() - before < 100_000_000


def test_a_timeout_beyond_all_clocks_is_no_timeout(manager, make_plugin):
    manager.load_plugin(make_plugin(ECHO))
    for timeout in (1e12, float("inf")):
        for attempt in call_each_way(manager, "echo", {"n": 1}, 60):
            assert attempt() == {"n": 1}
        assert manager.submit("echo", {"n": 2}, timeout=timeout).result(20) == {"n": 2}
        assert manager.call("echo", {"n": 3}, timeout=timeout) == {"n": 3}
    future = manager.submit("echo", {"n": 4}, timeout=5)
    assert not wait([future], 10).not_done  # the monitor is alive


def test_d6_an_interrupt_of_the_leader_leaves_the_channel_to_the_others(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            import threading
            def work(request):
                time.sleep(request["parameters"].get("seconds", 0))
                answer(request, request["parameters"])
            for request in requests():
                if not lifecycle(request, "echo"):
                    threading.Thread(target=work, args=(request,)).start()
            """,
            sidecar="stop_timeout: 0",
        )
    )
    answers = []
    follower = threading.Thread(
        target=lambda: answers.append(manager.call("echo", {"seconds": 1}, timeout=20))
    )
    main = threading.main_thread().ident
    threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGINT]).start()
    follower.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        manager.call("echo", {"seconds": 5}, timeout=20)
    assert time.monotonic() - began < 4
    follower.join(20)
    assert answers == [{"seconds": 1}]
    assert manager.call("echo", {"n": 1}) == {"n": 1}


def test_a12_a_guest_that_hangs_is_replaced_although_it_returns_ids(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "echo"):
                    time.sleep(request["parameters"].get("seconds", 0))
                    answer(request, request["parameters"])
            """,
            sidecar="stop_timeout: 0\ncancel_timeout: 500ms",
        )
    )
    pid = manager.get_plugin("scripted").status()["pid"]
    for seconds in (60, 0, 0):
        with pytest.raises(SlotTimeout):
            manager.call("echo", {"seconds": seconds}, timeout=0.1)
    with pytest.raises(PluginCrashed, match="said nothing at all after a call had timed out"):
        manager.call("echo", {"n": 1}, timeout=20)
    assert manager.call("echo", {"n": 1}, timeout=20) == {"n": 1}
    assert manager.get_plugin("scripted").status()["pid"] != pid


def test_a_busy_guest_that_says_something_is_not_replaced(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "echo"):
                    for _ in range(10):
                        time.sleep(0.03)
                        print("working", flush=True)
                    answer(request, request["parameters"])
            """
        )
    )
    pid = manager.get_plugin("scripted").status()["pid"]
    for _ in range(4):
        with pytest.raises(SlotTimeout):
            manager.call("echo", {}, timeout=0.1)
    assert manager.call("echo", {"n": 1}, timeout=20) == {"n": 1}
    assert manager.get_plugin("scripted").status()["pid"] == pid


@pytest.mark.parametrize("names_its_call", [True, False])
def test_each_of_many_calls_has_its_own_scope(manager, make_plugin, names_its_call):
    manager.load_plugin(
        make_plugin(
            f"""
            import threading
            waiting = {{}}
            lock = threading.Lock()
            def work(request):
                mine = {{"type": "host_call", "id": "h" + request["id"], "function": "scope_get",
                        "parameters": {{"key": "user"}}}}
                if {names_its_call}:
                    mine["call_id"] = request["id"]
                event = waiting[mine["id"]] = threading.Event()
                with lock:
                    put(mine)
                event.wait()
                response = waiting.pop(mine["id"])
                with lock:
                    answer(request, response.get("data") or response["error"])
            for request in requests():
                if request.get("type") == "host_response":
                    event = waiting[request["id"]]
                    waiting[request["id"]] = request
                    event.set()
                elif not lifecycle(request, "who"):
                    threading.Thread(target=work, args=(request,)).start()
            """,
            manifest="permissions: {scope: read}",
        )
    )
    futures = [manager.submit("who", scope={"user": number}) for number in range(20)]
    answers = [future.result(20) for future in futures]
    if names_its_call:
        assert answers == [{"value": number} for number in range(20)]
        return
    # Which of several calls it is about is not known, and another's scope is never shown.
    for number, answer in enumerate(answers):
        assert answer == {"value": number} or "call_id" in answer
