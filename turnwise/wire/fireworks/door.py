"""The door to Fireworks' clients: which requests are its own, and the routes that answer them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from turnwise.domain.access import Action
from turnwise.errors import TurnwiseError
from turnwise.wire.asgi import Receive, Scope, Send
from turnwise.wire.fireworks.calls import Call, Caller, FireworksRooms, asked_of, open_caller
from turnwise.wire.fireworks.datasets import dataset_routes
from turnwise.wire.fireworks.deployments import deployment_routes
from turnwise.wire.fireworks.evaluation_jobs import evaluation_job_routes
from turnwise.wire.fireworks.evaluators import evaluator_routes
from turnwise.wire.fireworks.faults import Code, Refused, fault
from turnwise.wire.fireworks.jobs import job_routes
from turnwise.wire.fireworks.listing import page
from turnwise.wire.fireworks.models import model_routes
from turnwise.wire.fireworks.observed import Asgi
from turnwise.wire.fireworks.secrets import secret_routes
from turnwise.wire.fireworks.signed import signed_routes
from turnwise.wire.fireworks.uploads import SIGNED

Json = dict[str, Any]

VERIFY, ACCOUNTS = "/verifyApiKey", "/v1/accounts"
#: The header that tells a client which account its key is of.
ACCOUNT_HEADER = "x-fireworks-account-id"


class FireworksDoor:
    """An ASGI app; `owns` says which requests are its."""

    def __init__(
        self, rooms: FireworksRooms, observed: Callable[[Asgi], Asgi] = lambda app: app
    ) -> None:
        """`observed` is the app with the audit trail told of what it answers."""
        self.app = fireworks_app(rooms)
        self._answer = observed(self.app)

    def owns(self, path: str) -> bool:
        """Whether requests to this path are answered here."""
        return path in (VERIFY, ACCOUNTS) or path.startswith((f"{ACCOUNTS}/", f"{SIGNED}/"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._answer(scope, receive, send)


def fireworks_app(rooms: FireworksRooms) -> FastAPI:
    """All routes, and errors in the service's shape."""
    app = FastAPI(title="Fireworks", docs_url=None, redoc_url=None, openapi_url=None)
    _add_faults(app)
    caller = open_caller(rooms)
    app.include_router(_account_routes(caller))
    app.include_router(dataset_routes(rooms, caller))
    app.include_router(secret_routes(rooms, caller))
    app.include_router(evaluator_routes(rooms, caller))
    app.include_router(job_routes(rooms, caller))
    app.include_router(evaluation_job_routes(rooms, caller))
    app.include_router(model_routes(rooms))
    app.include_router(deployment_routes(rooms, caller))
    app.include_router(signed_routes(rooms))
    return app


def _add_faults(app: FastAPI) -> None:
    def answer(request: Request, error: Exception) -> Response:
        status, body, headers = fault(error)
        request.state.fault = (body["details"][0]["reason"], body["message"])
        return JSONResponse(body, status, headers)

    @app.exception_handler(TurnwiseError)
    async def _known(request: Request, error: TurnwiseError) -> Response:
        return answer(request, error)

    @app.exception_handler(Refused)
    async def _refused(request: Request, error: Refused) -> Response:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def _unrouted(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path} is not served here"
        code = Code.NOT_FOUND if error.status_code == 404 else Code.UNIMPLEMENTED
        return answer(request, Refused(code, message))

    @app.exception_handler(Exception)
    async def _unknown(request: Request, error: Exception) -> Response:
        return answer(request, error)


def _account_routes(caller: Caller) -> APIRouter:
    routes = APIRouter()
    who = Depends(caller)

    @routes.get(VERIFY)
    async def verify(call: Call = who) -> Response:
        return JSONResponse({}, headers={ACCOUNT_HEADER: call.account})

    @routes.get(ACCOUNTS)
    async def accounts(request: Request, call: Call = who) -> Json:
        call.principal.require(Action.READ)
        return page("accounts", [_account_body(call.account)], asked_of(request))

    @routes.get(f"{ACCOUNTS}/{{account}}")
    async def account(call: Call = who) -> Json:
        call.principal.require(Action.READ)
        return _account_body(call.account)

    return routes


def _account_body(account: str) -> Json:
    return {
        "name": f"accounts/{account}",
        "displayName": account,
        "state": "READY",
        "suspendState": "UNSUSPENDED",
    }
