"""The audit trail of every account: recording, searching, verifying, retention.

A management call's record is committed before its answer leaves. Data events wait up to `FLUSH_S`
and are committed together, also when the server stops; a server that is killed loses what waited.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from turnwise import errors
from turnwise.control.audit.record import Witnessed, draft
from turnwise.control.audit.selectors import Facets
from turnwise.control.audit.verify import MIN_RETENTION_S, Verdict, Verifier
from turnwise.domain.access import Account, Action, Principal
from turnwise.domain.audit import AuditDraft, AuditQuery, AuditRecord, Sealer
from turnwise.ports import AuditStore, Clock

log = logging.getLogger(__name__)

#: Longest time that a data event waits for others to be committed with, seconds.
FLUSH_S = 0.5
#: Records that wait while the store takes none; older ones are given up beyond that.
MAX_WAITING = 50_000
#: Between two looks for segments whose time is over.
RETAIN_EVERY_S = 3600.0
#: Records are read in pages of this many.
PAGE = 1000

DAY_S = 24 * 3600.0


class Accounts(Protocol):
    """Whose trails there are."""

    async def accounts(self) -> list[Account]:
        """All accounts."""
        ...


class AuditTrail:
    """Records calls, and reads what was recorded."""

    def __init__(
        self,
        store: AuditStore,
        accounts: Accounts,
        sealer: Sealer,
        clock: Clock,
        *,
        retention_days: float = 90,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._sealer = sealer
        self._clock = clock
        self._retention_s = max(retention_days * DAY_S, MIN_RETENTION_S)
        self._seen: list[Witnessed] = []  # data events, not yet drafted
        self._waiting: deque[tuple[str, AuditDraft]] = deque()
        self._flushing = asyncio.Lock()
        self._arrived = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._appended: list[Callable[[str], None]] = []
        self._wants: Callable[[str, Facets], bool] = lambda account_id, facets: False
        #: Whether some trail selects data events: while it does not, a call costs this look.
        self.selects_data = False

    def start(self) -> None:
        """Begin to commit data events and to drop what is too old."""
        for loop in (self._flush_waiting(), self._retain()):
            self._tasks.append(asyncio.create_task(loop))

    async def close(self) -> None:
        """Commit what waits."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.flush()

    def on_append(self, told: Callable[[str], None]) -> None:
        """Have `told` called with the account after each commit."""
        self._appended.append(told)

    def select_data(self, wants: Callable[[str, Facets], bool] | None) -> None:
        """Which data events of an account to record; None: none at all."""
        self.selects_data = wants is not None
        if wants is not None:
            self._wants = wants

    # ── recording ─────────────────────────────────────────────────────────────────────────────

    async def record(self, seen: Witnessed) -> None:
        """Keep a management call's record; it is committed on return.

        Raises what the store raises; the record then waits, to be kept when there is room again.
        """
        made = draft(seen)
        try:
            await self._store.append_audit(seen.account_id, [made], self._sealer)
        except errors.TurnwiseError:
            self._wait(seen.account_id, made)
            raise
        self._tell(seen.account_id)

    def record_soon(self, seen: Witnessed) -> None:
        """Keep a data event's record, with others, if some trail of the account selects it."""
        if self.selects_data and self._wants(seen.account_id, Facets.seen(seen)):
            self._seen.append(seen)  # what remains to be done is not the caller's to wait for
            self._arrived.set()

    def _wait(self, account_id: str, made: AuditDraft) -> None:
        if len(self._waiting) >= MAX_WAITING:
            _, lost = self._waiting.popleft()
            log.error("audit record %s %s is lost: the store takes none", lost.name, lost.event_id)
        self._waiting.append((account_id, made))
        self._arrived.set()

    async def _flush_waiting(self) -> None:
        while True:
            await self._arrived.wait()
            await self._clock.sleep(FLUSH_S)
            self._arrived.clear()
            try:
                await self.flush()
            except errors.TurnwiseError as error:
                log.error("audit records wait: %s", error)
                self._arrived.set()  # again after a pause

    async def flush(self) -> None:
        """Commit what waits, by account; all that was there is committed on return."""
        async with self._flushing:
            await self._draft_seen()
            while self._waiting:
                await self._commit_next()

    async def _draft_seen(self) -> None:
        seen, self._seen = self._seen, []
        if not seen:
            return
        try:
            drafts = await asyncio.to_thread(lambda: [draft(each) for each in seen])
        except BaseException:  # cancelled: they are drafted by the next flush
            self._seen[:0] = seen
            raise
        for each, made in zip(seen, drafts, strict=True):
            self._wait(each.account_id, made)

    async def _commit_next(self) -> None:
        """The records of one account; they wait on where the store refuses them."""
        account_id = self._waiting[0][0]
        batch = [made for whose, made in self._waiting if whose == account_id]
        self._waiting = deque(each for each in self._waiting if each[0] != account_id)
        try:
            await asyncio.shield(self._store.append_audit(account_id, batch, self._sealer))
        except errors.TurnwiseError:
            self._waiting.extendleft((account_id, made) for made in reversed(batch))
            raise
        self._tell(account_id)

    def _tell(self, account_id: str) -> None:
        for told in self._appended:
            told(account_id)

    # ── reading ───────────────────────────────────────────────────────────────────────────────

    async def search(self, principal: Principal, query: AuditQuery) -> list[AuditRecord]:
        """A page of the caller's account's records."""
        _require(principal)
        await self.flush()
        return await self._store.audit_records(principal.account_id, query)

    async def last_seq(self, account_id: str) -> int:
        """The number of an account's newest record; what waits is committed first."""
        await self.flush()
        return (await self._store.audit_head(account_id)).last_seq

    async def after(self, account_id: str, seq: int, through: int | None) -> list[AuditRecord]:
        """A page of records past `seq`, oldest first, up to `through`; for delivery."""
        query = AuditQuery(after=seq, newest_first=False, limit=PAGE)
        if through is not None:
            query = AuditQuery(after=seq, before=through + 1, newest_first=False, limit=PAGE)
        return await self._store.audit_records(account_id, query)

    async def verify(self, principal: Principal) -> Verdict:
        """Read the whole trail of the caller's account and check every digest."""
        _require(principal)
        await self.flush()
        account_id = principal.account_id
        # The head first: records appended meanwhile are past it and not looked at.
        head = await self._store.audit_head(account_id)
        segments = [
            each
            for each in await self._store.audit_segments(account_id)
            if each.last_seq < head.open_seq
        ]
        verifier = Verifier(head, segments, self._sealer, self._clock.now())
        async for page in self._pages(account_id, head.last_seq):
            await asyncio.to_thread(verifier.take, page)
        return verifier.verdict()

    async def _pages(self, account_id: str, last: int) -> AsyncIterator[list[AuditRecord]]:
        seq = 0
        while page := await self.after(account_id, seq, last):
            seq = page[-1].seq
            yield page

    # ── retention ─────────────────────────────────────────────────────────────────────────────

    async def retain(self) -> None:
        """Drop the segments whose time is over."""
        before = self._clock.now() - self._retention_s
        for account in await self._accounts.accounts():
            dropped = await self._store.drop_audit(account.account_id, before)
            if dropped:
                log.info("audit trail of %s: %d segments dropped", account.slug, dropped)

    async def _retain(self) -> None:
        while True:
            with contextlib.suppress(errors.TurnwiseError):  # a full disk: again in an hour
                await self.retain()
            await self._clock.sleep(RETAIN_EVERY_S)


def _require(principal: Principal) -> None:
    principal.require(Action.READ)
    if principal.job_ids is not None or principal.rollout_id is not None:
        raise errors.Denied("this key is for certain jobs; it may not read the audit trail")
