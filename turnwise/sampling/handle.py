"""A sampler in another process, called over a channel. Imports no torch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from turnwise.channel import Connection
from turnwise.domain.rollout import Floats, Tokens
from turnwise.ports import Chunk, SampleRequest, SamplerInfo, SamplerStats
from turnwise.sampling.messages import AbortRequest, LoadAdapter, RetireAdapter, ScoreTokens


class RemoteSampler:
    """A `Sampler` whose methods are answered by `serve_engine` at the far end.

    Every method raises `ProcessDied` when that process ends.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def info(self) -> SamplerInfo:
        """What it is; waits until the model is loaded. Raises what went wrong with that."""
        return await self._connection.call("info", None, SamplerInfo)

    async def load(self, adapter_id: str, path: str) -> None:
        """As `Sampler.load`; the far process reads the path."""
        args = LoadAdapter(adapter_id=adapter_id, path=path)
        await self._connection.call("load", args, type(None))

    async def retire(self, adapter_id: str) -> None:
        """As `Sampler.retire`."""
        await self._connection.call("retire", RetireAdapter(adapter_id=adapter_id), type(None))

    async def generate(self, request: SampleRequest) -> AsyncIterator[Chunk]:
        """As `Sampler.generate`; a request that does not stream costs one message each way."""
        if not request.stream:
            yield await self._connection.call("complete", request, Chunk)
            return
        chunks = self._connection.stream("generate", request, Chunk)
        async with aclosing(chunks):  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk

    async def abort(self, request_id: str) -> None:
        """As `Sampler.abort`."""
        await self._connection.call("abort", AbortRequest(request_id=request_id), type(None))

    async def score(
        self, tokens: Tokens, adapter_id: str | None, temperature: float = 1.0
    ) -> Floats:
        """As `Sampler.score`."""
        args = ScoreTokens(tokens=tokens, adapter_id=adapter_id, temperature=temperature)
        return await self._connection.call("score", args, Floats)

    async def stats(self) -> SamplerStats:
        """A snapshot."""
        return await self._connection.call("stats", None, SamplerStats)

    async def lost(self) -> None:
        """Return when the engine's process has ended."""
        await self._connection.lost()

    async def close(self) -> None:
        """End the engine, then the connection."""
        await self._connection.close()
