"""Chat completions outside any rollout, by the public client: the model is a registered one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.builders import ACCOUNT, package
from tests.unit.gateway.kit import KEY, SECRET, World, a_world, user
from tests.wire.served import HEADERS, NUMBER, a_client, served
from turnwise.domain.access import Action, Principal
from turnwise.domain.rollout import Policy
from turnwise.ports import FinishedStep, ModelPackage

ARN = f"arn:aws:sagemaker:eu-west-1:{NUMBER}:model-package"
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
]
CALLING = '[why]look@{"name": "find", "arguments": {"id": 1}}'


async def register(world: World, *packages: ModelPackage) -> None:
    done = FinishedStep(
        step=0,
        policy=Policy(),
        groups=(),
        bins={},
        checkpoint=None,
        packages=packages,
        events=(),
    )
    await world.store.finish_step(ACCOUNT, "job_walk", done)


@contextlib.asynccontextmanager
async def a_served_world(
    *replies: str, **options: Any
) -> AsyncIterator[tuple[World, str, AsyncOpenAI]]:
    """A world with two versions of a model, its server's URL and a client with the key."""
    async with a_world(*replies, **options) as world, served(world) as url:
        await register(world, package(1), package(2))
        async with a_client(url, by_headers=True, default_headers={}) as client:
            yield world, url, client


@pytest.mark.parametrize(
    ("model", "version"),
    [("walk/1", 1), ("walk", 2), ("package_1", 1), (f"{ARN}/walk/1", 1), (f"{ARN}/walk/2", 2)],
)
async def test_a_model_is_named_by_version_group_id_or_arn(model: str, version: int):
    async with a_served_world("hello") as (world, _, client):
        reply = await client.chat.completions.create(model=model, messages=[user("hi")])
        (asked,) = world.script.asked
        assert (await world.trajectory()).turns == ()
    assert (reply.model, reply.choices[0].message.content) == (model, "hello")
    assert reply.id.startswith("chatcmpl-chat_")
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (20, 6)
    assert (asked.adapter_id, asked.claimant) == (package(version).sha256, f"serving/{ACCOUNT}")
    assert not asked.admitted


async def test_a_stream_with_tools_adds_up_to_the_unstreamed_reply():
    ask: dict[str, Any] = {"model": "walk", "messages": [user("hi")], "tools": TOOLS}
    async with a_served_world(CALLING) as (_, _, client):
        whole = await client.chat.completions.create(**ask, logprobs=True)
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                **ask, stream=True, stream_options={"include_usage": True}
            )
        ]
    *said, usage = chunks
    choices = [chunk.choices[0] for chunk in said]
    assert "".join(choice.delta.content or "" for choice in choices) == "look"
    (called,) = [call for choice in choices for call in choice.delta.tool_calls or []]
    (expected,) = whole.choices[0].message.tool_calls or []
    assert called.model_dump(exclude={"index"}) == expected.model_dump()
    assert choices[-1].finish_reason == whole.choices[0].finish_reason == "tool_calls"
    assert usage.usage == whole.usage
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.content or []) == len(CALLING) + 1


async def test_the_callers_parameters_reach_the_sampler():
    async with a_served_world("hello", max_length=100) as (world, _, client):
        messages = [user("hi")]
        reply = await client.chat.completions.create(
            model="walk", messages=messages, temperature=0.5, top_p=0.9, max_tokens=9, stop="ll"
        )
        for seed in (7, 7, None, None):
            await client.chat.completions.create(model="walk", messages=messages, seed=seed)
        first, *others = world.script.asked
    assert (first.sampling.temperature, first.sampling.top_p) == (0.5, 0.9)
    assert [ask.sampling.max_tokens for ask in (first, others[0])] == [9, 100 - 20]
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("he", "stop")
    seeds = [ask.seed for ask in others]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3


async def test_what_may_be_asked_for_is_listed():
    async with a_served_world() as (world, url, client):
        names = [model.id async for model in client.models.list()]
        world.principal = Principal(account_id=ACCOUNT, job_ids=frozenset({"job_run"}))
        of_other_job = [model.id async for model in client.models.list()]
        async with a_client(url) as inside:
            in_rollout = [model.id async for model in inside.models.list()]
    assert names == ["walk", "walk/2", "walk/1"]
    assert of_other_job == []
    assert in_rollout == ["default", "walk", "tiny"]


