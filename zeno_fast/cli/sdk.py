"""`zeno-fast sdk`: what plugins are built with."""

from __future__ import annotations

from pathlib import Path

import click

from zeno_fast.cli.output import common_options, print_json
from zeno_fast.sdk import copy_sdk


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
@common_options
def sdk(folder: Path, output: str) -> None:
    """Copy what guests are built with into DIR.

    A folder for each language: c, python, go, rust, csharp.
    """
    files = [str(path) for path in copy_sdk(folder)]
    if output == "json":
        print_json({"files": files})
    else:
        click.echo("\n".join(files))
