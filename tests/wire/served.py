"""The data plane on a real HTTP server, on a free loopback port."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from tests.unit.gateway.kit import KEY, SECRET, PlainRenderer, World
from tests.wire.listening import listening
from turnwise import errors
from turnwise.access.sigv4 import SignedRequest
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.models.served import ServedModels
from turnwise.control.traces import Traces
from turnwise.domain.access import Account, Principal
from turnwise.evaluators.runs import Runs
from turnwise.gateway.serving import OpenModel, Serving
from turnwise.ports import ModelPackage, ServedModel
from turnwise.sampling.shared import SharedSampler
from turnwise.system import new_id
from turnwise.wire.dataplane import DataPlane, Verifying
from turnwise.wire.fireworks.deployments import find_deployed
from turnwise.wire.run_traces import RunTraces
from turnwise.wire.runs import RunDoor

NUMBER = "000000000001"
SLUG = "walkers"
NO_BASES = Path("/no/base/models")
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


def data_plane(
    world: World,
    serving: Serving,
    callers: Verifying | None = None,
    bases: Path | None = None,
    *,
    runs: Runs | None = None,
) -> DataPlane:
    """Answers for the world's rollouts, its models and the base models in the folder `bases`.

    `runs` are those of evaluators.
    """

    async def number(account_id: str) -> str:
        return NUMBER

    async def account(account_id: str) -> Account:
        return Account(account_id=account_id, slug=SLUG, number=NUMBER)

    traces = Traces(world.store, world.clock, retention_days=30)
    found = RunTraces(traces, world.store.trajectory, world.clock)
    return DataPlane(
        world.gateway,
        serving,
        ServedModels(world.store, Catalogue(bases or NO_BASES)),
        callers or OneKey(world),
        number,
        account,
        traces,
        runs=None if runs is None else RunDoor(world.gateway, runs, found),
        deployed=find_deployed(world.store),
    )


def a_serving(world: World, *, idle_s: float = 600.0, max_models: int = 8) -> Serving:
    """Registered and base models, answered by the world's sampler."""
    shared = SharedSampler(world.sampler)

    async def open_model(model: ServedModel) -> OpenModel:
        claimed = shared.claim()
        adapter_id = None
        if isinstance(model, ModelPackage):
            adapter_id = model.sha256
            await claimed.load(adapter_id, model.path)
        info = await claimed.info()
        return OpenModel(
            sampler=claimed,
            renderer=PlainRenderer(),
            adapter_id=adapter_id,
            max_length=info.max_length,
        )

    return Serving(open_model, world.clock, new_id, idle_s=idle_s, max_models=max_models)


@contextlib.asynccontextmanager
async def served(
    world: World, callers: Verifying | None = None, bases: Path | None = None
) -> AsyncIterator[str]:
    """The server's base URL."""
    serving = a_serving(world)
    try:
        async with listening(data_plane(world, serving, callers, bases), http="httptools") as url:
            yield url
    finally:
        await serving.close()


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
