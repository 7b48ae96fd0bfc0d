"""Which answer belongs to which call, whatever else the guest prints."""

from __future__ import annotations

import logging
import os
import signal
import threading
from concurrent.futures import wait

import orjson
import pytest

from zeno_fast import PluginCrashed, PluginManager, ProtocolError, SlotError, SlotTimeout

NO_IDS = """
for request in requests():
    slot = request["slot_name"]
    if slot == "plugin_init" or slot == "plugin_register_slots":
        put({"success": True, "data": {"error": "Unknown slot"}})
    elif slot == "sleep":
        time.sleep(request["parameters"]["seconds"])
        put({"success": True, "data": "late"})
    elif slot == "twice":
        sys.stdout.write('{"success":true,"data":"first"}\\n{"success":true,"data":"stray"}\\n')
        sys.stdout.flush()
    else:
        put({"success": True, "data": request["parameters"]})
"""


def test_a_guest_without_ids_answers_each_caller_its_own(manager, make_plugin):
    manager.load_plugin(make_plugin(NO_IDS))
    wrong = []

    def run(number):
        for step in range(200):
            sent = {"n": [number, step]}
            if manager.execute_slot("scripted", "echo", sent).data != sent:
                wrong.append(sent)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    assert manager.get_plugin("scripted").status()["returns_ids"] is False


def test_a_guest_without_ids_that_let_a_call_time_out_is_replaced(manager, make_plugin):
    manager.load_plugin(make_plugin(NO_IDS))
    before = manager.get_plugin("scripted").status()["pid"]
    with pytest.raises(SlotTimeout, match="'sleep'"):
        manager.execute_slot("scripted", "sleep", {"seconds": 0.3}, timeout=0.1)
    assert manager.execute_slot("scripted", "echo", {"a": 1}).data == {"a": 1}
    assert manager.get_plugin("scripted").status()["pid"] != before


def test_callers_queued_behind_a_hung_call_without_ids_are_served_by_the_next_process(
    manager, make_plugin
):
    manager.load_plugin(make_plugin(NO_IDS, manifest="slots: [{name: echo}, {name: sleep}]"))
    hung = manager.submit("sleep", {"seconds": 5}, timeout=0.3)
    queued = [manager.submit("echo", {"n": n}, timeout=10) for n in range(5)]
    assert [future.result() for future in queued] == [{"n": n} for n in range(5)]
    assert isinstance(hung.exception(), SlotTimeout)


def test_a_repeated_line_without_an_id_is_never_the_next_callers_answer(manager, make_plugin):
    manager.load_plugin(make_plugin(NO_IDS, manifest="slots: [{name: echo}, {name: twice}]"))
    for step in range(50):
        futures = [manager.submit("twice"), manager.submit("echo", {"n": step})]
        assert [future.result(10) for future in futures] == ["first", {"n": step}]


def test_an_answer_begun_before_the_call_was_sent_is_nobodys(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            def say(text):
                sys.stdout.write(text)
                sys.stdout.flush()

            for request in requests():
                slot = request["slot_name"]
                if slot.startswith("plugin_"):
                    put({"success": True, "data": []})
                elif slot == "half":
                    say('{"success":true,"data":"whole"}\\n{"success":true,"data":"nobodys"')
                elif slot == "prompt":
                    say('}\\n{"success":true,"data":"mine"}\\nprompt> ')
                else:
                    put({"success": True, "data": "behind the prompt"})
            """
        )
    )
    for _ in range(20):
        answers = [manager.execute_slot("scripted", slot).data for slot in ("half", "prompt", "a")]
        assert answers == ["whole", "mine", "behind the prompt"]
    assert manager.get_plugin("scripted").status()["stray_answers"] == 20


def test_answers_may_come_in_any_order(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            held = []
            for request in requests():
                if lifecycle(request, "echo"):
                    continue
                held.append(request)
                if len(held) == 100:
                    for request in reversed(held):
                        answer(request, request["parameters"]["n"])
                    held.clear()
            """
        )
    )
    futures = [manager.submit("echo", {"n": n}) for n in range(100)]
    assert not wait(futures, 10).not_done
    assert [future.result() for future in futures] == list(range(100))


