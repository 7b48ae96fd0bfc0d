"""`zeno-fast call`: call one slot and print its answer."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import orjson

from zeno_fast._bytes import BinarySink, read_bytes
from zeno_fast.cli.folders import FOLDER, load_plugins, warn_of_manifests
from zeno_fast.cli.output import NothingFound, common_options, explain, print_json, warn
from zeno_fast.errors import SlotError, SlotNotFound, ZenoError
from zeno_fast.manager import PluginManager
from zeno_fast.schema import did_you_mean, nearest


@click.command()
@click.argument("slot")
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "text", metavar="OBJECT", help="All parameters as JSON; - reads stdin.")
@click.option(
    "--plugins",
    "folder",
    type=FOLDER,
    default="plugins",
    envvar="ZENO_FAST_PLUGINS",
    show_default=True,
    show_envvar=True,
    metavar="DIR",
    help="The folder that holds the plugins.",
)
@click.option("--plugin", metavar="NAME", help="Load only this one; needed if it lists no slots.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="How long the call may take.",
)
@common_options
def call(
    *,
    slot: str,
    pairs: tuple[str, ...],
    text: str | None,
    folder: Path,
    plugin: str | None,
    timeout: float | None,
    output: str,
) -> None:
    """Call SLOT and print its answer as JSON.

    A VALUE is JSON where it is valid JSON (5, true, [1, 2], "5"), else text. Bytes are given, and
    shown, as {"$bytes": "their base64"}.
    """
    try:
        parameters = read_bytes(read_parameters(pairs, text))
    except (ValueError, TypeError) as error:
        raise click.UsageError(f'"$bytes" does not stand for bytes: {error}') from error
    with PluginManager() as manager:
        failures = load_plugins(manager, folder, plugin)
        warn_of_manifests(manager)
        try:
            if plugin is None:
                data = manager.call(slot, parameters, timeout=timeout)
            else:
                response = manager.execute_slot(plugin, slot, parameters, timeout=timeout)
                if not response.success:
                    raise SlotError(
                        response.error or "", data=response.data, plugin=plugin, slot=slot
                    )
                data = response.data
        except SlotNotFound as error:
            raise NothingFound(_not_found(manager, error, failures, folder)) from error
        finally:
            _warn_of_unknown(manager, slot, parameters)
    print_json(data, pretty=output == "text", default=BinarySink(None, ()))


def read_parameters(pairs: tuple[str, ...], text: str | None) -> dict[str, Any]:
    """Return the parameters that `key=value` words, or a JSON object, stand for.

    Raises click.UsageError.
    """
    if text is None:
        return _from_pairs(pairs)
    if pairs:
        raise click.UsageError("give KEY=VALUE or --json, not both")
    if text == "-":
        text = sys.stdin.read()
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise click.UsageError(
            f"--json: not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    if not isinstance(data, dict):
        raise click.UsageError('--json: expected an object, such as {"text": "hello"}')
    return data


def _from_pairs(pairs: tuple[str, ...]) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{pair!r} is not KEY=VALUE, such as text=hello")
        if key in parameters:
            raise click.UsageError(f"{key!r} is given twice")
        try:
            parameters[key] = orjson.loads(value)
        except orjson.JSONDecodeError:
            parameters[key] = value
    return parameters


def _warn_of_unknown(manager: PluginManager, slot: str, parameters: Mapping[str, Any]) -> None:
    """Warn of parameters whose names are nearly those of declared inputs."""
    for plugin in manager.list_plugins():
        inputs = plugin.slots[slot].inputs if slot in plugin.slots else {}
        for key in parameters:
            hint = None if key in inputs else did_you_mean(key, inputs)
            if hint:
                warn(f"{slot} has no parameter `{key}`; {hint}")


def _not_found(
    manager: PluginManager, error: SlotNotFound, failures: Mapping[str, ZenoError], root: Path
) -> str:
    if error.plugin is not None or error.slot is None:
        return explain(error)
    # The library's message advises a Python call; here it is an option.
    parts = [f"no loaded plugin has a slot {error.slot!r}"]
    theirs = [
        f"{name} ({_reason(name, failure)})"
        for name, failure in failures.items()
        if any(_related(error.slot, word) for word in (name, failure.plugin or ""))
    ]
    if theirs:
        command = f"zeno-fast list {shlex.quote(str(root))}"
        parts.append(f"not loaded, so maybe it is theirs: {', '.join(theirs)}; see `{command}`")
    plugins = manager.list_plugins()
    silent = [plugin.name for plugin in plugins if not plugin.slots]
    if silent:
        parts.append(f"{', '.join(silent)} lists no slots: try --plugin {silent[0]}")
    near = nearest(error.slot, [slot for plugin in plugins for slot in plugin.slots])
    if near:
        parts.append(f"did you mean {near!r}?")
    return "; ".join(parts)


def _related(slot: str, plugin: str) -> bool:
    """Tell whether a slot's first word is nearly a plugin's: `php.run` and `php-high-speed`."""
    mine, theirs = (re.split(r"[._-]", name.lower())[0] for name in (slot, plugin))
    return bool(mine and theirs) and (mine.startswith(theirs) or theirs.startswith(mine))


def _reason(name: str, error: ZenoError) -> str:
    """Say in one line why a plugin was not loaded, without what the reader knows of it."""
    text = explain(error).splitlines()[0].removeprefix(f"plugin {error.plugin or name!r}: ")
    folder = getattr(error, "folder", None) or getattr(error, "file", Path()).parent
    return text.replace(f"{folder}/", "")
