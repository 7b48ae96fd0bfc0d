"""Plugins written with zeno_fast.guest, through the manager and by lines of JSON."""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import zeno_fast
from zeno_fast import InvalidParameters, PluginCrashed, Response, SlotError
from zeno_fast.guest import Plugin

PATIENCE = 20.0  # seconds until what should happen at once counts as never
MIB = 1 << 20
NO_ORJSON = "raise ImportError('as if it were not installed')\n"

Write = Callable[..., Path]
Start = Callable[..., "Guest"]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the folder of a plugin whose slots are the given program, with its own guest.py."""

    def write_plugin(
        program: str,
        *,
        arguments: str = "",
        sidecar: str = "",
        manifest: str = "",
        orjson: bool = True,
        module: str = "guest",
        name: str = "scripted",
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if module == "guest":
            shutil.copy(Path(zeno_fast.__file__).with_name("guest.py"), folder)
        if not orjson:
            (folder / "orjson.py").write_text(NO_ORJSON)
        (folder / "plugin.py").write_text(
            f"from {module} import *\nplugin = Plugin({name!r}, version='1.2.3'{arguments})\n"
            f"{textwrap.dedent(program)}\nplugin.run()\n",
            encoding="utf-8",
        )
        (folder / "manifest.yaml").write_text(
            f"name: {name}\ntype: sidecar\nbinary: ./plugin.py\n"
            f"sidecar:\n  protocol: json-rpc\n{textwrap.indent(textwrap.dedent(sidecar), '  ')}\n"
            + textwrap.dedent(manifest)
        )
        return folder

    return write_plugin


class Guest:
    """A plugin's process, spoken to line by line as a host does."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "stderr.txt"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "plugin.py"],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self._data = b""

    def write(self, data: bytes) -> None:
        assert self.stdin.write(data) == len(data)

    def send(self, **message: Any) -> None:
        self.write(json.dumps(message).encode() + b"\n")

    def request(self, slot: str, id: str | None = None, /, **more: Any) -> None:
        members = {"parameters": {}, **more}
        if id is not None:
            members = {"type": "guest_call", "id": id, **members}
        self.send(slot_name=slot, **members)

    def cancel(self, id: str) -> None:
        self.send(type="cancel", id=id)

    def read_line(self) -> bytes:
        parts = [self._data]
        while b"\n" not in parts[-1]:
            parts.append(self.read_some(MIB))
        line, _, self._data = b"".join(parts).partition(b"\n")
        return line

    def read_some(self, nbytes: int) -> bytes:
        ready, _, _ = select.select([self.stdout], [], [], PATIENCE)
        assert ready, f"the guest is silent; on stderr: {self.stderr}"
        data = self.stdout.read(nbytes)
        assert data, f"the guest has ended; on stderr: {self.stderr}"
        return data

    def read(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.read_line())
        return message

    def call(self, slot: str, **more: Any) -> dict[str, Any]:
        self.request(slot, "call", **more)
        return self.read()

    def at_end(self) -> bytes:
        """Return what the guest wrote after the last message that was read."""
        rest = self._data
        while data := self.stdout.read(MIB):
            rest += data
        return rest

    def end(self) -> int:
        self.stdin.close()
        return self.process.wait(PATIENCE)

    @property
    def stderr(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()


@pytest.fixture
def start(write: Write, no_leaks: None) -> Iterator[Start]:
    """Start plugins and end them after the test."""
    guests = []

    def start_guest(program: str, **more: Any) -> Guest:
        guests.append(Guest(write(program, **more)))
        return guests[-1]

    yield start_guest
    for guest in guests:
        guest.close()


def answer(id: str, data: Any = None, error: str | None = None) -> dict[str, Any]:
    return {
        "type": "guest_response", "id": id, "success": error is None, "data": data, "error": error,
    }  # fmt: skip


def chunk(id: str, data: Any) -> dict[str, Any]:
    return {"type": "guest_chunk", "id": id, "data": data}


with_and_without_orjson = pytest.mark.parametrize("orjson", [True, False], ids=["orjson", "json"])

ECHO = """
@plugin.slot
def echo(value):
    return value
"""

# A slot that stays in the middle of its work until the test answers its host call.
WAIT = """
@plugin.slot
def wait():
    return host.call("wait")

@plugin.slot
def wait_twice():
    host.call("wait")
    return host.call("wait")
"""


# What an author writes, through the manager.


@with_and_without_orjson
@pytest.mark.parametrize(
    "value",
    [True, 0, -1.5, "", "äöü ☃ \x00\n", [], [None, [2]], {}, {"a": {"b": None}}, "x" * MIB],
)
def test_what_a_slot_returns_comes_back_as_it_was(manager, write, value, orjson):
    manager.load_plugin(write(ECHO, orjson=orjson))
    assert manager.call("scripted.echo", {"value": value}) == value


def test_a_plugin_may_import_the_module_from_the_installed_package(manager, write):
    path = Path(zeno_fast.__file__).parents[1]
    manager.load_plugin(
        write(ECHO, module="zeno_fast.guest", sidecar=f"env:\n  PYTHONPATH: {path}\n")
    )
    assert manager.call("scripted.echo", {"value": [1]}) == [1]


def test_the_module_needs_nothing_but_the_standard_library(write):
    folder = write(ECHO)
    program = f"""
        import sys
        sys.path.insert(0, {str(folder)!r})
        import guest
        known = sys.stdlib_module_names | {{"guest", "__main__"}}
        print(sorted(name for name in sys.modules if name.partition(".")[0] not in known))
    """
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_signature_and_the_docstring_of_a_slot_become_its_definition(manager, write):
    manager.load_plugin(
        write(
            """
            from typing import Any, Optional

            @plugin.slot("text.cut", example='{"text": "abc"}', idempotent=True)
            def cut(
                text: str, at: int, ratio: float = 0.5, keep: bool = True, marks: list[str] = [],
                names: "dict[str, int] | None" = None, other: Any = None, limit: Optional[int] = 3,
                either: int | str = 1, real: int | float = 2, bare=(1, 2), absent: str | None,
            ) -> dict:
                '''Cut a text
                in pieces.

                More about it.

                Args:
                    text: What is cut.
                    at (int): Where it is cut, and this goes on
                        in a second line.

                Returns:
                    keep: this is no parameter's description
                '''
                return {"at": at, "absent": absent, "ratio": ratio}
            """.replace("text: str, at", "*, text: str, at")
        )
    )
    slot = manager.slots["text.cut"]
    assert slot.description == "Cut a text in pieces."
    assert slot.example == '{"text": "abc"}' and slot.idempotent
    assert {name: (each.type, each.required) for name, each in slot.inputs.items()} == {
        "text": ("string", True), "at": ("int", True), "ratio": ("float", False),
        "keep": ("bool", False), "marks": ("list", False), "names": ("object", False),
        "other": ("any", False), "limit": ("int", False), "either": ("any", False),
        "real": ("float", False), "bare": ("any", False), "absent": ("string", False),
    }  # fmt: skip
    assert {n: each.default for n, each in slot.inputs.items() if each.has_default} == {
        "ratio": 0.5, "keep": True, "marks": [], "limit": 3, "either": 1, "real": 2,
    }  # fmt: skip
    assert {n: each.description for n, each in slot.inputs.items() if each.description} == {
        "text": "What is cut.", "at": "Where it is cut, and this goes on in a second line.",
    }  # fmt: skip
    answered = manager.call("text.cut", {"text": "a", "at": 1})
    assert answered == {"at": 1, "absent": None, "ratio": 0.5}
    with pytest.raises(InvalidParameters, match="'at' must be of type int"):
        manager.call("text.cut", {"text": "a", "at": "b"})


def test_a_slot_error_is_the_answer_and_leaves_no_traceback(manager, write, caplog):
    manager.load_plugin(
        write("""
            @plugin.slot
            def refuse(text: str):
                raise SlotError(text, data={"code": 7})
        """)
    )
    with pytest.raises(SlotError, match=r"^not today$") as caught:
        manager.call("scripted.refuse", {"text": "not today"})
    assert caught.value.data == {"code": 7}
    response = manager.execute_slot("scripted", "scripted.refuse", {"text": "no ☃"})
    assert response == Response(False, {"code": 7}, "no ☃")
    manager.close()
    assert "Traceback" not in caplog.text


def test_any_other_exception_is_an_answer_too_and_its_traceback_is_logged(manager, write, caplog):
    caplog.set_level("INFO")
    manager.load_plugin(
        write("""
            @plugin.slot
            def divide(by: int):
                return 1 / by
        """)
    )
    with pytest.raises(SlotError, match=r"^ZeroDivisionError: division by zero$"):
        manager.call("scripted.divide", {"by": 0})
    with pytest.raises(SlotError, match=r"^TypeError: .*unexpected keyword argument 'too'"):
        manager.call("scripted.divide", {"by": 1, "too": 2})
    assert manager.call("scripted.divide", {"by": 2}) == 0.5
    manager.close()
    assert "return 1 / by" in caplog.text
    assert any(
        record.levelno == logging.ERROR and "'scripted.divide'" in record.message
        for record in caplog.records
    )


def test_b3_whatever_a_plugin_prints_goes_to_the_log_and_not_into_the_protocol(
    manager, write, caplog
):
    caplog.set_level("INFO")
    manager.load_plugin(
        write(
            """
            import ctypes, os, subprocess, sys

            @plugin.slot
            def chatter():
                print("by print", flush=True)
                print("no end of line", end="")
                sys.stdout.write("\\udc80 is no character\\n")
                os.write(1, b"by descriptor 1\\n")
                libc = ctypes.CDLL(None)
                libc.printf(b"by the C library\\n")
                libc.fflush(None)
                subprocess.run(["sh", "-c", "echo by a child; cat"], check=True)
                try:
                    return input()
                except EOFError:
                    return "nothing to read"
            """,
            sidecar="strict: true",
        ),
    )
    for _ in range(3):
        assert manager.call("scripted.chatter") == "nothing to read"
    assert manager.get_plugin("scripted").status()["noise_lines"] == 0
    manager.close()
    for text in ("by print", "by descriptor 1", "by the C library", "by a child", "no end of line"):
        assert caplog.text.count(f"stderr: {text}") == 3
    assert "stdout: " not in caplog.text


def test_what_a_plugin_prints_before_it_is_served_does_no_harm(manager, write, caplog):
    caplog.set_level("INFO")
    manager.load_plugin(write("print('hello', flush=True)\nprint('glued', end='')" + ECHO))
    assert manager.call("scripted.echo", {"value": 1}) == 1
    manager.close()
    assert "hello" in caplog.text and "glued" in caplog.text


def test_child_processes_inherit_nothing_of_the_protocol(manager, write):
    manager.load_plugin(
        write("""
            import os, subprocess
            @plugin.slot
            def inherited():
                command = 'for fd in /proc/self/fd/*; do readlink "$fd"; done'
                done = subprocess.run(
                    ["sh", "-c", command], close_fds=False, stdout=subprocess.PIPE, text=True)
                mine = [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)]
                return mine, done.stdout.split()
        """)
    )
    mine, inherited = manager.call("scripted.inherited")
    assert mine[0] == "/dev/null" and mine[1] == mine[2] and mine[2].startswith("pipe:")
    pipes = {link for link in inherited if link.startswith("pipe:")}
    assert pipes - {mine[2]} <= set(inherited[1:2])  # its own stdout, and nothing else


def test_slots_run_one_after_another_in_the_main_thread_where_threads_is_one(manager, write):
    manager.load_plugin(
        write("""
            import threading, time
            inside = []
            @plugin.slot
            def alone():
                inside.append(1)
                time.sleep(0.001)
                return inside.pop(), len(inside), threading.current_thread().name
        """)
    )
    futures = [manager.submit("scripted.alone") for _ in range(20)]
    assert [future.result(PATIENCE) for future in futures] == [[1, 0, "MainThread"]] * 20


def test_as_many_slots_run_at_the_same_time_as_there_are_threads(manager, write):
    manager.load_plugin(
        write(
            """
            import threading
            barrier = threading.Barrier(4)
            @plugin.slot
            def meet():
                barrier.wait(20)
                return threading.get_ident()
            """,
            arguments=", threads=4",
        )
    )
    futures = [manager.submit("scripted.meet") for _ in range(8)]
    threads = [future.result(PATIENCE) for future in futures]
    assert len(set(threads)) == 4


def test_coroutines_run_in_one_loop_at_the_same_time_beside_a_slot_in_the_main_thread(
    manager, write
):
    manager.load_plugin(
        write("""
            import asyncio, threading
            met = []
            all_met = threading.Event()

            @plugin.slot
            async def meet(n: int) -> int:
                met.append(current().id)
                if len(met) == 3:
                    all_met.set()
                while len(met) < 3:
                    await asyncio.sleep(0.001)
                return n, threading.current_thread() is threading.main_thread(), current().id in met

            @plugin.slot
            def watch():
                return all_met.wait(20)

            @plugin.slot
            async def fail():
                raise SlotError("a coroutine said no")
        """)
    )
    first = manager.submit("scripted.meet", {"n": 0})
    second = manager.submit("scripted.meet", {"n": 1})
    third = manager.submit("scripted.meet", {"n": 2})
    watch = manager.submit("scripted.watch")
    assert watch.result(PATIENCE) is True
    answers = [future.result(PATIENCE) for future in (first, second, third)]
    assert answers == [[n, False, True] for n in range(3)]
    with pytest.raises(SlotError, match="a coroutine said no"):
        manager.call("scripted.fail")


def test_map_gets_every_answer_in_order(manager, write):
    manager.load_plugin(write(ECHO))
    many = ({"value": n} for n in range(5000))
    assert list(manager.map("scripted.echo", many)) == list(range(5000))


PERMISSIONS = """
permissions:
  network: ["https://api.example.com/*"]
  filesystem: ["/data"]
  env: ["HOME"]
  database: ["main"]
  scope: [read, write]
"""


def test_every_host_function_gets_its_parameters_and_gives_its_data(manager, write, caplog):
    caplog.set_level("DEBUG")
    asked = []

    def offer(name, data):
        def function(parameters):
            asked.append((name, parameters))
            return data

        manager.set_host_callback(name, function)

    offer("db_query", {"rows": [[1]]})
    offer("http_request", {"status": 200, "headers": {}, "body": "ok"})
    offer("file_read", {"content": "text"})
    offer("file_write", None)
    offer("env_get", "/root")
    offer("own", [1, 2])
    manager.load_plugin(
        write(
            """
            @plugin.slot
            def all():
                host.log("warn", "a warning ☃")
                host.scope_set("seen", [host.scope_get("given"), host.scope_get("missing")])
                host.file_write("/data/b", "new")
                return [
                    host.db_query("main", "select ?", [1]),
                    host.http_request("GET", "https://api.example.com/v1", {"a": "b"}),
                    host.file_read("/data/a"),
                    host.env_get("HOME"),
                    host.call("own", {"n": 1}, timeout=20),
                ]
            """,
            manifest=PERMISSIONS,
        )
    )
    scope = {"given": 5}
    assert manager.call("scripted.all", scope=scope) == [
        {"rows": [[1]]}, {"status": 200, "headers": {}, "body": "ok"}, "text", "/root", [1, 2],
    ]  # fmt: skip
    assert scope == {"given": 5, "seen": [5, None]}
    assert asked == [
        ("file_write", {"path": "/data/b", "content": "new"}),
        ("db_query", {"connection": "main", "sql": "select ?", "params": [1]}),
        (
            "http_request",
            {
                "method": "GET", "url": "https://api.example.com/v1", "headers": {"a": "b"},
                "body": None,
            },
        ),
        ("file_read", {"path": "/data/a"}),
        ("env_get", {"name": "HOME"}),
        ("own", {"n": 1}),
    ]  # fmt: skip
    assert ("zeno_fast.plugin.scripted", logging.WARNING, "a warning ☃") in caplog.record_tuples


def test_a_refusal_of_the_host_is_a_host_error_that_a_slot_may_handle(manager, write):
    manager.load_plugin(
        write("""
            @plugin.slot
            def handled():
                try:
                    return host.call("nothing")
                except HostError as error:
                    return f"refused: {error}"
            @plugin.slot
            def unhandled():
                return host.env_get("SECRET")
        """)
    )
    assert manager.call("scripted.handled") == "refused: the host offers no function 'nothing'"
    with pytest.raises(SlotError, match=r"^HostError: .*the plugin may not use 'SECRET'"):
        manager.call("scripted.unhandled")


def test_a_host_function_may_call_a_slot_of_the_same_plugin(manager, write):
    manager.load_plugin(
        write(
            """
            @plugin.slot
            def factorial(n: int):
                return 1 if n < 2 else n * host.call("factorial", {"n": n - 1})
            """,
            arguments=", threads=5",
        )
    )
    manager.set_host_callback("factorial", lambda given: manager.call("scripted.factorial", given))
    assert manager.call("scripted.factorial", {"n": 5}) == 120


def test_records_of_logging_go_to_the_hosts_log_with_their_level(manager, write, caplog):
    caplog.set_level("DEBUG")
    manager.load_plugin(
        write("""
            import logging
            logging.basicConfig(handlers=[LogHandler()], level=logging.DEBUG, format="%(message)s")
            @plugin.slot
            def log():
                for level in (10, 20, 25, 30, 40, 50):
                    logging.log(level, "level %d", level)
        """)
    )
    manager.call("scripted.log")
    manager.close()
    found = [
        (record.levelno, record.message)
        for record in caplog.records
        if record.message.startswith("level ")
    ]
    # The host answers each in a thread of its own, so that their order is not theirs.
    assert sorted(found, key=lambda each: each[1]) == [
        (10, "level 10"), (20, "level 20"), (20, "level 25"), (30, "level 30"), (40, "level 40"),
        (40, "level 50"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("slot", "arguments"),
    [("def", ""), ("def", ", threads=2"), ("async def", "")],
    ids=["main thread", "pool", "coroutine"],
)
def test_system_exit_in_a_slot_ends_the_process(manager, write, slot, arguments):
    program = f"""
        @plugin.slot
        {slot} leave(status: int):
            raise SystemExit(status)
        @plugin.on_shutdown
        def say():
            print("said good-bye")
    """
    manager.load_plugin(write(textwrap.dedent(program) + ECHO, arguments=arguments))
    with pytest.raises(PluginCrashed, match="said good-bye") as caught:
        manager.call("scripted.leave", {"status": 3})
    assert caught.value.exit_status == 3
    assert manager.call("scripted.echo", {"value": "again"}) == "again"


def test_keyboard_interrupt_in_a_slot_ends_the_process(manager, write):
    manager.load_plugin(
        write("""
            @plugin.slot
            def interrupt():
                raise KeyboardInterrupt
        """)
    )
    with pytest.raises(PluginCrashed, match="KeyboardInterrupt") as caught:
        manager.call("scripted.interrupt")
    assert caught.value.signal == signal.SIGINT


# Line by line.


def test_plugin_init_describes_the_plugin(start):
    guest = start(ECHO, arguments=", author='Ada', description='Repeats'")
    assert guest.call("plugin_init") == answer(
        "call",
        {
            "name": "scripted", "version": "1.2.3", "author": "Ada", "description": "Repeats",
            "language": "Python", "protocol": 1,
            "features": ["binary", "cancel", "deadline", "stream"],
        },
    )  # fmt: skip
    (definition,) = guest.call("plugin_register_slots")["data"]
    assert definition["name"] == "scripted.echo"
    assert definition["inputs"] == {"value": {"type": "any", "required": True}}


def test_end_of_input_ends_the_guest_with_status_0_after_its_last_answer(start):
    guest = start(ECHO)
    for number in range(100):
        guest.request("scripted.echo", str(number), parameters={"value": number})
    guest.stdin.close()
    lines = guest.at_end().splitlines()
    assert [json.loads(line) for line in lines] == [answer(str(n), n) for n in range(100)]
    assert guest.process.wait(PATIENCE) == 0
    assert guest.stderr == ""


@with_and_without_orjson
def test_an_answer_is_spelt_in_the_way_that_the_host_reads_fastest(start, orjson):
    guest = start(ECHO, orjson=orjson)
    guest.request("scripted.echo", "7", parameters={"value": "ü"})
    assert guest.read_line() == (
        '{"type":"guest_response","id":"7","success":true,"data":"ü","error":null}'.encode()
    )


def test_a_request_without_id_is_answered_without_id(start):
    guest = start(ECHO)
    for more in ({}, {"id": None}, {"id": ""}, {"type": "", "id": ""}):
        guest.request("scripted.echo", parameters={"value": 1}, **more)
        assert guest.read() == {
            "type": "guest_response", "success": True, "data": 1, "error": None,
        }  # fmt: skip


def test_an_id_is_returned_as_it_came(start):
    guest = start(ECHO)
    for id in ("7", "ü\n\"'", 7, 1.5, ["a"]):
        guest.request("scripted.echo", id, parameters={"value": 1})
        assert guest.read()["id"] == id


def test_an_unknown_slot_is_an_error_and_so_are_parameters_that_are_no_object(start):
    guest = start(ECHO)
    assert guest.call("x") == answer("call", None, "unknown slot 'x'")
    assert guest.call("scripted.echo", parameters=[1])["error"].startswith("TypeError: ")
    assert guest.call("scripted.echo", parameters=None)["error"].startswith("TypeError: ")
    guest.send(type="guest_call", id="1")
    assert guest.read() == answer("1", None, "unknown slot None")


def test_lines_that_are_no_message_are_ignored_with_a_line_on_stderr(start):
    guest = start(ECHO)
    junk = [
        b"", b"   ", b"no json", b"[1]", b'"text"', b"\xff\xfe", b"{", b"[" * 100_000,
        b'{"id":"1","slot_name":"scripted.echo","timeout_ms":-1' + b"0" * 400 + b"}",
    ]  # fmt: skip
    harmless = [
        b'{"type":"host_response","id":"guest-1","success":true}', b'{"type":"host_response"}',
        b'{"type":"cancel","id":"nobody"}', b'{"type":"cancel"}', b'{"type":"of the future"}',
    ]  # fmt: skip
    guest.write(b"".join(line + b"\n" for line in junk + harmless))
    assert guest.call("scripted.echo", parameters={"value": 1}) == answer("call", 1)
    assert guest.end() == 0
    assert guest.stderr.count("ignored a line that is no message") == len(junk)
    assert "Traceback" not in guest.stderr


def test_a_request_may_arrive_byte_by_byte_and_many_in_one_piece(start):
    guest = start(ECHO)
    one = '{"id":"1","slot_name":"scripted.echo","parameters":{"value":"ü"}}\n'.encode()
    for index in range(len(one)):
        guest.write(one[index : index + 1])
    assert guest.read() == answer("1", "ü")
    guest.write(one * 300)
    assert [guest.read() for _ in range(300)] == [answer("1", "ü")] * 300


JSON = """
import dataclasses, datetime, enum

class Colour(enum.Enum):
    RED = "red"

@dataclasses.dataclass
class Point:
    x: int
    when: datetime.date

VALUES = {
    "tuple": (1, 2), "set": {1}, "enum": Colour.RED, "point": Point(1, datetime.date(2020, 1, 2)),
    "time": datetime.datetime(2020, 1, 2, 3, 4, 5), "keys": {1: "a", None: "b"}, "long": 2**70,
    "surrogate": "a\\udc80b", "object": object(), "bytes": b"a", "cycle": [],
}
VALUES["cycle"].append(VALUES["cycle"])

@plugin.slot
def value(name: str):
    return VALUES[name]

@plugin.slot
def refuse(name: str):
    raise SlotError("because \\udc80", VALUES[name])

@plugin.slot
def stream(name: str):
    yield 1
    yield VALUES[name]
"""


@with_and_without_orjson
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tuple", [1, 2]), ("set", [1]), ("enum", "red"), ("time", "2020-01-02T03:04:05"),
        ("point", {"x": 1, "when": "2020-01-02"}), ("keys", {"1": "a", "null": "b"}),
        ("long", 2**70), ("surrogate", "a?b"),
    ],
)  # fmt: skip
def test_common_values_that_json_has_not_are_sent_as_what_stands_for_them(
    start, name, value, orjson
):
    guest = start(JSON, orjson=orjson)
    assert guest.call("scripted.value", parameters={"name": name}) == answer("call", value)


