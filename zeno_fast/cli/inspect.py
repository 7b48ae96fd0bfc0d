"""`zeno-fast inspect`: all that a plugin's manifest says, without starting the plugin."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from zeno_fast.binary import check_binary
from zeno_fast.cli.folders import FOLDER, language_of, read_manifest
from zeno_fast.cli.list import slot_data, slot_rows
from zeno_fast.cli.output import (
    clean,
    common_options,
    compact,
    explain,
    make_console,
    print_json,
    print_rows,
    print_title,
)
from zeno_fast.errors import ZenoError
from zeno_fast.manifest import Manifest
from zeno_fast.platforms import this_machine

_UNITS = {"memory": 1 << 20, "max_memory": 1 << 20}


@click.command()
@click.argument("folder", type=FOLDER, metavar="FOLDER")
@common_options
def inspect(folder: Path, output: str) -> None:
    """Show a plugin's manifest as it applies to this machine. Starts nothing."""
    manifest = read_manifest(folder)
    try:
        check_binary(manifest)
        problem = None
    except ZenoError as error:
        problem = explain(error)
    if output == "json":
        print_json(manifest_data(manifest, problem))
    else:
        _show(make_console(), manifest, problem)


def manifest_data(manifest: Manifest, problem: str | None) -> dict[str, Any]:
    """Return a manifest as data that JSON can carry.

    Args:
        problem: Why the chosen binary cannot run here, or None.
    """
    data: dict[str, Any] = {
        field.name: _plain(getattr(manifest, field.name))
        for field in dataclasses.fields(manifest)
        if field.name not in ("raw", "slots")
    }
    data["machine"] = str(this_machine())
    data["problem"] = problem
    data["slots"] = None if manifest.slots is None else [slot_data(s) for s in manifest.slots]
    data["manifest"] = _plain(manifest.raw)
    return data


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _show(console: Console, manifest: Manifest, problem: str | None) -> None:
    print_title(console, manifest.name, manifest.version, manifest.type)
    if manifest.description:
        console.print(Text(clean(manifest.description)), soft_wrap=True)
    sections = {"": _about(manifest, problem), **_sections(manifest)}
    for heading, rows in sections.items():
        if heading:
            console.print()
            console.print(Text(heading, style="bold"))
        print_rows(console, rows)
    if manifest.slots is None:
        console.print("\nslots: none declared; the guest lists its own when it is loaded")
    else:
        console.print()
        console.print(Text("slots", style="bold"))
        print_rows(console, slot_rows(manifest.slots))
    for warning in manifest.warnings:
        console.print(Text(f"warning: {clean(warning)}", style="yellow"), soft_wrap=True)


def _about(manifest: Manifest, problem: str | None) -> list[tuple[str, str]]:
    stated = str(manifest.raw.get("type", "wasm (nothing said)"))
    chosen = str(manifest.binary_path or "none")
    rows = [
        ("folder", str(manifest.folder)),
        ("manifest", str(manifest.file)),
        ("type", stated if stated == manifest.type else f"{stated}; runs as {manifest.type} here"),
        ("language", language_of(manifest.folder)),
        ("author", manifest.author),
        ("license", manifest.license),
        ("homepage", manifest.homepage),
        ("binary", manifest.binary or ""),
        *((f"binaries.{key}", path) for key, path in manifest.binaries.items()),
        (f"runs on {this_machine()}", chosen),
        ("sha256", manifest.sha256 or "none given"),
        ("problem", problem or ""),
        ("requires", "" if manifest.requires is None else compact(_plain(manifest.requires))),
    ]
    return [(key, value) for key, value in rows if value]


def _sections(manifest: Manifest) -> dict[str, list[tuple[str, str]]]:
    """Return the sections that apply, each value with its unit, and whether it is the default."""
    found = {}
    if manifest.config:
        found["config"] = [
            (name, _config_text(parameter)) for name, parameter in manifest.config.items()
        ]
    for name in ("wasm", "sidecar"):
        if manifest.type == name or name in manifest.raw:
            said = manifest.raw.get(name) or {}
            found[name] = [
                (key, _value(key, value) + ("" if key in said else "  (default)"))
                for key, value in _plain(getattr(manifest, name)).items()
            ]
    found["permissions"] = [
        (kind, ", ".join(allowed) or "denied")
        for kind, allowed in _plain(manifest.permissions).items()
    ]
    return found


def _config_text(parameter: Any) -> str:
    text = f"{parameter.type}{', required' if parameter.required else ''}"
    if parameter.env:
        text += f", from ${parameter.env}"
    if parameter.default is not None:
        text += f", default {compact(_plain(parameter.default))}"
    return f"{text}: {parameter.description}" if parameter.description else text


def _value(key: str, value: Any) -> str:
    if value is None:
        return "not set"
    if key in _UNITS:
        return f"{value / _UNITS[key]:g} MiB"
    if key.endswith("timeout") or key.endswith("ttl"):
        return f"{value:g} s"
    return value if isinstance(value, str) else compact(value)
