"""The command line, in this process where possible.

Where it needs a process of its own, that starts in a folder outside the source tree: Python would
import the package from the current folder, where the extensions need not have been built.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import zeno_fast
from zeno_fast.cli.app import app
from zeno_fast.cli.call import read_parameters
from zeno_fast.cli.demo import example_folder, example_parameters, fit
from zeno_fast.manager import PluginManager
from zeno_fast.plugin import InputDefinition, SlotDefinition

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "plugins"

# A new process finds the package where this one did.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(zeno_fast.__file__).parents[1])}

GUEST = """#!{python}
import json, pathlib, sys

pathlib.Path("started").touch()
print("a word on stderr", file=sys.stderr, flush=True)
SLOTS = [
    {{
        "name": "guest.echo",
        "description": "Answer what came",
        "inputs": {{"value": {{"required": True}}, "times": {{"type": "int", "default": 1}}}},
    }},
    {{"name": "guest.fail"}},
    {{"name": "guest.silent"}},
]
for line in sys.stdin:
    request = json.loads(line)
    answer = {{"type": "guest_response", "id": request["id"], "success": True}}
    match = request["slot_name"]
    if match == "plugin_init":
        answer["data"] = {{"name": "guest", "version": "9"}}
    elif match == "plugin_register_slots":
        answer["data"] = SLOTS if {lists} else {{"error": "Unknown slot"}}
    elif match == "guest.fail":
        answer.update(success=False, error="no \\x1b[31mway", data={{"code": 7}})
    elif match == "guest.silent":
        continue
    else:
        answer["data"] = request["parameters"]
    print(json.dumps(answer), flush=True)
"""


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The command line in this process; its logging is undone afterwards."""
    logger = logging.getLogger("zeno_fast")
    before = logger.handlers[:], logger.level, logger.propagate

    def run(*arguments: str | Path) -> Result:
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments], prog_name="zeno-fast")
        written = capsys.readouterr()
        assert "Traceback" not in written.err
        return Result(int(ended.value.code or 0), written.out, written.err)

    yield run
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def make_guest(root: Path, name: str = "guest", *, lists: bool = True, more: str = "") -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    script = folder / "guest"
    script.write_text(GUEST.format(python=sys.executable, lists=lists))
    script.chmod(0o755)
    (folder / "manifest.yaml").write_text(
        f"name: {name}\nversion: 1.2.0\ntype: sidecar\nbinary: ./guest\n{more}"
    )
    return folder


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder with a plugin of each kind."""
    root = tmp_path / "plugins"
    make_guest(root)
    (root / "text").symlink_to(EXAMPLES / "text")
    return root


def break_plugin(root: Path, name: str = "broken") -> None:
    (root / name).mkdir()
    (root / name / "manifest.yaml").write_text(f"name: {name}\ntype: sidecra\n")


@pytest.fixture
def terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make stdout a terminal of so many columns, without colours."""

    def terminal(columns: int) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        about = {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": str(columns), "LINES": "24"}
        for name, value in about.items():
            monkeypatch.setenv(name, value)

    return terminal


# -- list -----------------------------------------------------------------------------------------


def test_list_shows_the_slots_of_both_kinds(run: Run, plugins: Path) -> None:
    result = run("list", plugins)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].split() == ["plugin", "version", "kind", "slot", "parameters", "description"]
    (echo,) = [line for line in lines if "guest.echo" in line]
    assert echo.split()[:3] == ["guest", "1.2.0", "sidecar"]
    assert "value [times:int=1]" in echo
    (stats,) = [line for line in lines if "text.stats" in line]
    assert "wasm" in stats


def test_list_gives_programs_the_definitions_whole(run: Run, plugins: Path) -> None:
    data = run("list", plugins, "--output", "json").data
    guest = next(plugin for plugin in data["plugins"] if plugin["name"] == "guest")
    assert guest["type"] == "sidecar"
    assert [slot["name"] for slot in guest["slots"]] == ["guest.echo", "guest.fail", "guest.silent"]
    assert guest["slots"][0]["inputs"]["times"] == {
        "type": "int",
        "required": False,
        "default": 1,
        "description": "",
    }
    assert data["failures"] == {}


