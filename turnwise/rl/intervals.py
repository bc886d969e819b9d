"""Bootstrap intervals of means over rows, for any number of measures at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

#: Resamples: the ends of a 95 % interval then vary by a few hundredths of its width.
RESAMPLES = 2000

#: Counts held at once, 32 MB: resamples are drawn in parts, so that rows may be many.
COUNTS_AT_ONCE = 4_000_000


def ratio_intervals(
    numerators: Values,  # [R, M]
    denominators: Values,  # [R, M], none negative
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Values:  # [M, 2]: low and high; NaN where there is no interval
    """Percentile bootstrap of each measure's sum of numerators / sum of denominators.

    Rows are resampled, never rollouts: attempts at one row are alike, and an interval over
    rollouts would be too narrow. All measures see the same resamples, so measures may be compared.
    With fewer than two rows that count (denominator above 0) there is no interval. Rows that are
    all equal give an interval of width 0: the method knows only what it has seen.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    >>> reward = np.array([[0.0], [1.0]] * 50)
    >>> ratio_intervals(reward, np.ones_like(reward), seed=0).round(1).tolist()
    [[0.4, 0.6]]
    """
    rows, measures = numerators.shape
    found = np.full((measures, 2), np.nan)
    if rows < 2:
        return found
    drawn = _resampled(np.hstack([numerators, denominators]), resamples, seed)
    tail = (1 - level) / 2
    for measure in range(measures):
        above, below = drawn[:, measure], drawn[:, measures + measure]
        if np.count_nonzero(denominators[:, measure]) >= 2:
            counts = below > 0
            found[measure] = np.quantile(above[counts] / below[counts], [tail, 1 - tail])
    return found


def _resampled(values: Values, resamples: int, seed: int) -> Values:  # [R, V] -> [resamples, V]
    """Sums of the values over rows drawn with replacement."""
    rows = len(values)
    generator = np.random.default_rng(seed)
    at_once = max(1, COUNTS_AT_ONCE // rows)
    sums = np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, at_once):
        number = min(at_once, resamples - start)
        drawn = generator.integers(0, rows, (number, rows)) + np.arange(number)[:, None] * rows
        counts = np.bincount(drawn.ravel(), minlength=number * rows).reshape(number, rows)
        sums[start : start + number] = counts @ values
    return sums
