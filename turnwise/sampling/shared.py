"""One sampler for several jobs: an adapter is retired when no job needs it any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable

from turnwise.domain.rollout import Floats, Tokens
from turnwise.ports import Chunk, Sampler, SampleRequest, SamplerInfo, SamplerStats


class SharedSampler:
    """Counts those who use the sampler and, per adapter, those who have loaded it."""

    def __init__(self, sampler: Sampler, unclaimed: Callable[[], None] = lambda: None) -> None:
        """`unclaimed` is called whenever the last of its users has left."""
        self.sampler = sampler
        self.claims: Counter[str] = Counter()
        self.users = 0
        self._unclaimed = unclaimed

    def claim(self) -> ClaimedSampler:
        """A job's own view of the sampler."""
        self.users += 1
        return ClaimedSampler(self)

    def leave(self) -> None:
        """One of its users needs it no more."""
        self.users -= 1
        if not self.users:
            self._unclaimed()


class ClaimedSampler:
    """`ports.Sampler` for one job. Closing it gives up the job's adapters, not the sampler."""

    def __init__(self, shared: SharedSampler) -> None:
        self._shared = shared
        self._sampler = shared.sampler
        self._loaded: set[str] = set()
        self._is_closed = False

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
        """Give up the job's adapters, and its claim; a second close does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            for adapter_id in tuple(self._loaded):
                await self.retire(adapter_id)
        finally:
            self._shared.leave()
