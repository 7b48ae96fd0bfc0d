"""B1 to B4, B7 and B8: noise, greetings and framing of guests that answer in either style."""

from __future__ import annotations

import logging
import time

import pytest
from fault.bounds import MIB, pid_of, watch_memory, within

from zeno_fast import PluginCrashed, PluginLoadError, ProtocolError, SlotTimeout

pytestmark = pytest.mark.usefixtures("healthy")
LOGGER = "zeno_fast.plugin.scripted"

ECHO = """
for request in requests():
    if not lifecycle(request, "work"):
        answer(request, request["parameters"])
"""


def logged(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.name == LOGGER)


# -- B1 to B3: what stands on stdout beside the messages -------------------------------------------


def test_b1_junk_before_between_and_around_messages_is_logged_and_skipped(manager, load, caplog):
    caplog.set_level(logging.INFO, LOGGER)
    load(
        """
        print("banner before anything was asked", flush=True)
        for request in requests():
            if lifecycle(request, "work"):
                print("junk between two messages", flush=True)
            else:
                write(b"junk in a large write " * 20000 + b"\\n{not json}\\n"
                      + envelope(request, request["parameters"]) + b"junk behind an answer\\n")
        """
    )
    with within(30):
        for n in range(20):
            assert manager.call("work", {"n": n}, timeout=20) == {"n": n}
    for junk in ("banner before anything", "junk between two", "junk in a large", "{not json}"):
        assert junk in logged(caplog)
    # One before the greeting, one behind each of its two answers, three around every other.
    assert manager.get_plugin("scripted").status()["noise_lines"] >= 3 + 3 * 20 - 1
    assert "junk behind an answer" in logged(caplog)


def test_b1_junk_is_an_error_where_the_manifest_says_strict(manager, load):
    load(
        """
        for request in requests():
            if not lifecycle(request, "work"):
                if request["parameters"]:
                    print("an unexpected line", flush=True)
                answer(request, "answered")
        """,
        sidecar="strict: true\nstop_timeout: 0",
    )
    before = pid_of(manager)
    with within(10), pytest.raises(ProtocolError, match="an unexpected line"):
        manager.call("work", {"junk": True}, timeout=20)
    assert manager.call("work", timeout=20) == "answered"
    assert pid_of(manager) != before


def test_b1_junk_before_the_greeting_ends_a_load_where_the_manifest_says_strict(manager, load):
    with within(10), pytest.raises((PluginLoadError, ProtocolError), match="a banner"):
        load("print('a banner', flush=True)\n" + ECHO, sidecar="strict: true\nstop_timeout: 0")
    assert manager.list_plugins() == [manager.get_plugin("healthy")]


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (b"1", b"\n"), (b"50 % done", b"\n"), (b"", b"bye\n"), (b"", b"\r\n"),
        (b"\xef\xbb\xbf", b"\r\r\n"), (b"\0", b"\0\n"), (b"\0\0", b"\r\n\0"),
        (b"10 %\r20 %\r", b"\n"), (b"\r", b"\r\n\r\n\n"), (b"\x1b[0m", b"\x1b[0m\n"),
    ],
    ids=repr,
)  # fmt: skip
def test_b2_an_answer_is_found_whatever_is_glued_to_it(manager, load, before, behind):
    load(
        f"""
        for request in requests():
            if request["slot_name"] == "plugin_init":
                data = {{"name": "scripted"}}
            elif request["slot_name"] == "plugin_register_slots":
                data = [{{"name": "work"}}]
            else:
                data = request["parameters"]
            write({before!r} + envelope(request, data)[:-1] + {behind!r})
        """
    )
    with within(20):
        for n in range(10):
            sent = {"n": n, "text": '}\n{"success":true,"data":"not this"}\r\0'}
            assert manager.call("work", sent, timeout=10) == sent


@pytest.mark.parametrize("between", [b"", b"\r", b"\0", b" and "], ids=repr)
def test_b2_two_answers_on_one_line_reach_both_callers(manager, load_as, between):
    load_as(
        "ids",
        f"""
        held = []
        for request in requests():
            if not lifecycle(request, "work"):
                held.append(envelope(request, request["parameters"])[:-1])
                if len(held) == 2:
                    write({between!r}.join(held) + b"\\n")
                    held.clear()
        """,
    )
    with within(10):
        futures = [manager.submit("work", {"n": n}, timeout=20) for n in range(2)]
        assert [future.result(30) for future in futures] == [{"n": 0}, {"n": 1}]


