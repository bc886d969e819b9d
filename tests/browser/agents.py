"""Agents of the jobs that the pages show: Python functions in the server's process."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from typing import Any

from turnwise.agents import PythonRollout

SYSTEM = "You inspect aircraft by the written procedure. Look up the readings before you decide."
LOOK_UP = {"component": "hydraulic pump", "aircraft": "AC01"}
#: Longer than what a page shows unfolded.
FILE_REPORT = {
    "component": "hydraulic pump",
    "findings": [f"reading {n} of the hydraulic pump is within its limit" for n in range(12)],
}
#: What the agent makes of its first question when the history gets long.
SHORTER = "An aircraft has landed. Replace the pump, or keep it?"
SHARE_FAILING = 0.08


async def inspect(request: PythonRollout) -> Mapping[str, Any]:
    """Two turns with tool calls; of some rows, a third in which the first question is another."""
    chance = random.Random(request.rollout_id)
    messages = _opening(request.prompt)
    said = await _asked(request, messages)
    if chance.random() < SHARE_FAILING:
        raise RuntimeError(f"no record of the aircraft in {request.prompt!r}")
    messages.append({"role": "user", "content": "Which component has to be replaced?"})
    said += await _asked(request, messages)
    if request.prompt.endswith(("3", "7")):
        shorter = [*messages[:1], {"role": "user", "content": SHORTER}, *messages[2:]]
        said += await _asked(request, shorter)
    letters = sum(letter in "aeiou" for letter in said) / max(1, len(said))
    reward = round(min(1.0, 2 * letters), 3)
    return {"reward": reward, "metrics": {"vowels": letters, "characters": float(len(said))}}


async def patient(request: PythonRollout) -> Mapping[str, Any]:
    """The same, as an agent that has other things to wait for."""
    await asyncio.sleep(random.Random(request.rollout_id).uniform(0.3, 0.7))
    return await inspect(request)


def _opening(prompt: str) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": "", "tool_calls": [_call("1", "look_up", LOOK_UP)]},
        {"role": "tool", "tool_call_id": "call_1", "content": "reading 12, limit 20"},
        {"role": "assistant", "content": "", "tool_calls": [_call("2", "report", FILE_REPORT)]},
        {"role": "tool", "tool_call_id": "call_2", "content": "filed"},
    ]


def _call(number: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": f"call_{number}", "type": "function", "function": function}


async def _asked(request: PythonRollout, messages: list[dict[str, Any]]) -> str:
    """The reply's text; the reply is added to the messages."""
    reply = await request.chat(messages)
    messages.append(dict(reply["choices"][0]["message"]))
    return str(messages[-1]["content"] or "")
