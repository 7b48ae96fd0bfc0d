"""B9 to B12: answers that are no JSON or nobody's, many at once, and host calls out of bounds."""

from __future__ import annotations

import functools
import random
import threading
import time

import pytest
from fault.bounds import call_each_way, pid_of, watch_memory, within

from zeno_fast import PluginUnavailable, ProtocolError, SlotError, SlotTimeout, ZenoError

pytestmark = pytest.mark.usefixtures("healthy")

# Answers with whatever text it is given in place of the data, or of the whole envelope.
RAW = """
for request in requests():
    if request.get("type") != "host_response" and not lifecycle(request, "work"):
        text = request["parameters"]["text"]
        if request["parameters"].get("whole"):
            id = request["id"] if request["id"] in frame(request, "") else ""
            text = text.replace("ID", '"id":' + json.dumps(id))
        else:
            text = frame(request, text)
        write(text.encode("latin-1") + b"\\n")
"""


# -- B9: JSON --------------------------------------------------------------------------------------


ODD = {
    '{"a":1,"b":2,"a":3}': {"a": 3, "b": 2},
    "9007199254740993": 2**53 + 1,
    "-9007199254740993": -(2**53) - 1,
    "18446744073709551615": 2**64 - 1,
    "18446744073709551616": 2.0**64,
    "1e-400": 0.0,
    "-0.0": 0.0,
    '"\\ud834\\udd1e\\u0000"': "𝄞\0",
    ' { "a" : [ ] } ': {"a": []},
    "[" * 100 + "]" * 100: functools.reduce(lambda inner, _: [inner], range(99), []),
}


def test_b9_json_that_is_odd_but_valid_is_taken_as_it_is(manager, load):
    load(RAW)
    for text, expected in ODD.items():
        for attempt in call_each_way(manager, "work", {"text": text}, 10):
            with within(10):
                data = attempt()
            assert (data, type(data)) == (expected, type(expected)), text
            assert manager.call("work", {"text": "7"}, timeout=10) == 7


NO_JSON = {
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "10 ** 400": "1" + "0" * 400,
    "1e400": "1e400",
    "a lone surrogate": '"\\ud800"',
    "bytes that are no UTF-8": '"\xff\xfe"',
    "UTF-8 of a surrogate": '"\xed\xa0\x80"',
    "a text that is cut off": '"abc',
    "an object that is cut off": '{"a":[1,',
    "a comma too many": "[1,]",
    "a depth of 100,000": "[" * 100_000 + "]" * 100_000,
    "100,000 open objects": '{"a":' * 100_000,
    "brackets that do not fit": "[}" * 1000,
}


@pytest.mark.parametrize("text", NO_JSON.values(), ids=NO_JSON)
def test_b9_an_answer_that_is_no_json_fails_its_call_and_no_other(manager, load, style, text):
    load(RAW)
    if style == "no-ids":
        # Without an id such a line may be anything: its call ends at its deadline at the latest.
        with within(8), pytest.raises((ProtocolError, SlotTimeout)):
            manager.call("work", {"text": text}, timeout=0.2)
        assert manager.call("work", {"text": "7"}, timeout=20) == 7
        return
    for attempt in call_each_way(manager, "work", {"text": text}, 20):
        with within(8), pytest.raises(ProtocolError):
            attempt()
        assert manager.call("work", {"text": "7"}, timeout=20) == 7


ENVELOPES = [
    '{ID,"success":true}', '{ID,"success":null}', '{ID,"success":1,"data":1}', '{ID,"success":"x"}',
    '{ID,"success":[],"error":{"a":[]}}', '{ID,"success":true,"success":false,"error":7}',
    '{"type":7,ID,"success":true}', '{"type":null,ID,"success":true,"data":1}', "{ID}", "{}", "[]",
    "null", '"text"', '{"type":"guest_response"}', '{"type":"host_call",ID}',
    '{"type":"host_call"}', '{"type":"host_call","id":{"a":1},"function":["x"],"parameters":"x"}',
    '{"type":"guest_chunk",ID}', '{"type":"guest_call",ID,"slot_name":"work","parameters":{}}',
    '{"type":"host_response",ID,"success":true,"data":1}', '{"type":"cancel",ID}',
]  # fmt: skip


def test_b9_an_envelope_of_any_shape_has_a_defined_result(manager, load):
    load(RAW)
    for text in ENVELOPES:
        with within(8):
            try:
                data = manager.call("work", {"text": text, "whole": True}, timeout=0.1)
            except (SlotError, ProtocolError, SlotTimeout):
                continue
            finally:
                assert manager.call("work", {"text": "7"}, timeout=20) == 7, text
        assert data in (None, 1), text


