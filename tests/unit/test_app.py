"""How the rooms are plugged together for one job."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests import builders
from tests.unit.loop.fakes import FakeSampler
from turnwise import app, errors
from turnwise.domain.job import AgentKind, AgentSpec
from turnwise.sampling.engines import Engines


async def test_a_job_that_cannot_start_gives_its_engine_up(monkeypatch: pytest.MonkeyPatch):
    ended = asyncio.Event()

    class Engine(FakeSampler):
        async def close(self) -> None:
            ended.set()

    async def start(model: str, deterministic: bool) -> Engine:
        return Engine()

    monkeypatch.setattr(app, "load_job_rows", lambda spec: ([], []))
    monkeypatch.setattr(app, "load_renderer", lambda folder, history: None)
    rooms: dict[str, Any] = dict.fromkeys(app.Service.__slots__)
    service = app.Service(**rooms | {"engines": Engines(start, idle_s=0.0)})
    agent = AgentSpec(kind=AgentKind.PYTHON, target="nowhere:walk")
    with pytest.raises(errors.InvalidInput, match="No module named 'nowhere'"):
        await service.start_job(builders.job(spec=builders.spec(agent=agent)))
    await asyncio.wait_for(ended.wait(), 5.0)
