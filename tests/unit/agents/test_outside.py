"""Addresses that users name: where the server does not go for them, and what it does not read."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.unit.agents.test_probing import Log
from turnwise import errors
from turnwise.agents import AgentCalls
from turnwise.agents.outside import MAX_ANSWER_BYTES
from turnwise.domain.job import AgentKind, AgentSpec


@pytest.fixture
async def calls() -> AsyncIterator[AgentCalls]:
    made = AgentCalls()
    yield made
    await made.close()


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "[::ffff:169.254.169.254]", "[fe80::1]", "[fd00:ec2::254]"],
)
@pytest.mark.parametrize("kind", [AgentKind.HTTP, AgentKind.AGENTCORE, AgentKind.LAMBDA])
async def test_no_agent_is_where_machines_ask_for_their_own_credentials(
    calls: AgentCalls, host: str, kind: AgentKind
) -> None:
    spec = AgentSpec(kind=kind, url=f"http://{host}/latest/meta-data")
    with pytest.raises(errors.Unavailable, match="does not call for anybody"):
        await calls.invoke(spec, b"{}", Log(), session="s", timeout_s=2)


async def test_a_name_that_leads_there_is_refused_too(
    calls: AgentCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lead_there(*_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", lead_there)
    spec = AgentSpec(kind=AgentKind.HTTP, url="http://agent.example")
    with pytest.raises(errors.Unavailable, match="does not call for anybody"):
        await calls.invoke(spec, b"{}", Log(), session="s", timeout_s=2)
    found = await calls.probe(spec, Log(), endpoint="http://here/r/x.y", job_arn="a:b:c:d:e")
    assert not found.is_reached


async def test_an_agent_that_redirects_leads_the_server_nowhere(calls: AgentCalls) -> None:
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.path)
        raise web.HTTPTemporaryRedirect("/secrets")

    app = web.Application()
    app.add_routes([web.route("*", "/{any:.*}", answer)])
    async with TestServer(app) as server:
        spec = AgentSpec(kind=AgentKind.HTTP, url=str(server.make_url("/")).rstrip("/"))
        with pytest.raises(errors.Unavailable, match="answered 307, a redirect to /secrets"):
            await calls.invoke(spec, b"{}", Log(), session="s")
    assert seen == ["/rollout"]


async def test_an_answer_that_does_not_end_is_not_read_to_its_end(calls: AgentCalls) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse()
        await reply.prepare(request)
        for _ in range(2 * MAX_ANSWER_BYTES // 65536):
            await reply.write(b"x" * 65536)
        return reply

    app = web.Application()
    app.add_routes([web.route("*", "/{any:.*}", answer)])
    async with TestServer(app) as server:
        spec = AgentSpec(kind=AgentKind.HTTP, url=str(server.make_url("/")).rstrip("/"))
        with pytest.raises(errors.Unavailable, match="the answer is larger than"):
            await calls.invoke(spec, b"{}", Log(), session="s")
