"""Routes of reinforcement fine-tuning jobs, over `control.jobs`.

Shown are the account's training jobs with an evaluator, of whatever door they came by. What a job
was created with is kept as a record of its name, and given back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request

from turnwise import errors
from turnwise.control.browse import PAGE
from turnwise.control.job_file import parse_job
from turnwise.control.jobs import MAX_JOBS
from turnwise.domain.access import Action, Principal
from turnwise.domain.event import Event, EventKind
from turnwise.domain.job import AgentKind, Job, JobKind, JobSpec, JobStatus
from turnwise.domain.resource import Resource
from turnwise.system import random_letters
from turnwise.wire.fireworks import job_body as bodies
from turnwise.wire.fireworks.calls import Call, Caller, FireworksRooms, asked_of, json_body
from turnwise.wire.fireworks.datasets import ready_dataset
from turnwise.wire.fireworks.evaluators import active_evaluator
from turnwise.wire.fireworks.faults import Code, Refused
from turnwise.wire.fireworks.job_request import (
    JobRequest,
    Resolved,
    job_file,
    kept_words,
    read_request,
)
from turnwise.wire.fireworks.listing import masked, page
from turnwise.wire.fireworks.names import DATASETS, EVALUATORS, JOBS, MODELS, check_id, own_id
from turnwise.wire.fireworks.starting import start_of

Json = dict[str, Any]

#: The kind of a job's record.
KIND = "fireworks-job"
#: The secret that holds the key to Weights & Biases, and the variable that it stands for.
WANDB_SECRET, WANDB_VARIABLE = "wandb-api-key", "WANDB_API_KEY"


def job_routes(rooms: FireworksRooms, caller: Caller) -> APIRouter:
    """Routes below /v1/accounts/{account}/reinforcementFineTuningJobs."""
    routes = APIRouter(prefix=f"/v1/accounts/{{account}}/{JOBS}")
    served, who = _Jobs(rooms), Depends(caller)
    rooms.jobs.plug(records_of)
    _add_moves(routes, served, who)

    @routes.post("")
    async def create(request: Request, call: Call = who) -> Json:
        call.principal.require(Action.MANAGE)
        id = request.query_params.get("reinforcementFineTuningJobId", "")
        return await served.create(call, id, await json_body(request))

    @routes.get("")
    async def list_jobs(request: Request, call: Call = who) -> Json:
        return page(JOBS, await served.list_all(call), asked_of(request))

    @routes.get("/{id}/metrics")
    async def metrics(id: str, call: Call = who) -> Json:
        return await served.metrics(call, id)

    @routes.get("/{id}")
    async def get(id: str, request: Request, call: Call = who) -> Json:
        return masked(await served.get(call, id), asked_of(request).read_mask)

    @routes.delete("/{id}")
    async def delete(id: str, call: Call = who) -> Json:
        await served.delete(call, id)
        return {}

    return routes


def _add_moves(routes: APIRouter, served: _Jobs, who: Any) -> None:
    @routes.post("/{id}:cancel")
    async def cancel(id: str, call: Call = who) -> Json:
        await served.cancel(call, id)
        return {}

    @routes.post("/{id}:resume")
    async def resume(id: str, call: Call = who) -> Json:
        return await served.resume(call, id)


async def records_of(job: Job) -> Sequence[tuple[str, str]]:
    """The record that this door keeps of a job."""
    return [(KIND, job.name)]


class _Jobs:
    def __init__(self, rooms: FireworksRooms) -> None:
        self._rooms = rooms

    # ── create ────────────────────────────────────────────────────────────────────────────────

    async def create(self, call: Call, id: str, given: Json) -> Json:
        """A job by that id, or by a random one; its rows are read when it starts."""
        asked = read_request(given)
        id = check_id("reinforcement_fine_tuning_job_id", id or random_letters(8))
        await self._sweep(call, id)
        found = await self._resolved(call, id, asked)
        spec = parse_job(job_file(id, asked, found))
        if asked.wandb.enabled and asked.wandb.api_key:
            await self._rooms.secrets.put(
                call.principal, WANDB_SECRET, WANDB_VARIABLE, asked.wandb.api_key
            )
        kept = {
            "given": kept_words(given),
            "created_by": call.principal.name,
            "warning": asked.warning,
            "rows": found.rows,
        }
        return bodies.job_body(await self._made(call, spec, kept), call.account, kept)

    async def _made(self, call: Call, spec: JobSpec, kept: Json) -> Job:
        def records(job: Job) -> list[Resource]:
            body = kept | {"job_id": job.job_id, "is_deleted": False}
            return [_record(job, body)]

        try:
            return await self._rooms.jobs.create(
                call.principal, spec, reads_rows=False, records=records, warning=kept["warning"]
            )
        except errors.Conflict:
            if await self._exists(call, spec.name):
                message = f"Reinforcement fine-tuning job '{spec.name}' already exists"
                raise Refused(Code.ALREADY_EXISTS, message) from None
            raise

    async def _resolved(self, call: Call, id: str, asked: JobRequest) -> Resolved:
        """What the names of a request stand for in this account."""
        rooms, account = self._rooms, call.account
        dataset_id = own_id("dataset", asked.dataset, account, DATASETS)
        dataset = await ready_dataset(rooms.datasets, call, dataset_id)
        uri, rows, validation = dataset.uri, dataset.rows, ""
        if asked.evaluation_dataset:
            held_out = own_id("evaluation_dataset", asked.evaluation_dataset, account, DATASETS)
            validation = (await ready_dataset(rooms.datasets, call, held_out)).uri
        elif asked.carves_out:
            uri, rows, validation = await rooms.datasets.carved(call.principal, dataset_id)
        evaluator = await active_evaluator(
            rooms, call, own_id("evaluator", asked.evaluator, account, EVALUATORS)
        )
        start = await start_of(rooms, call, asked)
        output = asked.output_model
        return Resolved(
            model=start.model,
            dataset=uri,
            rows=rows,
            evaluator=evaluator.evaluator_id,
            validation_dataset=validation,
            input_adapter=start.adapter,
            lora=start.lora,
            output_group=output and own_id("output_model", output, account, MODELS),
            max_length=start.max_length,
            wandb_secret=await self._wandb_secret(call, asked),
        )

    async def _wandb_secret(self, call: Call, asked: JobRequest) -> str:
        if not asked.wandb.enabled:
            return ""
        if not asked.wandb.api_key:
            try:
                await self._rooms.secrets.get(call.principal, WANDB_SECRET)
            except errors.NotFound:
                raise Refused(
                    Code.INVALID_ARGUMENT,
                    "wandb_config.enabled is true, but there is no key: send wandb_config.api_key "
                    f"(--wandb-api-key), or keep it as the secret {WANDB_SECRET} "
                    f"({WANDB_VARIABLE} in .env)",
                ) from None
        return WANDB_SECRET

    async def _exists(self, call: Call, name: str) -> bool:
        try:
            await self._rooms.jobs.describe(call.principal, name)
        except errors.NotFound:
            return False
        return True

    # ── read ──────────────────────────────────────────────────────────────────────────────────

    async def get(self, call: Call, id: str) -> Json:
        """A job with its progress and its metrics as text."""
        job, kept = await self._job(call, id)
        steps = await self._steps(call.principal, job)
        usage = await self._rooms.browse.usage(call.principal, job.job_id)
        body = bodies.job_body(job, call.account, kept)
        body["jobProgress"] |= bodies.counted(job, steps, usage, kept.get("rows", 0))
        body["outputMetrics"] = bodies.as_text(bodies.metrics_body(job, call.account, steps))
        return body

    async def metrics(self, call: Call, id: str) -> Json:
        """A job's metrics by step."""
        job, _ = await self._job(call, id)
        steps = await self._steps(call.principal, job)
        return bodies.metrics_body(job, call.account, steps)

    async def list_all(self, call: Call) -> list[Json]:
        """Every job that is to be seen."""
        found = await self._rooms.jobs.list(call.principal, limit=MAX_JOBS)
        records = await self._rooms.resources.resources(call.principal.account_id, KIND)
        kept = {record.body["job_id"]: record.body for record in records}
        shown = []
        for job in filter(_is_ours, found):
            its = kept.get(job.job_id, {})
            if not its.get("is_deleted"):
                shown.append(bodies.job_body(job, call.account, its))
            elif job.status.is_final:
                await self._remove(job)
        return shown

    async def _job(self, call: Call, id: str) -> tuple[Job, Mapping[str, Any]]:
        """A job by its id, and its record. Raises `NotFound` for one that is deleted."""
        job = await self._rooms.jobs.describe(call.principal, id)
        kept = await self._kept(job)
        if job.name != id or not _is_ours(job) or kept.get("is_deleted"):
            raise errors.NotFound("reinforcement fine-tuning job", id)
        return job, kept

    async def _kept(self, job: Job) -> Mapping[str, Any]:
        try:
            record = await self._rooms.resources.resource(job.account_id, KIND, job.name)
        except errors.NotFound:
            return {}
        return record.body if record.body["job_id"] == job.job_id else {}

    async def _steps(self, principal: Principal, job: Job) -> list[Json]:
        events: list[Event] = []
        while True:
            after = events[-1].seq if events else 0
            found = await self._rooms.browse.events(
                principal, job.job_id, after=after, kinds=[EventKind.METRICS]
            )
            events += found
            if len(found) < PAGE:
                return bodies.steps_of(job, events)

    # ── move ──────────────────────────────────────────────────────────────────────────────────

    async def cancel(self, call: Call, id: str) -> None:
        """End a job; one that is cancelled already stays so."""
        job, _ = await self._job(call, id)
        if job.status in (JobStatus.STOPPING, JobStatus.STOPPED):
            call.principal.require(Action.MANAGE, job_id=job.job_id)
            return
        try:
            await self._rooms.jobs.stop(call.principal, job.job_id)
        except errors.Conflict:
            raise await self._cannot(call, id, "cancelled") from None

    async def resume(self, call: Call, id: str) -> Json:
        """Continue a failed job from its last checkpoint; a cancelled one stays as it is."""
        job, kept = await self._job(call, id)
        if job.status is not JobStatus.FAILED:
            call.principal.require(Action.MANAGE, job_id=job.job_id)
            raise await self._cannot(call, id, "resumed")
        resumed = await self._rooms.jobs.resume(call.principal, job.job_id)
        return bodies.job_body(resumed, call.account, kept)

    async def _cannot(self, call: Call, id: str, verb: str) -> Refused:
        job, _ = await self._job(call, id)
        message = f"job '{id}' is {bodies.state_of(job)} and cannot be {verb}"
        return Refused(Code.FAILED_PRECONDITION, message)

    # ── delete ────────────────────────────────────────────────────────────────────────────────

    async def delete(self, call: Call, id: str) -> None:
        """Remove a job; one that runs is cancelled, and gone from here at once."""
        job, kept = await self._job(call, id)
        if not job.status.is_final:
            job = await self._rooms.jobs.stop(call.principal, job.job_id)
        if job.status.is_final:
            await self._rooms.jobs.delete(call.principal, job.job_id)
            return
        await self._hide(job, kept)

    async def _hide(self, job: Job, kept: Mapping[str, Any]) -> None:
        """Mark a job that is ending; the next who lists jobs, or wants its id, removes it."""
        record = _record(job, {"job_id": job.job_id, **kept, "is_deleted": True})
        try:
            await self._rooms.resources.change_resource(record)
        except errors.NotFound:  # it came by another door
            await self._rooms.resources.create_resource(record)

    async def _sweep(self, call: Call, id: str) -> None:
        """Make room for a job whose id is that of one that was deleted."""
        try:
            job = await self._rooms.jobs.describe(call.principal, id)
        except errors.NotFound:
            return
        if job.status.is_final and (await self._kept(job)).get("is_deleted"):
            await self._remove(job)

    async def _remove(self, job: Job) -> None:
        """Remove a job whose end was all that its deletion waited for."""
        await self._rooms.jobs.delete(Principal(account_id=job.account_id), job.job_id)


def _is_ours(job: Job) -> bool:
    return job.spec.kind is JobKind.TRAIN and job.spec.agent.kind is AgentKind.EVALUATOR


def _record(job: Job, body: Json) -> Resource:
    return Resource(
        account_id=job.account_id,
        kind=KIND,
        name=job.name,
        body=body,
        created_at=job.created_at,
    )
