"""The gateway: `ports.Rollouts` for the loop, model calls and rewards for agents."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from turnwise import errors
from turnwise.domain.access import Action, Principal
from turnwise.domain.job import Job
from turnwise.domain.rollout import (
    MAX_REASON,
    Blame,
    Fault,
    Policy,
    Rollout,
    RolloutStatus,
    Trajectory,
)
from turnwise.gateway.chat import ChatRequest, Reply
from turnwise.gateway.exchange import Exchange
from turnwise.gateway.record import Record
from turnwise.gateway.runner import Attached, TurnRunner, not_in_valid_status
from turnwise.ports import Clock, NewId, Renderer, Sampler, Store

#: How long a turn whose client has gone waits for it to ask again. The openai client comes back
#: after 0.5 to 1 second, at most 8.
RETRY_GRACE_S = 8.0

_AGENT_ACTIONS = frozenset({Action.SAMPLE, Action.REPORT})


class Gateway:
    """One request in, one turn recorded, one reply out. It caches graphs and owns none."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        new_id: NewId,
        *,
        retry_grace_s: float = RETRY_GRACE_S,
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._runner = TurnRunner(store, clock)
        self._retry_grace_s = retry_grace_s
        self._attached: dict[str, Attached] = {}
        self._records: dict[str, Record] = {}  # open rollouts
        self._loading: dict[str, asyncio.Task[Record]] = {}
        self._turns: set[asyncio.Task[None]] = set()

    # ── jobs ──────────────────────────────────────────────────────────────────────────────────

    def attach(self, job: Job, sampler: Sampler, renderer: Renderer) -> None:
        """From now on the job's agents are answered, by the base until something is published.

        `job` is as it was before this start: rollouts of the incarnations that it has had by
        then will be superseded, so late calls of their agents are refused.
        """
        names = ("default", job.name, PurePath(job.spec.model).name)
        self._attached[job.job_id] = Attached(
            job=job,
            sampler=sampler,
            renderer=renderer,
            policy=Policy(),
            models=tuple(dict.fromkeys(names)),
        )

    def detach(self, job_id: str) -> None:
        """The job's loop has ended: give up its calls and forget its rollouts."""
        self._attached.pop(job_id, None)
        for record in [r for r in self._records.values() if r.rollout.job_id == job_id]:
            record.give_up()
            del self._records[record.rollout.rollout_id]

    def publish(self, job_id: str, policy: Policy) -> None:
        """From now on, unpinned turns of this job are sampled from `policy`."""
        self._job(job_id).policy = policy

    async def close(self) -> None:
        """Give up all calls; what was sampled is recorded first."""
        for record in self._records.values():
            record.give_up()
        await asyncio.gather(*self._turns, return_exceptions=True)

    # ── rollouts, as the loop sees them ───────────────────────────────────────────────────────

    async def open(self, rollouts: Sequence[Rollout]) -> None:
        """Record the rollouts as PENDING; from then on their agents are answered."""
        await self._store.open_rollouts(rollouts)
        for rollout in rollouts:
            self._records[rollout.rollout_id] = Record(Trajectory(rollout=rollout))

    async def closed(self, rollout_id: str) -> Trajectory:
        """Wait until the rollout is rewarded or failed; its full record."""
        record = await self._record(rollout_id)
        await record.closed.wait()
        return record.trajectory()

    async def fail(self, rollout_id: str, fault: Fault) -> None:
        """Close an open rollout as failed. No effect on one that has closed."""
        record = await self._record(rollout_id)
        async with record.moves:
            if record.rollout.status.is_open:
                await self._fail(record, fault)

    async def add_metrics(self, rollout_id: str, metrics: Mapping[str, float]) -> None:
        """Store what the agent measured, over what is there already."""
        known = await self.rollout(rollout_id)
        if metrics.items() <= known.metrics.items():  # it came with the reward already
            return
        record = await self._record(rollout_id)
        async with record.moves:
            status = record.rollout.status
            merged = {**record.rollout.metrics, **metrics}
            await self._move(record, (status,), status, metrics=merged)

    # ── who is asking ─────────────────────────────────────────────────────────────────────────

    async def rollout(self, rollout_id: str) -> Rollout:
        """A rollout of any account, for the doors. Raises `NotFound`."""
        record = self._records.get(rollout_id)
        return await self._find(rollout_id) if record is None else record.rollout

    async def job_of(self, rollout: Rollout) -> Job:
        """The rollout's job, attached or not."""
        attached = self._attached.get(rollout.job_id)
        if attached is not None:
            return attached.job
        return await self._store.job(rollout.account_id, rollout.job_id)

    async def agent(self, rollout_id: str, secret: str) -> Principal | None:
        """The principal of a rollout's own secret; None if it is not its secret."""
        rollout = await self.rollout(rollout_id)
        digest = hashlib.sha256(secret.encode()).hexdigest()
        if not hmac.compare_digest(digest, rollout.secret_sha256):
            return None
        return Principal(
            account_id=rollout.account_id,
            actions=_AGENT_ACTIONS,
            rollout_id=rollout_id,
            name=f"rollout {rollout_id}",
        )

    def models(self, principal: Principal, job_id: str) -> tuple[str, ...]:
        """Names by which the job's model may be asked for; none if it is not the caller's."""
        attached = self._attached.get(job_id)
        if attached is None or attached.job.account_id != principal.account_id:
            return ()
        is_allowed = principal.job_ids is None or job_id in principal.job_ids
        return attached.models if is_allowed else ()

    # ── model calls ───────────────────────────────────────────────────────────────────────────

    async def chat(
        self,
        principal: Principal,
        rollout_id: str,
        request: ChatRequest,
        *,
        body: bytes,
        retry_count: int = 0,
    ) -> Reply:
        """One turn. Cancel it when the client has gone before the reply could be sent.

        `body` is the request as it came and `retry_count` its `x-stainless-retry-count`: a retry
        gets the earlier attempt's turn, never a new sample.

        Raises `NotFound` (rollout, model), `Denied`, `NotInValidStatus`, `InvalidInput`,
        `PromptTooLong`, `LimitExceeded`, `TooSlow`, `Unavailable`.
        """
        exchange = await self.ask(
            principal, rollout_id, request, body=body, retry_count=retry_count
        )
        return await exchange.reply()

    async def ask(
        self,
        principal: Principal,
        rollout_id: str,
        request: ChatRequest,
        *,
        body: bytes,
        retry_count: int = 0,
    ) -> Exchange:
        """As `chat`, for a streamed reply: `events()` of what this returns.

        Raises what is wrong with the caller, the rollout or the model; the rest comes later.
        """
        record = await self._record_for(principal, Action.SAMPLE, rollout_id)
        self._check_can_sample(record)
        attached = self._job(record.rollout.job_id)
        if record.rollout.incarnation <= attached.job.incarnation:
            raise not_in_valid_status(record.rollout, "is of an earlier start of its job")
        if request.model not in attached.models:
            known = ", ".join(attached.models)
            raise errors.NotFound("model", request.model, remedy=f"known models: {known}")
        sha256 = hashlib.sha256(body).hexdigest()
        earlier = record.repeated(sha256) if retry_count > 0 else None
        if earlier is not None:
            return earlier
        exchange = Exchange(
            turn_id=self._new_id("turn"),
            sha256=sha256,
            created_at=self._clock.now(),
            grace_s=self._retry_grace_s,
        )
        record.begin(exchange)
        run = self._runner.run(record, exchange, attached, request, len(body))
        exchange.task = asyncio.create_task(run)
        self._turns.add(exchange.task)
        exchange.task.add_done_callback(self._turns.discard)
        return exchange

    def _check_can_sample(self, record: Record) -> None:
        rollout = record.rollout
        if rollout.status is not RolloutStatus.PENDING or record.is_settling:
            raise not_in_valid_status(rollout, "is closed to model calls")
        if self._clock.now() >= rollout.deadline_at:
            raise not_in_valid_status(rollout, "is past its deadline")

    # ── completion and rewards ────────────────────────────────────────────────────────────────

    async def complete_rollout(self, principal: Principal, rollout_id: str, status: str) -> None:
        """The agent has finished: "ready" for its reward, or "failed". Repeats are fine.

        Raises `InvalidInput` for another word, `Conflict` from another status.
        """
        if status not in ("ready", "failed"):
            raise errors.InvalidInput("Status", status, "must be 'ready' or 'failed'")
        record = await self._record_for(principal, Action.REPORT, rollout_id)
        async with record.moves:
            at = record.rollout.status
            if at in _COMPLETED[status]:
                return
            if at is not RolloutStatus.PENDING:
                raise errors.Conflict(
                    f"Cannot transition trajectory {rollout_id} from {at.value} to {status.upper()}"
                )
            if status == "failed":
                await self._fail(record, _AGENT_FAILED)
            else:
                await self._settle(record)
                await self._move(record, (RolloutStatus.PENDING,), RolloutStatus.READY)

    async def update_reward(
        self,
        principal: Principal,
        rollout_id: str,
        rewards: Sequence[float],
        *,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Score a completed rollout: one number, or one per delivered turn. Repeats are fine.

        A failed rollout keeps its status. Raises `InvalidInput` for numbers that are not finite
        or a wrong count, `NotInValidStatus` while the agent still runs, `Conflict` for a second,
        different score.
        """
        record = await self._record_for(principal, Action.REPORT, rollout_id)
        async with record.moves:
            if record.rollout.status is RolloutStatus.PENDING:
                raise not_in_valid_status(record.rollout, "has not been completed")
            await self._score(record, rewards, metrics or {})

    async def finish(
        self,
        principal: Principal,
        rollout_id: str,
        rewards: Sequence[float],
        *,
        metrics: Mapping[str, float] | None = None,
        reason: str = "",
    ) -> None:
        """`complete_rollout` and `update_reward` in one; raises what they raise.

        `reason` is what the evaluator says of the score; what is too long of it is cut.
        """
        record = await self._record_for(principal, Action.REPORT, rollout_id)
        async with record.moves:
            # First: it takes back turns that nobody has come for, which no reward is due for.
            if record.rollout.status is RolloutStatus.PENDING:
                await self._settle(record)
            try:
                await self._score(record, rewards, metrics or {}, reason)
            finally:
                record.is_settling = False

    async def _score(
        self,
        record: Record,
        rewards: Sequence[float],
        metrics: Mapping[str, float],
        reason: str = "",
    ) -> None:
        rollout, given = record.rollout, tuple(float(reward) for reward in rewards)
        _check_rewards(given, record.delivered_turns)
        _check_metrics(metrics)
        if rollout.rewards is not None:
            if rollout.rewards != given:
                raise errors.Conflict(
                    f"trajectory {rollout.rollout_id} already has the rewards "
                    f"{list(rollout.rewards)}"
                )
            told = {**rollout.metrics, **metrics}
            if told != rollout.metrics:
                await self._move(record, (rollout.status,), rollout.status, metrics=told)
            return
        is_failed = rollout.status is RolloutStatus.FAILED
        await self._move(
            record,
            (rollout.status,),
            RolloutStatus.FAILED if is_failed else RolloutStatus.REWARDED,
            rewards=given,
            metrics={**rollout.metrics, **metrics},
            reason=_cut(reason) or None,
            ended_at=rollout.ended_at if is_failed else self._clock.now(),
        )

    async def _fail(self, record: Record, fault: Fault) -> None:
        await self._settle(record)
        expected = (RolloutStatus.PENDING, RolloutStatus.READY)
        now = self._clock.now()
        await self._move(record, expected, RolloutStatus.FAILED, fault=fault, ended_at=now)

    async def _settle(self, record: Record) -> None:
        """Let no call of this rollout outlive its change of status."""
        record.is_settling = True
        try:
            await record.settle()
        except asyncio.CancelledError:
            record.is_settling = False
            raise

    async def _move(
        self,
        record: Record,
        expected: Sequence[RolloutStatus],
        status: RolloutStatus,
        *,
        rewards: tuple[float, ...] | None = None,
        metrics: Mapping[str, float] | None = None,
        fault: Fault | None = None,
        ended_at: float | None = None,
        reason: str | None = None,
    ) -> None:
        """Change the stored rollout; if somebody else has, take over what they made of it."""
        rollout = record.rollout
        account, rollout_id = rollout.account_id, rollout.rollout_id
        moving = asyncio.ensure_future(
            self._store.move_rollout(
                account,
                rollout_id,
                expected,
                status=status,
                rewards=rewards,
                metrics=metrics,
                fault=fault,
                ended_at=ended_at,
                reason=reason,
            )
        )
        try:
            record.rollout = await asyncio.shield(moving)
        except asyncio.CancelledError:
            # The write goes on; nobody may look at the record before it says the same.
            record.rollout = await moving
            raise
        except errors.Conflict:
            record.rollout = await self._store.rollout(rollout_id, account)
            raise
        finally:
            record.is_settling = False
            if not record.rollout.status.is_open:
                self._records.pop(rollout_id, None)
                record.closed.set()

    # ── the cache ─────────────────────────────────────────────────────────────────────────────

    async def _record_for(self, principal: Principal, action: Action, rollout_id: str) -> Record:
        """The record, if the caller may do that to it; other accounts' rollouts do not exist."""
        record = await self._record(rollout_id)
        rollout = record.rollout
        if rollout.account_id != principal.account_id:
            raise errors.NotFound("trajectory", rollout_id)
        principal.require(action, job_id=rollout.job_id, rollout_id=rollout_id)
        return record

    async def _record(self, rollout_id: str) -> Record:
        if (record := self._records.get(rollout_id)) is not None:
            return record
        # One load for all who ask at once: two records of one rollout would number turns twice.
        if rollout_id not in self._loading:
            task = asyncio.create_task(self._load(rollout_id))
            self._loading[rollout_id] = task
            task.add_done_callback(lambda _: self._loading.pop(rollout_id, None))
        return await asyncio.shield(self._loading[rollout_id])

    async def _load(self, rollout_id: str) -> Record:
        rollout = await self._find(rollout_id)
        record = Record(await self._store.trajectory(rollout.account_id, rollout_id))
        if record.rollout.status.is_open:
            self._records[rollout_id] = record
        return record

    async def _find(self, rollout_id: str) -> Rollout:
        try:
            return await self._store.rollout(rollout_id)
        except errors.NotFound:
            raise errors.NotFound("trajectory", rollout_id) from None

    def _job(self, job_id: str) -> Attached:
        attached = self._attached.get(job_id)
        if attached is None:
            raise errors.Unavailable(
                f"job {job_id!r} is not running on this server now", retry_after_s=1.0
            )
        return attached


#: Statuses in which "ready" or "failed" has been said already.
_COMPLETED = {
    "ready": (RolloutStatus.READY, RolloutStatus.REWARDED),
    "failed": (RolloutStatus.FAILED,),
}

_AGENT_FAILED = Fault(
    blame=Blame.AGENT, code="agent_failed", message="The agent signaled that the trajectory failed"
)


def _check_rewards(rewards: Sequence[float], turns: int) -> None:
    for reward in rewards:
        if not math.isfinite(reward):
            raise errors.InvalidInput("Rewards", reward, "must be a finite number")
    if len(rewards) not in (1, turns) or not rewards:
        raise errors.InvalidInput(
            "Rewards",
            list(rewards),
            f"has {len(rewards)} values, but the rollout has {turns} delivered turns",
            remedy="send one value for the rollout or one per turn",
        )


def _cut(reason: str) -> str:
    return reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 1] + "…"


def _check_metrics(metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise errors.InvalidInput(f"Metrics.{name}", value, "must be a finite number")
