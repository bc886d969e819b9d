"""The native API's routes to the audit trail and its trails."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request

from turnwise.control.audit.audit_trail import PAGE, AuditTrail
from turnwise.control.audit.trails import Trail, Trails
from turnwise.domain.access import Account, Principal
from turnwise.domain.audit import AuditQuery, AuditRecord, Category
from turnwise.wire.native.codec import MAX_PLACE

Json = dict[str, Any]
Caller = Callable[[Request], Awaitable[Principal]]
FindAccount = Callable[[str], Awaitable[Account]]


def audit_routes(
    audit: AuditTrail, trails: Trails, account: FindAccount
) -> Callable[[Caller], APIRouter]:
    """The routes, once it is known how a caller is verified. `account` finds one by its id."""

    def routes(principal: Caller) -> APIRouter:
        router = APIRouter(prefix="/api/v1/audit")
        _add_records(router, audit, principal)
        _add_trails(router, trails, account, principal)
        return router

    return routes


def _add_records(router: APIRouter, audit: AuditTrail, principal: Caller) -> None:
    caller = Depends(principal)

    @router.get("/records")
    async def records(
        name: str = "",
        user: str = "",
        resource: str = "",
        resource_type: str = "",
        source: str = "",
        access_key_id: str = "",
        event_id: str = "",
        category: Category | None = None,
        read_only: bool | None = None,
        since: float | None = None,
        until: float | None = None,
        before: Annotated[int | None, Query(ge=1, le=MAX_PLACE)] = None,
        after: Annotated[int, Query(ge=0, le=MAX_PLACE)] = 0,
        oldest_first: bool = False,
        limit: Annotated[int, Query(ge=1, le=PAGE)] = 100,
        who: Principal = caller,
    ) -> Json:
        """A page of records; go on from `next` as `before`, or as `after` with oldest first."""
        query = AuditQuery(
            name=name,
            user_name=user,
            resource=resource,
            resource_type=resource_type,
            source=source,
            access_key_id=access_key_id,
            event_id=event_id,
            category=category,
            read_only=read_only,
            since=since,
            until=until,
            before=before,
            after=after,
            newest_first=not oldest_first,
            limit=limit,
        )
        found = await audit.search(who, query)
        next_seq = found[-1].seq if len(found) == limit else None
        return {"records": [_record_body(each) for each in found], "next": next_seq}

    @router.get("/verification")
    async def verification(who: Principal = caller) -> Json:
        """Read the whole trail and check each digest."""
        verdict = await audit.verify(who)
        return dataclasses.asdict(verdict) | {"is_intact": verdict.is_intact}


def _record_body(record: AuditRecord) -> Json:
    return {"seq": record.seq, "digest": record.digest, "record": json.loads(record.body)}


def _add_trails(router: APIRouter, trails: Trails, account: FindAccount, principal: Caller) -> None:
    caller = Depends(principal)

    @router.post("/trails", status_code=201)
    async def create(
        name: Annotated[str, Body()],
        bucket: Annotated[str, Body()] = "",
        prefix: Annotated[str, Body()] = "",
        folder: Annotated[str, Body()] = "",
        who: Principal = caller,
    ) -> Json:
        made = await trails.create(
            who,
            await account(who.account_id),
            name,
            bucket=bucket,
            prefix=prefix,
            folder=folder,
        )
        return trail_body(made)

    @router.get("/trails")
    async def list_trails(who: Principal = caller) -> Json:
        return {"trails": [trail_body(each) for each in trails.trails(who)]}

    @router.get("/trails/{name}")
    async def describe(name: str, who: Principal = caller) -> Json:
        return trail_body(trails.trail(who, name))

    @router.post("/trails/{name}/start")
    async def start(name: str, who: Principal = caller) -> Json:
        return trail_body(await trails.start_logging(who, name))

    @router.post("/trails/{name}/stop")
    async def stop(name: str, who: Principal = caller) -> Json:
        return trail_body(await trails.stop_logging(who, name))

    @router.put("/trails/{name}/selectors")
    async def put_selectors(
        name: str,
        classic: Annotated[list[Json], Body()] = [],  # noqa: B006  FastAPI copies it
        advanced: Annotated[list[Json], Body()] = [],  # noqa: B006
        who: Principal = caller,
    ) -> Json:
        return trail_body(await trails.put_selectors(who, name, classic=classic, advanced=advanced))

    @router.delete("/trails/{name}")
    async def delete(name: str, who: Principal = caller) -> Json:
        return trail_body(await trails.delete(who, name))


def trail_body(trail: Trail) -> Json:
    """A trail with where it stands."""
    return {
        "name": trail.name,
        "bucket": trail.bucket,
        "prefix": trail.prefix,
        "folder": trail.folder,
        "is_logging": trail.is_logging,
        "selectors": {"classic": list(trail.classic), "advanced": list(trail.advanced)},
        "files": trail.files,
        "delivered_at": trail.delivered_at,
        "error": trail.error,
        "started_at": trail.started_at,
        "stopped_at": trail.stopped_at,
    }
