"""The C headers, built as C11 and as C++17 and run under the sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
ADDRESSES = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREADS = ["-fsanitize=thread"]
# As a language of its own: without a compiler for it the test cannot run.
LANGUAGES = {
    "c11": (os.environ.get("CC", "cc"), ["-x", "c", "-std=c11"]),
    "c++17": (os.environ.get("CXX", "c++"), ["-x", "c++", "-std=c++17"]),
}
TESTS = sorted(path.name for path in (ROOT / "tests" / "c").glob("test_*.c"))


def compile_and_run(
    source: Path, folder: Path, language: str, sanitizers: list[str] = ADDRESSES
) -> subprocess.CompletedProcess[str]:
    compiler, options = LANGUAGES[language]
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}; `apt install gcc g++` would bring it")
    program = folder / "program"
    built = subprocess.run(
        [compiler, *options, *WARNINGS, *sanitizers, "-fno-builtin", "-g", "-O1", "-pthread",
         f"-I{ROOT / 'ext' / 'include'}", str(source), "-o", str(program)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return subprocess.run(
        [program], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "TSAN_OPTIONS": "die_after_fork=0"},
    )  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("test", TESTS)
def test_a_header_keeps_what_it_promises(test: str, language: str, tmp_path: Path) -> None:
    found = compile_and_run(ROOT / "tests" / "c" / test, tmp_path, language)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_the_blocking_read_has_no_data_race(tmp_path: Path) -> None:
    source = ROOT / "tests" / "c" / "test_blocking_read.c"
    found = compile_and_run(source, tmp_path, "c11", THREADS)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_the_thread_sanitizer_notices_a_state_that_is_no_longer_atomic(tmp_path: Path) -> None:
    header = (ROOT / "ext" / "include" / "zeno_blocking_read.h").read_text()
    right = "__atomic_store_n(&reader->state, result, __ATOMIC_RELEASE);"
    assert right in header
    (tmp_path / "zeno_blocking_read.h").write_text(header.replace(right, "reader->state = result;"))
    source = tmp_path / "test_blocking_read.c"
    shutil.copy(ROOT / "tests" / "c" / "test_blocking_read.c", source)
    found = compile_and_run(source, tmp_path, "c11", THREADS)
    assert found.returncode != 0
    assert "data race" in found.stderr


def test_the_sanitizers_notice_one_byte_too_far(tmp_path: Path) -> None:
    header = (ROOT / "ext" / "include" / "zeno_json.h").read_text()
    right = "for (at++; at < n; at++)"
    assert right in header
    (tmp_path / "zeno_json.h").write_text(header.replace(right, "for (at++; at <= n; at++)"))
    source = tmp_path / "test_json.c"
    shutil.copy(ROOT / "tests" / "c" / "test_json.c", source)
    found = compile_and_run(source, tmp_path, "c11")
    assert found.returncode != 0
    assert "heap-buffer-overflow" in found.stderr
