"""A job's events in MLflow, whatever MLflow does meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests import builders
from tests.builders import ACCOUNT
from tests.unit.tracking.fake_mlflow import FakeMlflow, fake_mlflow, trace_ids, until
from turnwise.domain.event import EventDraft, EventKind
from turnwise.domain.job import Inputs, Job, JobStatus, Secondary, TrackingSpec
from turnwise.domain.rollout import Blame, Fault, RolloutStatus
from turnwise.ports import FinishedStep
from turnwise.storage.sql import SqlStore
from turnwise.tracking import feed as feeds
from turnwise.tracking.details import RunState, mlflow_details, run_state
from turnwise.tracking.feed import Feed
from turnwise.tracking.mlflow import Mlflow
from turnwise.tracking.mlflow_runs import MlflowRuns
from turnwise.tracking.reading import LONGEST_PAUSE_S
from turnwise.tracking.tracker import LATE_AT_ONCE, Tracker


class HastyClock:
    """Sleeping takes a moment, whatever was asked for; what was asked for is kept."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> float:
        return 1000.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0.005)


class World:
    """A stored job, its MLflow, and feeds between them."""

    def __init__(self, store: SqlStore, mlflow: FakeMlflow, job: Job) -> None:
        self.store = store
        self.mlflow = mlflow
        self.job = job
        self.clock = HastyClock()
        self.share = 1.0
        self.clients: list[Mlflow] = []

    def feed(self) -> Feed:
        """As a server process makes one."""

        async def share(job: Job) -> float:
            return self.share

        self.clients.append(Mlflow(self.mlflow.at))
        return Feed(
            self.job,
            store=self.store,
            resources=self.store,
            mlflow=self.clients[-1],
            clock=self.clock,
            share=share,
        )

    async def append(self, kind: EventKind, **body: Any) -> None:
        await self.store.append(ACCOUNT, self.job.job_id, [EventDraft(kind=kind, body=body)])

    async def metrics(self, step: int, **values: float) -> None:
        await self.append(
            EventKind.METRICS, step=step, values={"rollout/reward/mean": 0.5 + step} | values
        )

    async def status(self, status: JobStatus, message: str = "") -> None:
        secondary = Secondary(status.value.capitalize()) if status.is_final else Secondary.TRAINING
        body = {"status": status.value, "secondary": secondary.value, "message": message}
        await self.append(EventKind.STATUS, **body)

    async def rollouts(self, count: int, *, first: int = 0, failed: bool = False) -> list[str]:
        """Closed rollouts of one turn each, with their events; their ids."""
        ids = [f"rol_{n}" for n in range(first, first + count)]
        for slot, rollout_id in enumerate(ids, first):
            await self.store.open_rollouts([builders.rollout(rollout_id, slot=slot)])
            nodes, turn = builders.turn_with_nodes(turn_id=f"trn_{rollout_id}")
            await self.store.commit_turn(ACCOUNT, rollout_id, nodes, turn)
            fault = Fault(blame=Blame.AGENT, code="deadline", message="too slow")
            status = RolloutStatus.FAILED if failed else RolloutStatus.REWARDED
            await self.store.move_rollout(
                *(ACCOUNT, rollout_id, [RolloutStatus.PENDING]),
                status=status,
                rewards=None if failed else (1.0,),
                fault=fault if failed else None,
                ended_at=1002.0,
            )
            more = {"fault": {"code": "deadline"}} if failed else {"reward": 1.0}
            await self.append(EventKind.ROLLOUT, rollout_id=rollout_id, **more)
        return ids

    async def state(self) -> RunState:
        """What is stored of the run."""
        found = await run_state(self.store, ACCOUNT, self.job.job_id)
        assert found is not None
        return found

    async def close(self) -> None:
        for client in self.clients:
            await client.close()


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(feeds, "TELL_LINGER_S", 0.02)
    monkeypatch.setattr(feeds, "TRACE_LINGER_S", 0.02)
    store = SqlStore.in_memory()
    spec = builders.spec(tracking=TrackingSpec(mlflow=True, experiment="walks"))
    inputs = Inputs(base_sha256="b" * 64, dataset_sha256="d" * 64)
    job = await store.create_job(builders.job(spec=spec, inputs=inputs))
    async with fake_mlflow(tmp_path) as mlflow:
        made = World(store, mlflow, job)
        await made.status(JobStatus.RUNNING)
        yield made
        await made.close()
    await store.close()