@with_and_without_orjson
@pytest.mark.parametrize("name", ["object", "cycle"])
def test_a_value_that_cannot_be_sent_is_a_failure_and_not_a_lost_answer(start, name, orjson):
    guest = start(JSON, orjson=orjson)
    failed = guest.call("scripted.value", parameters={"name": name})
    assert not failed["success"] and "cannot be sent as JSON" in failed["error"]
    failed = guest.call("scripted.refuse", parameters={"name": name})
    assert failed == answer("call", None, "because ?")
    assert guest.call("scripted.stream", parameters={"name": name}) == chunk("call", 1)
    assert not guest.read()["success"]
    assert guest.call("scripted.value", parameters={"name": "set"}) == answer("call", [1])


STREAM = """
import asyncio

@plugin.slot
def count(n: int):
    try:
        for i in range(n):
            yield i
    finally:
        host.log("info", "closed")
    return {"count": n}

@plugin.slot
async def count_async(n: int):
    try:
        for i in range(n):
            yield i
            await asyncio.sleep(0)
    finally:
        host.log("info", "closed")

@plugin.slot
def stumble():
    yield 1
    raise SlotError("no further", data=2)

@plugin.slot
def confirm():
    yield 1
    yield host.call("more")
    yield 3
"""


def test_a_generator_streams_its_values_before_its_final_answer(start):
    guest = start(STREAM)
    guest.request("scripted.count", "s", parameters={"n": 3})
    assert [guest.read() for _ in range(3)] == [chunk("s", n) for n in range(3)]
    assert guest.read()["function"] == "log"
    assert guest.read() == answer("s", {"count": 3})
    assert guest.call("scripted.count", parameters={"n": 0})["function"] == "log"
    assert guest.read() == answer("call", {"count": 0})


