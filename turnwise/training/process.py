"""The learner's process: a channel in front of a `TorchLearner`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from turnwise import channel
from turnwise.domain.rollout import Floats, Tokens
from turnwise.domain.training import (
    NOTHING_TRAINED,
    Checkpoint,
    DataPosition,
    LearnerSpec,
    StepRequest,
    StepResult,
)
from turnwise.training.handle import SaveRequest, ScoreRequest
from turnwise.training.learner import TorchLearner

T = TypeVar("T")


class ThreadedLearner:
    """A `ports.Learner` in this process: one thread does the torch work, a call at a time.

    The model is loaded by that thread too, so the event loop is free from the start and a model
    that cannot be loaded is an error of every call, not of the constructor.
    """

    def __init__(self, spec: LearnerSpec) -> None:
        # Not the loop's default executor: asyncio.run would wait for its thread at the end, and
        # a step must not outlive the parent it works for.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._loading = self._thread.submit(TorchLearner, spec)

    async def step(self, request: StepRequest) -> StepResult:
        """Update; see `ports.Learner.step`."""
        return await self._run(lambda learner: learner.step(request))

    async def save(
        self, step: int, folder: str, position: DataPosition = NOTHING_TRAINED
    ) -> Checkpoint:
        """Write a checkpoint; see `ports.Learner.save`."""
        return await self._run(lambda learner: learner.save(step, folder, position))

    async def restore(self, checkpoint: Checkpoint) -> DataPosition:
        """Continue from a checkpoint; see `ports.Learner.restore`."""
        return await self._run(lambda learner: learner.restore(checkpoint))

    async def score(self, tokens: Tokens, temperature: float = 1.0) -> Floats:
        """Logprob of each token given those before it, [T]."""
        return await self._run(lambda learner: learner.score(tokens, temperature))

    async def close(self) -> None:
        """Free the thread after the call under way, without waiting for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[TorchLearner], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: work(self._loading.result()))


async def serve_learner(parent: str | socket.socket, spec: LearnerSpec) -> None:
    """Answer the parent until its socket closes. A step under way is not waited for."""
    torch.set_num_threads(spec.threads)
    learner = ThreadedLearner(spec)

    async def save(request: SaveRequest) -> Checkpoint:
        return await learner.save(request.step, request.folder, request.position)

    async def score(request: ScoreRequest) -> Floats:
        return await learner.score(request.tokens, request.temperature)

    try:
        await channel.serve(
            parent,
            {
                "step": channel.Method(StepRequest, learner.step),
                "save": channel.Method(SaveRequest, save),
                "restore": channel.Method(Checkpoint, learner.restore),
                "score": channel.Method(ScoreRequest, score),
            },
        )
    finally:
        await learner.close()