async def run(feed: Feed) -> None:
    async with asyncio.timeout(20):
        await feed.run()


async def test_a_job_becomes_a_run_with_its_metrics_parameters_dataset_and_end(
    world: World,
) -> None:
    await world.metrics(0, **{"val/reward/pass_at_1": 0.25, "val/reward/pass_k_1": 0.25})
    await world.metrics(1)
    await world.status(JobStatus.COMPLETED)
    await run(world.feed())
    assert world.mlflow.experiments == {"walks": "1"}
    assert [each["name"] for each in world.mlflow.runs.values()] == ["walk"]
    assert world.mlflow.steps("rollout/reward/mean") == [0, 1]
    assert world.mlflow.steps("val/reward/pass_k_1") == [0]
    assert world.mlflow.params["batch.group_size"] == "8"
    assert world.mlflow.params["tracking.experiment"] == "walks"
    assert world.mlflow.datasets[0]["dataset"]["digest"] == "d" * 36
    assert world.mlflow.statuses[-1] == "FINISHED"
    assert world.mlflow.tags["turnwise.job_id"] == "job_walk"
    assert world.mlflow.tags["turnwise.traces"] == "every rollout has a trace"
    assert await mlflow_details(world.store, ACCOUNT, "job_walk") == {
        "ExperimentName": "walks",
        "ExperimentId": "1",
        "RunName": "walk",
        "RunId": "run1",
    }


async def test_a_failed_job_says_why_in_its_run(world: World) -> None:
    await world.status(JobStatus.FAILED, "the agent is gone")
    await run(world.feed())
    assert world.mlflow.statuses[-1] == "FAILED"
    assert world.mlflow.tags["turnwise.message"] == "the agent is gone"


async def test_what_happens_while_mlflow_is_down_is_there_once_it_is_up(world: World) -> None:
    await world.metrics(0)
    task = asyncio.create_task(run(world.feed()))
    await until(lambda: world.mlflow.steps("rollout/reward/mean") == [0])
    await world.mlflow.stop()
    for step in range(1, 5):
        await world.metrics(step)
    await world.rollouts(3)
    await world.status(JobStatus.COMPLETED)
    await until(lambda: len(world.clock.slept) > 10)
    assert not task.done()
    await world.mlflow.start()
    await task
    assert world.mlflow.steps("rollout/reward/mean") == [0, 1, 2, 3, 4]
    assert len(world.mlflow.traces) == 3
    assert world.mlflow.statuses[-1] == "FINISHED"
    assert max(world.clock.slept) <= LONGEST_PAUSE_S


async def test_a_restarted_server_goes_on_where_the_last_one_stood(world: World) -> None:
    await world.metrics(0)
    await world.rollouts(2)
    first = asyncio.create_task(run(world.feed()))
    await until(lambda: len(world.mlflow.traces) == 2)
    while (await world.state()).traced < 4 or (await world.state()).told < 4:
        await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await world.metrics(1)
    await world.rollouts(2, first=2)
    await world.status(JobStatus.STOPPED)
    asked = len(world.mlflow.requests)
    await run(world.feed())
    assert len(world.mlflow.runs) == 1
    assert world.mlflow.steps("rollout/reward/mean") == [0, 1]
    assert len(world.mlflow.traces) == 4
    assert sum(world.mlflow.batches) == 4  # none was sent twice
    assert "/api/2.0/mlflow/runs/create" not in world.mlflow.requests[asked:]


