"""B5 and B6: messages up to the limits and beyond them, and what they cost.

The sizes below the limits are in tests/test_behaviour.py, for guests in every language.
"""

from __future__ import annotations

import logging
import time

import pytest
from fault.bounds import MIB, call_each_way, pid_of, watch_memory, within

from zeno_fast import MessageTooLarge, PluginManager, ZenoError

pytestmark = pytest.mark.usefixtures("healthy")
LIMIT = 64 * 1024

# Answers how long the text was, or with a line of `nbytes` bytes, its end not counted.
SIZES = """
for request in requests():
    if not lifecycle(request, "work"):
        nbytes = request["parameters"].get("nbytes")
        if nbytes is None:
            answer(request, len(request["parameters"]["text"]))
        else:
            room = nbytes - len(envelope(request, "")) + 1
            write(envelope(request, "x" * room))
"""


def refused(attempt, plugin: str = "scripted", slot: str = "work") -> MessageTooLarge:
    """Return the error of a call whose request or answer is above the limit."""
    with within(10), pytest.raises(MessageTooLarge) as caught:
        attempt()
    error = caught.value
    assert (error.limit, error.plugin, error.slot) == (LIMIT, plugin, slot)
    assert isinstance(error, ZenoError) and isinstance(error, ValueError)
    assert str(LIMIT) in str(error)
    return error


def test_b5_a_request_of_the_limit_is_sent_and_one_byte_more_is_refused(manager, load):
    load(SIZES, sidecar="max_request: 64KiB\nstop_timeout: 0")
    pid = pid_of(manager)
    for _ in range(20):  # so that every id has two digits from here on
        assert manager.call("work", {"text": ""}) == 0
    error = refused(lambda: manager.call("work", {"text": "x" * 100_000}, timeout=20))
    assert error.nbytes is not None
    fits = LIMIT - (error.nbytes - 100_000)
    for attempt in call_each_way(manager, "work", {"text": "x" * fits}, 20):
        assert attempt() == fits
    for attempt in call_each_way(manager, "work", {"text": "x" * (fits + 1)}, 20):
        assert refused(attempt).nbytes == LIMIT + 1
        assert manager.call("work", {"text": "next"}, timeout=20) == 4
    assert pid_of(manager) == pid


@pytest.mark.parametrize("nbytes", [LIMIT + 1, LIMIT + 65536, 16 * MIB])
def test_b5_an_answer_beyond_the_limit_is_refused_and_the_connection_kept(manager, load, nbytes):
    load(SIZES, sidecar="max_response: 64KiB\nstop_timeout: 0")
    pid = pid_of(manager)
    for attempt in call_each_way(manager, "work", {"nbytes": nbytes}, 20):
        assert refused(attempt).nbytes in (nbytes, None)
        text = manager.call("work", {"nbytes": LIMIT}, timeout=20)
        assert LIMIT - 100 < len(text) < LIMIT
    assert pid_of(manager) == pid


def test_b5_an_answer_beyond_the_limit_whose_id_comes_last_is_refused_too(manager, load_as):
    load_as(
        "ids",
        """
        for request in requests():
            if not lifecycle(request, "work"):
                # As encoders write it that sort the members by name.
                text = json.dumps({"data": "x" * request["parameters"]["nbytes"], "error": None,
                                   "id": request["id"], "success": True, "type": "guest_response"})
                write(text.encode() + b"\\n")
        """,
        sidecar="max_response: 64KiB\nstop_timeout: 0",
    )
    for attempt in call_each_way(manager, "work", {"nbytes": 1_000_000}, 20):
        refused(attempt)
        assert manager.call("work", {"nbytes": 3}, timeout=20) == "xxx"


def test_b5_an_answer_beyond_the_limit_takes_no_memory(manager, load):
    load(
        """
        block = b"x" * 1048576
        for request in requests():
            if lifecycle(request, "work"):
                continue
            if request["parameters"]:
                write(frame(request, '"').encode()[:-1])
                for _ in range(128):
                    write(block)
                write(b'"}\\n')
            else:
                answer(request, "next")
        """,
        sidecar="max_response: 64KiB\nstop_timeout: 0",
    )
    growth = watch_memory()
    refused(lambda: manager.call("work", {"big": True}, timeout=60))
    assert manager.call("work", timeout=20) == "next"
    assert growth() < 32 * MIB


def test_b5_only_the_call_whose_answer_is_too_long_fails(manager, load):
    load(SIZES, sidecar="max_response: 64KiB\nstop_timeout: 0")
    pid = pid_of(manager)
    with within(30):
        futures = [
            manager.submit("work", {"nbytes": 200_000 if n % 3 == 1 else 1000 + n}, timeout=20)
            for n in range(30)
        ]
        for n, future in enumerate(futures):
            if n % 3 == 1:
                refused(lambda future=future: future.result(30))
            else:
                assert 900 < len(future.result(30)) < 1000 + n
    assert pid_of(manager) == pid


def test_b5_a_line_beyond_the_limit_that_is_nobodys_answer_is_noise(manager, load, caplog):
    caplog.set_level(logging.INFO, "zeno_fast.plugin.scripted")
    load(
        """
        for request in requests():
            if not lifecycle(request, "work"):
                write(b"z" * 300000 + b"\\n" + envelope(request, request["parameters"]))
        """,
        sidecar="max_response: 64KiB\nstop_timeout: 0",
    )
    pid = pid_of(manager)
    for n in range(5):
        assert manager.call("work", {"n": n}, timeout=10) == {"n": n}
    assert pid_of(manager) == pid
    told = [record.getMessage() for record in caplog.records]
    assert any("300000" in text.replace(",", "") for text in told)
    assert all(len(text) < 20_000 for text in told)


