"""Lambda: registered agents as functions that can be listed, looked at and invoked.

An agent of contract `http` is the function that would forward to it: it is sent what the function
is invoked with, and what it answers comes back in the forwarder's words (contract §4).
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from dataclasses import dataclass

from turnwise import errors
from turnwise.agents import AgentCalls, Answer
from turnwise.control.agent_logs import AgentLogs
from turnwise.control.agents import HOW_TO_REGISTER, Agent, Agents, require_of_account
from turnwise.domain.access import Action
from turnwise.domain.job import AgentKind
from turnwise.ports import NewId
from turnwise.wire.aws.service import AwsError, AwsService, Call, Json

_FUNCTION = re.compile(
    r"(?:arn:[a-z-]*:lambda:)?(?:[a-z]{2}[a-z0-9-]*-\d:)?(?:(?P<number>\d{12}):)?(?:function:)?"
    r"(?P<name>[a-zA-Z0-9._-]+)(?::(?:\$LATEST(?:\.PUBLISHED)?|[a-zA-Z0-9_-]+))?"
)

#: Lambda gives the last 4 KB of a function's log with an invocation's result.
_TAIL = 4096

#: Most functions of one page, as in AWS.
_PAGE = 50

#: What a forwarder calls an agent's refusal, by its status.
_ERROR_TYPES = {400: "ValidationError", 401: "AccessDenied", 403: "AccessDenied"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Functions:
    """The operations."""

    agents: Agents
    logs: AgentLogs
    calls: AgentCalls
    new_id: NewId

    async def list_functions(self, call: Call, given: Json) -> Json:
        """Functions by age, a page at a time."""
        found = [agent for agent in await self.agents.list(call.principal) if agent.is_function]
        begin = _position(given.get("Marker", ""))
        end = begin + min(given.get("MaxItems", _PAGE), _PAGE)
        page: Json = {"Functions": [_configuration(call, agent) for agent in found[begin:end]]}
        if end < len(found):
            page["NextMarker"] = str(end)
        return page

    async def get_function(self, call: Call, given: Json) -> Json:
        """One function's configuration, and where it is."""
        agent = await self._function(call, given["FunctionName"])
        return {"Configuration": _configuration(call, agent), "Tags": {}}

    async def get_function_configuration(self, call: Call, given: Json) -> Json:
        """One function's configuration."""
        return _configuration(call, await self._function(call, given["FunctionName"]))

    async def invoke(self, call: Call, given: Json) -> Json:
        """Send a payload to an agent; for an `Event`, do not wait for what it says."""
        require_of_account(call.principal, Action.MANAGE)
        agent = await self._function(call, given["FunctionName"])
        body = given.get("Payload") or b"{}"
        _check_json(body)
        kind = given.get("InvocationType", "RequestResponse")
        if kind == "DryRun":
            return {"StatusCode": 204}
        log = self.logs.of(agent.account_id, agent.name)
        session = self.new_id("session")
        if kind == "Event":
            self.calls.invoke_soon(agent.spec, body, log, session=session)
            return {"StatusCode": 202}
        clock = asyncio.get_running_loop().time
        begun = clock()
        result, printed = await self._result(agent, body, session)
        if given.get("LogType") == "Tail":
            result["LogResult"] = _tail(call.request_id, printed, (clock() - begun) * 1000)
        return {"StatusCode": 200, "ExecutedVersion": "$LATEST", **result}

    async def create_function(self, call: Call, given: Json) -> Json:
        """Refused: code is run by its owner."""
        raise AwsError(
            "InvalidParameterValueException",
            "this server runs no code of functions; start your function where it can be reached, "
            f"for example in the Lambda runtime interface emulator, and {HOW_TO_REGISTER}",
        )

    async def _result(self, agent: Agent, body: bytes, session: str) -> tuple[Json, str]:
        """The members of the result, and what the function printed."""
        log = self.logs.of(agent.account_id, agent.name)
        try:
            answer = await self.calls.invoke(agent.spec, body, log, session=session)
        except errors.Unavailable as error:
            problem = _error("InternalServerError", f"the agent cannot be reached: {error}")
            return {"Payload": problem, "FunctionError": "Unhandled"}, str(error)
        if agent.contract is AgentKind.HTTP:
            return {"Payload": _forwarded(answer)}, ""
        result: Json = {"Payload": answer.body}
        if answer.function_error or answer.status >= 400:
            result["FunctionError"] = answer.function_error or "Unhandled"
        if answer.status >= 400 and answer.value is None:
            said = f"the function answered {answer.status}: {answer.text[:1000]}"
            result["Payload"] = _error("InternalServerError", said)
        return result, answer.printed

    async def _function(self, call: Call, text: str) -> Agent:
        parts = _FUNCTION.fullmatch(text)
        try:
            if parts is None or parts["number"] not in (None, call.account.number):
                raise errors.NotFound("function", text, remedy=HOW_TO_REGISTER)
            agent = await self.agents.get(call.principal, parts["name"])
            if not agent.is_function:
                raise errors.NotFound("function", text, remedy=f"{agent.name} is {agent.arn}")
        except errors.NotFound as error:
            raise AwsError("ResourceNotFoundException", str(error), status=404) from None
        return agent


