from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from tests import builders
from tests.unit.gateway.kit import KEY, SECRET, World, a_world, assistant, text_of, user
from tests.wire.served import ARN, HEADERS, a_browser, a_client, served
from turnwise import errors
from turnwise.domain.job import RolloutSpec
from turnwise.domain.rollout import Delivery, ForkCause

TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
]
CALLING = '[why]look@{"name": "find", "arguments": {"id": 1}}'


@pytest.mark.parametrize("by_headers", [False, True])
async def test_the_openai_client_gets_a_reply(by_headers: bool):
    async with (
        a_world("hello") as world,
        served(world) as url,
        a_client(url, by_headers=by_headers) as client,
    ):
        reply = await client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": "hi"}]
        )
        (turn,) = (await world.trajectory()).turns
    assert reply.id == f"chatcmpl-{turn.turn_id}"
    assert reply.choices[0].message.content == "hello"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (20, 6)


async def test_a_rollouts_secret_is_a_bearer_key_too():
    async with a_world() as world, served(world) as url:
        async with a_client(url, by_headers=True, api_key=SECRET) as client:
            await client.chat.completions.create(model="walk", messages=[user("hi")])
        assert len((await world.trajectory()).turns) == 1


async def test_a_tool_loop_extends_its_own_tokens():
    async with (
        a_world(CALLING, "done") as world,
        served(world) as url,
        a_client(url) as client,
    ):
        messages: list[Any] = [user("hi")]
        first = await client.chat.completions.create(
            model="default", messages=messages, tools=TOOLS, tool_choice="auto"
        )
        message = first.choices[0].message
        (called,) = message.tool_calls or []
        messages += [
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": called.id, "content": "found"},
        ]
        second = await client.chat.completions.create(
            model="default", messages=messages, tools=TOOLS
        )
        trajectory = await world.trajectory()
    assert first.choices[0].finish_reason == "tool_calls"
    assert json.loads(called.function.arguments) == {"id": 1}  # type: ignore[union-attr]
    assert second.choices[0].message.content == "done"
    assert [node.parent for node in trajectory.nodes] == [None, 0, 1, 2]
    assert CALLING in text_of(world.script.asked[1].prompt)


async def test_a_stream_adds_up_to_the_unstreamed_reply():
    ask: dict[str, Any] = {"model": "default", "messages": [user("hi")], "tools": TOOLS}
    async with (
        a_world(CALLING) as world,
        served(world) as url,
        a_client(url) as client,
    ):
        whole = await client.chat.completions.create(**ask)
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                **ask, stream=True, stream_options={"include_usage": True}
            )
        ]
        turns = (await world.trajectory()).turns
    *said, usage = chunks
    choices = [chunk.choices[0] for chunk in said]
    assert [c.finish_reason for c in choices] == [None] * (len(choices) - 1) + ["tool_calls"]
    assert "".join(c.delta.content or "" for c in choices) == "look"
    reasoning = [(c.delta.model_extra or {}).get("reasoning_content", "") for c in choices]
    assert "".join(reasoning) == "why"
    (called,) = [call for c in choices for call in c.delta.tool_calls or []]
    (expected,) = whole.choices[0].message.tool_calls or []
    assert called.model_dump(exclude={"index"}) == expected.model_dump()
    assert (usage.choices, usage.usage) == ([], whole.usage)
    assert {chunk.id for chunk in chunks} == {f"chatcmpl-{turns[1].turn_id}"}
    assert choices[0].delta.role == "assistant"


