"""R: a plugin is reloaded while it is used, and what comes to be loaded is not fit for it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from wasm.conftest import ALLOC, ECHO_BODY, data, module

from zeno_fast import (
    LoadedPlugin,
    ManifestError,
    PermissionDenied,
    PluginLoadError,
    PluginManager,
    PluginUnavailable,
    SlotNotFound,
    SlotTimeout,
    UsageError,
    ZenoError,
)
from zeno_fast.sidecar.driver import SidecarDriver

from .wasm_guests import in_threads

MakePlugin = Callable[..., Path]
Publish = Callable[..., Path]

RELOADS = 12
BOUND = 60.0  # seconds for what takes some tenths of one; other work shares the machine
KINDS = ["ids", "no-ids", "wasm"]

SIDECAR = """
VERSION = {version}
for request in requests():
    if greeted(request, {slots}):
        continue
    parameters = request.get("parameters") or {{}}
    if parameters.get("wait_for"):
        mark(parameters["mark"])
        wait_for(parameters["wait_for"])
    if parameters.get("ask"):
        put({{"type": "host_call", "id": "h1", "function": "db_query", "call_id": request.get("id"),
             "parameters": {{"connection": "main"}}}})
        response = json.loads(sys.stdin.readline())
        while response.get("type") != "host_response":
            response = json.loads(sys.stdin.readline())
        answer(request, response)
        continue
    answer(request, {{"v": VERSION, "p": parameters}})
