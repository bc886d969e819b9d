"""Training rows for tests: random conversations, scored by a learner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from turnwise.domain.training import (
    LearnerSpec,
    LoraSpec,
    LossSpec,
    MiniBatch,
    OptimizerSpec,
    Sample,
    StepRequest,
    WeightedSample,
)
from turnwise.training.learner import TorchLearner

Spans = Sequence[tuple[int, int]]  # [start, end) of each completion


def learner_spec(base: Path, **changes: Any) -> LearnerSpec:
    fields: dict[str, Any] = {
        "base_model": str(base),
        "lora": LoraSpec(rank=4, alpha=8.0),
        "optimizer": OptimizerSpec(learning_rate=1e-2),
        "seed": 0,
        "tokens_per_micro_batch": 128,
    }
    return LearnerSpec(**(fields | changes))


def row(
    tokens: np.ndarray[Any, Any],
    spans: Spans,
    *,
    advantage: float = 1.0,
    temperature: float = 1.0,
    policy_step: int = 0,
) -> Sample:
    """A row whose `spans` are trained; its logprobs are still 0."""
    trained = np.zeros(len(tokens), dtype=np.bool_)
    for start, end in spans:
        trained[start:end] = True
    zeros = np.zeros(len(tokens), dtype=np.float32)
    return Sample(
        rollout_id="rollout_a",
        tokens=tokens.astype(np.int32),
        trained=trained,
        logprobs=zeros,
        advantages=np.where(trained, np.float32(advantage), zeros),
        temperatures=np.where(trained, np.float32(temperature), zeros + 1),
        policy_steps=np.where(trained, policy_step, 0).astype(np.int32),
    )


def conversation(seed: int, *, turns: int = 3, **changes: Any) -> Sample:
    """Prompt and completion pieces of 3 to 9 random tokens, by turns."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.integers(3, 10, size=2 * turns))
    spans = [(int(ends[2 * t]), int(ends[2 * t + 1])) for t in range(turns)]
    return row(rng.integers(0, 512, size=ends[-1]), spans, **changes)


def scored(learner: TorchLearner, sample: Sample) -> Sample:
    """The sample with the logprobs that a sampler in agreement with the learner would give."""
    logprobs = learner.model.plain_score(sample.tokens, sample.temperatures)
    return replace(sample, logprobs=logprobs * sample.trained)


def batch(samples: Sequence[Sample]) -> MiniBatch:
    """Every trained token weighs the same, the weights add up to 1."""
    total = sum(s.num_trained for s in samples)
    return MiniBatch(
        samples=tuple(
            WeightedSample(sample=s, weights=(s.trained / total).astype(np.float32))
            for s in samples
        )
    )


def request(step: int, *batches: MiniBatch, **changes: Any) -> StepRequest:
    fields: dict[str, Any] = {
        "step": step,
        "mini_batches": batches,
        "loss": LossSpec(),
        "learning_rate": 1e-2,
    }
    return StepRequest(**(fields | changes))


def train(learner: TorchLearner, steps: Sequence[int]) -> None:
    """Real updates: two mini-batches a step, of conversations that depend on the step alone."""
    for step in steps:
        found = [
            scored(learner, conversation(100 * step + i, policy_step=step, advantage=(-1.0) ** i))
            for i in range(4)
        ]
        learner.step(request(step, batch(found[:2]), batch(found[2:])))
