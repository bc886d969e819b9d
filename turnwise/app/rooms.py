"""The server's rooms, opened in order and closed in reverse."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from turnwise import errors
from turnwise.access.accounts import Accounts
from turnwise.access.keys import Keyring
from turnwise.access.links import Links
from turnwise.access.vault import Vault
from turnwise.agents import AgentCalls
from turnwise.app.jobs import Workshop
from turnwise.channel import Connection
from turnwise.control.agent_logs import AgentLogs
from turnwise.control.agents import Agents
from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.trails import Trails
from turnwise.control.evaluators import Evaluators
from turnwise.control.job_data import JobData, load_job_rows
from turnwise.control.jobs import Jobs
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.models.model_files import ModelFiles, models_bucket
from turnwise.control.models.recipe_files import RecipeFiles, recipes_bucket
from turnwise.control.models.registry import Registry
from turnwise.control.named_datasets import NamedDatasets
from turnwise.control.objects.buckets import Buckets
from turnwise.control.outputs import Outputs
from turnwise.control.pipelines.pipelines import Pipelines
from turnwise.control.queue import Limits
from turnwise.control.secrets import Secrets
from turnwise.control.traces import Traces
from turnwise.domain.audit import Sealer
from turnwise.domain.job import Job, JobKind
from turnwise.evaluators.room import EvaluatorRoom, Terms
from turnwise.evaluators.sandbox import Limits as SandboxLimits
from turnwise.evaluators.unpack import Bounds
from turnwise.exporting.handle import RemoteArchive
from turnwise.gateway.gateway import Gateway
from turnwise.gateway.serving import Serving
from turnwise.launching.local import LocalLauncher
from turnwise.launching.mlflow import MlflowServers
from turnwise.ports import EngineSpec, Sampler
from turnwise.sampling.engines import Engines
from turnwise.sampling.handle import RemoteSampler
from turnwise.settings import Settings, wandb_api_key
from turnwise.storage.blobs import FolderBlobs
from turnwise.storage.folder import DataFolder
from turnwise.storage.remote_s3 import RemoteS3
from turnwise.storage.sql import SqlStore
from turnwise.system import SYSTEM_CLOCK, new_id
from turnwise.tracking.mlflow_runs import MlflowRuns
from turnwise.tracking.tracker import Tracker
from turnwise.tracking.wandb import WandbRuns
from turnwise.training.handle import RemoteLearner


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What everything stands on. `url` is how agents and clients reach the server.

    `local_url` is where it listens, for what runs on this machine.
    """

    settings: Settings
    url: str
    local_url: str
    folder: DataFolder
    store: SqlStore
    blobs: FolderBlobs
    vault: Vault


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may call."""

    keyring: Keyring
    accounts: Accounts
    links: Links


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Buckets, the data of jobs, and models by name."""

    buckets: Buckets
    datasets: NamedDatasets
    job_data: JobData
    catalogue: Catalogue
    model_files: ModelFiles
    recipe_files: RecipeFiles
    registry: Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSide:
    """Registered agents, their logs, and calls of them outside jobs."""

    agents: Agents
    logs: AgentLogs
    calls: AgentCalls


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatorSide:
    """Uploaded evaluators: their records, where they are built and run, and what they may know."""

    evaluators: Evaluators
    room: EvaluatorRoom
    secrets: Secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The audit trail and its trails; MLflow, what feeds it and W&B; remote rollouts."""

    audit: AuditTrail
    trails: Trails
    mlflow: MlflowServers
    tracker: Tracker
    traces: Traces


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """All rooms of one server."""

    base: Base
    access: Access
    data: Data
    agent_side: AgentSide
    evaluator_side: EvaluatorSide
    records: Records
    workshop: Workshop
    jobs: Jobs
    serving: Serving
    pipelines: Pipelines


@contextlib.asynccontextmanager
async def open_rooms(settings: Settings, url: str) -> AsyncIterator[House]:
    """Open the data folder, plug the rooms together and continue the jobs."""
    async with contextlib.AsyncExitStack() as opened:
        base = await _base(settings, url, opened)
        access = await _access(base)
        data = await _data(base)
        agent_side = _agent_side(base, access, opened)
        evaluator_side = await _evaluator_side(base, opened)
        records = await _records(base, data, evaluator_side.secrets, opened)
        workshop = _workshop(base, access, data, agent_side, evaluator_side, records, opened)
        jobs = _jobs(workshop, data.catalogue, opened)
        serving = _serving(workshop, opened)
        pipelines = Pipelines(
            resources=base.store, accounts=base.store.accounts, clock=SYSTEM_CLOCK, new_id=new_id
        )
        opened.push_async_callback(pipelines.close)
        await records.tracker.recover()
        await jobs.recover()
        yield House(
            base=base,
            access=access,
            data=data,
            agent_side=agent_side,
            evaluator_side=evaluator_side,
            records=records,
            workshop=workshop,
            jobs=jobs,
            serving=serving,
            pipelines=pipelines,
        )


async def _base(settings: Settings, url: str, opened: contextlib.AsyncExitStack) -> Base:
    folder = DataFolder.open(settings.data_dir)
    opened.callback(folder.close)
    store = await asyncio.to_thread(SqlStore.open, settings.database_url or folder.database)
    opened.push_async_callback(store.close)
    master_key = Path(settings.master_key_file or folder.master_key)
    return Base(
        settings=settings,
        url=settings.public_url or url,
        local_url=url,
        folder=folder,
        store=store,
        blobs=FolderBlobs(folder.blobs),
        vault=await asyncio.to_thread(Vault.open, master_key),
    )


async def _access(base: Base) -> Access:
    store = base.store
    keyring = Keyring(store, base.vault)
    await keyring.admin_key(base.folder.admin_key)
    region = base.settings.region
    return Access(
        keyring=keyring,
        accounts=Accounts(store, keyring, find_job=store.job, region=region),
        links=Links(base.vault, SYSTEM_CLOCK),
    )


async def _data(base: Base) -> Data:
    settings, store = base.settings, base.store
    buckets = Buckets(
        store,
        base.blobs,
        SYSTEM_CLOCK,
        new_id,
        remote=RemoteS3(settings.s3_endpoint_url) if settings.s3_endpoint_url else None,
        private=base.folder.root.resolve(),
    )
    await buckets.recover()
    catalogue = Catalogue(settings.models_folder, max_length=settings.engine_max_length)
    model_files = ModelFiles(store, models_bucket(settings.region))
    recipe_files = RecipeFiles(catalogue, base.blobs, recipes_bucket(settings.region))
    buckets.mount(model_files.bucket, model_files)
    buckets.mount(recipe_files.bucket, recipe_files)
    registry = Registry(
        store=store,
        resources=store,
        blobs=base.blobs,
        objects=buckets,
        catalogue=catalogue,
        clock=SYSTEM_CLOCK,
        new_id=new_id,
    )
    return Data(
        buckets=buckets,
        datasets=NamedDatasets(store, buckets, SYSTEM_CLOCK),
        job_data=JobData(buckets),
        catalogue=catalogue,
        model_files=model_files,
        recipe_files=recipe_files,
        registry=registry,
    )


def _agent_side(base: Base, access: Access, opened: contextlib.AsyncExitStack) -> AgentSide:
    settings, store = base.settings, base.store
    logs = AgentLogs(store, SYSTEM_CLOCK, keep=settings.agent_log_entries)
    opened.push_async_callback(logs.close)
    calls = AgentCalls()
    opened.push_async_callback(calls.close)
    agents = Agents(store, access.accounts.number, SYSTEM_CLOCK, region=settings.region)
    return AgentSide(agents=agents, logs=logs, calls=calls)


async def _evaluator_side(base: Base, opened: contextlib.AsyncExitStack) -> EvaluatorSide:
    settings, store = base.settings, base.store
    master_key = Path(settings.master_key_file or base.folder.master_key)
    secrets = Secrets(store, base.vault, SYSTEM_CLOCK)
    room = EvaluatorRoom(
        base.folder.root / "evaluators",
        _evaluator_terms(settings),
        url=base.local_url,
        public_url=base.url,
        hidden=(base.folder.root, master_key.parent),
        secrets=secrets.values,
        new_id=new_id,
    )
    await room.open()
    opened.push_async_callback(room.close)
    evaluators = Evaluators(store, base.blobs, room.builder, SYSTEM_CLOCK, new_id)
    opened.push_async_callback(evaluators.close)
    await evaluators.recover(await store.accounts())
    return EvaluatorSide(evaluators=evaluators, room=room, secrets=secrets)


def _evaluator_terms(settings: Settings) -> Terms:
    return Terms(
        python=settings.evaluator_python,
        is_isolation_required=settings.evaluator_isolation == "required",
        has_network=settings.evaluator_network == "host",
        processes=settings.evaluator_processes,
        limits=SandboxLimits(
            memory_bytes=settings.evaluator_memory_mb << 20,
            cpu_s=settings.evaluator_cpu_s,
            file_bytes=settings.evaluator_file_mb << 20,
            processes=settings.evaluator_tasks,
            open_files=settings.evaluator_open_files,
        ),
        bounds=Bounds(bytes=settings.evaluator_unpacked_mb << 20),
        build_timeout_s=settings.evaluator_build_s,
    )


async def _records(
    base: Base, data: Data, secrets: Secrets, opened: contextlib.AsyncExitStack
) -> Records:
    settings, store, folder = base.settings, base.store, base.folder
    audit = AuditTrail(
        store,
        store,
        Sealer(base.vault.derived("audit trail")),
        SYSTEM_CLOCK,
        retention_days=settings.audit_retention_days,
    )
    audit.start()
    opened.push_async_callback(audit.close)
    trails = Trails(audit, store, SYSTEM_CLOCK, region=settings.region, buckets=data.buckets)
    await trails.open(await store.accounts())
    opened.push_async_callback(trails.close)
    mlflow = MlflowServers(
        folder.root / "mlflow", run=folder.run, logs=folder.logs, is_on=settings.mlflow == "auto"
    )
    opened.push_async_callback(mlflow.close)

    async def largest_step(job: Job) -> int:
        return await _largest_step(data.job_data, job)

    mlflow_runs = MlflowRuns(
        store=store,
        resources=store,
        address=mlflow.address,
        clock=SYSTEM_CLOCK,
        largest_step=largest_step,
        traces_per_step=settings.mlflow_traces_per_step,
    )
    wandb_runs = WandbRuns(
        store=store,
        resources=store,
        clock=SYSTEM_CLOCK,
        folder=folder.root / "wandb",
        server_key=wandb_api_key(),
        secret=secrets.value,
    )
    tracker = Tracker(store, [*([] if mlflow.missing else [mlflow_runs]), wandb_runs])
    opened.push_async_callback(tracker.close)
    traces = Traces(store, SYSTEM_CLOCK, retention_days=settings.trace_retention_days)
    traces.start()
    opened.push_async_callback(traces.close)
    return Records(audit=audit, trails=trails, mlflow=mlflow, tracker=tracker, traces=traces)


async def _largest_step(data: JobData, job: Job) -> int:
    """Rollouts in a job's largest pass over validation or evaluation rows; 0: not known any more.

    What a training step makes is in the spec.
    """
    try:
        files = await data.files(job.account_id, job.spec)
        rows, validation = await asyncio.to_thread(load_job_rows, job.spec, files)
    except errors.TurnwiseError:
        return 0
    if job.spec.kind is JobKind.EVALUATION:
        its, models = job.spec.evaluation, len(job.spec.evaluated_models)
        return len(rows[: its.max_rows or None]) * its.group_size * models
    return len(validation[: job.spec.validation.max_rows or None]) * job.spec.validation.group_size


def _workshop(
    base: Base,
    access: Access,
    data: Data,
    agent_side: AgentSide,
    evaluator_side: EvaluatorSide,
    records: Records,
    opened: contextlib.AsyncExitStack,
) -> Workshop:
    settings = base.settings
    launcher = LocalLauncher(
        sampler=_remote_sampler, learner=_remote_learner, archive=_remote_archive
    )
    opened.push_async_callback(launcher.close)

    async def start_engine(model: str, deterministic: bool) -> Sampler:
        return await launcher.engine(_engine_spec(settings, model, deterministic))

    gateway = Gateway(base.store, SYSTEM_CLOCK, new_id)
    opened.push_async_callback(gateway.close)
    return Workshop(
        settings=settings,
        url=base.url,
        account_number=access.accounts.number,
        store=base.store,
        blobs=base.blobs,
        gateway=gateway,
        launcher=launcher,
        engines=Engines(start_engine, idle_s=settings.serving_idle_s),
        tracker=records.tracker,
        data=data.job_data,
        outputs=Outputs(base.store, data.buckets, base.blobs),
        agents=agent_side.agents,
        agent_logs=agent_side.logs,
        evaluators=evaluator_side.evaluators,
        evaluator_room=evaluator_side.room,
    )


def _engine_spec(settings: Settings, model: str, deterministic: bool) -> EngineSpec:
    return EngineSpec(
        base_model=model,
        device=settings.device,
        threads=settings.engine_threads,
        deterministic=deterministic,
        max_slots=settings.engine_slots,
        max_length=settings.engine_max_length,
        max_queue=settings.engine_queue,
    )


def _remote_sampler(connection: Connection) -> Sampler:
    return RemoteSampler(connection)


def _remote_learner(connection: Connection) -> RemoteLearner:
    return RemoteLearner(connection)


def _remote_archive(connection: Connection) -> RemoteArchive:
    return RemoteArchive(connection)


def _jobs(workshop: Workshop, bases: Catalogue, opened: contextlib.AsyncExitStack) -> Jobs:
    settings = workshop.settings
    jobs = Jobs(
        store=workshop.store,
        agents=workshop.agents,
        clock=SYSTEM_CLOCK,
        new_id=new_id,
        start=workshop.start_job,
        limits=Limits(
            running=settings.max_running_jobs,
            account_running=settings.account_running_jobs,
            training_quota=settings.quota_training_jobs,
            evaluation_quota=settings.quota_evaluation_jobs,
        ),
        data=workshop.data,
        is_base=lambda folder: bases.of_folder(folder) is not None,
        check_evaluator=workshop.evaluators.check_for_job,
    )
    opened.push_async_callback(jobs.close)
    return jobs


def _serving(workshop: Workshop, opened: contextlib.AsyncExitStack) -> Serving:
    serving = Serving(
        workshop.open_model,
        SYSTEM_CLOCK,
        new_id,
        idle_s=workshop.settings.serving_idle_s,
        max_models=workshop.settings.serving_models,
    )
    opened.push_async_callback(serving.close)
    return serving