"""


def wasm(version: int) -> str:
    """Write a module that answers with its version and the parameters."""
    head = f'{{"success":true,"data":{{"v":{version},"p":'
    body = ECHO_BODY.replace("(i32.const 23)", f"(i32.const {len(head)})")
    return module(body, data(1024, head) + data(1100, "}}" + "\0" * 6), alloc=ALLOC)


@pytest.fixture
def publish(
    make_ids_guest: MakePlugin,
    make_bare_guest: MakePlugin,
    make_wasm: MakePlugin,
    parked_soon: None,
) -> Publish:
    """Write a version of the plugin `p`, of any kind, into its folder."""

    def publish(
        kind: str, version: int, slots: tuple[str, ...] = ("run",), manifest: str = ""
    ) -> Path:
        if kind == "wasm":
            return make_wasm(wasm(version), name="p", slots=slots)
        make = make_bare_guest if kind == "no-ids" else make_ids_guest
        program = SIDECAR.format(version=version, slots=", ".join(map(repr, slots)))
        sidecar = "auto_start: false" if kind == "lazy" else ""
        return make(program, name="p", manifest=manifest, sidecar=sidecar)

    return publish


def gone(pid: int | None) -> bool:
    """Tell whether a process, if there was one, is no more."""
    if pid is None:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class Load:
    """Calls `run` in every way at once, from threads and a loop, until it is told to stop.

    Every answer has to be that of its own call, and of a version that was there during the call.
    """

    def __init__(self, manager: PluginManager) -> None:
        self.manager = manager
        self.reloaded = self.published = 0
        self.failures: list[str] = []
        self.counts: dict[str, int] = {}
        self._done = threading.Event()
        self._threads = [
            *(threading.Thread(target=self._run, args=(self.call, f"call {n}")) for n in range(8)),
            threading.Thread(target=self._run, args=(self.submit, "submit")),
            threading.Thread(target=self._run, args=(self.stream, "stream")),
            threading.Thread(target=self._run, args=(self.map, "map")),
            threading.Thread(target=self._run, args=(self.loop, "loop")),
        ]
        for thread in self._threads:
            thread.start()

    def call(self, who: str, n: int) -> None:
        floor = self.reloaded
        self.check(who, n, self.manager.call("run", {"who": who, "n": n}), floor)

    def submit(self, who: str, n: int) -> None:
        floor = self.reloaded
        futures = [self.manager.submit("run", {"who": who, "n": n + i}) for i in range(20)]
        wait(futures, BOUND)
        for i, future in enumerate(futures):
            self.check(who, n + i, future.result(0), floor)

    def stream(self, who: str, n: int) -> None:
        floor = self.reloaded
        with self.manager.stream("run", {"who": who, "n": n}) as stream:
            assert list(stream) == []
            self.check(who, n, stream.result, floor)

    def map(self, who: str, _: int) -> None:
        many = ({"who": who, "n": n} for n in itertools.count())
        for n, got in enumerate(self.manager.map("run", many)):
            self.check(who, n, got, 0)
            if self._done.is_set():
                return

    def loop(self, who: str, _: int) -> None:
        async def task(number: int) -> None:
            name = f"{who} {number}"
            for n in itertools.count():
                floor = self.reloaded
                got = await self.manager.call_async("run", {"who": name, "n": n})
                self.check(name, n, got, floor)
                if self._done.is_set():
                    return
                await asyncio.sleep(0)

        async def tasks() -> None:
            await asyncio.gather(*(task(number) for number in range(8)))

        asyncio.run(tasks())

    def check(self, who: str, n: int, got: Any, floor: int) -> None:
        self.counts[who] = self.counts.get(who, 0) + 1
        if got["p"] != {"who": who, "n": n} or not floor <= got["v"] <= self.published:
            self.failures.append(f"{who} {n}: got {got}, version {floor} to {self.published}")

    def _run(self, work: Callable[[str, int], None], who: str) -> None:
        try:
            for n in itertools.count():
                work(who, n)
                if self._done.is_set() or self.failures:
                    return
        except BaseException as error:  # noqa: BLE001 - it is reported by the thread that checks
            self.failures.append(f"{who}: {error!r}")

    def finish(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(BOUND)
        assert not [thread.name for thread in self._threads if thread.is_alive()]
        assert self.failures == []


@pytest.mark.parametrize(
    "kinds",
    [["ids"], ["no-ids"], ["wasm"], ["lazy"], ["ids", "wasm", "no-ids"], ["wasm", "lazy"]],
    ids="-".join,
)
def test_r1_no_call_is_lost_or_crossed_while_a_plugin_is_reloaded(
    manager: PluginManager, publish: Publish, kinds: list[str]
) -> None:
    kind = itertools.cycle(kinds)
    manager.load_plugin(publish(next(kind), 0))
    load = Load(manager)
    try:
        for version in range(1, RELOADS + 1):
            old = manager.get_plugin("p")
            pid = old.status().get("pid")
            counted = dict(load.counts)
            deadline = time.monotonic() + BOUND
            while len(load.counts) < 19 or any(
                load.counts[who] < counted.get(who, 0) + 3 for who in load.counts
            ):
                assert time.monotonic() < deadline and not load.failures, load.failures
                time.sleep(0.005)
            publish(next(kind), version)
            load.published = version
            new = manager.reload_plugin("p", allow_more_permissions=True)
            load.reloaded = version
            assert manager.get_plugin("p").driver is new.driver
            assert old.status()["state"] == "closed"
            assert gone(pid)
    finally:
        load.finish()


def stragglers(manager: PluginManager) -> dict[str, Callable[[], Any]]:
    """Return every way to call `run`, each of which has looked up who answers already."""
    assert manager.call("run")["v"] == 0
    bound = manager._routes["run"]
    parameters = {"n": 1}
    many = manager.map("run", [parameters] * 600)
    begun = manager.map("run", ({"n": 1} for _ in itertools.count()))
    assert next(begun)["v"] == 0
    stream, async_stream = manager.stream("run", parameters), manager.stream("run", parameters)
    late = manager.call_async("run", parameters)

    def read(stream: Any) -> Any:
        assert list(stream) == []
        return stream.result

    async def read_async() -> Any:
        assert [chunk async for chunk in async_stream] == []
        return async_stream.result

    async def wait_for_it() -> Any:
        return await late

    def go_on() -> Any:
        # What was on its way before is answered by the old version, in order, then the new one.
        versions = [got["v"] for got in itertools.islice(begun, 1000)]
        assert versions == sorted(versions)
        begun.close()  # type: ignore[attr-defined]
        return {"v": versions[-1], "p": parameters}

    def last_of_many() -> Any:
        got = list(many)
        assert len(got) == 600
        return got[-1]

    return {
        "call": lambda: bound.call(parameters, None, None),
        "submit": lambda: bound.submit(parameters, None, None).result(BOUND),
        "map": last_of_many,
        "map that was begun": go_on,
        "stream": lambda: read(stream),
        "stream that is bound late": lambda: read(bound.stream(parameters, None, None)),
        "async stream": lambda: asyncio.run(read_async()),
        "call_async": lambda: asyncio.run(wait_for_it()),
        "execute_slot": lambda: manager.execute_slot("p", "run", parameters).data,
    }


@pytest.mark.parametrize("new", [*KINDS, "lazy"])
@pytest.mark.parametrize("old", [*KINDS, "lazy"])
def test_r1_who_has_found_the_old_version_is_answered_by_the_new_one(
    manager: PluginManager, publish: Publish, old: str, new: str
) -> None:
    manager.load_plugin(publish(old, 0))
    ways = stragglers(manager)
    publish(new, 1)
    manager.reload_plugin("p", allow_more_permissions=True)
    for way, call in ways.items():
        assert call() == {"v": 1, "p": {"n": 1}}, way
    publish(old, 2)
    manager.reload_plugin("p", allow_more_permissions=True)
    bound = ways["call"]
    assert bound() == {"v": 2, "p": {"n": 1}}


@pytest.mark.parametrize("kind", ["ids", "no-ids"])
def test_r1_calls_in_flight_are_finished_by_the_old_version(
    manager: PluginManager, publish: Publish, tmp_path: Path, kind: str
) -> None:
    old = manager.load_plugin(publish(kind, 0))
    pid = old.status()["pid"]
    slow = manager.submit(
        "run", {"mark": str(tmp_path / "begun"), "wait_for": str(tmp_path / "go")}
    )
    wait_until((tmp_path / "begun").exists)
    publish(kind, 1)
    reload = threading.Thread(target=manager.reload_plugin, args=("p",))
    reload.start()
    wait_until(lambda: manager.get_plugin("p") is not old)
    assert manager.call("run", {"n": 1})["v"] == 1
    assert not slow.done() and not gone(pid) and reload.is_alive()
    (tmp_path / "go").touch()
    assert slow.result(BOUND)["v"] == 0
    reload.join(BOUND)
    assert not reload.is_alive() and gone(pid)


@pytest.mark.parametrize("kind", ["ids", "no-ids"])
def test_r1_a_call_that_never_ends_holds_up_a_reload_until_its_deadline(
    manager: PluginManager, publish: Publish, tmp_path: Path, kind: str
) -> None:
    manager.load_plugin(publish(kind, 0))
    pid = manager.get_plugin("p").status()["pid"]
    stuck = manager.submit(
        "run", {"mark": str(tmp_path / "begun"), "wait_for": str(tmp_path / "never")}, timeout=1.0
    )
    wait_until((tmp_path / "begun").exists)
    began = time.monotonic()
    manager.reload_plugin("p")
    assert time.monotonic() - began < 1.0 + 1.0 + 5.0 + 5.0  # deadline, grace, stop, a busy machine
    assert isinstance(stuck.exception(0), ZenoError)
    assert gone(pid)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_r1_slots_that_vanish_are_not_found_and_new_ones_appear(
    manager: PluginManager, publish: Publish
) -> None:
    manager.load_plugin(publish("ids", 0, slots=("run", "old")))
    publish("ids", 1, slots=("run", "new"))
    manager.reload_plugin("p")
    assert sorted(manager.slots) == ["new", "run"]
    assert manager.call("new")["v"] == 1
    with pytest.raises(SlotNotFound):
        manager.call("old")


def test_r1_another_plugin_is_called_while_a_new_version_starts_and_an_old_one_drains(
    manager: PluginManager, publish: Publish, tmp_path: Path, healthy: Any
) -> None:
    folder = publish("ids", 0)
    manager.load_plugin(folder)
    for version in range(1, 4):
        publish("ids", version)
        with (folder / "guest.py").open("r+") as file:
            text = file.read()
            file.seek(0)
            file.write("import time; time.sleep(0.5)\n" + text)
        slow = manager.submit(
            "run", {"mark": str(tmp_path / "begun"), "wait_for": str(tmp_path / f"go{version}")}
        )
        threading.Timer(1.0, (tmp_path / f"go{version}").touch).start()
        manager.reload_plugin("p")
        assert slow.result(0)["v"] == version - 1


UNFIT = {
    "that fails its handshake": ("raise SystemExit(9)", PluginLoadError, "exit status 9"),
    "that is of another protocol": (
        "for request in requests():\n    greeted(request, 'run', protocol=7)\n",
        PluginLoadError,
        "version 7",
    ),
}


@pytest.mark.parametrize("what", UNFIT)
@pytest.mark.parametrize("kind", [*KINDS, "lazy"])
def test_r2_a_version_leaves_the_old_one_serving(
    manager: PluginManager, publish: Publish, make_ids_guest: MakePlugin, kind: str, what: str
) -> None:
    events = watch_events(manager)
    manager.load_plugin(publish(kind, 0))
    assert manager.call("run")["v"] == 0
    program, error, words = UNFIT[what]
    make_ids_guest(program, name="p", sidecar="auto_start: false" if kind == "lazy" else "")
    with pytest.raises(error, match=words):
        manager.reload_plugin("p", allow_more_permissions=True)
    assert manager.call("run")["v"] == 0
    assert [(event.kind, event.plugin) for event in events] == [("reload_failed", "p")]


def test_r2_a_version_that_claims_anothers_slot_leaves_the_old_one_serving(
    manager: PluginManager, publish: Publish, healthy: Any
) -> None:
    manager.load_plugin(publish("ids", 0))
    publish("ids", 1, slots=("run", "healthy"))
    with pytest.raises(PluginLoadError, match="claimed by two plugins"):
        manager.reload_plugin("p")
    assert manager.call("run")["v"] == 0


def test_r2_a_manifest_that_does_not_parse_leaves_the_old_one_serving(
    manager: PluginManager, publish: Publish
) -> None:
    folder = publish("ids", 0)
    manager.load_plugin(folder)
    (folder / "manifest.yaml").write_text("name: [p")
    with pytest.raises(ManifestError):
        manager.reload_plugin("p")
    assert manager.call("run")["v"] == 0


def watch_events(manager: PluginManager) -> list[Any]:
    """Return the list to which what becomes of reloads is added."""
    events: list[Any] = []

    def note(event: Any) -> None:
        if event.kind.startswith("reload"):
            events.append(event)

    manager._events.subscribe(note)
    return events


def checked(folder: Path, source: str) -> None:
    """Write a sidecar's program and a manifest that names its digest."""
    (folder / "guest.py").write_text(source)
    digest = hashlib.sha256(source.encode()).hexdigest()
    (folder / "manifest.yaml").write_text(
        f"name: p\ntype: sidecar\nbinary: ./guest.py\nsha256: {digest}\n"
        "sidecar: {stop_timeout: 0}\n"
    )


