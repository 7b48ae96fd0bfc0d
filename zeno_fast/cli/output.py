"""How the command line speaks: tables and text for people, JSON for programs, errors on stderr."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import IO, Any, TypeVar

import click
import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zeno_fast.errors import PluginCrashed, SlotError, ZenoError

R = TypeVar("R")

ENDLESS = 1 << 24  # columns where the output is no terminal
NARROW = 80  # a terminal of fewer columns gets no wide tables
JSON = "zeno_fast.json"  # in a click context: whether the command answers in JSON
_DETAILS = (
    "plugin", "slot", "key", "file", "line", "column", "expected", "hint", "folder", "filename",
    "data", "exit_status", "signal", "stderr",
)  # fmt: skip
# What a guest says must not steer the terminal: control characters but tab and line feed.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


class Failure(click.ClickException):
    """It failed: one paragraph on stderr, exit status 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Write it to stderr."""
        text = clean(self.message).strip().replace("\n", "\n  ")
        click.echo(f"zeno-fast: {text}", file=file or sys.stderr)


class NothingFound(Failure):
    """The command was wrong, or what it names is not there: exit status 2."""

    exit_code = 2


def clean(text: str) -> str:
    """Replace the control characters in text that came from a guest."""
    return text.translate(_CONTROLS)


def explain(error: Exception) -> str:
    """Say in words what happened, for a reader who does not see the source."""
    if isinstance(error, SlotError):
        text = f"{error.slot or 'the slot'} failed: {error.message or 'the plugin gave no reason'}"
        if error.data is not None:
            text += f" (it sent with it: {compact(error.data)})"
        return text
    if isinstance(error, PluginCrashed) and error.stderr and error.stderr not in str(error):
        return f"{error}\n{error.stderr}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def error_data(failure: click.ClickException) -> dict[str, Any]:
    """Return why a command failed as data that JSON can carry."""
    error: BaseException = failure.__cause__ or failure
    kind, message = type(error).__name__, failure.format_message()
    if isinstance(error, click.UsageError):
        kind = "UsageError"
    elif isinstance(error, SlotError):
        message = error.message  # the guest's own words
    elif not isinstance(error, (ZenoError, OSError)):
        kind = type(failure).__name__
    details = {name: getattr(error, name, None) for name in _DETAILS}
    if isinstance(error, click.ClickException):
        details = {}
    said = {name: value for name, value in details.items() if value not in (None, "")}
    return {"error": {"type": kind, "message": message, **said}}


def warn(text: str) -> None:
    """Write one line of warning to stderr."""
    click.echo(f"warning: {' '.join(clean(text).split())}", err=True)


def compact(data: Any, default: Callable[[Any], Any] = str) -> str:
    """Return data as JSON on one line; `default` stands in for what JSON has no form for."""
    return orjson.dumps(data, default).decode()


def print_json(data: Any, *, pretty: bool = False, default: Callable[[Any], Any] = str) -> None:
    """Print data as JSON: on one line, or indented and, on a terminal, in colours."""
    if not pretty:
        click.echo(compact(data, default))
        return
    text = orjson.dumps(data, default, orjson.OPT_INDENT_2).decode()
    console = make_console()
    if console.is_terminal:
        console.print_json(clean(text))
    else:
        click.echo(text)


def make_console() -> Console:
    """Return a console on stdout that takes no markup from data."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not sys.stdout.isatty():
        console.width = ENDLESS
    return console


def print_table(console: Console, table: Table) -> None:
    """Print a table; a file or a pipe gets no trailing blanks."""
    if console.width < ENDLESS:
        console.print(table)
        return
    for line in console.render_lines(table, pad=False):
        text = "".join(segment.text for segment in line).rstrip(" ")
        console.print(Text(text), soft_wrap=True)


def print_title(console: Console, name: str, version: str, kind: str) -> None:
    """Print the line that a plugin's details stand below."""
    title = Text(clean(name), style="bold")
    title.append(f" {clean(version)}".rstrip() + f"  {kind}", style="not bold")
    console.print(title, soft_wrap=True)


def print_rows(console: Console, rows: list[tuple[str, str]]) -> None:
    """Print names and values, the values below each other."""
    width = max((len(key) for key, _ in rows), default=0)
    for key, value in rows:
        style = "red" if key == "problem" else "dim" if value == "denied" else ""
        line = Text.assemble((f"  {clean(key):<{width}}  ", "dim"), (clean(value), style))
        line.rstrip()
        console.print(line, soft_wrap=True)


def note_output(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
    """Remember the answer's form, for the case that the command fails."""
    context.meta[JSON] = value == "json"
    return value


def common_options(command: Callable[..., R]) -> Callable[..., R]:
    """Add `--output` and `-v`; the command gets `output`."""

    @click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        is_eager=True,
        callback=note_output,
        help="For people, or for programs.",
    )
    @click.option("-v", "--verbose", is_flag=True, help="Show the plugins' logs on stderr.")
    @functools.wraps(command)
    def wrapped(*args: Any, verbose: bool, **options: Any) -> R:
        configure_logging(verbose)
        return command(*args, **options)

    return wrapped


def configure_logging(verbose: bool) -> None:
    """Send the log of zeno_fast and its plugins to stderr, or nowhere."""
    logger = logging.getLogger("zeno_fast")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
    if verbose:
        shown = logging.StreamHandler()
        shown.setFormatter(_CleanFormatter("%(levelname)-7s %(name)s: %(message)s"))
        logger.addHandler(shown)
        logger.setLevel(logging.DEBUG)
    else:
        # The commands report failures themselves; without a handler Python would print them too.
        logger.addHandler(logging.NullHandler())
        if sys.stderr.isatty():
            compiling = logging.getLogger("zeno_fast.wasm.compile")
            compiling.setLevel(logging.INFO)
            compiling.handlers[:] = [_Progress()]
    logger.propagate = False


class _Progress(logging.Handler):
    """Shows on a terminal what is being compiled, until it is."""

    def __init__(self) -> None:
        super().__init__()
        self._running = 0
        self._status = Console(stderr=True).status("")

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record of `zeno_fast.wasm.program`."""
        if record.__dict__.get("compiling"):
            self._running += 1
            self._status.update(Text(clean(record.getMessage())))
            self._status.start()
            return
        self._running -= 1
        if self._running == 0:
            self._status.stop()


class _CleanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Format a record; guests' control characters are replaced."""
        return clean(super().format(record))
