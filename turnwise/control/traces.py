"""What remote rollouts leave at the tracing gateway: model calls and log entries, by their tags.

An account sees its own. Both are kept for so many days, and then dropped in the background.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from turnwise import errors
from turnwise.domain.access import Action, Principal
from turnwise.domain.traced import TracedCall, TracedLog, TraceQuery
from turnwise.ports import Clock, TraceStore

log = logging.getLogger(__name__)

MAX_TAGS = 32
MAX_TAG = 256  # characters; longer ones would not fit a database's index
MAX_PROGRAM = 128
MAX_SEVERITY = 32
#: Longest message of an entry, characters; the rest is cut, as the end of a program's log is.
MAX_MESSAGE = 16 * 1024
#: Most of what a page may hold.
MAX_LIMIT = 1000

DAY_S = 24 * 3600.0
SWEEP_EVERY_S = 3600.0
#: Dropped in one transaction: others that write wait no longer than that.
SWEEP_BATCH = 500


class Traces:
    """Reads and writes them. Each call requires a principal."""

    def __init__(self, store: TraceStore, clock: Clock, *, retention_days: int) -> None:
        """What is older than `retention_days` is dropped, up to an hour later."""
        self._store = store
        self._clock = clock
        self._retention_s = retention_days * DAY_S
        self._sweeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to drop what is too old."""
        self._sweeping = asyncio.create_task(self._sweep_forever(), name="traces")

    async def close(self) -> None:
        """Stop dropping."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)

    async def keep_call(self, principal: Principal, call: TracedCall) -> None:
        """Keep a call; it is there once this returns. Raises `Denied`, `InvalidInput`."""
        principal.require(Action.SAMPLE)
        await self._store.add_traced(replace(call, account_id=principal.account_id))

    async def keep_log(self, principal: Principal, entry: TracedLog) -> None:
        """Keep an entry, with the time that it has come; it is there once this returns.

        Raises `Denied`, and `InvalidInput` for tags that are none or words that are too long.
        """
        principal.require(Action.REPORT)
        if not entry.tags:
            raise errors.InvalidInput(
                "tags", [], "holds no tag", remedy="send one at least, as 'rollout_id:ID'"
            )
        check_tags(entry.tags)
        _check_word("program", entry.program, MAX_PROGRAM)
        _check_word("severity", entry.severity, MAX_SEVERITY)
        kept = replace(
            entry,
            account_id=principal.account_id,
            at=self._clock.now(),
            message=_cut(entry.message.replace("\x00", "\N{REPLACEMENT CHARACTER}")),
        )
        await self._store.add_traced(kept)

    async def calls(self, principal: Principal, query: TraceQuery) -> list[TracedCall]:
        """A page, the newest first."""
        _check_query(principal, query)
        return await self._store.traced_calls(principal.account_id, query)

    async def logs(self, principal: Principal, query: TraceQuery) -> list[TracedLog]:
        """A page, the newest first."""
        _check_query(principal, query)
        return await self._store.traced_logs(principal.account_id, query)

    async def ended(self, principal: Principal, rollout_id: str) -> TracedLog | None:
        """The newest entry that says how a rollout has ended; None while none does."""
        query = TraceQuery(tags=(f"rollout_id:{rollout_id}",), ended=True, limit=1)
        return next(iter(await self.logs(principal, query)), None)

    async def sweep(self) -> None:
        """Drop what is too old."""
        before = self._clock.now() - self._retention_s
        while await self._store.drop_traces(before, limit=SWEEP_BATCH) >= SWEEP_BATCH:
            pass

    async def _sweep_forever(self) -> None:
        while True:
            try:
                await self.sweep()
            except errors.TurnwiseError as error:  # a full disk: again in an hour
                log.error("traces could not be dropped: %s", error)
            await self._clock.sleep(SWEEP_EVERY_S)


def check_tags(tags: Sequence[str]) -> None:
    """Raise `InvalidInput` for too many of them, an empty one, one that is too long."""
    if len(tags) > MAX_TAGS:
        raise errors.InvalidInput("tags", len(tags), f"are more than {MAX_TAGS}")
    for tag in tags:
        _check_word("tags", tag, MAX_TAG)


def _check_word(field: str, word: str, longest: int) -> None:
    if not 1 <= len(word) <= longest or "\x00" in word:
        raise errors.InvalidInput(
            field, word, f"is not of 1 to {longest} characters", remedy="NUL is none of them"
        )


def _check_query(principal: Principal, query: TraceQuery) -> None:
    principal.require_all(Action.READ, "traces")
    check_tags(query.tags)
    if not 1 <= query.limit <= MAX_LIMIT:
        raise errors.InvalidInput("limit", query.limit, f"must be from 1 to {MAX_LIMIT}")


def _cut(message: str) -> str:
    if len(message) <= MAX_MESSAGE:
        return message
    return f"{message[:MAX_MESSAGE]}... ({len(message) - MAX_MESSAGE} more characters)"
