"""The agent: ordinary user code behind a small HTTP server.

    python -m examples.aircraft_inspection.agent --data data/ --port 8080

`POST /rollout` works on one aircraft: it calls the model through the public `openai` client, with
the rollout's own endpoint as `base_url`, answers the model's tool calls from the tables, and
reports a reward. It knows nothing of how the model is trained; all that it uses of Turnwise is
`turnwise.rft`.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from openai import AsyncOpenAI, DefaultAioHttpClient, OpenAIError
from openai.types.chat import ChatCompletionMessage

from examples.aircraft_inspection.data import load
from examples.aircraft_inspection.inspector import MAX_TURNS, Ask, InspectionAgent, Json
from turnwise.rft import InferenceParams, RolloutRequest, make_inference_headers, rft_handler

MODEL_TIMEOUT_S = 300.0


def _asking(model: AsyncOpenAI, params: InferenceParams | None) -> Ask:
    """How the inspector reaches its model over HTTP."""
    sampling = params.model_dump(exclude_none=True) if params else {}

    async def ask(messages: list[Json], tools: Sequence[Json]) -> Json:
        # `extra_body` goes out as it is; as arguments, the client would walk through every
        # message and tool again on each call, which costs more than all the rest of it.
        body = {"messages": messages, "tools": tools}
        completion = await model.chat.completions.create(
            model="default", messages=[], extra_body=body, **sampling
        )
        return _said(completion.choices[0].message)

    return ask


def _said(reply: ChatCompletionMessage) -> Json:
    """The client's object as the message that goes back into the conversation."""
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.function.name, "arguments": call.function.arguments},
        }
        for call in reply.tool_calls or ()
        if call.type == "function"
    ]
    said: Json = {"role": "assistant", "content": reply.content}
    return said | ({"tool_calls": calls} if calls else {})


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
            text = await agent.answer(_asking(model, request.inference_params), prompt)
        except OpenAIError as error:
            raise HTTPException(502, f"the model call failed: {error}") from error
        result = agent.score(row, text)
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
