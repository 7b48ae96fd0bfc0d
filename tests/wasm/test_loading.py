"""Folders of plugins: compiled at the same time, taken in one after the other, left whole."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from fault.ways import wait_until

from zeno_fast import PluginLoadError, PluginManager, UsageError, ZenoError, loading
from zeno_fast.wasm import program, ticks
from zeno_fast.wasm.driver import WasmDriver
from zeno_fast.wasm.engine import Engine

from .conftest import answering

ECHO = """
for request in requests():
    if not lifecycle(request, "sidecar"):
        answer(request, request["parameters"])
"""


@pytest.fixture(autouse=True)
def parked_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the public API's clock end as soon as it is idle: every test waits for its thread."""
    monkeypatch.setattr(ticks, "PARK_AFTER_NS", 5_000_000)


Make = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    folder.mkdir()
    return folder


@pytest.fixture
def make(folder: Path, way: str) -> Make:
    """Make a WASM plugin whose slot has its name and answers with its number."""

    def make(name: str, number: int = 0, **wasm: Any) -> Path:
        wat = answering(f'{{"success":true,"data":{number}}}')
        place = folder / name
        place.mkdir()
        (place / "plugin.wasm").write_bytes(bytes(wasmtime.wat2wasm(wat)))
        manifest = {
            "name": name, "version": "1.0.0", "binary": "plugin.wasm",
            "slots": [{"name": name}], "wasm": {"instances": 1, **wasm},
        }  # fmt: skip
        (place / "manifest.yaml").write_text(json.dumps(manifest), encoding="utf-8")
        return place

    return make


Around = Callable[[Callable[[bytes], None]], None]


@pytest.fixture
def before_compiling(monkeypatch: pytest.MonkeyPatch) -> Around:
    """Have a function called with each module that is about to be compiled."""
    compile_it = Engine.compile

    def around(function: Callable[[bytes], None]) -> None:
        def compile_after(engine: Engine, code: bytes) -> wasmtime.Module:
            function(code)
            return compile_it(engine, code)

        monkeypatch.setattr(Engine, "compile", compile_after)

    return around


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> list[WasmDriver]:
    """Every driver that begins to load."""
    found: list[WasmDriver] = []
    load = WasmDriver.load

    def note(driver: WasmDriver) -> Any:
        found.append(driver)
        return load(driver)

    monkeypatch.setattr(WasmDriver, "load", note)
    return found


def expect_whole(manager: PluginManager, drivers: list[WasmDriver]) -> None:
    """Fail unless each plugin of a manager works, and what it does not have is closed."""
    plugins = manager.list_plugins()
    for plugin in plugins:
        manager.call(plugin.name)
        assert plugin.status()["state"] == "ready"
        assert set(plugin.slots) <= set(manager.slots)
    for driver in drivers:
        if not any(plugin.driver is driver for plugin in plugins):
            status = driver.status()
            assert (status["state"], status.get("instances", 0)) == ("closed", 0)


def numbered(code: bytes, number: int) -> bool:
    return f'"data":{number}}}'.encode() in code


# -- at the same time -------------------------------------------------------------------------


def test_modules_are_compiled_at_the_same_time(
    manager: PluginManager, folder: Path, make: Make, before_compiling: Around
) -> None:
    together = threading.Barrier(2)
    before_compiling(lambda code: together.wait(30) and None)
    for number in range(4):
        make(f"p{number}", number)
    report = manager.load_plugins_from_dir(folder)
    assert report.failures == {}
    assert [manager.call(f"p{number}") for number in range(4)] == list(range(4))


@pytest.mark.parametrize("fresh", [False, True])
def test_as_many_are_loaded_at_once_as_there_are_threads_for_it(
    manager: PluginManager, folder: Path, make: Make, before_compiling: Around, fresh: bool
) -> None:
    together = threading.Barrier(loading.LOAD_THREADS)
    most, now, lock = 0, 0, threading.Lock()

    def meet(code: bytes) -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        together.wait(30)
        with lock:
            now -= 1

    before_compiling(meet)
    count = 2 * loading.LOAD_THREADS
    for number in range(count):
        make(f"p{number:02}", number, fresh=fresh)
    report = manager.load_plugins_from_dir(folder)
    assert report.failures == {}
    assert most == loading.LOAD_THREADS
    assert [plugin.name for plugin in report.loaded] == [f"p{n:02}" for n in range(count)]
    assert [manager.call(f"p{n:02}") for n in range(count)] == list(range(count))


