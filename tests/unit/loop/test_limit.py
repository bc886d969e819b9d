"""A job that may run for so long and no longer."""

from __future__ import annotations

import asyncio

from tests.unit.loop.fakes import until
from tests.unit.loop.world import World, make_job, resume, rows
from turnwise.agents.scripted import Behaviour
from turnwise.domain.event import EventKind
from turnwise.domain.job import JobStatus, Secondary


async def test_a_job_is_stopped_when_its_time_is_up_and_can_be_resumed(world: World) -> None:
    job = make_job(max_runtime_s=5)
    world.behave = lambda rollout: Behaviour.HANG
    await world.store.create_job(job)
    running = asyncio.create_task(world.loop(job, rows()).run())
    await until(lambda: len(world.clock.waits) > 1)  # its rollouts have begun
    world.clock.advance(5.0)
    await running
    ended = await world.job()
    assert (ended.status, ended.secondary) == (JobStatus.STOPPED, Secondary.MAX_RUNTIME_EXCEEDED)
    assert ended.message == "stopped after max_runtime_s, 5 s"
    world.behave = lambda rollout: Behaviour.PLAY
    assert (await resume(world, job)).status is JobStatus.COMPLETED


async def test_a_job_tells_its_plan_and_its_phases(world: World) -> None:
    job = make_job()
    await world.store.create_job(job)
    await world.loop(job, rows()).run()
    plans = [event.body["steps"] for event in await world.events(EventKind.LOG)]
    assert plans == [2]
    phases = [event.body["secondary"] for event in await world.events(EventKind.STATUS)]
    assert phases == ["Downloading", "Training", "Uploading", "Completed"]