def test_an_asynchronous_generator_streams_too(start):
    guest = start(STREAM)
    guest.request("scripted.count_async", "s", parameters={"n": 3})
    assert [guest.read() for _ in range(3)] == [chunk("s", n) for n in range(3)]
    assert guest.read()["function"] == "log"
    assert guest.read() == answer("s", None)


def test_a_chunk_is_sent_at_once_and_not_with_the_next_one(start):
    guest = start(STREAM)
    guest.request("scripted.confirm", "s")
    assert guest.read() == chunk("s", 1)
    call = guest.read()  # it waits here, with its first value sent
    guest.send(type="host_response", id=call["id"], success=True, data=2)
    assert [guest.read() for _ in range(3)] == [chunk("s", 2), chunk("s", 3), answer("s")]


def test_a_generator_that_fails_ends_its_stream_with_the_failure(start):
    guest = start(STREAM)
    assert guest.call("scripted.stumble") == chunk("call", 1)
    assert guest.read() == answer("call", 2, "no further")


@pytest.mark.parametrize("slot", ["scripted.count", "scripted.count_async"])
def test_cancel_closes_a_streaming_generator_at_its_next_value(start, slot):
    guest = start(STREAM)
    guest.request(slot, "s", parameters={"n": 10**9})
    assert [guest.read() for _ in range(3)] == [chunk("s", n) for n in range(3)]
    guest.cancel("s")
    while (message := guest.read())["type"] == "guest_chunk":
        pass
    assert message["parameters"] == {"level": "info", "message": "closed"}
    assert guest.read() == answer("s", None, "cancelled")
    assert guest.call("plugin_init")["success"]


