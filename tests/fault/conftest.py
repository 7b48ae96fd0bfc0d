"""Guests of all kinds, a healthy plugin beside the one at fault, and a host whose calls fail."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from wasm.conftest import ALLOC, data, module

from zeno_fast import LoadedPlugin, PluginManager
from zeno_fast.wasm import ticks

Load = Callable[..., None]
MakePlugin = Callable[..., Path]
LoadWasm = Callable[..., LoadedPlugin]
RunPython = Callable[[str], "subprocess.CompletedProcess[str]"]
# Seconds for one call of the healthy plugin; some milliseconds are usual. With a sanitizer the copy
# of a large message, which holds the interpreter, takes several times as long.
SERVED_WITHIN = 10 if hasattr(ctypes.CDLL(None), "__asan_init") else 2.5

# `frame` and `envelope` make the answer that `write` or `put` sends; either style has its own.
GUEST = '''\
def write(data):
    """Write bytes to stdout, beside Python's buffer."""
    data = memoryview(data)
    while data:
        data = data[os.write(1, data):]

def envelope(request, data):
    """Return the line of an answer whose data is this value."""
    return frame(request, json.dumps(data)).encode() + b"\\n"

'''
STYLES = {
    "ids": '''\
def frame(request, data):
    """Return an answer whose data is this JSON, without a line end."""
    return ('{"type":"guest_response","id":"' + request["id"] + '","success":true,"data":'
            + data + '}')

def chunk(request, data):
    put({"type": "guest_chunk", "id": request["id"], "data": data})

''',
    "no-ids": """\
def frame(request, data):
    return '{"success":true,"data":' + data + '}'

def chunk(request, data):
    put({"type": "guest_chunk", "data": data})

def answer(request, data):
    put({"success": True, "data": data})

def fail(request, error):
    put({"success": False, "error": error})

""",
}

# What every program of the tests here has at hand beside the prelude.
TOOLS = '''
import fcntl, struct, termios, threading

def greeted(request, *slots, features=(), **info):
    """Answer the life-cycle slots, plugin_init with these features; return whether it was one."""
    if request.get("slot_name") == "plugin_init":
        answer(request, {"name": "scripted", "version": "1.0.0", "features": features, **info})
        return True
    return "slot_name" in request and lifecycle(request, *slots)

def mark(name):
    open(name, "w").close()

def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.002)

def wait_until_read():
    """Wait until the host has taken all that was written."""
    sys.stdout.flush()
    while struct.unpack("i", fcntl.ioctl(1, termios.FIONREAD, b"\\0" * 4))[0]:
        time.sleep(0.002)
