"""The ring's protocol, model-checked: every order in which its steps can come."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[1] / "model" / "ring.pml"


def check(folder: Path, *definitions: str) -> str:
    """Return what the checker says after it has been everywhere."""
    if shutil.which("spin") is None or shutil.which("cc") is None:
        pytest.skip("toolchain: `apt install spin gcc` would bring the model checker")
    commands = (
        ["spin", "-a", *definitions, str(MODEL)],
        ["cc", "-O2", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c"],
        ["./pan", "-m100000"],
    )
    for command in commands:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_s3_s6_no_wake_up_is_lost_and_no_record_torn(tmp_path):
    said = check(tmp_path)
    assert "errors: 0" in said
    assert "max search depth too small" not in said


@pytest.mark.parametrize("left_out", ["FENCES", "RECHECK"])
def test_the_checker_finds_what_is_left_out(tmp_path, left_out):
    assert "errors: 1" in check(tmp_path, f"-D{left_out}=0")