def test_a_guest_whose_reader_is_gone_ends_instead_of_streaming_on(start):
    guest = start(STREAM)
    guest.request("scripted.count", "s", parameters={"n": 10**9})
    assert guest.read() == chunk("s", 0)
    guest.stdout.close()
    assert guest.process.wait(PATIENCE) == 0


CANCEL = """
import asyncio, time

@plugin.slot
def watch():
    host.log("info", "begun")
    while not current().cancelled:
        time.sleep(0.001)
    return "saw it"

@plugin.slot
def check():
    host.log("info", "begun")
    while True:
        try:
            current().check()
        except Exception:  # which does not catch it
            pass
        time.sleep(0.001)

@plugin.slot
def ask():
    return host.call("wait")

@plugin.slot
async def sleep():
    host.log("info", "begun")
    try:
        await asyncio.sleep(3600)
    finally:
        host.log("info", "cleaned up")

@plugin.slot
async def block_the_loop():
    return host.call("wait")
"""


@pytest.mark.parametrize("arguments", ["", ", threads=2"], ids=["main thread", "pool"])
def test_a_slot_sees_that_its_call_was_cancelled(start, arguments):
    guest = start(CANCEL, arguments=arguments)
    for slot, end in (
        ("watch", answer("1", "saw it")),
        ("check", answer("1", None, "cancelled")),
        ("ask", answer("1", None, "cancelled")),
    ):
        guest.request(f"scripted.{slot}", "1")
        assert guest.read()["type"] == "host_call"
        guest.cancel("another")
        guest.cancel("1")
        assert guest.read() == end
    assert "Traceback" not in guest.stderr


