"""The command `zeno-fast` and its commands."""

from __future__ import annotations

from typing import Any

import click

from zeno_fast.cli.call import call
from zeno_fast.cli.demo import demo
from zeno_fast.cli.inspect import inspect
from zeno_fast.cli.list import list_plugins
from zeno_fast.cli.output import (
    JSON,
    Failure,
    NothingFound,
    error_data,
    explain,
    note_output,
    print_json,
)
from zeno_fast.cli.sdk import sdk
from zeno_fast.cli.status import status, top
from zeno_fast.cli.validate import validate
from zeno_fast.errors import InvalidParameters, SlotNotFound, ZenoError


class App(click.Group):
    """Turns what zeno_fast raises into one paragraph on stderr and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for; its failure is told programs in JSON, too."""
        try:
            return self._invoke(ctx)
        except click.ClickException as failure:
            if ctx.meta.get(JSON):
                print_json(error_data(failure))
            raise

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (SlotNotFound, InvalidParameters) as error:
            raise NothingFound(explain(error)) from error
        except ZenoError as error:
            raise Failure(explain(error)) from error
        except BrokenPipeError:
            raise  # whoever read our output has enough; click ends quietly
        except OSError as error:
            raise Failure(explain(error)) from error


@click.group(cls=App, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="zeno_fast", message="%(prog)s %(version)s")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), callback=note_output, hidden=True
)
@click.pass_context
def app(context: click.Context, output: str | None) -> None:
    """Run plugins: sandboxed WASM modules and native sidecars, called by the names of their slots.

    Every command takes `--output json` for programs; a failure is then JSON, too. Exit status: 0
    done, 1 it failed, 2 the command was wrong or what it names is not there.
    """
    if output is not None:
        context.default_map = {name: {"output": output} for name in app.commands}


for command in (list_plugins, inspect, validate, call, demo, sdk, status, top):
    app.add_command(command)
