"""What is shown of an answer: JSON, lines or a table."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from turnwise.terminal import harmless

Json = dict[str, Any]

#: A terminal is as wide as it is; a pipe gets whole lines.
_WIDTH = None if sys.stdout.isatty() else 200
out = Console(width=_WIDTH, markup=False, highlight=False)
err = Console(stderr=True, markup=False, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def show(value: object, as_json: bool, text: Callable[[], str | Table]) -> None:
    """A whole answer: `value` as JSON, or the text that is made of it."""
    if as_json:
        print(json.dumps(value))
        return
    say(text())


def say(shown: str | Table) -> None:
    """Lines or a table, without what could control the terminal."""
    if isinstance(shown, str):
        out.print(harmless(shown), soft_wrap=True)
    else:
        out.print(shown)


def table(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> Table:
    """Rows with these of their members."""
    drawn = Table(box=None, pad_edge=False)
    for column in columns:
        drawn.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        drawn.add_row(*(cell(row.get(column)) for column in columns))
    return drawn


def cell(value: object) -> str:
    """A value in a table."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def clock(at: float) -> str:
    """Seconds since the epoch as the time of this machine."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
