"""Try an installed zeno_fast, away from its source tree: `python smoke.py`, no test runner needed.

Run by the wheel job of `.ci/run` for every Python that is there.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zeno_fast
from zeno_fast import PluginManager, SlotError, SlotNotFound, ZenoError

PACKAGE = Path(zeno_fast.__file__).resolve().parent
COMMAND = Path(sys.executable).parent / "zeno-fast"
SDK = {
    "c/zeno_ring.h", "c/zeno_shm.h", "c/zeno_guest.h", "c/zeno_guest.c", "c/guest_json.h",
    "c/guest_sidecar.h", "python/guest.py", "go/zeno/go.mod", "go/zeno/link.go",
    "go/zeno/serve.go", "rust/zeno.rs", "rust/zeno_buffers.rs", "rust/json.rs", "rust/base64.rs",
    "csharp/ZenoGuest.cs", "csharp/ZenoBuffers.cs",
}  # fmt: skip
EXAMPLES = PACKAGE / "_examples"


def main() -> None:
    before = files_below(EXAMPLES)
    check_the_package_is_whole()
    check_the_build_is_no_debug_build()
    shown = check_demo()
    check_call()
    check_the_sdk_is_whole()
    check_failures_have_a_status_and_a_paragraph()
    check_both_kinds_through_one_manager(shown)
    assert files_below(EXAMPLES) == before, "something was written into the example plugins"
    kinds = sorted({row["kind"] for row in shown})
    slots = len(shown)
    print(f"smoke: python {sys.version.split()[0]}, {slots} slots of {' and '.join(kinds)}: fine")


def check_the_sdk_is_whole() -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = run("sdk", folder)
        assert done.returncode == 0, done.stderr
        files = {path.relative_to(folder).as_posix() for path in map(Path, done.stdout.split())}
        assert files == {
            path.relative_to(folder).as_posix()
            for path in Path(folder).rglob("*")
            if path.is_file()
        }
    assert files >= SDK, f"the SDK lacks {SDK - files}"
    assert not [file for file in files if "_test" in file]
    assert (Path(zeno_fast.get_include()) / "zeno_guest.h").is_file()


def files_below(folder: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts and not path.is_dir()
    }


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def check_the_package_is_whole() -> None:
    assert not (PACKAGE.parent / "pyproject.toml").exists(), f"{PACKAGE} is the source tree"
    assert (PACKAGE / "py.typed").is_file()
    compiled = {path.name.partition(".")[0] for path in PACKAGE.glob("_*.so")}
    stubs = {path.stem for path in PACKAGE.glob("_*.pyi")}
    assert compiled, "no compiled module"
    assert compiled == stubs, f"modules and stubs differ: {compiled ^ stubs}"
    assert (EXAMPLES / "text" / "text.wasm").is_file()
    strays = [path.name for path in PACKAGE.rglob("*") if path.suffix in {".pyx", ".pxd", ".o"}]
    assert not strays, strays


def check_the_build_is_no_debug_build() -> None:
    """A traced build reports every line of compiled code to `sys.settrace`, and crawls."""
    seen: list[str] = []

    def trace(frame: Any, event: str, _: object) -> Any:
        if frame.f_code.co_filename.endswith(".pyx"):
            seen.append(event)
        return trace

    with PluginManager() as manager:
        manager.load_plugin(EXAMPLES / "text")
        sys.settrace(trace)
        try:
            manager.call("text.stats", {"text": "a b"})
        finally:
            sys.settrace(None)
    assert not seen, "the extensions were built with ZENO_FAST_TRACE"


def check_demo() -> list[dict[str, Any]]:
    people = run("demo", "--seconds", "0.02")
    assert people.returncode == 0, people.stderr
    assert "text.distance" in people.stdout, people.stdout
    programs = run("demo", "--seconds", "0.02", "--output", "json")
    assert programs.returncode == 0, programs.stderr
    shown: list[dict[str, Any]] = json.loads(programs.stdout)["shown"]
    assert {row["kind"] for row in shown} == {"wasm", "sidecar"}, shown
    for row in shown:
        assert row["error"] is None, row
        assert row["calls"] > 0, row
        assert row["slot"] in people.stdout
    return shown


def check_call() -> None:
    done = run("call", "text.distance", "a=kitten", "b=sitting", "--plugins", EXAMPLES)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"distance": 3}, done.stdout
    wrapped = run(
        "call", "text.wrap", "--json", '{"text": "the quick brown fox", "width": 10}',
        "--plugins", EXAMPLES, "--plugin", "text", "-o", "json",
    )  # fmt: skip
    assert wrapped.stdout == '{"lines":["the quick","brown fox"]}\n', wrapped


def check_failures_have_a_status_and_a_paragraph() -> None:
    for arguments, status, words in (
        (("call", "text.distanse", "--plugins", EXAMPLES), 2, "text.distance"),
        (("call", "text.wrap", "text=a", "width=0", "--plugins", EXAMPLES), 1, "at least 1"),
        (("call", "text.wrap", "--plugins", EXAMPLES), 2, "text"),
        (("inspect", EXAMPLES / "txt"), 2, "did you mean `text`?"),
    ):
        failed = run(*arguments)
        assert failed.returncode == status, (arguments, failed)
        assert words in failed.stderr, (arguments, failed)
        assert "Traceback" not in failed.stderr, failed.stderr
        assert not failed.stdout, failed.stdout
    without = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['click'] = None; "
         "from zeno_fast.cli import main; main()"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert without.returncode == 2, without
    assert without.stderr.count("\n") == 1, without.stderr
    assert "pip install 'zeno_fast[cli]'" in without.stderr, without.stderr


def check_both_kinds_through_one_manager(shown: list[dict[str, Any]]) -> None:
    samples = [next(row for row in shown if row["kind"] == kind) for kind in ("wasm", "sidecar")]
    with PluginManager() as manager:
        for name in {row["plugin"] for row in samples}:
            folder = next(f for f in EXAMPLES.iterdir() if holds(f, name))
            manager.load_plugin(folder)
        for row in samples:
            slot, parameters = row["slot"], row["parameters"]
            kind = type(row["answer"])
            assert isinstance(manager.call(slot, parameters), kind)
            assert isinstance(manager.submit(slot, parameters).result(10), kind)
            assert len(list(manager.map(slot, [parameters] * 100))) == 100
            assert isinstance(asyncio.run(manager.call_async(slot, parameters)), kind)
        refused = raised_by(lambda: manager.call("text.wrap", {"text": "a", "width": 0}))
        assert isinstance(refused, SlotError), refused
        assert "at least 1" in str(refused)
        assert isinstance(raised_by(lambda: manager.call("no.such")), SlotNotFound)


def raised_by(function: Callable[[], object]) -> ZenoError | None:
    try:
        function()
    except ZenoError as error:
        return error
    return None


def holds(folder: Path, name: str) -> bool:
    manifest = folder / "manifest.yaml"
    return manifest.is_file() and f"\nname: {name}\n" in "\n" + manifest.read_text("utf-8")


if __name__ == "__main__":
    main()
