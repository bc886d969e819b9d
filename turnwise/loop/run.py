"""One job's life: three kinds of tasks around one pure state machine, and one way out.

    rows --Plan--> admit --------> collect (one task per group) --------> train --> checkpoints
                     ^   open groups      closed groups                     |
                     |                                                      |
                     `----------- Pace: room, once a step is published <----'

    task     consumes            waits for                produces        unblocked by
    admit    places in the plan  room (Pace.may_admit)    collect tasks   train
    collect  one open group      agents, deadlines        a closed group  the gateway, the clock
    train    closed groups       a full step (Pace.take)  a new policy    collect

`train` is finite and the clock of the job: it validates before the first step, after every
`val_every` steps and at the end, which may be early (`early_stop`). `JobLoop` surrounds the tasks:
it finds where to start, and whatever ends them - the last step, a stop, an error, the server's own
end - it cancels the rest, closes the open rollouts, and says once how the job ended. With
`max_steps_off_policy` above 0 agents go on while the learner, a process of its own, trains.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from turnwise import errors
from turnwise.domain.data import Row
from turnwise.domain.event import EventDraft, EventKind, Level
from turnwise.domain.job import Job, JobKind, JobStatus, Secondary
from turnwise.domain.rollout import Group, Purpose
from turnwise.loop.assemble import ClosedGroup, is_zero
from turnwise.loop.collect import Assignment, Collector
from turnwise.loop.early_stop import EarlyStop, Tally
from turnwise.loop.evaluate import run_evaluation
from turnwise.loop.packages import next_version
from turnwise.loop.plan import Plan
from turnwise.loop.resume import Start, begin
from turnwise.loop.sockets import Sockets
from turnwise.loop.step import Stepper
from turnwise.loop.validate import validate, validated_steps

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a job ends before its plan does, with rollouts that show it."""

    message: str
    rollouts: tuple[str, ...]


