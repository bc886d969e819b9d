from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from tests.unit.agents.kit import Log
from tests.unit.agents.test_http import outcome, request
from turnwise import errors
from turnwise.agents import HttpAgent
from turnwise.agents.contracts import EMULATOR, SESSION
from turnwise.domain.agent import AgentLogKind
from turnwise.domain.job import AgentKind, AgentSpec
from turnwise.domain.rollout import Fault

Handler = Callable[[web.Request], Awaitable[web.Response]]


@asynccontextmanager
async def agent(
    kind: AgentKind, handler: Handler, *, path: str = "", log: Log | None = None
) -> AsyncIterator[HttpAgent]:
    """A runner, and a server that answers any path by `handler`."""
    app = web.Application()
    app.add_routes([web.route("*", "/{any:.*}", handler)])
    server = TestServer(app)
    await server.start_server()
    runner = HttpAgent(AgentSpec(kind=kind, url=str(server.make_url("/")).rstrip("/") + path), log)
    try:
        yield runner
    finally:
        await runner.close()
        await server.close()


async def test_an_agentcore_agent_is_invoked_with_a_session_of_its_own() -> None:
    seen: list[tuple[str, str]] = []

    async def handler(received: web.Request) -> web.Response:
        if received.path == "/ping":
            return web.json_response({"status": "HealthyBusy", "time_of_last_update": 1})
        seen.append((received.path, received.headers[SESSION]))
        return web.json_response({"metrics": {"steps": 2}})

    async with agent(AgentKind.AGENTCORE, handler) as runner:
        await runner.check()
        answered = await outcome(runner, request())

    assert seen == [("/invocations", "rollout_a".ljust(33, "-"))]
    assert answered.metrics == {"steps": 2.0}


@pytest.mark.parametrize("body", ['{"status": "Unhealthy"}', "{}", "up"])
async def test_an_agentcore_agent_that_does_not_say_healthy_is_not(body: str) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=body)

    async with agent(AgentKind.AGENTCORE, handler) as runner:
        with pytest.raises(errors.Unavailable, match="must be Healthy or HealthyBusy"):
            await runner.check()


@pytest.mark.parametrize(("path", "called"), [("", EMULATOR), ("/handler", "/handler")])
async def test_a_lambda_is_invoked_as_the_emulator_or_at_its_own_path(
    path: str, called: str
) -> None:
    seen: list[str] = []

    async def handler(received: web.Request) -> web.Response:
        seen.append(received.path)
        return web.Response(text="null")

    async with agent(AgentKind.LAMBDA, handler, path=path) as runner:
        await runner.check()
        assert (await outcome(runner, request())).fault is None
    assert seen == [called]  # its health is asked without a call, which would be an invocation


async def test_a_lambda_that_takes_no_connection_is_not_healthy() -> None:
    spec = AgentSpec(kind=AgentKind.LAMBDA, url=f"http://127.0.0.1:{unused_port()}", name="fn")
    runner = HttpAgent(spec)
    with pytest.raises(errors.Unavailable, match="register agent fn with the URL"):
        await runner.check()
    await runner.close()


async def lambda_fault(answer: web.Response) -> Fault:
    async def handler(_: web.Request) -> web.Response:
        return answer

    async with agent(AgentKind.LAMBDA, handler) as runner:
        fault = (await outcome(runner, request())).fault
    assert fault is not None
    return fault


async def test_a_function_error_is_a_fault_by_its_body_or_its_header() -> None:
    body = {"errorType": "InternalServerError", "errorMessage": "agent down"}
    fault = await lambda_fault(web.json_response(body))
    assert (fault.code, fault.message) == ("agent_error", "InternalServerError: agent down")
    assert fault.retryable

    headers = {"X-Amz-Function-Error": "Unhandled"}
    fault = await lambda_fault(web.json_response("boom", headers=headers))
    assert fault.message.startswith("Unhandled error: POST http://")
    assert fault.message.endswith('answered 200: "boom"')


@pytest.mark.parametrize(
    "answer",
    [
        web.json_response({"errorType": "AccessDenied", "errorMessage": "no"}),
        web.Response(status=403, text="no"),
        web.Response(status=401, text="no"),
    ],
)
async def test_an_agent_that_denies_access_is_a_fault_that_ends_the_job(
    answer: web.Response,
) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=answer.status, body=answer.body)

    for kind in (AgentKind.LAMBDA, AgentKind.AGENTCORE, AgentKind.HTTP):
        async with agent(kind, handler) as runner:
            fault = (await outcome(runner, request())).fault
        assert fault is not None
        assert fault.is_fatal
        assert not fault.retryable
        assert fault.message.startswith("the agent refuses to be called: ")


async def test_what_passes_to_and_from_an_agent_is_noted_without_its_endpoint() -> None:
    async def handler(_: web.Request) -> web.Response:
        tail = base64.b64encode(b"hello\nworld").decode()
        return web.json_response({"errorType": "Oops"}, headers={"X-Amz-Log-Result": tail})

    log = Log()
    async with agent(AgentKind.LAMBDA, handler, log=log) as runner:
        await outcome(runner, request(endpoint="http://127.0.0.1:1/r/rollout_a.hidden"))

    (received, payload), *rest = log.entries
    assert received is AgentLogKind.RECEIVED
    assert json.loads(payload)["metadata"]["rolloutId"] == "rollout_a"
    assert "hidden" not in payload
    assert log.about == {("rollout_a", "job_walk")}
    assert rest == [
        (AgentLogKind.PRINTED, "hello"),
        (AgentLogKind.PRINTED, "world"),
        (AgentLogKind.ANSWERED, '200 {"errorType": "Oops"}'),
        (AgentLogKind.FAILED, "Oops:"),
    ]