async def test_a_run_that_was_made_in_the_moment_of_a_crash_is_found_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = asyncio.Event()

    async def never(*_: Any) -> None:
        saving.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(feeds, "save_run_state", never)
        first = asyncio.create_task(run(world.feed()))
        await saving.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert len(world.mlflow.runs) == 1
    assert await run_state(world.store, ACCOUNT, "job_walk") is None
    await world.status(JobStatus.COMPLETED)
    await run(world.feed())
    assert len(world.mlflow.runs) == 1


def answers(status: int, *, times: int, path: str) -> Any:
    """So many errors of that status, after the request was done: the answer is what was lost."""
    left = times

    async def trouble(fake: FakeMlflow, request: web.Request, body: bytes) -> web.Response | None:
        nonlocal left
        if not request.path.endswith(path) or left == 0:
            return None
        left -= 1
        fake.keep(request, body)
        return web.json_response({"error_code": "INTERNAL_ERROR", "message": "x"}, status=status)

    return trouble


async def test_an_error_after_the_work_was_done_doubles_nothing(world: World) -> None:
    failing = answers(500, times=3, path="log-batch")
    world.mlflow.trouble = lambda request, body: failing(world.mlflow, request, body)
    for step in range(3):
        await world.metrics(step)
    await world.status(JobStatus.COMPLETED)
    await run(world.feed())
    assert world.mlflow.steps("rollout/reward/mean") == [0, 1, 2]
    assert len(world.mlflow.runs) == 1


async def test_a_batch_of_traces_that_mlflow_will_not_have_is_split_to_the_one_at_fault(
    world: World,
) -> None:
    ids = await world.rollouts(9)
    await world.status(JobStatus.COMPLETED)
    bad: set[str] = set()

    async def trouble(request: web.Request, body: bytes) -> web.Response | None:
        if request.path != "/v1/traces":
            return None
        bad.update(sorted(trace_ids(body))[:1] if not bad else [])
        is_bad = bool(bad & trace_ids(body))
        return web.json_response({"detail": "no"}, status=422) if is_bad else None

    world.mlflow.trouble = trouble
    await run(world.feed())
    assert len(world.mlflow.traces) == len(ids) - 1
    assert world.mlflow.tags["turnwise.trace_left_out"] in bad


async def test_one_trace_that_always_breaks_mlflow_does_not_hold_up_the_others(
    world: World,
) -> None:
    await world.rollouts(4)
    await world.status(JobStatus.COMPLETED)
    bad: set[str] = set()

    async def trouble(request: web.Request, body: bytes) -> web.Response | None:
        if request.path != "/v1/traces":
            return None
        bad.update(sorted(trace_ids(body))[:1] if not bad else [])
        return web.Response(status=500) if bad & trace_ids(body) else None

    world.mlflow.trouble = trouble
    await run(world.feed())
    assert len(world.mlflow.traces) == 3


async def test_a_slow_mlflow_keeps_nobody_waiting_and_memory_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "MAX_TRACES", 4)
    loaded = 0
    trajectory = world.store.trajectory

    async def counted(account_id: str, rollout_id: str) -> Any:
        nonlocal loaded
        loaded += 1
        return await trajectory(account_id, rollout_id)

    monkeypatch.setattr(world.store, "trajectory", counted)
    gate = asyncio.Event()

    async def slow(request: web.Request, body: bytes) -> web.Response | None:
        if request.path == "/v1/traces":
            await gate.wait()
        return None

    world.mlflow.trouble = slow
    await world.rollouts(20)
    task = asyncio.create_task(run(world.feed()))
    await world.metrics(0)  # metrics do not wait for traces
    await until(lambda: world.mlflow.steps("rollout/reward/mean") == [0])
    assert loaded <= 4
    gate.set()
    await world.status(JobStatus.COMPLETED)
    await task
    assert max(world.mlflow.batches) == 4
    assert len(world.mlflow.traces) == 20


