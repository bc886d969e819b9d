"""The native API's routes of registered agents and their logs."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request

from turnwise import errors
from turnwise.agents import AgentCalls
from turnwise.control.agent_logs import AgentLogs
from turnwise.control.agents import CONTRACTS, Agent, Agents
from turnwise.domain.access import Action, Principal
from turnwise.domain.agent import AgentLogEntry
from turnwise.domain.job import AgentKind
from turnwise.wire.native.codec import MAX_PLACE

Json = dict[str, Any]

#: Entries of one answer, and lines of one report of what an agent has printed.
PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRooms:
    """What the routes call. `url` is this server's, as agents reach it."""

    agents: Agents
    logs: AgentLogs
    calls: AgentCalls
    url: str


def agent_routes(
    rooms: AgentRooms, principal: Callable[[Request], Awaitable[Principal]]
) -> APIRouter:
    """Routes below /api/v1/agents."""
    routes = APIRouter(prefix="/api/v1/agents")
    caller = Depends(principal)
    agents, logs = rooms.agents, rooms.logs

    @routes.post("", status_code=201)
    async def register(given: Annotated[Any, Body()], who: Principal = caller) -> Json:
        name, url, contract = _registration(given)
        return agent_body(await agents.register(who, name, url, contract))

    @routes.get("")
    async def list_agents(who: Principal = caller) -> Json:
        return {"agents": [agent_body(agent) for agent in await agents.list(who)]}

    @routes.get("/{name}")
    async def show(name: str, who: Principal = caller) -> Json:
        return agent_body(await agents.get(who, name))

    @routes.delete("/{name}")
    async def remove(name: str, who: Principal = caller) -> Json:
        removed = await agents.remove(who, name)
        await logs.forget(who.account_id, name)
        return agent_body(removed)

    @routes.post("/{name}/test")
    async def test(name: str, who: Principal = caller) -> Json:
        who.require_all(Action.MANAGE, "agents")
        agent = await agents.get(who, name)
        found = await rooms.calls.probe(
            agent.spec,
            logs.of(who.account_id, name),
            endpoint=f"{rooms.url}/r/rollout_test.nosecret",
            job_arn=await agents.job_arn(who, "test"),
        )
        return {"name": name, **dataclasses.asdict(found)}

    @routes.get("/{name}/logs")
    async def read_log(
        name: str,
        after: Annotated[int, Query(ge=0, le=MAX_PLACE)] = 0,
        limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
        who: Principal = caller,
    ) -> Json:
        who.require_all(Action.READ, "logs of agents")
        agent = await agents.get(who, name)
        found = await logs.entries(who.account_id, agent.name, after=after, limit=limit)
        return {"entries": [entry_body(entry) for entry in found]}

    @routes.post("/{name}/logs")
    async def print_lines(
        name: str,
        lines: Annotated[list[str], Body(embed=True, max_length=PAGE)],
        who: Principal = caller,
    ) -> Json:
        who.require_all(Action.MANAGE, "agents")
        agent = await agents.get(who, name)
        await logs.print_lines(who.account_id, agent.name, lines)
        return {}

    return routes


def _registration(given: Any) -> tuple[str, str, AgentKind]:
    if not isinstance(given, dict):
        raise errors.InvalidInput("body", given, "is not an agent", remedy="send name, url and as")
    for field in ("name", "url"):
        if not isinstance(given.get(field), str):
            raise errors.InvalidInput(field, given.get(field), "is not text")
    contract = given.get("as", AgentKind.HTTP.value)
    if contract not in [each.value for each in CONTRACTS]:
        raise errors.InvalidInput(
            "as", contract, "is not a choice", remedy="allowed: " + ", ".join(CONTRACTS)
        )
    return given["name"], given["url"], AgentKind(contract)


def agent_body(agent: Agent) -> Json:
    """An agent as the API shows it."""
    return {
        "name": agent.name,
        "as": agent.contract.value,
        "url": agent.url,
        "arn": agent.arn,
        "runtime_id": agent.runtime_id,
        "log_group": agent.log_group,
        "created_at": agent.created_at,
        "updated_at": agent.updated_at,
    }


def entry_body(entry: AgentLogEntry) -> Json:
    """An entry of a log as the API shows it."""
    return {
        "seq": entry.seq,
        "at": entry.at,
        "kind": entry.kind.value,
        "rollout_id": entry.rollout_id,
        "job_id": entry.job_id,
        "text": entry.text,
    }
