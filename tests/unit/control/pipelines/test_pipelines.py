"""Executions are driven to their end, whatever fails and whenever the server is killed."""

import asyncio
import dataclasses
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import ACCOUNT, SetClock
from turnwise import errors
from turnwise.control.pipelines.definition import StepKind, parse_definition
from turnwise.control.pipelines.execution import (
    Execution,
    ExecutionStatus,
    StepState,
    StepStatus,
    as_body,
    begin,
    end,
    from_body,
    job_name,
    ready,
    settle,
    stop,
)
from turnwise.control.pipelines.pipelines import Pipeline, Pipelines, Start
from turnwise.domain.access import Action, Principal
from turnwise.domain.resource import Resource
from turnwise.storage.sql import SqlStore

ADMIN = Principal(account_id=ACCOUNT)
EVALUATION = "AgentRFTEvaluation"


def definition(graph: Mapping[str, tuple[str, list[str]]]) -> str:
    """Steps by name: their kind and what they depend on. A job is tagged with its step."""
    steps = []
    for name, (kind, depends_on) in graph.items():
        arguments: dict[str, Any] = {}
        if kind == "Job":
            arguments = {
                "JobCategory": EVALUATION,
                "RoleArn": "arn:aws:iam::000000000001:role/any",
                "JobConfigSchemaVersion": "1.0.0",
                "JobConfigDocument": "{}",
                "Tags": [name],
            }
        steps.append({"Name": name, "Type": kind, "DependsOn": depends_on, "Arguments": arguments})
    return json.dumps({"Version": "2020-12-01", "Steps": steps})


COMPARISON = {
    "Create": ("Lineage", []),
    "Base": ("Job", ["Create"]),
    "Tuned": ("Job", ["Base"]),
    "Associate": ("Lineage", ["Tuned"]),
}
PARALLEL = {"A": ("Job", []), "B": ("Job", []), "C": ("Job", ["A", "B"])}


class Jobs:
    """Jobs that end as a test says; `effect` is called around each of their changes."""

    def __init__(self, *, room: int = 9, outcomes: Mapping[str, str] | None = None) -> None:
        self.room = room
        self.outcomes = outcomes or {}  # by step; else Completed
        self.ends_by_itself = True
        self.created: list[dict[str, Any]] = []
        self.statuses: dict[str, str] = {}  # by job
        self.most_at_once = 0
        self.effect: Callable[[], None] = lambda: None
        self.refuses: dict[str, Exception] = {}  # by step

    @property
    def steps(self) -> list[str]:
        return [given["Tags"][0] for given in self.created]

    async def create(self, account_id: str, given: Mapping[str, Any]) -> None:
        assert account_id == ACCOUNT
        self.effect()
        running = sum(status == "InProgress" for status in self.statuses.values())
        if running >= self.room:
            raise errors.LimitExceeded("no room")
        if given["JobName"] in self.statuses:
            raise errors.Conflict("exists")
        if error := self.refuses.get(given["Tags"][0]):
            raise error
        self.most_at_once = max(self.most_at_once, running + 1)
        self.created.append(dict(given))
        self.statuses[given["JobName"]] = "InProgress"
        self.effect()

    async def describe(self, account_id: str, category: str, name: str) -> Mapping[str, Any]:
        assert (account_id, category) == (ACCOUNT, EVALUATION)
        if name not in self.statuses:
            raise errors.NotFound("job", name)
        shown = self.statuses[name]
        if self.ends_by_itself:
            self.end(name)
        document = json.dumps({"ServiceOutput": {"MlflowDetails": {"RunId": f"run of {name}"}}})
        reason = {"FailureReason": "it broke"} if shown == "Failed" else {}
        return {"JobName": name, "JobStatus": shown, "JobConfigDocument": document} | reason

    def end(self, name: str) -> None:
        step = next(one["Tags"][0] for one in self.created if one["JobName"] == name)
        if self.statuses[name] == "InProgress":
            self.statuses[name] = self.outcomes.get(step, "Completed")

    async def stop(self, account_id: str, category: str, name: str) -> None:
        if name not in self.statuses:
            raise errors.NotFound("job", name)
        if self.statuses[name] == "InProgress":
            self.statuses[name] = "Stopped"


