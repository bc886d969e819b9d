"""The door to MLflow: each account's own server, behind our keys, on the same port.

    /mlflow/...                                  the pages, and below them all of the API
    /api/{2,3}.0/mlflow/...  mlflow-artifacts/   the API where MLflow's and sagemaker-mlflow's
    /v1/traces                                   clients look for it
    /auth?authToken=...  /mlflow/auth?...        a presigned sign-in: a cookie, then the pages

Callers are known by a SigV4 signature, a bearer key, or the cookie of a sign-in; the key's account
says which MLflow answers. Reading needs READ, all else MANAGE, and a key that is for certain jobs
only is refused: MLflow shows all of an account's.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Protocol
from urllib.parse import unquote, urlsplit

import aiohttp
import msgspec
import yarl

from turnwise import errors
from turnwise.access import sigv4
from turnwise.access.keys import Keyring
from turnwise.access.links import MLFLOW_SESSION, MLFLOW_SIGN_IN, Links
from turnwise.domain.access import Account, Action, Principal
from turnwise.wire.asgi import ClientGone, HttpCall, Receive, Scope, Send

log = logging.getLogger(__name__)

PREFIX = "/mlflow"
COOKIE = "turnwise_mlflow"

_API = re.compile(r"/(?:ajax-)?api/[23]\.0/mlflow(?P<artifacts>-artifacts)?/(?P<noun>[A-Za-z-]+).*")
_PAGES = re.compile(r"/|/static-files/.*|/health|/version")
_MORE = re.compile(r"/v1/traces|/graphql|/get-artifact|/model-versions/get-artifact")
_ROOT = re.compile(r"/api/[23]\.0/mlflow(-artifacts)?/.*|/v1/traces")
#: Nouns by which MLflow would run programs or call other hosts for its client.
_CLOSED = frozenset({"assistant", "gateway-proxy", "jobs"})
_READ_ONLY = frozenset(
    {"gateway", "mcp-servers", "prompt-optimization", "scorers", "webhooks", "workspaces"}
)
#: What a POST is to that only reads, by the end of its path.
_SEARCHES = re.compile(
    r".*/(search|search-datasets|batchGetInfos|calculate-filter-correlation|traces/metrics"
    r"|get-latest-versions|presigned-download-url|ui-telemetry)|/graphql"
)
_APP = re.compile(
    r"arn:aws[a-z-]*:sagemaker:[a-z0-9-]*:(?P<number>[0-9]{12}):mlflow-(app|tracking-server)/.+"
)
_SERVICES = ("sagemaker", "sagemaker-mlflow")
_HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
}
_NOT_FORWARDED = _HOP_BY_HOP | {
    *("host", "origin", "referer", "cookie", "authorization", "expect"),
}
_NOT_RETURNED = _HOP_BY_HOP | {"set-cookie", "server", "date", "location"}
_PIECE = 1 << 16
#: How long a page waits for a server that is being started.
_START_S = 60.0


class Servers(Protocol):
    """Accounts' MLflow servers, as `launching.mlflow` has them."""

    @property
    def missing(self) -> str:
        """Why there is none; "" if there is."""
        ...

    async def address(self, account_id: str) -> str:
        """The socket of an account's running server. Raises `Unavailable`."""
        ...