def lambdas(functions: Functions) -> AwsService:
    """The service."""
    return AwsService(
        name="lambda",
        handlers={
            "CreateFunction": functions.create_function,
            "GetFunction": functions.get_function,
            "GetFunctionConfiguration": functions.get_function_configuration,
            "Invoke": functions.invoke,
            "ListFunctions": functions.list_functions,
        },
        codes={errors.InvalidInput: "InvalidParameterValueException"},
    )


def _position(marker: str) -> int:
    if marker and not re.fullmatch("[0-9]{1,18}", marker):
        raise errors.InvalidInput("Marker", marker, "is not one that was given here")
    return int(marker or 0)


def _check_json(body: bytes) -> None:
    try:
        json.loads(body)
    except (ValueError, RecursionError) as error:
        said = f"Could not parse request body into json: {error}"
        raise AwsError("InvalidRequestContentException", said) from None


def _configuration(call: Call, agent: Agent) -> Json:
    at = time.gmtime(agent.updated_at)
    return {
        "FunctionName": agent.name,
        "FunctionArn": agent.arn,
        "Role": f"arn:aws:iam::{call.account.number}:role/turnwise-agent",
        "Description": f"an agent at {agent.url}, called by its {agent.contract} contract",
        "Timeout": 900,
        "MemorySize": 256,
        "LastModified": time.strftime("%Y-%m-%dT%H:%M:%S.000+0000", at),
        "Version": "$LATEST",
        "Environment": {"Variables": {"AGENT_ENDPOINT": agent.url}},
        "State": "Active",
        "LastUpdateStatus": "Successful",
        "LoggingConfig": {"LogGroup": agent.log_group},
    }


def _forwarded(answer: Answer) -> bytes:
    """An agent's answer as its forwarder returns it."""
    if answer.status < 400:
        return answer.body if answer.value is not None else b"{}"
    kind = _ERROR_TYPES.get(answer.status, "InternalServerError")
    return _error(kind, f"the agent answered {answer.status}: {answer.text[:1000]}")


def _error(kind: str, message: str) -> bytes:
    return json.dumps({"errorType": kind, "errorMessage": message}).encode()


def _tail(request_id: str, printed: str, duration_ms: float) -> str:
    """The end of an invocation's log, as Lambda frames it."""
    if printed and not printed.endswith("\n"):
        printed += "\n"
    text = (
        f"START RequestId: {request_id} Version: $LATEST\n{printed}END RequestId: {request_id}\n"
        f"REPORT RequestId: {request_id}\tDuration: {duration_ms:.2f} ms\n"
    )
    return base64.b64encode(text.encode()[-_TAIL:]).decode()