class World:
    """The pipelines of one server; `restarted` gives the next server's on the same store."""

    def __init__(self, store: SqlStore, jobs: Jobs, ids: list[int] | None = None) -> None:
        self.store = store
        self.jobs = jobs
        self.ids = ids if ids is not None else []
        self.clock = SetClock()
        self.pipelines = Pipelines(
            resources=store,
            accounts=store.accounts,
            clock=self.clock,
            new_id=self._new_id,
            poll_s=0,
        )
        self.pipelines.plug(jobs)

    def _new_id(self, prefix: str) -> str:
        self.ids.append(0)
        return f"{prefix}_{chr(ord('a') + len(self.ids)) * 26}"

    async def create(self, graph: Mapping[str, tuple[str, list[str]]], name: str = "p") -> None:
        pipeline = Pipeline(name=name, definition=definition(graph), token="t" * 32)
        await self.pipelines.create(ADMIN, pipeline)

    async def start(self, name: str = "p", token: str = "s", **more: Any) -> str:
        start = Start(token=token, **more)
        made = await self.pipelines.start(ADMIN, name, start, lambda found: {"x": found})
        return made.execution_id

    async def ended(self, execution_id: str) -> Execution:
        async with asyncio.timeout(30):
            while True:
                found = await self.pipelines.execution(ADMIN, execution_id)
                if found.status.is_final:
                    return found
                await asyncio.sleep(0)

    async def restarted(self) -> "World":
        await self.pipelines.close()
        after = World(self.store, self.jobs, self.ids)
        await after.pipelines.recover()
        return after


@pytest.fixture
async def store() -> AsyncIterator[SqlStore]:
    opened = SqlStore.in_memory()
    await opened.default_account()
    yield opened
    await opened.close()


@pytest.fixture
async def world(store: SqlStore) -> AsyncIterator[World]:
    made = World(store, Jobs())
    yield made
    await made.pipelines.close()


def statuses(execution: Execution) -> dict[str, str]:
    return {name: state.status.value for name, state in execution.steps.items()}


async def test_steps_run_one_after_the_other_and_the_execution_succeeds(world: World):
    await world.create(COMPARISON)
    ended = await world.ended(await world.start())

    assert ended.status is ExecutionStatus.SUCCEEDED
    assert statuses(ended) == dict.fromkeys(COMPARISON, "Succeeded")
    assert [name for name, _ in ended.begun] == list(COMPARISON)
    assert world.jobs.steps == ["Base", "Tuned"]
    base = world.jobs.created[0]
    assert base["JobName"] == job_name(ended.execution_id, "Base") == ended.steps["Base"].job


async def test_a_failed_job_fails_its_step_and_the_execution_and_nothing_more_begins(world: World):
    world.jobs.outcomes = {"Base": "Failed"}
    await world.create(COMPARISON)
    ended = await world.ended(await world.start())

    assert ended.status is ExecutionStatus.FAILED
    assert statuses(ended) == {
        "Create": "Succeeded",
        "Base": "Failed",
        "Tuned": "Waiting",
        "Associate": "Waiting",
    }
    job = ended.steps["Base"].job
    assert ended.failure == f"step Base: job {job} failed: it broke"
    assert world.jobs.steps == ["Base"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.InvalidInput("dataset", "x", "cannot be read"), "dataset: 'x' cannot be read"),
        (ValueError("a bug"), "internal error: ValueError"),
    ],
)
async def test_a_job_that_is_refused_fails_its_step_with_the_refusals_words(
    world: World, error: Exception, words: str
):
    world.jobs.refuses = {"Base": error}
    await world.create(COMPARISON)
    ended = await world.ended(await world.start())
    assert (ended.status, ended.failure) == (ExecutionStatus.FAILED, f"step Base: {words}")