class JobLoop:
    """Runs one incarnation of a job, from its newest checkpoint to its end."""

    def __init__(
        self, job: Job, rows: Sequence[Row], validation_rows: Sequence[Row], sockets: Sockets
    ) -> None:
        self._job = job
        self._rows = rows
        self._validation_rows = validation_rows
        self.sockets = sockets
        self._stop = asyncio.Event()
        self._early: Ending | None = None

    def request_stop(self) -> None:
        """End soon, as STOPPED: open rollouts are cancelled, the last checkpoint stays."""
        self._stop.set()

    async def run(self) -> None:
        """Until the job is COMPLETED, STOPPED or FAILED; the event log says which, and why.

        Cancelling it leaves the job RUNNING, to be continued by the next server process.
        """
        work = asyncio.create_task(self._work(), name=f"work {self._job.name}")
        stop = asyncio.create_task(self._stop.wait(), name=f"stop {self._job.name}")
        engine = asyncio.create_task(self._engine_ends(), name=f"engine {self._job.name}")
        limit = asyncio.create_task(self._runs_out(), name=f"limit {self._job.name}")
        tasks = (work, stop, engine, limit)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        failed = [e for t in (work, engine) if not t.cancelled() and (e := t.exception())]
        # Before the job says that it has ended: whoever waits for that looks for the output next.
        await self.sockets.deliver(self._job)
        if self._stop.is_set() and (failed or work.cancelled()):
            # What fails while the job is being stopped is told, but the stop was asked for.
            message = _reason(failed[0]) if failed else await self._without_output()
            await self._say(JobStatus.STOPPED, Secondary.STOPPED, message)
        elif failed:
            await self._say(JobStatus.FAILED, Secondary.FAILED, _reason(failed[0]), Level.ERROR)
        elif work.cancelled():
            message = f"stopped after max_runtime_s, {self._job.spec.max_runtime_s} s"
            await self._say(JobStatus.STOPPED, Secondary.MAX_RUNTIME_EXCEEDED, message)
        elif early := self._early:
            await self._say(
                JobStatus.COMPLETED,
                Secondary.EARLY_STOPPED,
                early.message,
                rollouts=early.rollouts,
            )
        else:
            await self._say(JobStatus.COMPLETED, Secondary.COMPLETED)

    async def _runs_out(self) -> None:
        """Return once the job has run for as long as it may."""
        if seconds := self._job.spec.max_runtime_s:
            await self.sockets.clock.sleep(seconds)
        else:
            await asyncio.Event().wait()

    async def _without_output(self) -> str:
        """What to say of a job that is stopped too early to leave an adapter; else nothing."""
        job = self._job
        if job.spec.kind is not JobKind.TRAIN:
            return ""
        policy = await self.sockets.store.policy(job.account_id, job.job_id)
        return "" if policy else "stopped before the end of its first step: it leaves no model"

    async def _engine_ends(self) -> None:
        """Fail the job as soon as its engine is gone.

        Its agents would fail one by one, and their groups would close without them, for which
        the agents are not to blame.
        """
        await self.sockets.sampler.lost()
        raise errors.ProcessDied("the engine's process has ended; resume the job to go on")

    async def _work(self) -> None:
        job, sockets = self._job, self.sockets
        await sockets.runner.check()
        incarnation = await sockets.store.start_incarnation(job.account_id, job.job_id)
        job = replace(job, incarnation=incarnation)
        await self._say(JobStatus.RUNNING, Secondary.DOWNLOADING)
        if job.spec.kind is JobKind.EVALUATION:
            await self._say(JobStatus.RUNNING, Secondary.EVALUATING)
            await self._say_plan(job, rollouts=_planned_rollouts(job, len(self._rows)))
            await run_evaluation(job, self._rows, sockets)
        else:
            await self._check_sampler()
            await self._train(job)
        await self._say(JobStatus.RUNNING, Secondary.UPLOADING)

    async def _train(self, job: Job) -> None:
        plan = Plan.of(job.spec, len(self._rows))
        start = await begin(job, plan, self.sockets)
        steps = plan.steps_in_all(start.pace.step, len(start.trained))
        await self._say_plan(job, steps=steps)
        version = await next_version(job, self.sockets)
        stepper = Stepper(job, start, plan, self.sockets, version)
        collector = Collector(job, self.sockets)
        training = Training(
            job, start, plan, self._rows, self._validation_rows, collector, stepper, self.sockets
        )
        try:
            self._early = await training.run()
        finally:
            await collector.abandon()
            await stepper.retire_all()

    async def _say_plan(self, job: Job, **planned: int) -> None:
        """Tell how much there is to do, from which readers tell how far the job is."""
        [(what, count)] = planned.items()
        body = {"message": f"{count} {what} in all, on {len(self._rows)} rows", **planned}
        draft = EventDraft(kind=EventKind.LOG, body=body)
        await self.sockets.store.append(job.account_id, job.job_id, [draft])

    async def _check_sampler(self) -> None:
        info = await self.sockets.sampler.info()
        if not info.sampled_logprobs:
            raise errors.Unavailable(
                f"the sampler of {info.model} does not give the logprobs of sampled tokens at "
                "their temperature, so nothing can be trained from it; use the embedded engine"
            )

    async def _say(
        self,
        status: JobStatus,
        secondary: Secondary,
        message: str = "",
        level: Level = Level.INFO,
        *,
        rollouts: Sequence[str] = (),
    ) -> None:
        body = {"status": status.value, "secondary": secondary.value, "message": message}
        shown = {"rollouts": list(rollouts)} if rollouts else {}
        draft = EventDraft(kind=EventKind.STATUS, body=body | shown, level=level)
        await self.sockets.store.append(self._job.account_id, self._job.job_id, [draft])


