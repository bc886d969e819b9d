"""How the rooms are plugged together for one job."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import builders
from tests.unit.loop.fakes import FakeClock, FakeLearner, FakeSampler, names
from turnwise import app, errors
from turnwise.domain.job import AgentKind, AgentSpec
from turnwise.domain.training import LearnerSpec
from turnwise.gateway.gateway import Gateway
from turnwise.sampling.engines import Engines
from turnwise.settings import Settings
from turnwise.storage.sql import SqlStore


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """None of a service's rooms, and a job without files."""
    monkeypatch.setattr(app, "load_job_rows", lambda spec: ([], []))
    monkeypatch.setattr(app, "load_renderer", lambda folder, history: None)
    return dict.fromkeys(app.Service.__slots__)


async def test_a_job_that_cannot_start_gives_its_engine_up(rooms: dict[str, Any]):
    ended = asyncio.Event()

    class Engine(FakeSampler):
        async def close(self) -> None:
            ended.set()

    async def start(model: str, deterministic: bool) -> Engine:
        return Engine()

    service = app.Service(**rooms | {"engines": Engines(start, idle_s=0.0)})
    agent = AgentSpec(kind=AgentKind.PYTHON, target="nowhere:walk")
    with pytest.raises(errors.InvalidInput, match="No module named 'nowhere'"):
        await service.start_job(builders.job(spec=builders.spec(agent=agent)))
    await asyncio.wait_for(ended.wait(), 5.0)


async def test_a_job_with_a_checkpoint_needs_the_adapter_that_it_began_with_no_more(
    rooms: dict[str, Any], tmp_path: Path
):
    asked: list[str | None] = []

    class Launcher:
        async def learner(self, spec: LearnerSpec) -> FakeLearner:
            asked.append(spec.input_adapter)
            return FakeLearner()

    async def start(model: str, deterministic: bool) -> FakeSampler:
        return FakeSampler()

    store = SqlStore.in_memory()
    account = await store.default_account()
    job = builders.job(spec=builders.spec(input_adapter="/models/tuned"))
    await store.create_job(job)
    service = app.Service(
        **rooms
        | {
            "settings": Settings(data_dir=tmp_path),
            "url": "http://here",
            "account": account,
            "folder": SimpleNamespace(blobs=tmp_path),
            "store": store,
            "gateway": Gateway(store, FakeClock(), names()),
            "launcher": Launcher(),
            "engines": Engines(start, idle_s=600.0),
        }
    )
    for _ in range(2):
        plugged = await service.start_job(job)
        async with plugged.opened:
            await plugged.loop._sockets.learner.score(builders.tokens(1))
        await store.save_checkpoint(job.account_id, job.job_id, builders.checkpoint(-1))
    assert asked == ["/models/tuned", None]
    await service.gateway.close()
    await store.close()