def test_list_shows_what_loads_and_fails_for_the_rest(run: Run, plugins: Path) -> None:
    break_plugin(plugins)
    result = run("list", plugins)
    assert result.status == 1
    assert "guest.echo" in result.out
    assert "1 plugin was not loaded" in result.err
    assert "manifest.yaml:2:7" in result.err
    assert "did you mean `sidecar`?" in result.err
    assert list(run("list", plugins, "-o", "json").data["failures"]) == ["broken"]


def test_list_for_programs_says_failures_once(run: Run, plugins: Path) -> None:
    break_plugin(plugins)
    result = run("list", plugins, "-o", "json")
    assert (result.status, result.err) == (1, "")
    assert "did you mean `sidecar`?" in result.data["failures"]["broken"]


def test_list_and_call_show_what_is_odd_in_manifests(run: Run, tmp_path: Path) -> None:
    folder = make_guest(tmp_path / "p", more="versoin: 2\n")
    for arguments in (["list", tmp_path / "p"],
                      ["call", "guest.echo", "value=1", "--plugins", tmp_path / "p"]):  # fmt: skip
        result = run(*arguments)
        assert result.status == 0
        (line,) = result.err.splitlines()
        assert line.startswith(f"warning: {folder / 'manifest.yaml'}:5:1: versoin: unknown key")


def test_list_into_a_pipe_is_neither_cut_nor_padded(run: Run, tmp_path: Path) -> None:
    words = "word " * 100
    more = f"slots:\n  - name: a.b\n    description: {words}\n  - name: a.c\n"
    make_guest(tmp_path / "p", more=more)
    lines = run("list", tmp_path / "p").out.splitlines()
    (long,) = [line for line in lines if "a.b" in line]
    assert long.endswith(words.strip())
    assert all(line == line.rstrip() for line in lines)
    assert len(lines[0]) < 80


def test_list_in_a_narrow_terminal_stacks(
    run: Run, plugins: Path, terminal: Callable[[int], None]
) -> None:
    terminal(79)
    lines = re.sub(r"\x1b\[\d+m", "", run("list", plugins).out).splitlines()
    assert "guest 1.2.0  sidecar" in lines
    assert "  guest.echo    value [times:int=1] Answer what came" in lines
    terminal(80)
    assert "plugin" in run("list", plugins).out.splitlines()[0]


def test_list_starts_a_plugin_that_waits_for_its_first_call(run: Run, tmp_path: Path) -> None:
    make_guest(tmp_path / "p", more="sidecar:\n  auto_start: false\n")
    assert "guest.echo" in run("list", tmp_path / "p").out


def test_list_of_nothing_says_what_a_plugin_is(run: Run, tmp_path: Path) -> None:
    result = run("list", tmp_path)
    assert result.status == 2
    assert "a folder that holds a `manifest.yaml`" in result.err


def test_list_of_a_folder_that_is_not_there_suggests_its_neighbour(run: Run, plugins: Path) -> None:
    result = run("list", plugins.with_name("plugin"))
    assert result.status == 2
    assert "did you mean `plugins`?" in result.err


def test_list_of_a_plugins_own_folder_names_the_folder_above(run: Run, plugins: Path) -> None:
    result = run("list", plugins / "guest")
    assert result.status == 2
    assert result.err.strip().endswith(str(plugins))


# -- inspect --------------------------------------------------------------------------------------

WHOLE = """\
author: Ada
description: All keys
license: MIT
homepage: https://example.org
requires: {host: ">=1"}
config:
  key: {type: string, required: true, env: API_KEY, default: none, description: A key}
sidecar:
  protocol: json-rpc
  max_retries: 7
  env: {MODE: fast}
  args: [--quick]
  timeout: 1500ms
permissions:
  network: ["https://api.example.com/*"]
  filesystem: [./storage]
  env: [LANG]
  database: [main]
  scope: [read]
slots:
  - name: guest.echo
    inputs: {value: {type: string, required: true}}
colour: blue
"""


def test_inspect_shows_all_that_a_manifest_says(run: Run, tmp_path: Path) -> None:
    result = run("inspect", make_guest(tmp_path, more=WHOLE))
    assert result.status == 0, result.err
    shown = [line.strip() for line in result.out.splitlines()]
    for said in (
        "guest 1.2.0  sidecar",
        "All keys",
        "author Ada",
        "license MIT",
        "homepage https://example.org",
        'requires {"host":">=1"}',
        'key string, required, from $API_KEY, default "none": A key',
        "max_retries 7",
        'env {"MODE":"fast"}',
        'args ["--quick"]',
        "timeout 1.5 s",
        "auto_start true (default)",
        "network https://api.example.com/*",
        "filesystem ./storage",
        "env LANG",
        "database main",
        "scope read",
        "guest.echo value:string",
    ):
        assert any(" ".join(line.split()) == " ".join(said.split()) for line in shown), said
    assert str(tmp_path / "guest" / "guest") in result.out
    assert "unknown key" in result.out
    assert "problem" not in result.out