# -- B10: whose answer it is -----------------------------------------------------------------------


def test_b10_an_answer_under_another_id_is_dropped_and_counted(manager, load_as):
    load_as(
        "ids",
        """
        last = "none"
        for request in requests():
            if lifecycle(request, "work"):
                continue
            prefix, _, number = request["id"].rpartition(".")
            n = int(number)
            wrong = [n, float(n), [request["id"]], {"id": request["id"]}, True, number,
                     request["id"] + "\\0", " " + request["id"], request["id"].upper() + "x",
                     prefix, prefix + ".", prefix + ".0" + number, prefix + ".+" + number,
                     prefix + f".{n + 10**6}", prefix + f".{n + 2**32}", prefix + f".{n + 2**64}",
                     prefix + f".{n - 2**64}", prefix + "." + "9" * 40, "x" * 100000, last]
            for id in wrong:
                put({"type": "guest_response", "id": id, "success": True, "data": "wrong"})
                put({"type": "guest_response", "id": id, "success": False, "error": "wrong"})
            answer(request, request["parameters"])
            answer(request, "repeated")
            last = request["id"]
        """,
    )
    before = manager.get_plugin("scripted").status()["stray_answers"]
    with within(30):
        for n in range(10):
            assert manager.call("work", {"n": n}, timeout=10) == {"n": n}
        futures = [manager.submit("work", {"n": n}, timeout=10) for n in range(50)]
        assert [future.result(20) for future in futures] == [{"n": n} for n in range(50)]
    assert manager.get_plugin("scripted").status()["stray_answers"] - before >= 59 * 40


def test_b10_an_answer_that_is_sent_twice_is_nobody_elses(manager, load):
    load(
        """
        for request in requests():
            if not lifecycle(request, "work"):
                write(envelope(request, request["parameters"]) * 3)
        """
    )
    with within(30):
        for n in range(50):
            assert manager.call("work", {"n": n}, timeout=10) == {"n": n}
        futures = [manager.submit("work", {"n": n}, timeout=10) for n in range(50)]
        assert [future.result(20) for future in futures] == [{"n": n} for n in range(50)]
    assert manager.get_plugin("scripted").status()["stray_answers"] >= 99 * 2


def test_b10_the_answer_to_a_call_that_timed_out_is_nobody_elses(manager, load, style):
    load(
        """
        for request in requests():
            if not lifecycle(request, "work"):
                time.sleep(request["parameters"].get("seconds", 0))
                answer(request, request["parameters"])
        """,
        sidecar="stop_timeout: 5",
    )
    before = pid_of(manager)
    for attempt in call_each_way(manager, "work", {"seconds": 0.3}, 0.1):
        with within(5), pytest.raises(SlotTimeout):
            attempt()
        for n in range(5):
            assert manager.call("work", {"n": n}, timeout=10) == {"n": n}
    status = manager.get_plugin("scripted").status()
    if style == "ids":
        assert (status["pid"], status["late_answers"]) == (before, 3)
    else:
        assert status["pid"] != before


def test_b10_an_answer_to_what_is_no_call_is_dropped_and_counted(manager, load):
    load(
        """
        for request in requests():
            if request.get("type") == "host_response":
                put({"type": "guest_response", "id": request["id"], "success": True,
                     "data": "wrong"})
                put({"id": request["id"], "success": True, "data": "wrong"})
                answer(asked, asked["parameters"])
            elif not lifecycle(request, "work"):
                asked = request
                put({"type": "host_call", "id": "db1", "function": "note", "parameters": {}})
        """
    )
    manager.set_host_callback("note", lambda _: None)
    with within(30):
        for n in range(20):
            assert manager.call("work", {"n": n}, timeout=10) == {"n": n}
    assert manager.get_plugin("scripted").status()["stray_answers"] == 40


# -- B11: many at once -----------------------------------------------------------------------------


def test_b11_a_thousand_calls_in_flight_get_their_own_answers(manager, load, style):
    # A guest without ids is given one at a time and answers in order; the host holds the others.
    load(
        f"""
        import random
        held = []
        for request in requests():
            if not lifecycle(request, "work"):
                held.append(request)
                if len(held) == {1000 if style == "ids" else 1}:
                    random.Random(7).shuffle(held)
                    for request in held:
                        answer(request, request["parameters"])
                    held.clear()
        """
    )
    order = list(range(1000))
    random.Random(8).shuffle(order)
    for _ in range(3):  # from ids of two digits to those of four
        with within(30):
            futures = {n: manager.submit("work", {"n": n}, timeout=20) for n in order}
            for n, future in futures.items():
                assert future.result(30) == {"n": n}
    status = manager.get_plugin("scripted").status()
    assert (status["in_flight"], status["queued"], status["stray_answers"]) == (0, 0, 0)