async def test_a_job_that_somebody_stops_or_deletes_fails_the_execution(world: World):
    world.jobs.outcomes = {"A": "Stopped"}
    await world.create({"A": ("Job", [])})
    ended = await world.ended(await world.start())
    assert (ended.status, statuses(ended)) == (ExecutionStatus.FAILED, {"A": "Stopped"})
    assert "was stopped" in ended.failure

    world.jobs.ends_by_itself = False
    execution_id = await world.start(token="another")
    await until(lambda: len(world.jobs.created) == 2)
    del world.jobs.statuses[world.jobs.created[1]["JobName"]]
    ended = await world.ended(execution_id)
    assert (ended.status, statuses(ended)) == (ExecutionStatus.FAILED, {"A": "Failed"})
    assert "has been deleted" in ended.failure


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0)


async def test_independent_steps_wait_for_room_rather_than_fail(world: World):
    world.jobs.room = 1
    await world.create(PARALLEL)
    ended = await world.ended(await world.start())
    assert ended.status is ExecutionStatus.SUCCEEDED
    assert sorted(world.jobs.steps) == ["A", "B", "C"]
    assert world.jobs.steps[-1] == "C"
    assert world.jobs.most_at_once == 1


async def test_a_step_without_room_is_given_up_once_another_has_failed(world: World):
    world.jobs.room, world.jobs.outcomes = 1, {"A": "Failed"}
    world.jobs.ends_by_itself = False
    await world.create(PARALLEL)
    execution_id = await world.start()
    await until(lambda: world.jobs.steps == ["A"])
    world.jobs.room = 0
    world.jobs.ends_by_itself = True

    ended = await world.ended(execution_id)

    assert ended.status is ExecutionStatus.FAILED
    assert statuses(ended) == {"A": "Failed", "B": "Stopped", "C": "Waiting"}
    assert world.jobs.steps == ["A"]


async def test_a_job_that_was_created_just_before_a_crash_is_found_though_it_leaves_no_room(
    world: World,
):
    world.jobs.room, world.jobs.ends_by_itself = 1, False
    await world.create({"A": ("Job", []), "B": ("Job", ["A"])})
    effects = iter(["before it", "after it"])

    def killed() -> None:
        if next(effects, None) == "after it":
            raise asyncio.CancelledError

    world.jobs.effect = killed
    execution_id = await world.start()
    await until(lambda: world.jobs.steps == ["A"])
    after = await world.restarted()
    async with asyncio.timeout(30):
        while statuses(await after.pipelines.execution(ADMIN, execution_id))["A"] != "Executing":
            await asyncio.sleep(0)

    world.jobs.ends_by_itself = True
    assert (await after.ended(execution_id)).status is ExecutionStatus.SUCCEEDED
    assert world.jobs.steps == ["A", "B"]
    await after.pipelines.close()


async def test_an_execution_that_has_begun_goes_on_though_its_start_could_not_be_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    await world.create(COMPARISON)

    async def full(account_id: str, pipeline: Pipeline) -> Pipeline:
        raise errors.StorageFull("no room")

    with monkeypatch.context() as patched:
        patched.setattr(world.pipelines, "_keep", full)
        with pytest.raises(errors.StorageFull):
            await world.start()
    (begun,) = await world.pipelines.executions(ADMIN, "p")
    assert (await world.ended(begun.execution_id)).status is ExecutionStatus.SUCCEEDED
    assert await world.start() == begun.execution_id


async def test_independent_steps_run_side_by_side_up_to_the_given_number(world: World):
    await world.create(PARALLEL)
    assert (await world.ended(await world.start())).status is ExecutionStatus.SUCCEEDED
    assert world.jobs.most_at_once == 2

    world.jobs.most_at_once = 0
    await world.ended(await world.start(token="one by one", max_parallel=1))
    assert world.jobs.most_at_once == 1


