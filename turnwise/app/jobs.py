"""What a job's loop, and a model that is served outside rollouts, are plugged together from."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from turnwise import errors
from turnwise.agents import open_runner, open_scorers
from turnwise.control.agent_logs import AgentLogs
from turnwise.control.agents import Agents
from turnwise.control.evaluators import Evaluators
from turnwise.control.job_data import JobData, load_job_rows
from turnwise.control.models.served import adapter_id, verified_folder
from turnwise.control.outputs import Outputs
from turnwise.domain.job import AgentKind, History, Job, JobKind, JobSpec
from turnwise.domain.rollout import Rollout
from turnwise.domain.training import LearnerSpec
from turnwise.evaluators.room import EvaluatorRoom
from turnwise.gateway.gateway import Gateway
from turnwise.gateway.serving import OpenModel
from turnwise.launching.lazy import LazyLearner
from turnwise.launching.local import LocalLauncher
from turnwise.loop.run import JobLoop
from turnwise.loop.sockets import Sockets
from turnwise.ports import AgentRunner, BareModel, Blobs, Renderer, Scorer, ServedModel
from turnwise.rendering.family import load_renderer
from turnwise.sampling.engines import Engines
from turnwise.sampling.shared import ClaimedSampler
from turnwise.settings import Settings
from turnwise.storage.sql import SqlStore
from turnwise.system import SYSTEM_CLOCK, new_id
from turnwise.tracking.tracker import Tracker
from turnwise.wire.aws.arns import JobArn
from turnwise.wire.inside import InsideDoor


@dataclass(frozen=True, slots=True, kw_only=True)
class _PluggedLoop:
    """A job's loop with what was opened for it, closed when the loop has ended."""

    loop: JobLoop
    opened: contextlib.AsyncExitStack

    async def run(self) -> None:
        async with self.opened:
            await self.loop.run()

    def request_stop(self) -> None:
        self.loop.request_stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """The rooms that a job needs while it runs."""

    settings: Settings
    url: str
    account_number: Callable[[str], Awaitable[str]]  # by the account's id
    blobs: Blobs
    store: SqlStore
    gateway: Gateway
    launcher: LocalLauncher
    engines: Engines
    tracker: Tracker
    data: JobData
    outputs: Outputs
    agents: Agents
    agent_logs: AgentLogs
    evaluators: Evaluators
    evaluator_room: EvaluatorRoom

    async def start_job(self, job: Job) -> _PluggedLoop:
        """Plug a job's loop together."""
        self.tracker.follow(job)
        files = await self.data.files(job.account_id, job.spec)
        rows, validation_rows = await asyncio.to_thread(load_job_rows, job.spec, files)
        renderer = await asyncio.to_thread(load_renderer, Path(job.spec.model), job.spec.history)
        async with contextlib.AsyncExitStack() as opened:  # what is open when one is refused closes
            sockets = await self._open_sockets(job, renderer, opened)
            loop = JobLoop(job, rows, validation_rows, sockets)
            return _PluggedLoop(loop=loop, opened=opened.pop_all())

    async def _open_sockets(
        self, job: Job, renderer: Renderer, opened: contextlib.AsyncExitStack
    ) -> Sockets:
        scorers = await _scorers(job.spec, opened)  # first, for it may refuse what it is given
        engine = await self.engines.claim(job.spec.model, deterministic=job.spec.deterministic)
        opened.push_async_callback(_give_up, engine)
        runner = await self._open_agent(job)
        opened.push_async_callback(runner.close)
        spec = self._learner_spec(job.spec)
        if await self.store.checkpoints(job.account_id, job.job_id):
            # It goes on from one of these; the folder that it began with may be gone by now.
            spec = replace(spec, input_adapter=None)
        learner = LazyLearner(lambda: self.launcher.learner(spec))
        opened.push_async_callback(learner.close)
        number = await self.account_number(job.account_id)
        self.gateway.attach(job, engine, renderer)
        opened.callback(self.gateway.detach, job.job_id)
        return Sockets(
            store=self.store,
            rollouts=self.gateway,
            sampler=engine,
            learner=learner,
            runner=runner,
            blobs=self.blobs,
            clock=SYSTEM_CLOCK,
            new_id=new_id,
            endpoint=self._endpoint,
            job_arn=str(JobArn.of(job, self.settings.region, number)),
            model_folder=lambda name: self._model_folder(job, name),
            scorers=scorers,
            deliver=self.outputs.deliver,
        )

    async def _open_agent(self, job: Job) -> AgentRunner:
        """The way to the job's agent; to a registered one's where it is now, with its log."""
        door = InsideDoor(self.gateway, job.account_id)
        if job.spec.agent.kind is AgentKind.EVALUATOR and not job.spec.agent.name:
            return await self._open_evaluator(job, door)
        if not (name := job.spec.agent.name):
            return open_runner(job.spec.agent, door)
        spec = await self.agents.resolved(job.account_id, job.spec.agent)
        return open_runner(spec, door, self.agent_logs.of(job.account_id, name))

    async def _open_evaluator(self, job: Job, door: InsideDoor) -> AgentRunner:
        """A job's uploaded evaluator, with a log under a name that no registered agent can have."""
        evaluator_id = job.spec.agent.target
        evaluator = await self.evaluators.of_job(job.account_id, evaluator_id)
        return await self.evaluator_room.agent(
            evaluator,
            door,
            self.agent_logs.of(job.account_id, f"evaluators/{evaluator_id}"),
            group_size=job.spec.batch.group_size,
            extra_body=json.loads(job.spec.agent.extra_body or "{}"),
        )

    async def open_model(self, model: ServedModel) -> OpenModel:
        """Load a model into an engine of its base; of a registered one the files are verified."""
        if isinstance(model, BareModel):
            return await self._open_with(model, model.folder, adapter=None)
        folder = await asyncio.to_thread(verified_folder, model)
        loaded_id = await asyncio.to_thread(adapter_id, model, folder)
        return await self._open_with(model, model.base_model, adapter=(loaded_id, str(folder)))

    async def _open_with(
        self, model: ServedModel, base: str, *, adapter: tuple[str, str] | None
    ) -> OpenModel:
        """An engine of the base; `adapter`, its id and folder, is loaded into it."""
        engine = await self.engines.claim_any(base)
        try:
            renderer = await asyncio.to_thread(load_renderer, Path(base), History.TEMPLATE)
            if adapter is not None:
                await engine.load(*adapter)
            info = await engine.info()
        except BaseException as error:
            await _give_up(engine)
            if isinstance(error, errors.InvalidInput):  # of the model's files, not of the caller
                name = f"model {model.name}"
                raise errors.Corrupted(f"{name} cannot be served: {error}") from error
            raise
        return OpenModel(
            sampler=engine,
            renderer=renderer,
            adapter_id=None if adapter is None else adapter[0],
            max_length=info.max_length,
        )

    async def job_arn(self, account_id: str, id_or_name: str) -> str:
        """The ARN of a job; of one that does not exist, what it would be as a training job."""
        number = await self.account_number(account_id)
        try:
            job = await self.store.job(account_id, id_or_name)
        except errors.NotFound:
            return str(JobArn(region=self.settings.region, number=number, name=id_or_name))
        return str(JobArn.of(job, self.settings.region, number))

    async def job_arn_of(self, rollout: Rollout) -> str:
        """The ARN of a rollout's job. Raises `NotFound`."""
        job = await self.gateway.job_of(rollout)
        number = await self.account_number(rollout.account_id)
        return str(JobArn.of(job, self.settings.region, number))

    async def _model_folder(self, job: Job, name: str) -> str:
        """The PEFT folder of a model to evaluate; a registered one's files are verified."""
        if Path(name).is_absolute():
            return name
        package = await self.store.package(job.account_id, name)
        return str(await asyncio.to_thread(verified_folder, package))

    def _endpoint(self, rollout_id: str, secret: str) -> str:
        return f"{self.url}/r/{rollout_id}.{secret}"

    def _learner_spec(self, spec: JobSpec) -> LearnerSpec:
        return LearnerSpec(
            base_model=spec.model,
            lora=spec.lora,
            optimizer=spec.optimizer,
            seed=spec.seed,
            tokens_per_micro_batch=spec.batch.tokens_per_micro_batch,
            share_prefixes=spec.batch.share_prefixes,
            device=self.settings.device,
            threads=self.settings.learner_threads,
            input_adapter=spec.input_adapter or None,
        )


async def _scorers(spec: JobSpec, opened: contextlib.AsyncExitStack) -> list[Scorer]:
    """What an evaluation is judged by beside its agent; closed with the rest."""
    if spec.kind is not JobKind.EVALUATION:
        return []
    scorers = open_scorers(spec.evaluation.scorers)
    for scorer in scorers:
        opened.push_async_callback(scorer.close)
    return scorers


async def _give_up(engine: ClaimedSampler) -> None:
    with contextlib.suppress(errors.ProcessDied):
        await engine.close()