HOLDS_BACK = """
held = {}
for request in requests():
    if lifecycle(request, "echo", "hold", "let_go"):
        continue
    value = request["parameters"].get("value")
    if request["slot_name"] == "hold":
        held[value] = request
    elif request["slot_name"] == "let_go":
        answer(held.pop(value), value)
        answer(request, len(held))
    else:
        answer(request, value)
"""


def test_calls_that_wait_while_thousands_pass_get_their_own_answers(manager, make_plugin):
    """Whatever their numbers have in common: these are 64 calls apart, over five thousand."""
    manager.load_plugin(make_plugin(HOLDS_BACK))
    held = {}
    for value in range(80):
        held[value] = manager.submit("hold", {"value": value}, timeout=60)
        assert [*manager.map("echo", ({"value": n} for n in range(63)))] == [*range(63)]
    status = manager.get_plugin("scripted").status()
    assert status["in_flight"] == 80
    for left, value in enumerate(reversed(range(0, 80, 2))):
        assert manager.call("let_go", {"value": value}) == 79 - left
        assert held.pop(value).result(10) == value
    os.kill(status["pid"], signal.SIGKILL)
    for future in held.values():
        assert isinstance(future.exception(10), PluginCrashed)
    assert manager.call("echo", {"value": 1}) == 1
    assert manager.get_plugin("scripted").status()["in_flight"] == 0


SCALARS = [
    "0", "7", "-7", "00", "01", "+1", "1.5", "1e3", "999999999999999999", "1000000000000000000",
    "18446744073709551615", "18446744073709551616", "1 ", " 1", "1x", "null", "nul", "nulL", "true",
    "True", "false", "falsy", '""', '"', '"a"', '"a', 'a"', '"a"b"', r'"\n"', r'"\u0041"', r'"\"',
    r'"\\"', '"\x7f"', '"\x01"', '"\t"', '"é"', '"\u2028"', f'"{61 * "x"}"', f'"{70 * "x"}"', "NaN",
    "Infinity", "-0", "[]", "{}", '"",""', "1,2",
]  # fmt: skip


def test_plain_answers_are_what_a_json_parser_makes_of_them(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "say"):
                    text = request["parameters"]["text"]
                    sys.stdout.write('{"type":"guest_response","id":"%s","success":true,"data":%s}\\n'
                                     % (request["id"], text))
                    sys.stdout.flush()
            """
        )
    )
    for text in SCALARS:
        try:
            expected = orjson.loads(text)
        except orjson.JSONDecodeError:
            with pytest.raises(ProtocolError):
                manager.call("say", {"text": text})
        else:
            found = manager.call("say", {"text": text})
            assert (type(found), found) == (type(expected), expected)


def test_unknown_repeated_and_malformed_ids_are_never_delivered(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if lifecycle(request, "echo"):
                    continue
                for id in ("z.1", 7, 7.5, ["a"], {"a": 1}, True, request["id"] + "0"):
                    put({"type": "guest_response", "id": id, "success": True, "data": "wrong"})
                answer(request, "right")
                answer(request, "repeated")
            """
        )
    )
    assert [manager.call("echo") for _ in range(20)] == ["right"] * 20
    assert manager.get_plugin("scripted").status()["stray_answers"] >= 20 * 7


