"""What the README, the examples' README and docs/manifest.md show works as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from guests.build import missing_toolchain

import zeno_fast
from zeno_fast import Manifest, PluginManager

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    # The commands and the package of this environment, also in processes that are started anew.
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    "PYTHONPATH": str(Path(zeno_fast.__file__).parents[1]),
}
PAGES = {
    name: (ROOT / name).read_text("utf-8")
    for name in (
        "README.md", "CONTRIBUTING.md", "examples/plugins/README.md", "docs/manifest.md",
        "docs/protocol.md",
        "benchmarks/README.md",
    )
}  # fmt: skip
README = PAGES["README.md"]
EXAMPLES = PAGES["examples/plugins/README.md"]


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def python_block(having: str, page: str = README) -> str:
    (code,) = [block for block in blocks("python", page) if having in block]
    return code


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=100, check=False
    )


def write_script(file: Path, code: str) -> None:
    file.write_text(code)
    file.chmod(0o755)


SHELL = [line for page in (README, EXAMPLES) for line in "".join(blocks("sh", page)).splitlines()]
COMMANDS = [line for line in SHELL if line.startswith("zeno-fast ")]
BENCHMARKS = [
    f"python benchmarks/bench_{name}.py"
    for name in ("wasm", "sidecar", "shared_memory", "supervision")
]
BUILD = "python tests/guests/build.py build/plugins dotnet-utils"


def test_there_are_two_commands_and_each_is_one_line() -> None:
    first, second = blocks("sh")[:2]
    assert first.count("\n") == second.count("\n") == 1
    assert first.endswith("pip install -e '.[cli]' && zeno-fast demo\n")
    assert second == "pip install -e '.[test]' && pytest\n"


def test_every_line_of_shell_is_run_by_a_test() -> None:
    others = [line for line in SHELL if line not in COMMANDS]
    assert others[0].startswith("python3 -m venv ")  # .ci/run runs these two
    assert others[1] == "pip install -e '.[test]' && pytest"
    assert others[2:] == [*BENCHMARKS, BUILD]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_runs_as_printed(line: str) -> None:
    ended = run("bash", "-c", line)
    if line == "zeno-fast list examples/plugins":
        # As the text below it says: examples that are not built are a failure.
        assert ended.returncode in (0, 1)
        assert "text.wrap" in ended.stdout
    else:
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout


@pytest.mark.parametrize("line", BENCHMARKS)
def test_a_benchmark_runs_as_printed_but_shorter(line: str, tmp_path: Path) -> None:
    if "wasm" not in line and (missing := missing_toolchain("c")):
        pytest.skip(missing)
    # Not in the source tree itself, whose results stay as they were measured.
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    shutil.rmtree(tmp_path / "benchmarks" / "results")
    for name in ("tests", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    ended = run("bash", "-c", f"{line} --rounds 1 --calls 20", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    (result,) = (tmp_path / "benchmarks" / "results").iterdir()
    assert json.loads(result.read_text())["correct"] is True


def test_the_line_for_the_sample_in_c_sharp_builds_it(tmp_path: Path) -> None:
    if missing := missing_toolchain("dotnet-utils"):
        pytest.skip(missing)
    ended = run("bash", "-c", BUILD.replace("build/plugins", str(tmp_path)))
    assert ended.returncode == 0, ended.stderr
    with PluginManager() as manager:
        assert manager.load_plugin(tmp_path / "dotnet-utils").name == "dotnet-utils"


def test_the_example_runs_as_printed() -> None:
    ended = run(sys.executable, "-W", "error", "-c", python_block("manager.call("))
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "text.stats" in lines[0]
    assert "'words': 6" in lines[1]
    assert lines[-1] == "the guest said no: width must be at least 1"
    assert ended.stderr == ""


def test_the_manifest_and_its_guest_work_as_they_stand(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "manifest.yaml").write_text(text)
    write_script(tmp_path / "hello.py", python_block("hello.greet"))
    manifest = Manifest.load(tmp_path, strict=True)
    assert manifest.sidecar.timeout == 10
    with PluginManager() as manager:
        manager.load_plugin(tmp_path)
        assert manager.call("hello.greet", {"name": "Ada"}) == "Hello, Ada"
        assert manager.execute_slot("hello", "hello.greet").data == "Hello, you"


def test_the_guest_works_without_slots_in_its_manifest(tmp_path: Path) -> None:
    write_script(tmp_path / "hello.py", python_block("hello.greet"))
    (tmp_path / "manifest.yaml").write_text("name: hello\ntype: sidecar\nbinary: hello.py\n")
    with PluginManager() as manager:
        manager.load_plugin(tmp_path)
        assert manager.call("hello.greet", {"name": "Ada"}) == "Hello, Ada"


def test_the_guest_in_c_compiles_without_a_warning_and_answers(tmp_path: Path) -> None:
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}; `apt install gcc` would bring it")
    (code,) = blocks("c")
    (tmp_path / "twice.c").write_text(code)
    for name in ("guest_json.h", "guest_sidecar.h"):
        shutil.copy(ROOT / "examples" / "plugins" / name, tmp_path)
    built = run(compiler, "-O2", "twice.c", "-o", "twice", cwd=tmp_path)
    assert (built.returncode, built.stderr) == (0, "")
    (tmp_path / "manifest.yaml").write_text("name: twice\ntype: sidecar\nbinary: twice\n")
    with PluginManager() as manager:
        manager.load_plugin(tmp_path)
        assert manager.call("number.twice", {"n": 21}) == 42
        refused = manager.execute_slot("twice", "number.twice", {"n": 10**10})
        assert refused.error == "n must be within a thousand million"


def test_a_guest_asks_the_host_for_each_of_several_calls(tmp_path: Path) -> None:
    write_script(tmp_path / "who.py", python_block("ask_host"))
    (tmp_path / "manifest.yaml").write_text(
        "name: who\ntype: sidecar\nbinary: who.py\npermissions: {scope: [read]}\n"
    )
    with PluginManager() as manager:
        manager.load_plugin(tmp_path)
        futures = [manager.submit("hello.who", scope={"user": number}) for number in range(30)]
        assert [future.result(20)["value"] for future in futures] == list(range(30))
        refused = manager.execute_slot("who", "hello.who")
        assert refused.error is not None
        assert "without a scope" in refused.error


def test_the_callback_of_the_host_can_be_set_as_printed() -> None:
    ended = run(sys.executable, "-W", "error", "-c", python_block("set_host_callback"))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_the_guest_of_the_examples_readme_works_as_it_stands(tmp_path: Path) -> None:
    (manifest,) = blocks("yaml", EXAMPLES)
    (tmp_path / "manifest.yaml").write_text(manifest)
    write_script(tmp_path / "hello.py", python_block("hello.greet", EXAMPLES))
    Manifest.load(tmp_path, strict=True)
    with PluginManager() as manager:
        manager.load_plugin(tmp_path)
        assert manager.call("hello.greet", {"name": "Ada"}) == "Hello Ada"


def test_the_manifest_that_has_every_section_is_valid(tmp_path: Path) -> None:
    (text,) = blocks("yaml", PAGES["docs/manifest.md"])
    (tmp_path / "manifest.yaml").write_text(text)
    manifest = Manifest.load(tmp_path, strict=True)
    assert manifest.slots is not None
    assert manifest.wasm.timeout == 1


def test_every_key_of_the_manifest_is_described() -> None:
    described = set(re.findall(r"`([a-z0-9_]+)`", PAGES["docs/manifest.md"]))
    fields = set(Manifest.__dataclass_fields__) - {
        "folder", "file", "binary_path", "warnings", "raw",
    }  # fmt: skip
    for section in (zeno_fast.manifest.SidecarOptions, zeno_fast.manifest.WasmOptions,
                    zeno_fast.manifest.Permissions):  # fmt: skip
        fields |= set(section.__dataclass_fields__)
    assert fields - described == set()


@pytest.mark.parametrize(
    ("page", "target"),
    sorted(
        {
            (page, target)
            for page, text in PAGES.items()
            for target in re.findall(r"\]\(([^):]+)\)", text)
        }
    ),
)
def test_a_link_leads_somewhere(page: str, target: str) -> None:
    path, _, heading = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists()
    if heading:
        headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
        assert heading in {found.lower().replace(" ", "-") for found in headings}


def test_the_python_guest_of_the_readme_streams(tmp_path, no_leaks, capsys):
    write_script(tmp_path / "progress.py", python_block('Plugin("progress"'))
    (tmp_path / "manifest.yaml").write_text(
        "name: progress\ntype: sidecar\nbinary: ./progress.py\n"
    )
    scope: dict[str, object] = {}
    exec(python_block("def count(manager)"), scope)
    with PluginManager() as manager:
        manager.load_plugin(tmp_path)
        scope["count"](manager)
        assert manager.get_plugin("progress").status()["noise_lines"] == 0
    assert capsys.readouterr().out.split() == ["5", "4", "3", "2", "1", "lift-off"]