def test_cancel_cancels_the_task_of_a_coroutine(start):
    guest = start(CANCEL)
    for id in "ab":
        guest.request("scripted.sleep", id)
        assert guest.read()["parameters"]["message"] == "begun"
    guest.cancel("b")
    assert guest.read()["parameters"]["message"] == "cleaned up"
    assert guest.read() == answer("b", None, "cancelled")
    guest.cancel("a")
    guest.read()
    assert guest.read() == answer("a", None, "cancelled")
    assert guest.end() == 0
    assert guest.stderr == ""


def test_cancel_reaches_a_coroutine_that_has_not_begun(start):
    guest = start(CANCEL + ECHO)
    guest.request("scripted.block_the_loop", "1")
    call = guest.read()
    guest.request("scripted.sleep", "2")
    assert guest.call("scripted.echo", parameters={"value": 1}) == answer("call", 1)
    guest.cancel("2")
    guest.send(type="host_response", id=call["id"], success=True, data="go on")
    assert guest.read() == answer("1", "go on")
    assert [guest.read().get("function") for _ in range(2)] == ["log", "log"]
    assert guest.read() == answer("2", None, "cancelled")


def test_cancel_drops_a_call_that_is_still_queued(start):
    guest = start(WAIT + ECHO)
    guest.request("scripted.wait", "1")
    call = guest.read()
    for id in "234":
        guest.request("scripted.echo", id, parameters={"value": id})
    guest.cancel("3")
    guest.send(type="host_response", id=call["id"], success=True, data="go on")
    assert [guest.read() for _ in range(3)] == [
        answer("1", "go on"), answer("2", "2"), answer("4", "4"),
    ]  # fmt: skip
    assert guest.end() == 0
    assert guest.at_end() == b""


