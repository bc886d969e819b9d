"""One model call while it runs, and its reply for those who ask again.

A client may leave before the reply is out and its library may ask again at once. So a turn runs
in a task of its own: clients join and leave it, and only when nobody has come back for `grace_s`
seconds is it given up (`expire`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence

from turnwise.gateway.chat import Delta, Reply, as_deltas


class Exchange:
    """A turn that clients wait for."""

    def __init__(self, *, turn_id: str, sha256: str, created_at: float, grace_s: float) -> None:
        self.turn_id = turn_id
        self.sha256 = sha256  # of the request's body
        self.created_at = created_at
        self.expired = False
        self.task: asyncio.Task[None] | None = None
        self._grace_s = grace_s
        self._clients = 0
        self._taken = False
        self._deltas: list[Delta] = []
        self._reply: Reply | None = None
        self._error: Exception | None = None
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._limit: asyncio.Timeout | None = None

    @classmethod
    def finished(cls, sha256: str, reply: Reply) -> Exchange:
        """One whose reply was taken before this process knew it."""
        exchange = cls(
            turn_id=reply.turn_id, sha256=sha256, created_at=reply.created_at, grace_s=0.0
        )
        exchange.publish(as_deltas(reply.message))
        exchange.succeed(reply)
        exchange._taken = True
        return exchange

    # ── the clients' side ─────────────────────────────────────────────────────────────────────

    @property
    def is_running(self) -> bool:
        """Whether its reply is not there yet."""
        return self._reply is None and self._error is None and not self.expired

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for it or has got its reply, so that it can be claimed again."""
        return self._clients == 0 and not self._taken and self._error is None and not self.expired

    @property
    def is_repeatable(self) -> bool:
        """Whether its reply is there and was taken or can still be."""
        return self._reply is not None and (self._taken or not self.expired)

    async def reply(self) -> Reply:
        """Wait for the whole reply. Raises what ended the turn instead."""
        with self._client():
            while True:
                if (reply := self._outcome()) is not None:
                    return reply
                await self._changed.wait()

    async def events(self) -> AsyncGenerator[Delta | Reply, None]:
        """The deltas from the first on, then the reply."""
        with self._client():
            seen = 0
            while True:
                while seen < len(self._deltas):
                    seen += 1
                    yield self._deltas[seen - 1]
                if (reply := self._outcome()) is not None:
                    yield reply
                    return
                await self._changed.wait()

    def _outcome(self) -> Reply | None:
        if self._error is not None:
            raise self._error
        if self._reply is not None:
            self._taken = True
            self._pulse()
        return self._reply

    @contextlib.contextmanager
    def _client(self) -> Iterator[None]:
        self._clients += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pulse()
        try:
            yield
        finally:
            self._clients -= 1
            if self.is_abandoned:
                self._timer = asyncio.get_running_loop().call_later(self._grace_s, self.expire)
            self._pulse()

    # ── the turn's side ───────────────────────────────────────────────────────────────────────

    def publish(self, deltas: Sequence[Delta]) -> None:
        """More of the reply is certain."""
        if deltas:
            self._deltas.extend(deltas)
            self._pulse()

    def succeed(self, reply: Reply) -> None:
        """The turn is committed."""
        self._reply = reply
        self._pulse()

    def fail(self, error: Exception) -> None:
        """There will be no reply."""
        self._error = error
        self._pulse()

    def expire(self) -> None:
        """Give the turn up: sampling ends, and what nobody has taken stays undelivered."""
        self.expired = True
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(0.0)
        self._pulse()

    @contextlib.asynccontextmanager
    async def limited(self, seconds: float) -> AsyncIterator[None]:
        """Raise TimeoutError inside after that long, or as soon as the exchange has expired."""
        async with asyncio.timeout(0 if self.expired else seconds) as self._limit:
            try:
                yield
            finally:
                self._limit = None

    async def taken(self) -> bool:
        """Wait until somebody has got the reply (True) or it has expired, and is taken back.

        A client that is connected but does not read may never come for it: nobody waits for it.
        """
        while not self._taken:
            if self.expired:
                self._reply = None
                return False
            await self._changed.wait()
        return True

    def _pulse(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()
