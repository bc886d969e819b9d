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


async def serve_engine(at: str | socket.socket, spec: EngineSpec) -> None:
    """Serve one engine to the one parent; returns when it leaves.

    Calls are taken at once and wait for the model; if it cannot be loaded, each raises why.
    """
    loading = asyncio.ensure_future(asyncio.to_thread(EmbeddedSampler, spec))
    # Read the outcome here, so that a failure nobody asked about is not reported as forgotten.
    loading.add_done_callback(lambda task: task.cancelled() or task.exception())
    await serve(at, sampler_methods(lambda: asyncio.shield(loading)))


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