def test_a_slot_knows_its_call(start):
    guest = start("""
        import time
        @plugin.slot
        def about():
            call = current()
            left = call.deadline and call.deadline - time.monotonic()
            return [call.id, call.slot, call.context, left, call.cancelled]
        @plugin.slot
        async def about_async():
            return about()
    """)
    for slot in ("scripted.about", "scripted.about_async"):
        guest.request(slot, "7", context={"user": 1}, timeout_ms=5000)
        id, _, context, left, cancelled = guest.read()["data"]
        assert (id, context, cancelled) == ("7", {"user": 1}, False)
        assert 0 < left <= 5
        guest.request(slot)
        assert guest.read()["data"] == [None, slot, None, None, False]


def test_a_host_call_waits_no_longer_than_it_should(start):
    guest = start("""
        import time
        @plugin.slot
        def ask(timeout=None):
            began = time.monotonic()
            try:
                host.call("silence", timeout=timeout)
            except HostError as error:
                return [str(error).partition(" within")[0], time.monotonic() - began]
    """)
    for more in ({"parameters": {"timeout": 0.05}}, {"timeout_ms": 50}):
        guest.request("scripted.ask", "1", **more)
        call = guest.read()
        text, took = guest.read()["data"]
        assert text == "silence: no answer" and took < 5
        guest.send(type="host_response", id=call["id"], success=True, data="too late")
    guest.request("scripted.ask", "2", timeout_ms=0)
    assert guest.read()["type"] == "host_call"
    assert guest.read()["data"][0] == "silence: no answer"


