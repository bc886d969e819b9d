"""Model calls outside any rollout: a registered model answers, and nothing is recorded.

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
from turnwise.domain.rollout import FinishReason, Message, Policy, SamplingParams
from turnwise.gateway.chat import ChatRequest, Reply
from turnwise.gateway.exchange import Exchange
from turnwise.gateway.generation import listen
from turnwise.gateway.graph import Graph, path_sha256, turn_seed
from turnwise.gateway.turns import Call, Completion, build_prompt, read, room
from turnwise.ports import Clock, ModelPackage, NewId, Renderer, Sampler, SampleRequest

log = logging.getLogger(__name__)

#: Longest sampling of one reply: as long as the openai client waits by default.
CALL_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """A registered model, loaded. Closing the sampler gives the adapter up."""

    sampler: Sampler
    renderer: Renderer
    adapter_id: str
    max_length: int  # prompt + completion, tokens


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
    """Answers from registered models; at most `max_models` stay loaded without being asked."""

    def __init__(
        self,
        open_model: Callable[[ModelPackage], Awaitable[OpenModel]],
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
        self._hosted: dict[str, _Hosted] = {}  # by package id, the one asked last at the end
        self._running: set[Exchange] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    def ask(self, account_id: str, package: ModelPackage, request: ChatRequest) -> Exchange:
        """Start a call; what it gives is the reply or what went wrong.

        `PromptTooLong` and `InvalidInput` for the request, `LimitExceeded` when the engine's queue
        is full, `Unavailable` when the engine has died (the next call starts another), `TooSlow`,
        `Corrupted` or `NotFound` for the model's files. Its clients gone, it ends.
        """
        exchange = Exchange(
            turn_id=self._new_id("chat"), sha256="", created_at=self._clock.now(), grace_s=0.0
        )
        self._running.add(exchange)
        exchange.task = self._spawn(self._answer(account_id, package, request, exchange))
        return exchange

    @property
    def loaded(self) -> tuple[str, ...]:
        """Package ids of the models that are held, the one asked for last at the end."""
        return tuple(self._hosted)

    async def close(self) -> None:
        """End the calls and give every model up."""
        self._is_closed = True
        for exchange in self._running:
            exchange.fail(_going_down())
            exchange.expire()
        for package_id in self.loaded:
            self._give_up(package_id, self._hosted[package_id])
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ── one call ──────────────────────────────────────────────────────────────────────────────

    async def _answer(
        self, account_id: str, package: ModelPackage, request: ChatRequest, exchange: Exchange
    ) -> None:
        """One reply, from prompt to message. The only place where its errors end."""
        try:
            async with self._using(package) as model:
                call = await self._prepare(model, request, exchange)
                said = Completion(model.renderer, call)
                await self._sample(f"serving/{account_id}", model, call, said, exchange)
                message, rest = await read(said)
            exchange.publish(rest)
            exchange.succeed(self._reply(call, said, message))
        except errors.ProcessDied:
            exchange.fail(_engine_gone(package))
        except errors.TurnwiseError as error:
            exchange.fail(error)
        except Exception as error:
            log.exception("a call of model %s/%d broke", package.group, package.version)
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
    async def _using(self, package: ModelPackage) -> AsyncIterator[OpenModel]:
        """The model, opened if need be; it stays for `idle_s` after its last use."""
        if self._is_closed:
            raise _going_down()
        package_id = package.package_id
        hosted = self._hosted.pop(package_id, None)
        if hosted is None:
            hosted = _Hosted(self._spawn(self._open(package)))
        self._hosted[package_id] = hosted
        hosted.keep()
        hosted.calls += 1
        try:
            # Shielded: whoever leaves does not end the opening for the others.
            yield await asyncio.shield(hosted.opening)
        finally:
            hosted.calls -= 1
            if not hosted.calls and self._hosted.get(package_id) is hosted:
                loop = asyncio.get_running_loop()
                hosted.timer = loop.call_later(self._idle_s, self._give_up, package_id, hosted)
                self._trim()

    async def _open(self, package: ModelPackage) -> OpenModel:
        package_id = package.package_id
        try:
            model = await self._open_model(package)
        except BaseException:
            self._hosted.pop(package_id, None)
            raise
        hosted = self._hosted[package_id]
        hosted.watch = self._spawn(self._watch(package_id, hosted, model.sampler))
        return model

    async def _watch(self, package_id: str, hosted: _Hosted, sampler: Sampler) -> None:
        """Forget a model whose engine has died, so that the next call opens it anew."""
        await sampler.lost()
        self._give_up(package_id, hosted)

    def _trim(self) -> None:
        """Give up the models that have waited longest for a call, down to `max_models`."""
        idle = [(key, hosted) for key, hosted in self._hosted.items() if hosted.is_idle]
        surplus = max(0, len(self._hosted) - self._max_models)
        for package_id, hosted in idle[:surplus]:
            self._give_up(package_id, hosted)

    def _give_up(self, package_id: str, hosted: _Hosted) -> None:
        if self._hosted.get(package_id) is hosted:
            del self._hosted[package_id]
            self._spawn(hosted.close())

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _going_down() -> errors.Unavailable:
    return errors.Unavailable("the server is going down", retry_after_s=1.0)


def _engine_gone(package: ModelPackage) -> errors.Unavailable:
    return errors.Unavailable(
        f"the engine of {package.name} has ended; the next call starts another", retry_after_s=1.0
    )
