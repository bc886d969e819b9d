"""SageMaker's jobs of the categories AgentRFT and AgentRFTEvaluation, over `control.jobs`.

What CreateJob is given is kept as a record of the job's name and given back by DescribeJob, with
what came of it. A job that came by another door has no record; its document is made from its spec.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnwise import errors
from turnwise.control.agents import Agents
from turnwise.control.browse import PAGE, Browse
from turnwise.control.job_file import parse_job
from turnwise.control.jobs import MAX_JOBS, Jobs
from turnwise.control.models.catalogue import BaseModel, Catalogue
from turnwise.control.objects.locations import parse_location
from turnwise.domain.access import Action, Principal
from turnwise.domain.event import EventKind
from turnwise.domain.job import AgentSpec, Job, JobKind
from turnwise.domain.ledger import TokenUsage
from turnwise.domain.resource import Resource
from turnwise.ports import Clock, JobQuery, JobSummary, ModelPackage, Resources
from turnwise.tracking.details import KIND as RUN
from turnwise.tracking.details import mlflow_details
from turnwise.wire.aws.arns import JobArn, ModelPackageArn, ModelPackageGroupArn
from turnwise.wire.aws.paging import in_time, page
from turnwise.wire.aws.sagemaker import job_document as documents
from turnwise.wire.aws.sagemaker.job_progress import (
    STATUS,
    Progress,
    failure_of,
    modified_at,
    secondary_of,
)
from turnwise.wire.aws.sagemaker.mlflow_apps import KIND as MLFLOW_APP
from turnwise.wire.aws.sagemaker.mlflow_apps import app_arn
from turnwise.wire.aws.sagemaker.tags import KIND as TAGS
from turnwise.wire.aws.sagemaker.tags import Tags, checked
from turnwise.wire.aws.service import AwsError, Call, Handler, Json

#: The kind of a job's record.
KIND = "sagemaker-job"
#: A polled DescribeJob counts a running job's tokens anew after so many seconds.
USAGE_AGE_S = 2.0
#: Jobs whose progress is remembered; others are read from their first event again.
_REMEMBERED = 1000

_READ = (EventKind.STATUS, EventKind.LOG, EventKind.STEP)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRooms:
    """What the handlers call.

    `job_arn` gives a job's ARN; `dataset_uri` finds the rows of a hub's data set by its ARN;
    `check_group` raises `NotFound` for a model package group that there is not.
    """

    jobs: Jobs
    browse: Browse
    resources: Resources
    catalogue: Catalogue
    agents: Agents
    tags: Tags
    clock: Clock
    job_arn: Callable[[Job], Awaitable[str]]
    dataset_uri: Callable[[Principal, str], Awaitable[str]]
    check_group: Callable[[Principal, str], Awaitable[object]]


def job_handlers(rooms: JobRooms) -> dict[str, Handler]:
    """CreateJob, DescribeJob, ListJobs, StopJob, DeleteJob, and the schemas of their documents."""
    served = _JobHandlers(rooms)
    rooms.jobs.plug(served.records_of)
    return {
        "CreateJob": served.create,
        "DescribeJob": served.describe,
        "ListJobs": served.list_jobs,
        "StopJob": served.stop,
        "DeleteJob": served.delete,
        "ListJobSchemaVersions": list_schemas,
        "DescribeJobSchemaVersion": describe_schema,
    }


class _JobHandlers:
    def __init__(self, rooms: JobRooms) -> None:
        self._rooms = rooms
        self._watch = _Watch(rooms.browse, rooms.clock)

    # ── create ────────────────────────────────────────────────────────────────────────────────

    async def create(self, call: Call, given: Json) -> Json:
        """Training or evaluation. Refused past a quota and with a KMS key; a VPC is ignored."""
        call.principal.require(Action.MANAGE)
        kind = _kind(given)
        if given["JobConfigSchemaVersion"] != documents.VERSION:
            raise errors.InvalidInput(
                "JobConfigSchemaVersion",
                given["JobConfigSchemaVersion"],
                "is not known",
                remedy=f"use {documents.VERSION}",
            )
        asked = documents.read(kind, given["JobConfigDocument"])
        tags = checked(given.get("Tags", ()))
        found = await self._find(call, asked)
        spec = parse_job(documents.job_file(given["JobName"], asked, found))
        try:
            job = await self._rooms.jobs.create(
                call.principal,
                spec,
                within_quota=True,
                records=lambda job: self._records(call, job, given, tags),
            )
        except (errors.Conflict, errors.Corrupted) as error:
            raise await self._refusal(call, spec.name, error) from error
        return {"JobArn": _arn(call, job)}

    async def _find(self, call: Call, asked: documents.Asked) -> documents.Found:
        """What a document names, in this account."""
        base = await asyncio.to_thread(self._rooms.catalogue.model, asked.base_name)
        if asked.base_version not in ("", base.version):
            raise errors.NotFound(
                "base model",
                f"{base.name}/{asked.base_version}",
                remedy=f"its version is {base.version}",
            )
        return documents.Found(
            base=base,
            agent=await self._rooms.agents.by_arn(call.principal, asked.agent_arn),
            sources={name: await self._uri(call, at) for name, at in asked.sources.items()},
            groups={kind: await self._group(call, arn) for kind, arn in asked.groups.items()},
            package=await self._package(call, asked.input_package),
        )

    async def _uri(self, call: Call, source: str) -> str:
        if source.startswith("arn:"):
            source = await self._rooms.dataset_uri(call.principal, source)
        if source.startswith("file://"):
            return str(parse_location(source, "S3Uri").path)
        return source

    async def _group(self, call: Call, arn: str) -> str:
        if not arn:
            return ""
        group = ModelPackageGroupArn.parse(arn, "ModelPackageConfig")
        call.check_own("model package group", arn)
        await self._rooms.check_group(call.principal, group.name)
        return group.name

    async def _package(self, call: Call, arn: str) -> ModelPackage | None:
        if not arn:
            return None
        parts = ModelPackageArn.parse(arn)
        call.check_own("model package", arn)
        return await self._rooms.browse.package(call.principal, f"{parts.group}/{parts.version}")

    async def _refusal(self, call: Call, name: str, error: Exception) -> Exception:
        """In use is the name of a job; of a model that cannot be started from, AWS says so."""
        try:
            await self._rooms.jobs.describe(call.principal, name)
        except errors.NotFound:
            return AwsError("ValidationException", str(error))
        return AwsError("ResourceInUse", str(error))

    def _records(
        self, call: Call, job: Job, given: Json, tags: Mapping[str, str]
    ) -> list[Resource]:
        """What to remember of what was given."""
        record = Resource(
            account_id=job.account_id,
            kind=KIND,
            name=job.name,
            body={
                "job_id": job.job_id,
                "document": given["JobConfigDocument"],
                "role_arn": given["RoleArn"],
                "schema_version": given["JobConfigSchemaVersion"],
            },
            created_at=job.created_at,
        )
        return [record, *([self._rooms.tags.record(call, _arn(call, job), tags)] if tags else [])]

    async def records_of(self, job: Job) -> list[tuple[str, str]]:
        """What is remembered of a job: its document, its tags, its run in MLflow."""
        return [(KIND, job.name), (TAGS, await self._rooms.job_arn(job)), (RUN, job.job_id)]

    # ── describe ──────────────────────────────────────────────────────────────────────────────

    async def describe(self, call: Call, given: Json) -> Json:
        """The document as it was given, and a ServiceOutput; of jobs of other doors too."""
        job = await self._job(call, given)
        progress = await self._watch.progress(call.principal, job)
        kept = await self._kept(job)
        document = await self._document(call, job, kept)
        outcome = await self._outcome(call, job, progress)
        output = documents.service_output(
            job, outcome, region=call.region, number=call.account.number
        )
        return {
            "JobName": job.name,
            "JobArn": _arn(call, job),
            "RoleArn": kept.get("role_arn") or _role(call),
            "JobCategory": documents.CATEGORY[job.spec.kind],
            "JobConfigSchemaVersion": kept.get("schema_version", documents.VERSION),
            "JobConfigDocument": json.dumps(document | {"ServiceOutput": output}),
            "CreationTime": job.created_at,
            "LastModifiedTime": modified_at(job),
            "EndTime": job.ended_at,
            "JobStatus": STATUS[job.status],
            "SecondaryStatus": secondary_of(job),
            "SecondaryStatusTransitions": progress.transitions(job),
            "FailureReason": failure_of(job),
            "Tags": await self._rooms.tags.of(call, _arn(call, job)),
        }

    async def _kept(self, job: Job) -> Mapping[str, str]:
        """What CreateJob was given; nothing for a job that came by another door."""
        try:
            record = await self._rooms.resources.resource(job.account_id, KIND, job.name)
        except errors.NotFound:
            return {}
        return record.body if record.body["job_id"] == job.job_id else {}

    async def _document(self, call: Call, job: Job, kept: Mapping[str, str]) -> Json:
        if kept:
            return documents.mirrored(json.loads(kept["document"]))
        base = await asyncio.to_thread(_base_of, self._rooms.catalogue, job.spec.model)
        return documents.document_of(
            job.spec,
            base,
            agent_arn=await self._agent_arn(call, job.spec.agent),
            mlflow_arn=await self._mlflow_arn(call),
            region=call.region,
            number=call.account.number,
        )

    async def _agent_arn(self, call: Call, agent: AgentSpec) -> str:
        """A registered agent's ARN; of one that is not, one that says what it is."""
        if agent.name:
            with contextlib.suppress(errors.NotFound):
                return (await self._rooms.agents.get(call.principal, agent.name)).arn
        return call.arn("lambda", f"function:{agent.name or f'{agent.kind}-agent'}")

    async def _mlflow_arn(self, call: Call) -> str:
        """The account's MLflow app, the first that was made."""
        apps = await self._rooms.resources.resources(call.account.account_id, MLFLOW_APP)
        return app_arn(call, apps[0]) if apps else ""

    async def _outcome(self, call: Call, job: Job, progress: Progress) -> documents.Outcome:
        newest = {
            package.kind: package
            for package in await self._rooms.browse.newest_packages(call.principal, job)
        }
        return documents.Outcome(
            steps=progress.steps,
            rollouts=progress.counted(job),
            usage=await self._watch.usage(call.principal, job),
            mlflow=await mlflow_details(self._rooms.resources, job.account_id, job.job_id),
            adapter=newest.get("adapter"),
            checkpoint=newest.get("checkpoint"),
        )

    # ── list, stop, delete ────────────────────────────────────────────────────────────────────

    async def list_jobs(self, call: Call, given: Json) -> Json:
        """Jobs of one category, of whatever door they came by."""
        query = JobQuery(
            account_id=call.account.account_id,
            kind=documents.KIND.get(given["JobCategory"]),
            name=given.get("NameContains", ""),
            limit=MAX_JOBS,
        )
        found = {
            job.name: job
            for job in await self._rooms.browse.job_page(call.principal, query)
            if _matches(job, given)
        }
        is_descending = given.get("SortOrder", "Descending") == "Descending"
        key = _SORT_KEYS[given.get("SortBy", "CreationTime")]
        names = sorted(found, key=lambda name: key(found[name]), reverse=is_descending)
        shown, token = page(names, given, default=50)
        summaries = [_summary(call, found[name]) for name in shown]
        return {"JobSummaries": summaries, "NextToken": token}

    async def stop(self, call: Call, given: Json) -> Json:
        """Stop after the step under way; what is trained so far is the output."""
        job = await self._job(call, given)
        if STATUS[job.status] in ("Stopping", "Stopped"):
            call.principal.require(Action.MANAGE, job_id=job.job_id)
            return {}
        try:
            await self._rooms.jobs.stop(call.principal, job.job_id)
        except errors.Conflict:
            status = STATUS[(await self._job(call, given)).status]
            raise AwsError(
                "ValidationException", f"job {job.name} is {status} and cannot be stopped"
            ) from None
        return {}

    async def delete(self, call: Call, given: Json) -> Json:
        """An ended job, with its events and rollouts; its model packages stay."""
        job = await self._job(call, given)
        await self._rooms.jobs.delete(call.principal, job.job_id)
        return {}

    async def _job(self, call: Call, given: Json) -> Job:
        """A job by name and category."""
        kind = documents.KIND.get(given["JobCategory"])
        job = await self._rooms.jobs.describe(call.principal, given["JobName"])
        if job.name != given["JobName"] or job.spec.kind is not kind:
            raise errors.NotFound(f"job of category {given['JobCategory']}", given["JobName"])
        return job


