"""The native API's routes: decode, call, encode."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from turnwise import __version__, errors
from turnwise.access.accounts import Accounts
from turnwise.control.browse import PAGE, Browse
from turnwise.control.job_file import as_mapping, parse_job
from turnwise.control.jobs import Jobs
from turnwise.control.models.registry import Registry
from turnwise.control.results import StoredResults
from turnwise.domain.access import Action, Principal
from turnwise.domain.event import EventKind
from turnwise.domain.job import JobStatus
from turnwise.domain.rollout import Purpose, RolloutStatus
from turnwise.exporting.archives import Archives
from turnwise.ports import Archive, RolloutCursor, RolloutQuery
from turnwise.wire.native import codec
from turnwise.wire.native.agents import AgentRooms, agent_routes
from turnwise.wire.native.faults import fault

Json = dict[str, Any]
Caller = Callable[[Request], Awaitable[Principal]]
#: Longest wait of one event request; readers ask again.
MAX_WAIT_S = 25.0


def native_app(
    jobs: Jobs,
    browse: Browse,
    archives: Archives,
    results: StoredResults,
    accounts: Accounts,
    registry: Registry,
    *,
    agents: AgentRooms,
    more: Sequence[Callable[[Caller], APIRouter]] = (),
) -> FastAPI:
    """The whole native API as one ASGI app; `more` makes further routes, given the caller's check.

    Whoever calls is left in the request's state as `principal`.
    """
    app = FastAPI(
        title="Turnwise", version=__version__, docs_url=None, redoc_url=None, openapi_url=None
    )

    async def principal(request: Request) -> Principal:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise errors.Unauthenticated("no key was sent; send 'Authorization: Bearer <key>'")
        request.state.principal = found = await accounts.authenticate(key)
        return found

    def answer(error: errors.TurnwiseError) -> Response:
        status, body, headers = fault(error)
        return JSONResponse(body, status, headers)

    @app.exception_handler(errors.TurnwiseError)
    async def _known(_: Request, error: errors.TurnwiseError) -> Response:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def _malformed(_: Request, error: RequestValidationError) -> Response:
        return answer(_refusal(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def _unrouted(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        body = {"error": {"type": "TurnwiseError", "message": message}}
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def _unknown(_: Request, error: Exception) -> Response:
        body = {"error": {"type": "TurnwiseError", "message": "internal error"}}
        return JSONResponse(body, 500)

    @app.get("/health")
    async def health() -> Json:
        """Whether the server answers; needs no key."""
        return {"status": "ok", "version": __version__}

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(principal)])
    async def description() -> Json:
        return app.openapi()

    app.include_router(_access_routes(accounts, principal))
    app.include_router(agent_routes(agents, principal))
    app.include_router(_job_routes(jobs, principal))
    app.include_router(_reading_routes(browse, principal))
    app.include_router(_result_routes(results, principal))
    app.include_router(_model_routes(browse, archives, registry, principal))
    for routes in more:
        app.include_router(routes(principal))
    return app


def _refusal(problem: Mapping[str, Any]) -> errors.InvalidInput:
    """FastAPI's first complaint about a request."""
    if problem["type"] == "json_invalid":
        reason = f"is not JSON: {problem['ctx']['error']} at character {problem['loc'][-1]}"
        return errors.InvalidInput("body", "the request", reason)
    field = ".".join(str(part) for part in problem["loc"][1:]) or "body"
    return errors.InvalidInput(field, problem.get("input"), f"is wrong: {problem['msg']}")


def _access_routes(accounts: Accounts, principal: Caller) -> APIRouter:
    routes = APIRouter(prefix="/api/v1")
    caller = Depends(principal)

    @routes.get("/whoami")
    async def whoami(who: Principal = caller) -> Json:
        """The caller's account, rights and access key id; any key may ask."""
        return codec.identity_body(await accounts.identity(who))

    @routes.post("/accounts", status_code=201)
    async def create_account(
        slug: Annotated[str, Body(embed=True)], who: Principal = caller
    ) -> Json:
        return codec.account_body(await accounts.create(who, slug))

    @routes.get("/accounts")
    async def list_accounts(who: Principal = caller) -> Json:
        return {"accounts": [codec.account_body(each) for each in await accounts.accounts(who)]}

    @routes.post("/keys", status_code=201)
    async def create_key(
        name: Annotated[str, Body()],
        account: Annotated[str, Body()] = "",
        jobs: Annotated[list[str], Body()] = [],  # noqa: B006  FastAPI copies it
        actions: Annotated[list[Action], Body()] = [],  # noqa: B006
        who: Principal = caller,
    ) -> Json:
        """A key, with its secret: the only time that it is shown."""
        secret, key = await accounts.create_key(
            who, name, account=account, jobs=jobs, actions=actions
        )
        return codec.key_body(key) | {"secret": secret}

    @routes.get("/keys")
    async def list_keys(account: str = "", who: Principal = caller) -> Json:
        return {"keys": [codec.key_body(key) for key in await accounts.keys(who, account=account)]}

    @routes.delete("/keys/{key_id}")
    async def revoke_key(key_id: str, account: str = "", who: Principal = caller) -> Json:
        return codec.key_body(await accounts.revoke(who, key_id, account=account))

    return routes


