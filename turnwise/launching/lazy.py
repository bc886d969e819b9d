"""A learner whose process starts when it is first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from turnwise.domain.rollout import Floats, Tokens
from turnwise.domain.training import Checkpoint, DataPosition, StepRequest, StepResult
from turnwise.ports import Learner


class LazyLearner:
    """`ports.Learner` that asks for the real one at the first call; an evaluation never does."""

    def __init__(self, start: Callable[[], Awaitable[Learner]]) -> None:
        self._start = start
        self._starting = asyncio.Lock()
        self._learner: Learner | None = None

    async def step(self, request: StepRequest) -> StepResult:
        """See `ports.Learner`."""
        return await (await self._started()).step(request)

    async def save(self, step: int, folder: str, position: DataPosition) -> Checkpoint:
        """See `ports.Learner`."""
        return await (await self._started()).save(step, folder, position)

    async def restore(self, checkpoint: Checkpoint) -> DataPosition:
        """See `ports.Learner`."""
        return await (await self._started()).restore(checkpoint)

    async def score(self, tokens: Tokens, temperature: float = 1.0) -> Floats:
        """See `ports.Learner`."""
        return await (await self._started()).score(tokens, temperature)

    async def close(self) -> None:
        """End the process, if there is one."""
        if self._learner is not None:
            await self._learner.close()

    async def _started(self) -> Learner:
        async with self._starting:
            if self._learner is None:
                self._learner = await self._start()
        return self._learner