# -- B12: host calls -------------------------------------------------------------------------------


def test_b12_a_flood_of_host_calls_is_refused_in_part_and_answered_in_full(manager, load):
    load(
        """
        done = []
        for request in requests():
            if request.get("type") == "host_response":
                done.append(request)
                if len(done) == 500:
                    right = sorted(one["id"] for one in done) == sorted(
                        f"h{n}" for n in range(500))
                    answer(asked, [right, sum(one["success"] for one in done),
                                   sorted({one.get("error", "") for one in done})])
                    done.clear()
            elif not lifecycle(request, "work"):
                asked = request
                for n in range(500):
                    put({"type": "host_call", "id": f"h{n}", "function": "slow",
                         "parameters": {}})
        """
    )
    release = threading.Event()
    running = [0, 0]
    lock = threading.Lock()

    def slow(_):
        with lock:
            running[0] += 1
            running[1] = max(running)
        release.wait(30)
        with lock:
            running[0] -= 1

    manager.set_host_callback("slow", slow)
    growth = watch_memory()
    with within(30):
        future = manager.submit("work", timeout=25)
        deadline = time.monotonic() + 20
        while running[0] < 64 and time.monotonic() < deadline:
            time.sleep(0.005)
        release.set()
        right, succeeded, errors = future.result(30)
    assert right
    assert 64 <= succeeded < 500
    assert running[1] <= 64
    assert any("host calls at the same time" in error for error in errors)
    assert growth() < 64 * 1024 * 1024
    assert manager.call("work", timeout=20)[0]  # and again, with all of them free


DIVE = """
import threading
waiting = {}
lock = threading.Lock()
def work(request):
    id = "h" + request["id"]
    event = waiting[id] = threading.Event()
    with lock:
        put({"type": "host_call", "id": id, "call_id": request["id"], "function": "again",
             "parameters": {"depth": request["parameters"]["depth"] + 1}})
    event.wait()
    response = waiting.pop(id)
    with lock:
        if response["success"]:
            answer(request, response["data"])
        else:
            fail(request, response["error"])
for request in requests():
    if request.get("type") == "host_response":
        event = waiting[request["id"]]
        waiting[request["id"]] = request
        event.set()
    elif not lifecycle(request, "dive"):
        threading.Thread(target=work, args=(request,), daemon=True).start()
"""


def test_b12_a_recursion_of_slots_and_host_functions_is_refused_at_a_depth(manager, load_as):
    load_as("ids", DIVE)
    deepest = []

    def again(parameters):
        deepest.append(parameters["depth"])
        return manager.call("dive", parameters)

    manager.set_host_callback("again", again)
    for _ in range(2):  # nothing of the first is left
        with within(15), pytest.raises(SlotError):
            manager.call("dive", {"depth": 0}, timeout=10)
        assert 31 <= max(deepest) <= 33
        deepest.clear()


def test_b12_a_host_function_that_calls_its_waiting_guest_is_refused_at_once(manager, load_as):
    load_as("no-ids", DIVE)
    raised = []

    def again(parameters):
        try:
            return manager.call("dive", parameters)
        except ZenoError as error:
            raised.append(error)
            return "went on without"

    manager.set_host_callback("again", again)
    before = pid_of(manager)
    with within(5):
        assert manager.call("dive", {"depth": 0}, timeout=10) == "went on without"
    assert [type(error) for error in raised] == [PluginUnavailable]
    assert "scripted" in str(raised[0])
    assert pid_of(manager) == before


def test_b12_a_host_call_after_its_slot_call_has_ended_sees_nobodys_scope(manager, load):
    load(
        """
        lines = requests()
        held = []
        ended = None
        def ask(call):
            put({"type": "host_call", "id": "late", "function": "scope_get", "call_id": call,
                 "parameters": {"key": "user"}})
            for message in lines:
                if message.get("type") == "host_response":
                    return message
                held.append(message)
        while request := held.pop() if held else next(lines, None):
            if not lifecycle(request, "work"):
                own = ask(request["id"])["data"]["value"]
                others = ask(ended)["success"] if ended else None
                answer(request, [own, others])
                ended = request["id"]
                ask(ended)  # mostly when no call is pending at all
        """,
        manifest="permissions: {scope: read}",
    )
    for n in range(10):
        with within(10):
            told = manager.call("work", scope={"user": n}, timeout=10)
        assert told == [n, None if n == 0 else False]
