"""The agent: ordinary user code behind a small HTTP server.

    python -m examples.aircraft_inspection.agent --data data/ --port 8080

`POST /rollout` works on one aircraft: it calls the model through the public `openai` client, with
the rollout's own endpoint as `base_url`, answers the model's tool calls from the tables, and
reports a reward. It knows nothing of how the model is trained; all that it uses of Turnwise is
`turnwise.rft`.
"""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from openai import AsyncOpenAI, DefaultAioHttpClient, OpenAIError
from openai.types.chat import ChatCompletionMessage

from examples.aircraft_inspection.data import Row, Task, load
from examples.aircraft_inspection.task import (
    AnswerFormat,
    expected_outputs,
    opening_messages,
    score,
)
from examples.aircraft_inspection.tools import Tools
from turnwise.rft import InferenceParams, RolloutRequest, make_inference_headers, rft_handler

#: Model calls per rollout. The generated task's procedure needs six at most.
MAX_TURNS = 8

MODEL_TIMEOUT_S = 300.0


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

    async def answer(self, model: AsyncOpenAI, prompt: str, params: InferenceParams | None) -> str:
        """Talk with the model until it answers: its last words, "" if its turns ran out."""
        messages = opening_messages(self.task, prompt)
        sampling = params.model_dump(exclude_none=True) if params else {}
        for _ in range(self._max_turns):
            # `extra_body` goes out as it is; as arguments, the client would walk through every
            # message and tool again on each call, which costs more than all the rest of it.
            body = {"messages": messages, "tools": self.task.tools}
            completion = await model.chat.completions.create(
                model="default", messages=[], extra_body=body, **sampling
            )
            reply = completion.choices[0].message
            if not reply.tool_calls:
                return reply.content or ""
            messages += self._after(reply)
        return ""

    def _after(self, reply: ChatCompletionMessage) -> list[dict[str, Any]]:
        """What the conversation goes on with: the model's calls, and the tools' answers."""
        said: dict[str, Any] = {"role": "assistant", "content": reply.content, "tool_calls": []}
        answers: list[dict[str, Any]] = []
        for call in reply.tool_calls or ():
            if call.type != "function":
                continue
            name, arguments = call.function.name, call.function.arguments
            function = {"name": name, "arguments": arguments}
            said["tool_calls"].append({"id": call.id, "type": "function", "function": function})
            answer = json.dumps(self._tools.call(name, _parsed(arguments)))
            answers.append({"role": "tool", "tool_call_id": call.id, "content": answer})
        return [said, *answers]


def _parsed(arguments: str) -> object:
    try:
        return json.loads(arguments)
    except ValueError:
        return None


def create_app(agent: InspectionAgent) -> FastAPI:
    """The agent's HTTP server."""
    # The client for every rollout; aiohttp costs a third of the default transport's CPU.
    client = AsyncOpenAI(
        base_url="http://set-per-rollout",
        api_key="a-rollout's-endpoint-needs-none",
        timeout=MODEL_TIMEOUT_S,
        http_client=DefaultAioHttpClient(),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await client.close()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy", "task": agent.task.name}

    @app.post("/rollout")
    @rft_handler
    async def rollout(request: RolloutRequest) -> dict[str, Any]:
        try:
            row, prompt = agent.row(request.instance), str(request.instance["prompt"])
        except KeyError as error:
            raise HTTPException(422, f"instance: no such row in the tables: {error}") from error
        model = client.with_options(
            base_url=f"{request.metadata.endpoint}/v1",
            default_headers=make_inference_headers(request.metadata),
        )
        try:
            text = await agent.answer(model, prompt, request.inference_params)
        except OpenAIError as error:
            raise HTTPException(502, f"the model call failed: {error}") from error
        result = score(text, expected_outputs(agent.task, row), agent.answer_format)
        return {"reward": result.reward, "metrics": result.metrics}

    return app


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.aircraft_inspection.agent")
    parser.add_argument("--data", type=Path, required=True, help="a folder in SOP-Bench's format")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--max-turns", type=int, default=MAX_TURNS)
    args = parser.parse_args()
    try:
        app = create_app(InspectionAgent(load(args.data), max_turns=args.max_turns))
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    with socket.create_server((args.host, args.port), backlog=1024) as listener:
        host, port = listener.getsockname()[:2]
        print(f"agent listening on http://{host}:{port}", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