async def test_the_stream_on_the_wire_ends_with_done():
    body = {"model": "default", "messages": [user("hi")], "stream": True}
    async with a_world("yo") as world, served(world) as url, a_browser() as http:
        answer = await http.post(f"{url}/r/rol_a.{SECRET}/v1/chat/completions", json=body)
    events = answer.text.split("\n\n")
    assert answer.headers["content-type"] == "text/event-stream"
    assert events[-2:] == ["data: [DONE]", ""]
    assert [json.loads(e[6:])["choices"][0]["delta"] for e in events[:-2]] == [
        {"role": "assistant", "content": "y"},
        {"content": "o"},
        {},
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_come_where_asked_for(stream: bool):
    async with a_world("yo") as world, served(world) as url, a_client(url) as client:
        answer = await client.chat.completions.create(
            model="default", messages=[user("hi")], logprobs=True, stream=stream
        )
        if stream:
            *_, last = [chunk async for chunk in answer]
        else:
            last = answer
    content = last.choices[0].logprobs.content
    assert [(c.token, round(c.logprob, 3)) for c in content] == [
        ("y", -0.693),
        ("o", -0.693),
        ("¶", -0.693),
    ]


async def test_what_frameworks_send_is_accepted():
    extras: dict[str, Any] = {
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "user": "me",
        "seed": 3,
        "metadata": {"a": "b"},
        "store": False,
        "n": 1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "response_format": {"type": "text"},
        "logit_bias": {},
        "stop": None,
        "max_completion_tokens": 9,
        "temperature": 0,
        "extra_body": {"top_k": 5},
    }
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}],
    }
    async with a_world() as world, served(world) as url, a_client(url) as client:
        await client.chat.completions.create(model="default", messages=[parts], **extras)
        (asked,) = world.script.asked
    assert text_of(asked.prompt) == "<user>hi¶<assistant>"
    assert (asked.sampling.temperature, asked.sampling.top_k, asked.sampling.max_tokens) == (
        0,
        5,
        9,
    )


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
REFUSED = [
    ({"n": 2}, "n", "n: 2 is not supported here; leave it out or send 1"),
    ({"n": True}, "n", "n: True is not supported here; leave it out or send 1"),
    ({"temperature": 3}, "temperature", "temperature: 3 must be from 0 to 2"),
    ({"temperature": "hot"}, "temperature", "temperature: 'hot' must be a number from 0 to 2"),
    ({"top_p": 0}, "top_p", "top_p: 0 must be above 0 and at most 1"),
    ({"top_k": -1}, "top_k", "top_k: -1 must be at least 0"),
    ({"top_k": 2**31}, "top_k", "top_k: 2147483648 must be at most 2147483647"),
    (
        {"temperature": 10**400},
        "temperature",
        f"temperature: 1{'0' * 116}... must be from 0 to 2",
    ),
    ({"max_tokens": 0}, "max_tokens", "max_tokens: 0 must be at least 1"),
    ({"max_tokens": 1.5}, "max_tokens", "max_tokens: 1.5 must be a whole number"),
    ({"stop": ["a", ""]}, "stop", "stop: ['a', ''] must be text or a list of texts, none empty"),
    ({"stop": list("abcde")}, "stop", "stop: ['a', 'b', 'c', 'd', 'e'] has more than 4 texts"),
    ({"stream": "yes"}, "stream", "stream: 'yes' must be true or false"),
    (
        {"presence_penalty": 0.5},
        "presence_penalty",
        "presence_penalty: 0.5 is not supported here; leave it out or send 0",
    ),
    (
        {"logit_bias": {"1": 2}},
        "logit_bias",
        "logit_bias: {'1': 2} is not supported here; leave it out or send {}",
    ),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format",
        "response_format: {'type': 'json_schema'} is not supported here; "
        'leave it out or send {"type": "text"}',
    ),
    (
        {"tool_choice": "required"},
        "tool_choice",
        'tool_choice: \'required\' is not supported here; leave it out or send "auto" or "none"',
    ),
    (
        {"max_token": 5},
        "max_token",
        "max_token: 5 is not a known parameter; did you mean 'max_tokens'?",
    ),
    ({"zzz": 5}, "zzz", "zzz: 5 is not a known parameter; leave it out"),
    ({"messages": []}, "messages", "messages: [] must be a list of at least one message"),
    (
        {"messages": [{"role": "robot", "content": ""}]},
        "messages[0].role",
        "messages[0].role: 'robot' must be one of system, developer, user, assistant, tool",
    ),
    (
        {"messages": [IMAGE]},
        "messages[0].content[0].type",
        "messages[0].content[0].type: 'image_url' is not content that this model can read; "
        "send text",
    ),
    (
        {"messages": [{"role": "user"}]},
        "messages[0].content",
        "messages[0].content: None is required for this role",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
        "messages[0].tool_calls[0].function.arguments: None must be text",
    ),
    (
        {"tools": [{"type": "web_search"}]},
        "tools[0]",
        "tools[0]: {'type': 'web_search'} must be a tool of type 'function'",
    ),
    ({"model": None}, "model", "model: None must be a name; send 'default'"),
]


