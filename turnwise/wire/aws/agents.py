"""The services that registered agents are seen through: Lambda and Bedrock AgentCore."""

from __future__ import annotations

from turnwise.agents import AgentCalls
from turnwise.control.agent_logs import AgentLogs
from turnwise.control.agents import Agents
from turnwise.ports import NewId
from turnwise.wire.aws.agentcore import (
    SIGNING_NAME,
    Runtimes,
    agentcore_control,
    agentcore_data,
)
from turnwise.wire.aws.door import Answering, Modelled, Planes
from turnwise.wire.aws.lambdas import Functions, lambdas


def agent_services(
    agents: Agents, logs: AgentLogs, calls: AgentCalls, new_id: NewId
) -> list[Answering]:
    """Both."""
    functions = Functions(agents=agents, logs=logs, calls=calls, new_id=new_id)
    runtimes = Runtimes(agents=agents, logs=logs, calls=calls, new_id=new_id)
    return [
        Modelled(lambdas(functions)),
        Planes(
            Modelled(agentcore_control(runtimes), signing_name=SIGNING_NAME),
            Modelled(agentcore_data(runtimes), signing_name=SIGNING_NAME),
        ),
    ]
