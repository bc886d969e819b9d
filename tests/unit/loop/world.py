"""One job and its neighbours of air: gateway, engine, learner and agent are fakes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.unit.loop.fakes import (
    FakeBlobs,
    FakeClock,
    FakeGateway,
    FakeLearner,
    FakeSampler,
    names,
    until,
)
from turnwise.agents.scripted import Behaviour, ScriptedAgent
from turnwise.domain.data import Row
from turnwise.domain.event import Event, EventDraft, EventKind, Level
from turnwise.domain.job import (
    AsyncSpec,
    BatchSpec,
    Job,
    RolloutSpec,
    ScheduleSpec,
)
from turnwise.domain.ledger import Bin, TokenUsage
from turnwise.domain.rollout import (
    Group,
    Rollout,
    Trajectory,
)
from turnwise.loop.run import JobLoop
from turnwise.loop.sockets import Sockets
from turnwise.ports import RolloutQuery, Scorer
from turnwise.storage.sql import SqlStore

BATCH = BatchSpec(global_batch_size=2, group_size=2)
TWO_STEPS = ScheduleSpec(max_epochs=1, max_steps=2, val_every=0)
LIMITS = RolloutSpec(rollout_timeout=10.0, rollout_max_retries=2)

Behave = Callable[[Rollout], Behaviour]


def rows(count: int = 4) -> list[Row]:
    prompts = [f"task {index}" for index in range(count)]
    return [
        Row(index=index, prompt=prompt, fields={"prompt": prompt, "script": ["go on"]})
        for index, prompt in enumerate(prompts)
    ]


def make_job(**changes: Any) -> Job:
    spec: dict[str, Any] = {
        "batch": BATCH,
        "schedule": TWO_STEPS,
        "rollout": LIMITS,
        "async_config": AsyncSpec(max_steps_off_policy=0),
    }
    return builders.job(spec=builders.spec("walk", **(spec | changes)))


class World:
    """One job and its neighbours; `loop` makes a new incarnation with a fresh learner."""

    def __init__(self, folder: Path, store: SqlStore, clock: FakeClock) -> None:
        self.store = store
        self.clock = clock
        self.gateway = FakeGateway(store)
        self.sampler = FakeSampler()
        self.learner = FakeLearner()
        self.blobs = FakeBlobs(folder)
        self.new_id = names()
        self.behave: Behave = lambda rollout: Behaviour.PLAY
        self.reward: Callable[[Rollout], float] = lambda rollout: float(rollout.slot)
        self.scorers: list[Scorer] = []
        self.check: Callable[[], None] = lambda: None
        self.deliver: Callable[[Job], Awaitable[None]] = _nowhere

    def loop(self, job: Job, train: list[Row], validation: list[Row] | None = None) -> JobLoop:
        self.learner = FakeLearner()
        return JobLoop(job, train, validation or [], self.sockets())

    def sockets(self) -> Sockets:
        return Sockets(
            store=self.store,
            rollouts=self.gateway,
            sampler=self.sampler,
            learner=self.learner,
            runner=Agent(self),
            blobs=self.blobs,
            clock=self.clock,
            new_id=self.new_id,
            endpoint=lambda rollout_id, secret: f"http://here/r/{rollout_id}/{secret}",
            job_arn="arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/walk",
            model_folder=same,
            scorers=self.scorers,
            deliver=self.deliver,
        )

    async def job(self) -> Job:
        return await self.store.job(builders.ACCOUNT, "walk")

    async def events(self, kind: EventKind) -> list[Event]:
        return await self.store.events(builders.ACCOUNT, "job_walk", kinds=[kind.value])

    async def warnings(self) -> list[str]:
        log = await self.events(EventKind.LOG)
        return [event.body["message"] for event in log if event.level is Level.WARNING]

    async def waits_only_for(self, wakes_at: float, *, ended: int) -> None:
        """Until that many attempts have ended and nothing but one deadline can happen."""

        async def is_still() -> bool:
            told = len(await self.events(EventKind.ROLLOUT))
            return told == ended and self.clock.waits == [wakes_at]

        await until(is_still)

    async def groups(self) -> list[Group]:
        return await self.store.groups(builders.ACCOUNT, "job_walk")

    async def trajectories(self) -> list[Trajectory]:
        page = await self.store.rollouts(
            builders.ACCOUNT, RolloutQuery(job_id="job_walk", limit=10_000)
        )
        ids = [summary.rollout.rollout_id for summary in page]
        return [await self.store.trajectory(builders.ACCOUNT, each) for each in ids]


async def _nowhere(job: Job) -> None:
    pass


async def same(folder: str) -> str:
    """A model is given by its folder."""
    return folder


class Agent(ScriptedAgent):
    """Plays through the fake gateway as the world says; `check` may fail."""

    def __init__(self, world: World) -> None:
        rollouts = world.gateway.rollouts
        super().__init__(
            world.gateway,
            behaviour=lambda request: world.behave(rollouts[request.rollout_id]),
            reward=lambda request, replies: world.reward(rollouts[request.rollout_id]),
        )
        self._world = world

    async def check(self) -> None:
        self._world.check()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    clock = FakeClock()
    store = SqlStore.in_memory(clock=clock)
    yield World(tmp_path, store, clock)
    await store.close()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"


async def run(world: World, job: Job, validation: list[Row] | None = None) -> Job:
    await world.store.create_job(job)
    await world.loop(job, rows(), validation).run()
    return await world.job()


async def assert_ledger_is_complete(world: World) -> None:
    bins = await world.store.ledger(builders.ACCOUNT, "job_walk")
    sampled = sum(t.sampled_tokens for t in await world.trajectories())
    assert sum(tokens for step in bins.values() for tokens in step.values()) == sampled
    await assert_usage_is_the_ledgers(world)
    logged: dict[int, dict[str, int]] = {}
    for event in await world.events(EventKind.METRICS):
        values = event.body["values"]
        # What was trained again after a fall-back counts as it was at last.
        ended = {bin.value: values[name] for bin in Bin if (name := f"ledger/{bin}") in values}
        logged[event.body["step"]] = logged.get(event.body["step"], {}) | ended
    assert _without_zeros(logged) == _without_zeros(bins)


async def assert_usage_is_the_ledgers(world: World) -> None:
    """Of a job that has ended: everything it sampled is in a bin, and the cost follows from it."""
    bins: Counter[str] = Counter()
    for step in (await world.store.ledger(builders.ACCOUNT, "job_walk")).values():
        bins.update(step)
    turns = [turn for t in await world.trajectories() for turn in t.turns]
    assert await world.store.usage(builders.ACCOUNT, "job_walk") == TokenUsage(
        train=bins["trained"],
        prefill=sum(turn.prompt_tokens for turn in turns),
        cached=sum(turn.cached_tokens for turn in turns),
        sample=bins.total(),
    )
    assert bins.total() == sum(turn.sampled_tokens for turn in turns)


def _without_zeros(bins: Mapping[int, Mapping[str, int]]) -> dict[int, dict[str, int]]:
    counted = {step: {name: n for name, n in each.items() if n} for step, each in bins.items()}
    return {step: each for step, each in counted.items() if each}


async def resume(
    world: World,
    job: Job,
    train: list[Row] | None = None,
    validation: list[Row] | None = None,
) -> Job:
    """What control does on `jobs resume`, and the loop after it."""
    body = {"status": "PENDING", "secondary": "Pending", "message": ""}
    draft = EventDraft(kind=EventKind.STATUS, body=body)
    await world.store.append(builders.ACCOUNT, "job_walk", [draft])
    await world.loop(job, train or rows(), validation).run()
    return await world.job()