async def test_what_is_made_of_a_pipeline_later_does_not_touch_a_running_execution(world: World):
    world.jobs.ends_by_itself = False
    await world.create({"A": ("Job", []), "B": ("Job", ["A"])})
    execution_id = await world.start()
    await until(lambda: world.jobs.steps == ["A"])

    await world.pipelines.update(ADMIN, "p", definition=definition({"Other": ("Job", [])}))
    world.jobs.ends_by_itself = True
    ended = await world.ended(execution_id)

    assert (ended.status, ended.version) == (ExecutionStatus.SUCCEEDED, 1)
    assert world.jobs.steps == ["A", "B"]
    assert (await world.ended(await world.start(token="later"))).version == 2
    assert world.jobs.steps == ["A", "B", "Other"]


async def test_a_stopped_execution_stops_its_job_and_begins_nothing_more(world: World):
    world.jobs.ends_by_itself = False
    await world.create(COMPARISON)
    execution_id = await world.start()
    await until(lambda: world.jobs.steps == ["Base"])

    stopping = await world.pipelines.stop(ADMIN, execution_id)
    assert stopping.status is ExecutionStatus.STOPPING
    ended = await world.ended(execution_id)

    assert ended.status is ExecutionStatus.STOPPED
    assert statuses(ended)["Base"] == "Stopped"
    assert list(world.jobs.statuses.values()) == ["Stopped"]
    assert world.jobs.steps == ["Base"]
    assert (await world.pipelines.stop(ADMIN, execution_id)).status is ExecutionStatus.STOPPED


async def test_a_step_that_waits_for_room_is_stopped_without_a_job(world: World):
    world.jobs.room = 0
    await world.create({"A": ("Job", [])})
    execution_id = await world.start()
    async with asyncio.timeout(30):
        while statuses(await world.pipelines.execution(ADMIN, execution_id)) != {"A": "Starting"}:
            await asyncio.sleep(0)
    await world.pipelines.stop(ADMIN, execution_id)
    ended = await world.ended(execution_id)
    assert (ended.status, statuses(ended)) == (ExecutionStatus.STOPPED, {"A": "Stopped"})
    assert world.jobs.created == []


async def test_an_execution_that_has_ended_cannot_be_stopped(world: World):
    await world.create(COMPARISON)
    ended = await world.ended(await world.start())
    with pytest.raises(errors.Conflict, match="has succeeded already"):
        await world.pipelines.stop(ADMIN, ended.execution_id)


async def test_a_later_step_gets_values_of_an_earlier_ones_job(world: World):
    graph = {"A": ("Job", []), "B": ("Job", ["A"])}
    data = json.loads(definition(graph))
    run = {"Get": "Steps.A.JobConfigDocument.ServiceOutput.MlflowDetails.RunId"}
    join = {"Std:Join": {"On": "/", "Values": [{"Get": "Execution.PipelineExecutionId"}, run]}}
    data["Steps"][1]["Arguments"]["JobConfigDocument"] = {"Run": join}
    text = json.dumps(data)
    await world.pipelines.create(ADMIN, Pipeline(name="p", definition=text, token="t"))
    ended = await world.ended(await world.start())
    first, second = world.jobs.created
    assert second["JobConfigDocument"] == {"Run": f"{ended.execution_id}/run of {first['JobName']}"}


async def test_a_value_that_the_job_does_not_have_fails_the_step_that_gets_it(world: World):
    data = json.loads(definition({"A": ("Job", []), "B": ("Job", [])}))
    data["Steps"][1]["Arguments"]["Tags"] = [
        {"Get": "Steps.A.JobConfigDocument.ServiceOutput.Nothing"}
    ]
    text = json.dumps(data)
    await world.pipelines.create(ADMIN, Pipeline(name="p", definition=text, token="t"))
    ended = await world.ended(await world.start())
    assert statuses(ended) == {"A": "Succeeded", "B": "Failed"}
    assert "'Steps.A.JobConfigDocument.ServiceOutput.Nothing' does not exist" in ended.failure