async def test_of_many_rollouts_a_share_is_traced_and_every_failure(world: World) -> None:
    world.share = 0.25
    await world.rollouts(60)
    await world.rollouts(5, first=60, failed=True)
    await world.status(JobStatus.COMPLETED)
    await run(world.feed())
    roots = [spans[0] for spans in world.mlflow.traces.values()]
    failed = [span for span in roots if span["status"]["code"] == 2]
    assert len(failed) == 5
    assert 5 <= len(roots) - len(failed) <= 27  # 15 expected
    assert world.mlflow.tags["turnwise.trace_share"] == "0.25"
    assert "25.0% of the rollouts" in world.mlflow.tags["turnwise.traces"]


async def test_a_metric_that_mlflow_has_no_letters_for_costs_no_other(world: World) -> None:
    await world.metrics(0, **{"rollout/metrics/size (µm)/mean": 1.0})
    await world.status(JobStatus.COMPLETED)
    await run(world.feed())
    assert world.mlflow.steps("rollout/reward/mean") == [0]
    assert world.mlflow.steps("rollout/metrics/size __m_/mean") == [0]


async def test_the_adapter_that_a_job_leaves_becomes_an_artifact(
    world: World, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    package = builders.package(path=str(folder))
    checkpoint = builders.checkpoint()
    await world.store.finish_step(
        ACCOUNT,
        "job_walk",
        FinishedStep(
            step=0,
            policy=builders.Policy(adapter_id=package.sha256, policy_step=1),
            groups=(),
            bins={},
            checkpoint=checkpoint,
            packages=(package,),
            events=(),
        ),
    )
    await world.status(JobStatus.COMPLETED)
    await run(world.feed())
    path = "/api/2.0/mlflow-artifacts/artifacts/1/run1/artifacts/adapter/adapter_model.safetensors"
    assert world.mlflow.files == {path: b"weights"}
    assert world.mlflow.tags["turnwise.output"] == "walk/1"


async def test_a_deleted_job_ends_its_feed(world: World) -> None:
    task = asyncio.create_task(run(world.feed()))
    await until(lambda: bool(world.mlflow.runs))
    await world.status(JobStatus.STOPPED)
    await world.store.delete_job(ACCOUNT, "job_walk")
    await task


# ── which jobs ────────────────────────────────────────────────────────────────────────────────


def tracker(world: World, *, is_on: bool = True, per_step: int = 512) -> Tracker:
    async def largest_step(job: Job) -> int:
        return 0

    mlflow = MlflowRuns(
        store=world.store,
        resources=world.store,
        address=lambda account_id: world.mlflow.at(),
        clock=world.clock,
        largest_step=largest_step,
        traces_per_step=per_step,
    )
    return Tracker(world.store, [mlflow] if is_on else [])


@pytest.fixture
async def make(world: World) -> AsyncIterator[Callable[..., Tracker]]:
    made: list[Tracker] = []

    def one(**options: Any) -> Tracker:
        made.append(tracker(world, **options))
        return made[-1]

    yield one
    for each in made:
        await each.close()


async def test_a_job_that_does_not_ask_for_mlflow_or_a_server_without_it_tells_nothing(
    world: World, make: Callable[..., Tracker]
) -> None:
    untracked = replace(world.job, spec=replace(world.job.spec, tracking=TrackingSpec()))
    make().follow(untracked)
    make(is_on=False).follow(world.job)
    await asyncio.sleep(0.05)
    assert world.mlflow.requests == []


async def test_a_job_that_ended_untold_is_told_by_the_next_server(
    world: World, make: Callable[..., Tracker]
) -> None:
    await world.metrics(0)
    await world.status(JobStatus.COMPLETED)
    first = make()
    await first.recover()
    await until(lambda: world.mlflow.statuses[-1:] == ["FINISHED"])
    await until(lambda: not first._following)
    asked = len(world.mlflow.requests)
    second = make()
    await second.recover()  # everything is told: nothing is asked again
    await asyncio.sleep(0.05)
    assert len(world.mlflow.requests) == asked


async def test_of_many_jobs_that_ended_untold_a_few_are_told_at_a_time_and_at_last_all(
    world: World, make: Callable[..., Tracker]
) -> None:
    for n in range(9):
        name = f"late{n}"
        await world.store.create_job(replace(world.job, job_id=f"job_{name}", name=name))
        body = {"status": "STOPPED", "secondary": "Stopped", "message": ""}
        draft = EventDraft(kind=EventKind.STATUS, body=body)
        await world.store.append(ACCOUNT, f"job_{name}", [draft])
    await world.status(JobStatus.STOPPED)
    gate = asyncio.Event()

    async def slow(request: web.Request, body: bytes) -> web.Response | None:
        await gate.wait()
        return None

    world.mlflow.trouble = slow
    late = make()
    await late.recover()
    await until(lambda: len(late._following) == LATE_AT_ONCE)
    await asyncio.sleep(0.05)
    assert len(late._following) == LATE_AT_ONCE
    gate.set()
    await until(lambda: world.mlflow.statuses.count("KILLED") == 10)


async def test_a_feed_keeps_no_place_for_a_job_that_is_gone(world: World) -> None:
    gate, is_asked = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request, body: bytes) -> web.Response | None:
        if b"rollout/reward/mean" in body:
            is_asked.set()
            await gate.wait()
        return None

    world.mlflow.trouble = slow
    await world.metrics(0)
    await world.status(JobStatus.STOPPED)
    feed = world.feed()
    task = asyncio.create_task(run(feed))
    await is_asked.wait()
    await until(lambda: feed._state is not None and feed._state.traced > 0)
    await asyncio.sleep(0.05)  # the traces are done
    await world.store.delete_job(ACCOUNT, "job_walk", [("mlflow-run", "job_walk")])
    gate.set()
    await task
    assert await world.store.resources(ACCOUNT, "mlflow-run") == []