async def test_bad_values_are_refused_with_field_value_and_remedy():
    async with a_world() as world, served(world) as url, a_browser() as http:
        for fields, param, message in REFUSED:
            body = {"model": "default", "messages": [user("hi")]} | fields
            answer = await http.post(f"{url}/r/rol_a.{SECRET}/v1/chat/completions", json=body)
            error = {
                "message": message,
                "type": "invalid_request_error",
                "code": "invalid_value",
                "param": param,
            }
            assert (answer.status_code, answer.json()) == (
                400,
                {"message": message, "error": error},
            )
        assert (await world.trajectory()).turns == ()


async def test_a_retry_count_that_is_no_count_is_refused():
    body = {"model": "default", "messages": [user("hi")]}
    async with a_world() as world, served(world) as url, a_browser() as http:
        for count in ("-1", "9" * 5000):
            answer = await http.post(
                f"{url}/r/rol_a.{SECRET}/v1/chat/completions",
                json=body,
                headers={"x-stainless-retry-count": count},
            )
            assert answer.status_code == 400
            assert "must be a small whole number" in answer.json()["message"]


async def test_a_body_that_is_no_json_is_refused():
    async with a_world() as world, served(world) as url, a_browser() as http:
        for body, said in (
            (b"{", "is not JSON"),
            (b"[]", "must be a JSON object"),
            (b'{"metadata":' + b"[" * 100_000, "is not JSON"),
        ):
            answer = await http.post(f"{url}/r/rol_a.{SECRET}/v1/chat/completions", content=body)
            assert answer.status_code == 400
            assert said in answer.json()["message"]


async def test_an_over_long_prompt_is_a_context_length_error():
    async with a_world(max_length=30) as world, served(world) as url, a_client(url) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="default", messages=[user("x" * 30)])
    assert caught.value.code == "context_length_exceeded"
    assert "48 tokens do not fit this model's context of 30 tokens" in caught.value.message


async def test_an_unknown_model_is_named_with_the_known_ones():
    async with a_world() as world, served(world) as url, a_client(url) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="gpt-9", messages=[user("hi")])
    assert caught.value.code == "model_not_found"
    assert "model 'gpt-9' does not exist; known models: default, walk, tiny" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
async def test_a_finished_rollout_answers_400_with_the_text_that_agents_look_for(stream: bool):
    async with a_world() as world, served(world) as url, a_client(url, max_retries=2) as client:
        await world.gateway.complete_rollout(world.principal, "rol_a", "ready")
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(
                model="default", messages=[user("hi")], stream=stream
            )
    assert "not in valid status" in str(caught.value)


async def test_a_rollout_that_has_used_its_tokens_is_told_by_a_code_and_not_asked_again():
    limited = builders.spec(rollout=RolloutSpec(rollout_max_tokens=6))
    async with (
        a_world("hello", spec=limited) as world,
        served(world) as url,
        a_client(url, max_retries=2) as client,
    ):
        first = await client.chat.completions.create(model="default", messages=[user("hi")])
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="default", messages=[user("more")])
    assert first.usage is not None
    assert first.usage.completion_tokens == 6
    assert caught.value.code == "rollout_token_budget_exceeded"
    assert "complete it and report its reward" in caught.value.message
    assert len(world.script.asked) == 1


