"""The engine process: an embedded sampler answering the server over a channel."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from turnwise.channel import Method, serve
from turnwise.domain.rollout import Floats
from turnwise.ports import Chunk, EngineSpec, Sampler, SampleRequest, SamplerInfo, SamplerStats
from turnwise.sampling.embedded import EmbeddedSampler
from turnwise.sampling.messages import AbortRequest, LoadAdapter, RetireAdapter, ScoreTokens

#: Time for the calls under way to be answered with what broke, before the process ends.
LAST_WORDS_S = 0.2


async def serve_engine(at: str | socket.socket, spec: EngineSpec) -> None:
    """Serve one engine to the one parent; returns when it leaves, or when a step has failed.

    In the latter case the parent finds the engine lost, and can start another.
    Calls are taken at once and wait for the model; if it cannot be loaded, each raises why.
    """
    loading = asyncio.ensure_future(asyncio.to_thread(EmbeddedSampler, spec))
    # Read the outcome here, so that a failure nobody asked about is not reported as forgotten.
    loading.add_done_callback(lambda task: task.cancelled() or task.exception())
    serving = asyncio.create_task(serve(at, sampler_methods(lambda: asyncio.shield(loading))))
    failing = asyncio.create_task(_failed(loading))
    try:
        await asyncio.wait({serving, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            await asyncio.wait({serving}, timeout=LAST_WORDS_S)
    finally:
        for task in (failing, serving):
            task.cancel()
        _, served = await asyncio.gather(failing, serving, return_exceptions=True)
    if isinstance(served, Exception):
        raise served


async def _failed(loading: asyncio.Future[EmbeddedSampler]) -> None:
    """Return once a step of the loaded engine has failed."""
    await asyncio.wait({loading})
    if loading.exception() is not None:  # which every call is told
        await asyncio.Event().wait()
    await loading.result().lost()


def sampler_methods(ready: Callable[[], Awaitable[Sampler]]) -> dict[str, Method]:
    """A sampler's methods for `channel.serve`; `ready` waits for the sampler."""

    async def info(_: None) -> SamplerInfo:
        return await (await ready()).info()

    async def load(args: LoadAdapter) -> None:
        await (await ready()).load(args.adapter_id, args.path)

    async def retire(args: RetireAdapter) -> None:
        await (await ready()).retire(args.adapter_id)

    async def generate(request: SampleRequest) -> AsyncIterator[Chunk]:
        chunks = (await ready()).generate(request)
        async with aclosing(chunks):  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk

    async def complete(request: SampleRequest) -> Chunk:
        async with aclosing((await ready()).generate(request)) as chunks:  # type: ignore[type-var]
            return await anext(chunks)

    async def abort(args: AbortRequest) -> None:
        await (await ready()).abort(args.request_id)

    async def score(args: ScoreTokens) -> Floats:
        return await (await ready()).score(args.tokens, args.adapter_id, args.temperature)

    async def stats(_: None) -> SamplerStats:
        return await (await ready()).stats()

    return {
        "info": Method(type(None), info),
        "load": Method(LoadAdapter, load),
        "retire": Method(RetireAdapter, retire),
        "generate": Method(SampleRequest, generate, streaming=True),
        "complete": Method(SampleRequest, complete),
        "abort": Method(AbortRequest, abort),
        "score": Method(ScoreTokens, score),
        "stats": Method(type(None), stats),
    }