def test_inspect_starts_nothing(run: Run, tmp_path: Path) -> None:
    folder = make_guest(tmp_path)
    assert run("inspect", folder).status == 0
    assert run("validate", folder).status == 0
    assert not (folder / "started").exists()


def test_inspect_gives_programs_the_manifest_as_read_and_as_written(
    run: Run, tmp_path: Path
) -> None:
    data = run("inspect", make_guest(tmp_path, more=WHOLE), "--output", "json").data
    assert data["sidecar"]["timeout"] == 1.5
    assert data["manifest"]["sidecar"]["timeout"] == "1500ms"
    assert data["permissions"]["scope"] == ["read"]
    assert data["binary_path"] == str(tmp_path / "guest" / "guest")
    assert data["problem"] is None
    assert len(data["warnings"]) == 1


def test_inspect_says_why_a_binary_does_not_run_here(run: Run, tmp_path: Path) -> None:
    folder = make_guest(tmp_path)
    (folder / "guest").unlink()
    result = run("inspect", folder)
    assert result.status == 0
    assert "was the plugin built?" in result.out


def test_inspect_of_a_wrong_manifest_points_at_it(run: Run, tmp_path: Path) -> None:
    folder = make_guest(tmp_path, more="permisions:\n  - [\n")
    result = run("inspect", folder)
    assert result.status == 1
    assert result.err.startswith(f"zeno-fast: {folder / 'manifest.yaml'}:")
    assert not result.out


def test_inspect_of_a_folder_of_plugins_names_one(run: Run, plugins: Path) -> None:
    result = run("inspect", plugins)
    assert result.status == 2
    assert str(plugins / "guest") in result.err


@pytest.mark.parametrize("command", ["inspect", "validate"])
def test_a_folder_without_a_manifest_is_not_found(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "manifest.yml").touch()
    result = run(command, tmp_path)
    assert result.status == 2
    assert "found `manifest.yml`: rename it" in result.err


# -- validate -------------------------------------------------------------------------------------


def test_validate_passes_a_right_manifest(run: Run, plugins: Path) -> None:
    result = run("validate", "--strict", plugins / "guest", plugins / "text")
    assert (result.status, result.err) == (0, "")
    assert result.out.split() == ["ok", "guest", "ok", "text"]


def test_validate_warns_of_an_unknown_key_and_fails_when_strict(run: Run, tmp_path: Path) -> None:
    folder = make_guest(tmp_path, more="versoin: 2\n")
    lenient, strict = run("validate", folder), run("validate", folder, "--strict")
    assert (lenient.status, strict.status) == (0, 1)
    assert lenient.err.startswith("warning: ")
    assert strict.err.startswith("error: ")
    for result in (lenient, strict):
        assert "manifest.yaml:5:1: versoin: unknown key" in result.err
        assert "did you mean `version`?" in result.err


def test_validate_judges_every_folder(run: Run, plugins: Path) -> None:
    bad = make_guest(plugins, "bad", more="sidecar: 5\n")
    result = run("validate", bad, plugins / "guest", "--output", "json")
    assert result.status == 1
    assert [(verdict["name"], verdict["valid"]) for verdict in result.data] == [
        ("bad", False),
        ("guest", True),
    ]
    assert "sidecar" in result.err


def test_validate_judges_the_folders_beside_one_that_is_missing(run: Run, plugins: Path) -> None:
    missing = plugins / "gueste"
    result = run("validate", plugins / "text", missing, plugins / "guest")
    assert result.status == 2
    assert result.out.split() == ["ok", "text", "ok", "guest"]
    assert result.err == f"error: {missing}: no such folder; did you mean `guest`?\n"
    data = run("validate", missing, plugins / "text", "-o", "json").data
    assert [verdict["valid"] for verdict in data] == [False, True]


