"""The services of the AWS door, each plugged into the rooms that do its work."""

from __future__ import annotations

from dataclasses import dataclass

from turnwise.agents import AgentCalls
from turnwise.control.agent_logs import AgentLogs
from turnwise.control.agents import Agents
from turnwise.control.browse import Browse
from turnwise.control.jobs import Jobs
from turnwise.ports import Clock, NewId, Resources
from turnwise.wire.aws.agentcore import (
    SIGNING_NAME,
    Runtimes,
    agentcore_control,
    agentcore_data,
)
from turnwise.wire.aws.door import Answering, Modelled, Planes
from turnwise.wire.aws.lambdas import Functions, lambdas
from turnwise.wire.aws.service import AwsService
from turnwise.wire.aws.sts import sts


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """What the handlers call."""

    url: str  # of this server, as clients reach it
    jobs: Jobs
    browse: Browse
    resources: Resources
    clock: Clock
    new_id: NewId
    agents: Agents
    agent_logs: AgentLogs
    agent_calls: AgentCalls


def sagemaker(rooms: Rooms) -> AwsService:
    """SageMaker's control plane: each noun brings its operations."""
    return AwsService(name="sagemaker", handlers={})


def open_services(rooms: Rooms) -> list[Answering]:
    """All services, by the names that their clients sign for."""
    return [Modelled(sagemaker(rooms)), Modelled(sts()), *agent_services(rooms)]


def agent_services(rooms: Rooms) -> list[Answering]:
    """Lambda and Bedrock AgentCore, over the registered agents."""
    calls, logs = rooms.agent_calls, rooms.agent_logs
    functions = Functions(agents=rooms.agents, logs=logs, calls=calls, new_id=rooms.new_id)
    runtimes = Runtimes(agents=rooms.agents, logs=logs, calls=calls, new_id=rooms.new_id)
    return [
        Modelled(lambdas(functions)),
        Planes(
            Modelled(agentcore_control(runtimes), signing_name=SIGNING_NAME),
            Modelled(agentcore_data(runtimes), signing_name=SIGNING_NAME),
        ),
    ]
