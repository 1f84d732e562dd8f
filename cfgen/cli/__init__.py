"""The command line: a file a command. `main` is the entry point."""

from cfgen.cli.app import main

__all__ = ["main"]
