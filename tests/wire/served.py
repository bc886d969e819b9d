"""The data plane on a real HTTP server, on a free loopback port."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from tests.unit.gateway.kit import KEY, SECRET, PlainRenderer, World
from turnwise import errors
from turnwise.access.sigv4 import SignedRequest
from turnwise.control.models.served import ServedModels
from turnwise.domain.access import Principal
from turnwise.gateway.serving import OpenModel, Serving
from turnwise.ports import ModelPackage
from turnwise.sampling.shared import SharedSampler
from turnwise.system import new_id
from turnwise.wire.dataplane import DataPlane, Verifying

NUMBER = "000000000001"
ARN = f"arn:aws:sagemaker:us-west-2:{NUMBER}:job/AgentRFT/walk"
HEADERS = {"X-Amzn-SageMaker-Job-Arn": ARN, "X-Amzn-SageMaker-Trajectory-Id": "rol_a"}


class OneKey:
    """Callers who all hold the one key."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def bearer(self, bearer: str) -> Principal:
        if bearer != KEY:
            raise errors.Unauthenticated("this key does not exist")
        return self._world.principal

    async def signed(self, request: SignedRequest) -> Principal:
        raise errors.UnknownKey("nobody signs here")


def data_plane(world: World, serving: Serving, callers: Verifying | None = None) -> DataPlane:
    async def number(account_id: str) -> str:
        return NUMBER

    models = ServedModels(world.store)
    return DataPlane(world.gateway, serving, models, callers or OneKey(world), number)


def a_serving(world: World, *, idle_s: float = 600.0, max_models: int = 8) -> Serving:
    """Registered models, answered by the world's sampler."""
    shared = SharedSampler(world.sampler)

    async def open_model(package: ModelPackage) -> OpenModel:
        claimed = shared.claim()
        await claimed.load(package.sha256, package.path)
        info = await claimed.info()
        return OpenModel(
            sampler=claimed,
            renderer=PlainRenderer(),
            adapter_id=package.sha256,
            max_length=info.max_length,
        )

    return Serving(open_model, world.clock, new_id, idle_s=idle_s, max_models=max_models)


@contextlib.asynccontextmanager
async def served(world: World, callers: Verifying | None = None) -> AsyncIterator[str]:
    """The server's base URL."""
    serving = a_serving(world)
    # With the protocol named: asyncio sets TCP_NODELAY only then, and head and body of an answer
    # are two writes, between which the client would wait 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        data_plane(world, serving, callers),
        lifespan="off",
        ws="none",
        http="httptools",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # Not `serve()`: its loop looks for the end ten times a second, which every test would wait.
    await server.startup(sockets=[listener])
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await serving.close()
        await server.shutdown(sockets=[listener])


def a_browser() -> httpx.AsyncClient:
    """A plain HTTP client, without the cost of loading certificates."""
    return httpx.AsyncClient(verify=False)


@contextlib.asynccontextmanager
async def a_client(
    url: str, *, by_headers: bool = False, **options: Any
) -> AsyncIterator[AsyncOpenAI]:
    """The public client, addressing rol_a by headers and key, or by its own base URL."""
    if by_headers:
        place: dict[str, Any] = {
            "base_url": f"{url}/v1",
            "api_key": KEY,
            "default_headers": HEADERS,
        }
    else:
        place = {"base_url": f"{url}/r/rol_a.{SECRET}/v1", "api_key": "anything"}
    http = DefaultAsyncHttpxClient(verify=False)
    place |= {"max_retries": 0, "timeout": 10, "http_client": http}
    async with AsyncOpenAI(**(place | options)) as client:
        yield client
