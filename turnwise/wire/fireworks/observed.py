"""What this door tells the audit trail: a record of each request whose caller is known.

It is committed before the answer's first byte leaves. Bodies are not in it: they may be secrets.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

from turnwise import errors
from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.witness import Witness
from turnwise.domain.access import Principal
from turnwise.domain.audit import Category
from turnwise.wire.asgi import ASGIMessage, Receive, Scope, Send
from turnwise.wire.fireworks.faults import fault

log = logging.getLogger(__name__)

Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

#: eventSource of what came by this door.
SOURCE = "fireworks"

_VERBS = {"GET": "Get", "POST": "Create", "PATCH": "Update", "PUT": "Put", "DELETE": "Delete"}
_METRICS = "/metrics"  # read again and again: a data event


def event_name(method: str, path: str) -> str:
    """A route's name in the audit trail, by its path template.

    >>> event_name("GET", "/v1/accounts/{account}/datasets")
    'ListDatasets'
    >>> event_name("POST", "/v1/accounts/{account}/datasets/{id}:upload")
    'UploadDataset'
    >>> event_name("DELETE", "/v1/accounts/{account}/secrets/{id}")
    'DeleteSecret'
    >>> event_name("GET", "/verifyApiKey")
    'VerifyApiKey'
    """
    if path.count("/") == 1:
        return _camel(path[1:])
    path, _, verb = path.partition(":")
    words = [word for word in re.findall(r"[^/]+", path) if not word.startswith("{")]
    things = [word for word in words if word not in ("v1", "accounts")] or words[-1:]
    if verb:
        return _camel(verb) + _singular(things[0])
    if method == "GET" and not path.endswith("}") and len(things) == 1:
        return "List" + _camel(things[0])
    return (
        _VERBS.get(method, method.title()) + _singular(things[0]) + "".join(map(_camel, things[1:]))
    )


def _camel(word: str) -> str:
    return word[:1].upper() + word[1:]


def _singular(word: str) -> str:
    return _camel(word.removesuffix("V2").removesuffix("s"))


class Observed:
    """The door's app with the audit trail told of each request."""

    def __init__(self, app: Asgi, trail: AuditTrail, witness: Witness) -> None:
        self._app = app
        self._trail = trail
        self._witness = witness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope.setdefault("state", {})
        is_replaced = False

        async def answer(message: ASGIMessage) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start":
                try:
                    await self._record(scope, message["status"])
                except errors.TurnwiseError as error:
                    log.error("%s is not in the audit trail yet: %s", scope["path"], error)
                    is_replaced = message["status"] < 400 and scope["method"] != "GET"
                    if is_replaced:
                        await _refuse(send, error)
            if not is_replaced:
                await send(message)

        await self._app(scope, receive, answer)

    async def _record(self, scope: Scope, status: int) -> None:
        principal: Principal | None = scope["state"].get("principal")
        path = getattr(scope.get("route"), "path", "")
        if principal is None or not path:
            return
        is_data = path.endswith(_METRICS)
        if is_data and not self._trail.selects_data:
            return
        seen = await self._witness.of(
            scope,
            principal,
            source=SOURCE,
            name=event_name(scope["method"], path),
            read_only=scope["method"] == "GET",
            category=Category.DATA if is_data else Category.MANAGEMENT,
            parameters=_parameters(scope),
            error=scope["state"].get("fault", ("", "")) if status >= 400 else ("", ""),
        )
        if is_data:
            self._trail.record_soon(seen)
        else:
            await self._trail.record(seen)


def _parameters(scope: Scope) -> dict[str, Any]:
    """What the path and the query say, but for the token of a signed address."""
    query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
    query.pop("token", None)
    return query | dict(scope["path_params"])


async def _refuse(send: Send, error: Exception) -> None:
    text = f"the request was carried out, but its audit record could not be kept yet: {error}"
    status, body, _ = fault(errors.Unavailable(text))
    headers = [(b"content-type", b"application/json"), (b"x-should-retry", b"false")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
