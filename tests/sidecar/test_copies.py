"""How often bytes are copied on their way to a guest and back: counted, not timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from c_programs import AS_LIBRARY, SOURCES, compile_program

SIZES = {"64 KiB": 64 << 10, "1 MiB": 1 << 20, "16 MiB": 16 << 20}
COUNT = """
import ctypes
copied_bytes = ctypes.CDLL(None).copied_bytes
copied_bytes.restype = ctypes.c_uint64
"""
GUEST = (
    COUNT
    + """
from zeno_fast.guest import Plugin
plugin = Plugin("copies")

@plugin.slot
def echo(value):
    return value

@plugin.slot
def length(value):
    return len(value)

@plugin.slot
def copied():
    return copied_bytes()

plugin.run()
"""
)
HOST = (
    COUNT
    + """
import json, sys
from zeno_fast import PluginManager

def ways(manager, nbytes):
    data, buffer = bytes(nbytes), manager.buffer(nbytes)
    yield "there", lambda: manager.call("copies.length", {"value": data}) == nbytes
    yield "there and back", lambda: manager.call("copies.echo", {"value": data}).nbytes == nbytes
    yield "a buffer", lambda: manager.call("copies.echo", {"value": buffer}).nbytes == nbytes

found = {}
with PluginManager() as manager:
    manager.load_plugin(sys.argv[1])
    for nbytes in map(int, sys.argv[2:]):
        for way, call in ways(manager, nbytes):
            call()
            mine, its = copied_bytes(), manager.call("copies.copied")
            right = call()
            mine, its = copied_bytes() - mine, manager.call("copies.copied") - its
            found[f"{nbytes}, {way}"] = [right, mine, its]
print(json.dumps(found))
"""
)


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counter")
    options = ["-O2", *AS_LIBRARY, "-fno-builtin", "-fno-tree-loop-distribute-patterns"]
    return compile_program(SOURCES / "copy_counter.c", folder, options=options)


def test_bytes_are_copied_once_each_way_and_buffers_never(counter, make_plugin):
    folder = make_plugin(GUEST, name="copies", sidecar=f"env: {{LD_PRELOAD: {counter}}}")
    done = subprocess.run(
        [sys.executable, "-c", HOST, str(folder), *map(str, SIZES.values())],
        env={**os.environ, "LD_PRELOAD": str(counter)},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for nbytes in SIZES.values():
        assert found[f"{nbytes}, there"] == [True, nbytes, 0]
        assert found[f"{nbytes}, there and back"] == [True, nbytes, nbytes]
        assert found[f"{nbytes}, a buffer"] == [True, 0, 0]