def test_validate_refuses_a_script_as_wasm_module(run: Run, tmp_path: Path) -> None:
    folder = make_guest(tmp_path)
    (folder / "manifest.yaml").write_text("name: guest\nbinary: ./guest\n")
    result = run("validate", folder)
    assert (result.status, result.out) == (1, "")
    assert "a script" in result.err and "add `type: sidecar`" in result.err


def test_validate_treats_a_missing_binary_as_a_warning_unless_strict(
    run: Run, tmp_path: Path
) -> None:
    folder = make_guest(tmp_path)
    (folder / "guest").unlink()
    assert run("validate", folder).status == 0
    assert run("validate", folder, "--strict").status == 1


# -- call -----------------------------------------------------------------------------------------


def test_call_reads_values_as_json_where_they_are_json(run: Run, plugins: Path) -> None:
    result = run("call", "guest.echo", "value=[1, true]", "a=text", "b=5", 'c="5"', "d=", "e=x=y",
                 "--plugins", plugins)  # fmt: skip
    assert result.status == 0, result.err
    assert result.data == {
        "value": [1, True], "a": "text", "b": 5, "c": "5", "d": "", "e": "x=y", "times": 1,
    }  # fmt: skip
    assert result.out.count("\n") > 5


def test_call_prints_one_line_for_programs(run: Run, plugins: Path) -> None:
    result = run("call", "guest.echo", "--json", '{"value": "é"}', "--plugins", plugins, "-ojson")
    assert result.out == '{"value":"é","times":1}\n'


BYTES = """\
from zeno_fast.guest import Plugin
plugin = Plugin("guest")

@plugin.slot("guest.echo")
def echo(value: memoryview):
    return {"type": type(value).__name__, "format": value.format, "value": value}

plugin.run()
"""


def test_call_takes_and_shows_bytes_as_base64(run: Run, tmp_path: Path) -> None:
    script = make_guest(tmp_path) / "guest"
    script.write_text(f"#!{sys.executable}\n{BYTES}")
    floats = {"$bytes": "AACAPwAAAEA=", "dtype": "<f4", "shape": [2, 1]}
    for value, format in (({"$bytes": "YWJj"}, "B"), (floats, "f")):
        result = run("call", "guest.echo", f"value={json.dumps(value)}", "--plugins", tmp_path)
        assert result.status == 0, result.err
        assert result.data == {"type": "memoryview", "format": format, "value": value}


