"""C programs of the tests, built and run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INCLUDE = ROOT / "ext" / "include"
SOURCES = ROOT / "tests" / "c"
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
ADDRESSES = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# GCC warns that this sanitizer does not know fences; what they keep in order, it takes for races.
THREADS = ["-fsanitize=thread", "-Wno-tsan"]
AS_LIBRARY = ["-shared", "-fPIC"]
# As a language of its own: without a compiler for it the test cannot run.
LANGUAGES = {
    "c11": (os.environ.get("CC", "cc"), ["-x", "c", "-std=c11"]),
    "c++17": (os.environ.get("CXX", "c++"), ["-x", "c++", "-std=c++17"]),
}


def compile_program(
    source: Path, folder: Path, language: str = "c11", options: Sequence[str] = ()
) -> Path:
    """Build a program in a folder; what is included may lie beside its source."""
    compiler, as_language = LANGUAGES[language]
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}; `apt install gcc g++` would bring it")
    program = folder / "program"
    built = subprocess.run(
        [compiler, *as_language, *WARNINGS, "-pthread", *options, f"-I{INCLUDE}", str(source),
         "-o", str(program)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return program


def compile_and_run(
    source: Path, folder: Path, language: str = "c11", sanitizers: Sequence[str] = ADDRESSES,
    arguments: Sequence[str] = (), timeout: float = 60,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Build a program with sanitizers and run it."""
    program = compile_program(source, folder, language, [*sanitizers, "-fno-builtin", "-g", "-O1"])
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=timeout, check=False,
        env={**os.environ, "TSAN_OPTIONS": "die_after_fork=0"},
    )  # fmt: skip


def break_header(folder: Path, header: str, right: str, wrong: str, test: str) -> Path:
    """Copy a test and the headers to a folder, with a fault in one; return the test's path."""
    text = (INCLUDE / header).read_text()
    assert text.count(right) == 1
    shutil.copytree(INCLUDE, folder, dirs_exist_ok=True)
    (folder / header).write_text(text.replace(right, wrong))
    shutil.copy(SOURCES / test, folder / test)
    return folder / test