def test_b3_what_a_library_printed_and_c_flushes_at_the_end_harms_no_call(manager, load, caplog):
    caplog.set_level(logging.INFO, LOGGER)
    load(
        """
        import ctypes
        print("imported,", end=" ")  # comes with the first answer, on its line
        print("in Python")
        print("unfinished", end="")
        libc = ctypes.CDLL(None)
        libc.printf(b"loaded in C\\nno end of line")  # kept until the process ends
        for request in requests():
            if not lifecycle(request, "work", "leave"):
                if request["slot_name"] == "leave":
                    sys.exit(4)
                answer(request, request["parameters"])
        """
    )
    for n in range(5):
        assert manager.call("work", {"n": n}, timeout=10) == {"n": n}
    assert "imported, in Python" in logged(caplog)
    assert "unfinished" in logged(caplog)
    with within(10), pytest.raises(PluginCrashed, match="exit status 4"):
        manager.call("leave", timeout=20)
    assert "loaded in C" in logged(caplog)
    assert "no end of line" in logged(caplog)
    assert manager.call("work", {"n": 5}, timeout=20) == {"n": 5}
    with within(10):
        manager.unload_plugin("scripted")


# -- B4: the greeting ------------------------------------------------------------------------------


@pytest.mark.parametrize("instead", ["time.sleep(60)", "while True: write(b'n\\n' * 30000)"])
def test_b4_a_guest_that_never_greets_is_given_up_on_time_with_its_stderr(
    manager, load, caplog, instead
):
    caplog.set_level(logging.WARNING, LOGGER)
    with within(20):
        load(
            f"""
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            print("waiting for the licence server", file=sys.stderr, flush=True)
            for request in requests():
                if request["slot_name"].startswith("plugin_"):
                    {instead}
                answer(request, request["parameters"])
            """,
            sidecar="timeout: 0.5\nstop_timeout: 0",
            manifest="slots: [{name: work}]",
        )
    assert "waiting for the licence server" in logged(caplog)
    with within(20):
        assert manager.call("work", {"n": 1}, timeout=20) == {"n": 1}


def test_b4_a_late_greeting_is_nobodys_answer(manager, load):
    with within(20):
        load(
            """
            for request in requests():
                if request["slot_name"] == "plugin_init":
                    time.sleep(0.5)
                if not lifecycle(request, "work"):
                    answer(request, request["parameters"])
            """,
            sidecar="timeout: 0.2\nstop_timeout: 0",
            manifest="slots: [{name: work}]",
        )
    for n in range(10):
        assert manager.call("work", {"n": n}, timeout=10) == {"n": n}


@pytest.mark.parametrize("version", [1, "1.0", "1.99", None])
def test_b4_this_major_version_is_taken_with_whatever_else_the_greeting_says(
    manager, load, version
):
    load(
        f"""
        for request in requests():
            if request["slot_name"] == "plugin_init":
                answer(request, {{"name": "scripted", "version": "3.2.1", "protocol": {version!r},
                                 "features": ["unheard-of", 7, None], "nobody knows": [[]],
                                 "type": "guest_response", "id": "7"}})
            elif not lifecycle(request, "work"):
                answer(request, request["parameters"])
        """
    )
    assert manager.call("work", {"n": 1}, timeout=10) == {"n": 1}


@pytest.mark.parametrize("version", [7, "7.1", 0])
def test_b4_another_major_version_is_a_load_error_that_names_both(manager, load, version):
    with within(10), pytest.raises(PluginLoadError) as caught:
        load(
            f"""
            for request in requests():
                if request["slot_name"] == "plugin_init":
                    answer(request, {{"name": "scripted", "protocol": {version!r}}})
                elif not lifecycle(request, "work"):
                    answer(request, request["parameters"])
            """
        )
    text = str(caught.value)
    assert caught.value.plugin == "scripted"
    assert "protocol" in text and str(version) in text and "1" in text.replace(str(version), "")
    assert [plugin.name for plugin in manager.list_plugins()] == ["healthy"]


