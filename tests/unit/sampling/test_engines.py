"""When engines start and end; the engines are scripted samplers."""

import asyncio

import pytest

from turnwise.sampling.engines import Engines
from turnwise.sampling.scripted import Completion, ScriptedSampler


class Engine(ScriptedSampler):
    def __init__(self, model: str, deterministic: bool) -> None:
        super().__init__([Completion([7])])
        self.started_as = (model, deterministic)
        self.ended = asyncio.Event()

    async def lost(self) -> None:
        await self.ended.wait()

    async def close(self) -> None:
        self.ended.set()


@pytest.fixture
def started() -> list[Engine]:
    return []


@pytest.fixture
def engines(started: list[Engine]) -> Engines:
    async def start(model: str, deterministic: bool) -> Engine:
        started.append(Engine(model, deterministic))
        return started[-1]

    return Engines(start, idle_s=0.01)


async def test_an_engine_ends_when_its_last_user_has_left_for_a_while(engines, started):
    job = await engines.claim("/tiny", deterministic=False)
    served = await engines.claim_any("/tiny")
    (engine,) = started
    await job.close()
    await job.close()
    await asyncio.sleep(0.03)
    assert not engine.ended.is_set()
    await served.close()
    async with asyncio.timeout(30):
        await engine.ended.wait()
    await engines.claim_any("/tiny")
    assert len(started) == 2


async def test_an_engine_that_is_wanted_again_in_time_stays(engines, started):
    await (await engines.claim_any("/tiny")).close()
    await engines.claim_any("/tiny")
    await asyncio.sleep(0.03)
    (engine,) = started
    assert not engine.ended.is_set()


async def test_a_served_model_shares_the_engine_of_a_deterministic_job(engines, started):
    await engines.claim("/tiny", deterministic=True)
    await engines.claim_any("/tiny")
    await engines.claim_any("/other")
    await engines.claim("/tiny", deterministic=False)
    assert [engine.started_as for engine in started] == [
        ("/tiny", True),
        ("/other", False),
        ("/tiny", False),
    ]


async def test_a_dead_engine_is_replaced(engines, started):
    await engines.claim_any("/tiny")
    started[0].ended.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await engines.claim_any("/tiny")
    assert len(started) == 2