class MlflowDoor:
    """An ASGI app; `owns` says which requests are its."""

    def __init__(
        self,
        servers: Servers,
        keyring: Keyring,
        links: Links,
        *,
        account: Callable[[str], Awaitable[Account]],
        region: str,
        settle: Callable[[str], Awaitable[None]],
        is_secure: bool = False,
    ) -> None:
        """`account` finds an account by id; `settle` waits, for a moment, until an account's
        MLflow has been told what the event log holds by now.
        """
        self._servers = servers
        self._keyring = keyring
        self._links = links
        self._account = account
        self._region = region
        self._settle = settle
        self._is_secure = is_secure
        self._sessions: dict[str, aiohttp.ClientSession] = {}  # by socket

    def owns(self, path: str) -> bool:
        """Whether a path is answered here."""
        return (
            path in (PREFIX, "/auth")
            or path.startswith(PREFIX + "/")
            or bool(_ROOT.fullmatch(path))
        )

    async def close(self) -> None:
        """Free connections."""
        for session in self._sessions.values():
            await session.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        http = HttpCall(scope, receive, send)
        path: str = scope["path"]
        try:
            if path == PREFIX:
                await _redirect(http, "mlflow/" + (f"?{http.query}" if http.query else ""))
            elif path in ("/auth", PREFIX + "/auth"):
                await self._sign_in(http, is_inside=path != "/auth")
            else:
                await self._answer(http, path.removeprefix(PREFIX), receive, send)
        except ClientGone:
            return
        except Exception as error:
            if not isinstance(error, errors.TurnwiseError):
                log.exception("%s %s failed", http.method, path)
            if http.has_started:
                raise
            await _fail(http, error)

    # ── sign-in ───────────────────────────────────────────────────────────────────────────────

    async def _sign_in(self, http: HttpCall, *, is_inside: bool) -> None:
        """A cookie for whoever presents a token that we gave out, and on to the pages."""
        found = re.search(r"(?:^|&)authToken=([a-z]+)", http.query)
        grant = self._links.read(MLFLOW_SIGN_IN, found[1] if found else "")
        _require(await self._keyring.holder(grant.access_key_id), Action.READ)
        token = self._links.make(MLFLOW_SESSION, grant.access_key_id, expires_s=grant.session_s)
        # Without a path it holds for the folder that this page is in. Lax: a link from elsewhere
        # opens the pages, but nothing elsewhere can post here.
        cookie = f"{COOKIE}={token}; Max-Age={grant.session_s}; HttpOnly; SameSite=Lax"
        cookie += "; Secure" if self._is_secure else ""
        headers = [("set-cookie", cookie), ("referrer-policy", "no-referrer")]
        await _redirect(http, "./" if is_inside else "mlflow/", headers)

    # ── who is calling ────────────────────────────────────────────────────────────────────────

    async def _caller(self, http: HttpCall) -> tuple[Principal, bytes | None]:
        """The verified caller; with a signature, also the body that it covers."""
        signed = sigv4.SignedRequest(
            method=http.method, path=http.raw_path, query=http.query, headers=http.headers
        )
        signature = sigv4.Signature.of(signed)
        if signature is not None:
            return await self._signer(http, signature)
        scheme, _, bearer = http.header("authorization").partition(" ")
        if scheme.lower() == "bearer":
            return await self._keyring.authenticate(bearer.strip()), None
        if token := _cookie(http):
            _check_origin(http)
            grant = self._links.read(MLFLOW_SESSION, token)
            return await self._keyring.holder(grant.access_key_id), None
        raise errors.Unauthenticated(
            "sign in first: open the address that CreatePresignedMlflowAppUrl gives (in the "
            "sagemaker SDK, job.get_mlflow_url()), sign requests, or send a bearer key"
        )

    async def _signer(
        self, http: HttpCall, signature: sigv4.Signature
    ) -> tuple[Principal, bytes | None]:
        if signature.service not in _SERVICES or signature.region != self._region:
            raise errors.Unauthenticated(
                f"the signature is for {signature.service} in {signature.region!r}; MLflow is "
                f"signed for as sagemaker in {self._region}"
            )
        body = await http.body()
        request = sigv4.SignedRequest(
            method=http.method,
            path=http.raw_path,
            query=http.query,
            headers=http.headers,
            body_sha256=(await asyncio.to_thread(hashlib.sha256, body)).hexdigest(),
        )
        expires_s = sigv4.MAX_EXPIRES_S
        return await self._keyring.verify(request, signature, max_expires_s=expires_s), body

    async def _check_app(self, http: HttpCall, principal: Principal) -> None:
        """An app that is named must be the caller's own; all are one server here."""
        named = http.header("x-sm-mlflow-app-arn") or http.header("x-mlflow-sm-tracking-server-arn")
        if named:
            found = _APP.fullmatch(named)
            account = await self._account(principal.account_id)
            if found is None or found["number"] != account.number:
                raise errors.Denied(f"{named!r} is no MLflow app of this account")

    # ── the way through ───────────────────────────────────────────────────────────────────────

    async def _answer(self, http: HttpCall, path: str, receive: Receive, send: Send) -> None:
        target = http.raw_path.removeprefix(PREFIX)
        if target[:1] != "/" or unquote(target) != path:  # its beginning is encoded
            raise errors.NotFound("page", path)
        action = _action(http.method, path)
        target = http.raw_path.removeprefix(PREFIX)
        if not target.startswith("/") or unquote(target) != path:
            action = None  # "/mlflow%2F...": what MLflow would read is not what was looked at
        principal, body = await self._caller(http)
        await self._check_app(http, principal)
        if action is None:
            raise errors.NotFound("page", path)
        _require(principal, action)
        if action is Action.READ and _API.fullmatch(path):
            await self._settle(principal.account_id)
        content = _pieces(receive) if body is None and _has_body(http) else body
        await self._forward(http, principal.account_id, target, content, send)

    async def _forward(
        self,
        http: HttpCall,
        account_id: str,
        target: str,
        content: bytes | AsyncIterator[bytes] | None,
        send: Send,
    ) -> None:
        session = await self._session(account_id)
        headers = {k: v for k, v in http.headers.items() if k not in _NOT_FORWARDED}
        try:
            async with session.request(
                http.method,
                _url(target, http.query),
                headers=headers,
                data=content,
                allow_redirects=False,
            ) as reply:
                await _return(http, reply, send)
        except (aiohttp.ClientError, OSError) as error:
            if http.has_started:
                raise ClientGone from error  # half an answer is out: uvicorn cuts the connection
            raise errors.Unavailable("MLflow has just ended", retry_after_s=1.0) from error

    async def _session(self, account_id: str) -> aiohttp.ClientSession:
        try:
            async with asyncio.timeout(_START_S):
                address = await self._servers.address(account_id)
        except TimeoutError:
            raise errors.Unavailable("MLflow is starting", retry_after_s=5.0) from None
        if address not in self._sessions:
            self._sessions[address] = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=address, limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._sessions[address]


