"""Pipelines: keep them, start executions of them, and drive each until it has ended.

An execution runs by the definition it was started with; what is made of the pipeline later does
not touch it. Its state is in the store before anything is done by it, so that a server that starts
again goes on with it: a job's name follows from the execution and the step, and creating it again
finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from turnwise import errors
from turnwise.control.pipelines import execution as machine
from turnwise.control.pipelines.definition import (
    Definition,
    Step,
    StepKind,
    parse_definition,
    resolve,
)
from turnwise.control.pipelines.execution import Execution, ExecutionStatus, StepState, StepStatus
from turnwise.domain.access import Account, Action, Principal
from turnwise.domain.resource import Resource
from turnwise.domain.times import iso
from turnwise.ports import Clock, NewId, Resources

log = logging.getLogger(__name__)

PIPELINE = "pipeline"
EXECUTION = "pipeline-execution"

#: Wait between two looks at the jobs of an execution.
POLL_S = 1.0

_ENDS = {
    "Completed": StepStatus.SUCCEEDED,
    "Failed": StepStatus.FAILED,
    "Stopped": StepStatus.STOPPED,
}


class StepJobs(Protocol):
    """The jobs of Job steps, in the members of AWS's job operations."""

    async def create(self, account_id: str, given: Mapping[str, Any]) -> None:
        """CreateJob. Raises `LimitExceeded` where there is no room yet, `Conflict` for its name."""
        ...

    async def describe(self, account_id: str, category: str, name: str) -> Mapping[str, Any]:
        """DescribeJob, its JobConfigDocument as text. Raises `NotFound`."""
        ...

    async def stop(self, account_id: str, category: str, name: str) -> None:
        """StopJob; one that has ended stays as it is. Raises `NotFound`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A pipeline as it stands. `version` counts its changes, from 1; `token` is its creation's."""

    name: str
    definition: str
    role_arn: str = ""
    display_name: str = ""
    description: str = ""
    token: str = ""
    max_parallel: int = machine.MAX_PARALLEL
    version: int = 1
    last_run_at: float | None = None
    created_at: float = 0.0
    updated_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What an execution is started with. `token` makes a repeated start the same one."""

    token: str
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)
    display_name: str = ""
    description: str = ""
    role_arn: str = ""
    max_parallel: int | None = None


@dataclass(slots=True)
class _Driven:
    """An execution that is being driven. Whoever changes its record holds `lock`."""

    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    wake: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class Pipelines:
    """The pipelines of all accounts. Every call requires a principal with the right."""

    def __init__(
        self,
        *,
        resources: Resources,
        accounts: Callable[[], Awaitable[Sequence[Account]]],
        clock: Clock,
        new_id: NewId,
        poll_s: float = POLL_S,
    ) -> None:
        self._resources = resources
        self._accounts = accounts
        self._clock = clock
        self._new_id = new_id
        self._poll_s = poll_s
        self._jobs: StepJobs | None = None
        self._driven: dict[str, _Driven] = {}  # by execution id
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing = asyncio.Lock()  # held from a look at a pipeline to the write it allows

    # ── pipelines ─────────────────────────────────────────────────────────────────────────────

    async def create(self, principal: Principal, pipeline: Pipeline) -> tuple[Pipeline, bool]:
        """Keep a new pipeline; it, and whether it is new: the same token again is the same one.

        Raises `InvalidInput` for its definition, `Conflict` if the name is taken.
        """
        principal.require_all(Action.MANAGE, "pipelines")
        parse_definition(pipeline.definition)
        async with self._writing:
            with contextlib.suppress(errors.NotFound):
                kept = await self.describe(principal, pipeline.name)
                if kept.token != pipeline.token:
                    raise errors.Conflict(f"a pipeline named {pipeline.name!r} already exists")
                return kept, False
            now = self._clock.now()
            pipeline = dataclasses.replace(pipeline, created_at=now, updated_at=now)
            await self._resources.create_resource(
                Resource(
                    account_id=principal.account_id,
                    kind=PIPELINE,
                    name=pipeline.name,
                    body=msgspec.to_builtins(pipeline),
                    created_at=now,
                )
            )
        return pipeline, True

    async def update(self, principal: Principal, name: str, **changes: Any) -> Pipeline:
        """Change what is given of a pipeline. Executions that run are not touched."""
        principal.require_all(Action.MANAGE, "pipelines")
        if "definition" in changes:
            parse_definition(changes["definition"])
        async with self._writing:
            kept = await self.describe(principal, name)
            changes |= {"version": kept.version + 1, "updated_at": self._clock.now()}
            return await self._keep(principal.account_id, dataclasses.replace(kept, **changes))

    async def describe(self, principal: Principal, name: str) -> Pipeline:
        """One pipeline. Raises `NotFound`."""
        principal.require_all(Action.READ, "pipelines")
        found = await self._resources.resource(principal.account_id, PIPELINE, name)
        return _pipeline(found)

    async def list(self, principal: Principal, *, prefix: str = "") -> Sequence[Pipeline]:
        """The account's, oldest first."""
        principal.require_all(Action.READ, "pipelines")
        found = await self._resources.resources(principal.account_id, PIPELINE, prefix=prefix)
        return [_pipeline(one) for one in found]

    async def delete(self, principal: Principal, name: str) -> Pipeline:
        """Remove a pipeline with its executions; their jobs stay. `Conflict` while one runs."""
        principal.require_all(Action.MANAGE, "pipelines")
        async with self._writing:
            kept = await self.describe(principal, name)
            executions = await self.executions(principal, name)
            if running := [one for one in executions if not one.status.is_final]:
                raise errors.Conflict(
                    f"pipeline {name!r} has {len(running)} execution(s) under way; stop them first"
                )
            for one in executions:
                await self._resources.delete_resource(
                    principal.account_id, EXECUTION, one.execution_id
                )
            await self._resources.delete_resource(principal.account_id, PIPELINE, name)
        return kept

    async def _keep(self, account_id: str, pipeline: Pipeline) -> Pipeline:
        body = msgspec.to_builtins(pipeline)
        await self._resources.change_resource(
            Resource(account_id=account_id, kind=PIPELINE, name=pipeline.name, body=body)
        )
        return pipeline

    # ── executions ────────────────────────────────────────────────────────────────────────────

    async def start(
        self,
        principal: Principal,
        name: str,
        given: Start,
        arns: Callable[[str], Mapping[str, str]],
    ) -> Execution:
        """Start an execution of a pipeline as it stands now.

        `arns` gives an execution's addresses by its id: `PipelineArn`, `PipelineExecutionArn`.
        Raises `InvalidInput` for parameters, `Conflict` for a token that came with others.
        """
        principal.require_all(Action.MANAGE, "pipelines")
        async with self._writing:
            pipeline = await self.describe(principal, name)
            for one in await self.executions(principal, name):
                if one.token == given.token:
                    _check_repeated(one, given)
                    self._drive(principal.account_id, one)
                    return one
            execution = self._new(pipeline, given, arns)
            body = machine.as_body(execution)
            await self._resources.create_resource(
                Resource(
                    account_id=principal.account_id,
                    kind=EXECUTION,
                    name=execution.execution_id,
                    body=body,
                    created_at=execution.created_at,
                )
            )
            # At once: it has begun, whatever comes of what is noted beside it.
            self._drive(principal.account_id, execution)
            pipeline = dataclasses.replace(pipeline, last_run_at=execution.created_at)
            await self._keep(principal.account_id, pipeline)
        return execution

    def _new(
        self, pipeline: Pipeline, given: Start, arns: Callable[[str], Mapping[str, str]]
    ) -> Execution:
        definition = parse_definition(pipeline.definition)
        now = self._clock.now()
        execution_id = self._new_id("x").partition("_")[2][:12]
        values = {
            "PipelineName": pipeline.name,
            "PipelineExecutionId": execution_id,
            "StartDateTime": iso(now),
        }
        return Execution(
            execution_id=execution_id,
            pipeline=pipeline.name,
            definition=pipeline.definition,
            steps={step.name: StepState() for step in definition.steps},
            version=pipeline.version,
            values=values | dict(arns(execution_id)),
            parameters=definition.bind(given.parameters),
            role_arn=given.role_arn or pipeline.role_arn,
            display_name=given.display_name,
            description=given.description,
            token=given.token,
            max_parallel=given.max_parallel or pipeline.max_parallel,
            created_at=now,
            updated_at=now,
        )

    async def execution(self, principal: Principal, execution_id: str) -> Execution:
        """One execution. Raises `NotFound`."""
        principal.require_all(Action.READ, "pipelines")
        found = await self._resources.resource(principal.account_id, EXECUTION, execution_id)
        return machine.from_body(found.body)

    async def executions(self, principal: Principal, pipeline: str) -> Sequence[Execution]:
        """A pipeline's executions, oldest first. Raises `NotFound` for the pipeline."""
        await self.describe(principal, pipeline)
        found = await self._resources.resources(principal.account_id, EXECUTION)
        return [machine.from_body(one.body) for one in found if one.body["pipeline"] == pipeline]

    async def stop(self, principal: Principal, execution_id: str) -> Execution:
        """End an execution and the jobs it runs. `Conflict` if it has ended otherwise."""
        principal.require_all(Action.MANAGE, "pipelines")
        driven = self._driven.get(execution_id) or _Driven()
        async with driven.lock:
            execution = await self.execution(principal, execution_id)
            if execution.status in (ExecutionStatus.SUCCEEDED, ExecutionStatus.FAILED):
                raise errors.Conflict(
                    f"execution {execution_id} has {execution.status.lower()} already"
                )
            execution = await self._save(principal.account_id, execution, machine.stop(execution))
        driven.wake.set()
        return execution

    # ── driving ───────────────────────────────────────────────────────────────────────────────

    def plug(self, jobs: StepJobs) -> None:
        """Say how the jobs of steps are made; once, before `recover`."""
        self._jobs = jobs

    async def recover(self) -> None:
        """Continue the executions that a former server process left under way."""
        for account in await self._accounts():
            for found in await self._resources.resources(account.account_id, EXECUTION):
                execution = machine.from_body(found.body)
                if not execution.status.is_final:
                    log.info("continuing execution %s of %s", found.name, execution.pipeline)
                    self._drive(account.account_id, execution)

    async def close(self) -> None:
        """End the driving without ending the executions: the next server process goes on."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _drive(self, account_id: str, execution: Execution) -> None:
        """Have it driven, unless it has ended or is being driven already."""
        if execution.status.is_final or execution.execution_id in self._driven:
            return
        driven = self._driven[execution.execution_id] = _Driven()
        task = asyncio.create_task(
            self._run(account_id, execution.execution_id, driven),
            name=f"pipeline execution {execution.execution_id}",
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, account_id: str, execution_id: str, driven: _Driven) -> None:
        """Look and act, again and again, until the execution has ended."""
        try:
            while not (await self._look(account_id, execution_id, driven)).is_final:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await driven.wake.wait()
                driven.wake.clear()
        finally:
            self._driven.pop(execution_id, None)

    async def _look(self, account_id: str, execution_id: str, driven: _Driven) -> ExecutionStatus:
        """One look. What breaks is the execution's failure, unless waiting may mend it."""
        principal = driver(account_id)
        async with driven.lock:
            try:
                execution = await self.execution(principal, execution_id)
                return (await self._supervised(account_id, execution)).status
            except (errors.Unavailable, errors.StorageFull) as error:
                log.warning("execution %s waits: %s", execution_id, error)
                return ExecutionStatus.EXECUTING

    async def _supervised(self, account_id: str, execution: Execution) -> Execution:
        """Advance as far as possible for now."""
        try:
            while True:
                before, execution = execution, await self._advance(account_id, execution)
                if execution == before or execution.status.is_final:
                    return execution
        except (errors.Unavailable, errors.StorageFull):
            raise
        except Exception as error:  # supervision: whatever broke, the execution says so
            log.exception("execution %s broke", execution.execution_id)
            broken = dataclasses.replace(
                await self.execution(driver(account_id), execution.execution_id),
                status=ExecutionStatus.FAILED,
                failure=f"internal error: {type(error).__name__}",
            )
            return await self._save(account_id, execution, broken)

    async def _advance(self, account_id: str, before: Execution) -> Execution:
        definition = parse_definition(before.definition)
        execution = await self._with_begun(account_id, before, definition)
        # In the store before a job is created: after a crash it is known which one to look for.
        before = await self._save(account_id, before, execution)
        for name, state in before.begun:
            if state.status is StepStatus.STARTING:
                execution = await self._started(account_id, execution, definition.step(name))
            elif state.status.is_active:
                execution = await self._watched(account_id, execution, name)
            execution = await self._save(account_id, before, execution)
            before = execution
        # Whatever has ended may let others begin, at once.
        execution = await self._with_begun(account_id, execution, definition)
        return await self._save(account_id, before, machine.settle(execution))

    async def _with_begun(
        self, account_id: str, execution: Execution, definition: Definition
    ) -> Execution:
        """The execution with every step begun that may; steps without a job end with that."""
        while ready := machine.ready(execution, definition):
            now = self._clock.now()
            for step in ready:
                execution = machine.begin(execution, step, now)
                if step.kind is StepKind.LINEAGE:
                    execution = machine.end(execution, step.name, StepStatus.SUCCEEDED, now)
                    continue
                get = await self._values(account_id, execution, step)
                try:
                    category = str(resolve(step.arguments["JobCategory"], get))
                except errors.NotFound as error:
                    execution = self._ended(execution, step.name, StepStatus.FAILED, str(error))
                else:
                    execution = machine.change(execution, step.name, category=category)
        return execution

    async def _started(self, account_id: str, execution: Execution, step: Step) -> Execution:
        """A step whose job is to be created, or is found to be; one without room stays."""
        state = execution.steps[step.name]
        if execution.status is ExecutionStatus.STOPPING:
            # It may have been created just before a crash.
            return await self._asked_to_stop(account_id, execution, step.name)
        get = await self._values(account_id, execution, step)
        try:
            given = resolve(step.arguments, get) | {"JobName": state.job}
            await self._open_jobs.create(account_id, given)
        except errors.LimitExceeded:
            # It may be one of those that leave no room: created just before a crash.
            if await self._description(account_id, state) is None:
                if not machine.went_wrong(execution):
                    return execution  # until there is room
                reason = "another step failed before there was room for its job"
                return self._ended(execution, step.name, StepStatus.STOPPED, reason)
        except errors.Unavailable:
            raise
        except Exception as error:  # supervision: a job that cannot be created fails its step
            if await self._description(account_id, state) is None:
                if not isinstance(error, errors.TurnwiseError):
                    log.exception("job %s could not be created", state.job)
                    error = errors.TurnwiseError(f"internal error: {type(error).__name__}")
                return self._ended(execution, step.name, StepStatus.FAILED, str(error))
        return machine.change(execution, step.name, status=StepStatus.EXECUTING)

    async def _watched(self, account_id: str, execution: Execution, name: str) -> Execution:
        """A step whose job runs, ended if that has."""
        state = execution.steps[name]
        is_to_stop = execution.status is ExecutionStatus.STOPPING
        if is_to_stop and state.status is not StepStatus.STOPPING:
            return await self._asked_to_stop(account_id, execution, name)
        job = await self._description(account_id, state)
        if job is None:
            reason = f"job {state.job} has been deleted"
            return self._ended(execution, name, StepStatus.FAILED, reason)
        status = _ENDS.get(job["JobStatus"])
        if status is None:
            return execution
        reason = ""
        if status is StepStatus.FAILED:
            reason = f"job {state.job} failed: {job.get('FailureReason', '')}"
        elif status is StepStatus.STOPPED:
            reason = f"job {state.job} was stopped"
        return self._ended(execution, name, status, reason)

    async def _asked_to_stop(self, account_id: str, execution: Execution, name: str) -> Execution:
        state = execution.steps[name]
        try:
            await self._open_jobs.stop(account_id, state.category, state.job)
        except errors.NotFound:
            return self._ended(execution, name, StepStatus.STOPPED, "stopped before its job began")
        except errors.Conflict:
            pass  # it has just ended, which the next look will see
        return machine.change(execution, name, status=StepStatus.STOPPING)

    async def _values(
        self, account_id: str, execution: Execution, step: Step
    ) -> Callable[[str], Any]:
        """What the expressions of a step get; the jobs it depends on are described for it."""
        described = {
            name: await self._description(account_id, execution.steps[name])
            for name in step.depends_on
            if execution.steps[name].job
        }

        def get(path: str) -> Any:
            room, _, rest = path.partition(".")
            if room != "Steps":
                return (execution.values if room == "Execution" else execution.parameters)[rest]
            name, *members = rest.split(".")
            return _member(described[name] or {}, members, path)

        return get

    async def _description(self, account_id: str, state: StepState) -> Mapping[str, Any] | None:
        try:
            return await self._open_jobs.describe(account_id, state.category, state.job)
        except errors.NotFound:
            return None

    def _ended(self, execution: Execution, name: str, status: StepStatus, reason: str) -> Execution:
        return machine.end(execution, name, status, self._clock.now(), reason)

    async def _save(self, account_id: str, before: Execution, now: Execution) -> Execution:
        if now == before:
            return now
        now = dataclasses.replace(now, updated_at=self._clock.now())
        await self._resources.change_resource(
            Resource(
                account_id=account_id,
                kind=EXECUTION,
                name=now.execution_id,
                body=machine.as_body(now),
            )
        )
        return now

    @property
    def _open_jobs(self) -> StepJobs:
        if self._jobs is None:
            raise errors.Unavailable("the server is starting")
        return self._jobs


def _pipeline(kept: Resource) -> Pipeline:
    pipeline: Pipeline = msgspec.convert(kept.body, Pipeline)
    return pipeline


def driver(account_id: str) -> Principal:
    """Who drives: an execution goes on when the key that started it is revoked."""
    return Principal(
        account_id=account_id, actions=frozenset({Action.MANAGE, Action.READ}), name="pipelines"
    )


def _check_repeated(kept: Execution, given: Start) -> None:
    same = (kept.display_name, kept.description) == (given.display_name, given.description)
    bound = parse_definition(kept.definition).bind(given.parameters)
    if not same or bound != kept.parameters:
        raise errors.Conflict(
            f"ClientRequestToken {given.token!r} has started {kept.execution_id} with other "
            "parameters; use a new one"
        )


def _member(described: Mapping[str, Any], members: Sequence[str], path: str) -> Any:
    """A member of a job's description. Raises `NotFound`."""
    value: Any = described
    for member in members:
        if isinstance(value, str):  # the document is JSON in a text
            value = msgspec.json.decode(value)
        if not isinstance(value, Mapping) or member not in value:
            raise errors.NotFound("value", path, remedy="its job has none")
        value = value[member]
    return value