def test_call_finds_the_plugins_by_a_variable(
    run: Run, plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZENO_FAST_PLUGINS", str(plugins))
    result = run("call", "text.distance", "a=kitten", "b=sitting")
    assert result.data == {"distance": 3}


def test_call_of_a_slot_that_fails_says_whose_words_it_repeats(run: Run, plugins: Path) -> None:
    result = run("call", "guest.fail", "--plugins", plugins)
    assert result.status == 1
    # The guest's escape sequence must not reach the terminal.
    assert result.err == 'zeno-fast: guest.fail failed: no �[31mway (it sent with it: {"code":7})\n'
    named = run("call", "guest.fail", "--plugins", plugins, "--plugin", "guest")
    assert (named.status, named.err) == (1, result.err)


def test_call_of_an_unknown_slot_suggests_one(run: Run, plugins: Path) -> None:
    result = run("call", "guest.ehco", "--plugins", plugins)
    assert result.status == 2
    assert "did you mean 'guest.echo'?" in result.err


def test_call_of_an_unknown_slot_names_what_did_not_load(run: Run, plugins: Path) -> None:
    break_plugin(plugins, "gues-two")
    break_plugin(plugins, "other")
    result = run("call", "guest.ecko", "--plugins", plugins)
    assert result.status == 2
    assert result.err == (
        "zeno-fast: no loaded plugin has a slot 'guest.ecko'; not loaded, so maybe it is theirs: "
        "gues-two (manifest.yaml:2:7: type: `sidecra` is not known; expected one of `wasm`, "
        f"`sidecar` (did you mean `sidecar`?)); see `zeno-fast list {plugins}`; "
        "did you mean 'guest.echo'?\n"
    )
    assert run("call", "guest.echo", "value=1", "--plugins", plugins).status == 0


def test_call_without_a_required_parameter_is_wrong_usage(run: Run, plugins: Path) -> None:
    result = run("call", "guest.echo", "--plugins", plugins)
    assert result.status == 2
    assert "value" in result.err


def test_call_warns_of_a_parameter_that_is_nearly_declared(run: Run, plugins: Path) -> None:
    result = run("call", "guest.echo", "value=1", "tiems=2", "zzz=3", "--plugins", plugins)
    assert result.status == 0
    assert result.err == ("warning: guest.echo has no parameter `tiems`; did you mean `times`?\n")
    refused = run("call", "guest.echo", "valeu=1", "--plugins", plugins)
    assert refused.status == 2
    assert "did you mean `value`?" in refused.err.splitlines()[0]


def test_call_ends_at_its_timeout(run: Run, plugins: Path) -> None:
    result = run("call", "guest.silent", "--plugins", plugins, "--timeout", "0.2")
    assert result.status == 1
    assert "guest.silent" in result.err
    assert "no answer within 0.20 s" in result.err


def test_call_of_a_named_plugin_starts_no_other(run: Run, plugins: Path) -> None:
    result = run("call", "text.stats", "text=a", "--plugins", plugins, "--plugin", "text")
    assert result.data["words"] == 1
    assert not (plugins / "guest" / "started").exists()
    unknown = run("call", "text.stats", "--plugins", plugins, "--plugin", "txt")
    assert unknown.status == 2
    assert "did you mean `text`?" in unknown.err


def test_call_reaches_a_plugin_that_lists_no_slots(run: Run, tmp_path: Path) -> None:
    make_guest(tmp_path / "p", "quiet", lists=False)
    result = run("call", "any.slot", "x=1", "--plugins", tmp_path / "p")
    assert result.status == 2
    assert result.err.strip().endswith("quiet lists no slots: try --plugin quiet")
    named = run("call", "any.slot", "x=1", "--plugins", tmp_path / "p", "--plugin", "quiet")
    assert named.data == {"x": 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["text"], "is not KEY=VALUE"),
        (["=5"], "is not KEY=VALUE"),
        (["a=1", "a=2"], "given twice"),
        (["a=1", "--json", "{}"], "not both"),
        (["--json", "{"], "--json: not valid JSON"),
        (["--json", "[1]"], "expected an object"),
        (['a={"$bytes": "!"}'], '"$bytes" does not stand for bytes'),
        (["--json", '{"a": [{"$bytes": [0, 1]}]}'], "there is no shared memory"),
        (["--timeout", "0"], "0"),
        (["--outptu", "json"], "--out"),
    ],
)
def test_call_with_words_it_does_not_know_is_wrong_usage(
    run: Run, arguments: list[str], words: str
) -> None:
    result = run("call", "a.b", *arguments)
    assert result.status == 2
    assert words in result.err


def test_parameters_come_from_stdin_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"a": [1]}'))
    assert read_parameters((), "-") == {"a": [1]}


def test_the_log_of_a_plugin_is_shown_only_when_asked_for(run: Run, plugins: Path) -> None:
    quiet = run("call", "guest.echo", "value=1", "--plugins", plugins)
    assert quiet.err == ""
    loud = run("call", "guest.echo", "value=1", "--plugins", plugins, "-v")
    assert "a word on stderr" in loud.err
    assert "zeno_fast.plugin.guest" in loud.err
    assert loud.out == quiet.out


# -- demo -----------------------------------------------------------------------------------------


def test_demo_shows_real_answers_of_both_kinds_and_writes_nothing(run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in EXAMPLES.rglob("*")}
    result = run("demo", "--seconds", "0.01", "--output", "json")
    assert result.status == 0, result.err
    shown = result.data["shown"]
    assert {row["kind"] for row in shown} == {"wasm", "sidecar"}
    for row in shown:
        assert row["error"] is None
        assert row["calls"] >= 1
        assert 0 < row["median_us"] < 1e6
    distance = next(row for row in shown if row["slot"] == "text.distance")
    assert (distance["language"], distance["answer"]) == ("C", {"distance": 3})
    assert {path: path.stat().st_mtime_ns for path in EXAMPLES.rglob("*")} == before


def test_demo_prints_a_table_and_a_command_that_works(run: Run, tmp_path: Path) -> None:
    result = run("demo", "--seconds", "0.01")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].split() == ["plugin", "kind", "language", "slot", "answer", "median"]
    assert any("text.distance" in line and '{"distance":3}' in line for line in lines)
    last = lines[-1]
    assert last.startswith("Try next: zeno-fast call ")
    command = last.removeprefix("Try next: zeno-fast ")
    done = subprocess.run(
        f"{sys.executable} -m zeno_fast.cli {command}",
        shell=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout)


