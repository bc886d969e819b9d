from __future__ import annotations

import asyncio
import subprocess
import sys

import numpy as np

from turnwise.domain.rollout import SamplingParams
from turnwise.ports import Chunk, SampleRequest
from turnwise.sampling.scripted import DEFAULT_LOGPROB, Completion, ScriptedSampler


def request(**changes: object) -> SampleRequest:
    fields = {
        "request_id": "a",
        "claimant": "job",
        "prompt": np.array([1], np.int32),
        "adapter_id": None,
        "sampling": SamplingParams(max_tokens=9),
        "seed": 0,
    }
    return SampleRequest(**(fields | changes))


async def complete(sampler: ScriptedSampler, **changes: object) -> Chunk:
    [chunk] = [chunk async for chunk in sampler.generate(request(**changes))]
    return chunk


async def test_a_list_is_played_in_order_over_and_over() -> None:
    sampler = ScriptedSampler([Completion([1, 2], [-0.1, -0.2]), Completion([3])])
    played = [await complete(sampler) for _ in range(3)]
    assert [chunk.tokens.tolist() for chunk in played] == [[1, 2], [3], [1, 2]]
    assert played[0].logprobs.tolist() == np.array([-0.1, -0.2], np.float32).tolist()
    assert played[1].logprobs.tolist() == [np.float32(DEFAULT_LOGPROB)]


async def test_a_callable_sees_the_request() -> None:
    sampler = ScriptedSampler(lambda sent: Completion([int(sent.prompt[0]) + 1]))
    assert (await complete(sampler)).tokens.tolist() == [2]


async def test_a_script_that_runs_out_ends_with_stop() -> None:
    chunk = await complete(ScriptedSampler([Completion([4, 5])]))
    assert (chunk.tokens.tolist(), chunk.finish_reason) == ([4, 5], "stop")


async def test_tokens_take_their_time() -> None:
    sampler = ScriptedSampler([Completion([1, 2, 3])], seconds_per_token=0.01)
    started = asyncio.get_running_loop().time()
    await complete(sampler)
    assert asyncio.get_running_loop().time() - started >= 0.03


def test_the_fake_and_the_handle_import_no_torch() -> None:
    code = (
        "import sys, turnwise.sampling.scripted, turnwise.sampling.handle;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
