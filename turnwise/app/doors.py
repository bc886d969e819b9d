"""The doors over the rooms, and which of them answers a request."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from turnwise.access import sigv4
from turnwise.access.callers import Callers
from turnwise.app.rooms import House
from turnwise.app.token_bytes import TokenBytes
from turnwise.control.audit.witness import Witness
from turnwise.control.browse import Browse
from turnwise.control.exports import Exports
from turnwise.control.learned import Learned
from turnwise.control.logs import Logs
from turnwise.control.models.hubs import Hubs
from turnwise.control.models.served import ServedModels, verified_base, verified_folder
from turnwise.control.results import StoredResults
from turnwise.dashboard import DashboardRooms, OtherDoor, Prices, dashboard_app, is_page
from turnwise.dashboard import Observed as ObservedPages
from turnwise.diagnostics import Inspector
from turnwise.exporting.archives import Archives
from turnwise.settings import Settings
from turnwise.system import SYSTEM_CLOCK, new_id
from turnwise.wire.asgi import Receive, Scope, Send
from turnwise.wire.aws import faults
from turnwise.wire.aws.audit import Auditor
from turnwise.wire.aws.door import AwsDoor
from turnwise.wire.aws.sagemaker.job_progress import status_words
from turnwise.wire.aws.sagemaker.jobs import KIND as SAGEMAKER_JOB
from turnwise.wire.aws.sagemaker.mlflow_apps import MlflowApps
from turnwise.wire.aws.services import Rooms, open_services
from turnwise.wire.data_events import DataEvents
from turnwise.wire.dataplane import DataPlane
from turnwise.wire.fireworks.calls import FireworksRooms
from turnwise.wire.fireworks.deployments import find_deployed
from turnwise.wire.fireworks.door import FireworksDoor
from turnwise.wire.fireworks.job_body import state_words
from turnwise.wire.fireworks.jobs import KIND as FIREWORKS_JOB
from turnwise.wire.fireworks.observed import Observed as ObservedFireworks
from turnwise.wire.fireworks.tracing import TracingDoor
from turnwise.wire.mlflow import PREFIX, MlflowDoor
from turnwise.wire.native.agents import AgentRooms
from turnwise.wire.native.audit import audit_routes
from turnwise.wire.native.codec import trajectory_body
from turnwise.wire.native.exports import export_routes
from turnwise.wire.native.findings import finding_routes
from turnwise.wire.native.observed import Observed
from turnwise.wire.native.routes import native_app
from turnwise.wire.run_traces import RunTraces
from turnwise.wire.runs import RunDoor

Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """One ASGI app of all doors: model calls and rewards go past any framework."""

    data_plane: DataPlane
    tracing: TracingDoor
    mlflow: MlflowDoor
    fireworks: FireworksDoor
    aws: AwsDoor
    dashboard: Asgi
    native: Asgi

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the door answer that the request is for."""
        await self._door(scope)(scope, receive, send)

    def _door(self, scope: Scope) -> Asgi:
        if self.aws.signed_for(scope) == "s3":  # whose buckets may be called like our paths
            return self.aws
        if self.data_plane.owns(scope["path"]):
            return self.data_plane
        if self.tracing.owns(scope["path"]):
            return self.tracing
        if self.mlflow.owns(scope["path"]):
            return self.mlflow
        if self.fireworks.owns(scope["path"]):
            return self.fireworks
        if self.aws.owns(scope):
            return self.aws
        return self.dashboard if is_page(scope["path"]) else self.native


@contextlib.asynccontextmanager
async def open_doors(house: House) -> AsyncIterator[Doors]:
    """Put the doors in; a pipeline that a former server left goes on through them."""
    aws = _aws_door(house)
    await house.pipelines.recover()
    mlflow = _mlflow_door(house)
    try:
        yield Doors(
            data_plane=_data_plane(house),
            tracing=_tracing_door(house),
            mlflow=mlflow,
            fireworks=_fireworks_door(house),
            aws=aws,
            dashboard=_dashboard(house),
            native=_native_door(house),
        )
    finally:
        await mlflow.close()


def _data_plane(house: House) -> DataPlane:
    gateway, store, accounts = house.workshop.gateway, house.base.store, house.access.accounts
    region = house.base.settings.region
    events = DataEvents(
        house.records.audit,
        SYSTEM_CLOCK,
        region=region,
        account_number=accounts.number,
        job_arn=house.workshop.job_arn_of,
        error_name=lambda error: faults.status_and_name(error)[1],
    )
    return DataPlane(
        gateway,
        house.serving,
        ServedModels(store, house.data.catalogue),
        Callers(house.access.keyring, region),
        accounts.number,
        store.account,
        house.records.traces,
        events,
        RunDoor(
            gateway,
            house.evaluator_side.room.runs,
            RunTraces(house.records.traces, store.trajectory, SYSTEM_CLOCK),
        ),
        find_deployed(store),
    )


def _tracing_door(house: House) -> TracingDoor:
    return TracingDoor(house.records.traces, house.access.keyring.authenticate, SYSTEM_CLOCK)


