"""The pages as one ASGI app under /dashboard.

The URL is the state: every page is whole without script; htmx replaces parts, a stream of
server-sent events keeps them fresh, and charts are drawn from the tables beside them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse
from starlette.types import Message, Receive, Scope, Send

from turnwise import errors
from turnwise.dashboard.compare import compare_routes
from turnwise.dashboard.faults import status_of
from turnwise.dashboard.job.export import export_routes
from turnwise.dashboard.job.job_pages import job_page_routes
from turnwise.dashboard.job.logs import log_routes
from turnwise.dashboard.jobs.job_actions import ACTIONS, job_action_routes
from turnwise.dashboard.jobs.job_list import job_list_routes
from turnwise.dashboard.jobs.new_job import new_job_routes
from turnwise.dashboard.live import Hub, Streams
from turnwise.dashboard.models import model_routes
from turnwise.dashboard.pages import STATIC, Pages
from turnwise.dashboard.rollouts.group_page import group_routes
from turnwise.dashboard.rollouts.rollout_list import rollout_list_routes
from turnwise.dashboard.rollouts.trajectory_page import trajectory_routes
from turnwise.dashboard.rollouts.turn_parts import turn_routes
from turnwise.dashboard.rooms import Dashboard, DashboardRooms
from turnwise.dashboard.session import (
    Sessions,
    SignInNeeded,
    require_same_site,
    safe_next,
    to_sign_in,
)
from turnwise.dashboard.uploads import upload_routes
from turnwise.domain.access import Principal

log = logging.getLogger(__name__)

PREFIX = "/dashboard"

#: Scripts, styles and pictures only from here; nothing inline; no frame around a page.
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}

#: Of a form: that of a job file, each of whose characters a browser may send as twelve.
MAX_FORM_BYTES = 2 * 1024 * 1024

#: Each module of pages has one of these.
Routes = Callable[[Dashboard], APIRouter]

PAGES: tuple[Routes, ...] = (
    job_list_routes,
    new_job_routes,
    job_action_routes,
    log_routes,
    export_routes,
    compare_routes,
    model_routes,
    upload_routes,
    rollout_list_routes,
    trajectory_routes,
    turn_routes,
    group_routes,
    job_page_routes,
)


def is_page(path: str) -> bool:
    """Whether a path is answered here."""
    return path in ("/", "/favicon.ico", PREFIX) or path.startswith(f"{PREFIX}/")


class _Hardened(FastAPI):
    """With the headers of every answer, of one to a fault too, and bounds for what is sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_FORM_BYTES:  # it is read before it is known who sends it
                raise HTTPException(413, f"the form is larger than {MAX_FORM_BYTES} bytes")
            return message

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await super().__call__(scope, limited, hardened)


def dashboard_app(rooms: DashboardRooms) -> FastAPI:
    """All pages, static files and streams."""
    pages = Pages.load()
    pages.templates.globals["JOB_ACTIONS"] = ACTIONS
    sessions = Sessions(rooms.keyring, rooms.links, is_secure=rooms.url.startswith("https:"))
    app = _Hardened(docs_url=None, redoc_url=None, openapi_url=None)
    dashboard = Dashboard(
        rooms=rooms, pages=pages, hub=Hub(), streams=Streams(), principal=sessions.principal
    )
    _add_faults(app, pages, sessions)
    app.include_router(_session_routes(pages, sessions))
    for routes in PAGES:
        app.include_router(routes(dashboard))
    return app


def _session_routes(pages: Pages, sessions: Sessions) -> APIRouter:
    routes = APIRouter(prefix=PREFIX)

    @routes.get("/static/{fingerprint}/{file:path}")
    async def static(fingerprint: str, file: str) -> Response:
        """Needs no key. The address changes with the content."""
        path = (STATIC / file.replace("\0", "")).resolve()
        if not path.is_relative_to(STATIC) or not path.is_file():
            raise errors.NotFound("file", file)
        return FileResponse(path, headers={"cache-control": "public, max-age=31536000, immutable"})

    @routes.get("/sign-in")
    async def sign_in_page(request: Request, next: str = "") -> HTMLResponse:
        return pages.page(
            request, "sign_in.html", principal=None, wanted=safe_next(next), problem=""
        )

    @routes.post("/sign-in")
    async def sign_in(
        request: Request, key: Annotated[str, Form()] = "", next: Annotated[str, Form()] = ""
    ) -> Response:
        require_same_site(request)  # or another site could have people work with its own key
        wanted = safe_next(next)
        response = RedirectResponse(wanted, status_code=303)
        try:
            request.state.principal = await sessions.start(key, response)
        except errors.Unauthenticated:
            problem = "No such key, or it was revoked. `turnwise keys list` shows what there is."
            return pages.page(
                request,
                "sign_in.html",
                principal=None,
                status=401,
                wanted=wanted,
                problem=problem,
            )
        return response

    @routes.post("/sign-out")
    async def sign_out(who: Principal = Depends(sessions.principal)) -> Response:  # noqa: B008
        response = RedirectResponse(f"{PREFIX}/sign-in", status_code=303)
        sessions.end(response)
        return response

    return routes


def _add_faults(app: FastAPI, pages: Pages, sessions: Sessions) -> None:
    async def told(request: Request, status: int, message: str) -> Response:
        try:
            principal: Principal | None = await sessions.principal(request)
        except (SignInNeeded, errors.TurnwiseError):
            principal = None
        return pages.page(
            request, "error.html", principal=principal, status=status, code=status, message=message
        )

    @app.exception_handler(SignInNeeded)
    async def _sign_in(request: Request, _: SignInNeeded) -> Response:
        return to_sign_in(request)

    @app.exception_handler(errors.TurnwiseError)
    async def _known(request: Request, error: errors.TurnwiseError) -> Response:
        return await told(request, status_of(error), str(error))

    @app.exception_handler(RequestValidationError)
    async def _malformed(request: Request, error: RequestValidationError) -> Response:
        problem: Any = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"][1:]) or "the request"
        message = f"{field} = {problem.get('input')!r} is wrong: {problem['msg']}"
        return await told(request, 400, message)

    @app.exception_handler(HTTPException)
    async def _unrouted(request: Request, error: HTTPException) -> Response:
        return await told(request, error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def _unknown(request: Request, error: Exception) -> Response:
        return await told(request, 500, "internal error; the server's log says more")
