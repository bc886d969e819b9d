"""A turn's task: render, sample, commit, and only then let the clients have the reply."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from turnwise import errors
from turnwise.domain.job import Job
from turnwise.domain.rollout import Delivery, FinishReason, Message, Policy, Rollout, Turn
from turnwise.gateway.chat import ChatRequest, Delta
from turnwise.gateway.exchange import Exchange
from turnwise.gateway.generation import listen
from turnwise.gateway.graph import path_sha256, turn_seed
from turnwise.gateway.record import Record, reply_to
from turnwise.gateway.turns import Call, Completion, build_prompt, read, room
from turnwise.ports import Clock, Renderer, Sampler, SampleRequest, Store

log = logging.getLogger(__name__)

#: Bodies above this are rendered in a thread: measured at 0.2 to 0.3 ms per KB, this is 4 ms.
RENDER_INLINE_BYTES = 16_384


@dataclass(slots=True, kw_only=True)
class Attached:
    """A job that agents can be answered for."""

    job: Job
    sampler: Sampler
    renderer: Renderer
    policy: Policy
    models: tuple[str, ...]  # names by which agents may ask for its model
    max_length: int = 0  # known once the sampler serves


class TurnRunner:
    """Runs turns; the store is told before any client."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def run(
        self,
        record: Record,
        exchange: Exchange,
        attached: Attached,
        request: ChatRequest,
        body_bytes: int,
    ) -> None:
        """One turn, from prompt to delivery. The only place where its errors end."""
        try:
            call = await self._prepare(record, exchange, attached, request, body_bytes)
            said = Completion(attached.renderer, call)
            try:
                await self._sample(record, exchange, attached, call, said)
                message, rest = await read(said)
            except Exception as error:
                await self._keep_undelivered(record, call, said, error)
                raise
            await self._deliver(record, exchange, call, said, message, rest)
        except errors.TurnwiseError as error:
            exchange.fail(error)
        except Exception as error:
            log.exception("a turn of rollout %s broke", record.rollout.rollout_id)
            exchange.fail(error)
        finally:
            record.end(exchange)

    async def _prepare(
        self,
        record: Record,
        exchange: Exchange,
        attached: Attached,
        request: ChatRequest,
        body_bytes: int,
    ) -> Call:
        if not attached.max_length:
            attached.max_length = (await attached.sampler.info()).max_length
        if body_bytes <= RENDER_INLINE_BYTES:
            prompt = build_prompt(record.graph, attached.renderer, request)
        else:
            prompt = await asyncio.to_thread(build_prompt, record.graph, attached.renderer, request)
        rollout, limits = record.rollout, attached.job.spec.rollout
        sampling = request.params(rollout.sampling, room=room(prompt, attached.max_length))
        async with self._in_time(record, exchange, attached):
            granted = await record.budget.hold(
                exchange.turn_id, sampling.max_tokens, limits.rollout_max_tokens
            )
        path = path_sha256(prompt.tokens)
        return Call(
            request=request,
            request_sha256=exchange.sha256,
            prompt=prompt,
            policy=rollout.policy or attached.policy,
            sampling=replace(sampling, max_tokens=granted),
            seed=turn_seed(_place(rollout), path, record.count(path), request.seed),
            started_at=exchange.created_at,
            turn_id=exchange.turn_id,
        )

    async def _sample(
        self,
        record: Record,
        exchange: Exchange,
        attached: Attached,
        call: Call,
        said: Completion,
    ) -> None:
        """Sample until the model or a stop string ends it. Raises what ended it before."""
        rollout = record.rollout
        ask = SampleRequest(
            request_id=call.turn_id,
            claimant=f"{rollout.job_id}/{rollout.purpose.value}",
            prompt=call.prompt.tokens,
            adapter_id=call.policy.adapter_id,
            sampling=call.sampling,
            seed=call.seed,
            stop_ids=attached.renderer.stop_ids,
            stream=said.is_streamed,
        )

        in_time = self._in_time(record, exchange, attached)
        await listen(attached.sampler, ask, said, exchange.publish, in_time)

    @contextlib.asynccontextmanager
    async def _in_time(
        self, record: Record, exchange: Exchange, attached: Attached
    ) -> AsyncIterator[None]:
        """Within the turn's and the rollout's time, or say which of them has passed."""
        rollout, limit_s = record.rollout, attached.job.spec.rollout.turn_timeout
        until = min(exchange.created_at + limit_s, rollout.deadline_at)
        try:
            async with exchange.limited(until - self._clock.now()):
                yield
        except TimeoutError:
            if exchange.expired:
                raise not_in_valid_status(rollout, "was closed during the call") from None
            if until == rollout.deadline_at:
                raise not_in_valid_status(rollout, "reached its deadline in the call") from None
            raise errors.TooSlow(
                f"the turn took longer than its limit of {limit_s:g} s; "
                "raise rollout.turn_timeout or lower max_tokens"
            ) from None

    async def _deliver(
        self,
        record: Record,
        exchange: Exchange,
        call: Call,
        said: Completion,
        message: Message,
        rest: Sequence[Delta],
    ) -> None:
        """Commit the turn, then let its clients have the reply; take it back if none comes."""
        turn = await self._commit(record, call, said, message, Delivery.DELIVERED)
        exchange.publish(rest)
        reply = reply_to(
            turn,
            message,
            model=call.request.model,
            logprobs=said.token_logprobs() if call.request.logprobs else None,
            raw_output=said.raw_output() if call.request.raw_output else None,
        )
        exchange.succeed(reply)
        if not await exchange.taken():
            account, rollout_id = record.rollout.account_id, record.rollout.rollout_id
            async with record.commits:
                await self._store.mark_undelivered(account, rollout_id, turn.turn_id)
                record.conceal(turn)
            raise not_in_valid_status(record.rollout, "was closed during the call")

    async def _keep_undelivered(
        self, record: Record, call: Call, said: Completion, error: Exception
    ) -> None:
        """Record what was sampled of a turn that did not get to its end, and that it timed out."""
        is_timed_out = isinstance(error, errors.TooSlow)
        if not (len(said.tokens) or is_timed_out):
            return
        said.finish_reason = FinishReason.TIMEOUT if is_timed_out else FinishReason.ABORT
        await self._commit(record, call, said, said.unread(), Delivery.UNDELIVERED)

    async def _commit(
        self, record: Record, call: Call, said: Completion, message: Message, delivery: Delivery
    ) -> Turn:
        rollout = record.rollout
        async with record.commits:
            nodes, turn = record.draft(
                call,
                said,
                message,
                delivery=delivery,
                ended_at=self._clock.now(),
            )
            try:
                await self._store.commit_turn(rollout.account_id, rollout.rollout_id, nodes, turn)
            except errors.Conflict as error:
                raise not_in_valid_status(rollout, "was closed during the call") from error
            record.add(nodes, turn)
        return turn


def _place(rollout: Rollout) -> tuple[int | str, ...]:
    """What distinguishes a rollout from all others of its job, in a repeat of the job too."""
    return (
        rollout.seed,
        rollout.purpose.value,
        rollout.step,
        rollout.row_index,
        rollout.slot,
        rollout.attempt,
    )


def not_in_valid_status(rollout: Rollout, what: str) -> errors.NotInValidStatus:
    """The refusal, in the words that agents look for."""
    which, status = rollout.rollout_id, rollout.status.value
    return errors.NotInValidStatus(
        f"Trajectory {which} is not in valid status ({status}): it {what}"
    )
