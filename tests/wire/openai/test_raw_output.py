"""`raw_output: true`: the tokens of a turn beside what was read of them."""

from __future__ import annotations

import json

import pytest

from tests.unit.gateway.kit import a_world, user
from turnwise import errors
from turnwise.wire.openai.codec import decode_chat, reply_body


async def test_a_reply_holds_its_tokens_and_its_turn_where_that_is_asked_for() -> None:
    async with a_world("hello") as world:
        body = json.dumps({"model": "default", "messages": [user("hi")], "raw_output": True})
        request = decode_chat(body.encode())
        reply = await world.gateway.chat(world.principal, "rol_a", request, body=body.encode())
        raw = reply_body(reply)["choices"][0]["raw_output"]
        kept = await world.trajectory()
        prompt, completion = kept.nodes
        assert raw["turn_id"] == kept.turns[0].turn_id
        assert list(raw["prompt_token_ids"]) == prompt.tokens.tolist()
        assert list(raw["completion_token_ids"]) == completion.tokens.tolist()
        assert raw["prompt_fragments"] == ["<user>hi¶<assistant>"]
        assert raw["completion"] == "hello¶"


async def test_a_reply_holds_no_tokens_otherwise() -> None:
    async with a_world("hello") as world:
        body = json.dumps({"model": "default", "messages": [user("hi")]}).encode()
        reply = await world.gateway.chat(world.principal, "rol_a", decode_chat(body), body=body)
        assert "raw_output" not in reply_body(reply)["choices"][0]


def test_another_value_is_refused_by_name() -> None:
    body = {"model": "default", "messages": [user("hi")], "raw_output": "yes"}
    with pytest.raises(errors.InvalidInput, match="raw_output: 'yes' must be true or false"):
        decode_chat(json.dumps(body).encode())
