"""What two to six jobs have in common and what not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from turnwise import errors
from turnwise.control.job_file import flattened
from turnwise.dashboard.charts import Chart, chart
from turnwise.domain.curves import Curve
from turnwise.rl.comparison import Comparison, compare

#: How many jobs a page compares.
LEAST, MOST = 2, 6

#: Curves that are laid over each other: id, title, metric.
OVERLAID = (
    ("reward", "Training reward", "rollout/reward/mean"),
    ("validation", "Validation reward", "val/reward/mean"),
    ("loss", "Loss", "training/loss"),
    ("kl", "KL from the sampler", "training/kl_k3"),
    ("entropy", "Entropy", "training/entropy"),
    ("length", "Tokens trained per rollout", "training/action_tokens_mean"),
    ("turns", "Turns", "rollout/turns/mean"),
    ("zero", "Groups without advantage", "analysis/zero_adv_groups"),
    ("time", "Seconds per step", "timing_s/step"),
)

#: Metrics whose last values are set side by side, with how to show them and which way is better
#: (0: neither).
FINAL = (
    ("Training reward", "rollout/reward/mean", 1),
    ("Validation reward", "val/reward/mean", 1),
    ("Validation success rate", "val/reward/pass_at_1", 1),
    ("Held-out reward", "eval/reward/mean", 1),
    ("Held-out success rate", "eval/reward/success_rate", 1),
    ("Loss", "training/loss", 0),
    ("KL from the sampler", "training/kl_k3", 0),
    ("Entropy", "training/entropy", 0),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting, its value in each job, and whether they differ."""

    name: str
    values: tuple[str, ...]
    differs: bool


@dataclass(frozen=True, slots=True)
class Final:
    """A metric's last value in each job; `best` are the places of the best, if one can say."""

    label: str
    values: tuple[float | None, ...]
    best: frozenset[int]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two jobs that ran on the same rows, and what the test says of them."""

    ours: str
    theirs: str
    comparison: Comparison


def chosen(names: Sequence[str]) -> list[str]:
    """The jobs to compare, each once. Raises `InvalidInput` for too few or too many.

    >>> chosen(["a", "b", "a"])
    ['a', 'b']
    """
    found = list(dict.fromkeys(name for name in names if name))
    if not LEAST <= len(found) <= MOST:
        raise errors.InvalidInput(
            "job",
            ", ".join(found),
            f"is not a choice of {LEAST} to {MOST} jobs",
            remedy="tick them in the list of jobs, then Compare",
        )
    return found


def differences(specs: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Every setting of these job files, those that differ first.

    >>> [d.name for d in differences([{"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}])]
    ['b.c', 'a']
    """
    flat = [dict(flattened(spec)) for spec in specs]
    names = list(dict.fromkeys(name for each in flat for name in each))
    rows = []
    for name in names:
        values = tuple(_shown(each.get(name)) for each in flat)
        rows.append(Difference(name, values, differs=len(set(values)) > 1))
    return sorted(rows, key=lambda row: not row.differs)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def overlays(curves: Mapping[str, Mapping[str, Curve]]) -> list[Chart]:
    """A chart per metric that any job has, a line per job; `curves` by job and metric."""
    found = []
    for id, title, metric in OVERLAID:
        lines = {name: its[metric] for name, its in curves.items() if its.get(metric)}
        if lines:
            found.append(chart(f"compare-{id}", title, lines))
    return found


def finals(curves: Sequence[Mapping[str, Curve]]) -> list[Final]:
    """Last values, of metrics that any of the jobs has."""
    found = []
    for label, metric, better in FINAL:
        values = tuple(its[metric][-1][1] if its.get(metric) else None for its in curves)
        if any(value is not None for value in values):
            found.append(Final(label, values, _best(values, better)))
    return found


def _best(values: Sequence[float | None], better: int) -> frozenset[int]:
    known = [better * value for value in values if value is not None]
    if not better or len(set(known)) < 2:
        return frozenset()
    top = max(known)
    return frozenset(
        place for place, value in enumerate(values) if value is not None and better * value == top
    )


def paired(rewards: Mapping[str, tuple[str, Mapping[int, float]]], *, seed: int = 0) -> list[Pair]:
    """The paired comparison of every two jobs that ran on the same rows.

    `rewards` has, by job, the sha256 of its rows' file and the mean reward of each row.
    """
    found = []
    for ours, theirs in combinations(rewards, 2):
        (our_rows, our_means), (their_rows, their_means) = rewards[ours], rewards[theirs]
        if not our_rows or our_rows != their_rows:
            continue
        rows = sorted({*our_means, *their_means})
        made = compare(
            [our_means.get(row) for row in rows],
            [their_means.get(row) for row in rows],
            seed=seed,
        )
        if made is not None:
            found.append(Pair(ours, theirs, made))
    return found