def test_r4_another_checksum_leaves_the_old_version_serving(
    manager: PluginManager, publish: Publish
) -> None:
    folder = publish("ids", 0)
    manager.load_plugin(folder)
    source = (folder / "guest.py").read_text()
    checked(folder, source.replace("VERSION = 0", "VERSION = 1"))
    with (folder / "guest.py").open("a") as file:
        file.write("# changed after it was signed\n")
    with pytest.raises(PluginLoadError, match="SHA-256"):
        manager.reload_plugin("p")
    assert manager.call("run")["v"] == 0
    checked(folder, source.replace("VERSION = 0", "VERSION = 1"))
    manager.reload_plugin("p")
    assert manager.call("run")["v"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the checked copy is a sealed memfd")
def test_r4_a_file_replaced_between_check_and_start_is_not_run(
    manager: PluginManager, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = publish("ids", 0)
    source = (folder / "guest.py").read_text()
    checked(folder, source)
    manager.load_plugin(folder)
    checked(folder, source.replace("VERSION = 0", "VERSION = 1"))
    start = SidecarDriver.start

    def replace_then_start(driver: SidecarDriver) -> Any:
        # The driver holds what was checked by now, and has started nothing.
        (folder / "guest.py").write_text("raise SystemExit('replaced')")
        return start(driver)

    monkeypatch.setattr(SidecarDriver, "start", replace_then_start)
    manager.reload_plugin("p")
    assert manager.call("run")["v"] == 1


def test_r5_a_reload_picks_the_binary_for_this_machine_or_lists_what_is_offered(
    manager: PluginManager, publish: Publish
) -> None:
    # How a binary is picked is tested in tests/unit/test_manifest.py, by the same number.
    folder = publish("ids", 0)
    manager.load_plugin(folder)
    manifest = (folder / "manifest.yaml").read_text()
    other = manifest.replace("binary: ./guest.py", "binaries: {windows-arm64: ./guest.py}")
    (folder / "manifest.yaml").write_text(other)
    with pytest.raises(PluginLoadError, match="windows-arm64"):
        manager.reload_plugin("p")
    assert manager.call("run")["v"] == 0


MORE = {
    "network": ("[https://a.example/*]", "[https://a.example/v1/*, https://b.example/*]", 1),
    "filesystem": ("[./data]", "[./data/sub, /etc]", 1),
    "env": ("[HOME]", "[HOME, SECRET]", 1),
    "database": ("[main]", "[main, '*']", 1),
    "scope": ("[read]", "[read, write]", 1),
}


@pytest.mark.parametrize("kind", MORE)
def test_r6_an_update_that_asks_for_more_is_refused_until_it_is_accepted(
    manager: PluginManager, publish: Publish, kind: str
) -> None:
    events = watch_events(manager)
    old, new, index = MORE[kind]
    manager.load_plugin(publish("ids", 0, manifest=f"permissions:\n  {kind}: {old}\n"))
    folder = publish("ids", 1, manifest=f"permissions:\n  {kind}: {new}\n")
    entry = new.strip("[]").split(", ")[index].strip("'")
    line = (folder / "manifest.yaml").read_text().splitlines().index(f"  {kind}: {new}") + 1
    for _ in range(2):
        with pytest.raises(PermissionDenied) as caught:
            manager.reload_plugin("p")
        message = str(caught.value)
        assert f"{entry!r} (permissions.{kind}, line {line})" in message
        assert "reload_plugin('p', allow_more_permissions=True)" in message
        assert message.count(f"permissions.{kind}") == 1  # and no entry that was covered
        assert caught.value.plugin == "p"
        assert manager.call("run")["v"] == 0
    assert list(manager.reload_all_plugins().failures) == ["p"]
    assert [event.kind for event in events] == ["reload_refused"] * 3
    manager.reload_plugin("p", allow_more_permissions=True)
    assert manager.call("run")["v"] == 1
    manager.reload_plugin("p")  # what was accepted is what the next version is compared with
    publish("ids", 2, manifest=f"permissions:\n  {kind}: []\n")
    manager.reload_plugin("p")
    assert manager.call("run")["v"] == 2
    publish("ids", 3, manifest=f"permissions:\n  {kind}: {new}\n")
    with pytest.raises(PermissionDenied):
        manager.reload_plugin("p")


def test_r6_a_guest_does_not_leave_its_sandbox_by_an_update(
    manager: PluginManager, publish: Publish
) -> None:
    manager.load_plugin(publish("wasm", 0))
    publish("ids", 1)
    with pytest.raises(PermissionDenied, match="native process"):
        manager.reload_plugin("p")
    assert manager.call("run")["v"] == 0
    manager.reload_plugin("p", allow_more_permissions=True)
    publish("wasm", 2)
    manager.reload_plugin("p")
    assert manager.call("run")["v"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_reloads_of_one_plugin_at_the_same_time_come_one_after_the_other(
    manager: PluginManager, publish: Publish, kind: str
) -> None:
    manager.load_plugin(publish(kind, 0))
    publish(kind, 1)
    seen: list[LoadedPlugin] = []
    in_threads(6, lambda _: seen.append(manager.reload_plugin("p")))
    assert len({id(plugin) for plugin in seen}) == 6
    assert manager.get_plugin("p") in seen
    for plugin in seen:
        closed = plugin is not manager.get_plugin("p")
        assert (plugin.status()["state"] == "closed") is closed
    assert manager.call("run")["v"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_closing_a_manager_while_it_reloads_leaves_nothing(
    no_leaks: None, publish: Publish, kind: str
) -> None:
    for pause in (0, 0.01, 0.03, 0.06, 0.1, 0.2):
        manager = PluginManager()
        manager.load_plugin(publish(kind, 0))
        done: list[object] = []

        def reload(manager: PluginManager = manager, done: list[object] = done) -> None:
            try:
                done.append(manager.reload_plugin("p"))
            except (UsageError, PluginLoadError, PluginUnavailable) as error:
                done.append(error)

        thread = threading.Thread(target=reload)
        thread.start()
        time.sleep(pause)
        began = time.monotonic()
        manager.close()
        assert time.monotonic() - began < BOUND / 2
        thread.join(BOUND)
        assert len(done) == 1


def test_closing_a_manager_ends_a_start_that_would_take_long(
    no_leaks: None, publish: Publish
) -> None:
    with PluginManager() as manager:
        folder = publish("ids", 0)
        manager.load_plugin(folder)
        (folder / "guest.py").write_text("import time; time.sleep(60)")
        thread = threading.Thread(target=swallow, args=(manager.reload_plugin, "p"))
        thread.start()
        time.sleep(0.3)
        began = time.monotonic()
        manager.close()
        thread.join(BOUND)
        assert not thread.is_alive()
        assert time.monotonic() - began < 8  # seconds: its stop_timeout is 5


def test_closing_a_manager_ends_the_wait_for_calls_in_flight(
    no_leaks: None, publish: Publish, tmp_path: Path
) -> None:
    with PluginManager() as manager:
        old = manager.load_plugin(publish("ids", 0))
        begun = tmp_path / "begun"
        slow = manager.submit("run", {"mark": str(begun), "wait_for": str(tmp_path / "never")})
        wait_until(begun.exists)
        thread = threading.Thread(target=manager.reload_plugin, args=("p",))
        thread.start()
        wait_until(lambda: manager.get_plugin("p") is not old)
        manager.close()
        thread.join(BOUND)
        assert not thread.is_alive()
        assert isinstance(slow.exception(BOUND), PluginUnavailable)


def swallow(work: Callable[[str], object], name: str) -> None:
    with contextlib.suppress(ZenoError):
        work(name)


ASKING = module(
    "(call $ask (i32.const 4000) (i32.const 21))",
    data(4000, '{"connection":"main"}'),
    imports='(import "env" "host_db_query" (func $ask (param i32 i32) (result i32)))',
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_callback_may_reload_the_plugin_that_waits_for_it(
    manager: PluginManager, publish: Publish, make_wasm: MakePlugin, kind: str
) -> None:
    granted = "permissions: {database: [main]}"

    def write(version: int) -> Path:
        if kind == "wasm":
            return make_wasm(
                ASKING, name="p", slots=("run", f"v{version}"), permissions={"database": ["main"]}
            )
        return publish(kind, version, ("run", f"v{version}"), granted)

    def reload(_: object) -> str:
        manager.reload_plugin("p")
        return "reloaded"

    old = manager.load_plugin(write(0))
    manager.set_host_callback("db_query", reload)
    write(1)
    began = time.monotonic()
    got = manager.call("run", {"ask": True}, timeout=BOUND)
    assert (got if kind == "wasm" else got["data"]) == "reloaded"
    assert time.monotonic() - began < BOUND / 2
    assert sorted(manager.slots) == ["run", "v1"]
    wait_until(lambda: old.status()["state"] == "closed")


def test_a_reload_from_within_a_reload_of_the_same_plugin_is_refused(
    manager: PluginManager, make_ids_guest: MakePlugin
) -> None:
    asked: list[str] = []

    def reload(_: object) -> None:
        try:
            manager.reload_plugin("p")
        except UsageError as error:
            asked.append(str(error))

    manager.set_host_callback("db_query", reload)
    program = """
    for request in requests():
        if request["slot_name"] == "plugin_init":
            put({"type": "host_call", "id": "h", "function": "db_query",
                 "parameters": {"connection": "main"}})
            sys.stdin.readline()
        if not greeted(request, "run"):
            answer(request, 1)
    """
    folder = make_ids_guest(program, name="p", manifest="permissions: {database: [main]}")
    manager.load_plugin(folder)
    manager.reload_plugin("p")
    assert "is being reloaded already" in asked[-1]
    assert manager.call("run") == 1


@pytest.mark.parametrize("kind", ["ids", "no-ids"])
def test_r1_a_map_that_is_not_read_on_loses_nothing_by_a_reload(
    manager: PluginManager, publish: Publish, kind: str
) -> None:
    manager.load_plugin(publish(kind, 0))
    results = manager.map("run", [{"n": n} for n in range(500)], timeout=1.0)
    got = [next(results)]
    publish(kind, 1)
    manager.reload_plugin("p")
    time.sleep(1.1)
    got += results
    assert [answer["p"]["n"] for answer in got] == list(range(500))
    assert [answer["v"] for answer in got] == sorted(answer["v"] for answer in got)
    assert got[-1]["v"] == 1


def test_r1_who_waits_for_a_busy_instance_is_answered_by_the_new_version(
    no_temporary_files: None, manager: PluginManager, make_wasm: MakePlugin, way: str
) -> None:
    go, asked = threading.Event(), itertools.count()

    def block_the_first(_: object) -> int:
        number = next(asked)
        assert number > 0 or go.wait(BOUND)
        return number

    def write(*slots: str) -> Path:
        granted = {"database": ["main"]}
        return make_wasm(ASKING, name="p", slots=slots, permissions=granted, instances=1)

    manager.set_host_callback("db_query", block_the_first)
    old = manager.load_plugin(write("run"))
    first: list[object] = []
    got: list[object] = []
    threads = [threading.Thread(target=lambda: first.append(manager.call("run")))]
    threads[0].start()
    wait_until(lambda: old.status()["busy"] == 1)
    threads += [
        threading.Thread(target=lambda: got.append(manager.call("run", timeout=BOUND)))
        for _ in range(4)
    ]
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: old.status()["waiting"] == 4)
    write("run", "more")
    threads.append(threading.Thread(target=manager.reload_plugin, args=("p",)))
    threads[-1].start()
    wait_until(lambda: len(got) == 4)
    assert not first and old.status()["state"] == "draining"
    go.set()
    for thread in threads:
        thread.join(BOUND)
        assert not thread.is_alive()
    assert first == [0] and sorted(map(str, got)) == ["1", "2", "3", "4"]
    assert old.status()["state"] == "closed" and old.status()["instances"] == 0


@pytest.mark.parametrize("reload_first", [True, False])
def test_r1_a_call_stuck_in_a_host_function_holds_up_a_reload_until_its_deadline(
    no_temporary_files: None,
    manager: PluginManager,
    make_wasm: MakePlugin,
    way: str,
    reload_first: bool,
) -> None:
    go = threading.Event()
    manager.set_host_callback("db_query", lambda _: go.wait(BOUND))
    folder = make_wasm(ASKING, name="p", slots=("run",), permissions={"database": ["main"]})
    old = manager.load_plugin(folder)
    stuck = manager.submit("run", timeout=0.5)
    wait_until(lambda: old.status()["busy"] == 1)
    try:
        if not reload_first:
            time.sleep(0.6)
        began = time.monotonic()
        manager.reload_plugin("p")
        assert time.monotonic() - began < BOUND / 4
    finally:
        go.set()
    assert isinstance(stuck.exception(BOUND), (SlotTimeout, PluginUnavailable))