def _mlflow_door(house: House) -> MlflowDoor:
    return MlflowDoor(
        house.records.mlflow,
        house.access.keyring,
        house.access.links,
        account=house.base.store.account,
        region=house.base.settings.region,
        settle=house.records.tracker.settle,
        is_secure=house.base.url.startswith("https:"),
    )


def _fireworks_door(house: House) -> FireworksDoor:
    base, access, data = house.base, house.access, house.data
    rooms = FireworksRooms(
        url=base.url,
        accounts=access.accounts,
        holder=access.keyring.holder,
        links=access.links,
        clock=SYSTEM_CLOCK,
        resources=base.store,
        blobs=base.blobs,
        jobs=house.jobs,
        browse=Browse(base.store),
        catalogue=data.catalogue,
        datasets=data.datasets,
        secrets=house.evaluator_side.secrets,
        evaluators=house.evaluator_side.evaluators,
    )
    return FireworksDoor(
        rooms,
        lambda app: ObservedFireworks(app, house.records.audit, _witness(house)),
    )


def _native_door(house: House) -> Observed:
    base, agent_side, audit = house.base, house.agent_side, house.records.audit
    native = native_app(
        house.jobs,
        Browse(base.store),
        Archives(verified_folder, verified_base, house.workshop.launcher.merge),
        StoredResults(base.store, base.blobs),
        house.access.accounts,
        house.data.registry,
        agents=AgentRooms(
            agents=agent_side.agents, logs=agent_side.logs, calls=agent_side.calls, url=base.url
        ),
        more=[
            audit_routes(audit, house.records.trails, base.store.account),
            export_routes(Exports(Browse(base.store))),
            finding_routes(Inspector(house.jobs, Browse(base.store))),
        ],
    )
    return Observed(native, audit, _witness(house))


def _witness(house: House) -> Witness:
    """Who describes requests for the audit trail."""
    return Witness(
        SYSTEM_CLOCK,
        region=house.base.settings.region,
        account_number=house.access.accounts.number,
        job_arn=house.workshop.job_arn,
    )


def _dashboard(house: House) -> Asgi:
    base, data = house.base, house.data
    pages = dashboard_app(
        DashboardRooms(
            url=base.url,
            clock=SYSTEM_CLOCK,
            accounts=house.access.accounts,
            keyring=house.access.keyring,
            links=house.access.links,
            jobs=house.jobs,
            browse=Browse(base.store),
            learned=Learned(base.store),
            results=StoredResults(base.store, base.blobs),
            registry=data.registry,
            catalogue=data.catalogue,
            resources=base.store,
            agents=house.agent_side.agents,
            archives=Archives(verified_folder, verified_base, house.workshop.launcher.merge),
            evaluators=house.evaluator_side.evaluators,
            datasets=data.datasets,
            other_doors=(
                OtherDoor(name="SageMaker", kind=SAGEMAKER_JOB, words=status_words),
                OtherDoor(name="Fireworks", kind=FIREWORKS_JOB, words=state_words),
            ),
            token_bytes=TokenBytes(),
            trajectory_body=trajectory_body,
            prices=_prices(base.settings),
        )
    )
    return ObservedPages(pages, house.records.audit, _witness(house))


def _prices(settings: Settings) -> Prices:
    return Prices(
        train=settings.price_train_per_million,
        prefill=settings.price_prefill_per_million,
        cached=settings.price_cached_per_million,
        sample=settings.price_sample_per_million,
    )


def _aws_door(house: House) -> AwsDoor:
    keyring = house.access.keyring
    return AwsDoor(
        open_services(_rooms_of_aws(house)),
        verify=lambda request, signature: keyring.verify(
            request, signature, max_expires_s=sigv4.MAX_EXPIRES_S
        ),
        account=house.base.store.account,
        region=house.base.settings.region,
        observe=Auditor(house.records.audit, SYSTEM_CLOCK).observe,
    )


def _rooms_of_aws(house: House) -> Rooms:
    store, data, agent_side, records = (
        house.base.store,
        house.data,
        house.agent_side,
        house.records,
    )
    browse = Browse(store)
    return Rooms(
        region=house.base.settings.region,
        account=store.account,
        clock=SYSTEM_CLOCK,
        new_id=new_id,
        resources=store,
        jobs=house.jobs,
        browse=browse,
        pipelines=house.pipelines,
        audit=records.audit,
        trails=records.trails,
        logs=Logs(
            jobs=house.jobs,
            browse=browse,
            agents=agent_side.agents,
            agent_logs=agent_side.logs,
            resources=store,
            clock=SYSTEM_CLOCK,
        ),
        buckets=data.buckets,
        registry=data.registry,
        catalogue=data.catalogue,
        hubs=Hubs(store, SYSTEM_CLOCK),
        model_files=data.model_files,
        recipe_files=data.recipe_files,
        agents=agent_side.agents,
        agent_logs=agent_side.logs,
        agent_calls=agent_side.calls,
        mlflow=MlflowApps(
            store,
            house.access.links,
            url=f"{house.base.url}{PREFIX}/auth",
            clock=SYSTEM_CLOCK,
            new_id=new_id,
            missing=records.mlflow.missing,
            start=records.mlflow.start,
        ),
    )