def test_demo_says_what_an_example_needs_that_was_not_built(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_guest(tmp_path)
    (folder / "guest").unlink()
    manifest = folder / "manifest.yaml"
    manifest.write_text("# build: CGO_ENABLED=0 go build .\n" + manifest.read_text())
    monkeypatch.setattr("zeno_fast.cli.demo.example_folder", lambda: tmp_path)
    result = run("demo")
    assert result.status == 0
    assert "guest (no source) is not shown: has to be built with go first: " in result.out
    assert f"cd {folder} && CGO_ENABLED=0 go build ." in result.out
    (missing,) = run("demo", "-o", "json").data["missing"]
    assert missing["build"] == "CGO_ENABLED=0 go build ."


def test_demo_says_which_interpreter_an_example_wants(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (make_guest(tmp_path) / "guest").write_text("#!/usr/bin/env no-such-interpreter\n")
    monkeypatch.setattr("zeno_fast.cli.demo.example_folder", lambda: tmp_path)
    result = run("demo")
    assert result.status == 0
    assert "is not shown: its interpreter `no-such-interpreter` is not installed" in result.out


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (100, ["plugin", "kind", "language", "slot", "answer", "median"]),
        (75, ["plugin", "kind", "language", "slot", "answer", "median"]),
        (74, ["plugin", "kind", "slot", "answer", "median"]),
        (51, ["plugin", "kind", "slot", "answer", "median"]),
        (50, ["plugin", "slot", "answer", "median"]),
        (30, ["slot", "answer", "median"]),
    ],
)
def test_a_narrow_demo_gives_up_other_columns_than_the_median(
    width: int, columns: list[str]
) -> None:
    widths = {"plugin": 9, "kind": 7, "language": 10, "slot": 10, "answer": 99, "median": 9}
    found, room = fit(widths, width)
    assert found == columns
    taken = sum(widths[column] for column in found if column != "answer") + 2 * (len(found) - 1)
    assert room == max(1, width - taken)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_demo_shows_the_whole_median_in_a_narrow_terminal(
    run: Run, terminal: Callable[[int], None], width: int
) -> None:
    terminal(width)
    result = run("demo", "--seconds", "0.01")
    assert result.status == 0, result.err
    lines = result.out.split("\n\n")[0].splitlines()
    rows = [line for line in lines if line.count(" \u00b5s") == 1]
    assert len(rows) > 5
    assert all(line.rstrip().endswith("\u00b5s") and len(line) <= width for line in rows)


def test_demo_into_a_pipe_cuts_no_answer(run: Run) -> None:
    lines = run("demo", "--seconds", "0.01").out.splitlines()
    assert not [line for line in lines if "\u2026" in line or line != line.rstrip()]


def test_the_examples_are_found_in_the_source_tree_or_the_package() -> None:
    assert (example_folder() / "text" / "text.wasm").is_file()


def test_a_slot_is_shown_with_its_example_or_not_at_all() -> None:
    required = {"x": InputDefinition("x", required=True)}
    assert example_parameters(SlotDefinition("a", example='{"x": 1}', inputs=required)) == {"x": 1}
    assert example_parameters(SlotDefinition("a", example="a: 1", inputs=required)) is None
    assert example_parameters(SlotDefinition("a")) == {}


# -- failures for programs ------------------------------------------------------------------------


def test_a_failure_is_json_for_programs_and_text_on_stderr(run: Run, plugins: Path) -> None:
    wanted, call = ("--output", "json"), ("call", "guest.ehco", "--plugins", plugins)
    for result in (run(*call, *wanted), run(*wanted, *call)):
        assert result.status == 2
        assert result.data == {
            "error": {
                "type": "SlotNotFound",
                "message": "no loaded plugin has a slot 'guest.ehco'; did you mean 'guest.echo'?",
                "slot": "guest.ehco",
            }
        }
        assert "did you mean 'guest.echo'?" in result.err