def test_b5_an_overlong_host_call_is_refused_and_so_is_an_overlong_host_response(manager, load):
    load(
        """
        lines = requests()
        for request in lines:
            if not lifecycle(request, "work"):
                sizes = request["parameters"]
                put({"type": "host_call", "id": "h1", "function": "blob",
                     "parameters": {"nbytes": sizes["response"], "text": "x" * sizes["call"]}})
                response = next(lines)
                answer(request, [response["id"], response["success"], response.get("error"),
                                 len(response.get("data") or "")])
        """,
        sidecar="max_response: 64KiB\nmax_request: 128KiB\nstop_timeout: 0",
    )
    manager.set_host_callback("blob", lambda parameters: "y" * parameters["nbytes"])
    pid = pid_of(manager)
    for call, response in ((10, 10), (60_000, 120_000)):
        sizes = {"call": call, "response": response}
        assert manager.call("work", sizes, timeout=10) == ["h1", True, None, response]
    for call, response in ((70_000, 10), (10, 140_000)):
        sizes = {"call": call, "response": response}
        id, success, error, length = manager.call("work", sizes, timeout=10)
        assert (id, success, length) == ("h1", False, 0)
        assert error
    assert manager.call("work", {"call": 1, "response": 1}, timeout=10)[1]
    assert pid_of(manager) == pid


# -- what a message costs --------------------------------------------------------------------------

COSTS = """
for request in requests():
    if not lifecycle(request, "work"):
        parameters = request["parameters"]
        if parameters["kind"] == "request":
            answer(request, len(parameters["text"]))
        elif parameters["kind"] == "glued":
            write(b"1" + envelope(request, "x" * parameters["nbytes"]))
        elif parameters["kind"] == "noise":
            write(b'{"a":' * (parameters["nbytes"] // 5) + b"\\n" + envelope(request, ""))
        else:
            write(envelope(request, "x" * parameters["nbytes"]))
"""


@pytest.mark.parametrize(
    ("style", "kind"),
    [("ids", "request"), ("ids", "answer"), ("no-ids", "answer"), ("no-ids", "glued"),
     ("ids", "noise")],
)  # fmt: skip
def test_b5_time_and_memory_grow_with_the_size_and_not_faster(manager, load, kind):
    load(COSTS)

    def cost(nbytes: int) -> float:
        """Return the processor's seconds that one message takes in the thread that calls."""
        text = "x" * nbytes if kind == "request" else ""
        began = time.thread_time()
        manager.call("work", {"kind": kind, "nbytes": nbytes, "text": text}, timeout=60)
        return time.thread_time() - began

    small = min(cost(4 * MIB) for _ in range(3))
    growth = watch_memory()
    large = min(cost(32 * MIB) for _ in range(2))
    assert growth() < 5 * 32 * MIB  # the text, its JSON, and a buffer that grows by doubling
    # Eight times the bytes; 64 times the work where they are gone through again and again.
    assert large < 24 * max(small, 0.002)


# -- B6: the limits --------------------------------------------------------------------------------


@pytest.mark.parametrize("limited", ["request", "response"])
def test_b6_either_direction_has_a_limit_of_its_own(manager, load, limited):
    load(SIZES, sidecar=f"max_{limited}: 64KiB\nstop_timeout: 0")
    large, beyond = {"text": "x" * 300_000}, {"nbytes": 300_000}
    if limited == "request":
        refused(lambda: manager.call("work", large, timeout=20))
        assert len(manager.call("work", beyond, timeout=20)) > 299_000
    else:
        refused(lambda: manager.call("work", beyond, timeout=20))
        assert manager.call("work", large, timeout=20) == 300_000


def test_b6_the_managers_limit_holds_both_ways_where_the_manifest_says_nothing(
    make_plugin, no_leaks
):
    echo = """
    slot = os.environ["ZENO_PLUGIN_NAME"] + ".echo"
    for request in requests():
        if not lifecycle(request, slot):
            answer(request, "x" * request["parameters"]["nbytes"])
    """
    large = {"nbytes": 1, "text": "y" * 100_000}
    beyond = {"nbytes": 100_000}
    said = {"one": "", "two": "max_request: 1MiB", "three": "max_response: 1MiB"}
    with PluginManager(max_message=LIMIT) as manager:
        for name, sidecar in said.items():
            manager.load_plugin(make_plugin(echo, name=name, sidecar=sidecar))
        for name in said:
            slot = f"{name}.echo"
            for parameters, allowed in ((large, "two"), (beyond, "three")):
                if name == allowed:
                    answer = manager.execute_slot(name, slot, parameters).data
                    assert answer == "x" * parameters["nbytes"]
                else:
                    refused(
                        lambda given=parameters, name=name, slot=slot: manager.execute_slot(
                            name, slot, given
                        ),
                        name,
                        slot,
                    )
            assert manager.execute_slot(name, slot, {"nbytes": 1}).data == "x"


def test_b6_without_a_word_the_limit_is_256_mib(manager, load_as):
    load_as("ids", SIZES)
    pid = pid_of(manager)
    with within(30), pytest.raises(MessageTooLarge) as caught:
        manager.call("work", {"text": "x" * (256 * MIB)}, timeout=20)
    assert caught.value.limit == 256 * MIB
    assert caught.value.nbytes is not None and caught.value.nbytes > 256 * MIB
    assert manager.call("work", {"text": "next"}, timeout=20) == 4
    assert pid_of(manager) == pid