async def test_the_same_token_starts_one_execution_and_with_other_parameters_is_refused(
    world: World,
):
    await world.create(COMPARISON)
    ids = await asyncio.gather(*(world.start() for _ in range(3)))
    assert len(set(ids)) == 1
    with pytest.raises(errors.Conflict, match="with other parameters"):
        await world.start(display_name="another")
    await world.ended(ids[0])


async def test_a_name_is_taken_once_and_the_same_token_is_the_same_pipeline(world: World):
    await world.create(COMPARISON)
    await world.create(COMPARISON)
    pipeline = Pipeline(name="p", definition=definition(PARALLEL), token="another")
    with pytest.raises(errors.Conflict, match="'p' already exists"):
        await world.pipelines.create(ADMIN, pipeline)
    assert len(await world.pipelines.list(ADMIN)) == 1


async def test_a_pipeline_is_deleted_with_its_executions_but_not_while_one_runs(world: World):
    world.jobs.ends_by_itself = False
    await world.create(COMPARISON)
    execution_id = await world.start()
    with pytest.raises(errors.Conflict, match="1 execution"):
        await world.pipelines.delete(ADMIN, "p")

    world.jobs.ends_by_itself = True
    await world.ended(execution_id)
    await world.pipelines.delete(ADMIN, "p")

    with pytest.raises(errors.NotFound):
        await world.pipelines.execution(ADMIN, execution_id)


@pytest.mark.parametrize(
    "who",
    [
        Principal(account_id=ACCOUNT, actions=frozenset({Action.SAMPLE})),
        Principal(account_id=ACCOUNT, job_ids=frozenset({"job_a"})),
    ],
)
async def test_a_key_without_the_right_to_all_jobs_does_nothing_with_pipelines(
    world: World, who: Principal
):
    await world.create(COMPARISON)
    for call in (
        world.pipelines.create(who, Pipeline(name="q", definition=definition(PARALLEL))),
        world.pipelines.start(who, "p", Start(token="x"), lambda found: {}),
        world.pipelines.describe(who, "p"),
        world.pipelines.delete(who, "p"),
    ):
        with pytest.raises(errors.Denied):
            await call


async def test_another_account_sees_nothing(world: World):
    await world.create(COMPARISON)
    execution_id = await world.start()
    stranger = Principal(account_id="acc_other")
    assert await world.pipelines.list(stranger) == []
    for call in (
        world.pipelines.describe(stranger, "p"),
        world.pipelines.execution(stranger, execution_id),
        world.pipelines.stop(stranger, execution_id),
    ):
        with pytest.raises(errors.NotFound):
            await call
    await world.ended(execution_id)


# ── any graph, any failure, any crash ─────────────────────────────────────────────────────────


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, tuple[str, list[str]]]:
    """Acyclic graphs of up to six steps."""
    graph: dict[str, tuple[str, list[str]]] = {}
    for number in range(draw(st.integers(1, 6))):
        earlier = list(graph)
        depends_on = [name for name in earlier if draw(st.booleans())]
        graph[f"s{number}"] = (draw(st.sampled_from(["Job", "Lineage"])), depends_on)
    return graph


def jobs_before(graph: Mapping[str, tuple[str, list[str]]], step: str) -> set[str]:
    """The Job steps that a step depends on, near or far."""
    found: set[str] = set()
    for other in graph[step][1]:
        found |= jobs_before(graph, other) | ({other} if graph[other][0] == "Job" else set())
    return found


