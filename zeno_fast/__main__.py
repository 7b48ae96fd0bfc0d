"""Run the command line as `python -m zeno_fast`."""

from zeno_fast.cli import main

main()
