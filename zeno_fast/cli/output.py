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

from zeno_fast.errors import PluginCrashed, SlotError

R = TypeVar("R")

WIDTH = 120  # columns where the output is no terminal
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


def compact(data: Any) -> str:
    """Return data as JSON on one line."""
    return orjson.dumps(data, default=str).decode()


def print_json(data: Any, *, pretty: bool = False) -> None:
    """Print data as JSON: on one line, or indented and, on a terminal, in colours."""
    if not pretty:
        click.echo(compact(data))
        return
    text = orjson.dumps(data, default=str, option=orjson.OPT_INDENT_2).decode()
    console = make_console()
    if console.is_terminal:
        console.print_json(clean(text))
    else:
        click.echo(text)


def make_console() -> Console:
    """Return a console on stdout that takes no markup from data."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    return console


def common_options(command: Callable[..., R]) -> Callable[..., R]:
    """Add `--output` and `-v`; the command gets `output`."""

    @click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
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
    logger.propagate = False


class _CleanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Format a record; guests' control characters are replaced."""
        return clean(super().format(record))
