"""`zeno-fast list`: what the plugins in a folder offer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zeno_fast.cli.folders import FOLDER, load_plugins, warn_of_manifests
from zeno_fast.cli.output import (
    NARROW,
    Failure,
    clean,
    common_options,
    compact,
    explain,
    make_console,
    print_json,
    print_rows,
    print_table,
    print_title,
)
from zeno_fast.errors import ZenoError
from zeno_fast.manager import PluginManager
from zeno_fast.plugin import LoadedPlugin, SlotDefinition

_NO_SLOTS = "lists no slots; call them with --plugin"


@click.command("list")
@click.argument("folder", type=FOLDER, metavar="DIR")
@common_options
@click.pass_context
def list_plugins(context: click.Context, folder: Path, output: str) -> None:
    """Load the plugins below DIR and list their slots."""
    with PluginManager() as manager:
        failures = load_plugins(manager, folder, None)
        failed = {name: explain(error) for name, error in failures.items()}
        for plugin in manager.list_plugins():
            try:
                plugin.driver.describe()  # those that start with their first call are asked now
            except ZenoError as error:
                failed[plugin.folder.name] = explain(error)
        plugins = manager.list_plugins()
        warn_of_manifests(manager)
    if output == "json":
        print_json({"plugins": [_data(plugin) for plugin in plugins], "failures": failed})
        context.exit(1 if failed else 0)
    console = make_console()
    if console.width < NARROW:
        _print_stacked(console, plugins)
    else:
        print_table(console, _table(plugins))
    if failed:
        lines = [f"{name}: {message}" for name, message in failed.items()]
        count = "1 plugin was" if len(failed) == 1 else f"{len(failed)} plugins were"
        raise Failure("\n".join([f"{count} not loaded", *lines]))


def _data(plugin: LoadedPlugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "version": plugin.version,
        "type": plugin.kind,
        "folder": str(plugin.folder),
        "description": plugin.manifest.description,
        "slots": [slot_data(slot) for slot in plugin.slots.values()],
    }


def slot_data(slot: SlotDefinition) -> dict[str, Any]:
    """Return a definition as data that JSON can carry."""
    return {
        "name": slot.name,
        "description": slot.description,
        "example": slot.example,
        "inputs": {
            name: {
                "type": given.type,
                "required": given.required,
                **({"default": given.default} if given.has_default else {}),
                "description": given.description,
            }
            for name, given in slot.inputs.items()
        },
        "outputs": dict(slot.outputs),
        "idempotent": slot.idempotent,
        "blocking": slot.blocking,
    }


def signature(slot: SlotDefinition) -> str:
    """Return a slot's inputs in one line: `text:string width:int=72`; optional ones in brackets."""
    shown = []
    for name, given in slot.inputs.items():
        text = f"{name}:{given.type}" if given.type else name
        if given.has_default:
            text += f"={compact(given.default)}"
        shown.append(text if given.required else f"[{text}]")
    return " ".join(shown)


def _print_stacked(console: Console, plugins: list[LoadedPlugin]) -> None:
    for index, plugin in enumerate(plugins):
        if index:
            console.print()
        print_title(console, plugin.name, plugin.version, plugin.kind)
        print_rows(console, slot_rows(plugin.slots.values()))
        if not plugin.slots:
            console.print(Text(f"  {_NO_SLOTS}", style="dim"), soft_wrap=True)


def slot_rows(slots: Iterable[SlotDefinition]) -> list[tuple[str, str]]:
    """Return the names of slots, and beside each its inputs and description."""
    return [(slot.name, f"{signature(slot)} {slot.description}".strip()) for slot in slots]


def _table(plugins: list[LoadedPlugin]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("plugin", "version", "kind", "slot", "parameters", "description"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("version", "kind", "slot"))
    for plugin in plugins:
        first = [plugin.name, plugin.version, plugin.kind]
        for slot in plugin.slots.values():
            cells = [*first, slot.name, signature(slot), slot.description]
            table.add_row(*(Text(clean(cell)) for cell in cells))
            first = ["", "", ""]
        if not plugin.slots:
            note = Text(_NO_SLOTS, style="dim")
            table.add_row(*map(Text, first), "", "", note)
    return table