async def refusal(client: AsyncOpenAI, **changes: Any) -> tuple[int, Any, str]:
    """Status, code and message."""
    ask: dict[str, Any] = {"model": "walk", "messages": [user("hi")]} | changes
    with pytest.raises(openai.APIStatusError) as refused:
        await client.chat.completions.create(**ask)
    body: Any = refused.value.body
    return refused.value.status_code, body["code"], body["message"]


async def test_an_unknown_model_is_refused_with_what_would_be_right():
    async with a_served_world() as (_, _, client):
        for model in ("walk/3", "run", f"{ARN}/walk/9", f"{ARN}/walk/1".replace("01:", "02:")):
            status, code, message = await refusal(client, model=model)
            assert (status, code) == (404, "model_not_found")
            assert message.startswith(
                f"model {model!r} does not exist; GET /v1/models lists them; "
                "to ask for the model of a rollout, send X-Amzn-SageMaker-Job-Arn and "
            )
        assert await refusal(client, model=f"{ARN}/walk") == (
            400,
            "invalid_value",
            f"model: '{ARN}/walk' is not a model package's ARN; "
            "arn:aws:sagemaker:<region>:<account>:model-package/<group>/<version>",
        )


async def test_who_may_not_sample_is_refused():
    async with a_served_world() as (world, _, client):
        for key in (SECRET, "wrong"):  # a rollout's secret is good inside it only
            bearer = {"Authorization": f"Bearer {key}"}
            assert await refusal(client, extra_headers=bearer) == (
                401,
                "invalid_api_key",
                "this key does not exist",
            )
        world.principal = Principal(account_id=ACCOUNT, actions=frozenset({Action.READ}))
        assert await refusal(client) == (403, "permission_denied", "this key may not sample")
        world.principal = Principal(account_id=ACCOUNT, job_ids=frozenset({"job_run"}))
        assert await refusal(client) == (
            403,
            "permission_denied",
            "this key may not sample job 'job_walk'",
        )
        world.principal = Principal(account_id="acc_other")
        assert (await refusal(client))[:2] == (404, "model_not_found")


async def test_a_prompt_that_does_not_fit_and_more_than_one_choice_are_refused():
    async with a_served_world(max_length=16) as (_, _, client):
        assert await refusal(client) == (
            400,
            "context_length_exceeded",
            "messages: 20 tokens do not fit this model's context of 16 tokens; "
            "shorten the conversation",
        )
        assert await refusal(client, n=2) == (
            400,
            "invalid_value",
            "n: 2 is not supported here; leave it out or send 1",
        )


async def running(world: World, count: int) -> None:
    async with asyncio.timeout(30):
        while (await world.sampler.stats()).running != count:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_slot(stream: bool):
    async with a_served_world("hello") as (world, _, client):
        world.sampler.gate.clear()
        call = asyncio.create_task(
            client.chat.completions.create(
                model="walk", messages=[user("hi")], stream=stream, timeout=60
            )
        )
        await running(world, 1)
        call.cancel()
        await running(world, 0)
        assert world.sampler.aborted == 1
        world.sampler.gate.set()
        await client.chat.completions.create(model="walk", messages=[user("hi")])


async def test_a_full_queue_says_when_to_ask_again():
    async with a_served_world("hello", max_slots=1, max_queue=0) as (world, _, client):
        world.sampler.gate.clear()
        first = asyncio.create_task(
            client.chat.completions.create(model="walk", messages=[user("hi")])
        )
        await running(world, 1)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(model="walk", messages=[user("hi")])
        world.sampler.gate.set()
        assert (await first).choices[0].message.content == "hello"
    assert refused.value.response.headers["retry-after"] == "1"
    assert refused.value.code == "rate_limit_exceeded"


async def test_a_rollouts_address_wins_over_the_name():
    async with a_served_world("hello") as (world, url, _):
        async with a_client(url, by_headers=True, default_headers=HEADERS, api_key=KEY) as client:
            await client.chat.completions.create(model="walk", messages=[user("hi")])
        assert len((await world.trajectory()).turns) == 1
