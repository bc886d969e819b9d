"""What the native API tells the audit trail: a record of each authenticated request.

A record is named after the route, in the words that AWS has for the same thing: POST
/api/v1/jobs/{name}/stop is StopJob. It is committed before the answer's first byte leaves.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException

from turnwise import errors
from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.record import Resource, Witnessed
from turnwise.control.audit.witness import Witness
from turnwise.domain.access import Principal
from turnwise.domain.audit import Category
from turnwise.wire.asgi import MAX_MANAGING_BYTES
from turnwise.wire.native.faults import fault

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
Json = dict[str, Any]

#: eventSource of what came by this API.
SOURCE = "turnwise"

#: As much of a request's or a refusal's body is looked at.
_MAX_BODY = 256 * 1024

#: Reading what is in a job, again and again: data events, as reading logs is with AWS.
_DATA = re.compile(r"/api/v1/(jobs/\{name\}/(events|metrics|ledger|usage|rollouts)|rollouts/.*)")

#: POST routes that change nothing.
_ASKS = ("Validate", "Verify", "Search", "Test")


def event_name(method: str, path: str) -> str:
    """A route's name in the audit trail, by its path template.

    >>> event_name("GET", "/api/v1/jobs"), event_name("GET", "/api/v1/jobs/{name}")
    ('ListJobs', 'DescribeJob')
    >>> event_name("POST", "/api/v1/jobs/{name}/stop"), event_name("POST", "/api/v1/jobs/validate")
    ('StopJob', 'ValidateJob')
    >>> event_name("GET", "/api/v1/jobs/{name}/results.csv")
    'GetJobResultsCsv'
    """
    parts = [part for part in path.removeprefix("/api/v1").split("/") if part]
    words = [part for part in parts if not part.startswith("{")]
    if not words:
        return _camel(method.lower())
    things = "".join(_camel(_singular(word)) for word in words[:-1])
    last = words[-1]
    is_of_one = parts[-1].startswith("{")
    if method in ("GET", "HEAD"):
        if is_of_one:
            return f"Describe{things}{_camel(_singular(last))}"
        return f"Get{things}{_camel(last)}" if things else f"List{_camel(last)}"
    if method == "POST" and things and not last.endswith("s"):
        return f"{_camel(last)}{things}"  # a verb
    verb = {"POST": "Create", "PUT": "Put", "PATCH": "Update", "DELETE": "Delete"}.get(method, "")
    return f"{verb}{things}{_camel(_singular(last) if method != 'PUT' or is_of_one else last)}"


def _camel(word: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]", word))


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


class Observed:
    """The native API with the audit trail told of each request whose caller is known."""

    def __init__(
        self,
        app: Asgi,
        trail: AuditTrail,
        witness: Witness,
    ) -> None:
        self._app = app
        self._trail = trail
        self._witness = witness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        await self._app(scope, *_Watch(self, scope, receive, send).ends)

    async def record(self, scope: Scope, sent: bytes, status: int, answered: bytes) -> None:
        """Record a request that is about to be answered. Raises what the store raises."""
        principal: Principal | None = scope["state"].get("principal")
        path = getattr(scope.get("route"), "path", "")
        if principal is None or not path:
            return
        is_data = scope["method"] == "GET" and _DATA.fullmatch(path) is not None
        if is_data and not self._trail.selects_data:
            return
        seen = await self._seen(scope, principal, path, sent, status, answered, is_data=is_data)
        if is_data:
            self._trail.record_soon(seen)
        else:
            await self._trail.record(seen)

    async def _seen(
        self,
        scope: Scope,
        principal: Principal,
        path: str,
        sent: bytes,
        status: int,
        answered: bytes,
        *,
        is_data: bool,
    ) -> Witnessed:
        name = event_name(scope["method"], path)
        return await self._witness.of(
            scope,
            principal,
            source=SOURCE,
            name=name,
            read_only=is_read_only(scope["method"], name),
            category=Category.DATA if is_data else Category.MANAGEMENT,
            parameters=_parameters(scope, sent),
            error=_error(answered) if status >= 400 else ("", ""),
            resources=await self._resources(principal, path, scope["path_params"]),
        )

    async def _resources(
        self, principal: Principal, path: str, given: Mapping[str, Any]
    ) -> list[Resource]:
        if path.startswith("/api/v1/jobs/{name}"):
            return [await self._witness.job(principal, str(given["name"]))]
        return []


def is_read_only(method: str, name: str) -> bool:
    """Whether a route changes nothing."""
    return method in ("GET", "HEAD") or name.startswith(_ASKS)


class _Watch:
    """One request on its way through: what was sent, and the record before the answer."""

    def __init__(self, observed: Observed, scope: Scope, receive: Receive, send: Send) -> None:
        self._observed = observed
        self._scope = scope
        self._receive = receive
        self._send = send
        self._sent = bytearray()
        self._size = 0
        self._held: Message | None = None  # the head of a refusal, whose body says why
        self._is_replaced = False

    @property
    def ends(self) -> tuple[Receive, Send]:
        """What the app is given in place of the connection."""
        return self._received, self._answering

    async def _received(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            body = message.get("body", b"")
            self._size += len(body)
            if self._size > MAX_MANAGING_BYTES:  # it is read before it is known who calls
                raise HTTPException(413, f"the body is larger than {MAX_MANAGING_BYTES} bytes")
            if len(self._sent) < _MAX_BODY:
                self._sent += body[:_MAX_BODY]
        return message

    async def _answering(self, message: Message) -> None:
        if self._is_replaced:
            return
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self._held = message
                return
            if not await self._recorded(message["status"], b""):
                return
        elif self._held is not None:
            head, self._held = self._held, None
            await self._recorded(head["status"], bytes(message.get("body", b""))[:_MAX_BODY])
            await self._send(head)
        await self._send(message)

    async def _recorded(self, status: int, answered: bytes) -> bool:
        """Record; False where the answer is now that a change is not on record."""
        try:
            await self._observed.record(self._scope, bytes(self._sent), status, answered)
        except errors.TurnwiseError as error:
            path = self._scope["path"]
            log.error("%s %r is not in the audit trail yet: %s", self._scope["method"], path, error)
            if status < 400 and self._scope["method"] not in ("GET", "HEAD"):
                await self._refuse(error)
                return False
        return True

    async def _refuse(self, error: Exception) -> None:
        self._is_replaced = True
        text = f"the request was carried out, but its audit record could not be kept yet: {error}"
        status, body, _ = fault(errors.Unavailable(text))
        data = json.dumps(body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(data)).encode()),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": data})


def _parameters(scope: Scope, sent: bytes) -> Json:
    given: Json = dict(scope["path_params"])
    for name, value in parse_qsl(scope["query_string"].decode("latin-1")):
        given.setdefault(name, value)
    if sent:
        try:
            given["body"] = json.loads(sent)
        except (ValueError, RecursionError):
            given["body"] = f"({len(sent)} bytes or more)"
    return given


def _error(answered: bytes) -> tuple[str, str]:
    try:
        error = json.loads(answered)["error"]
        return str(error["type"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return "TurnwiseError", ""
