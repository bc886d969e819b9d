"""One sampler for several jobs: an adapter is retired when no job needs it any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

from turnwise.domain.rollout import Floats, Tokens
from turnwise.ports import Chunk, Sampler, SampleRequest, SamplerInfo, SamplerStats


class SharedSampler:
    """Counts, per adapter, the jobs that have loaded it."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.claims: Counter[str] = Counter()

    def claim(self) -> ClaimedSampler:
        """A job's own view of the sampler."""
        return ClaimedSampler(self)


class ClaimedSampler:
    """`ports.Sampler` for one job. Closing it gives up the job's adapters, not the sampler."""

    def __init__(self, shared: SharedSampler) -> None:
        self._shared = shared
        self._sampler = shared.sampler
        self._loaded: set[str] = set()

    async def info(self) -> SamplerInfo:
        """See `ports.Sampler`."""
        return await self._sampler.info()

    async def load(self, adapter_id: str, path: str) -> None:
        """See `ports.Sampler`."""
        if adapter_id not in self._loaded:
            self._loaded.add(adapter_id)
            self._shared.claims[adapter_id] += 1
        await self._sampler.load(adapter_id, path)

    async def retire(self, adapter_id: str) -> None:
        """Free the adapter, unless another job uses it."""
        if adapter_id not in self._loaded:
            return
        self._loaded.remove(adapter_id)
        self._shared.claims[adapter_id] -= 1
        if not self._shared.claims[adapter_id]:
            await self._sampler.retire(adapter_id)

    def generate(self, request: SampleRequest) -> AsyncIterator[Chunk]:
        """See `ports.Sampler`."""
        return self._sampler.generate(request)

    async def abort(self, request_id: str) -> None:
        """See `ports.Sampler`."""
        await self._sampler.abort(request_id)

    async def score(
        self, tokens: Tokens, adapter_id: str | None, temperature: float = 1.0
    ) -> Floats:
        """See `ports.Sampler`."""
        return await self._sampler.score(tokens, adapter_id, temperature)

    async def stats(self) -> SamplerStats:
        """See `ports.Sampler`."""
        return await self._sampler.stats()

    async def lost(self) -> None:
        """See `ports.Sampler`."""
        await self._sampler.lost()

    async def close(self) -> None:
        """Give up the job's adapters."""
        for adapter_id in tuple(self._loaded):
            await self.retire(adapter_id)