class _Watch:
    """What the events of polled jobs said so far, so that each is read once."""

    def __init__(self, browse: Browse, clock: Clock) -> None:
        self._browse = browse
        self._clock = clock
        self._progress: OrderedDict[str, Progress] = OrderedDict()
        self._usage: OrderedDict[str, tuple[float, float | None, TokenUsage]] = OrderedDict()

    async def progress(self, principal: Principal, job: Job) -> Progress:
        """How far a job is."""
        known = self._progress.get(job.job_id, Progress(kind=job.spec.kind))
        kinds = [*_READ]
        if job.spec.kind is JobKind.EVALUATION or not job.status.is_final:
            kinds.append(EventKind.ROLLOUT)
        while True:
            events = await self._browse.events(
                principal, job.job_id, after=known.seq, kinds=kinds, limit=PAGE
            )
            known = known.after(events)
            if len(events) < PAGE:
                break
        _remember(self._progress, job.job_id, known)
        return known

    async def usage(self, principal: Principal, job: Job) -> TokenUsage:
        """What a job cost, at most `USAGE_AGE_S` old while it runs."""
        at, ended_at, usage = self._usage.get(job.job_id, (-USAGE_AGE_S, None, TokenUsage()))
        now = self._clock.now()
        is_old = job.ended_at is None and now - at >= USAGE_AGE_S
        if is_old or job.ended_at != ended_at:  # it may have been resumed since, and have ended
            usage = await self._browse.usage(principal, job.job_id)
            _remember(self._usage, job.job_id, (now, job.ended_at, usage))
        return usage