def test_b4_a_second_greeting_is_not_taken_for_the_list_of_slots(manager, load):
    load(
        """
        for request in requests():
            if request["slot_name"] == "plugin_init":
                write(envelope(request, {"name": "scripted", "version": "2.0.0"}) * 2)
            elif not lifecycle(request, "work"):
                answer(request, request["parameters"])
        """
    )
    for n in range(10):
        assert manager.call("work", {"n": n}, timeout=10) == {"n": n}
    assert manager.get_plugin("scripted").status()["stray_answers"] == 1


def test_b4_megabytes_of_text_before_the_greeting_are_skipped(manager, load):
    growth = watch_memory()
    with within(30):
        load("write((b'x' * 99 + b'\\n') * 80000 + b'y' * 8000000 + b'\\n')\n" + ECHO)
        assert manager.call("work", {"n": 1}, timeout=20) == {"n": 1}
    assert growth() < 96 * MIB


# -- B7 and B8: how the bytes arrive ---------------------------------------------------------------

CUT = """
for request in requests():
    if not lifecycle(request, "work"):
        at = request["parameters"]["at"]
        line = (frame(request, json.dumps(request["parameters"], ensure_ascii=False)) + "\\n"
                ).encode()
        pieces = [line[:at], line[at:]] if at else [line[n:n + 1] for n in range(len(line))]
        for piece in pieces:
            os.write(1, piece)
            time.sleep(0.0005)  # lets the host read what there is
"""


def test_b7_an_answer_may_be_cut_anywhere(manager, load):
    load(CUT)
    text = "aé\u2028𝄞\x7f"
    with within(30):
        for at in range(120):  # beyond the end of the line, too; 0 is every byte on its own
            sent = {"at": at, "text": text}
            assert manager.call("work", sent, timeout=10) == sent
        for at in (0, 1, 60):
            sent = {"at": at, "text": text * 20}
            assert manager.submit("work", sent, timeout=10).result(20) == sent


def test_b7_a_thousand_messages_in_one_write_are_all_taken(manager, load):
    load(
        """
        responses = 0
        for request in requests():
            if request.get("type") == "host_response":
                responses += 1
            elif not lifecycle(request, "work", "count"):
                if request["slot_name"] == "count":
                    answer(request, responses)
                    continue
                call = b'{"type":"host_call","id":"h","function":"note","parameters":{}}\\n'
                write(call * 999 + envelope(request, "answered"))
        """
    )
    manager.set_host_callback("note", lambda _: None)
    with within(30):
        assert manager.call("work", timeout=20) == "answered"
        while manager.call("count", timeout=20) < 999:  # done or refused, each is answered
            time.sleep(0.005)
    assert manager.call("count", timeout=20) == 999


def test_b7_a_thousand_answers_in_one_write_reach_their_callers(manager, load_as):
    load_as(
        "ids",
        """
        held = b""
        for request in requests():
            if not lifecycle(request, "work"):
                held += envelope(request, request["parameters"]["n"])
                if held.count(b"\\n") == 1000:
                    write(held)
                    held = b""
        """,
    )
    with within(30):
        assert list(manager.map("work", [])) == []
        futures = [manager.submit("work", {"n": n}, timeout=20) for n in range(1000)]
        assert [future.result(30) for future in futures] == list(range(1000))


def test_b8_a_guest_that_frames_with_content_length_is_told_so(manager, load):
    with within(8), pytest.raises((PluginLoadError, ProtocolError), match="Content-Length"):
        load(
            """
            for request in requests():
                body = envelope(request, {"name": "scripted"})[:-1]
                write(b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body)
            """
        )
    assert [plugin.name for plugin in manager.list_plugins()] == ["healthy"]


@pytest.mark.parametrize("ending", ["sys.exit(3)", "time.sleep(60)"])
def test_b8_a_guest_that_expects_content_length_is_named_with_what_it_said(
    manager, load, caplog, ending
):
    caplog.set_level(logging.WARNING, LOGGER)
    told = ""
    with within(15):
        try:
            load(
                f"""
                line = sys.stdin.readline()
                if not line.startswith("Content-Length:"):
                    print("expected Content-Length, got", line[:9], file=sys.stderr, flush=True)
                    {ending}
                """,
                sidecar="timeout: 0.5\nstop_timeout: 0",
                manifest="slots: [{name: work}]",
            )
        except PluginLoadError as error:
            told = str(error)
        else:  # silent guests are used without a greeting; its calls end in time
            with pytest.raises(SlotTimeout):
                manager.call("work", timeout=0.5)
    assert 'expected Content-Length, got {"type":' in told + logged(caplog)
