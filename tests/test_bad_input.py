"""Bad plugins get a clear error, leave nothing behind and disturb no other plugin."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from zeno_fast import ManifestError, PluginLoadError, PluginManager, ZenoError

HEALTHY = """
for request in requests():
    if not lifecycle(request, "healthy.echo"):
        answer(request, request["parameters"])
"""
WASM = "name: bad\nbinary: ./bad.wasm\n"
SIDECAR = "name: bad\ntype: sidecar\nbinary: ./bad\n"
COMPONENT = b"\0asm\x0d\x00\x01\x00"
MODULE = b"\0asm\x01\x00\x00\x00"  # valid, and empty
FOREIGN_MACHINE = 2 if os.uname().machine != "sparc" else 20


def foreign_program() -> bytes:
    """This interpreter, as if it were for a machine that nobody has."""
    program = bytearray(Path(sys.executable).read_bytes()[:4096])
    program[18:20] = FOREIGN_MACHINE.to_bytes(2, "little")
    return bytes(program)


CASES = {
    "empty manifest": ("", None, ManifestError, "empty"),
    "manifest that is a list": ("- a\n- b\n", None, ManifestError, "mapping"),
    "broken YAML": ("name: [a\n", None, ManifestError, r"manifest\.yaml:\d+"),
    "no name": ("binary: ./bad.wasm\n", MODULE, ManifestError, "name"),
    "misspelt type": ("name: bad\ntype: sidcar\n", None, ManifestError, "did you mean `sidecar`"),
    "no such binary": (WASM, None, PluginLoadError, r"bad\.wasm"),
    "an empty module": (WASM, b"", PluginLoadError, "empty"),
    "text as WASM": (WASM, b"hello, I am no module\n", PluginLoadError, "WASM"),
    "a component": (WASM, COMPONENT, PluginLoadError, "component"),
    "a module without exports": (WASM, MODULE, PluginLoadError, "alloc"),
    "half a module": (WASM, MODULE[:6], PluginLoadError, "WASM|module"),
    "not executable": (SIDECAR, b"#!/bin/sh\nexit 0\n", PluginLoadError, "chmod"),
    "another architecture": (SIDECAR, foreign_program(), PluginLoadError, "architecture|machine"),
    "a Windows program": (SIDECAR, b"MZ" + b"\0" * 200, PluginLoadError, "Windows"),
    "WASM as a sidecar": (SIDECAR, MODULE, PluginLoadError, "type: wasm|WASM"),
    "fastcgi": (SIDECAR + "sidecar: {protocol: fastcgi}\n", None, ManifestError, "fastcgi"),
    "http": (SIDECAR + "sidecar: {protocol: http}\n", None, ManifestError, "http"),
    "workers": (SIDECAR + "sidecar: {workers: 4..2}\n", None, ManifestError, "workers"),
    "a binary outside": (
        "name: bad\nbinary: ../other.wasm\n",
        None,
        ManifestError,
        "out of the plugin",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_plugin_is_a_clear_error_and_disturbs_nobody(manager, make_plugin, tmp_path, case):
    manifest, binary, error, told = CASES[case]
    manager.load_plugin(make_plugin(HEALTHY, name="healthy"))
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "manifest.yaml").write_text(manifest)
    if binary is not None:
        path = folder / ("bad" if "sidecar" in manifest else "bad.wasm")
        path.write_bytes(binary)
        if case != "not executable":
            path.chmod(0o755)
    with pytest.raises(error) as caught:
        manager.load_plugin(folder)
    text = str(caught.value)
    assert re.search(told, text), text
    assert "Traceback" not in text
    assert [plugin.name for plugin in manager.list_plugins()] == ["healthy"]
    assert manager.call("healthy.echo", {"n": 1}) == {"n": 1}


def test_no_folder_and_no_manifest_are_clear_errors(manager, tmp_path):
    with pytest.raises(PluginLoadError, match="nowhere"):
        manager.load_plugin(tmp_path / "nowhere")
    with pytest.raises(PluginLoadError, match=r"manifest\.yaml"):
        manager.load_plugin(tmp_path)


@pytest.mark.parametrize("kind", ["wasm", "sidecar"])
def test_a_directory_as_binary_is_a_clear_error(manager, tmp_path, kind):
    (tmp_path / "bad").mkdir()
    (tmp_path / "manifest.yaml").write_text(f"name: bad\ntype: {kind}\nbinary: ./bad\n")
    with pytest.raises(PluginLoadError, match="directory"):
        manager.load_plugin(tmp_path)


@pytest.mark.parametrize("changed", [False, True])
def test_a_sidecars_sha256_is_checked_on_the_bytes_that_are_run(
    manager, make_plugin, changed, tmp_path
):
    folder = make_plugin(HEALTHY, name="checked")
    digest = hashlib.sha256((folder / "guest.py").read_bytes()).hexdigest()
    with (folder / "manifest.yaml").open("a") as manifest:
        manifest.write(f"sha256: {digest}\n")
    if changed:
        with (folder / "guest.py").open("a") as program:
            program.write("# changed\n")
        with pytest.raises(PluginLoadError, match="sha256"):
            manager.load_plugin(folder)
        return
    manager.load_plugin(folder)
    # What a restart runs is what was checked, whatever lies in the folder by then.
    (folder / "guest.py").write_text("raise SystemExit('replaced')")
    pid = manager.get_plugin("checked").status()["pid"]
    os.kill(pid, 9)
    for _ in range(50):
        try:
            assert manager.call("healthy.echo", {"n": 2}, timeout=10) == {"n": 2}
        except ZenoError:  # the kill may meet the call
            continue
        break
    assert manager.get_plugin("checked").status()["pid"] != pid


def test_a_binary_by_absolute_path_needs_the_managers_leave(make_plugin, tmp_path, no_leaks):
    folder = make_plugin(HEALTHY, name="absolute")
    elsewhere = tmp_path / "elsewhere.py"
    shutil.move(folder / "guest.py", elsewhere)
    text = (folder / "manifest.yaml").read_text().replace("./guest.py", str(elsewhere))
    (folder / "manifest.yaml").write_text(text)
    with PluginManager() as manager, pytest.raises(ZenoError, match="allow"):
        manager.load_plugin(folder)
    with PluginManager(allow_absolute_binaries=True) as manager:
        manager.load_plugin(folder)
        assert manager.call("healthy.echo", {"n": 1}) == {"n": 1}
