"""Where rooms meet: Settings -> objects -> one ASGI app. Imports no torch.

One server process holds every door, the gateway and the jobs' loops on one asyncio loop; engines
and learners are its child processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import uvicorn
import uvloop

from turnwise import errors
from turnwise.access import sigv4
from turnwise.access.accounts import Accounts
from turnwise.access.callers import Callers
from turnwise.access.keys import Keyring
from turnwise.access.links import Links
from turnwise.access.vault import Vault
from turnwise.agents import AgentCalls, open_runner, open_scorers
from turnwise.channel import Connection
from turnwise.control.agent_logs import AgentLogs
from turnwise.control.agents import Agents
from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.trails import Trails
from turnwise.control.browse import Browse
from turnwise.control.job_data import JobData, load_job_rows
from turnwise.control.jobs import Jobs
from turnwise.control.logs import Logs
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.models.hubs import Hubs
from turnwise.control.models.model_files import ModelFiles, models_bucket
from turnwise.control.models.recipe_files import RecipeFiles, recipes_bucket
from turnwise.control.models.registry import Registry
from turnwise.control.models.served import ServedModels, adapter_id, verified_base, verified_folder
from turnwise.control.objects.buckets import Buckets
from turnwise.control.outputs import Outputs
from turnwise.control.pipelines.pipelines import Pipelines
from turnwise.control.queue import Limits
from turnwise.control.results import StoredResults
from turnwise.domain.audit import Sealer
from turnwise.domain.job import History, Job, JobKind, JobSpec
from turnwise.domain.rollout import Rollout
from turnwise.domain.training import LearnerSpec
from turnwise.exporting.archives import Archives
from turnwise.exporting.handle import RemoteArchive
from turnwise.gateway.gateway import Gateway
from turnwise.gateway.serving import OpenModel, Serving
from turnwise.launching.lazy import LazyLearner
from turnwise.launching.local import LocalLauncher
from turnwise.launching.mlflow import MlflowServers
from turnwise.loop.run import JobLoop
from turnwise.loop.sockets import Sockets
from turnwise.ports import AgentRunner, EngineSpec, ModelPackage, Renderer, Sampler, Scorer
from turnwise.rendering.family import load_renderer
from turnwise.sampling.engines import Engines
from turnwise.sampling.handle import RemoteSampler
from turnwise.sampling.shared import ClaimedSampler
from turnwise.settings import Settings
from turnwise.storage.blobs import FolderBlobs
from turnwise.storage.folder import DataFolder
from turnwise.storage.remote_s3 import RemoteS3
from turnwise.storage.sql import SqlStore
from turnwise.system import SYSTEM_CLOCK, new_id
from turnwise.tracking.tracker import Tracker
from turnwise.training.handle import RemoteLearner
from turnwise.wire.asgi import Receive, Scope, Send
from turnwise.wire.aws import faults
from turnwise.wire.aws.arns import JobArn
from turnwise.wire.aws.audit import Auditor
from turnwise.wire.aws.door import AwsDoor
from turnwise.wire.aws.sagemaker.mlflow_apps import MlflowApps
from turnwise.wire.aws.services import Rooms, open_services
from turnwise.wire.data_events import DataEvents
from turnwise.wire.dataplane import DataPlane
from turnwise.wire.inside import InsideDoor
from turnwise.wire.mlflow import PREFIX, MlflowDoor
from turnwise.wire.native.agents import AgentRooms
from turnwise.wire.native.audit import audit_routes
from turnwise.wire.native.observed import Observed
from turnwise.wire.native.routes import native_app

log = logging.getLogger(__name__)

Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


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
class Service:
    """One server's rooms, plugged together."""

    settings: Settings
    url: str
    account_number: Callable[[str], Awaitable[str]]  # by the account's id
    folder: DataFolder
    store: SqlStore
    gateway: Gateway
    launcher: LocalLauncher
    engines: Engines
    tracker: Tracker
    data: JobData
    outputs: Outputs
    agents: Agents
    agent_logs: AgentLogs

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
            blobs=FolderBlobs(self.folder.blobs),
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
        if not (name := job.spec.agent.name):
            return open_runner(job.spec.agent, door)
        spec = await self.agents.resolved(job.account_id, job.spec.agent)
        return open_runner(spec, door, self.agent_logs.of(job.account_id, name))

    async def open_model(self, package: ModelPackage) -> OpenModel:
        """Load a registered model into an engine of its base, its files verified."""
        folder = await asyncio.to_thread(verified_folder, package)
        loaded_id = await asyncio.to_thread(adapter_id, package, folder)
        engine = await self.engines.claim_any(package.base_model)
        try:
            base = Path(package.base_model)
            renderer = await asyncio.to_thread(load_renderer, base, History.TEMPLATE)
            await engine.load(loaded_id, str(folder))
            info = await engine.info()
        except BaseException as error:
            await _give_up(engine)
            if isinstance(error, errors.InvalidInput):  # of the model's files, not of the caller
                name = f"model {package.name}"
                raise errors.Corrupted(f"{name} cannot be served: {error}") from error
            raise
        return OpenModel(
            sampler=engine, renderer=renderer, adapter_id=loaded_id, max_length=info.max_length
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


async def _give_up(engine: ClaimedSampler) -> None:
    with contextlib.suppress(errors.ProcessDied):
        await engine.close()


@contextlib.asynccontextmanager
async def open_service(settings: Settings, url: str) -> AsyncIterator[tuple[Service, Asgi]]:
    """Open the data folder, plug the rooms together and continue the jobs; the ASGI app."""
    async with contextlib.AsyncExitStack() as opened:
        folder = DataFolder.open(settings.data_dir)
        opened.callback(folder.close)
        store = await asyncio.to_thread(SqlStore.open, settings.database_url or folder.database)
        opened.push_async_callback(store.close)
        master_key = Path(settings.master_key_file or folder.master_key)
        vault = await asyncio.to_thread(Vault.open, master_key)
        keyring = Keyring(store, vault)
        await keyring.admin_key(folder.admin_key)
        accounts = Accounts(store, keyring, find_job=store.job, region=settings.region)
        audit = AuditTrail(
            store,
            store,
            Sealer(vault.derived("audit trail")),
            SYSTEM_CLOCK,
            retention_days=settings.audit_retention_days,
        )
        audit.start()
        opened.push_async_callback(audit.close)
        links = Links(vault, SYSTEM_CLOCK)
        blobs = FolderBlobs(folder.blobs)
        buckets = Buckets(
            store,
            blobs,
            SYSTEM_CLOCK,
            new_id,
            remote=RemoteS3(settings.s3_endpoint_url) if settings.s3_endpoint_url else None,
            private=folder.root.resolve(),
        )
        await buckets.recover()
        data = JobData(buckets)
        mlflow = MlflowServers(
            folder.root / "mlflow",
            run=folder.run,
            logs=folder.logs,
            is_on=settings.mlflow == "auto",
        )
        opened.push_async_callback(mlflow.close)
        tracker = Tracker(
            store=store,
            resources=store,
            address=mlflow.address,
            clock=SYSTEM_CLOCK,
            largest_step=partial(_largest_step, data),
            traces_per_step=settings.mlflow_traces_per_step,
            is_on=not mlflow.missing,
        )
        opened.push_async_callback(tracker.close)
        launcher = LocalLauncher(
            sampler=_remote_sampler, learner=_remote_learner, archive=_remote_archive
        )
        opened.push_async_callback(launcher.close)

        async def start_engine(model: str, deterministic: bool) -> Sampler:
            return await launcher.engine(_engine_spec(settings, model, deterministic))

        catalogue = Catalogue(settings.models_folder, max_length=settings.engine_max_length)
        model_files = ModelFiles(store, models_bucket(settings.region))
        recipe_files = RecipeFiles(catalogue, blobs, recipes_bucket(settings.region))
        buckets.mount(model_files.bucket, model_files)
        buckets.mount(recipe_files.bucket, recipe_files)
        registry = Registry(
            store=store,
            resources=store,
            blobs=blobs,
            objects=buckets,
            catalogue=catalogue,
            clock=SYSTEM_CLOCK,
            new_id=new_id,
        )
        trails = Trails(audit, store, SYSTEM_CLOCK, region=settings.region, buckets=buckets)
        await trails.open(await store.accounts())
        opened.push_async_callback(trails.close)
        gateway = Gateway(store, SYSTEM_CLOCK, new_id)
        opened.push_async_callback(gateway.close)
        agents = Agents(store, accounts.number, SYSTEM_CLOCK, region=settings.region)
        agent_logs = AgentLogs(store, SYSTEM_CLOCK, keep=settings.agent_log_entries)
        opened.push_async_callback(agent_logs.close)
        agent_calls = AgentCalls()
        opened.push_async_callback(agent_calls.close)
        service = Service(
            settings=settings,
            url=settings.public_url or url,
            account_number=accounts.number,
            folder=folder,
            store=store,
            gateway=gateway,
            launcher=launcher,
            engines=Engines(start_engine, idle_s=settings.serving_idle_s),
            tracker=tracker,
            data=data,
            outputs=Outputs(store, buckets, blobs),
            agents=agents,
            agent_logs=agent_logs,
        )
        jobs = Jobs(
            store=store,
            agents=agents,
            clock=SYSTEM_CLOCK,
            new_id=new_id,
            start=service.start_job,
            limits=Limits(
                running=settings.max_running_jobs,
                account_running=settings.account_running_jobs,
                training_quota=settings.quota_training_jobs,
                evaluation_quota=settings.quota_evaluation_jobs,
            ),
            data=data,
        )
        opened.push_async_callback(jobs.close)
        await tracker.recover()
        await jobs.recover()
        serving = Serving(
            service.open_model,
            SYSTEM_CLOCK,
            new_id,
            idle_s=settings.serving_idle_s,
            max_models=settings.serving_models,
        )
        opened.push_async_callback(serving.close)
        archives = Archives(verified_folder, verified_base, launcher.merge)
        results = StoredResults(store, FolderBlobs(folder.blobs))
        agent_rooms = AgentRooms(agents=agents, logs=agent_logs, calls=agent_calls, url=service.url)
        native = native_app(
            jobs,
            Browse(store),
            archives,
            results,
            accounts,
            registry,
            agents=agent_rooms,
            more=[audit_routes(audit, trails, store.account)],
        )
        callers = Callers(keyring, settings.region)
        events = DataEvents(
            audit,
            SYSTEM_CLOCK,
            region=settings.region,
            account_number=accounts.number,
            job_arn=service.job_arn_of,
            error_name=lambda error: faults.status_and_name(error)[1],
        )
        data_plane = DataPlane(
            gateway, serving, ServedModels(store), callers, accounts.number, events
        )
        browse = Browse(store)
        pipelines = Pipelines(
            resources=store, accounts=store.accounts, clock=SYSTEM_CLOCK, new_id=new_id
        )
        opened.push_async_callback(pipelines.close)
        rooms = Rooms(
            url=service.url,
            jobs=jobs,
            audit=audit,
            trails=trails,
            logs=Logs(
                jobs=jobs,
                browse=browse,
                agents=agents,
                agent_logs=agent_logs,
                resources=store,
                clock=SYSTEM_CLOCK,
            ),
            browse=browse,
            resources=store,
            buckets=buckets,
            clock=SYSTEM_CLOCK,
            new_id=new_id,
            registry=registry,
            catalogue=catalogue,
            hubs=Hubs(store, SYSTEM_CLOCK),
            model_files=model_files,
            recipe_files=recipe_files,
            agents=agents,
            agent_logs=agent_logs,
            agent_calls=agent_calls,
            region=settings.region,
            account=store.account,
            pipelines=pipelines,
            mlflow=MlflowApps(
                store,
                links,
                url=f"{service.url}{PREFIX}/auth",
                clock=SYSTEM_CLOCK,
                new_id=new_id,
                missing=mlflow.missing,
                start=mlflow.start,
            ),
        )
        services = open_services(rooms)
        await pipelines.recover()
        mlflow_door = MlflowDoor(
            mlflow,
            keyring,
            links,
            account=store.account,
            region=settings.region,
            settle=tracker.settle,
            is_secure=service.url.startswith("https:"),
        )
        opened.push_async_callback(mlflow_door.close)
        aws = AwsDoor(
            services,
            verify=lambda request, signature: keyring.verify(
                request, signature, max_expires_s=sigv4.MAX_EXPIRES_S
            ),
            account=store.account,
            region=settings.region,
            observe=Auditor(audit, SYSTEM_CLOCK).observe,
        )
        observed = Observed(
            native,
            audit,
            SYSTEM_CLOCK,
            region=settings.region,
            account_number=accounts.number,
            job_arn=service.job_arn,
        )
        yield service, _doors(data_plane, mlflow_door, aws, observed)


def _doors(data_plane: DataPlane, mlflow: MlflowDoor, aws: AwsDoor, native: Asgi) -> Asgi:
    """One ASGI app: model calls and rewards past any framework, the rest behind FastAPI."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        door: Asgi = native
        if aws.signed_for(scope) == "s3":  # whose buckets may be called like our paths
            door = aws
        elif data_plane.owns(scope["path"]):
            door = data_plane
        elif mlflow.owns(scope["path"]):
            door = mlflow
        elif aws.owns(scope):
            door = aws
        await door(scope, receive, send)

    return app


def _remote_sampler(connection: Connection) -> Sampler:
    return RemoteSampler(connection)


def _remote_learner(connection: Connection) -> RemoteLearner:
    return RemoteLearner(connection)


def _remote_archive(connection: Connection) -> RemoteArchive:
    return RemoteArchive(connection)


def run_server(settings: Settings, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. `ready` is called with the URL once requests are answered."""
    uvloop.run(_serve(settings, ready))


async def _serve(settings: Settings, ready: Callable[[str], None]) -> None:
    listening = _listen(settings.host, settings.port)
    url = f"http://{settings.host}:{listening.getsockname()[1]}"
    async with open_service(settings, url) as (service, asgi):
        (service.folder.root / "server.url").write_text(url + "\n")
        config = uvicorn.Config(
            asgi,
            lifespan="off",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
            # An agent's client keeps hundreds of connections; the default of 5 s would close
            # them between two steps.
            timeout_keep_alive=75,
        )
        server = _Server(config, lambda: ready(url))
        # What was imported and opened by now stays: looking through it for garbage would stop
        # every request for 50 to 150 ms, again and again.
        gc.collect()
        gc.freeze()
        await server.serve([listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket on that port; 0 takes a free one without "404" in it (see `ports.NewId`)."""
    listening = socket.create_server((host, port), backlog=1024)
    if port or "404" not in str(listening.getsockname()[1]):
        return listening
    with listening:  # kept until there is another, which so cannot be the same
        return _listen(host, port)


class _Server(uvicorn.Server):
    """uvicorn that says when it answers, and leaves the end of the process to us."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again, which ends the process before it is closed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
