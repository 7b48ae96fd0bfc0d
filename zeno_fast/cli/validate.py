"""`zeno-fast validate`: are these manifests right?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
from rich.text import Text

from zeno_fast.binary import check_binary
from zeno_fast.cli.folders import FOLDER, read_manifest
from zeno_fast.cli.output import (
    NothingFound,
    clean,
    common_options,
    explain,
    make_console,
    print_json,
)
from zeno_fast.errors import ZenoError
from zeno_fast.manifest import Manifest
from zeno_fast.platforms import WASM


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of one plugin folder, and the exit status that it asks for."""

    folder: str
    name: str | None
    error: str | None
    warnings: tuple[str, ...]
    status: int = 0


@click.command()
@click.argument("folders", type=FOLDER, nargs=-1, required=True, metavar="FOLDER...")
@click.option("--strict", is_flag=True, help="Warnings are errors: unknown keys, a missing binary.")
@common_options
@click.pass_context
def validate(context: click.Context, folders: tuple[Path, ...], strict: bool, output: str) -> None:
    """Check plugins' manifests and binaries without starting anything."""
    verdicts = [_judge(folder, strict) for folder in folders]
    if output == "json":
        print_json(
            [
                {
                    "folder": verdict.folder,
                    "name": verdict.name,
                    "valid": verdict.error is None,
                    "error": verdict.error,
                    "warnings": list(verdict.warnings),
                }
                for verdict in verdicts
            ]
        )
    else:
        console = make_console()
        for verdict in verdicts:
            if verdict.error is None:
                console.print(Text.assemble(("ok", "green"), f"  {verdict.name}"), soft_wrap=True)
    for verdict in verdicts:
        for warning in verdict.warnings:
            click.echo(f"warning: {clean(warning)}", err=True)
        if verdict.error:
            click.echo(f"error: {clean(verdict.error)}", err=True)
    context.exit(max(verdict.status for verdict in verdicts))


def _judge(folder: Path, strict: bool) -> Verdict:
    name = None
    warnings: tuple[str, ...] = ()
    try:
        manifest = read_manifest(folder, strict=strict)
        name, warnings = manifest.name, manifest.warnings
        check_binary(manifest)
    except NothingFound as error:
        return Verdict(str(folder), None, error.message, (), error.exit_code)
    except (ZenoError, OSError) as error:
        text = explain(error)
        if name is None:
            return Verdict(str(folder), getattr(error, "plugin", None), text, (), 1)
        if strict or _is_wrong_anywhere(manifest):
            return Verdict(str(folder), name, text, warnings, 1)
        warnings = (*warnings, text)
    return Verdict(str(folder), name, None, warnings)


def _is_wrong_anywhere(manifest: Manifest) -> bool:
    """Tell whether a binary that failed its check would fail it on every machine.

    One that is missing may be built yet, and a sidecar's may be for another system.
    """
    path = manifest.binary_path
    return manifest.type == WASM and path is not None and path.exists()
