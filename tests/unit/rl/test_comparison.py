from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.rl.comparison import Comparison, compare, sign_flip_p

DIFFERENCES = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=9)


def by_enumeration(differences: list[float]) -> float:
    """The definition, row by row: zeros take part too, and change nothing."""
    seen = abs(sum(differences))
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in product([1, -1], repeat=len(differences))
    ]
    return sum(total >= seen - 1e-12 for total in sums) / len(sums)


@settings(max_examples=60, deadline=None)
@given(DIFFERENCES)
def test_few_rows_are_enumerated(differences: list[float]) -> None:
    assert sign_flip_p(differences, seed=0) == pytest.approx(by_enumeration(differences))


def test_successes_are_counted_as_mcnemar_does_however_many_rows() -> None:
    better, worse, alike = 70, 45, 900
    tail = sum(comb(115, count) for count in range(46)) / 2**115

    found = sign_flip_p([1.0] * better + [-1.0] * worse + [0.0] * alike, seed=0)

    assert found == pytest.approx(2 * tail, rel=1e-12)


def test_many_rows_are_drawn_and_agree_with_the_enumeration() -> None:
    differences = np.random.default_rng(3).normal(0.9, 1.0, 18)
    bits = np.arange(2**18)[:, None] >> np.arange(18) & 1
    exact = np.mean(np.abs((1 - 2 * bits) @ differences) >= abs(differences.sum()) - 1e-9)

    found = sign_flip_p(differences, seed=0)

    assert 0.01 < exact < 0.5
    assert found == pytest.approx(exact, abs=0.01)
    assert found == sign_flip_p(differences, seed=0)


def test_what_was_drawn_never_proves_more_than_the_number_of_draws() -> None:
    assert sign_flip_p(1.0 + np.arange(40) / 100, seed=0) == 1 / 20_001


def test_chance_alone_is_called_significant_no_more_often_than_it_says() -> None:
    sizes = np.array([0.1, 0.2, 0.5, 0.5, 1.0, 1.5, 3.0])
    found = [sign_flip_p(sizes * signs, seed=0) for signs in product([1, -1], repeat=len(sizes))]

    for level in (0.02, 0.05, 0.1, 0.5):
        assert np.mean(np.array(found) <= level) <= level


def test_rounding_errors_decide_nothing() -> None:
    assert 0.1 + 0.2 - 0.3 != 0
    assert sign_flip_p([0.1, 0.2, -0.3], seed=0) == 1.0
    assert sign_flip_p([0.3, -0.4, -0.3], seed=0) == 0.75  # |-0.4| is reached by six of eight


def test_thousands_of_rows_are_counted_without_a_wait() -> None:
    # An even split, then one 1.5 standard deviations from it: the normal law's share beyond.
    assert sign_flip_p([1.0] * 10_000 + [-1.0] * 10_000, seed=0) == 1.0
    assert sign_flip_p([1.0] * 10_106 + [-1.0] * 9_894, seed=0) == pytest.approx(0.136, abs=1e-3)


# ── two models ────────────────────────────────────────────────────────────────────────────────


def test_rows_that_one_of_them_lacks_are_left_out_and_counted() -> None:
    found = compare([1.0, None, 0.5, None, 1.0], [0.0, 1.0, 0.5, None, 0.0], seed=0)

    assert found is not None
    assert (found.difference, found.rows, found.unpaired) == (pytest.approx(2 / 3), 3, 2)
    assert found.p_value == 0.5
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_single_row_has_no_interval_and_proves_nothing() -> None:
    assert compare([1.0], [0.0], seed=0) == Comparison(
        difference=1.0, low=None, high=None, p_value=1.0, rows=1, unpaired=0
    )


def test_models_that_are_all_alike_do_not_differ() -> None:
    assert compare([1.0, 0.0, 0.5] * 9, [1.0, 0.0, 0.5] * 9, seed=0) == Comparison(
        difference=0.0, low=0.0, high=0.0, p_value=1.0, rows=27, unpaired=0
    )


def test_equal_means_a_hair_apart_are_no_difference() -> None:
    ours, theirs = (0.1 + 0.7) / 2, (0.4 + 0.4) / 2
    assert ours != theirs

    assert compare([ours] * 9, [theirs] * 9, seed=0) == Comparison(
        difference=0.0, low=0.0, high=0.0, p_value=1.0, rows=9, unpaired=0
    )


def test_without_a_row_that_both_have_there_is_no_comparison() -> None:
    assert compare([1.0, None], [None, 0.0], seed=0) is None
    assert compare([], [], seed=0) is None


def test_pairing_finds_what_the_rows_differences_would_hide() -> None:
    rows = np.random.default_rng(0).normal(0, 10, 60)  # rows differ by far more than the models
    found = compare((rows + 0.5).tolist(), rows.tolist(), seed=0)

    assert found is not None
    assert found.p_value < 1e-15
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.5))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=10))
def test_the_other_way_round_is_the_same_with_the_other_sign(
    pairs: list[tuple[float, float]],
) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    found, turned = compare(ours, theirs, seed=0), compare(theirs, ours, seed=0)

    assert found is not None
    assert turned is not None
    assert found.p_value == turned.p_value
    assert [turned.difference, turned.low, turned.high] == pytest.approx(
        [-found.difference, -(found.high or 0), -(found.low or 0)], abs=1e-9
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            Comparison(difference=0.31, low=0.24, high=0.38, p_value=1e-6, rows=256, unpaired=0),
            "tuned is better than base by 0.31 "
            "(95 % interval 0.24 to 0.38, p < 0.001, 256 paired rows)",
        ),
        (
            Comparison(difference=-0.31, low=-0.38, high=-0.24, p_value=0.012, rows=9, unpaired=0),
            "tuned is worse than base by 0.31 "
            "(95 % interval 0.24 to 0.38, p = 0.012, 9 paired rows)",
        ),
        (
            Comparison(difference=-0.02, low=-0.14, high=0.1, p_value=0.71, rows=9, unpaired=0),
            "no clear difference of tuned from base: -0.02 "
            "(95 % interval -0.14 to 0.1, p = 0.71, 9 paired rows)",
        ),
        (
            Comparison(difference=1.0, low=None, high=None, p_value=1.0, rows=1, unpaired=3),
            "no clear difference of tuned from base: +1 (p = 1, 1 paired row)",
        ),
    ],
)
def test_a_finding_is_said_in_one_sentence(found: Comparison, said: str) -> None:
    assert found.sentence("tuned", "base") == said