def test_host_calls_of_many_slots_get_their_own_answers_in_any_order(start):
    guest = start(
        """
        @plugin.slot
        def ask(n: int):
            return n, host.call("double", {"n": n})
        """,
        arguments=", threads=8",
    )
    for n in range(8):
        guest.request("scripted.ask", str(n), parameters={"n": n})
    calls = [guest.read() for _ in range(8)]
    assert all(isinstance(call["id"], str) for call in calls)
    assert len({call["id"] for call in calls}) == 8
    for call in reversed(calls):
        data = 2 * call["parameters"]["n"]
        guest.send(type="host_response", id=call["id"], success=True, data=data)
    answers = [guest.read() for _ in range(8)]
    assert sorted(each["data"] for each in answers) == [[n, 2 * n] for n in range(8)]
    assert all(each["id"] == str(each["data"][0]) for each in answers)


def test_end_of_input_ends_a_host_call_and_the_slot_is_answered(start):
    guest = start(WAIT)
    guest.request("scripted.wait", "1")
    guest.read()
    guest.stdin.close()
    failed = guest.read()
    assert failed["error"].startswith("HostError: the host has closed the connection")
    assert guest.process.wait(PATIENCE) == 0


def test_end_of_input_lets_coroutines_finish(start):
    guest = start("""
        import asyncio
        @plugin.slot
        async def slow():
            host.log("info", "begun")
            await asyncio.sleep(0.05)
            return "done"
    """)
    guest.request("scripted.slow", "1")
    guest.read()
    guest.stdin.close()
    assert guest.read() == answer("1", "done")
    assert guest.process.wait(PATIENCE) == 0


HOOKS = """
@plugin.on_init
def first():
    host.log("info", "init")

@plugin.on_init
async def second():
    host.log("info", "init in the loop")

@plugin.on_shutdown
def third():
    host.log("info", "shutdown")

@plugin.on_shutdown
async def fourth():
    host.log("info", "shutdown in the loop")
"""


def test_hooks_run_once_at_the_begin_and_once_at_the_end(start):
    guest = start(HOOKS)
    for _ in range(2):
        guest.request("plugin_init", "1")
    messages = [guest.read() for _ in range(4)]
    assert [each.get("parameters", {}).get("message") for each in messages] == [
        "init", "init in the loop", None, None,
    ]  # fmt: skip
    guest.stdin.close()
    messages = [json.loads(line) for line in guest.at_end().splitlines()]
    assert [each["parameters"]["message"] for each in messages] == [
        "shutdown", "shutdown in the loop",
    ]  # fmt: skip
    assert guest.process.wait(PATIENCE) == 0


def test_a_hook_that_fails_is_told_and_does_not_keep_the_others_from_running(start):
    guest = start("""
        @plugin.on_init
        def fail():
            raise ValueError("no database")
        @plugin.on_shutdown
        def fail_again():
            raise ValueError("no good-bye")
        @plugin.on_shutdown
        def say():
            host.log("info", "the other one")
    """)
    failed = guest.call("plugin_init")
    assert failed == answer("call", None, "ValueError: no database")
    guest.stdin.close()
    assert json.loads(guest.at_end())["parameters"]["message"] == "the other one"
    assert guest.process.wait(PATIENCE) == 1
    assert "ValueError: no good-bye" in guest.stderr


@pytest.mark.parametrize("arguments", ["", ", threads=2"], ids=["main thread", "pool"])
def test_sigterm_ends_the_guest_after_the_slots_that_run(start, arguments):
    guest = start(WAIT + ECHO + HOOKS, arguments=arguments)
    running = "12" if arguments else "1"
    for id in running:
        guest.request("scripted.wait", id)
    calls = [guest.read() for _ in running]
    guest.process.send_signal(signal.SIGTERM)
    for call in calls:
        guest.send(type="host_response", id=call["id"], success=True, data="finished")
    answers = [guest.read() for _ in running]
    assert sorted(each["id"] for each in answers) == list(running)
    assert {each["data"] for each in answers} == {"finished"}
    rest = [json.loads(line) for line in guest.at_end().splitlines()]
    assert [each["parameters"]["message"] for each in rest] == ["shutdown", "shutdown in the loop"]
    assert guest.process.wait(PATIENCE) == 0
    assert guest.stderr == ""


