"""What the README shows works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zeno_fast
from zeno_fast import Manifest, PluginManager

ROOT = Path(__file__).resolve().parents[2]
# A new process finds the package where this one did.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(zeno_fast.__file__).parents[1])}
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_there_are_two_commands_and_each_is_one_line() -> None:
    first, second = blocks("sh")
    assert first.count("\n") == second.count("\n") == 1
    assert first.endswith("pip install '.[cli]' && zeno-fast demo\n")
    assert second == "pip install '.[test]' && pytest\n"


def test_the_example_runs_as_printed(tmp_path: Path) -> None:
    # Not in the source tree itself, where Python would import a package that was not built.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (code,) = [block for block in blocks("python") if "PluginManager" in block]
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "text.stats" in lines[0]
    assert "'words': 6" in lines[1]
    assert lines[-1] == "the guest said no: width must be at least 1"
    assert ended.stderr == ""


def test_the_manifest_is_valid(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "manifest.yaml").write_text(text.replace("9f86d081884c7d65...", "ab" * 32))
    manifest = Manifest.load(tmp_path, strict=True)
    assert manifest.slots is not None
    assert manifest.sidecar.timeout == 10


def test_the_guest_is_whole(tmp_path: Path) -> None:
    (code,) = [block for block in blocks("python") if "plugin_init" in block]
    script = tmp_path / "hello.py"
    script.write_text(code)
    script.chmod(0o755)
    (tmp_path / "manifest.yaml").write_text("name: hello\ntype: sidecar\nbinary: hello.py\n")
    with PluginManager() as manager:
        manager.load_plugin(tmp_path)
        assert manager.call("hello.greet", {"name": "Ada"}) == "Hello, Ada"
        assert manager.execute_slot("hello", "hello.greet").data == "Hello, you"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^):]+)\)", README))))
def test_a_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