async def test_a_busy_sampler_is_retried_by_the_client_and_sampled_once():
    async with a_world("hello") as world, served(world) as url:
        generate, refusals = world.sampler.generate, [1]

        def busy_once(request: Any) -> Any:
            if refusals:
                refusals.pop()
                raise errors.LimitExceeded("9 requests are waiting already", retry_after_s=0.01)
            return generate(request)

        world.sampler.generate = busy_once  # type: ignore[method-assign]
        async with a_client(url, max_retries=1) as client:
            raw = await client.chat.completions.with_raw_response.create(
                model="default", messages=[user("hi")]
            )
        turns = (await world.trajectory()).turns
    assert raw.retries_taken == 1
    assert raw.parse().choices[0].message.content == "hello"
    assert len(turns) == 1


async def test_waiting_is_told_in_whole_seconds():
    async with a_world() as world, served(world) as url, a_browser() as http:
        world.gateway.detach("job_walk")
        answer = await http.post(
            f"{url}/r/rol_a.{SECRET}/v1/chat/completions",
            json={"model": "default", "messages": [user("hi")]},
        )
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["type"] == "server_error"


async def test_the_clients_own_retry_after_a_timeout_gets_the_same_turn():
    async with a_world("hello", "other") as world, served(world) as url:
        world.sampler.gate.clear()
        async with a_client(url, max_retries=2, timeout=0.3) as client:
            asking = asyncio.create_task(
                client.chat.completions.create(model="default", messages=[user("hi")])
            )
            await asyncio.sleep(0.4)
            world.sampler.gate.set()
            reply = await asking
        trajectory = await world.trajectory()
    assert reply.choices[0].message.content == "hello"
    assert [turn.delivery for turn in trajectory.turns] == [Delivery.DELIVERED]


async def test_a_client_that_closes_its_stream_leaves_an_undelivered_turn():
    async with a_world("hello", grace_s=0.02) as world, served(world) as url:
        world.sampler.hold_at = 3
        world.sampler.gate.clear()
        async with a_client(url) as client:
            stream = await client.chat.completions.create(
                model="default", messages=[user("hi")], stream=True
            )
            async for chunk in stream:
                assert chunk.choices[0].delta.content == "h"
                break
            await stream.close()
        await undelivered(world)
        (turn,) = (await world.trajectory()).turns
    assert turn.delivery is Delivery.UNDELIVERED
    assert 1 <= turn.completion_tokens <= 3
    assert world.sampler.aborted == 1


async def test_a_client_that_drops_its_connection_leaves_an_undelivered_turn():
    body = json.dumps({"model": "default", "messages": [user("hi")]}).encode()
    async with a_world("hello", grace_s=0.02) as world, served(world) as url:
        world.sampler.gate.clear()
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /r/rol_a.{SECRET}/v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(30):
            while not world.script.asked:
                await asyncio.sleep(0.005)
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(30):
            while not world.sampler.aborted:
                await asyncio.sleep(0.005)
        assert (await world.trajectory()).turns == ()  # nothing had been sampled yet


async def undelivered(world: World) -> None:
    async with asyncio.timeout(30):
        while not (await world.trajectory()).turns:
            await asyncio.sleep(0.005)


async def test_a_stream_that_breaks_says_why_in_its_last_event():
    async with a_world("hello") as world, served(world) as url, a_client(url) as client:
        world.sampler.hold_at = 2
        world.sampler.gate.clear()
        stream = await client.chat.completions.create(
            model="default", messages=[user("hi")], stream=True
        )
        await world.sampler.close()
        world.sampler.gate.set()
        with pytest.raises(openai.APIError, match="the sampler ended the call early"):
            async for _ in stream:
                pass


