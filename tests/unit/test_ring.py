"""The ring between two processes, here and on Windows, and against a peer that writes anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from c_programs import INCLUDE, LANGUAGES, SOURCES, compile_and_run, compile_program

MESSAGES = int(os.environ.get("ZENO_FAST_MESSAGES", "300000"))
SECONDS = float(os.environ.get("ZENO_FAST_SECONDS", "3"))


@pytest.fixture(scope="module", params=LANGUAGES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    return compile_program(SOURCES / "ring_pair.c", folder, request.param, ["-O2"])


@pytest.mark.parametrize("pause", [20, 1000, 1 << 62], ids=["often", "now and then", "never"])
def test_s6_no_wake_up_is_lost_between_two_processes(pair, pause):
    messages = MESSAGES // 20 if pause == 20 else MESSAGES
    done = subprocess.run(
        [pair, str(messages), str(pause)],
        capture_output=True, text=True, timeout=60 + messages / 20_000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sleeps = [int(count) for count in done.stderr.split()]
    assert len(sleeps) == 2
    if pause < 1000:
        assert max(sleeps) > messages / pause / 20  # or nothing was at stake


@pytest.mark.timeout(120 + 2 * SECONDS)
def test_s2_a_peer_that_scribbles_from_another_core_does_no_harm(tmp_path):
    found = compile_and_run(
        SOURCES / "test_ring.c", tmp_path, arguments=[str(SECONDS)], timeout=60 + SECONDS
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of Wine, with a user's folder that is made once."""
    pytest.importorskip("ziglang", reason="`pip install ziglang` would bring its compiler")
    if shutil.which("wine") is None:
        pytest.skip("toolchain: `apt install wine wine64` would bring Wine")
    folder = tmp_path_factory.mktemp("wine")
    return {**os.environ, "WINEPREFIX": str(folder / "prefix"), "WINEDEBUG": "-all"}


@pytest.mark.parametrize(
    ("source", "arguments"), [("ring_pair.c", ["30000"]), ("test_ring.c", ["1"])]
)
def test_on_windows(windows, tmp_path, source, arguments):
    program = tmp_path / "program.exe"
    built = subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-windows-gnu", "-std=c11", "-O2",
         "-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}", str(SOURCES / source), "-pthread",
         "-o", str(program)],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    done = subprocess.run(
        ["wine", program, *arguments],
        env=windows, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
