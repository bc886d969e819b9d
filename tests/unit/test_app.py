"""How a job's rooms are plugged together."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.families import save_family
from turnwise import errors
from turnwise.app import Service
from turnwise.domain.job import AgentKind, AgentSpec
from turnwise.sampling.engines import Engines
from turnwise.sampling.scripted import Completion, ScriptedSampler


class Engine(ScriptedSampler):
    def __init__(self) -> None:
        super().__init__([Completion([7])])
        self.ended = asyncio.Event()

    async def lost(self) -> None:
        await self.ended.wait()

    async def close(self) -> None:
        self.ended.set()


async def test_a_job_whose_agent_is_refused_leaves_no_engine_behind(tmp_path: Path):
    started: list[Engine] = []

    async def start(model: str, deterministic: bool) -> Engine:
        started.append(Engine())
        return started[-1]

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "hi"}\n')
    fields: dict[str, Any] = dict.fromkeys(Service.__slots__)
    service = Service(**(fields | {"engines": Engines(start, idle_s=0.01)}))
    spec = builders.spec(
        model=str(save_family(tmp_path / "base", "qwen3")),
        dataset=str(rows),
        agent=AgentSpec(kind=AgentKind.PYTHON, target="no.such:agent"),
    )
    with pytest.raises(errors.InvalidInput, match=r"agent\.target: .*cannot be imported"):
        await service.start_job(builders.job(spec=spec))
    async with asyncio.timeout(5):
        await started[0].ended.wait()
