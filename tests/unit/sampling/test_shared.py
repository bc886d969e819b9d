"""Several jobs on one sampler."""

import pytest

from tests.builders import tokens
from turnwise import errors
from turnwise.domain.rollout import SamplingParams
from turnwise.ports import Sampler, SampleRequest
from turnwise.sampling.scripted import Completion, ScriptedSampler
from turnwise.sampling.shared import SharedSampler


async def sample(sampler: Sampler, adapter_id: str) -> int:
    """How many tokens it gives; raises `NotFound` for an adapter that it does not have."""
    ask = SampleRequest(
        request_id="r",
        claimant="job/train",
        prompt=tokens(1, 2),
        adapter_id=adapter_id,
        sampling=SamplingParams(),
        seed=0,
    )
    return sum([len(chunk.tokens) async for chunk in sampler.generate(ask)])


@pytest.fixture
def shared() -> SharedSampler:
    return SharedSampler(ScriptedSampler([Completion([7, 8])]))


async def test_an_adapter_stays_while_another_job_uses_it(shared):
    train, evaluation = shared.claim(), shared.claim()
    await train.load("a", "/a")
    await train.load("a", "/a")
    await evaluation.load("a", "/a")
    await train.retire("a")
    await train.retire("a")
    assert await sample(evaluation, "a") == 2
    await evaluation.retire("a")
    with pytest.raises(errors.NotFound, match="'a'"):
        await sample(evaluation, "a")


async def test_a_job_that_ends_gives_up_what_it_loaded_and_nothing_else(shared):
    first, second = shared.claim(), shared.claim()
    await first.load("a", "/a")
    await first.load("b", "/b")
    await second.load("b", "/b")
    await first.close()
    assert await sample(second, "b") == 2
    with pytest.raises(errors.NotFound):
        await sample(second, "a")
