"""When engines start and end; the engines are scripted samplers."""

import asyncio
from typing import Any, NoReturn

import pytest

from turnwise.app import Engines
from turnwise.ports import EngineSpec
from turnwise.sampling.scripted import Completion, ScriptedSampler
from turnwise.settings import Settings


class Engine(ScriptedSampler):
    def __init__(self, spec: EngineSpec) -> None:
        super().__init__([Completion([7])])
        self.spec = spec
        self.ended = asyncio.Event()

    async def lost(self) -> None:
        await self.ended.wait()

    async def close(self) -> None:
        self.ended.set()


class Launcher:
    """`ports.Launcher` for engines only."""

    def __init__(self) -> None:
        self.started: list[Engine] = []

    async def engine(self, spec: EngineSpec) -> Engine:
        self.started.append(Engine(spec))
        return self.started[-1]

    async def learner(self, spec: Any) -> NoReturn:
        raise AssertionError("engines only")

    async def merge(self, spec: Any) -> NoReturn:
        raise AssertionError("engines only")

    async def close(self) -> None:
        pass


@pytest.fixture
def launcher() -> Launcher:
    return Launcher()


@pytest.fixture
def engines(launcher: Launcher) -> Engines:
    return Engines(launcher, Settings().model_copy(update={"serving_idle_s": 0.01}))


async def test_an_engine_ends_when_its_last_user_has_left_for_a_while(engines, launcher):
    job = await engines.claim("/tiny", deterministic=False)
    served = await engines.claim_any("/tiny")
    (engine,) = launcher.started
    await job.close()
    await job.close()
    await asyncio.sleep(0.03)
    assert not engine.ended.is_set()
    await served.close()
    async with asyncio.timeout(5):
        await engine.ended.wait()
    await engines.claim_any("/tiny")
    assert len(launcher.started) == 2


async def test_an_engine_that_is_wanted_again_in_time_stays(engines, launcher):
    await (await engines.claim_any("/tiny")).close()
    await engines.claim_any("/tiny")
    await asyncio.sleep(0.03)
    (engine,) = launcher.started
    assert not engine.ended.is_set()


async def test_a_served_model_shares_the_engine_of_a_deterministic_job(engines, launcher):
    await engines.claim("/tiny", deterministic=True)
    await engines.claim_any("/tiny")
    await engines.claim_any("/other")
    await engines.claim("/tiny", deterministic=False)
    assert [(e.spec.base_model, e.spec.deterministic) for e in launcher.started] == [
        ("/tiny", True),
        ("/other", False),
        ("/tiny", False),
    ]


async def test_a_dead_engine_is_replaced(engines, launcher):
    await engines.claim_any("/tiny")
    launcher.started[0].ended.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await engines.claim_any("/tiny")
    assert len(launcher.started) == 2
