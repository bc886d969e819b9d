from __future__ import annotations

import math

import numpy as np
import pytest

from turnwise.domain.training import Mismatch
from turnwise.training.parity import exceeds, mismatches, verdict


def array(*values: float):
    return np.array(values, dtype=np.float32)


def test_mismatch_is_reported_per_age_by_hand() -> None:
    learner, sampler = array(-1.0, -2.0, -3.0), array(-1.5, -2.0, -3.25)
    young, old = mismatches(5, learner, sampler, np.array([5, 5, 3]))
    r = math.exp(0.5)
    assert young == Mismatch(
        age=0,
        tokens=2,
        mean=0.25,
        max=0.5,
        k3=pytest.approx((r - 0.5 - 1) / 2),
        ess=pytest.approx((r + 1) ** 2 / (2 * (r * r + 1))),
    )
    assert old == Mismatch(
        age=2,
        tokens=1,
        mean=0.25,
        max=0.25,
        k3=pytest.approx(math.exp(0.25) - 1.25),
        ess=pytest.approx(1.0),
    )


def test_agreement_is_exactly_zero() -> None:
    (found,) = mismatches(0, array(-1, -2), array(-1, -2), np.array([0, 0]))
    assert found == Mismatch(age=0, tokens=2, mean=0.0, max=0.0, k3=0.0, ess=1.0)


def test_a_logprob_that_is_no_number_exceeds_every_limit() -> None:
    (found,) = mismatches(0, array(-1), array(math.nan), np.array([0]))
    assert exceeds(found, 1e9)


def test_the_verdict_names_the_side_and_the_closest_supposition() -> None:
    plain, others = array(-1, -2), {"it is stale": array(-3, -4), "it is hot": array(-1.5, -2)}
    assert verdict(array(-3, -4), plain, plain, others, 1e-5) == (
        "a plain forward agrees with the learner (mean 0), so the sampler is wrong: it is stale "
        "(then the difference is 0)"
    )
    assert verdict(array(-9, -9), plain, plain, others, 1e-5).endswith(
        "logprobs recorded for other tokens"
    )
    assert verdict(plain, array(-3, -4), plain, others, 1e-5) == (
        "the learner is wrong: its batched forward differs from its own plain forward of the same "
        "row by 2 on average"
    )