@settings(max_examples=20, deadline=None)
@given(graphs(), st.sets(st.integers(0, 5)), st.integers(1, 3), st.lists(st.integers(1, 12)))
def test_whatever_the_graph_and_whenever_the_server_is_killed_a_step_runs_once_after_its_own(
    graph: dict[str, tuple[str, list[str]]], failing: set[int], room: int, kills: list[int]
):
    jobs = Jobs(room=room, outcomes={f"s{number}": "Failed" for number in failing})
    ended = asyncio.run(_driven_through(graph, jobs, kills))

    assert len(jobs.steps) == len(set(jobs.steps)) == len(jobs.statuses)
    assert jobs.most_at_once <= room
    numbers = {name: state.number for name, state in ended.begun}
    for step in jobs.steps:
        before = jobs_before(graph, step)
        assert all(jobs.steps.index(other) < jobs.steps.index(step) for other in before)
        assert all(ended.steps[other].status is StepStatus.SUCCEEDED for other in before)
    for step, (_, depends_on) in graph.items():
        if step in numbers:
            assert all(numbers[other] < numbers[step] for other in depends_on)
    has_failed = any(jobs.outcomes.get(step) for step in jobs.steps)
    assert (ended.status is ExecutionStatus.FAILED) == has_failed
    if not has_failed:
        assert ended.status is ExecutionStatus.SUCCEEDED
        assert set(statuses(ended).values()) == {"Succeeded"}


class Dying(SqlStore):
    """A store whose server is killed around one of its writes."""

    effect: Callable[[], None] = staticmethod(lambda: None)

    async def change_resource(self, resource: Resource) -> Resource:
        type(self).effect()
        changed = await super().change_resource(resource)
        type(self).effect()
        return changed


async def _driven_through(
    graph: Mapping[str, tuple[str, list[str]]], jobs: Jobs, kills: list[int]
) -> Execution:
    """Run a graph; for each of `kills`, the server dies at so many effects and starts again."""
    store = Dying.in_memory()
    await store.default_account()
    world = World(store, jobs)
    await world.create(graph)
    execution_id = await world.start()
    try:
        for countdown in kills:
            left = [countdown]

            def effect(left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] <= 0:  # the process is gone: nothing it tries happens any more
                    raise asyncio.CancelledError

            jobs.effect = effect
            Dying.effect = staticmethod(effect)
            async with asyncio.timeout(30):
                while (
                    left[0] > 0
                    and not (await world.pipelines.execution(ADMIN, execution_id)).status.is_final
                ):
                    await asyncio.sleep(0)
            jobs.effect = lambda: None
            Dying.effect = staticmethod(lambda: None)
            world = await world.restarted()
        return await world.ended(execution_id)
    finally:
        await world.pipelines.close()
        await store.close()


@given(graphs(), st.data())
def test_the_state_machine_begins_only_what_may_and_always_comes_to_an_end(
    graph: dict[str, tuple[str, list[str]]], data: st.DataObject
):
    text = definition(graph)
    parsed = parse_definition(text)
    most = data.draw(st.integers(1, 3))
    execution = Execution(
        execution_id="abc",
        pipeline="p",
        definition=text,
        steps={step.name: StepState() for step in parsed.steps},
        max_parallel=most,
    )
    for now in range(40):
        assert from_body(json.loads(json.dumps(as_body(execution)))) == execution
        execution = settle(execution)
        if execution.status.is_final:
            break
        if data.draw(st.integers(0, 9)) == 0:
            execution = stop(execution)
        may = ready(execution, parsed)
        for step in may:
            assert execution.status is ExecutionStatus.EXECUTING
            assert execution.steps[step.name].status is StepStatus.WAITING
            for other in step.depends_on:
                assert execution.steps[other].status is StepStatus.SUCCEEDED
            execution = begin(execution, step, now)
            assert bool(execution.steps[step.name].job) == (step.kind is StepKind.JOB)
        active = [name for name, state in execution.steps.items() if state.status.is_active]
        assert len(active) <= most
        assert settle(execution) == execution or not active
        if active:
            name = data.draw(st.sampled_from(active))
            ends = [StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.STOPPED]
            execution = end(execution, name, data.draw(st.sampled_from(ends)), now, "why")
    assert execution.status.is_final
    assert dataclasses.replace(settle(execution)) == execution


@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=12, max_size=12), st.data())
def test_the_name_of_a_steps_job_is_one_that_sagemaker_allows(execution_id: str, data: Any):
    step = data.draw(st.from_regex(r"\A[A-Za-z0-9_-]{1,64}\Z"))
    name = job_name(execution_id, step)
    assert len(name) <= 63
    assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", name)
    assert name != job_name(execution_id, step + "x")
