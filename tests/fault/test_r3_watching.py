"""R3: folders that are watched are reloaded once for each change, and only when they are whole."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zeno_fast import PluginManager, UsageError, Watch, watching
from zeno_fast.sidecar.driver import SidecarDriver

pytest.importorskip("watchfiles", reason="watchfiles is missing: pip install 'zeno_fast[watch]'")

MakePlugin = Callable[..., Path]

BOUND = 30.0  # seconds for what takes about one; other work shares the machine
SETTLE = 0.3
QUIET = 1.5  # seconds in which something that must not happen would have happened

GUEST = """
VERSION = open("version.txt").read()
for request in requests():
    if not lifecycle(request, SLOT):
        answer(request, VERSION)
"""


class Folder:
    """A plugin's folder; its answer is what stands in `version.txt`."""

    def __init__(self, make_plugin: MakePlugin, root: Path, name: str) -> None:
        self.path = root / name
        self.path.mkdir(parents=True)
        (self.path / "version.txt").write_text("0")
        program = GUEST.replace("SLOT", repr(name))
        make_plugin(program, name=name, folder=root, sidecar="stop_timeout: 0")

    def write(self, version: str, name: str = "version.txt") -> None:
        (self.path / name).write_text(version)

    def replace(self, version: str) -> None:
        temporary = self.path / ".version.txt.Xy12zA"
        temporary.write_text(version)
        temporary.rename(self.path / "version.txt")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "plugins"
    root.mkdir()
    return root