def _remember(known: OrderedDict[str, Any], job_id: str, value: Any) -> None:
    known[job_id] = value
    known.move_to_end(job_id)
    while len(known) > _REMEMBERED:
        known.popitem(last=False)


def _kind(given: Json) -> JobKind:
    kind = documents.KIND.get(given["JobCategory"])
    if kind is None:
        raise errors.InvalidInput(
            "JobCategory",
            given["JobCategory"],
            "is not one that this server runs",
            remedy="use " + " or ".join(documents.KIND),
        )
    return kind


def _arn(call: Call, job: Job | JobSummary) -> str:
    category = documents.CATEGORY[job.kind]
    return str(
        JobArn(region=call.region, number=call.account.number, name=job.name, category=category)
    )


def _role(call: Call) -> str:
    """The role of a job that was given none."""
    return f"arn:aws:iam::{call.account.number}:role/turnwise"


def _base_of(catalogue: Catalogue, model: str) -> BaseModel:
    """The catalogue's model of a folder; of another folder, one of its name. Blocks."""
    found = catalogue.of_folder(model)
    if found is not None:
        return found
    name = re.sub("[^a-zA-Z0-9]+", "-", Path(model).name).strip("-")[:43].strip("-")
    return BaseModel(name=name or "model", folder=Path(model))


