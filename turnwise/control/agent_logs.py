"""The logs of registered agents: what they received, answered, failed with and printed.

A job's loop notes an entry without waiting; entries are written together a moment later. Secrets
are taken out first, texts are cut, and each agent keeps so many entries.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from turnwise import errors
from turnwise.domain.agent import AgentLogEntry, AgentLogKind
from turnwise.ports import AgentLog, AgentLogStore, Clock

log = logging.getLogger(__name__)

#: Longest text of an entry, characters.
MAX_TEXT = 16 * 1024

#: How long entries wait for company before they are written.
WRITE_EVERY_S = 0.2

#: Entries that wait while the database is slow; what comes on top is dropped, and counted.
MAX_WAITING = 20_000

_ROLLOUT_SECRET = re.compile(r"(rollout_[a-z]+)\.[A-Za-z]{8,}")
_TOKEN = re.compile(r"(sagemaker-api-key-|\btw_)[A-Za-z0-9+/=_-]{16,}")


class AgentLogs:
    """Reads and writes them. Used from one event loop."""

    def __init__(self, store: AgentLogStore, clock: Clock, *, keep: int) -> None:
        """`keep` is how many entries of an agent stay."""
        self._store = store
        self._clock = clock
        self._keep = keep
        self._waiting: list[AgentLogEntry] = []
        self._dropped = 0
        self._since_trim: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._writing: asyncio.Task[None] | None = None
        self._one_writer = asyncio.Lock()

    def of(self, account_id: str, agent: str) -> AgentLog:
        """Where the entries of one agent are noted."""
        return _One(logs=self, account_id=account_id, agent=agent)

    async def entries(
        self,
        account_id: str,
        agent_name: str,
        after: int = 0,
        limit: int = 1000,
        since: float | None = None,
        until: float | None = None,
    ) -> list[AgentLogEntry]:
        """Entries with seq > `after`, in order; of times from `since` and before `until`."""
        await self.flush()
        return await self._store.agent_log(
            account_id, agent_name, after=after, limit=limit, since=since, until=until
        )

    async def append(self, entries: Sequence[AgentLogEntry]) -> None:
        """Keep entries; they are there once it returns."""
        self._note([_clean(entry) for entry in entries])
        await self.flush()

    async def print_lines(self, account_id: str, agent: str, lines: Sequence[str]) -> None:
        """Keep lines that an agent has printed."""
        now = self._clock.now()
        await self.append(
            [
                AgentLogEntry(
                    account_id=account_id, agent=agent, at=now, kind=AgentLogKind.PRINTED, text=line
                )
                for line in lines
            ]
        )

    async def forget(self, account_id: str, agent: str) -> None:
        """Remove an agent's log."""
        await self.flush()
        self._since_trim.pop((account_id, agent), None)
        await self._store.trim_agent_log(account_id, agent, keep=0)

    async def flush(self) -> None:
        """Write what waits."""
        async with self._one_writer:
            batch, self._waiting = self._waiting, []
            dropped, self._dropped = self._dropped, 0
            if dropped:
                log.warning("%d entries of agents' logs were dropped: too many at once", dropped)
            if not batch:
                return
            await self._store.append_agent_log(batch)
            for entry in batch:
                self._since_trim[entry.account_id, entry.agent] += 1
            await self._trim()

    async def close(self) -> None:
        """Write what waits, and write nothing by itself any more."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        await self.flush()

    async def _trim(self) -> None:
        """Drop the oldest, once a tenth more than what stays has come."""
        for (account_id, agent), count in list(self._since_trim.items()):
            if count >= max(1, self._keep // 10):
                del self._since_trim[account_id, agent]
                await self._store.trim_agent_log(account_id, agent, keep=self._keep)

    def note(self, entry: AgentLogEntry) -> None:
        """Keep an entry soon."""
        self._note([_clean(entry)])
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_soon(), name="agents' logs")

    def _note(self, entries: Sequence[AgentLogEntry]) -> None:
        room = max(0, MAX_WAITING - len(self._waiting))
        self._waiting += entries[:room]
        self._dropped += len(entries[room:])

    async def _write_soon(self) -> None:
        while self._waiting:
            await asyncio.sleep(WRITE_EVERY_S)
            try:
                await self.flush()
            except errors.TurnwiseError as error:  # a full disk must not end a job
                log.error("agents' logs could not be written: %s", error)

    def now(self) -> float:
        """The time that an entry gets."""
        return self._clock.now()


@dataclass(frozen=True, slots=True, kw_only=True)
class _One:
    """One agent's log, as whoever calls the agent sees it."""

    logs: AgentLogs
    account_id: str
    agent: str

    def note(
        self, kind: AgentLogKind, text: str, *, rollout_id: str = "", job_id: str = ""
    ) -> None:
        """Keep an entry soon."""
        self.logs.note(
            AgentLogEntry(
                account_id=self.account_id,
                agent=self.agent,
                at=self.logs.now(),
                kind=kind,
                text=text,
                rollout_id=rollout_id,
                job_id=job_id,
            )
        )


def redacted(text: str) -> str:
    """Text without the secrets of rollouts, and without keys that are sent as bearer.

    >>> redacted("POST http://127.0.0.1:8420/r/rollout_abc.ZyxWvutSrq/v1 failed")
    'POST http://127.0.0.1:8420/r/rollout_abc.***/v1 failed'
    """
    return _TOKEN.sub(r"\1***", _ROLLOUT_SECRET.sub(r"\1.***", text))


def _clean(entry: AgentLogEntry) -> AgentLogEntry:
    text = redacted(entry.text.replace("\x00", "\N{REPLACEMENT CHARACTER}"))
    text = text.encode("utf-8", "replace").decode()
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}... ({len(text) - MAX_TEXT} more characters)"
    return replace(entry, text=text)