def _action(method: str, path: str) -> Action | None:
    """The right that a request needs; None for what is not served here."""
    is_reading = method in ("GET", "HEAD") or (method == "POST" and bool(_SEARCHES.fullmatch(path)))
    action = Action.READ if is_reading else Action.MANAGE
    if ".." in path.split("/"):
        return None
    if found := _API.fullmatch(path):
        noun = "" if found["artifacts"] else found["noun"]
        is_closed = noun in _CLOSED or (noun in _READ_ONLY and method not in ("GET", "HEAD"))
        return None if is_closed else action
    if _MORE.fullmatch(path):
        return action
    return Action.READ if is_reading and _PAGES.fullmatch(path) else None


def _require(principal: Principal, action: Action) -> None:
    """Raise `Denied` unless the caller may see (and, for MANAGE, change) all of the account's."""
    principal.require_all(action, "runs in MLflow")


def _cookie(http: HttpCall) -> str:
    try:
        found = SimpleCookie(http.header("cookie")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _check_origin(http: HttpCall) -> None:
    """Refuse what another site's page makes a browser send with our cookie."""
    origin, site = http.header("origin"), http.header("sec-fetch-site")
    host = http.header("host")
    is_foreign = origin and origin not in (f"http://{host}", f"https://{host}")
    if http.method not in ("GET", "HEAD") and (is_foreign or site == "cross-site"):
        raise errors.Denied(f"a page of {origin or 'another site'} may not change anything here")


def _has_body(http: HttpCall) -> bool:
    return bool(http.header("transfer-encoding")) or http.header("content-length") not in ("", "0")


async def _pieces(receive: Receive) -> AsyncIterator[bytes]:
    """The request's body as it comes in."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        if piece := message.get("body", b""):
            yield piece
        if not message.get("more_body"):
            return


def _url(target: str, query: str) -> yarl.URL:
    text = f"http://localhost{target}" + (f"?{query}" if query else "")
    return yarl.URL(text, encoded=True)


async def _return(http: HttpCall, reply: aiohttp.ClientResponse, send: Send) -> None:
    """Pass an answer on as it comes."""
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in reply.headers.items()
        if name.lower() not in _NOT_RETURNED
    ]
    if location := reply.headers.get("Location"):
        there = urlsplit(location)
        inside = there._replace(scheme="", netloc="").geturl()
        headers.append((b"location", (PREFIX + inside).encode("latin-1")))
    http.has_started = True
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    async for piece in reply.content.iter_chunked(_PIECE):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _redirect(http: HttpCall, to: str, more: list[tuple[str, str]] | None = None) -> None:
    headers = [("location", to), ("cache-control", "no-store"), *(more or [])]
    await http.answer(302, b"", media_type="text/plain", more=headers)


#: Error class -> (status, MLflow's code). MLflow's clients try again after 429 and 503, not 501.
_TABLE: dict[type[Exception], tuple[int, str]] = {
    errors.InvalidInput: (400, "INVALID_PARAMETER_VALUE"),
    errors.NotFound: (404, "ENDPOINT_NOT_FOUND"),
    errors.AccessError: (403, "PERMISSION_DENIED"),
    errors.LimitExceeded: (429, "REQUEST_LIMIT_EXCEEDED"),
    errors.Unavailable: (503, "TEMPORARILY_UNAVAILABLE"),
    Exception: (500, "INTERNAL_ERROR"),
}


async def _fail(http: HttpCall, error: Exception) -> None:
    """An error as MLflow writes it; for a browser, as a page."""
    status, code = next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)
    text = str(error) if isinstance(error, errors.TurnwiseError) else "internal error"
    more = []
    if isinstance(error, errors.Unavailable):
        if error.retry_after_s is None:
            status, code = 501, "NOT_IMPLEMENTED"
        else:
            more.append(("retry-after", str(max(1, round(error.retry_after_s)))))
    if "text/html" in http.header("accept"):
        page = f"<!doctype html><title>MLflow</title><p>{html.escape(text)}</p>"
        await http.answer(status, page.encode(), media_type="text/html; charset=utf-8", more=more)
        return
    body = msgspec.json.encode({"error_code": code, "message": text})
    await http.answer(status, body, more=more)