def _matches(job: JobSummary, given: Json) -> bool:
    """Whether ListJobs's filters let a job through."""
    wanted = given.get("StatusEquals", STATUS[job.status])
    shown = {"CreationTime": job.created_at, "LastModifiedTime": modified_at(job)}
    times = [(name, round(at, 3)) for name, at in shown.items()]  # as a client was told them
    return (
        documents.CATEGORY[job.kind] == given["JobCategory"]
        and STATUS[job.status] == wanted
        and given.get("NameContains", "").lower() in job.name.lower()
        and all(in_time(given, at, name) for name, at in times)
    )


_SORT_KEYS: Mapping[str, Callable[[JobSummary], tuple[float | str, str]]] = {
    "Name": lambda job: (job.name, job.name),
    "CreationTime": lambda job: (job.created_at, job.name),
    "Status": lambda job: (STATUS[job.status], job.name),
}


def _summary(call: Call, job: JobSummary) -> Json:
    return {
        "JobArn": _arn(call, job),
        "JobName": job.name,
        "JobCategory": documents.CATEGORY[job.kind],
        "JobStatus": STATUS[job.status],
        "JobSecondaryStatus": secondary_of(job),
        "CreationTime": job.created_at,
        "LastModifiedTime": modified_at(job),
        "EndTime": job.ended_at,
    }


# ── schemas ───────────────────────────────────────────────────────────────────────────────────


async def list_schemas(call: Call, given: Json) -> Json:
    """The versions of a category's document: one."""
    call.principal.require(Action.READ)
    _known_schema(given)
    shown, token = page([documents.VERSION], given, default=5)
    found = [{"JobConfigSchemaVersion": version} for version in shown]
    return {"JobConfigSchemas": found, "NextToken": token}


async def describe_schema(call: Call, given: Json) -> Json:
    """A document's JSON Schema."""
    call.principal.require(Action.READ)
    kind = _known_schema(given)
    version = given.get("JobConfigSchemaVersion", documents.VERSION)
    if version != documents.VERSION:
        raise errors.NotFound("job schema version", version, remedy=f"there is {documents.VERSION}")
    return {
        "JobCategory": given["JobCategory"],
        "JobConfigSchemaVersion": version,
        "JobConfigSchema": json.dumps(documents.schema(kind)),
    }


def _known_schema(given: Json) -> JobKind:
    kind = documents.KIND.get(given["JobCategory"])
    if kind is None:
        raise errors.NotFound("job schema of category", given["JobCategory"])
    return kind
