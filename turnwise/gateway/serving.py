"""Model calls outside any rollout: a registered model or a base model answers.

A model is opened (its adapter loaded into an engine of its base) when it is first asked for, and
given up when nobody has asked for it for a while or others are wanted more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from turnwise import errors
from turnwise.domain.rollout import FinishReason, Floats, Message, Policy, SamplingParams, Tokens
from turnwise.gateway.chat import ChatRequest, Reply
from turnwise.gateway.exchange import Exchange
from turnwise.gateway.generation import listen
from turnwise.gateway.graph import Graph, path_sha256, turn_seed
from turnwise.gateway.turns import Call, Completion, build_prompt, read, room
from turnwise.ports import (
    Clock,
    ModelPackage,
    NewId,
    Renderer,
    Sampler,
    SampleRequest,
    ServedModel,
)

log = logging.getLogger(__name__)

#: Longest sampling of one reply: as long as the openai client waits by default.
CALL_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """A model, loaded. Closing the sampler gives the adapter up, if it has one."""

    sampler: Sampler
    renderer: Renderer
    adapter_id: str | None
    max_length: int  # prompt + completion, tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A call whose reply is complete, token for token, before its client has it."""

    request: ChatRequest
    reply: Reply
    started_at: float
    prompt: Tokens  # [P]
    completion: Tokens  # [C]
    logprobs: Floats  # [C]


#: Told of a call before its reply leaves; what it raises is what the caller gets instead.
Record = Callable[[Answered], Awaitable[None]]


class _Hosted:
    """A model that is being opened, is in use, or was lately."""

    def __init__(self, opening: asyncio.Task[OpenModel]) -> None:
        self.opening = opening
        self.calls = 0
        self.timer: asyncio.TimerHandle | None = None
        self.watch: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        return not self.calls and self.opening.done()

    def keep(self) -> None:
        """It is wanted again."""
        if self.timer is not None:
            self.timer.cancel()

    async def close(self) -> None:
        self.keep()
        self.opening.cancel()
        if self.watch is not None:
            self.watch.cancel()
        with contextlib.suppress(asyncio.CancelledError, errors.TurnwiseError):
            await (await self.opening).sampler.close()