class Training:
    """The tasks of one incarnation."""

    def __init__(
        self,
        job: Job,
        start: Start,
        plan: Plan,
        rows: Sequence[Row],
        validation_rows: Sequence[Row],
        collector: Collector,
        stepper: Stepper,
        sockets: Sockets,
    ) -> None:
        self._job = job
        self._plan = plan
        self._orders = start.orders
        self._rows = rows
        self._validation_rows = validation_rows
        self._collector = collector
        self._stepper = stepper
        self._sockets = sockets
        self._pace = start.pace
        self._early = EarlyStop(plan.num_rows, start.tallies)
        self._closed = {each.group.order: each for each in start.kept}
        self._changed = asyncio.Event()
        self._phase = Secondary.STARTING
        self._validated: set[int] = set()
        self._collecting: set[asyncio.Task[None]] = set()

    async def run(self) -> Ending | None:
        """Until every group is trained, or going on is no use: then why.

        The first error of any task ends them all.
        """
        self._sockets.rollouts.publish(self._job.job_id, self._stepper.policy)
        async with asyncio.TaskGroup() as tasks:
            admit = tasks.create_task(self._admit(tasks), name=f"admit {self._job.name}")
            await self._train()
            admit.cancel()  # with refill, the last step may leave places of the plan unused
            for collect in self._collecting:  # of later steps, where the job stops early
                collect.cancel()
        epoch = self._fruitless
        return Ending(self._early.reason(epoch), epoch.rollouts) if epoch else None

    async def _admit(self, tasks: asyncio.TaskGroup) -> None:
        """Consumes places in the plan, waits for room, produces a collect task for each."""
        for order in self._orders:
            await self._until(self._pace.may_admit)
            self._pace.admit(order)
            row = self._rows[self._plan.row_index(order)]
            group = Group(
                group_id=self._sockets.new_id("group"),
                account_id=self._job.account_id,
                job_id=self._job.job_id,
                incarnation=self._job.incarnation,
                order=order,
                row_index=row.index,
                epoch=self._plan.epoch(order),
                size=self._job.spec.batch.group_size,
                admitted_at_step=self._pace.step,
            )
            await self._sockets.store.open_group(group)
            collect = tasks.create_task(self._collect(group, row), name=f"collect group {order}")
            self._collecting.add(collect)
            collect.add_done_callback(self._collecting.discard)

    async def _collect(self, group: Group, row: Row) -> None:
        """Consumes an open group, waits for its slots, produces a closed one."""
        attempts = await self._collector.collect(
            Assignment(
                group_id=group.group_id,
                row=row,
                size=group.size,
                step=group.admitted_at_step,
                purpose=Purpose.TRAIN,
                sampling=self._job.spec.sampling_params,
                pilot=self._job.spec.batch.pilot_size,
            )
        )
        await self._sockets.store.close_group(group.account_id, group.group_id)
        closed = self._closed[group.order] = ClosedGroup(group=group, attempts=attempts)
        is_replaced = self._job.spec.batch.refill and is_zero(self._job.spec, closed)
        self._pace.close(group.order, is_zero=is_replaced)
        self._changed.set()

    async def _train(self) -> None:
        """Consumes closed groups, waits for a full step, produces a policy."""
        self._validated = await validated_steps(self._job, self._sockets, newest=self._pace.step)
        await self._validate()
        while not self._is_over:
            await self._say(Secondary.TRAINING)
            await self._step()
            await self._validate()

    async def _step(self) -> None:
        waited_from = self._sockets.clock.now()
        orders = await self._until(self._pace.take)
        closed = [self._closed.pop(order) for order in orders]
        if not any(t.rollout.is_scored for each in closed for t in each.attempts):
            await self._sockets.runner.check()  # an agent that is gone would use up all rows
        tallies = await self._stepper.step(
            closed,
            waited_s=self._sockets.clock.now() - waited_from,
            refilled=self._pace.refilled,
        )
        self._early.see(tallies)
        self._pace.finish()
        self._changed.set()

    @property
    def _is_over(self) -> bool:
        return self._pace.is_done or self._fruitless is not None

    @property
    def _fruitless(self) -> Tally | None:
        """The epoch that the job stops after because it gave nothing to learn from."""
        return self._early.epoch if self._job.spec.schedule.stop_early else None

    async def _validate(self) -> None:
        """Evaluate the newest policy on the validation rows, where that is due."""
        if not self._is_validation_due():
            return
        await self._say(Secondary.EVALUATING)
        await validate(
            self._job,
            self._validation_rows,
            self._collector,
            self._sockets,
            policy=self._stepper.policy,
            step=self._pace.step,
        )
        self._validated.add(self._pace.step)

    def _is_validation_due(self) -> bool:
        every = self._job.spec.schedule.val_every
        if not self._validation_rows or not every:
            return False
        if self._pace.step % every and not self._is_over:
            return False
        return self._pace.step not in self._validated

    async def _until(self, found: Callable[[], T | None]) -> T:
        """Wait until a look at the pace finds something."""
        while not (seen := found()):
            self._changed.clear()
            await self._changed.wait()
        return seen

    async def _say(self, secondary: Secondary) -> None:
        """Record the phase, where it is a new one."""
        if secondary is self._phase:
            return
        self._phase = secondary
        body = {"status": JobStatus.RUNNING.value, "secondary": secondary.value, "message": ""}
        await self._append(EventDraft(kind=EventKind.STATUS, body=body))

    async def _append(self, *drafts: EventDraft) -> None:
        await self._sockets.store.append(self._job.account_id, self._job.job_id, drafts)


def _planned_rollouts(job: Job, num_rows: int) -> int:
    """Rollouts of an evaluation, repeated attempts apart."""
    spec = job.spec.evaluation
    rows = min(num_rows, spec.max_rows or num_rows)
    return rows * spec.group_size * len(job.spec.evaluated_models)


def _reason(error: BaseException) -> str:
    """What a person reads as the cause of a failed job."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, errors.TurnwiseError):
        return str(error)
    log.error("a job's loop broke", exc_info=error)
    return f"{type(error).__name__}: {error}"
