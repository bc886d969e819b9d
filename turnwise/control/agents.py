"""Registered agents: a name, the URL it listens on, and the address that AWS's clients call it by.

    contract    how it is called                            its address
    lambda      as the Lambda runtime interface emulator    arn:aws:lambda:...:function:<name>
    http        POST {url}/rollout, as a forwarder does     arn:aws:lambda:...:function:<name>
    agentcore   POST {url}/invocations, GET {url}/ping      arn:aws:bedrock-agentcore:...:<id>

An address stays as it is while the agent is registered, so that it may move to another URL.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from turnwise import errors
from turnwise.domain.access import Action, Principal
from turnwise.domain.job import AgentKind, AgentSpec
from turnwise.domain.resource import Resource
from turnwise.ports import Clock, Resources
from turnwise.system import random_letters

KIND = "agent"  # of the records

#: What an agent may be registered as.
CONTRACTS = (AgentKind.LAMBDA, AgentKind.AGENTCORE, AgentKind.HTTP)

#: Both a function's name and, with "_" for "-", a runtime's.
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,47}")

_RUNTIME_ID = r"[a-zA-Z][a-zA-Z0-9_]{0,99}-[a-zA-Z0-9]{10}"
_ADDRESS = re.compile(
    r"arn:aws[a-z-]*:(?:"
    r"lambda:[a-z0-9-]+:(?P<function_account>[0-9]{12}):function:(?P<function>[a-zA-Z0-9._-]+)"
    r"(?::(?:\$LATEST|[a-zA-Z0-9_-]+))?"
    r"|bedrock-agentcore:[a-z0-9-]+:(?P<runtime_account>[0-9]{12}):(?:agent-)?runtime/"
    rf"(?P<runtime>{_RUNTIME_ID})(?:[/:][a-zA-Z0-9/:._$-]+)?"
    r")"
)

HOW_TO_REGISTER = "register it: turnwise agents register NAME URL --as lambda|agentcore|http"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A registered agent. `runtime_id` is AgentCore's name of it, "" for the other contracts.

    Times are seconds since the epoch.
    """

    account_id: str
    name: str
    url: str
    contract: AgentKind
    arn: str
    runtime_id: str = ""
    created_at: float = 0.0
    updated_at: float = 0.0

    @property
    def spec(self) -> AgentSpec:
        """How a job reaches it."""
        return AgentSpec(kind=self.contract, url=self.url, name=self.name)

    @property
    def is_function(self) -> bool:
        """Whether AWS's clients see a Lambda function; else it is an AgentCore runtime."""
        return not self.runtime_id

    @property
    def runtime_name(self) -> str:
        """Its name as a runtime, which may hold no hyphen."""
        return self.runtime_id.rpartition("-")[0]

    @property
    def log_group(self) -> str:
        """The CloudWatch Logs group that AWS would keep its output in."""
        if self.is_function:
            return f"/aws/lambda/{self.name}"
        return f"/aws/bedrock-agentcore/runtimes/{self.runtime_id}-DEFAULT"


