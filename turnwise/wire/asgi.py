"""One HTTP call over raw ASGI, as the data plane needs it: no framework on the hot path."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from turnwise import errors
from turnwise.domain.access import Principal
from turnwise.domain.rollout import Rollout

Scope = MutableMapping[str, Any]
ASGIMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
Headers = Iterable[tuple[str, str]]

#: Larger bodies are refused: a 1 M token context is about 5 MB of text.
MAX_BODY_BYTES = 64 * 1024 * 1024
#: Of calls that manage things, whose bodies are read before it is known who calls.
MAX_MANAGING_BYTES = 8 * 1024 * 1024


class ClientGone(Exception):
    """The client closed its connection before the answer was out."""


class HttpCall:
    """A request and the way to answer it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self._scope = scope
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._body: bytes | None = None
        self.has_started = False
        #: Who calls and about which rollout, once that is verified; for the audit trail.
        self.caller: Principal | None = None
        self.rollout: Rollout | None = None
        self._is_refused = False  # what is left of the body is never read

    def header(self, name: str) -> str:
        """A request header by its lower-case name; "" if absent."""
        return self._headers.get(name.encode(), b"").decode("latin-1")

    @property
    def headers(self) -> dict[str, str]:
        """All request headers by lower-case name."""
        return {
            name.decode("latin-1"): value.decode("latin-1") for name, value in self._headers.items()
        }

    @property
    def raw_path(self) -> str:
        """The path as it was sent, percent-encoded."""
        raw: bytes = self._scope.get("raw_path") or self._scope["path"].encode()
        return raw.partition(b"?")[0].decode("latin-1")

    @property
    def query(self) -> str:
        """The query as it was sent, percent-encoded."""
        query: bytes = self._scope["query_string"]
        return query.decode("latin-1")

    @property
    def client_ip(self) -> str:
        """Who is at the other end of the connection; "" if that is unknown."""
        client = self._scope.get("client")
        return str(client[0]) if client else ""

    async def body(self, limit: int = MAX_BODY_BYTES) -> bytes:
        """The whole request body, kept for who asks again. Raises `InvalidInput` if too large.

        One that is announced as too large is not even asked for (`Expect: 100-continue`).
        """
        if self._body is None:
            self._body = await self._received(limit)
        return self._body

    async def _received(self, limit: int) -> bytes:
        announced = self.header("content-length")
        if announced.isdecimal() and int(announced) > limit:
            self._is_refused = True
            raise _too_large(int(announced), limit)
        message = await self._receive()
        body = bytearray(message.get("body", b""))
        while message.get("more_body"):
            message = await self._receive()
            body += message.get("body", b"")
            if len(body) > limit:
                self._is_refused = True
                raise _too_large(len(body), limit)
        if message["type"] == "http.disconnect":
            raise ClientGone
        return bytes(body)

    @contextlib.asynccontextmanager
    async def while_connected(self) -> AsyncIterator[None]:
        """Cancel the block and raise `ClientGone` as soon as the client closes the connection."""
        working = asyncio.current_task()
        assert working is not None
        gone = False

        def on_disconnect(watch: asyncio.Task[None]) -> None:
            nonlocal gone
            if not watch.cancelled():
                gone = True
                working.cancel()

        watch = asyncio.create_task(self._disconnected())
        watch.add_done_callback(on_disconnect)
        try:
            yield
        except asyncio.CancelledError:
            if not gone:
                raise
            working.uncancel()
            raise ClientGone from None
        finally:
            watch.remove_done_callback(on_disconnect)
            watch.cancel()

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(
        self, status: int, body: bytes, *, media_type: str = "application/json", more: Headers = ()
    ) -> None:
        """Send a whole response."""
        length = ("content-length", str(len(body)))
        await self._begin(status, media_type, (length, *more))
        await self._send({"type": "http.response.body", "body": body})

    async def begin_stream(self, media_type: str) -> None:
        """Send the head of a response whose body comes in pieces."""
        await self._begin(200, media_type, (("cache-control", "no-cache"),))

    async def answer_in_pieces(
        self, status: int, pieces: AsyncIterator[bytes], *, media_type: str, more: Headers = ()
    ) -> None:
        """Send a response whose body is read while it goes out; `more` says its length."""
        await self._begin(status, media_type, more)
        async for piece in pieces:
            await self.piece(piece)
        await self.piece(b"", last=True)

    async def piece(self, body: bytes, *, last: bool = False) -> None:
        """Send the next piece of the body."""
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def _begin(self, status: int, media_type: str, more: Headers) -> None:
        self.has_started = True
        # A client that waited for leave to send its body will not send it: the next request would
        # be taken for it.
        close = (("connection", "close"),) if self._is_refused else ()
        pairs = (("content-type", media_type), *more, *close)
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


def _too_large(size: int, limit: int) -> errors.InvalidInput:
    return errors.InvalidInput("body", f"{size} bytes", f"is larger than {limit} bytes")
