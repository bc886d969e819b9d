from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.rl.intervals import ratio_intervals


def one(numerators: list[float], denominators: list[float] | None = None, **options: int):
    """The interval of one measure; by default, of a mean over rows."""
    below = [1.0] * len(numerators) if denominators is None else denominators
    options = {"seed": 0} | options
    [interval] = ratio_intervals(np.array([numerators]).T, np.array([below]).T, **options).tolist()
    return interval


def test_the_ends_are_the_quantiles_of_every_resample_there_is() -> None:
    above, below = np.array([0.0, 1.5, 3.0, 1.0, 2.0]), np.array([1.0, 3.0, 3.0, 2.0, 2.0])
    every = np.array(list(product(range(5), repeat=5)))  # 3125 ways to draw five of five rows
    ratios = above[every].sum(axis=1) / below[every].sum(axis=1)

    found = one(above.tolist(), below.tolist(), resamples=40_000)

    assert found == pytest.approx(np.quantile(ratios, [0.025, 0.975]).tolist(), abs=0.01)


def test_95_percent_intervals_hold_the_truth_about_so_often() -> None:
    generator = np.random.default_rng(5)
    draws = (generator.random((80, 300)) < 0.3).astype(float)  # 300 evaluations of 80 rows

    found = ratio_intervals(draws, np.ones_like(draws), seed=1, resamples=500)

    held = np.mean((found[:, 0] <= 0.3) & (found[:, 1] >= 0.3))
    assert 0.92 <= held <= 0.97


def test_more_attempts_at_the_same_rows_do_not_narrow_it_if_they_are_all_alike() -> None:
    rows = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]

    assert one([8 * row for row in rows], [8.0] * 7) == one(rows)


def test_a_row_without_a_rollout_that_counts_adds_nothing() -> None:
    assert one([0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]) == [0.0, 1.0]


def test_rows_that_are_all_equal_give_no_width() -> None:
    assert one([1.0] * 9) == [1.0, 1.0]


@pytest.mark.parametrize("rows", [([], []), ([1.0], [1.0]), ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0])])
def test_fewer_than_two_rows_that_count_give_no_interval(
    rows: tuple[list[float], list[float]],
) -> None:
    above, below = rows
    found = ratio_intervals(
        np.array([above]).reshape(-1, 1), np.array([below]).reshape(-1, 1), seed=0
    )

    assert np.isnan(found).all()


def test_rows_may_be_too_many_to_draw_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=50).tolist()
    at_once = one(rows)
    one([row + 100 for row in rows])  # so that what memory holds is not yet the answer
    monkeypatch.setattr("turnwise.rl.intervals.COUNTS_AT_ONCE", 333)
    one([row + 100 for row in rows])  # so that what memory holds is not yet the answer

    assert one(rows) == pytest.approx(at_once, abs=0.05)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.floats(0.1, 4), st.floats(-3, 3))
def test_it_moves_and_stretches_with_the_values(
    values: list[float], scale: float, shift: float
) -> None:
    low, high = one(values)
    moved = one([scale * value + shift for value in values])

    assert low <= high
    assert moved == pytest.approx([scale * low + shift, scale * high + shift], abs=1e-9)