def test_a_failure_for_programs_holds_the_words_and_data_of_the_guest(
    run: Run, plugins: Path
) -> None:
    result = run("call", "guest.fail", "--plugins", plugins, "-o", "json")
    assert result.status == 1
    assert result.data["error"] == {
        "type": "SlotError", "message": "no \x1b[31mway", "plugin": "guest", "slot": "guest.fail",
        "data": {"code": 7},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "status", "kind"),
    [
        (["call", "guest.echo", "--plugins", "{plugins}"], 2, "InvalidParameters"),
        (["call", "guest.echo", "text", "--plugins", "{plugins}"], 2, "UsageError"),
        (["call", "guest.echo", "--json", "[", "--plugins", "{plugins}"], 2, "UsageError"),
        (["call"], 2, "UsageError"),
        (["call", "a.b", "--timeout", "0"], 2, "UsageError"),
        (["call", "a.b", "--plugins", "{plugins}/none"], 2, "NothingFound"),
        (["call", "a.b", "--plugins", "{plugins}", "--plugin", "broken"], 1, "ManifestError"),
        (["call", "guest.silent", "--plugins", "{plugins}", "--timeout", "0.1"], 1, "SlotTimeout"),
        (["inspect", "{plugins}/none"], 2, "NothingFound"),
        (["inspect", "{plugins}/broken"], 1, "ManifestError"),
        (["list", "{plugins}/none"], 2, "NothingFound"),
    ],
)
def test_every_command_fails_in_json_for_programs(
    run: Run, plugins: Path, arguments: list[str], status: int, kind: str
) -> None:
    break_plugin(plugins)
    given = [argument.replace("{plugins}", str(plugins)) for argument in arguments]
    text, first, last = run(*given), run("-o", "json", *given), run(*given, "-o", "json")
    assert text.out == ""
    for result in (first, last):
        assert (result.status, result.data["error"]["type"]) == (status, kind)
        assert result.status == text.status
        assert result.err == text.err


def test_a_wrong_manifest_is_told_programs_by_its_place(run: Run, plugins: Path) -> None:
    break_plugin(plugins)
    error = run("inspect", plugins / "broken", "-o", "json").data["error"]
    assert (error["line"], error["column"], error["key"]) == (2, 7, "type")
    assert error["file"] == str(plugins / "broken" / "manifest.yaml")
    assert error["hint"] == "did you mean `sidecar`?"


# -- the command itself ---------------------------------------------------------------------------


def test_without_its_libraries_the_command_says_how_to_install_them(tmp_path: Path) -> None:
    for library in ("click", "rich"):
        code = f"import sys; sys.modules[{library!r}] = None; import zeno_fast.cli as c; c.main()"
        ended = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 2
        assert ended.stderr == (
            f"zeno-fast: the command line needs the package {library!r}; "
            "install it with: pip install 'zeno_fast[cli]'\n"
        )


def test_the_package_runs_as_the_command(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "zeno_fast", "--help"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown.stdout.startswith("Usage: zeno-fast ")


def test_a_loaded_plugin_is_shown_in_one_short_line() -> None:
    with PluginManager() as manager:
        plugin = manager.load_plugin(EXAMPLES / "text")
        assert repr(plugin) == f"<LoadedPlugin text 1.0.0, wasm, {len(plugin.slots)} slots>"


def test_an_encoding_that_lacks_a_letter_ends_in_no_traceback(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "zeno_fast.cli", "demo", "--seconds", "0.01"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\\xb5s" in ended.stdout


def test_a_reader_that_has_enough_ends_the_command_quietly(plugins: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        f"{sys.executable} -m zeno_fast.cli inspect {plugins / 'text'} | head -c 1",
        shell=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert len(ended.stdout) == 1
    assert ended.stderr == ""


def test_sdk_hands_out_what_guests_are_built_with(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "new" / "sdk"
    files = [Path(line) for line in run("sdk", target).out.splitlines()]
    assert files == [Path(name) for name in run("sdk", target, "--output", "json").data["files"]]
    assert {path for path in target.rglob("*") if path.is_file()} == {*files}
    assert {path.relative_to(target).parts[0] for path in files} == {
        "c", "python", "go", "rust", "csharp",
    }  # fmt: skip
    header = target / "c" / "zeno_guest.h"
    header.write_text("changed")
    run("sdk", target)
    assert header.read_text() == (Path(zeno_fast.get_include()) / "zeno_guest.h").read_text()
    for program in ("c/zeno_guest.c", "python/guest.py"):
        assert (target / program).read_bytes()


def test_sdk_says_where_it_cannot_write(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("sdk", tmp_path / "file" / "below")
    assert result.status == 1
    assert "file" in result.err
