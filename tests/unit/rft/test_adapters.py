from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from turnwise import rft
from turnwise.rft.adapters.langchain import create_http_clients
from turnwise.rft.adapters.strands import wrap_model

TRAJECTORY = "X-Amzn-SageMaker-Trajectory-Id"


@pytest.fixture(autouse=True)
def _outside_of_a_rollout() -> Iterator[None]:
    yield
    rft.clear_rollout_context()


def metadata(rollout_id: str) -> dict[str, Any]:
    return {"jobArn": "arn:job", "rolloutId": rollout_id, "endpoint": f"http://here/r/{rollout_id}"}


class Model:
    """What the adapter needs of a Strands model; keeps what each call was made with."""

    def __init__(self, client_args: dict[str, Any] | None = None, **config: Any) -> None:
        self.client_args = client_args or {}
        self.config = config
        self.calls: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def update_config(self, **config: Any) -> None:
        self.config |= config

    def stream(self, messages: list[str]) -> list[str]:
        self.calls.append((self.client_args, self.config))
        return messages

    structured_output = stream


def test_each_call_is_made_with_the_headers_and_parameters_of_its_rollout() -> None:
    model = Model({"base_url": "http://shared"}, params={"top_p": 0.5, "seed": 1})
    wrapped = wrap_model(model)
    rft.set_rollout_context(metadata("rollout_a"), {"maxTokens": 7, "temperature": 0.0})

    assert wrapped.stream(["go"]) == ["go"]
    assert wrapped.structured_output(["go"]) == ["go"]

    for client_args, config in model.calls:
        assert client_args == {"base_url": "http://shared"}
        assert config["params"] == {
            "top_p": 0.5,
            "seed": 1,
            "max_tokens": 7,
            "temperature": 0.0,
            "extra_headers": {"X-Amzn-SageMaker-Job-Arn": "arn:job", TRAJECTORY: "rollout_a"},
        }
    assert model.config == {"params": {"top_p": 0.5, "seed": 1}}  # and nothing stays behind


async def test_rollouts_that_share_a_model_keep_their_headers_apart() -> None:
    model = Model()
    wrapped = wrap_model(model)
    both = asyncio.Event()

    async def rollout(rollout_id: str, other: str) -> None:
        rft.set_rollout_context(metadata(rollout_id))
        if other:
            both.set()
        await both.wait()
        await asyncio.sleep(0)
        wrapped.stream([])

    await asyncio.gather(rollout("rollout_a", ""), rollout("rollout_b", "rollout_a"))

    sent = {
        config["params"]["extra_headers"][TRAJECTORY]: client_args["base_url"]
        for client_args, config in model.calls
    }
    assert sent == {
        "rollout_a": "http://here/r/rollout_a/v1",
        "rollout_b": "http://here/r/rollout_b/v1",
    }


def test_outside_of_a_rollout_a_wrapped_model_is_the_model() -> None:
    model = Model(model_id="m")
    wrapped = wrap_model(model)
    wrapped.stream([])
    wrapped.update_config(model_id="other")
    wrapped.label = "walker"
    assert model.calls == [({}, model.config)]
    assert (wrapped.config["model_id"], model.label) == ("other", "walker")  # type: ignore[attr-defined]


async def test_http_clients_add_the_headers_of_the_rollout_that_asks() -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=dict(request.headers))

    seen: list[str] = []
    hooks = {"request": [lambda request: seen.append(str(request.url))]}
    transport = httpx.MockTransport(echo)
    client, _ = create_http_clients(transport=transport, event_hooks=hooks)
    _, async_client = create_http_clients(transport=transport)
    rft.set_rollout_context(metadata("rollout_a"))
    with client:
        assert client.get("http://x/").json()[TRAJECTORY.lower()] == "rollout_a"
    async with async_client:
        assert (await async_client.get("http://x/")).json()[TRAJECTORY.lower()] == "rollout_a"
        rft.clear_rollout_context()
        assert TRAJECTORY.lower() not in (await async_client.get("http://x/")).json()
    assert seen == ["http://x/"]
    assert len(hooks["request"]) == 1  # the caller's own hooks are as they were