@pytest.fixture
def folder(make_plugin: MakePlugin, root: Path) -> Folder:
    return Folder(make_plugin, root, "p")


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of plugins that were started, in their order."""
    started: list[str] = []
    start = SidecarDriver.start

    def note(driver: SidecarDriver) -> Any:
        started.append(driver.manifest.name)
        return start(driver)

    monkeypatch.setattr(SidecarDriver, "start", note)
    return started


@pytest.fixture
def watched(
    manager: PluginManager, folder: Folder, root: Path, starts: list[str]
) -> Iterator[PluginManager]:
    """A manager that has loaded `p` from a root that is watched."""
    manager.load_plugins_from_dir(root)
    starts.clear()
    with manager.watch(settle=SETTLE):
        yield manager


def expect(manager: PluginManager, version: str, slot: str = "p") -> None:
    """Wait until a plugin answers with a version; every call is answered meanwhile."""
    deadline = time.monotonic() + BOUND
    while (got := manager.call(slot)) != version:
        assert time.monotonic() < deadline, got
        time.sleep(0.02)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_changes_within_ten_milliseconds_are_one_reload(
    watched: PluginManager, folder: Folder, starts: list[str]
) -> None:
    folder.write("1")
    time.sleep(0.01)
    folder.write("2")
    expect(watched, "2")
    time.sleep(QUIET)
    assert starts == ["p"]
    folder.write("3")
    expect(watched, "3")
    assert starts == ["p", "p"]


def test_a_file_that_is_renamed_over_another_is_one_reload(
    watched: PluginManager, folder: Folder, starts: list[str]
) -> None:
    folder.replace("1")
    expect(watched, "1")
    time.sleep(QUIET)
    assert starts == ["p"]


def test_a_slow_copy_of_many_files_is_one_reload_when_it_is_complete(
    watched: PluginManager, folder: Folder, starts: list[str]
) -> None:
    # As rsync does it: each file grows under a name of its own, for longer than `settle`.
    (folder.path / "manifest.yaml").write_text("name: p\ntype: side")
    folder.write("half")
    for number in range(4):
        temporary = folder.path / f".part{number}.bin.aB3xY{number}"
        for _ in range(5):
            with temporary.open("ab") as file:
                file.write(b"x" * 1000)
            time.sleep(SETTLE / 3)
        assert starts == []
        temporary.rename(folder.path / f"part{number}.bin")
    folder.write("1")
    (folder.path / "manifest.yaml").write_text(
        "name: p\nversion: 2.0.0\ntype: sidecar\nbinary: guest.py\nsidecar: {stop_timeout: 0}\n"
    )
    expect(watched, "1")
    time.sleep(QUIET)
    assert starts == ["p"]
    assert watched.get_plugin("p").version == "2.0.0"


@pytest.mark.parametrize(
    "name",
    [".version.txt.swp", "version.txt~", ".#version.txt", "4913", "x.tmp", "big.bin.part",
     ".big.bin.Ab3dE6", "__pycache__/guest.cpython-311.pyc", ".git/index", "guest.log"],
)  # fmt: skip
def test_what_editors_and_transfers_leave_behind_reloads_nothing(
    watched: PluginManager, folder: Folder, starts: list[str], name: str
) -> None:
    path = folder.path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("1")
    time.sleep(QUIET / 2)
    path.unlink()
    time.sleep(QUIET / 2)
    assert starts == []
    folder.write("1")
    expect(watched, "1")
    assert starts == ["p"]


def test_a_file_that_is_touched_reloads_nothing(
    watched: PluginManager, folder: Folder, starts: list[str]
) -> None:
    os.utime(folder.path / "guest.py")
    folder.replace("0")
    time.sleep(QUIET)
    assert starts == []
    folder.write("1")
    expect(watched, "1")


def test_what_a_plugin_writes_to_its_own_storage_reloads_nothing(
    watched: PluginManager, folder: Folder, starts: list[str]
) -> None:
    with (folder.path / "manifest.yaml").open("a") as file:
        file.write("permissions: {filesystem: ['./storage/*']}\n")
    wait_until(lambda: any("filesystem" in line for line in refused(watched)) or starts)
    watched.reload_plugin("p", allow_more_permissions=True)
    starts.clear()
    time.sleep(QUIET)
    (folder.path / "storage").mkdir()
    for number in range(5):
        (folder.path / "storage" / str(number)).write_text("x")
    time.sleep(QUIET)
    assert starts == []


def refused(manager: PluginManager) -> list[str]:
    return [message for message in _events if "for more than" in message]


_events: list[str] = []


@pytest.fixture(autouse=True)
def _note_events(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _events.append(record.getMessage())

    handler = Note()
    logging.getLogger("zeno_fast").addHandler(handler)
    yield
    logging.getLogger("zeno_fast").removeHandler(handler)
    _events.clear()


def test_what_does_not_load_leaves_the_old_version_and_is_tried_again_after_the_next_change(
    watched: PluginManager, folder: Folder
) -> None:
    manifest = (folder.path / "manifest.yaml").read_text()
    folder.write("name: [p", "manifest.yaml")
    wait_until(lambda: any("not reloaded" in message for message in _events))
    assert watched.call("p") == "0"
    _events.clear()
    time.sleep(QUIET)
    assert not any("not reloaded" in message for message in _events)  # not over and over
    (folder.path / "guest.py").rename(folder.path / "away.txt")
    folder.write(manifest, "manifest.yaml")
    wait_until(lambda: any("no such file" in message for message in _events))
    assert watched.call("p") == "0"
    folder.write("1")
    (folder.path / "away.txt").rename(folder.path / "guest.py")
    expect(watched, "1")


def test_folders_that_appear_are_loaded_and_those_that_vanish_are_unloaded(
    watched: PluginManager, make_plugin: MakePlugin, root: Path, tmp_path: Path
) -> None:
    new = Folder(make_plugin, tmp_path / "elsewhere", "new")
    shutil.copytree(new.path, root / "new")
    wait_until(lambda: "new" in watched.slots)
    assert watched.call("new") == "0"
    (root / "new" / "version.txt").write_text("1")
    expect(watched, "1", "new")
    shutil.rmtree(root / "new")
    wait_until(lambda: "new" not in watched.slots)
    assert [plugin.name for plugin in watched.list_plugins()] == ["p"]
    (root / "broken").mkdir()
    (root / "broken" / "manifest.yaml").write_text("name: broken\nbinary: nothing.wasm\n")
    wait_until(lambda: "broken" in watched.failures)
    shutil.copytree(new.path, root / "broken", dirs_exist_ok=True)
    wait_until(lambda: "new" in watched.slots)
    assert "broken" not in watched.failures


def test_a_folder_that_is_away_for_a_moment_is_one_reload(
    watched: PluginManager, folder: Folder, starts: list[str], tmp_path: Path
) -> None:
    shutil.copytree(folder.path, tmp_path / "next")
    (tmp_path / "next" / "version.txt").write_text("1")
    folder.path.rename(tmp_path / "before")
    time.sleep(SETTLE / 3)
    (tmp_path / "next").rename(folder.path)
    expect(watched, "1")
    time.sleep(QUIET)
    assert starts == ["p"]


def test_plugins_go_on_serving_where_all_of_their_directory_is_gone(
    watched: PluginManager, folder: Folder, root: Path, tmp_path: Path, starts: list[str]
) -> None:
    root.rename(tmp_path / "away")
    wait_until(lambda: any("goes on serving" in message for message in _events))
    assert watched.call("p") == "0"
    (tmp_path / "away" / "p" / "version.txt").write_text("1")
    (tmp_path / "away").rename(root)
    expect(watched, "1")
    time.sleep(QUIET)
    assert starts == ["p"]


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights")
def test_a_plugin_that_was_loaded_by_itself_through_a_link_follows_where_the_link_leads(
    manager: PluginManager, make_plugin: MakePlugin, tmp_path: Path
) -> None:
    Folder(make_plugin, tmp_path / "one", "p")
    Folder(make_plugin, tmp_path / "two", "p").write("1")
    link, other = tmp_path / "current", tmp_path / "other"
    link.symlink_to(tmp_path / "one" / "p")
    with manager.watch(settle=SETTLE):
        manager.load_plugin(link)
        time.sleep(QUIET)
        other.symlink_to(tmp_path / "two" / "p")
        other.rename(link)
        expect(manager, "1")
        (tmp_path / "two" / "p" / "version.txt").write_text("2")
        expect(manager, "2")


def test_only_the_folder_that_is_named_is_watched(
    manager: PluginManager, make_plugin: MakePlugin, tmp_path: Path, starts: list[str]
) -> None:
    folders = [Folder(make_plugin, tmp_path / "plugins", name) for name in ("p", "q")]
    manager.load_plugins_from_dir(tmp_path / "plugins")
    starts.clear()
    with manager.watch(folders[0].path, settle=SETTLE):
        folders[1].write("1")
        folders[0].write("1")
        expect(manager, "1")
        time.sleep(QUIET)
    assert starts == ["p"]


def test_a_folder_that_never_rests_is_reported(
    watched: PluginManager, folder: Folder, monkeypatch: pytest.MonkeyPatch, starts: list[str]
) -> None:
    monkeypatch.setattr(watching, "LONG", 0.5)
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.wait(SETTLE / 5):
            number += 1
            folder.write("x" * (number % 7), "busy.bin")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_until(lambda: any("has been changing for" in message for message in _events))
        assert starts == []
    finally:
        done.set()
        thread.join()
    wait_until(lambda: starts == ["p"])


def test_a_reload_that_asks_for_more_waits_for_somebody_to_accept_it(
    watched: PluginManager, folder: Folder, starts: list[str]
) -> None:
    with (folder.path / "manifest.yaml").open("a") as file:
        file.write("permissions: {env: [SECRET]}\n")
    wait_until(lambda: refused(watched))
    time.sleep(QUIET)
    assert len(refused(watched)) == 1
    assert starts == []


def test_watching_ends_with_the_manager_and_needs_a_folder_and_a_package(
    no_leaks: None, folder: Folder, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PluginManager(root) as manager:
        watch = manager.watch()
        assert isinstance(watch, Watch) and not watch.closed
        with pytest.raises(ValueError, match="settle"):
            manager.watch(settle=-1)
        with pytest.raises(UsageError, match="no directory"):
            manager.watch(tmp_path / "nowhere")
        monkeypatch.setitem(sys.modules, "watchfiles", None)
        with pytest.raises(UsageError, match=r"zeno_fast\[watch\]"):
            manager.watch()
    assert watch.closed
    watch.close()
    with pytest.raises(UsageError, match="closed"):
        manager.watch()