async def test_an_edited_reply_is_on_record_as_a_fork():
    async with a_world("one", "two") as world, served(world) as url, a_client(url) as client:
        await client.chat.completions.create(model="default", messages=[user("hi")])
        await client.chat.completions.create(
            model="default", messages=[user("hi"), assistant("uno"), user("go on")]
        )
        nodes = (await world.trajectory()).nodes
    assert [n.fork_cause for n in nodes] == [None, None, ForkCause.EDITED_ASSISTANT, None]


async def test_a_rollouts_models_are_listed():
    async with a_world() as world, served(world) as url, a_client(url) as client:
        of_rollout = [model.id async for model in client.models.list()]
    assert of_rollout == ["default", "walk", "tiny"]


ADDRESSES: list[tuple[str, dict[str, str], int, str]] = [
    (
        "/v1/chat/completions",
        {"Authorization": f"Bearer {KEY}"},
        404,
        "model 'default' does not exist; GET /v1/models lists them; to ask for the "
        "model of a rollout, send X-Amzn-SageMaker-Job-Arn and X-Amzn-SageMaker-Trajectory-Id, "
        "or use the base URL {server}/r/{rollout id}.{rollout secret}/v1",
    ),
    (
        "/v1/chat/completions",
        {"Authorization": f"Bearer {KEY}", "X-Amzn-SageMaker-Job-Arn": ARN},
        400,
        "X-Amzn-SageMaker-Trajectory-Id: '' names no rollout; "
        "send X-Amzn-SageMaker-Job-Arn and X-Amzn-SageMaker-Trajectory-Id, "
        "or use the base URL {server}/r/{rollout id}.{rollout secret}/v1",
    ),
    (
        "/v1/chat/completions",
        HEADERS,
        401,
        "no key: send 'Authorization: Bearer <key>' with an access key or the rollout's secret",
    ),
    (
        "/v1/chat/completions",
        HEADERS | {"Authorization": "Bearer wrong"},
        401,
        "this key does not exist",
    ),
    (
        "/v1/chat/completions",
        HEADERS | {"X-Amzn-SageMaker-Trajectory-Id": "rol_x", "Authorization": "Bearer wrong"},
        401,
        "this key does not exist",
    ),
    (
        "/v1/chat/completions",
        HEADERS | {"X-Amzn-SageMaker-Trajectory-Id": "rol_x", "Authorization": f"Bearer {KEY}"},
        404,
        "trajectory 'rol_x' does not exist",
    ),
    (
        "/v1/chat/completions",
        HEADERS | {"X-Amzn-SageMaker-Job-Arn": ARN + "2", "Authorization": f"Bearer {KEY}"},
        404,
        "trajectory 'rol_a' does not exist; not in job walk2",
    ),
    (
        "/v1/chat/completions",
        HEADERS
        | {
            "X-Amzn-SageMaker-Job-Arn": ARN.replace("01:job", "02:job"),
            "Authorization": f"Bearer {KEY}",
        },
        403,
        "this key is not of account 000000000002, which the job's ARN names",
    ),
    ("/r/rol_a.wrong/v1/chat/completions", {}, 401, "the secret in the path is not this rollout's"),
    (f"/r/rol_x.{SECRET}/v1/chat/completions", {}, 404, "trajectory 'rol_x' does not exist"),
    (f"/r/rol_a.{SECRET}/v1/embeddings", {}, 404, "route '/v1/embeddings' does not exist"),
]


async def test_a_rollout_is_found_by_its_address_and_its_caller_checked():
    body = {"model": "default", "messages": [user("hi")]}
    async with a_world() as world, served(world) as url, a_browser() as http:
        for path, headers, status, message in ADDRESSES:
            answer = await http.post(url + path, json=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)
        wrong_method = await http.get(f"{url}/v1/chat/completions")
        assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")
        assert (await world.trajectory()).turns == ()
