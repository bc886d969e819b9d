"""The data plane and the tracing gateway's own routes on one real HTTP server, over one store."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.unit.gateway.kit import KEY, World, a_world, user
from tests.wire.listening import listening
from tests.wire.served import OneKey, a_browser, a_serving, data_plane
from turnwise.control.traces import Traces
from turnwise.wire.asgi import Receive, Scope, Send
from turnwise.wire.fireworks.tracing import TracingDoor

TAGGED = "/rollout_id/calm-1/invocation_id/inv/experiment_id/exp/run_id/run/row_id/math/7"
TAGS = [
    "rollout_id:calm-1",
    "invocation_id:inv",
    "experiment_id:exp",
    "run_id:run",
    "row_id:math/7",
]
BASE = "accounts/fireworks/models/tiny"


def save_base(folder: Path, name: str = "tiny") -> None:
    """A base model of that name in the catalogue's folder: nothing looks into it here."""
    (folder / name).mkdir()
    (folder / name / "config.json").write_text('{"max_position_embeddings": 64}')


@dataclass(frozen=True)
class Gateway:
    """The gateway's world, and a client with the key."""

    world: World
    url: str
    client: httpx.AsyncClient
    headers: dict[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {KEY}"})

    async def get(self, path: str, **params: Any) -> httpx.Response:
        return await self.client.get(f"{self.url}{path}", params=params, headers=self.headers)

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        given = {"content": body} if isinstance(body, bytes) else {"json": body}
        return await self.client.post(f"{self.url}{path}", headers=self.headers, **given, **options)

    async def chat(self, *said: str, path: str = TAGGED, **fields: Any) -> httpx.Response:
        ask = {"model": BASE, "messages": [user(text) for text in said or ("hi",)]} | fields
        return await self.post(f"{path}/chat/completions", ask)

    async def log(self, message: str, *tags: str, **fields: Any) -> httpx.Response:
        return await self.post("/logs", {"message": message, "tags": list(tags)} | fields)

    async def traces(self, *tags: str, **params: Any) -> list[dict[str, Any]]:
        answer = await self.get("/v1/traces/pointwise", tags=list(tags), **params)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["traces"]
        return found

    async def entries(self, *tags: str, **params: Any) -> list[dict[str, Any]]:
        answer = await self.get("/logs", tags=list(tags), **params)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["entries"]
        return found


@contextlib.asynccontextmanager
async def a_gateway(bases: Path, *replies: str, **options: Any) -> AsyncIterator[Gateway]:
    """A gateway with the base model "tiny"."""
    save_base(bases)
    async with a_world(*replies, **options) as world:
        serving, callers = a_serving(world), OneKey(world)
        plane = data_plane(world, serving, callers, bases)
        traces = Traces(world.store, world.clock, retention_days=30)
        door = TracingDoor(traces, callers.bearer, world.clock)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            owner = plane if plane.owns(scope["path"]) else door
            await owner(scope, receive, send)

        try:
            async with listening(app, http="httptools") as url, a_browser() as client:
                yield Gateway(world, url, client)
        finally:
            await serving.close()
