"""The agent as a Python callable, in the server's own process: no HTTP to its model.

    agent:
      kind: python
      target: examples.aircraft_inspection.callable:rollout

$AIRCRAFT_DATA, in the server's environment, names the folder with the tables.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.aircraft_inspection.data import load
from examples.aircraft_inspection.inspector import InspectionAgent, Json
from turnwise.agents import PythonRollout


async def rollout(request: PythonRollout) -> Mapping[str, Any]:
    """Work on one aircraft; what it returns is the rollout's reward and metrics."""
    agent = _agent()
    row = agent.row(request.fields)

    async def ask(messages: list[Json], tools: Sequence[Json]) -> Mapping[str, Any]:
        reply = await request.chat(messages, tools=tools)
        message: Mapping[str, Any] = reply["choices"][0]["message"]
        return message

    result = agent.score(row, await agent.answer(ask, request.prompt))
    return {"reward": result.reward, "metrics": result.metrics}


@functools.cache
def _agent() -> InspectionAgent:
    return InspectionAgent(load(Path(os.environ["AIRCRAFT_DATA"])))
