"""What the routes call, who calls them, and about which account."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request

from turnwise import errors
from turnwise.access.accounts import Accounts
from turnwise.access.links import Links
from turnwise.control.browse import Browse
from turnwise.control.jobs import Jobs
from turnwise.control.json_text import read_json
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.named_datasets import NamedDatasets
from turnwise.control.secrets import Secrets
from turnwise.domain.access import Principal
from turnwise.domain.evaluator import Evaluator
from turnwise.ports import Blobs, Clock, Resources
from turnwise.wire.asgi import MAX_MANAGING_BYTES
from turnwise.wire.fireworks.listing import Asked
from turnwise.wire.fireworks.names import PUBLIC

Json = dict[str, Any]


class Evaluators(Protocol):
    """The evaluators of all accounts: `control.evaluators.Evaluators`."""

    async def create(self, principal: Principal, evaluator: Evaluator) -> Evaluator:
        """Raises `Conflict` if the id is taken."""
        ...

    async def get(self, principal: Principal, evaluator_id: str) -> Evaluator:
        """Raises `NotFound`."""
        ...

    async def list(self, principal: Principal) -> list[Evaluator]:
        """Oldest first."""
        ...

    async def change(self, principal: Principal, evaluator_id: str, **fields: str) -> Evaluator:
        """Raises `NotFound`."""
        ...

    async def delete(self, principal: Principal, evaluator_id: str) -> object:
        """Raises `NotFound`."""
        ...

    async def put_archive(
        self, principal: Principal, evaluator_id: str, pieces: AsyncIterator[bytes], size: int
    ) -> Evaluator:
        """Keep its tar.gz of `size` bytes."""
        ...

    async def build(self, principal: Principal, evaluator_id: str) -> Evaluator:
        """Start its build, which goes on after the call."""
        ...

    async def build_log(self, principal: Principal, evaluator_id: str) -> str:
        """What its last build has printed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FireworksRooms:
    """What the routes call. `url` is this server's, as clients reach it.

    `holder` is the caller behind an access key that was verified before.
    """

    url: str
    accounts: Accounts
    holder: Callable[[str], Awaitable[Principal]]
    links: Links
    clock: Clock
    resources: Resources
    blobs: Blobs
    jobs: Jobs
    browse: Browse
    catalogue: Catalogue
    datasets: NamedDatasets
    secrets: Secrets
    evaluators: Evaluators


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A verified caller and the account's name in the names of its resources."""

    principal: Principal
    account: str


Caller = Callable[[Request], Awaitable[Call]]


def open_caller(rooms: FireworksRooms, *, may_be_public: bool = False) -> Caller:
    """The check of each route: a valid key, of the account that the path names, if it names one.

    With `may_be_public` the path may name the account of base models, too.
    """

    async def caller(request: Request) -> Call:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise errors.Unauthenticated(
                "no key was sent; set FIREWORKS_API_KEY to a key of this server"
            )
        principal = await rooms.accounts.authenticate(key.strip())
        request.state.principal = principal  # for the audit trail
        call = await call_of(rooms, principal)
        named = request.path_params.get("account", call.account)
        if named != call.account and not (may_be_public and named == PUBLIC):
            raise errors.NotFound("account", named, remedy=f"this key is of {call.account!r}")
        return call

    return caller


async def call_of(rooms: FireworksRooms, principal: Principal) -> Call:
    """A call by that principal."""
    account = (await rooms.accounts.identity(principal)).account
    return Call(principal=principal, account=account.slug)


async def json_body(request: Request) -> Json:
    """The JSON object that a request sends; an empty one where it sends nothing."""
    sent = bytearray()
    async for piece in request.stream():
        sent += piece
        if len(sent) > MAX_MANAGING_BYTES:
            raise errors.InvalidInput(
                "body", f"{len(sent)} bytes", f"is larger than {MAX_MANAGING_BYTES} bytes"
            )
    shown = f"({len(sent)} bytes)"  # it may hold a secret, and errors are shown and kept
    try:
        text = sent.decode()
        given = read_json("body", text) if text.strip() else {}
    except UnicodeDecodeError:
        raise errors.InvalidInput("body", shown, "is not UTF-8") from None
    except errors.InvalidInput as error:
        raise errors.InvalidInput("body", shown, error.reason) from None
    if not isinstance(given, dict):
        raise errors.InvalidInput("body", shown, "is not a JSON object")
    return given


def asked_of(request: Request) -> Asked:
    """What of a list is asked for; parameters may be in snake_case."""
    query = request.query_params

    def first(*names: str) -> str:
        return next((query[name] for name in names if name in query), "")

    size = first("pageSize", "page_size") or "0"
    if not size.isascii() or not size.isdecimal() or len(size) > 9:
        raise errors.InvalidInput("pageSize", size, "is not a number of entries")
    return Asked(
        filter=first("filter"),
        order_by=first("orderBy", "order_by"),
        page_size=int(size),
        page_token=first("pageToken", "page_token"),
        read_mask=first("readMask", "read_mask"),
    )
