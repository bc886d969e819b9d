from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from tests.unit.agents.kit import Log
from turnwise import errors
from turnwise.agents import AgentCalls
from turnwise.domain.agent import AgentLogKind
from turnwise.domain.job import AgentKind, AgentSpec

Handler = Callable[[web.Request], Awaitable[web.Response]]


@asynccontextmanager
async def calling(handler: Handler) -> AsyncIterator[tuple[AgentCalls, AgentSpec]]:
    app = web.Application()
    app.add_routes([web.route("*", "/{any:.*}", handler)])
    server = TestServer(app)
    await server.start_server()
    calls = AgentCalls()
    try:
        yield calls, AgentSpec(kind=AgentKind.AGENTCORE, url=str(server.make_url("/")))
    finally:
        await calls.close()
        await server.close()


async def hang(_: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def test_stopping_a_session_ends_its_calls_and_no_other() -> None:
    log = Log()
    async with calling(hang) as (calls, spec):
        ours = asyncio.create_task(calls.invoke(spec, b"{}", log, session="ours"))
        other = asyncio.create_task(calls.invoke(spec, b"{}", log, session="other"))
        while len(log.entries) < 2:
            await asyncio.sleep(0)
        calls.stop(spec, "ours")
        with pytest.raises(errors.Conflict, match="session ours was stopped"):
            await ours
        assert not other.done()
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other


async def test_a_call_nobody_waits_for_is_in_the_log_and_ends_with_the_server() -> None:
    log = Log()

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    async with calling(answer) as (calls, spec):
        calls.invoke_soon(spec, b'{"metadata": {"endpoint": "http://hidden"}}', log, session="s")
        async with asyncio.timeout(30):
            while len(log.entries) < 2:
                await asyncio.sleep(0.01)
    assert log.entries == [
        (AgentLogKind.RECEIVED, '{"metadata": {}}'),
        (AgentLogKind.ANSWERED, '200 {"ok": true}'),
    ]

    async with calling(hang) as (calls, spec):
        calls.invoke_soon(spec, b"not json", log, session="s")
        while log.entries[-1] != (AgentLogKind.RECEIVED, "not json"):
            await asyncio.sleep(0)


async def test_a_call_that_does_not_arrive_is_in_the_log_too() -> None:
    log, calls = Log(), AgentCalls()
    spec = AgentSpec(url=f"http://127.0.0.1:{unused_port()}")
    with pytest.raises(errors.Unavailable):
        await calls.invoke(spec, b"{}", log, session="s")
    calls.invoke_soon(spec, b"{}", log, session="s")
    async with asyncio.timeout(30):
        while len(log.entries) < 4:
            await asyncio.sleep(0.01)
    await calls.close()
    assert [kind for kind, _ in log.entries] == ["received", "failed"] * 2


async def test_a_test_of_an_agent_says_what_it_answered_even_if_that_is_an_error() -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/ping":
            return web.json_response({"status": "Healthy"})
        return web.json_response({"error": "no such rollout"}, status=500)

    async with calling(handler) as (calls, spec):
        found = await calls.probe(spec, Log(), endpoint="http://here/r/x.y", job_arn="a:b:c:d:e")
    assert (found.is_healthy, found.is_reached, found.status) == (True, True, 500)
    assert (found.answer, found.problem) == ('{"error": "no such rollout"}', "")


async def test_a_test_of_an_agent_that_is_reached_but_not_healthy_has_a_problem() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"status": "Starting"})

    async with calling(handler) as (calls, spec):
        found = await calls.probe(spec, Log(), endpoint="http://here/r/x.y", job_arn="a:b:c:d:e")
    assert (found.is_healthy, found.is_reached, found.status) == (False, True, 200)
    assert "it must be Healthy or HealthyBusy" in found.problem
