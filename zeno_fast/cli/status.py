"""`zeno-fast status` and `zeno-fast top`: how the plugins of running programs do."""

from __future__ import annotations

import contextlib
import select
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from zeno_fast.cli.output import (
    NothingFound,
    clean,
    common_options,
    make_console,
    print_json,
    print_table,
)
from zeno_fast.publication import published

HEADINGS = (
    "plugin", "state", "pid", "uptime", "restarts", "calls", "calls/s", "errors", "pending",
    "p50", "p99", "memory", "sandbox",
)  # fmt: skip
WORDS = {"plugin", "state", "sandbox"}
NOBODY = (
    "no program of this user publishes the status of its plugins; one does after "
    "`manager.publish_status()`, or with ZENO_FAST_PUBLISH=1 in its environment"
)
_BAD = {"unavailable", "stopped", "closed"}


@click.command()
@click.argument("pid", type=int, required=False)
@common_options
def status(pid: int | None, output: str) -> None:
    """Show the plugins of programs that publish their status, or of the one with this PID."""
    hosts = _hosts(pid)
    if output == "json":
        print_json({"hosts": hosts})
        return
    console = make_console()
    for host in hosts:
        console.print(_title(host), soft_wrap=True)
        print_table(console, _table(host, {}, 0.0))


@click.command()
@click.argument("pid", type=int, required=False)
@click.option(
    "-i", "--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True,
    help="Seconds between two looks.",
)  # fmt: skip
@common_options
def top(pid: int | None, interval: float, output: str) -> None:
    """Show the same live, until q or Ctrl-C; once where the output is no terminal."""
    console = make_console()
    if output == "json" or not console.is_terminal:
        click.get_current_context().invoke(status, pid=pid, output=output)
        return
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        before: dict[tuple[int, str], int] = {}
        hosts = _hosts(pid)
        while True:
            parts: list[Text | Table] = []
            for host in hosts:
                parts += [_title(host), _table(host, before, interval), Text()]
            before = {
                (host["pid"], name): plugin.get("calls", 0)
                for host in hosts
                for name, plugin in host["plugins"].items()
            }
            live.update(Group(*parts, Text("q ends", style="dim")), refresh=True)
            if pressed(interval):
                return
            hosts = _look(pid)  # one that has ended, or is too busy to answer, may be back soon


def _look(pid: int | None) -> list[dict[str, Any]]:
    return [host for host in published() if pid in (None, host["pid"])]


def _hosts(pid: int | None) -> list[dict[str, Any]]:
    hosts = _look(pid)
    if not hosts:
        raise NothingFound(NOBODY if pid is None else f"process {pid}: {NOBODY}")
    return hosts


def _title(host: dict[str, Any]) -> Text:
    title = Text(f"pid {host['pid']}", style="bold")
    return title.append(f"  {clean(host['program'])}", style="not bold")


def _table(host: dict[str, Any], before: dict[tuple[int, str], int], interval: float) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in WORDS else "right", no_wrap=True)
    for name, plugin in host["plugins"].items():
        seen = before.get((host["pid"], name))
        rate = "" if seen is None else f"{max(0, plugin.get('calls', 0) - seen) / interval:.0f}"
        table.add_row(*_cells(name, plugin, rate))
        workers = plugin.get("workers", [])
        for worker in workers if len(workers) > 1 else []:
            table.add_row(*_cells("", worker, ""))
    for name, problem in host.get("failures", {}).items():
        table.add_row(Text(clean(name), style="red"), Text(clean(problem), style="red"))
    return table


def _cells(name: str, row: dict[str, Any], rate: str) -> list[Text]:
    latency = row.get("latency") or {}
    pending = row.get("in_flight", 0) + row.get("queued", 0)
    state = row.get("state", "")
    texts = [
        clean(name), state, _plain(row.get("pid")), _time(row.get("uptime")),
        _plain(row.get("restarts")), _plain(row.get("calls")), rate, _plain(row.get("errors")),
        str(pending), _time(latency.get("p50")), _time(latency.get("p99")),
        _size(row.get("memory")), row.get("sandbox", ""),
    ]  # fmt: skip
    cells = [Text(text) for text in texts]
    if state in _BAD:
        cells[1].stylize("red")
    return cells


def _plain(value: int | None) -> str:
    return "" if value is None else str(value)


def _size(nbytes: int | None) -> str:
    return f"{nbytes / (1 << 20):.1f} MiB" if nbytes else ""


def _time(seconds: float | None) -> str:
    """Write a time in the unit that leaves one to three digits before its point."""
    if seconds is None:
        return ""
    for unit, factor in (("us", 1e6), ("ms", 1e3), ("s", 1.0)):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """Give a function that waits some seconds and tells whether q was pressed meanwhile."""
    if not sys.stdin.isatty():

        def wait(seconds: float) -> bool:
            time.sleep(seconds)
            return False

        with contextlib.suppress(KeyboardInterrupt):
            yield wait
        return
    import termios  # noqa: PLC0415 - there is none on Windows
    import tty  # noqa: PLC0415

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)

    def pressed(seconds: float) -> bool:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return bool(ready) and sys.stdin.read(1) in "qQ"

    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
