"""Fixtures that own what a test starts, and fail the test that leaves something behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wasmtime
from guests.build import build, missing_toolchain

import zeno_fast
from zeno_fast import PluginManager
from zeno_fast._pipe import Pipe

pytest.register_assert_rewrite("sidecar.ring_guest")

LEAK_GRACE = 3.0  # seconds that threads and descriptors which were told to end may take


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(int(pid) for pid in (task / "children").read_text().split())
        except FileNotFoundError:  # the thread has ended meanwhile
            continue
    return found


def _descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def _standard_streams() -> list[bool]:
    """Tell which of the first three descriptors are open."""
    return [os.path.exists(f"/proc/self/fd/{fd}") for fd in range(3)]


def _threads() -> list[threading.Thread]:
    # Those of a library that once called into Python are remembered for good, running or not.
    return [thread for thread in threading.enumerate() if not thread.name.startswith("Dummy-")]


def _snapshot() -> tuple[int, int, set[int]]:
    return len(_descriptors()), len(_threads()), _children()


# A shell that runs a script's commands in the background has Ctrl-C ignored in them.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def wasi_runtime() -> None:
    """Have wasmtime make what its WASI keeps open for the life of the process, before a count."""
    engine = wasmtime.Engine()
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    store = wasmtime.Store(engine)
    store.set_wasi(wasmtime.WasiConfig())
    module = wasmtime.Module(engine, ASKS_ABOUT_STDOUT)
    linker.instantiate(store, module).exports(store)["_start"](store)


ASKS_ABOUT_STDOUT = """(module
  (import "wasi_snapshot_preview1" "fd_fdstat_get" (func $get (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (drop (call $get (i32.const 1) (i32.const 8)))))"""


@pytest.fixture(scope="session")
def spare_descriptor() -> None:
    """Have zeno_fast open the one descriptor that it keeps for the life of the process."""
    (read_fd, theirs), (mine, write_fd) = os.pipe(), os.pipe()
    Pipe(read_fd, write_fd, -1, 1024).close()
    os.close(theirs)
    os.close(mine)


@pytest.fixture
def no_leaks(wasi_runtime: None, spare_descriptor: None) -> Iterator[None]:
    """Fail a test after which more descriptors, threads or child processes exist than before."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("leaks are counted in /proc, which this system lacks")
    fds, threads, children = _snapshot()
    standard = _standard_streams()
    yield
    assert _standard_streams() == standard, "a descriptor of somebody else was closed"
    deadline = time.monotonic() + LEAK_GRACE
    while True:
        fds_now, threads_now, children_now = _snapshot()
        left = children_now - children
        if fds_now <= fds and threads_now <= threads and not left:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    names = [thread.name for thread in _threads()]
    targets = [os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors() if _exists(fd)]
    pytest.fail(
        f"left behind: {fds_now - fds} descriptors of {targets}, "
        f"{threads_now - threads} threads of {names}, processes {left}"
    )


def _exists(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@pytest.fixture
def manager(no_leaks: None) -> Iterator[PluginManager]:
    """An empty manager that is closed at the test's end."""
    with PluginManager() as manager:
        yield manager


@pytest.fixture(scope="session")
def build_guest() -> Callable[[str, Path], Path]:
    """Build a guest by its name, or skip the test where its toolchain is missing."""

    def build_or_skip(name: str, into: Path) -> Path:
        missing = missing_toolchain(name)
        if missing and os.environ.get("ZENO_FAST_REQUIRE_TOOLCHAINS") == "1":
            pytest.fail(missing)
        if missing:
            pytest.skip(f"toolchain: {missing}")
        return build(name, into)

    return build_or_skip


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a program in a new interpreter, which finds zeno_fast where this one did."""

    def run(program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            # Not in the source tree, where Python would import a package that was not built.
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(zeno_fast.__file__).parents[1])},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


MakePlugin = Callable[..., Path]


@pytest.fixture
def make_plugin(tmp_path: Path) -> MakePlugin:
    """Make the folder of a sidecar plugin from a Python program.

    The program has `answer(request, data)`, `fail(request, error)` and `put(object)` at hand.
    """

    def make(
        program: str,
        *,
        name: str = "scripted",
        sidecar: str = "",
        manifest: str = "",
        folder: Path | None = None,
    ) -> Path:
        root = (folder or tmp_path) / name
        root.mkdir(parents=True, exist_ok=True)
        (root / "guest.py").write_text(PRELUDE + textwrap.dedent(program), encoding="utf-8")
        (root / "manifest.yaml").write_text(
            f"name: {name}\nversion: 1.0.0\ntype: sidecar\nbinary: ./guest.py\n"
            f"sidecar:\n  protocol: json-rpc\n{textwrap.indent(textwrap.dedent(sidecar), '  ')}\n"
            + textwrap.dedent(manifest),
            encoding="utf-8",
        )
        return root

    return make


PRELUDE = '''\
import json, os, signal, sys, time

def put(value):
    sys.stdout.write(json.dumps(value) + "\\n")
    sys.stdout.flush()

def answer(request, data):
    put({"type": "guest_response", "id": request["id"], "success": True, "data": data})

def fail(request, error):
    put({"type": "guest_response", "id": request["id"], "success": False, "error": error})

def lifecycle(request, *slots):
    """Answer the life-cycle slots; return whether it was one."""
    if request["slot_name"] == "plugin_init":
        answer(request, {"name": "scripted", "version": "1.0.0"})
    elif request["slot_name"] == "plugin_register_slots":
        answer(request, [{"name": slot} for slot in slots])
    else:
        return False
    return True

def requests():
    for line in sys.stdin:
        yield json.loads(line)

'''