def test_plugins_are_taken_in_in_the_order_of_their_folders_whoever_is_ready_first(
    manager: PluginManager, folder: Path, make: Make, before_compiling: Around
) -> None:
    last_is_through = threading.Event()

    def wait_for_last(code: bytes) -> None:
        if numbered(code, 2):
            last_is_through.set()
        else:
            assert last_is_through.wait(30)

    before_compiling(wait_for_last)
    for number, name in enumerate("abc"):
        place = make(name, number)
        text = (place / "manifest.yaml").read_text(encoding="utf-8")
        (place / "manifest.yaml").write_text(
            text.replace(f'[{{"name": "{name}"}}]', '[{"name": "shared"}]'), encoding="utf-8"
        )
    report = manager.load_plugins_from_dir(folder)
    assert [plugin.name for plugin in report.loaded] == ["a"]
    assert set(report.failures) == {"b", "c"}
    assert manager.call("shared") == 0


# -- failures ---------------------------------------------------------------------------------


def test_one_that_fails_to_compile_leaves_the_others_loaded(
    manager: PluginManager, folder: Path, make: Make, drivers: list[WasmDriver]
) -> None:
    for number in range(4):
        make(f"p{number}", number)
    (folder / "p1" / "plugin.wasm").write_bytes(b"\0asm\1\0\0\0nonsense")
    report = manager.load_plugins_from_dir(folder)
    assert [plugin.name for plugin in report.loaded] == ["p0", "p2", "p3"]
    assert isinstance(report.failures["p1"], PluginLoadError)
    assert manager.failures == report.failures
    expect_whole(manager, drivers)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("which", [0, 2, 4])
def test_an_error_that_ends_it_all_leaves_no_plugin_half_loaded(
    manager: PluginManager,
    folder: Path,
    make: Make,
    make_plugin: Make,
    before_compiling: Around,
    drivers: list[WasmDriver],
    error: type[BaseException],
    which: int,
) -> None:
    def fail(code: bytes) -> None:
        if numbered(code, which):
            raise error("it ends")

    before_compiling(fail)
    for number in range(5):
        make(f"p{number}", number)
    make_plugin(ECHO, name="sidecar", folder=folder)
    with pytest.raises(error, match="it ends"):
        manager.load_plugins_from_dir(folder)
    assert [plugin.name for plugin in manager.list_plugins()] == [f"p{n}" for n in range(which)]
    expect_whole(manager, drivers)
    before_compiling(lambda code: None)


def test_a_manager_that_is_interrupted_at_its_folder_leaves_nothing(
    no_leaks: None,
    folder: Path,
    make: Make,
    make_plugin: Make,
    before_compiling: Around,
    drivers: list[WasmDriver],
) -> None:
    def fail(code: bytes) -> None:
        if numbered(code, 2):
            raise KeyboardInterrupt

    before_compiling(fail)
    for number in range(4):
        make(f"p{number}", number)
    make_plugin(ECHO, name="a sidecar", folder=folder)
    with pytest.raises(KeyboardInterrupt):
        PluginManager(folder)
    assert len(drivers) >= 3
    assert {driver.status()["state"] for driver in drivers} == {"closed"}


