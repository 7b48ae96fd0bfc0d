"""`zeno-fast demo`: load the example plugins, call each slot, show what came back and how fast."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

import zeno_fast
from zeno_fast.binary import build_command, check_binary
from zeno_fast.cli.folders import language_of, plugin_folders
from zeno_fast.cli.output import (
    Failure,
    clean,
    common_options,
    compact,
    explain,
    make_console,
    print_json,
    print_table,
)
from zeno_fast.errors import ZenoError
from zeno_fast.manager import PluginManager
from zeno_fast.manifest import Manifest
from zeno_fast.plugin import LoadedPlugin, SlotDefinition

CALLS = 5000  # a slot, at most, and
SECONDS = 0.3  # at most
WARM_UP = 50
HEADINGS = ("plugin", "kind", "language", "slot", "answer", "median")
ANSWER = 20  # columns of an answer that the languages give way to in a narrow terminal
MIN_ANSWER = 8  # those that other columns give way to


@dataclass(frozen=True, slots=True)
class Shown:
    """One slot that was called; `median_us` is None where the call failed."""

    plugin: str
    kind: str
    language: str
    slot: str
    parameters: dict[str, Any]
    answer: Any
    error: str | None
    calls: int
    median_us: float | None


@dataclass(frozen=True, slots=True)
class Missing:
    """An example that cannot run here, what it needs, and the command that builds it, or ""."""

    plugin: str
    language: str
    needs: str
    build: str


@click.command()
@click.option("--seconds", type=click.FloatRange(0.001, 60), default=SECONDS, hidden=True)
@common_options
@click.pass_context
def demo(context: click.Context, seconds: float, output: str) -> None:
    """Call the example plugins that run on this machine as it is.

    They come with the package; nothing is built, and nothing is written to disk.
    """
    root = example_folder()
    shown: list[Shown] = []
    missing: list[Missing] = []
    if output == "text" and sys.stderr.isatty():
        click.echo("Calling the example plugins ...", err=True)
    with PluginManager() as manager:
        for folder in plugin_folders(root):
            manifest = Manifest.load(folder)
            needs = what_is_missing(manifest)
            if needs is not None:
                build = build_command(manifest.file)
                missing.append(Missing(manifest.name, language_of(folder), needs, build))
                continue
            shown.extend(_show_plugin(manager, manager.load_plugin(folder), seconds))
    shown.sort(key=lambda row: row.kind != "wasm")
    failed = [f"{row.slot}: {row.error}" for row in shown if row.error]
    if output == "json":
        print_json(
            {
                "examples": str(root),
                "shown": [asdict(row) for row in shown],
                "missing": [asdict(row) for row in missing],
            }
        )
        context.exit(1 if failed else 0)
    _print(make_console(), root, shown, missing)
    if failed:
        raise Failure("\n".join(["the demo did not go through", *failed]))


def example_folder() -> Path:
    """Return where the example plugins are: in the installed package, or in the source tree."""
    package = Path(zeno_fast.__file__).resolve().parent
    for folder in (package / "_examples", package.parent / "examples" / "plugins"):
        if folder.is_dir():
            return folder
    raise Failure(f"the example plugins are missing from this installation ({package})")


def what_is_missing(manifest: Manifest) -> str | None:
    """Say what an example needs before it can run here, or None where it can."""
    try:
        check_binary(manifest)
    except ZenoError as error:
        if manifest.binary_path is not None and not manifest.binary_path.exists():
            command = build_command(manifest.file)
            if not command:
                return f"has to be built first; see {manifest.file}"
            return (
                f"has to be built with {_program(command)} first: "
                f"cd {shlex.quote(str(manifest.folder))} && {command}"
            )
        about = f"plugin {manifest.name!r}: {manifest.binary_path}: "
        return explain(error).removeprefix(about)
    return None


def _program(command: str) -> str:
    """Return the program that a shell command runs, behind the variables it sets."""
    words = command.split()
    return next((word for word in words if "=" not in word), "")


def example_parameters(slot: SlotDefinition) -> dict[str, Any] | None:
    """Return parameters to show a slot with, or None where it gives no usable example."""
    try:
        example = orjson.loads(slot.example)
    except orjson.JSONDecodeError:
        example = None
    if isinstance(example, dict):
        return example
    needed = any(given.required and not given.has_default for given in slot.inputs.values())
    return None if needed else {}


def measure(function: Callable[[], object], seconds: float) -> tuple[float, int]:
    """Call `function` for at most `seconds`; return the median in microseconds, and how often."""
    clock = time.perf_counter_ns
    end = clock() + int(seconds * 1e9)
    for _ in range(WARM_UP):
        function()
        if clock() >= end:
            break
    samples: list[int] = []
    while len(samples) < CALLS:
        before = clock()
        function()
        after = clock()
        samples.append(after - before)
        if after >= end:
            break
    return median(samples) / 1000, len(samples)


def _show_plugin(manager: PluginManager, plugin: LoadedPlugin, seconds: float) -> list[Shown]:
    language = language_of(plugin.folder)
    rows = []
    for slot in plugin.slots.values():
        parameters = example_parameters(slot)
        if parameters is None:
            continue
        answer, error, calls, microseconds = None, None, 0, None
        try:
            answer = manager.call(slot.name, parameters)
            microseconds, calls = measure(
                lambda name=slot.name, given=parameters: manager.call(name, given),  # type: ignore[misc]
                seconds,
            )
        except ZenoError as problem:
            error = explain(problem)
        rows.append(
            Shown(
                plugin.name,
                plugin.kind,
                language,
                slot.name,
                parameters,
                answer,
                error,
                calls,
                microseconds,
            )
        )
    return rows


def _print(console: Console, root: Path, shown: list[Shown], missing: list[Missing]) -> None:
    rows = [_cells(row, shown[index - 1] if index else None) for index, row in enumerate(shown)]
    widths = {
        heading: max(map(len, column))
        for heading, *column in zip(HEADINGS, HEADINGS, *rows, strict=True)
    }
    columns, room = fit(widths, console.width)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in columns:
        table.add_column(heading, no_wrap=True, justify="right" if heading == "median" else "left")
    for row, cells in zip(shown, rows, strict=True):
        texts = dict(zip(HEADINGS, map(Text, cells), strict=True))
        texts["answer"].truncate(room, overflow="ellipsis")
        texts["answer"].stylize("red" if row.error else "")
        table.add_row(*(texts[heading] for heading in columns))
    print_table(console, table)
    for example in missing:
        language = example.language or "no source"
        line = f"{example.plugin} ({language}) is not shown: {example.needs}"
        console.print(Text(clean(line), style="dim"), soft_wrap=True)
    console.print(
        f"\nEach slot above was called up to {CALLS:,} times through one manager, WASM in this "
        "process and sidecars in their own; the median is one whole call with its JSON."
    )
    commands = [_command(row, root) for row in shown if not row.error]
    if commands:
        console.print(f"Try next: {min(commands, key=len)}", soft_wrap=True)


def fit(widths: Mapping[str, int], width: int) -> tuple[list[str], int]:
    """Choose the columns that a terminal has room for; return them, and how much the answers get.

    rich would narrow all columns alike, the medians included.
    """
    columns = list(HEADINGS)
    for dispensable in ("language", "kind", "plugin", None):
        taken = sum(widths[column] for column in columns if column != "answer")
        room = width - taken - 2 * (len(columns) - 1)
        enough = ANSWER if dispensable == "language" else MIN_ANSWER
        if dispensable is None or room >= min(enough, widths["answer"]):
            break
        columns.remove(dispensable)
    return columns, max(1, room)


def _cells(row: Shown, above: Shown | None) -> tuple[str, ...]:
    """Return a row of the table; what stands in the row above is not said again."""
    repeated = above is not None and above.plugin == row.plugin
    about = ("", "", "") if repeated else (row.plugin, row.kind, row.language)
    median = "" if row.median_us is None else f"{row.median_us:.1f} \u00b5s"
    answer = compact(row.answer) if row.error is None else row.error.splitlines()[0]
    return (*about, row.slot, clean(answer), median)


def _command(row: Shown, root: Path) -> str:
    """Return what to type to make the same call."""
    pairs = [shlex.quote(f"{key}={_word(value)}") for key, value in row.parameters.items()]
    return " ".join(["zeno-fast call", row.slot, *pairs, "--plugins", shlex.quote(str(root))])


def _word(value: Any) -> str:
    """Write a value as `call` reads it; text that it would take for JSON keeps its quotes."""
    if isinstance(value, str) and "\n" not in value:
        try:
            orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return compact(value)
