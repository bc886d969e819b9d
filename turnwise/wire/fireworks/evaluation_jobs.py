"""Routes of evaluation jobs: what a client measured on its own machine, by the rows it uploaded.

Each run of an evaluation test posts one whose evaluator is a dummy. It has ended before it came.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from turnwise import errors
from turnwise.domain.access import Action
from turnwise.domain.resource import Resource
from turnwise.system import random_letters
from turnwise.wire.fireworks.calls import Call, Caller, FireworksRooms, asked_of, json_body
from turnwise.wire.fireworks.faults import Code, Refused
from turnwise.wire.fireworks.fields import Fields
from turnwise.wire.fireworks.listing import masked, page
from turnwise.wire.fireworks.names import DATASETS, EVALUATORS, check_id, full_name, own_id, rfc3339

Json = dict[str, Any]

EVALUATION_JOBS = "evaluationJobs"
KIND = "fireworks-evaluation-job"  # of the records
#: The evaluator of a run that was made elsewhere.
DUMMY = "dummy"

_NAMES = {"evaluator": EVALUATORS, "inputDataset": DATASETS, "outputDataset": DATASETS}


def evaluation_job_routes(rooms: FireworksRooms, caller: Caller) -> APIRouter:
    """Routes below /v1/accounts/{account}/evaluationJobs."""
    routes = APIRouter(prefix=f"/v1/accounts/{{account}}/{EVALUATION_JOBS}")
    resources, who = rooms.resources, Depends(caller)

    @routes.post("")
    async def create(request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.MANAGE, "evaluation jobs")
        given = Fields(await json_body(request))
        id = check_id("evaluation_job_id", given.text("evaluationJobId") or random_letters(8))
        job = given.block("evaluationJob")
        said = {name: job.text(name) for name in (*_NAMES, "displayName") if job.has(name)}
        _check(said, call.account)
        record = Resource(
            account_id=call.principal.account_id,
            kind=KIND,
            name=id,
            body={"said": said, "created_by": call.principal.name},
            created_at=rooms.clock.now(),
        )
        try:
            return _body(await resources.create_resource(record), call.account)
        except errors.Conflict:
            raise Refused(Code.ALREADY_EXISTS, f"Evaluation job '{id}' already exists") from None

    @routes.get("")
    async def list_jobs(request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.READ, "evaluation jobs")
        found = await resources.resources(call.principal.account_id, KIND)
        bodies = [_body(each, call.account) for each in found]
        return page(EVALUATION_JOBS, bodies, asked_of(request))

    @routes.get("/{id}")
    async def get(id: str, request: Request, call: Call = who) -> Json:
        call.principal.require_all(Action.READ, "evaluation jobs")
        found = await resources.resource(call.principal.account_id, KIND, id)
        return masked(_body(found, call.account), asked_of(request).read_mask)

    return routes


def _check(said: Json, account: str) -> None:
    ids = {
        name: own_id(name, said[name], account, collection)
        for name, collection in _NAMES.items()
        if name in said
    }
    if ids.get("evaluator") != DUMMY:
        raise Refused(
            Code.UNIMPLEMENTED,
            "evaluation jobs are kept here for runs that were made elsewhere, whose evaluator is "
            f"'{DUMMY}'; an uploaded evaluator is run by a reinforcement fine-tuning job",
        )


def _body(record: Resource, account: str) -> Json:
    at = rfc3339(record.created_at)
    return dict(record.body["said"]) | {
        "name": full_name(account, EVALUATION_JOBS, record.name),
        "state": "JOB_STATE_COMPLETED",
        "status": {"code": "OK", "message": "run by the client"},
        "createTime": at,
        "completedTime": at,
        "createdBy": record.body["created_by"],
    }