'''

HEALTHY = """
asked = {}
for request in requests():
    if request.get("type") == "host_response":
        answer(asked.pop(request["id"]), request["data"])
    elif not lifecycle(request, "healthy"):
        asked[request["id"]] = request
        put({"type": "host_call", "id": request["id"], "function": "healthy_host_function",
             "call_id": request["id"], "parameters": request["parameters"]})
"""


@pytest.fixture(params=list(STYLES))
def style(request: pytest.FixtureRequest) -> str:
    """How the guest answers: with the id of the request, or by the bare envelope."""
    return str(request.param)


@pytest.fixture
def load_as(manager: PluginManager, make_plugin: Callable[..., Path]) -> Load:
    """Load a guest of a given style; its program has `write`, `frame` and `envelope` at hand."""

    def load(style: str, program: str, *, sidecar: str = "stop_timeout: 0", **rest: Any) -> None:
        text = GUEST + STYLES[style] + textwrap.dedent(program)
        manager.load_plugin(make_plugin(text, sidecar=sidecar, **rest))

    return load


@pytest.fixture
def load(load_as: Load, style: str) -> Load:
    """Load a guest that answers in the style under test."""

    def load_in_style(program: str, **rest: Any) -> None:
        load_as(style, program, **rest)

    return load_in_style


class Healthy:
    """Calls a second plugin of the same manager all the time, from a thread of its own.

    Every call comes back through a host function and every second one as a future, so that
    whoever holds up the manager's threads is found out, too.
    """

    def __init__(self, manager: PluginManager, wrap: Callable[[Any], Any] = lambda n: n) -> None:
        self.served = 0
        self.slowest = 0.0
        self.failures: list[str] = []
        self._manager = manager
        self._wrap = wrap  # what the guest makes of its parameters
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="healthy caller")
        self._thread.start()

    def call_once(self) -> None:
        """Call the plugin now; what is wrong is kept in `failures`."""
        sent = {"n": self.served}
        began = time.monotonic()
        try:
            if self.served % 2:
                got = self._manager.call("healthy", sent, timeout=30, scope={"n": sent})
            else:
                future = self._manager.submit("healthy", sent, timeout=30, scope={"n": sent})
                wait([future], 40)  # unlike `result`, it leaves the reading to the monitor
                got = future.result(0)
        except Exception as error:  # noqa: BLE001 - it is reported by the thread that checks
            self.failures.append(repr(error))
            return
        self.slowest = max(self.slowest, time.monotonic() - began)
        if got != self._wrap(sent):
            self.failures.append(f"sent {sent}, got {got}")
        self.served += 1

    def _run(self) -> None:
        while not self._done.wait(0.005) and not self.failures:
            self.call_once()

    def finish(self) -> None:
        """Stop calling, and fail the test if the plugin was not served throughout."""
        self._done.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.call_once()
        assert not self.failures
        assert self.slowest < SERVED_WITHIN


@pytest.fixture
def healthy(manager: PluginManager, make_plugin: Callable[..., Path]) -> Iterator[Healthy]:
    """A healthy plugin in the same manager; fails the test that does not let it be served."""
    manager.set_host_callback("healthy_host_function", lambda parameters: parameters)
    manager.load_plugin(make_plugin(HEALTHY, name="healthy"))
    healthy = Healthy(manager)
    yield healthy
    healthy.finish()


@pytest.fixture(scope="session")
def parked_soon() -> Iterator[None]:
    """Have the public API's clock end as soon as it is idle: every test waits for its thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ticks, "PARK_AFTER_NS", 5_000_000)
        yield


@pytest.fixture(params=["direct", "public"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, parked_soon: None) -> str:
    """Run the test with WASM guests called directly, and through the package's public API."""
    monkeypatch.setenv("ZENO_FAST_WASM", request.param)
    return str(request.param)


@pytest.fixture
def no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves a temporary file behind."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    assert not os.listdir(folder)


@pytest.fixture
def make_wasm(tmp_path: Path) -> MakePlugin:
    """Make the folder of a WASM plugin; options are those of the manifest's `wasm`."""

    def make(
        code: str | bytes,
        *,
        name: str = "hostile",
        slots: tuple[str, ...] = ("run",),
        permissions: dict[str, list[str]] | None = None,
        **options: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if isinstance(code, str):
            code = bytes(wasmtime.wat2wasm(code))
        (folder / "plugin.wasm").write_bytes(code)
        manifest = {
            "name": name,
            "version": "1.0.0",
            "binary": "plugin.wasm",
            "slots": [{"name": slot} for slot in slots],
            "permissions": permissions or {},
            "wasm": options,
        }
        (folder / "manifest.yaml").write_text(json.dumps(manifest), encoding="utf-8")
        return folder

    return make


@pytest.fixture
def load_wasm(
    no_temporary_files: None, manager: PluginManager, way: str, make_wasm: MakePlugin
) -> LoadWasm:
    """Load a WASM plugin that `make_wasm` makes."""

    def load(code: str | bytes, **rest: Any) -> LoadedPlugin:
        return manager.load_plugin(make_wasm(code, **rest))

    return load


# Answers with what it finds in its scope: every call takes memory, and asks the host.
HEALTHY_WASM = module(
    "(call $ask (i32.const 4000) (i32.const 1))",
    data(4000, "n"),
    imports='(import "env" "host_scope_get" (func $ask (param i32 i32) (result i32)))',
    alloc=ALLOC,
)


@pytest.fixture
def healthy_wasm(manager: PluginManager, load_wasm: LoadWasm) -> Iterator[Healthy]:
    """A healthy WASM plugin in the same manager; fails the test that does not let it be served."""
    load_wasm(HEALTHY_WASM, name="healthy", slots=("healthy",), permissions={"scope": ["read"]})
    healthy = Healthy(manager, lambda n: {"value": n})
    yield healthy
    healthy.finish()


def _in_style(make_plugin: MakePlugin, style: str) -> MakePlugin:
    def make(program: str, **how: str) -> Path:
        return make_plugin(GUEST + STYLES[style] + TOOLS + textwrap.dedent(program), **how)

    return make


@pytest.fixture
def make_guest(make_plugin: MakePlugin, style: str) -> MakePlugin:
    """Make a plugin as `make_plugin` does, from a program that also has TOOLS, in each style."""
    return _in_style(make_plugin, style)


@pytest.fixture
def make_ids_guest(make_plugin: MakePlugin) -> MakePlugin:
    """Make a plugin as `make_guest` does, in the style that returns ids."""
    return _in_style(make_plugin, "ids")


@pytest.fixture
def make_bare_guest(make_plugin: MakePlugin) -> MakePlugin:
    """Make a plugin as `make_guest` does, in the style without ids."""
    return _in_style(make_plugin, "no-ids")


@pytest.fixture(scope="session")
def syscall_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library that counts and disturbs a process's system calls, to be preloaded."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("the shim is for Linux, whose linker preloads it")
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}; `apt install gcc` would bring it")
    source = Path(__file__).parents[1] / "c" / "syscall_shim.c"
    library = tmp_path_factory.mktemp("shim") / "syscall_shim.so"
    built = subprocess.run(
        [compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-shared",
         "-fPIC", str(source), "-o", str(library), "-ldl"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return library


SHIM = """\
import ctypes
shim = ctypes.CDLL(None)
shim.shim_count.restype = shim.shim_injected.restype = ctypes.c_uint64
shim.shim_inject.argtypes = ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64
shim.shim_shift_clock.argtypes = [ctypes.c_int64]
READ, WRITE, POLL, YIELD = range(4)
EINTR, EAGAIN, SHORT_READ, SHORT_WRITE = range(4)
"""


@pytest.fixture
def run_under_shim(
    syscall_shim: Path, run_python: RunPython, monkeypatch: pytest.MonkeyPatch
) -> RunPython:
    """Run a program as `run_python` does, with the shim in it and its functions at hand."""

    def run(program: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(syscall_shim))
            return run_python(SHIM + textwrap.dedent(program))

    return run
