from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from tests.unit.agents.door import Door
from turnwise import errors
from turnwise.agents import HttpAgent, open_runner
from turnwise.agents.contracts import payload
from turnwise.domain.job import AgentKind, AgentSpec
from turnwise.domain.rollout import SamplingParams
from turnwise.ports import AgentOutcome, AgentRequest

Handler = Callable[[web.Request], Awaitable[web.Response]]


def request(rollout_id: str = "rollout_a", **changes: Any) -> AgentRequest:
    fields: dict[str, Any] = {
        "rollout_id": rollout_id,
        "job_id": "job_walk",
        "job_arn": "arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/walk",
        "endpoint": f"http://127.0.0.1:1/r/{rollout_id}/secret",
        "prompt": "Inspect AC01",
        "fields": {"prompt": "Inspect AC01", "aircraft": "AC01"},
        "sampling": SamplingParams(temperature=0.5, top_p=0.9, max_tokens=128),
        "timeout_s": 5.0,
    }
    return AgentRequest(**(fields | changes))


@asynccontextmanager
async def agent(rollout: Handler, health: int = 200) -> AsyncIterator[HttpAgent]:
    """An HttpAgent and the server that it reaches."""

    async def healthy(_: web.Request) -> web.Response:
        return web.json_response({"status": "healthy"}, status=health)

    app = web.Application()
    app.add_routes([web.post("/rollout", rollout), web.get("/health", healthy)])
    server = TestServer(app)
    await server.start_server()
    runner = HttpAgent(AgentSpec(url=str(server.make_url("/"))))
    try:
        yield runner
    finally:
        await runner.close()
        await server.close()


async def outcome(runner: HttpAgent, sent: AgentRequest) -> AgentOutcome:
    [only] = [outcome async for outcome in runner.run([sent])]
    return only


async def answer(status: int, text: str, **changes: Any) -> AgentOutcome:
    """What an agent's answer is read as."""

    async def rollout(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text)

    async with agent(rollout) as runner:
        return await outcome(runner, request(**changes))


def test_the_payload_speaks_both_spellings() -> None:
    arn = "arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/walk"
    assert payload(request()) == {
        "prompt": "Inspect AC01",
        "instance": {"prompt": "Inspect AC01", "aircraft": "AC01"},
        "metadata": {
            "jobArn": arn,
            "job_arn": arn,
            "rolloutId": "rollout_a",
            "rollout_id": "rollout_a",
            "trajectoryId": "rollout_a",
            "trajectory_id": "rollout_a",
            "endpoint": "http://127.0.0.1:1/r/rollout_a/secret",
            "region": "us-west-2",
        },
        "inferenceParams": {"temperature": 0.5, "topP": 0.9, "maxTokens": 128},
        "inference_params": {"temperature": 0.5, "top_p": 0.9, "max_tokens": 128},
    }


async def test_many_rollouts_run_at_once_and_each_gets_its_outcome() -> None:
    waiting: list[str] = []
    everyone = asyncio.Event()

    async def rollout(received: web.Request) -> web.Response:
        waiting.append((await received.json())["metadata"]["rollout_id"])
        if len(waiting) == 3:
            everyone.set()
        await everyone.wait()
        return web.json_response({"metrics": {"steps": len(waiting)}})

    async with agent(rollout) as runner:
        sent = [request(name) for name in ("a", "b", "c")]
        outcomes = [outcome async for outcome in runner.run(sent)]

    assert sorted(outcome.rollout_id for outcome in outcomes) == ["a", "b", "c"]
    assert [outcome.metrics for outcome in outcomes] == [{"steps": 3.0}] * 3


async def test_only_finite_numbers_of_the_metrics_are_kept() -> None:
    text = '{"metrics": {"ok": 1, "half": 0.5, "flag": true, "word": "x", "bad": NaN}}'
    assert (await answer(200, text)).metrics == {"ok": 1.0, "half": 0.5, "flag": 1.0}


async def test_metrics_that_cannot_be_stored_end_no_job() -> None:
    huge = "1" + "0" * 400
    text = f'{{"metrics": {{"ok": 1, "huge": {huge}, "half\\ud800": 2}}}}'
    assert (await answer(200, text)).metrics == {"ok": 1.0, "half?": 2.0}


@pytest.mark.parametrize(
    "text", ["", "accepted", "null", "[]", '{"status": "accepted"}', "[" * 100_000]
)
async def test_any_other_answer_is_an_acceptance(text: str) -> None:
    assert await answer(202, text) == AgentOutcome(rollout_id="rollout_a")


@pytest.mark.parametrize(
    ("status", "text", "code", "said", "is_retryable"),
    [
        (500, "Traceback:\n  KeyError: 'x'", "http_error", "500: Traceback: KeyError: 'x'", True),
        (429, "slow down", "http_error", "429: slow down", True),
        (404, "no such route", "http_error", "404: no such route", False),
        (400, "x" * 500, "http_error", f"400: {'x' * 197}...", False),
        (
            200,
            '{"errorType": "InternalServerError", "errorMessage": "boom"}',
            "agent_error",
            "InternalServerError: boom",
            True,
        ),
        (200, '{"errorType": "ValidationError"}', "agent_error", "ValidationError:", False),
        (200, '{"errorType": ["a", "\\ud800"]}', "agent_error", "['a', '\\ud800']:", True),
        (200, '{"errorType": "\\ud800"}', "agent_error", "?:", True),
    ],
)
async def test_a_failing_agent_is_a_fault_that_says_what_it_answered(
    status: int, text: str, code: str, said: str, is_retryable: bool
) -> None:
    fault = (await answer(status, text)).fault
    assert fault is not None
    assert (fault.blame, fault.code, fault.retryable) == ("agent", code, is_retryable)
    assert fault.message.endswith(said)


async def test_an_agent_that_does_not_answer_in_time_is_a_deadline() -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with agent(hang) as runner:
        fault = (await outcome(runner, request(timeout_s=0.05))).fault

    assert fault is not None
    assert (fault.code, fault.retryable) == ("deadline", True)
    assert fault.message.endswith("/rollout did not answer in 0.05 s")


async def test_closing_the_outcomes_cancels_what_runs() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with agent(hang) as runner:
        running = asyncio.create_task(outcome(runner, request()))
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert asyncio.all_tasks() >= {asyncio.current_task()}


async def test_nobody_listening_is_unreachable() -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    runner = HttpAgent(AgentSpec(url=url))
    fault = (await outcome(runner, request())).fault
    with pytest.raises(errors.Unavailable, match=r"start it, or correct agent\.url") as raised:
        await runner.check()
    await runner.close()

    assert fault is not None
    assert (fault.code, fault.retryable) == ("unreachable", True)
    assert f"POST {url}/rollout" in fault.message
    assert f"GET {url}/health" in str(raised.value)


async def test_an_unhealthy_agent_says_its_status() -> None:
    async def rollout(_: web.Request) -> web.Response:
        return web.Response()

    async with agent(rollout) as runner:
        await runner.check()
    async with agent(rollout, health=503) as runner:
        with pytest.raises(errors.Unavailable, match="answered 503; it must answer 200"):
            await runner.check()


async def test_an_address_that_is_not_http_is_refused() -> None:
    with pytest.raises(errors.InvalidInput) as raised:
        open_runner(AgentSpec(kind=AgentKind.HTTP, url="localhost:8080"), Door())
    assert str(raised.value) == (
        "agent.url: 'localhost:8080' is no HTTP address; use http://host:port"
    )