def test_sigterm_drops_the_calls_that_are_still_queued(start):
    guest = start(WAIT + ECHO)
    guest.request("scripted.wait_twice", "1")
    call = guest.read()
    guest.request("scripted.echo", "queued", parameters={"value": 1})
    guest.send(type="host_response", id=call["id"], success=True)
    call = guest.read()  # the queued one has been read by now
    guest.process.send_signal(signal.SIGTERM)
    guest.send(type="host_response", id=call["id"], success=True, data="finished")
    assert guest.read() == answer("1", "finished")
    assert guest.at_end() == b""
    assert guest.process.wait(PATIENCE) == 0


def test_sigterm_ends_an_idle_guest_whose_input_stays_open(start):
    guest = start(ECHO)
    assert guest.call("scripted.echo", parameters={"value": 1}) == answer("call", 1)
    guest.process.send_signal(signal.SIGTERM)
    assert guest.process.wait(PATIENCE) == 0
    assert guest.stderr == ""


def test_long_answers_of_many_threads_are_never_interleaved(start):
    guest = start(
        """
        @plugin.slot
        def long(letter: str):
            yield letter * 100_000
            return letter * 200_000
        """,
        arguments=", threads=8",
    )
    letters = "abcdefgh" * 10
    for number, letter in enumerate(letters):
        guest.request("scripted.long", str(number), parameters={"letter": letter})
    seen: dict[str, list[str]] = {}
    for _ in range(2 * len(letters)):
        message = guest.read()
        seen.setdefault(message["id"], []).append(message["data"])
    assert seen == {str(n): [c * 100_000, c * 200_000] for n, c in enumerate(letters)}


def test_a_signal_handler_may_log_in_the_middle_of_a_long_answer(start):
    guest = start("""
        import signal
        signal.signal(signal.SIGUSR1, lambda *_: host.log("info", "signalled"))
        @plugin.slot
        def long():
            return "x" * 1_000_000
    """)
    guest.request("scripted.long", "1")
    begin = guest.read_some(10)  # now the guest is in a write that cannot end
    guest.process.send_signal(signal.SIGUSR1)
    line = begin + guest.read_line()
    assert json.loads(line) == answer("1", "x" * 1_000_000)
    assert guest.read()["parameters"]["message"] == "signalled"


def test_answers_wait_while_nobody_reads_and_cancel_still_arrives(start):
    guest = start(STREAM, arguments=", threads=2")
    guest.request("scripted.count", "s", parameters={"n": 10**9})
    assert guest.read() == chunk("s", 0)
    size = _memory(guest.process.pid)
    deadline = time.monotonic() + 0.3  # in which it would produce some 10 MB
    while time.monotonic() < deadline:
        assert _memory(guest.process.pid) - size < 8 * MIB
    guest.cancel("s")
    while guest.read()["type"] != "guest_response":
        pass


def _memory(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


# What is wrong is said where the author sees it.


def test_a_slot_whose_parameters_cannot_be_given_by_name_is_refused():
    plugin = Plugin("wrong")
    with pytest.raises(TypeError, match="positional: a cannot be given by name"):

        @plugin.slot
        def positional(a: int, /) -> None: ...

    with pytest.raises(TypeError, match="starred: args cannot be given by name"):

        @plugin.slot
        def starred(*args: int) -> None: ...


def test_a_name_is_given_to_one_slot_only():
    plugin = Plugin("wrong")
    plugin.slot("twice")(lambda: 1)
    with pytest.raises(ValueError, match="there is a slot 'twice' already"):
        plugin.slot("twice")(lambda: 2)
    with pytest.raises(ValueError, match="'plugin_init' already"):
        plugin.slot("plugin_init")(lambda: 3)


def test_a_decorated_function_stays_callable_as_before():
    plugin = Plugin("plain")

    @plugin.slot
    def double(n: int) -> int:
        return 2 * n

    @plugin.slot("other.name")
    def triple(n: int = 1, **more: Any) -> int:
        return 3 * n

    assert (double(2), triple(2)) == (4, 6)
    assert [definition["name"] for definition in plugin.definitions] == [
        "plain.double", "other.name",
    ]  # fmt: skip
    assert list(plugin.definitions[1]["inputs"]) == ["n"]


def test_an_input_that_is_bytes_is_described_as_anything():
    """And not as a list, as which an array would be sent."""
    plugin = Plugin("plain")

    @plugin.slot
    def digest(a: bytes, b: bytearray, c: memoryview, d: bytes | memoryview | None = None) -> None:
        pass

    inputs = plugin.definitions[0]["inputs"]
    assert {name: each["type"] for name, each in inputs.items()} == dict.fromkeys("abcd", "any")


def test_outside_of_a_slot_there_is_no_call_and_no_host():
    with pytest.raises(LookupError):
        zeno_fast.guest.current()
    with pytest.raises(zeno_fast.guest.HostError, match=r"no host is connected before run\(\)"):
        zeno_fast.guest.host.file_read("a")
    assert threading.current_thread() is threading.main_thread()


def test_each_of_many_slots_at_once_has_the_scope_of_its_own_call(manager, write):
    manager.load_plugin(
        write(
            """
            import time

            @plugin.slot
            def who():
                time.sleep(0.05)
                return host.scope_get("user")
            """,
            arguments=", threads=8",
            manifest="permissions: {scope: read}",
        )
    )
    futures = [manager.submit("scripted.who", scope={"user": number}) for number in range(24)]
    assert [future.result(20) for future in futures] == list(range(24))
