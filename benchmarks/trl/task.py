"""What both sides share. Imports nothing but the example's torch-free rooms."""

from __future__ import annotations

import os
from pathlib import Path

from examples.aircraft_inspection.data import Task, load

PROMPTS_PER_BATCH = 16
GROUP_SIZE = 8
#: Batches of the demo's schedule; the learning rate falls to a fifth of its peak over them.
SCHEDULED_BATCHES = 36
UPDATES_PER_BATCH = 2
MAX_TURNS = 8
#: An adapter is judged after every so many batches.
JUDGE_EVERY = 3


def scratch() -> Path:
    """Where bases are kept between runs: $TURNWISE_BENCH_DIR, else build/bench here."""
    return Path(os.environ.get("TURNWISE_BENCH_DIR", "build/bench")).resolve()


def tables_in(made: Path) -> Task:
    """The task's tables in a folder that `compare.make_base` has made."""
    return load(made / "data")