def _job_routes(jobs: Jobs, principal: Caller) -> APIRouter:
    routes = APIRouter(prefix="/api/v1/jobs")
    caller = Depends(principal)

    @routes.post("", status_code=201)
    async def create(job_file: Annotated[Any, Body()], who: Principal = caller) -> Json:
        return codec.job_body(await jobs.create(who, parse_job(job_file)))

    @routes.post("/validate")
    async def validate(job_file: Annotated[Any, Body()], who: Principal = caller) -> Json:
        return as_mapping(parse_job(job_file))

    @routes.get("")
    async def list_jobs(
        status: JobStatus | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        who: Principal = caller,
    ) -> Json:
        found = await jobs.list(who, status=status, limit=limit)
        return {"jobs": [codec.job_body(job) for job in found]}

    @routes.get("/{name}")
    async def describe(name: str, who: Principal = caller) -> Json:
        return codec.job_body(await jobs.describe(who, name))

    @routes.post("/{name}/stop")
    async def stop(name: str, who: Principal = caller) -> Json:
        return codec.job_body(await jobs.stop(who, name))

    @routes.post("/{name}/resume")
    async def resume(name: str, who: Principal = caller) -> Json:
        return codec.job_body(await jobs.resume(who, name))

    @routes.delete("/{name}")
    async def delete(name: str, who: Principal = caller) -> Json:
        return codec.job_body(await jobs.delete(who, name))

    return routes


def _reading_routes(browse: Browse, principal: Caller) -> APIRouter:
    routes = APIRouter(prefix="/api/v1")
    caller = Depends(principal)

    @routes.get("/jobs/{name}/events")
    async def events(
        name: str,
        after: Annotated[int, Query(ge=0, le=codec.MAX_PLACE)] = 0,
        kind: Annotated[list[EventKind], Query()] = [],  # noqa: B006  FastAPI copies it
        limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
        wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0.0,
        who: Principal = caller,
    ) -> Json:
        found = await browse.events(who, name, after=after, kinds=kind, limit=limit, wait_s=wait_s)
        return {"events": [codec.event_body(event) for event in found]}

    @routes.get("/jobs/{name}/metrics")
    async def metrics(
        name: str,
        metric: Annotated[list[str], Query()] = [],  # noqa: B006  FastAPI copies it
        who: Principal = caller,
    ) -> Json:
        curves = await browse.metrics(who, name, names=metric)
        return {"metrics": {key: codec.curve_body(curve) for key, curve in curves.items()}}

    @routes.get("/jobs/{name}/ledger")
    async def ledger(name: str, who: Principal = caller) -> Json:
        bins = await browse.ledger(who, name)
        return {"steps": [{"step": step, "bins": bins[step]} for step in sorted(bins)]}

    @routes.get("/jobs/{name}/usage")
    async def usage(name: str, who: Principal = caller) -> Json:
        return codec.usage_body(await browse.usage(who, name))

    @routes.get("/jobs/{name}/rollouts")
    async def rollouts(
        name: str,
        step: Annotated[int | None, Query(ge=-1, le=codec.MAX_PLACE)] = None,
        purpose: Purpose | None = None,
        status: RolloutStatus | None = None,
        after: Annotated[int, Query(ge=0, le=codec.MAX_PLACE)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        who: Principal = caller,
    ) -> Json:
        query = RolloutQuery(
            job_id=name,
            step=step,
            purpose=purpose,
            status=status,
            after=RolloutCursor(None, after) if after else None,
            limit=limit,
        )
        found = await browse.rollouts(who, query)
        next_after = found[-1].seq if len(found) == limit else None
        return {"rollouts": [codec.summary_body(s) for s in found], "next_after": next_after}

    @routes.get("/rollouts/{rollout_id}")
    async def rollout(rollout_id: str, who: Principal = caller) -> Json:
        return codec.trajectory_body(await browse.trajectory(who, rollout_id))

    return routes


def _result_routes(results: StoredResults, principal: Caller) -> APIRouter:
    routes = APIRouter(prefix="/api/v1/jobs")
    caller = Depends(principal)

    @routes.get("/{name}/results")
    async def document(name: str, who: Principal = caller) -> Response:
        return Response(await results.document(who, name), media_type="application/json")

    @routes.get("/{name}/results.csv")
    async def table(name: str, who: Principal = caller) -> Response:
        return Response(await results.table(who, name), media_type="text/csv; charset=utf-8")

    return routes


def _model_routes(
    browse: Browse, archives: Archives, registry: Registry, principal: Caller
) -> APIRouter:
    routes = APIRouter(prefix="/api/v1/models")
    caller = Depends(principal)

    @routes.get("")
    async def packages(group: str | None = None, who: Principal = caller) -> Json:
        found = await browse.packages(who, group=group)
        return {"models": [codec.package_summary(package) for package in found]}

    @routes.get("/{name:path}/archive")
    async def archive(name: str, merged: bool = False, who: Principal = caller) -> Response:
        """The package as a tar file: its PEFT folder, or a model folder with it merged in."""
        package = await browse.package(who, name)
        opened = await archives.open(package, merged=merged)
        try:
            return _Download(opened, await opened.size())
        except BaseException:
            await opened.close()
            raise

    @routes.get("/{name:path}")
    async def package(name: str, who: Principal = caller) -> Json:
        package = await browse.package(who, name)
        return codec.package_body(package) | {"validation": await browse.validation(package)}

    @routes.delete("/{name:path}")
    async def delete(name: str, who: Principal = caller) -> Json:
        """Delete one version, and its files unless something else is made of them; as it was."""
        return codec.package_body(await registry.delete(who, name))

    return routes


class _Download(StreamingResponse):
    """An archive on its way; closed at the end, whoever ends it."""

    def __init__(self, archive: Archive, size: int) -> None:
        length = {"content-length": str(size)}
        super().__init__(archive.pieces(), media_type="application/x-tar", headers=length)
        self._archive = archive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._archive.close()
