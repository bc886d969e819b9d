"""What the pages tell the audit trail: a record of each change that somebody makes on them.

Looking is not recorded: reading by the API is, and a page that refreshes itself would bury it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from turnwise import errors
from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.record import Identity, Resource, Witnessed
from turnwise.domain.access import Principal
from turnwise.domain.audit import Category
from turnwise.ports import Clock

log = logging.getLogger(__name__)

#: eventSource of what was done on a page.
SOURCE = "turnwise-dashboard"

#: Routes that change something, by the names that AWS has for the same thing.
NAMES = {
    "/dashboard/jobs/new": "CreateJob",
    "/dashboard/jobs/{name}/stop": "StopJob",
    "/dashboard/jobs/{name}/resume": "ResumeJob",
    "/dashboard/jobs/{name}/delete": "DeleteJob",
    "/dashboard/jobs/{name}/notes": "UpdateJobNotes",
    "/dashboard/models/{group}/{version}/delete": "DeleteModelPackage",
    "/dashboard/sign-in": "SignIn",
    "/dashboard/sign-out": "SignOut",
}


class Observed:
    """The pages with the audit trail told of each change, before its answer leaves."""

    def __init__(
        self,
        app: ASGIApp,
        trail: AuditTrail,
        clock: Clock,
        *,
        region: str,
        account_number: Callable[[str], Awaitable[str]],
        job_arn: Callable[[str, str], Awaitable[str]],
    ) -> None:
        """`job_arn` gives the ARN of an account's job by its id or name."""
        self._app = app
        self._trail = trail
        self._clock = clock
        self._region = region
        self._account_number = account_number
        self._job_arn = job_arn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        is_replaced = False

        async def answering(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start" and _is_done(message["status"]):
                is_replaced = not await self._recorded(scope, message["status"])
                if is_replaced:
                    await _unrecorded(scope, receive, send)
            if not is_replaced:
                await send(message)

        await self._app(scope, receive, answering)

    async def _recorded(self, scope: Scope, status: int) -> bool:
        """Record; False where a change was made that is not on record."""
        principal: Principal | None = scope["state"].get("principal")
        name = NAMES.get(getattr(scope.get("route"), "path", ""), "")
        if principal is None or not name:
            return True
        try:
            await self._trail.record(await self._witness(scope, principal, name, status))
        except errors.TurnwiseError as error:
            log.error("%s of a page is not in the audit trail yet: %s", name, error)
            return status >= 400
        return True

    async def _witness(
        self, scope: Scope, principal: Principal, name: str, status: int
    ) -> Witnessed:
        given: dict[str, Any] = dict(scope["path_params"])
        client = scope.get("client")
        agent = dict(scope["headers"]).get(b"user-agent", b"").decode("latin-1")
        number = await self._account_number(principal.account_id)
        return Witnessed(
            account_id=principal.account_id,
            identity=Identity.of(principal, number),
            at=self._clock.now(),
            region=self._region,
            source=SOURCE,
            name=name,
            read_only=False,
            request_id=str(uuid.uuid4()),
            category=Category.MANAGEMENT,
            source_ip=str(client[0]) if client else "",
            user_agent=agent,
            parameters=given or None,
            error_code=f"HTTP{status}" if status >= 400 else "",
            error_message="refused on the page" if status >= 400 else "",
            resources=await self._resources(principal, given),
        )

    async def _resources(self, principal: Principal, given: dict[str, Any]) -> list[Resource]:
        if "name" not in given:
            return []
        arn = await self._job_arn(principal.account_id, str(given["name"]))
        return [Resource(kind="AWS::SageMaker::Job", arn=arn)]


def _is_done(status: int) -> bool:
    """A change leads to another page, and a refusal says so; all else only asks."""
    return status == 303 or status >= 400


async def _unrecorded(scope: Scope, receive: Receive, send: Send) -> None:
    text = "It was carried out, but its audit record could not be kept yet; see the server's log."
    await PlainTextResponse(text, status_code=503)(scope, receive, send)
