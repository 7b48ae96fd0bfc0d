"""Run the command line as `python -m zeno_fast.cli`."""

from zeno_fast.cli import main

main()
