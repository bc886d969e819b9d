"""The agent itself: works through a procedure with tools, wherever its model is.

agent.py puts it behind an HTTP server of its own, callable.py into the server's process.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from examples.aircraft_inspection.data import Row, Task
from examples.aircraft_inspection.task import (
    AnswerFormat,
    Score,
    expected_outputs,
    opening_messages,
    score,
)
from examples.aircraft_inspection.tools import Tools

Json = dict[str, Any]
#: One model call: (messages, tools) -> the assistant's message, all in OpenAI's shape.
Ask = Callable[[list[Json], Sequence[Json]], Awaitable[Mapping[str, Any]]]

#: Model calls per rollout. The generated task's procedure needs six at most.
MAX_TURNS = 8


class InspectionAgent:
    """Works through a procedure with tools; one row of the tables per rollout."""

    def __init__(self, task: Task, *, max_turns: int = MAX_TURNS) -> None:
        self.task = task
        self.answer_format = AnswerFormat.of(task)
        self._tools = Tools(task)
        self._max_turns = max_turns
        self._rows = {self._key(row): row for row in task.rows}

    def row(self, instance: Mapping[str, Any]) -> Row:
        """The row that a rollout is about. Raises KeyError if the tables have none."""
        return self._rows[self._key(instance)]

    def _key(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(values[column]) for column in self.task.input_columns)

    async def answer(self, ask: Ask, prompt: str) -> str:
        """Talk with the model until it answers: its last words, "" if its turns ran out."""
        messages = opening_messages(self.task, prompt)
        for _ in range(self._max_turns):
            reply = await ask(messages, self.task.tools)
            calls = reply.get("tool_calls")
            if not calls:
                return reply.get("content") or ""
            messages += [reply, *map(self._answered, calls)]
        return ""

    def score(self, row: Row, text: str) -> Score:
        """Judge the last words."""
        return score(text, expected_outputs(self.task, row), self.answer_format)

    def _answered(self, call: Mapping[str, Any]) -> Json:
        """The tool's message that answers a call."""
        function = call["function"]
        answer = self._tools.call(function["name"], _parsed(function["arguments"]))
        return {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(answer)}


def _parsed(arguments: str) -> object:
    try:
        return json.loads(arguments)
    except ValueError:
        return None