async def test_a_resumed_job_goes_on_in_its_run(world: World, make: Callable[..., Tracker]) -> None:
    following = make()
    following.follow(world.job)
    await world.metrics(0)
    await world.status(JobStatus.STOPPED)
    await until(lambda: world.mlflow.statuses[-1:] == ["KILLED"])
    await world.status(JobStatus.PENDING)
    await world.status(JobStatus.RUNNING)
    following.follow(world.job)
    await world.metrics(1)
    await world.status(JobStatus.COMPLETED)
    await until(lambda: world.mlflow.statuses[-1:] == ["FINISHED"])
    assert world.mlflow.steps("rollout/reward/mean") == [0, 1]
    assert len(world.mlflow.runs) == 1


async def test_a_reader_sees_what_the_event_log_held_when_it_asked(
    world: World, make: Callable[..., Tracker]
) -> None:
    following = make()
    following.follow(world.job)
    for step in range(5):
        await world.metrics(step)
        await following.settle(ACCOUNT)
        assert world.mlflow.steps("rollout/reward/mean") == [*range(step + 1)]


async def test_a_reader_does_not_wait_for_an_mlflow_that_is_down(
    world: World, make: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnwise.tracking.tracker.SETTLE_S", 0.1)
    await world.mlflow.stop()
    following = make()
    following.follow(world.job)
    async with asyncio.timeout(30):
        await following.settle(ACCOUNT)


async def test_the_share_follows_from_the_largest_step(
    world: World, make: Callable[..., Tracker]
) -> None:
    make(per_step=256).follow(world.job)  # 128 groups of 8
    await until(lambda: "turnwise.trace_share" in world.mlflow.tags)
    assert world.mlflow.tags["turnwise.trace_share"] == "0.25"
    assert json.loads(world.mlflow.params.get("batch.global_batch_size", "0")) in (0, 128)