class Agents:
    """The agents of all accounts. Every call requires a principal with the right."""

    def __init__(
        self,
        resources: Resources,
        account_number: Callable[[str], Awaitable[str]],
        clock: Clock,
        *,
        region: str,
    ) -> None:
        """`account_number` gives an account's 12 digits by its id."""
        self._resources = resources
        self._account_number = account_number
        self._clock = clock
        self._region = region

    async def register(
        self, principal: Principal, name: str, url: str, contract: AgentKind
    ) -> Agent:
        """Register an agent, or move one to another URL; its ARN stays.

        Raises `InvalidInput`, and `Conflict` when the name is registered under another contract.
        """
        require_of_account(principal, Action.MANAGE)
        _check(name, url, contract)
        url = url.rstrip("/")
        try:
            known = await self.get(principal, name)
        except errors.NotFound:
            return await self._create(principal, name, url, contract)
        if known.contract is not contract:
            raise errors.Conflict(
                f"agent {name!r} is registered as {known.contract}; "
                f"remove it first: turnwise agents remove {name}"
            )
        moved = await self._resources.change_resource(_record(dataclasses.replace(known, url=url)))
        return _agent(moved)

    async def list(self, principal: Principal) -> list[Agent]:
        """Oldest first."""
        principal.require(Action.READ)
        return [_agent(found) for found in await self._all(principal.account_id)]

    async def get(self, principal: Principal, name: str) -> Agent:
        """One agent by name. Raises `NotFound` with how to register it."""
        principal.require(Action.READ)
        return await self._named(principal.account_id, name)

    async def by_runtime_id(self, principal: Principal, runtime_id: str) -> Agent:
        """One agent by AgentCore's name of it. Raises `NotFound`."""
        principal.require(Action.READ)
        for record in await self._all(principal.account_id):
            if record.body["runtime_id"] == runtime_id:
                return _agent(record)
        raise errors.NotFound("agent runtime", runtime_id, remedy=HOW_TO_REGISTER)

    async def find(self, principal: Principal, arn: str) -> Agent:
        """One agent by its ARN, a Lambda's with or without qualifier, or by a runtime's id alone.

        Raises `InvalidInput` for what is neither, `NotFound` for one that is not registered here.
        """
        if re.fullmatch(_RUNTIME_ID, arn):
            return await self.by_runtime_id(principal, arn)
        parts = _ADDRESS.fullmatch(arn)
        if parts is None:
            raise errors.InvalidInput(
                "agent",
                arn,
                "is neither a Lambda's nor an AgentCore runtime's ARN",
                remedy=f"`turnwise agents list` shows the ARNs here; {HOW_TO_REGISTER}",
            )
        number = await self._account_number(principal.account_id)
        if (parts["function_account"] or parts["runtime_account"]) != number:
            raise errors.NotFound(
                "agent", arn, remedy=f"this account's number is {number}; {HOW_TO_REGISTER}"
            )
        if parts["runtime"]:
            return await self.by_runtime_id(principal, parts["runtime"])
        agent = await self.get(principal, parts["function"])
        if not agent.is_function:
            raise errors.NotFound("agent", arn, remedy=f"{agent.name} is {agent.arn}")
        return agent

    async def by_arn(self, principal: Principal, arn: str) -> AgentSpec:
        """How a job reaches the agent of an ARN; see `find`."""
        return (await self.find(principal, arn)).spec

    async def remove(self, principal: Principal, name: str) -> Agent:
        """Forget an agent; the agent as it was. Raises `NotFound`."""
        require_of_account(principal, Action.MANAGE)
        await self.get(principal, name)
        return _agent(await self._resources.delete_resource(principal.account_id, KIND, name))

    async def job_arn(self, principal: Principal, job_name: str) -> str:
        """The ARN of a job of the caller's, for calls of agents that belong to no job."""
        number = await self._account_number(principal.account_id)
        return f"arn:aws:sagemaker:{self._region}:{number}:job/AgentRFT/{job_name}"

    async def resolved(self, account_id: str, spec: AgentSpec) -> AgentSpec:
        """A job's agent with the URL where it is now; one that is not registered as it is.

        Raises `NotFound` for a name that is not registered.
        """
        return (await self._named(account_id, spec.name)).spec if spec.name else spec

    async def _create(
        self, principal: Principal, name: str, url: str, contract: AgentKind
    ) -> Agent:
        runtime_id = ""
        if contract is AgentKind.AGENTCORE:
            runtime_id = f"{name.replace('-', '_')}-{random_letters(10)}"
        number = await self._account_number(principal.account_id)
        agent = Agent(
            account_id=principal.account_id,
            name=name,
            url=url,
            contract=contract,
            arn=_arn(self._region, number, name, runtime_id),
            runtime_id=runtime_id,
            created_at=self._clock.now(),
        )
        return _agent(await self._resources.create_resource(_record(agent)))

    async def _named(self, account_id: str, name: str) -> Agent:
        try:
            return _agent(await self._resources.resource(account_id, KIND, name))
        except errors.NotFound:
            raise errors.NotFound("agent", name, remedy=HOW_TO_REGISTER) from None

    async def _all(self, account_id: str) -> Sequence[Resource]:
        return await self._resources.resources(account_id, KIND)


def require_of_account(principal: Principal, action: Action) -> None:
    """Raise `Denied` unless the key has the right for its whole account.

    A key for certain jobs reads which agents there are, but an agent and its log are every job's.
    """
    principal.require(action)
    if principal.job_ids is not None:
        raise errors.Denied("this key is for certain jobs; agents belong to the whole account")


def _check(name: str, url: str, contract: AgentKind) -> None:
    if not _NAME.fullmatch(name):
        raise errors.InvalidInput(
            "name",
            name,
            "is not an agent's name",
            remedy="use a letter and then up to 47 letters, digits, hyphens and underscores",
        )
    if contract not in CONTRACTS:
        raise errors.InvalidInput(
            "contract", str(contract), "is not a choice", remedy="allowed: " + ", ".join(CONTRACTS)
        )
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # half an IPv6 address, a port past 65535
        is_address = False
    if not is_address:
        raise errors.InvalidInput("url", url, "is no HTTP address", remedy="use http://host:port")
    if parts.username or parts.password:
        raise errors.InvalidInput(
            "url",
            f"{parts.scheme}://...@{parts.hostname}",
            "holds a password, which would be shown",
            remedy="leave it out",
        )


def _arn(region: str, number: str, name: str, runtime_id: str) -> str:
    if runtime_id:
        return f"arn:aws:bedrock-agentcore:{region}:{number}:runtime/{runtime_id}"
    return f"arn:aws:lambda:{region}:{number}:function:{name}"


def _record(agent: Agent) -> Resource:
    body = {
        "url": agent.url,
        "contract": agent.contract.value,
        "arn": agent.arn,
        "runtime_id": agent.runtime_id,
    }
    return Resource(
        account_id=agent.account_id,
        kind=KIND,
        name=agent.name,
        body=body,
        created_at=agent.created_at,
    )


def _agent(record: Resource) -> Agent:
    return Agent(
        account_id=record.account_id,
        name=record.name,
        url=record.body["url"],
        contract=AgentKind(record.body["contract"]),
        arn=record.body["arn"],
        runtime_id=record.body["runtime_id"],
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
