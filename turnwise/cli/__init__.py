"""The command line, a module per noun; `program` puts them together."""

from turnwise.cli.program import app, main

__all__ = ["app", "main"]
