"""A sampler that plays given completions: for tests, for demonstrations and for load tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from turnwise import errors
from turnwise.domain.rollout import Floats, Tokens
from turnwise.ports import Chunk, SampleRequest, SamplerInfo, SamplerStats
from turnwise.sampling.requests import check_request, check_scored, max_new_tokens

#: Logprob of every token of a script that gives none: a fair coin.
DEFAULT_LOGPROB = float(np.log(0.5))


@dataclass(frozen=True, slots=True)
class Completion:
    """What a script answers. Without `logprobs` each is `DEFAULT_LOGPROB`."""

    tokens: Sequence[int]
    logprobs: Sequence[float] | None = None


Script = Callable[[SampleRequest], Completion]


def play(completions: Sequence[Completion]) -> Script:
    """A script that gives these completions in the order of the requests, over and over."""
    turns = cycle(completions)
    return lambda _: next(turns)


class ScriptedSampler:
    """A `Sampler` that needs no model.

    A completion ends as an engine's would: at the first stop id (included) with "stop", at
    `max_tokens` or the end of the context with "length"; one that runs out ends with "stop".
    Adapters are known by id only; their folders are not read.
    """

    def __init__(
        self,
        script: Script | Sequence[Completion],
        *,
        vocab_size: int = 1 << 20,
        max_length: int = 1 << 20,
        max_slots: int = 1 << 10,
        max_queue: int = 1 << 10,
        seconds_per_token: float = 0.0,
    ) -> None:
        self._script = script if callable(script) else play(script)
        self._seconds_per_token = seconds_per_token
        self._max_queue = max_queue
        self._slots = asyncio.Semaphore(max_slots)
        self._adapters: set[str] = set()
        self._ending: dict[str, asyncio.Event] = {}  # of requests under way
        self._is_closed = False
        self._running = 0
        self._waiting = 0
        self._sampled = 0
        self._prefilled = 0
        self._info = SamplerInfo(
            model="scripted",
            vocab_size=vocab_size,
            max_length=max_length,
            max_slots=max_slots,
            dtype="none",
            deterministic=True,
            sampled_logprobs=True,
        )

    async def info(self) -> SamplerInfo:
        """What this sampler is."""
        return self._info

    async def load(self, adapter_id: str, path: str) -> None:
        """Know an adapter from now on."""
        self._adapters.add(adapter_id)

    async def retire(self, adapter_id: str) -> None:
        """Forget an adapter."""
        self._adapters.discard(adapter_id)

    async def generate(self, request: SampleRequest) -> AsyncIterator[Chunk]:
        """Play a completion; a chunk per token when streamed, else one chunk."""
        check_request(request, self._info)
        self._check_adapter(request.adapter_id)
        ending = self._ending[request.request_id] = asyncio.Event()
        has_slot = False
        try:
            has_slot = await self._take_slot(request, ending)
            completion = self._cut(request, self._script(request)) if has_slot else _NOTHING
            for chunk in _split(completion) if request.stream else [completion]:
                chosen = await self._chosen_of(chunk, ending)
                self._sampled += len(chosen.tokens)
                yield chosen
                if chosen.finish_reason is not None:
                    return
        finally:
            del self._ending[request.request_id]
            if has_slot:
                self._running -= 1
                self._slots.release()

    async def abort(self, request_id: str) -> None:
        """End a request early, with the tokens whose time has passed."""
        if ending := self._ending.get(request_id):
            ending.set()

    async def score(
        self, tokens: Tokens, adapter_id: str | None, temperature: float = 1.0
    ) -> Floats:
        """`DEFAULT_LOGPROB` for each token but the first."""
        check_scored(tokens, self._info)
        self._check_adapter(adapter_id)
        scores = np.full(len(tokens), DEFAULT_LOGPROB, np.float32)
        scores[:1] = 0.0
        return scores

    async def stats(self) -> SamplerStats:
        """A snapshot."""
        return SamplerStats(
            running=self._running,
            waiting=self._waiting,
            sampled_tokens=self._sampled,
            prefilled_tokens=self._prefilled,
            adapters=len(self._adapters),
        )

    async def lost(self) -> None:
        """Never: it lives in this process."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """End it; requests that wait for their next token end with "abort"."""
        self._is_closed = True
        for ending in self._ending.values():
            ending.set()

    def _check_adapter(self, adapter_id: str | None) -> None:
        if adapter_id is not None and adapter_id not in self._adapters:
            raise errors.NotFound("adapter", adapter_id, remedy="load it first")

    async def _take_slot(self, request: SampleRequest, ending: asyncio.Event) -> bool:
        """Wait for a slot; whether the request got it before it was ended."""
        if self._slots.locked() and not request.admitted and self._waiting >= self._max_queue:
            raise errors.LimitExceeded(
                f"{self._waiting} requests are waiting already", retry_after_s=1.0
            )
        self._waiting += 1
        try:
            if not self._slots.locked():
                await self._slots.acquire()  # at once
            elif not await self._slot_before(ending):
                return False
        finally:
            self._waiting -= 1
        self._running += 1
        self._prefilled += len(request.prompt)
        return True

    async def _slot_before(self, ending: asyncio.Event) -> bool:
        """Wait for a slot, but not longer than until the end; whether there is one."""
        taking = asyncio.ensure_future(self._slots.acquire())
        ended = asyncio.ensure_future(ending.wait())
        try:
            await asyncio.wait({taking, ended}, return_when=asyncio.FIRST_COMPLETED)
            return taking.done()
        except asyncio.CancelledError:
            if taking.done():
                self._slots.release()
            raise
        finally:
            taking.cancel()
            ended.cancel()

    async def _chosen_of(self, chunk: Chunk, ending: asyncio.Event) -> Chunk:
        """Let the time of its tokens pass; the chunk, or what there is of it when it is ended."""
        duration = len(chunk.tokens) * self._seconds_per_token
        started = asyncio.get_running_loop().time()
        if not ending.is_set() and duration:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), duration)
        if not (ending.is_set() or self._is_closed):
            return chunk
        passed = asyncio.get_running_loop().time() - started
        count = int(passed / self._seconds_per_token) if duration else 0
        return _chunk(chunk.tokens[:count].tolist(), chunk.logprobs[:count].tolist(), "abort")

    def _cut(self, request: SampleRequest, completion: Completion) -> Chunk:
        limit = max_new_tokens(request, self._info)
        tokens = list(completion.tokens)
        stops = [i for i, token in enumerate(tokens) if token in request.stop_ids]
        end = min(stops[0] + 1 if stops else len(tokens), limit)
        stopped = end < limit or (end == len(tokens) and not stops) or (end - 1) in stops
        logprobs = completion.logprobs or [DEFAULT_LOGPROB] * len(tokens)
        reason = "stop" if stopped else "length"
        return _chunk(tokens[:end], list(logprobs)[:end], reason)


def _chunk(tokens: Sequence[int], logprobs: Sequence[float], reason: str | None) -> Chunk:
    return Chunk(
        tokens=np.array(tokens, np.int32),
        logprobs=np.array(logprobs, np.float32),
        finish_reason=reason,
    )


_NOTHING = _chunk([], [], "abort")


def _split(chunk: Chunk) -> list[Chunk]:
    """One chunk per token; the last carries the finish reason."""
    last = len(chunk.tokens) - 1
    pieces = [
        Chunk(
            tokens=chunk.tokens[i : i + 1],
            logprobs=chunk.logprobs[i : i + 1],
            finish_reason=chunk.finish_reason if i == last else None,
        )
        for i in range(last + 1)
    ]
    return pieces or [chunk]
