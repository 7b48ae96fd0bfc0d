"""What WASM guests ask of the host, and what they write to their standard streams."""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

import pytest

from zeno_fast.errors import PluginCrashed, PluginUnavailable, SlotTimeout
from zeno_fast.host.context import CURRENT, HostCall
from zeno_fast.host.functions import HostFunctions, HostRefusal
from zeno_fast.manifest import Manifest
from zeno_fast.permissions import Permissions

from .conftest import ALLOC, FINE, Load, answering, data, module

TWO = "(param i32 i32) (result i32)"
SCOPE = Permissions(scope=frozenset({"read", "write"}))


class Host(HostFunctions):
    """Does what a function says, for every host call but `log`."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.asked: list[tuple[str, str, Any]] = []
        self._answer = answer

    def call(
        self,
        plugin: Manifest,
        parameters: Mapping[str, Any] | None,
        scope: MutableMapping[str, Any] | None,
        host_call: HostCall,
    ) -> Any:
        self.asked.append((plugin.name, host_call.function, parameters))
        token = CURRENT.set(host_call)
        try:
            return self._answer(parameters) if callable(self._answer) else self._answer
        finally:
            CURRENT.reset(token)


def asking(function: str, argument: str, *, alloc: str = ALLOC) -> str:
    """Write a guest that answers with what the host answers; 0 becomes a failure."""
    imports = f'(import "env" "{function}" (func $ask {TWO}))'
    size = len(argument.encode())
    body = f"""
      (local $p i32)
      (local.set $p (call $ask (i32.const 4000) (i32.const {size})))
      (if (i32.eqz (local.get $p)) (then (return (i32.const 5000))))
      (local.get $p)"""
    refused = data(5000, '{"success":true,"data":"got 0"}\0')
    return module(body, data(4000, argument) + refused, imports=imports, alloc=alloc)


def yes_or_no(function: str, argument: str) -> str:
    """Write a guest that answers with the digit that the host answers with."""
    imports = f'(import "env" "{function}" (func $ask {TWO}))'
    size = len(argument.encode())
    body = f"""
      (i32.store8 (i32.const 2071)
        (i32.add (i32.const 48) (call $ask (i32.const 4000) (i32.const {size}))))
      (i32.const 2048)"""
    answer = data(2048, '{"success":true,"data":0}\0')
    return module(body, data(4000, argument) + answer, imports=imports)


@pytest.mark.parametrize("function", ["host_db_query", "host_http_request"])
def test_an_answer_is_handed_over_whole(load: Load, function: str) -> None:
    rows = {"rows": [{"text": "ż" * 70000}]}
    host = Host(rows)
    assert load(asking(function, '{"sql":"select 1"}'), host).call() == rows
    assert host.asked == [("test", function.removeprefix("host_"), {"sql": "select 1"})]


@pytest.mark.parametrize(
    ("function", "name"), [("host_scope_get", "key"), ("host_file_read", "path")]
)
def test_a_bare_argument_gets_its_name(load: Load, function: str, name: str) -> None:
    host = Host({"value": 1})
    assert load(asking(function, "żółw"), host).call() == {"value": 1}
    assert host.asked[0][2] == {name: "żółw"}


def test_the_calls_own_scope_is_read_and_written(load: Load) -> None:
    scope: dict[str, Any] = {"who": "me"}
    reader = load(asking("host_scope_get", "who"), permissions=SCOPE)
    assert reader.call(scope=scope) == {"value": "me"}
    writer = load(yes_or_no("host_scope_set", '{"key":"n","value":[1]}'), permissions=SCOPE)
    assert writer.call(scope=scope) == 1
    assert scope == {"who": "me", "n": [1]}
    assert writer.call() == 0  # there is no scope now
    assert scope == {"who": "me", "n": [1]}


@pytest.mark.parametrize("function", ["host_scope_set", "host_file_write"])
def test_a_refusal_or_nonsense_is_0_where_the_answer_is_a_digit(load: Load, function: str) -> None:
    assert load(yes_or_no(function, "{}")).call() == 0
    assert load(yes_or_no(function, "nonsense"), Host({})).call() == 0
    assert load(yes_or_no(function, "[]"), Host({})).call() == 0
    assert load(yes_or_no(function, "{}"), Host({})).call() == 1


@pytest.mark.parametrize(
    "function", ["host_db_query", "host_http_request", "host_scope_get", "host_file_read"]
)
def test_a_refusal_is_a_failure_with_a_text(load: Load, function: str) -> None:
    def refuse(parameters: Any) -> Any:
        raise HostRefusal("not allowed")

    with pytest.raises(Exception, match=r"^not allowed$"):
        load(asking(function, "{}"), Host(refuse)).call()


def test_an_environment_variable_is_a_bare_value(load: Load) -> None:
    quoted = '{"success":true,"data":"it"}'  # so that the guest can return it
    assert load(asking("host_env_get", "NAME"), Host({"value": quoted})).call() == "it"
    assert load(asking("host_env_get", "NAME"), Host(quoted)).call() == "it"


def test_a_refused_environment_variable_is_an_empty_text(load: Load) -> None:
    imports = f'(import "env" "host_env_get" (func $ask {TWO}))'
    wat = module(
        """(if (i32.load8_u (call $ask (i32.const 4000) (i32.const 4))) (then unreachable))
        (i32.const 2048)""",
        data(4000, "PATH") + data(2048, FINE + "\0"),
        imports=imports,
    )
    assert load(wat).call() == 1


def test_a_result_that_json_cannot_carry_is_a_failure(load: Load) -> None:
    with pytest.raises(Exception, match="no JSON"):
        load(asking("host_db_query", "{}"), Host(object())).call()


@pytest.mark.parametrize(
    ("level", "number"),
    [("debug", 10), ("info", 20), ("warn", 30), ("error", 40), ("odd", 20), ("", 20)],
)
def test_a_log_message_goes_to_the_plugins_logger(
    load: Load, caplog: pytest.LogCaptureFixture, level: str, number: int
) -> None:
    caplog.set_level(logging.DEBUG)
    imports = '(import "env" "host_log" (func $log (param i32 i32 i32 i32)))'
    body = f"""(call $log (i32.const 3000) (i32.const {len(level)})
      (i32.const 3010) (i32.const 8)) (i32.const 2048)"""
    more = data(3000, level) + data(3010, "%s żółw") + data(2048, FINE + "\0")
    load(module(body, more, imports=imports)).call()
    assert [(r.name, r.levelno, r.message) for r in caplog.records] == [
        ("zeno_fast.plugin.test", number, "%s żó\ufffd")
    ]


@pytest.mark.parametrize(
    ("address", "size"), [("0xfffffff0", "0x20"), ("0", "0xffffffff"), ("131073", "0")]
)
def test_a_host_call_with_a_pointer_outside_of_memory_ends_the_guest(
    load: Load, address: str, size: str
) -> None:
    wat = module(
        f"(call $ask (i32.const {address}) (i32.const {size}))",
        imports=f'(import "env" "host_db_query" (func $ask {TWO}))',
    )
    plugin = load(wat, Host({}))
    for _ in range(2):
        with pytest.raises(PluginCrashed, match=r"host_db_query was called with .* outside"):
            plugin.call()


@pytest.mark.parametrize(
    ("body", "problem"),
    [("unreachable", "unreachable"), ("(i32.const -16)", "outside")],
)
def test_an_alloc_that_fails_a_host_call_ends_the_guest(
    load: Load, body: str, problem: str
) -> None:
    # The request is small, the host's answer is not.
    alloc = f"""(func $alloc (export "alloc") (param i32) (result i32)
      (if (i32.gt_u (local.get 0) (i32.const 1000)) (then (return {body})))
      (i32.const 8192))"""
    plugin = load(asking("host_db_query", "{}", alloc=alloc), Host("x" * 1000))
    with pytest.raises(PluginCrashed, match=problem):
        plugin.call()


def test_an_alloc_that_gives_nothing_for_an_answer_is_a_refusal(load: Load) -> None:
    alloc = """(func $alloc (export "alloc") (param i32) (result i32)
      (if (i32.gt_u (local.get 0) (i32.const 1000)) (then (return (i32.const 0))))
      (i32.const 8192))"""
    plugin = load(asking("host_db_query", "{}", alloc=alloc), Host("x" * 1000))
    assert plugin.call() == "got 0"


def test_what_a_host_function_raises_beyond_errors_reaches_the_caller_alone(load: Load) -> None:
    class Stop(BaseException):
        pass

    def stop(parameters: Any) -> Any:
        raise Stop("enough")

    plugin = load(asking("host_db_query", "{}"), Host(stop), instances=1)
    for _ in range(2):
        with pytest.raises(Stop, match="enough"):
            plugin.call()
    other = load(answering(FINE))
    assert other.call() == 1


def test_a_guest_that_calls_itself_through_the_host_gets_an_error_and_no_deadlock(
    load: Load,
) -> None:
    def call_back(parameters: Any) -> Any:
        try:
            return plugin.call(timeout=20.0)
        except Exception as error:
            raise HostRefusal(str(error)) from error

    plugin = load(asking("host_db_query", "{}"), Host(call_back), instances=1)
    with pytest.raises(Exception, match="would wait for itself"):
        plugin.call()


def test_a_guest_may_call_its_own_plugin_while_another_instance_is_free(load: Load) -> None:
    depth: list[int] = []

    def call_back(parameters: Any) -> Any:
        depth.append(1)
        return plugin.call() if len(depth) < 3 else "bottom"

    plugin = load(asking("host_db_query", "{}"), Host(call_back), instances=3)
    assert plugin.call() == "bottom"


def test_a_host_call_that_takes_too_long_counts_against_the_deadline(load: Load) -> None:
    released = threading.Event()

    def wait(parameters: Any) -> Any:
        assert not released.wait(0.1)
        return 1

    plugin = load(asking("host_db_query", "{}"), Host(wait))
    with pytest.raises(Exception, match="did not end"):
        plugin.call(timeout=0.02)


WRITE = """(import "wasi_snapshot_preview1" "fd_write"
  (func $write (param i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"""


def writing(stream: int, words: str, then: str) -> str:
    """Write a guest that says something on a standard stream."""
    size = len(words.encode())
    body = f"""
      (i32.store (i32.const 3000) (i32.const 4000)) (i32.store (i32.const 3004) (i32.const {size}))
      (drop (call $write (i32.const {stream}) (i32.const 3000) (i32.const 1) (i32.const 3008)))
      {then}"""
    return module(body, data(4000, words) + data(2048, FINE + "\0"), imports=WRITE)


@pytest.mark.parametrize(("stream", "name"), [(1, "stdout"), (2, "stderr")])
def test_what_a_guest_prints_is_logged_under_its_name(
    load: Load, caplog: pytest.LogCaptureFixture, stream: int, name: str
) -> None:
    caplog.set_level(logging.INFO)
    assert load(writing(stream, "one\ntwo żółw\n", "(i32.const 2048)")).call() == 1
    assert [record.message for record in caplog.records] == [f"{name}: one", f"{name}: two żółw"]
    assert {record.name for record in caplog.records} == {"zeno_fast.plugin.test"}


def test_panic_text_is_in_the_error_and_in_the_log(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plugin = load(writing(2, "first\npanicked at 'boom'", "unreachable"))
    with pytest.raises(PluginCrashed, match=r"unreachable.*words: panicked at 'boom'") as caught:
        plugin.call()
    assert caught.value.stderr == "first\npanicked at 'boom'"
    assert "panicked at 'boom'" in caplog.text


@pytest.mark.parametrize("status", [0, 3])
def test_a_guest_that_exits_in_a_slot_is_a_crash_with_its_status(load: Load, status: int) -> None:
    plugin = load(writing(2, "bye", f"(call $exit (i32.const {status})) unreachable"))
    for _ in range(2):
        with pytest.raises(PluginCrashed, match=f"exit status {status} in slot") as caught:
            plugin.call()
        assert caught.value.exit_status == status
        assert caught.value.stderr == "bye"


def test_a_guest_sees_no_arguments_no_environment_and_no_files(load: Load) -> None:
    imports = """
    (import "wasi_snapshot_preview1" "environ_sizes_get"
      (func $environment (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_sizes_get"
      (func $arguments (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_prestat_get"
      (func $prestat (param i32 i32) (result i32)))"""
    body = """
      (drop (call $environment (i32.const 3000) (i32.const 3004)))
      (drop (call $arguments (i32.const 3008) (i32.const 3012)))
      (if (i32.load (i32.const 3000)) (then unreachable))
      (if (i32.load (i32.const 3008)) (then unreachable))
      (if (i32.eqz (call $prestat (i32.const 3) (i32.const 3016))) (then unreachable))
      (i32.const 2048)"""
    assert load(module(body, data(2048, FINE + "\0"), imports=imports)).call() == 1


POLL = """(import "wasi_snapshot_preview1" "poll_oneoff"
  (func $poll (param i32 i32 i32 i32) (result i32)))"""


def polling(subscriptions: bytes, events: bytes) -> str:
    """Write a guest that polls once, and traps unless it gets just these events."""
    count, nbytes = len(subscriptions) // 48, len(events)
    escaped = ["".join(f"\\{byte:02x}" for byte in part) for part in (subscriptions, events)]
    body = f"""
      (local $i i32)
      (if (call $poll (i32.const 4000) (i32.const 8000) (i32.const {count}) (i32.const 3000))
        (then unreachable))
      (if (i32.ne (i32.mul (i32.load (i32.const 3000)) (i32.const 32)) (i32.const {nbytes}))
        (then unreachable))
      (loop $l
        (if (i32.ne (i32.load8_u (i32.add (i32.const 8000) (local.get $i)))
                    (i32.load8_u (i32.add (i32.const 9000) (local.get $i)))) (then unreachable))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $i) (i32.const {nbytes}))))
      (i32.const 2048)"""
    segments = (
        f'(data (i32.const 4000) "{escaped[0]}")(data (i32.const 9000) "{escaped[1]}")'
        + data(2048, FINE + "\0")
    )
    return module(body, segments, imports=POLL)


def clock(userdata: int, nanoseconds: int, clock_id: int = 1, flags: int = 0) -> bytes:
    return struct.pack("<QQIIQQHHI", userdata, 0, clock_id, 0, nanoseconds, 0, flags, 0, 0)


def stream(userdata: int, tag: int, fd: int) -> bytes:
    return struct.pack("<QQI28x", userdata, tag, fd)


def event(userdata: int, error: int, tag: int, flags: int = 0) -> bytes:
    return struct.pack("<QHB5xQH6x", userdata, error, tag, 0, flags)


@pytest.mark.parametrize(
    ("asked", "happened"),
    [
        (clock(7, 1_000_000), event(7, 0, 0)),
        (clock(7, 10**12) + clock(8, 1000), event(8, 0, 0)),
        (clock(7, 5, clock_id=0, flags=1), event(7, 0, 0)),
        (clock(7, 5, flags=1), event(7, 58, 0)),
        (stream(1, 1, 0) + clock(2, 10**12), event(1, 0, 1, 1)),
        (stream(1, 2, 2), event(1, 0, 2)),
        (stream(1, 1, 5), event(1, 8, 1)),
    ],
)
def test_a_guest_may_sleep_and_poll(load: Load, asked: bytes, happened: bytes) -> None:
    assert load(polling(asked, happened)).call() == 1


def test_a_guest_that_sleeps_is_ended_at_its_deadline(load: Load) -> None:
    begun = time.perf_counter()
    with pytest.raises(SlotTimeout):
        load(polling(clock(1, 10**12), event(1, 0, 0))).call(timeout=0.05)
    assert time.perf_counter() - begun < 1.0


def test_a_guest_that_sleeps_notices_that_it_was_closed(load: Load) -> None:
    plugin = load(polling(clock(1, 10**12), event(1, 0, 0)))
    future = plugin.slot().submit(None, 30.0, None)
    while not plugin.driver.status()["busy"]:
        time.sleep(0.001)
    plugin.driver.close()
    error = future.exception(10)
    assert error is None or isinstance(error, PluginUnavailable)


@pytest.mark.parametrize("fd", [0, 3])
def test_nothing_but_stdout_and_stderr_can_be_written_to(load: Load, fd: int) -> None:
    wat = writing(fd, "x", "(i32.const 2048)")
    wat = wat.replace("(drop (call $write", "(if (i32.ne (i32.const 8) (call $write")
    wat = wat.replace("(i32.const 3008)))", "(i32.const 3008))) (then unreachable))")
    assert load(wat).call() == 1


def test_output_from_outside_of_memory_ends_the_guest(load: Load) -> None:
    wat = writing(1, "x", "(i32.const 2048)").replace("(i32.const 4000))", "(i32.const -1))", 1)
    with pytest.raises(PluginCrashed, match="outside of the guest's memory"):
        load(wat).call()
