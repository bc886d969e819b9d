"""Ways to reach the user's code: AgentRunners for the agent, Scorers for judges of its work."""

from __future__ import annotations

from turnwise import errors
from turnwise.agents.contracts import Answer
from turnwise.agents.http import HttpAgent
from turnwise.agents.probing import AgentCalls, Probe
from turnwise.agents.python import PythonAgent, PythonRollout
from turnwise.agents.scorers import open_scorers
from turnwise.agents.scripted import HttpCall, ScriptedAgent
from turnwise.domain.job import AgentKind, AgentSpec
from turnwise.ports import AgentDoor, AgentLog, AgentRunner

__all__ = [
    "AgentCalls",
    "Answer",
    "HttpAgent",
    "Probe",
    "PythonAgent",
    "PythonRollout",
    "ScriptedAgent",
    "open_runner",
    "open_scorers",
]


def open_runner(spec: AgentSpec, door: AgentDoor, log: AgentLog | None = None) -> AgentRunner:
    """The runner that a job asks for. Call it inside a running event loop; `close` it after use.

    `door` is what a Python agent calls; `log` is told what passes to and from one behind HTTP.
    Raises `InvalidInput` when the spec names no agent, or one
    that cannot be imported.
    """
    if spec.has_url:
        if not spec.url.startswith(("http://", "https://")):
            raise errors.InvalidInput(
                "agent.url", spec.url, "is no HTTP address", remedy="use http://host:port"
            )
        return HttpAgent(spec, log)
    if spec.kind is AgentKind.PYTHON:
        return PythonAgent(spec.target, door)
    if spec.kind is AgentKind.EVALUATOR:
        raise errors.InvalidInput("agent.kind", spec.kind.value, "is opened by its own room")
    return ScriptedAgent(HttpCall())