def test_an_interrupt_while_it_waits_for_others_leaves_no_plugin_half_loaded(
    manager: PluginManager,
    folder: Path,
    make: Make,
    make_plugin: Make,
    before_compiling: Around,
    drivers: list[WasmDriver],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupted, waiting = threading.Event(), threading.Event()
    begun = threading.Semaphore(0)
    finish = loading.Loader._finish

    def finish_later(*arguments: Any) -> Any:
        waiting.set()
        return finish(*arguments)

    def on_signal(number: int, frame: object) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def wait(code: bytes) -> None:
        begun.release()
        assert interrupted.wait(30)

    def interrupt() -> None:
        for _ in range(4):
            assert begun.acquire(timeout=20)
        assert waiting.wait(20)
        # One that comes just before a lock is waited for does not end the waiting.
        while not interrupted.wait(0.05):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    monkeypatch.setattr(loading.Loader, "_finish", finish_later)
    before_compiling(wait)
    for number in range(4):
        make(f"p{number}", number)
    make_plugin(ECHO, name="zz", folder=folder)
    before = signal.signal(signal.SIGINT, on_signal)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            manager.load_plugins_from_dir(folder)
    finally:
        signal.signal(signal.SIGINT, before)
        thread.join(20)
    assert manager.list_plugins() == []
    assert len(drivers) == 4
    expect_whole(manager, drivers)


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupt_just_as_a_plugin_is_begun_leaves_nothing_of_it(
    manager: PluginManager,
    folder: Path,
    make: Make,
    make_plugin: Make,
    drivers: list[WasmDriver],
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    # As a signal does that arrives while `submit` starts a thread, after the work was handed over.
    class Interrupted(ThreadPoolExecutor):
        count = 0

        def submit(self, *arguments: Any, **named: Any) -> Any:
            future = super().submit(*arguments, **named)
            self.count += 1
            if self.count == after:
                raise KeyboardInterrupt
            return future

    make("one")
    make("two")
    make_plugin(ECHO, name="zz", folder=folder)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "ThreadPoolExecutor", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            manager.load_plugins_from_dir(folder)
    assert manager.list_plugins() == []
    expect_whole(manager, drivers)


# -- closed meanwhile -------------------------------------------------------------------------


def load_until_closed(manager: PluginManager, folder: Path) -> None:
    """Load a folder while the manager is closed; whether that is raised or reported is free."""
    try:
        report = manager.load_plugins_from_dir(folder)
    except UsageError:
        return
    assert report.loaded == []
    assert {type(error) for error in report.failures.values()} <= {UsageError, PluginLoadError}
    assert all(isinstance(error, ZenoError) for error in report.failures.values())


def test_closing_a_manager_while_it_loads_leaves_nothing(
    manager: PluginManager,
    folder: Path,
    make: Make,
    make_plugin: Make,
    before_compiling: Around,
    drivers: list[WasmDriver],
) -> None:
    begun, closed = threading.Semaphore(0), threading.Event()

    def wait(code: bytes) -> None:
        begun.release()
        assert closed.wait(30)

    def close() -> None:
        for _ in range(4):
            assert begun.acquire(timeout=20)
        manager.close()
        closed.set()

    before_compiling(wait)
    for number in range(4):
        make(f"p{number}", number)
    make_plugin(ECHO, name="zz", folder=folder)
    thread = threading.Thread(target=close)
    thread.start()
    load_until_closed(manager, folder)
    thread.join(20)
    assert manager.list_plugins() == []
    assert {driver.status()["state"] for driver in drivers} == {"closed"}
    assert sum(driver.status().get("instances", 0) for driver in drivers) == 0


def test_a_manager_that_is_closed_while_it_loads_one_plugin_does_not_take_it_in(
    manager: PluginManager, make: Make, before_compiling: Around, drivers: list[WasmDriver]
) -> None:
    place = make("one")
    before_compiling(lambda code: manager.close())
    with pytest.raises(UsageError, match="closed"):
        manager.load_plugin(place)
    assert [driver.status()["state"] for driver in drivers] == ["closed"]


def test_a_sidecar_whose_turn_comes_when_the_manager_is_closed_leaves_nothing(
    no_leaks: None,
    folder: Path,
    make: Make,
    make_plugin: Make,
    before_compiling: Around,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "LOAD_THREADS", 1)  # the sidecar waits for the other
    make("first")
    make_plugin(ECHO, name="second", folder=folder)
    before = set(threading.enumerate())
    manager = PluginManager()  # it is closed once, and that has to do
    begun = threading.Event()  # both of them, as it waits for the first
    finish = loading.Loader._finish

    def finish_later(*arguments: Any) -> Any:
        begun.set()
        return finish(*arguments)

    def close(code: bytes) -> None:
        assert begun.wait(30)
        manager.close()

    monkeypatch.setattr(loading.Loader, "_finish", finish_later)
    before_compiling(close)
    load_until_closed(manager, folder)
    assert manager.list_plugins() == []
    wait_until(lambda: not set(threading.enumerate()) - before)


# -- what is said -----------------------------------------------------------------------------


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "zeno_fast.wasm.compile" and "compil" in record.getMessage()
    ]


@pytest.fixture
def slow(before_compiling: Around, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have modules take as long to compile as is worth a word."""
    monkeypatch.setattr(program, "NOTICED", 0.05)
    before_compiling(lambda code: time.sleep(0.4))


def test_a_module_that_takes_long_to_compile_is_announced(
    manager: PluginManager, make: Make, slow: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "zeno_fast.wasm")
    manager.load_plugin(make("large"))
    first, second = said(caplog)
    assert first.startswith("plugin 'large': compiling 0.0 MB of WASM")
    assert second.startswith("plugin 'large': compiled in ")


def test_a_module_that_takes_long_is_announced_while_it_is_compiled(
    manager: PluginManager,
    make: Make,
    before_compiling: Around,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def wait(code: bytes) -> None:
        deadline = time.monotonic() + 20
        while not said(caplog):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    caplog.set_level(logging.INFO, "zeno_fast.wasm")
    monkeypatch.setattr(program, "NOTICED", 0.01)
    before_compiling(wait)
    manager.load_plugin(make("large"))
    assert len(said(caplog)) == 2


def test_nothing_is_said_of_a_module_that_is_soon_compiled(
    manager: PluginManager,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "zeno_fast.wasm")
    monkeypatch.setattr(program, "NOTICED", 60.0)
    manager.load_plugin(make("small"))  # it would take a minute, were the timer waited for
    assert said(caplog) == []
    assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer)]


def test_a_module_that_cannot_be_compiled_is_not_said_to_be(
    manager: PluginManager, make: Make, slow: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "zeno_fast.wasm")
    place = make("large")
    (place / "plugin.wasm").write_bytes(b"\0asm\1\0\0\0nonsense")
    with pytest.raises(PluginLoadError):
        manager.load_plugin(place)
    assert [line for line in said(caplog) if "compiled in" in line] == []
