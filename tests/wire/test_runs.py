"""Model calls of an evaluator's run over HTTP: one address for all of its rollouts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests import builders
from tests.unit.gateway.kit import World, a_world, user
from tests.wire.listening import listening
from tests.wire.served import a_browser, a_serving, data_plane
from turnwise import errors
from turnwise.evaluators.runs import Run, Runs
from turnwise.system import new_id
from turnwise.wire.runs import RunAddress


@contextlib.asynccontextmanager
async def a_run(world: World, count: int = 2) -> AsyncIterator[tuple[Runs, Run, str]]:
    """A run of that many rollouts, and the server's URL."""
    runs, serving = Runs(new_id), a_serving(world)
    names = [f"rollout_{'abc'[n]}" for n in range(count)]
    for slot, name in enumerate(names):
        await world.open(name, slot=slot)
    run = runs.open(builders.ACCOUNT, names)
    plane = data_plane(world, serving, runs=runs)
    try:
        async with listening(plane, http="httptools") as url:
            yield runs, run, url
    finally:
        await serving.close()


async def ask(url: str, path: str, *messages: Any, **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", {})
    body = {"model": "accounts/x/models/y", "messages": list(messages), **fields}
    async with a_browser() as browser:
        return await browser.post(f"{url}{path}", json=body, headers=headers)


async def test_calls_go_to_the_next_free_rollout_whatever_model_they_name() -> None:
    async with a_world("one", "two", opened=False) as world, a_run(world) as (_, run, url):
        for name, text in (("rollout_a", "one"), ("rollout_b", "two")):
            answered = await ask(url, f"{run.path}/v1/chat/completions", user("hi"))
            assert answered.json()["choices"][0]["message"]["content"] == text
            kept = await world.trajectory(name)
            assert kept.nodes[1].messages[0]["content"] == text
        refused = await ask(url, f"{run.path}/chat/completions", user("hi"))
        assert refused.status_code in (400, 409)
        assert "this run has 2 rollouts" in refused.json()["error"]["message"]


async def test_a_streamed_reply_is_joined_as_any_other() -> None:
    async with a_world("one", opened=False) as world, a_run(world, 1) as (_, run, url):
        answered = await ask(url, f"{run.path}/v1/chat/completions", user("hi"), stream=True)
        assert answered.text.endswith("data: [DONE]\n\n")
        (turn,) = (await world.trajectory("rollout_a")).turns
        assert run.joining._turns == {turn.turn_id: "rollout_a"}


async def test_a_request_that_is_refused_leaves_its_rollout_free() -> None:
    async with a_world("one", opened=False) as world, a_run(world, 1) as (_, run, url):
        path = f"{run.path}/v1/chat/completions"
        assert (await ask(url, path, user("hi"), temperature=9)).status_code == 400
        long = await ask(url, path, user("x" * 5000))
        assert "do not fit" in long.json()["error"]["message"]
        assert (await ask(url, path, user("hi"))).status_code == 200


async def test_a_librarys_retry_gets_the_turn_that_it_did_not_wait_for() -> None:
    async with a_world("one", opened=False) as world, a_run(world) as (_, run, url):
        path = f"{run.path}/v1/chat/completions"
        world.sampler.gate.clear()
        async with a_browser() as browser:
            body = {"model": "default", "messages": [user("hi")]}
            with contextlib.suppress(httpx.TimeoutException):
                await browser.post(f"{url}{path}", json=body, timeout=0.3)
        world.sampler.gate.set()
        again = {"x-stainless-retry-count": "1"}
        fields = {"model": "default", "messages": [user("hi")]}
        async with a_browser() as browser:
            answered = await browser.post(f"{url}{path}", json=fields, headers=again)
        assert answered.status_code == 200
        assert len((await world.trajectory("rollout_a")).turns) == 1
        assert (await world.trajectory("rollout_b")).turns == ()


async def test_another_secret_and_a_run_that_has_ended_are_refused() -> None:
    async with a_world("one", opened=False) as world, a_run(world, 1) as (runs, run, url):
        wrong = await ask(url, f"/e/{run.run_id}.wrong/v1/chat/completions", user("hi"))
        assert wrong.status_code == 401
        runs.close(run)
        late = await ask(url, f"{run.path}/v1/chat/completions", user("hi"))
        assert late.status_code == 401
        assert "or the run has ended" in late.json()["error"]["message"]
        assert (await world.trajectory("rollout_a")).turns == ()


@pytest.mark.parametrize(
    ("path", "their_id"),
    [
        ("/chat/completions", ""),
        ("/v1/chat/completions", ""),
        ("/rollout_id/r/invocation_id/i/experiment_id/e/run_id/n/row_id/w/chat/completions", "r"),
        ("/v1/rollout_id/r/v1/chat/completions", "r"),
        ("/litellm-gateway/rollout_id/r/row_id/w/chat/completions", "r"),
        ("/litellm-gateway/v1/status", ""),
    ],
)
def test_the_paths_of_a_run(path: str, their_id: str) -> None:
    address = RunAddress.of(f"/e/run_a.xyz{path}")
    assert (address.run_id, address.secret, address.their_id) == ("run_a", "xyz", their_id)


@pytest.mark.parametrize(
    "path", ["", "/", "/v1/models", "/rollout_id", "/rollout_id//chat", "/x/y"]
)
def test_other_paths_are_no_routes(path: str) -> None:
    with pytest.raises(errors.NotFound, match="a run asks for /v1/chat/completions"):
        RunAddress.of(f"/e/run_a.xyz{path}")