def test_a_late_answer_is_dropped(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "echo"):
                    time.sleep(request["parameters"].get("seconds", 0))
                    answer(request, request["parameters"])
            """
        )
    )
    with pytest.raises(SlotTimeout):
        manager.call("echo", {"seconds": 0.2}, timeout=0.05)
    assert manager.call("echo", {"n": 2}) == {"n": 2}


def test_an_answer_that_lost_its_id_is_an_error_and_never_somebodys_answer(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "echo"):
                    put({"success": False, "error": "no id in the error path"})
            """
        )
    )
    with pytest.raises(ProtocolError, match="without an id"):
        manager.call("echo", timeout=10)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"type":"guest_response","id":ID,"success":true,"data":[1,"a",null]}', [1, "a", None]),
        ('{"type":"guest_response","id":ID,"success":true}', None),
        ('{"type":"guest_response","id":ID,"success":true,"data":5,"error":""}', 5),
        ('{"id":ID,"success":true,"data":"typeless"}', "typeless"),
        ('{"type":"","id":ID,"success":true,"data":6}', 6),
        ('  {"type":"guest_response","id":ID,"success":true,"data":7} \\r', 7),
        ('\\ufeff{"type":"guest_response","id":ID,"success":true,"data":8}', 8),
        ('1{"type":"guest_response","id":ID,"success":true,"data":9}', 9),
        ('{{{ "x" {"type":"guest_response","id":ID,"success":true,"data":"{}"}bye', "{}"),
        ('\\0{"type":"guest_response","id":ID,"success":true,"data":10}\\0', 10),
    ],
)
def test_an_answer_is_found_in_what_surrounds_it(manager, make_plugin, answer, expected):
    manager.load_plugin(
        make_plugin(
            f"""
            for request in requests():
                if not lifecycle(request, "echo"):
                    print('{answer}'.replace("ID", json.dumps(request["id"])), flush=True)
            """
        )
    )
    assert manager.call("echo", timeout=10) == expected


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ('{"type":"guest_response","id":ID,"success":false,"error":"no"}', "no"),
        ('{"type":"guest_response","id":ID,"success":false,"error":{"code":7}}', '{"code":7}'),
        ('{"type":"guest_response","id":ID,"success":false}', "without a reason"),
        ('{"type":"guest_response","id":ID,"success":false,"error":null}', "without a reason"),
    ],
)
def test_a_failure_is_a_slot_error_with_the_guests_text(manager, make_plugin, answer, message):
    manager.load_plugin(
        make_plugin(
            f"""
            for request in requests():
                if not lifecycle(request, "echo"):
                    print('{answer}'.replace("ID", json.dumps(request["id"])), flush=True)
            """
        )
    )
    with pytest.raises(SlotError) as caught:
        manager.call("echo", timeout=10)
    assert message in str(caught.value)


def test_section_5_one_line_of_noise_ended_the_reader(manager, make_plugin, caplog):
    manager.load_plugin(
        make_plugin(
            """
            print("a banner", "x" * 1_000_000, flush=True)
            for request in requests():
                if not lifecycle(request, "echo"):
                    print('{"level":"info","msg":"a log line in JSON"}')
                    print("not json at all\\n\\n\\r\\n[1,2]\\n\\xff\\xfe")
                    answer(request, "answered")
            """
        )
    )
    with caplog.at_level(logging.INFO, "zeno_fast.plugin.scripted"):
        assert manager.call("echo", timeout=10) == "answered"
    assert "not json at all" in caplog.text
    assert manager.get_plugin("scripted").status()["noise_lines"] >= 4


def test_noise_is_an_error_where_the_manifest_says_strict(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "echo"):
                    print("oops", flush=True)
            """,
            sidecar="strict: true",
        )
    )
    with pytest.raises(ProtocolError, match="oops"):
        manager.call("echo", timeout=10)


def test_section_5_results_that_are_lists_strings_or_numbers_were_lost(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "echo"):
                    answer(request, request["parameters"]["value"])
            """
        )
    )
    for value in ([1, 2], "text", 5, 1.5, True, None, {"a": {}}, [], ""):
        assert manager.call("echo", {"value": value}) == value


def test_section_5_many_callers_of_64_kib_hung_for_good(manager: PluginManager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if not lifecycle(request, "echo"):
                    answer(request, request["parameters"]["value"])
            """
        )
    )
    value = "x" * 65536
    futures = [manager.submit("echo", {"value": value}) for _ in range(64)]
    assert all(future.result(30) == value for future in futures)
