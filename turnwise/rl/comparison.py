"""Whether two models differ on the same rows, each tried with the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose

import numpy as np
import numpy.typing as npt

from turnwise.rl.intervals import ratio_intervals

#: Up to so many rows that differ, every assignment of signs is looked at.
ENUMERATE_UP_TO = 16

#: Random assignments otherwise; the smallest p-value is one in so many.
FLIPS = 20_000

#: Signs held at once.
SIGNS_AT_ONCE = 2_000_000

#: A difference is called one from this p-value down.
SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Ours minus theirs, over the rows that both have; `low` and `high` are a 95 % interval."""

    difference: float
    low: float | None  # None with a single row
    high: float | None
    p_value: float
    rows: int  # that both have
    unpaired: int  # that one of them lacks, left out

    def sentence(self, ours: str, theirs: str, what: str = "") -> str:
        """The finding in words; `what` says by which measure ("in success rate").

        >>> found = Comparison(
        ...     difference=-0.31, low=-0.38, high=-0.24, p_value=1e-6, rows=256, unpaired=0
        ... )
        >>> found.sentence("base", "tuned")
        'base is worse than tuned by 0.31 (95 % interval 0.24 to 0.38, p < 0.001, 256 paired rows)'
        """
        measured = f" {what}" if what else ""
        if self.p_value > SIGNIFICANT:
            by = f"{self.difference:+.3g}" if self.difference else "0"
            facts = self._facts(1)
            return f"no clear difference of {ours} from {theirs}{measured}: {by} {facts}"
        word, sign = ("better", 1) if self.difference > 0 else ("worse", -1)
        by, facts = f"{abs(self.difference):.3g}", self._facts(sign)
        return f"{ours} is {word} than {theirs}{measured} by {by} {facts}"

    def _facts(self, sign: int) -> str:
        """Interval, p-value and rows; `sign` -1 turns the interval round."""
        facts = []
        if self.low is not None and self.high is not None:
            low, high = sorted((sign * self.low + 0.0, sign * self.high + 0.0))  # never "-0"
            facts.append(f"95 % interval {low:.3g} to {high:.3g}")
        facts.append("p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.2g}")
        facts.append("1 paired row" if self.rows == 1 else f"{self.rows} paired rows")
        return f"({', '.join(facts)})"


def compare(
    ours: Sequence[float | None], theirs: Sequence[float | None], *, seed: int
) -> Comparison | None:
    """Compare two models' values of the same rows, [R] each; None where a model has no value.

    The mean difference has a bootstrap interval over rows and the p-value of `sign_flip_p`. Rows
    that lack a value are left out and counted. None if no row has both.
    """
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    # Equal means of unequal numbers, 0.1 and 0.7 or 0.4 twice, may be a hair apart.
    differences = np.array([0.0 if isclose(a, b, rel_tol=1e-12) else a - b for a, b in pairs])
    [(low, high)] = ratio_intervals(
        differences[:, None], np.ones((len(pairs), 1)), seed=seed
    ).tolist()
    has_interval = not np.isnan(low)
    return Comparison(
        difference=float(differences.mean()),
        low=low if has_interval else None,
        high=high if has_interval else None,
        p_value=sign_flip_p(differences, seed=seed),
        rows=len(pairs),
        unpaired=len(ours) - len(pairs),
    )


def sign_flip_p(differences: npt.ArrayLike, *, seed: int) -> float:
    """Two-sided p-value of paired differences, [R]: does it matter which model had which value?

    If not, each difference might as well have the other sign; the p-value is the share of the
    2^R assignments of signs whose sum is at least as far from 0. Rows without a difference say
    nothing. Differences of one size (success or not) are counted exactly: that is McNemar's exact
    test. A few others are enumerated, many are drawn, (1 + hits) / (1 + draws), which never
    understates.

    Fisher, The Design of Experiments (1935), section 21; Phipson and Smyth 2010 for the drawn.

    >>> sign_flip_p([1.0, 1.0, 1.0], seed=0)
    0.25
    """
    given = np.asarray(differences, dtype=np.float64)
    sizes = np.abs(given[given != 0])
    if not len(sizes):
        return 1.0
    sum_seen = abs(float(given.sum()))
    if np.allclose(sizes, sizes[0], rtol=1e-9, atol=0):
        return _binomial_p(int(np.sum(given > 0)), len(sizes))
    # The same sum may come out otherwise in another order: a hair less counts as equal.
    threshold = sum_seen - 1e-9 * float(sizes.sum())
    if len(sizes) <= ENUMERATE_UP_TO:
        bits = np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes)) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ sizes) >= threshold))
    return _drawn_p(sizes, threshold, seed)


def _binomial_p(positive: int, number: int) -> float:
    """The chance of a split at least so uneven, of `number` fair coins."""
    fewer = min(positive, number - positive)
    if 2 * fewer == number:
        return 1.0
    splits = ways = 1  # of `number` coins, none showing heads; then one more at a time
    for count in range(fewer):
        ways = ways * (number - count) // (count + 1)
        splits += ways
    return 2 * splits / (1 << number)


def _drawn_p(sizes: npt.NDArray[np.float64], threshold: float, seed: int) -> float:
    generator = np.random.default_rng(seed)
    at_once = max(1, SIGNS_AT_ONCE // len(sizes))
    hits = 0
    for start in range(0, FLIPS, at_once):
        number = min(at_once, FLIPS - start)
        signs = generator.integers(0, 2, (number, len(sizes)), dtype=np.int8) * 2.0 - 1.0
        hits += int(np.sum(np.abs(signs @ sizes) >= threshold))
    return (1 + hits) / (1 + FLIPS)
