"""`zeno-fast validate`: are these manifests right?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
from rich.text import Text

from zeno_fast.binary import check_binary
from zeno_fast.cli.folders import FOLDER, read_manifest
from zeno_fast.cli.output import clean, common_options, explain, make_console, print_json
from zeno_fast.errors import ZenoError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of one plugin folder."""

    folder: str
    name: str | None
    error: str | None
    warnings: tuple[str, ...]


@click.command()
@click.argument("folders", type=FOLDER, nargs=-1, required=True, metavar="FOLDER...")
@click.option("--strict", is_flag=True, help="Warnings are errors: unknown keys, a missing binary.")
@common_options
@click.pass_context
def validate(context: click.Context, folders: tuple[Path, ...], strict: bool, output: str) -> None:
    """Check plugins' manifests and binaries without starting anything."""
    verdicts = [_judge(folder, strict) for folder in folders]
    wrong = [verdict for verdict in verdicts if verdict.error]
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
    context.exit(1 if wrong else 0)


def _judge(folder: Path, strict: bool) -> Verdict:
    try:
        manifest = read_manifest(folder, strict=strict)
    except ZenoError as error:
        return Verdict(str(folder), getattr(error, "plugin", None), explain(error), ())
    try:
        check_binary(manifest)
    except ZenoError as error:
        if strict:
            return Verdict(str(folder), manifest.name, explain(error), manifest.warnings)
        return Verdict(str(folder), manifest.name, None, (*manifest.warnings, explain(error)))
    return Verdict(str(folder), manifest.name, None, manifest.warnings)
