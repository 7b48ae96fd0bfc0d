"""The launchers of all systems compile; what runs here is tested in tests/fault."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHERS = Path(__file__).parents[2] / "ext" / "launcher"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-O2"]
FOREIGN = {
    "launcher_windows.c": ("x86_64-windows-gnu", ["-lshell32"]),
    "launcher_macos.c": ("aarch64-macos", []),
}


def compile_with(command: list[str], source: str, program: Path, *options: str) -> None:
    built = subprocess.run(
        [*command, *WARNINGS, str(LAUNCHERS / source), "-o", str(program), *options],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert program.stat().st_size > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux's")
def test_the_launcher_of_linux_compiles_without_a_warning(tmp_path):
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}; `apt install gcc` would bring it")
    compile_with([compiler, "-std=gnu11", "-Wconversion"], "launcher_linux.c", tmp_path / "out")


@pytest.mark.parametrize("source", FOREIGN)
def test_the_launchers_of_other_systems_compile_without_a_warning(tmp_path, source):
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("toolchain: `pip install ziglang` would bring a compiler for them")
    target, options = FOREIGN[source]
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target]
    compile_with(command, source, tmp_path / "out.exe", *options)