class Serving:
    """Answers outside rollouts; at most `max_models` stay loaded without being asked."""

    def __init__(
        self,
        open_model: Callable[[ServedModel], Awaitable[OpenModel]],
        clock: Clock,
        new_id: NewId,
        *,
        idle_s: float,
        max_models: int,
    ) -> None:
        """`open_model` raises what a caller should read when the model cannot be served."""
        self._open_model = open_model
        self._clock = clock
        self._new_id = new_id
        self._idle_s = idle_s
        self._max_models = max_models
        self._hosted: dict[str, _Hosted] = {}  # by `_key`, the one asked last at the end
        self._running: set[Exchange] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    def ask(
        self,
        account_id: str,
        model: ServedModel,
        request: ChatRequest,
        record: Record | None = None,
    ) -> Exchange:
        """Start a call; what it gives is the reply or what went wrong.

        `record`, where given, is told of the call before its reply leaves.

        `PromptTooLong` and `InvalidInput` for the request, `LimitExceeded` when the engine's queue
        is full, `Unavailable` when the engine has died (the next call starts another), `TooSlow`,
        `Corrupted` or `NotFound` for the model's files. Its clients gone, it ends.
        """
        exchange = Exchange(
            turn_id=self._new_id("chat"), sha256="", created_at=self._clock.now(), grace_s=0.0
        )
        self._running.add(exchange)
        exchange.task = self._spawn(self._answer(account_id, model, request, exchange, record))
        return exchange

    @property
    def loaded(self) -> tuple[str, ...]:
        """The models that are held, the one asked for last at the end.

        A registered one by package id, a base model by its folder.
        """
        return tuple(self._hosted)

    async def close(self) -> None:
        """End the calls and give every model up."""
        self._is_closed = True
        for exchange in self._running:
            exchange.fail(_going_down())
            exchange.expire()
        for key in self.loaded:
            self._give_up(key, self._hosted[key])
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ── one call ──────────────────────────────────────────────────────────────────────────────

    async def _answer(
        self,
        account_id: str,
        model: ServedModel,
        request: ChatRequest,
        exchange: Exchange,
        record: Record | None,
    ) -> None:
        """One reply, from prompt to message. The only place where its errors end."""
        try:
            async with self._using(model) as opened:
                call = await self._prepare(opened, request, exchange)
                said = Completion(opened.renderer, call)
                await self._sample(f"serving/{account_id}", opened, call, said, exchange)
                message, rest = await read(said)
            reply = self._reply(call, said, message)
            if record is not None:
                await record(_answered(call, said, reply))
            exchange.publish(rest)
            exchange.succeed(reply)
        except errors.ProcessDied:
            exchange.fail(_engine_gone(model))
        except errors.TurnwiseError as error:
            exchange.fail(error)
        except Exception as error:
            log.exception("a call of model %s broke", model.name)
            exchange.fail(error)
        finally:
            self._running.discard(exchange)

    async def _prepare(self, model: OpenModel, request: ChatRequest, exchange: Exchange) -> Call:
        prompt = await asyncio.to_thread(build_prompt, Graph(), model.renderer, request)
        left = room(prompt, model.max_length)
        # The same seed gives the same reply; without one, no two calls are alike.
        place = ("serving", exchange.turn_id if request.seed is None else "")
        return Call(
            turn_id=exchange.turn_id,
            request=request,
            request_sha256="",
            prompt=prompt,
            policy=Policy(adapter_id=model.adapter_id),
            sampling=request.params(SamplingParams(max_tokens=left), room=left),
            seed=turn_seed(place, path_sha256(prompt.tokens), 0, request.seed),
            started_at=exchange.created_at,
        )

    async def _sample(
        self,
        claimant: str,
        model: OpenModel,
        call: Call,
        said: Completion,
        exchange: Exchange,
    ) -> None:
        ask = SampleRequest(
            request_id=call.turn_id,
            claimant=claimant,
            prompt=call.prompt.tokens,
            adapter_id=call.policy.adapter_id,
            sampling=call.sampling,
            seed=call.seed,
            stop_ids=model.renderer.stop_ids,
            admitted=False,
            stream=said.is_streamed,
        )
        try:
            in_time = exchange.limited(CALL_TIMEOUT_S)
            await listen(model.sampler, ask, said, exchange.publish, in_time)
        except TimeoutError:
            if exchange.expired:  # nobody is left to read this
                raise errors.Unavailable("its client has gone") from None
            raise errors.TooSlow(
                f"the reply took longer than {CALL_TIMEOUT_S:g} s; lower max_tokens"
            ) from None

    def _reply(self, call: Call, said: Completion, message: Message) -> Reply:
        return Reply(
            turn_id=call.turn_id,
            model=call.request.model,
            created_at=self._clock.now(),
            message=message,
            finish_reason=said.finish_reason or FinishReason.STOP,
            prompt_tokens=len(call.prompt.tokens),
            completion_tokens=len(said.tokens),
            cached_tokens=said.cached_tokens,
            logprobs=said.token_logprobs() if call.request.logprobs else None,
        )

    # ── which models are loaded ───────────────────────────────────────────────────────────────

    @contextlib.asynccontextmanager
    async def _using(self, model: ServedModel) -> AsyncIterator[OpenModel]:
        """The model, opened if need be; it stays for `idle_s` after its last use."""
        if self._is_closed:
            raise _going_down()
        key = _key(model)
        hosted = self._hosted.pop(key, None)
        if hosted is None:
            hosted = _Hosted(self._spawn(self._open(model)))
        self._hosted[key] = hosted
        hosted.keep()
        hosted.calls += 1
        try:
            # Shielded: whoever leaves does not end the opening for the others.
            yield await asyncio.shield(hosted.opening)
        finally:
            hosted.calls -= 1
            if not hosted.calls and self._hosted.get(key) is hosted:
                loop = asyncio.get_running_loop()
                hosted.timer = loop.call_later(self._idle_s, self._give_up, key, hosted)
                self._trim()

    async def _open(self, model: ServedModel) -> OpenModel:
        key = _key(model)
        try:
            opened = await self._open_model(model)
        except BaseException:
            self._hosted.pop(key, None)
            raise
        hosted = self._hosted[key]
        hosted.watch = self._spawn(self._watch(key, hosted, opened.sampler))
        return opened

    async def _watch(self, key: str, hosted: _Hosted, sampler: Sampler) -> None:
        """Forget a model whose engine has died, so that the next call opens it anew."""
        await sampler.lost()
        self._give_up(key, hosted)

    def _trim(self) -> None:
        """Give up the models that have waited longest for a call, down to `max_models`."""
        idle = [(key, hosted) for key, hosted in self._hosted.items() if hosted.is_idle]
        surplus = max(0, len(self._hosted) - self._max_models)
        for key, hosted in idle[:surplus]:
            self._give_up(key, hosted)

    def _give_up(self, key: str, hosted: _Hosted) -> None:
        if self._hosted.get(key) is hosted:
            del self._hosted[key]
            self._spawn(hosted.close())

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _going_down() -> errors.Unavailable:
    return errors.Unavailable("the server is going down", retry_after_s=1.0)


def _engine_gone(model: ServedModel) -> errors.Unavailable:
    return errors.Unavailable(
        f"the engine of {model.name} has ended; the next call starts another", retry_after_s=1.0
    )


def _key(model: ServedModel) -> str:
    """What tells one loaded model from another."""
    return model.package_id if isinstance(model, ModelPackage) else model.folder


def _answered(call: Call, said: Completion, reply: Reply) -> Answered:
    return Answered(
        request=call.request,
        reply=reply,
        started_at=call.started_at,
        prompt=call.prompt.tokens,
        completion=said.tokens,
        logprobs=said.logprobs,
    )
