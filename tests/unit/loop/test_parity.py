from __future__ import annotations

import pytest

from tests.unit.loop.fakes import FakeLearner, FakeSampler
from turnwise import errors
from turnwise.loop.parity import check_parity, probe


def test_the_probe_is_fixed_and_stays_inside_the_vocabulary() -> None:
    tokens = probe(100)
    assert tokens.tolist() == probe(100).tolist()
    assert set(tokens.tolist()) <= set(range(100))
    assert len(set(probe(798).tolist())) == 64


async def test_the_same_logprobs_on_both_sides_pass() -> None:
    learner = FakeLearner()
    learner.updates = 2
    difference = await check_parity(
        FakeSampler(), learner, adapter_id="adapter-2", previous_id="adapter-1", limit=1e-5
    )
    assert difference == 0.0


async def test_a_difference_says_by_how_much_and_over_which_limit() -> None:
    learner, sampler = FakeLearner(), FakeSampler()
    learner.updates, sampler.error = 2, 0.125
    with pytest.raises(errors.ParityExceeded) as raised:
        await check_parity(
            sampler, learner, adapter_id="adapter-2", previous_id="adapter-1", limit=1e-5
        )
    assert str(raised.value) == (
        "mean |sampler - learner| is 0.125 nats on the probe, limit 1e-05: "
        "sampler and learner compute adapter adapter-2 differently"
    )
