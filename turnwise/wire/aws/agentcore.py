"""Bedrock AgentCore: registered agents of its contract as runtimes.

Control plane and data plane are two models of botocore's under one signing name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from turnwise import errors
from turnwise.agents import AgentCalls
from turnwise.control.agent_logs import AgentLogs
from turnwise.control.agents import HOW_TO_REGISTER, Agent, Agents, require_of_account
from turnwise.domain.access import Action
from turnwise.ports import NewId
from turnwise.wire.aws.service import AwsError, AwsService, Call, Json

#: The name in the scope of signatures, of both planes.
SIGNING_NAME = "bedrock-agentcore"

_VERSION = "1"
_PAGE = 100

#: How AgentCore shows a runtime that fails a call, or cannot be reached.
_RUNTIME_FAILED = 424


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtimes:
    """The operations of both planes."""

    agents: Agents
    logs: AgentLogs
    calls: AgentCalls
    new_id: NewId

    async def list_agent_runtimes(self, call: Call, given: Json) -> Json:
        """Runtimes by age, a page at a time."""
        found = [agent for agent in await self.agents.list(call.principal) if not agent.is_function]
        token = given.get("nextToken", "")
        if token and not re.fullmatch("[0-9]{1,18}", token):
            raise errors.InvalidInput("nextToken", token, "is not one that was given here")
        begin = int(token or 0)
        end = begin + given.get("maxResults", _PAGE)
        page: Json = {"agentRuntimes": [_summary(agent) for agent in found[begin:end]]}
        if end < len(found):
            page["nextToken"] = str(end)
        return page

    async def get_agent_runtime(self, call: Call, given: Json) -> Json:
        """One runtime by its id."""
        agent = await self._found(call, given["agentRuntimeId"])
        if given.get("agentRuntimeVersion", _VERSION) != _VERSION:
            raise _missing(f"agent runtime {agent.runtime_id} has no other version than {_VERSION}")
        more = {
            "createdAt": agent.created_at,
            "roleArn": f"arn:aws:iam::{call.account.number}:role/turnwise-agent",
            "networkConfiguration": {"networkMode": "PUBLIC"},
            "lifecycleConfiguration": {},
            "protocolConfiguration": {"serverProtocol": "HTTP"},
        }
        return _summary(agent) | more

    async def create_agent_runtime(self, call: Call, given: Json) -> Json:
        """Refused: code is run by its owner."""
        raise AwsError(
            "ValidationException",
            "this server runs no containers; start your agent (`BedrockAgentCoreApp().run()`) "
            f"where it can be reached, and {HOW_TO_REGISTER}",
        )

    async def invoke_agent_runtime(self, call: Call, given: Json) -> Json:
        """Send a payload to an agent, and pass on what it answers."""
        require_of_account(call.principal, Action.MANAGE)
        agent = await self._addressed(call, given)
        session = given.get("runtimeSessionId") or self.new_id("session")
        try:
            answer = await self.calls.invoke(
                agent.spec,
                given["payload"],
                self.logs.of(agent.account_id, agent.name),
                session=session,
                content_type=given.get("contentType", "application/json"),
            )
        except (errors.Unavailable, errors.Conflict) as error:
            raise AwsError("RuntimeClientError", str(error), status=_RUNTIME_FAILED) from None
        said = f"the agent answered {answer.status}: {answer.text[:800]}"
        if answer.status in (401, 403):
            raise AwsError("AccessDeniedException", said, status=403)
        if answer.status >= 400:
            raise AwsError("RuntimeClientError", said, status=_RUNTIME_FAILED)
        return {
            "runtimeSessionId": session,
            "contentType": answer.headers.get("content-type", "application/octet-stream"),
            "response": answer.body,
            "statusCode": 200,
        }

    async def stop_runtime_session(self, call: Call, given: Json) -> Json:
        """End the calls of a session that are under way; nothing else of it is held here."""
        require_of_account(call.principal, Action.MANAGE)
        agent = await self._addressed(call, given)
        self.calls.stop(agent.spec, given["runtimeSessionId"])
        return {"runtimeSessionId": given["runtimeSessionId"], "statusCode": 200}

    async def _addressed(self, call: Call, given: Json) -> Agent:
        if given.get("qualifier", "DEFAULT") != "DEFAULT":
            raise _missing(f"there is no endpoint {given['qualifier']!r}; the only one is DEFAULT")
        return await self._found(call, unquote(given["agentRuntimeArn"]))

    async def _found(self, call: Call, arn_or_id: str) -> Agent:
        try:
            agent = await self.agents.find(call.principal, arn_or_id)
        except errors.NotFound as error:
            raise _missing(str(error)) from None
        if agent.is_function:
            raise _missing(f"agent {agent.name!r} is no runtime; it is {agent.arn}")
        return agent


def agentcore_control(runtimes: Runtimes) -> AwsService:
    """The control plane."""
    return AwsService(
        name="bedrock-agentcore-control",
        handlers={
            "CreateAgentRuntime": runtimes.create_agent_runtime,
            "GetAgentRuntime": runtimes.get_agent_runtime,
            "ListAgentRuntimes": runtimes.list_agent_runtimes,
        },
    )


def agentcore_data(runtimes: Runtimes) -> AwsService:
    """The data plane."""
    return AwsService(
        name="bedrock-agentcore",
        handlers={
            "InvokeAgentRuntime": runtimes.invoke_agent_runtime,
            "StopRuntimeSession": runtimes.stop_runtime_session,
        },
    )


def _missing(text: str) -> AwsError:
    return AwsError("ResourceNotFoundException", text, status=404)


def _summary(agent: Agent) -> Json:
    return {
        "agentRuntimeArn": agent.arn,
        "agentRuntimeId": agent.runtime_id,
        "agentRuntimeVersion": _VERSION,
        "agentRuntimeName": agent.runtime_name,
        "description": f"an agent at {agent.url}",
        "lastUpdatedAt": agent.updated_at,
        "status": "READY",
    }
