"""The C headers, built as C11 and as C++17 and run under the sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from c_programs import LANGUAGES, SOURCES, THREADS, break_header, compile_and_run

TESTS = sorted(path.name for path in SOURCES.glob("test_*.c"))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("test", TESTS)
def test_a_header_keeps_what_it_promises(test: str, language: str, tmp_path: Path) -> None:
    found = compile_and_run(SOURCES / test, tmp_path, language)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.parametrize("test", ["test_blocking_read.c", "test_ring.c"])
def test_threads_have_no_data_race(test: str, tmp_path: Path) -> None:
    found = compile_and_run(SOURCES / test, tmp_path, sanitizers=THREADS)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("header", "right", "wrong", "test"),
    [
        (
            "zeno_blocking_read.h",
            "__atomic_store_n(&reader->state, result, __ATOMIC_RELEASE);",
            "reader->state = result;",
            "test_blocking_read.c",
        ),
        (
            "zeno_ring.h",
            "__atomic_store_n(at, value, __ATOMIC_RELEASE);",
            "__atomic_store_n(at, value, __ATOMIC_RELAXED);",
            "test_ring.c",
        ),
    ],
    ids=["a state that is no longer atomic", "a cursor that does not publish"],
)
def test_the_thread_sanitizer_notices(
    header: str, right: str, wrong: str, test: str, tmp_path: Path
) -> None:
    source = break_header(tmp_path, header, right, wrong, test)
    found = compile_and_run(source, tmp_path, sanitizers=THREADS)
    assert found.returncode != 0
    assert "data race" in found.stderr


@pytest.mark.parametrize(
    ("header", "right", "wrong", "test", "said"),
    [
        (
            "zeno_json.h",
            "for (at++; at < n; at++)",
            "for (at++; at <= n; at++)",
            "test_json.c",
            "heap-buffer-overflow",
        ),
        (
            "zeno_ring.h",
            "uint64_t first = reader->size - at < nbytes ? reader->size - at : nbytes;",
            "uint64_t first = reader->size - at < nbytes ? reader->size - at + 1 : nbytes;",
            "test_ring.c",
            "heap-buffer-overflow",
        ),
        (
            "zeno_ring.h",
            "zr_span(header[0]) > reader->head - reader->tail ||",
            "zr_span(header[0]) > reader->size + 8 ||",
            "test_ring.c",
            "== ZR_CORRUPT",
        ),
    ],
    ids=["one byte too far", "one byte behind the ring", "a length that is believed"],
)
def test_the_tests_and_the_sanitizers_notice(
    header: str, right: str, wrong: str, test: str, said: str, tmp_path: Path
) -> None:
    source = break_header(tmp_path, header, right, wrong, test)
    found = compile_and_run(source, tmp_path)
    assert found.returncode != 0
    assert said in found.stdout + found.stderr
