"""The command line: a module a command.

Exit status: 0 done; 1 it failed (the slot, the plugin or its manifest); 2 the command itself was
wrong, or what it names is not there.
"""

import io
import sys

__all__ = ["main"]


def main() -> None:
    """Run `zeno-fast`, or say how to install what it needs."""
    try:
        from zeno_fast.cli.app import app  # noqa: PLC0415
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("click", "rich"):
            raise
        print(
            f"zeno-fast: the command line needs the package {package!r}; "
            "install it with: pip install 'zeno_fast[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        # An answer in letters that the terminal's encoding lacks must not end in a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="zeno-fast")
