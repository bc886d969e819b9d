"""Run every benchmark, print the figures beside their goals, write benchmarks/latest.json.

Each record: name, ours, peer, ratio, goal, unit, spread. Ratio and goal are always "bigger is
better"; a figure without a goal has null there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import asynchrony, engine, gateway, jobs, pages, training, viewers
from benchmarks.trl import compare as trl

BENCHMARKS = {
    "engine": engine.run,
    "training": training.run,
    "gateway": gateway.run,
    "asynchrony": asynchrony.run,
    "jobs": jobs.run,
    "pages": pages.run,
    "viewers": viewers.run,
    "trl": trl.run,
}
LATEST = Path(__file__).parent / "latest.json"
COLUMNS = ("name", "ours", "peer", "ratio", "goal", "unit", "spread")


def main(names: list[str]) -> None:
    """Run the named benchmarks (all by default)."""
    records: list[dict[str, Any]] = []
    for name in names or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        records += BENCHMARKS[name]()
    kept = [] if not names else _others({record["name"] for record in records})
    LATEST.write_text(json.dumps(kept + records, indent=1) + "\n")
    table = Table(box=None)
    for column in COLUMNS:
        table.add_column(column, overflow="fold", no_wrap=column not in ("name", "spread"))
    for record in records:
        table.add_row(*(_cell(record[column]) for column in COLUMNS))
    Console(width=160).print(table)


def _others(measured: set[str]) -> list[dict[str, Any]]:
    """Records of an earlier run that this one did not measure again."""
    if not LATEST.is_file():
        return []
    return [record for record in json.loads(LATEST.read_text()) if record["name"] not in measured]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(sys.argv[1:])
