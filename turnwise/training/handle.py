"""The learner as the server holds it: calls over a channel, without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from turnwise.channel import Connection
from turnwise.domain.rollout import Floats, Tokens
from turnwise.domain.training import (
    NOTHING_TRAINED,
    Checkpoint,
    DataPosition,
    StepRequest,
    StepResult,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveRequest:
    """Arguments of `save`."""

    step: int
    folder: str
    position: DataPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Arguments of `score`."""

    tokens: Tokens
    temperature: float = 1.0


class RemoteLearner:
    """A `ports.Learner` in another process. Raises `ProcessDied` once that process has ended."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def step(self, request: StepRequest) -> StepResult:
        """Update; see `ports.Learner.step`."""
        return await self._connection.call("step", request, StepResult)

    async def save(
        self, step: int, folder: str, position: DataPosition = NOTHING_TRAINED
    ) -> Checkpoint:
        """Write a checkpoint; see `ports.Learner.save`."""
        request = SaveRequest(step=step, folder=folder, position=position)
        return await self._connection.call("save", request, Checkpoint)

    async def restore(self, checkpoint: Checkpoint) -> DataPosition:
        """Continue from a checkpoint; see `ports.Learner.restore`."""
        return await self._connection.call("restore", checkpoint, DataPosition)

    async def score(self, tokens: Tokens, temperature: float = 1.0) -> Floats:
        """Logprob of each token given those before it, [T]."""
        request = ScoreRequest(tokens=tokens, temperature=temperature)
        return await self._connection.call("score", request, np.ndarray)

    async def close(self) -> None:
        """Close the connection, which ends the process."""
        await self._connection.close()
