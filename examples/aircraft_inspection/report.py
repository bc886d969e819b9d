"""What the demo measured: rates with 95 % intervals, a table for people, JSON for programs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

Z95 = 1.959964  # of the normal distribution, two-sided 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(successes: int, n: int) -> Interval:
    """A success rate with Wilson's score interval (J. Am. Stat. Assoc. 22, 1927).

    >>> str(share(9, 10))
    '0.900 [0.596, 0.982]'
    """
    p = successes / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return Interval(value=p, low=max(0.0, centre - half), high=min(1.0, centre + half))


def mean(values: Sequence[float]) -> Interval:
    """A mean with its normal interval."""
    centre = statistics.fmean(values)
    half = Z95 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Interval(value=centre, low=centre - half, high=centre + half)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One model on the held-out tasks: sampled at temperature 1, and greedy beside it."""

    exact: Interval
    exact_greedy: Interval
    reward: Interval
    n: int

    @classmethod
    def of(
        cls, exact: Sequence[bool], exact_greedy: Sequence[bool], rewards: Sequence[float]
    ) -> Measured:
        """From one entry per task that was scored."""
        return cls(
            exact=share(sum(exact), len(exact)),
            exact_greedy=share(sum(exact_greedy), len(exact_greedy)),
            reward=mean(rewards),
            n=len(exact),
        )

    def as_json(self) -> dict[str, Any]:
        """The model's entry in summary.json."""
        return {
            "exact_match": self.exact.value,
            "exact_match_greedy": self.exact_greedy.value,
            "mean_reward": self.reward.value,
            "n": self.n,
            "exact_match_95": [self.exact.low, self.exact.high],
            "exact_match_greedy_95": [self.exact_greedy.low, self.exact_greedy.high],
            "mean_reward_95": [self.reward.low, self.reward.high],
        }


def results_table(base: Measured, tuned: Measured | None) -> Table:
    """Base against tuned."""
    table = Table("held-out tasks", "base", title=f"{base.n} tasks, 95 % intervals")
    rows = {"exact match, sampled": "exact", "exact match, greedy": "exact_greedy"}
    rows |= {"mean reward": "reward"}
    if tuned is not None:
        table.add_column("tuned")
    for label, field in rows.items():
        models = [base] if tuned is None else [base, tuned]
        table.add_row(label, *(str(getattr(model, field)) for model in models))
    return table


def seconds_table(seconds: dict[str, float]) -> Table:
    """Wall time per phase."""
    table = Table("phase", "seconds")
    for phase, spent in (seconds | {"total": sum(seconds.values())}).items():
        table.add_row(phase, f"{spent:.1f}")
    return table
