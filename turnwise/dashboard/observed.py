"""What the pages tell the audit trail: a record of each change that somebody makes on them.

Looking is not recorded: reading by the API is, and a page that refreshes itself would bury it.
"""

from __future__ import annotations

import logging
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from turnwise import errors
from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.record import Witnessed
from turnwise.control.audit.witness import Witness
from turnwise.domain.access import Principal

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

    def __init__(self, app: ASGIApp, trail: AuditTrail, witness: Witness) -> None:
        self._app = app
        self._trail = trail
        self._witness = witness

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
            await self._trail.record(await self._seen(scope, principal, name, status))
        except errors.TurnwiseError as error:
            log.error("%s of a page is not in the audit trail yet: %s", name, error)
            return status >= 400
        return True

    async def _seen(self, scope: Scope, principal: Principal, name: str, status: int) -> Witnessed:
        given: dict[str, Any] = dict(scope["path_params"])
        is_of_job = "name" in given
        return await self._witness.of(
            scope,
            principal,
            source=SOURCE,
            name=name,
            read_only=False,
            parameters=given,
            error=(f"HTTP{status}", "refused on the page") if status >= 400 else ("", ""),
            resources=[await self._witness.job(principal, given["name"])] if is_of_job else (),
        )


def _is_done(status: int) -> bool:
    """A change leads to another page, and a refusal says so; all else only asks."""
    return status == 303 or status >= 400


async def _unrecorded(scope: Scope, receive: Receive, send: Send) -> None:
    text = "It was carried out, but its audit record could not be kept yet; see the server's log."
    await PlainTextResponse(text, status_code=503)(scope, receive, send)
