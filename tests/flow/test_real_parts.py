"""Jobs on the real loop, gateway, engine and learner, all in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import builders
from tests.service import save_chat_model
from turnwise.agents import PythonAgent
from turnwise.domain.data import Row
from turnwise.domain.event import EventKind
from turnwise.domain.job import AsyncSpec, BatchSpec, Job, JobStatus, RolloutSpec, ScheduleSpec
from turnwise.domain.rollout import Purpose, SamplingParams
from turnwise.domain.training import LearnerSpec, LoraSpec, OptimizerSpec
from turnwise.gateway.gateway import Gateway
from turnwise.loop.run import JobLoop
from turnwise.loop.sockets import Sockets
from turnwise.ports import EngineSpec, RolloutQuery
from turnwise.rendering.family import load_renderer
from turnwise.sampling.embedded import EmbeddedSampler
from turnwise.sampling.shared import SharedSampler
from turnwise.storage.blobs import FolderBlobs
from turnwise.storage.sql import SqlStore
from turnwise.system import SYSTEM_CLOCK, new_id
from turnwise.training.process import ThreadedLearner
from turnwise.wire.inside import InsideDoor

ROWS = [Row(index=n, prompt=f"row {n}", fields={"prompt": f"row {n}"}) for n in range(8)]
STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a job sampled and learned, to the bit."""

    tokens: dict[tuple[int, int, int, int], list[int]]  # by step, row, slot and node
    logprobs: dict[tuple[int, int, int, int], list[float]]
    adapters: list[str]
    curve: list[dict[str, float]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"))


def engine_of(model: Path, *, deterministic: bool = False) -> SharedSampler:
    spec = EngineSpec(base_model=str(model), deterministic=deterministic)
    return SharedSampler(EmbeddedSampler(spec))


def job(model: Path, name: str, **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "model": str(model),
        "batch": BatchSpec(global_batch_size=2, group_size=4),
        "schedule": ScheduleSpec(max_epochs=9, max_steps=STEPS, val_every=0),
        "async_config": AsyncSpec(max_steps_off_policy=0),
        "sampling_params": SamplingParams(max_tokens=12),
        "optimizer": OptimizerSpec(learning_rate=0.02),
    }
    return builders.job(name, spec=builders.spec(name, **(fields | changes)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What jobs share; closed at the end."""

    store: SqlStore
    gateway: Gateway
    engine: SharedSampler
    folder: Path
    opened: AsyncExitStack

    async def loop(self, job: Job, agent: str) -> JobLoop:
        """A job's loop with a sampler, a learner and an agent of its own."""
        spec = job.spec
        sampler = self.engine.claim()
        self.opened.push_async_callback(sampler.close)
        learner = ThreadedLearner(
            LearnerSpec(
                base_model=spec.model, lora=spec.lora, optimizer=spec.optimizer, seed=spec.seed
            )
        )
        self.opened.push_async_callback(learner.close)
        # Loaded before the next one: two threads cannot read models at once (transformers).
        await learner.score(np.zeros(2, np.int32))
        door = InsideDoor(self.gateway, job.account_id)
        runner = PythonAgent(f"tests.flow.inside_agents:{agent}", door)
        self.opened.push_async_callback(runner.close)
        self.gateway.attach(job, sampler, load_renderer(Path(spec.model), spec.history))
        sockets = Sockets(
            store=self.store,
            rollouts=self.gateway,
            sampler=sampler,
            learner=learner,
            runner=runner,
            blobs=FolderBlobs(self.folder / "blobs"),
            clock=SYSTEM_CLOCK,
            new_id=new_id,
            endpoint=lambda rollout_id, secret: "",
            job_arn="",
            model_folder=_no_model,
        )
        return JobLoop(job, ROWS, [], sockets)


async def _no_model(name: str) -> str:
    raise AssertionError(f"nothing here evaluates {name}")


@asynccontextmanager
async def parts(folder: Path, engine: SharedSampler) -> AsyncIterator[Parts]:
    """Parts around the database in a folder, new or old."""
    folder.mkdir(exist_ok=True)
    async with asyncio.timeout(60), AsyncExitStack() as opened:
        store = SqlStore.open(folder / "turnwise.db")
        opened.push_async_callback(store.close)
        gateway = Gateway(store, SYSTEM_CLOCK, new_id)
        opened.push_async_callback(gateway.close)
        yield Parts(store=store, gateway=gateway, engine=engine, folder=folder, opened=opened)


async def run(folder: Path, engine: SharedSampler, jobs: list[Job]) -> list[Learned]:
    """What jobs learn that run at the same time."""
    async with parts(folder, engine) as world:
        for each in jobs:
            await world.store.create_job(each)
        loops = [await world.loop(each, "chatty") for each in jobs]
        await asyncio.gather(*(loop.run() for loop in loops))
        return [await learned(world.store, each) for each in jobs]


async def learned(store: SqlStore, job: Job) -> Learned:
    ended = await store.job(job.account_id, job.job_id)
    assert (ended.status, ended.step) == (JobStatus.COMPLETED, STEPS), ended.message
    tokens, logprobs = {}, {}
    query = RolloutQuery(job_id=job.job_id, purpose=Purpose.TRAIN, limit=1000)
    for summary in await store.rollouts(job.account_id, query):
        found = await store.trajectory(job.account_id, summary.rollout.rollout_id)
        for node in found.nodes:
            place = (found.rollout.step, found.rollout.row_index, found.rollout.slot, node.node_id)
            tokens[place] = node.tokens.tolist()
            if node.logprobs is not None:
                logprobs[place] = node.logprobs.tolist()

    names = ("rollout/reward/mean", "training/loss", "training/grad_norm")
    return Learned(
        tokens=tokens,
        logprobs=logprobs,
        adapters=[body["adapter_id"] for body in await bodies(store, job, EventKind.STEP)],
        curve=[
            {name: body["values"][name] for name in names}
            for body in await bodies(store, job, EventKind.METRICS)
        ],
    )


async def bodies(store: SqlStore, job: Job, kind: EventKind) -> list[Any]:
    events = await store.events(job.account_id, job.job_id, kinds=[kind.value])
    return [event.body for event in events]


async def test_jobs_of_rank_4_and_16_do_not_notice_each_other_on_a_deterministic_engine(
    model, tmp_path
):
    engine = engine_of(model, deterministic=True)
    jobs = [
        job(model, f"rank-{rank}", lora=LoraSpec(rank=rank, alpha=2 * rank), deterministic=True)
        for rank in (4, 16)
    ]
    alone = [(await run(tmp_path / f"alone-{each.name}", engine, [each]))[0] for each in jobs]
    together = await run(tmp_path / "together", engine, jobs)

    assert together == alone
    assert len(set(alone[0].adapters + alone[1].adapters)) == 2 * STEPS
    assert all(step["training/grad_norm"] > 0 for each in alone for step in each.curve)


async def test_no_token_gets_too_old_nor_lost_though_agents_break_and_the_server_crashes(
    model, tmp_path
):
    engine = engine_of(model)
    walk = job(
        model,
        "walk",
        schedule=ScheduleSpec(max_epochs=9, max_steps=8, val_every=0),
        async_config=AsyncSpec(max_steps_off_policy=2),
        rollout=RolloutSpec(rollout_timeout=20, rollout_max_retries=1),
    )
    async with parts(tmp_path, engine) as world:
        await world.store.create_job(walk)
        running = asyncio.create_task((await world.loop(walk, "unreliable")).run())
        while len(await bodies(world.store, walk, EventKind.STEP)) < 3:
            await asyncio.sleep(0.01)
        await world.store.close()  # from now on nothing is kept, as after a crash
        assert isinstance(*await asyncio.gather(running, return_exceptions=True), Exception)
    async with parts(tmp_path, engine) as world:
        crashed = await world.store.job(walk.account_id, walk.job_id)
        assert (crashed.status, crashed.incarnation) == (JobStatus.RUNNING, 1)
        await (await world.loop(crashed, "unreliable")).run()

        ended = await world.store.job(walk.account_id, walk.job_id)
        assert (ended.status, ended.step) == (JobStatus.COMPLETED, 8), ended.message
        steps = await bodies(world.store, walk, EventKind.METRICS)
        ages = [step["values"].get("staleness/max", 0) for step in steps]
        assert 0 < max(ages) <= 2
        trained = [
            group
            for step in await bodies(world.store, walk, EventKind.STEP)
            for group in step["groups"]
        ]
        assert len(trained) == len(set(trained)) == 8 * 2
        query = RolloutQuery(job_id=walk.job_id, limit=1000)
        rollouts = await world.store.rollouts(walk.account_id, query)
        ledger = await world.store.ledger(walk.account_id, walk.job_id)
        assert sum(sum(step.values()) for step in ledger.values()) == sum(
            each.tokens for each in rollouts
        )
        codes = {each.rollout.fault.code for each in rollouts if each.rollout.fault}
        # Superseded are those that were open at the crash, of which there may be none.
        assert codes - {"superseded"} == {"agent_error"}
