"""Training throughput: one merged row per rollout against one row per turn, and the merged rows of
a group as a trie against the same rows each for itself.

The same tokens are trained either way, with the same gradient (tests/numerics/test_learner.py and
test_trie.py); what differs is how often a conversation's beginning is read again. Counted are
sampled tokens trained per second of a whole step (forward, backward, clipping, optimizer), learning
rate 0, so that every repeat does the same work.

The trie's ceiling is 27,200 / 20,200 = 1.35, reached where linear layers take all the time. Here
half of it is attention, of which the prompt's part is all that siblings can share: 1.08. Whole, it
needs one pass for the group; at the default budget of 8192 tokens a pass holds two rollouts.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from turnwise.domain.training import (
    LearnerSpec,
    LoraSpec,
    LossSpec,
    MiniBatch,
    OptimizerSpec,
    Sample,
    StepRequest,
    StepResult,
    WeightedSample,
)
from turnwise.training.learner import TorchLearner

GOAL = 4.0
GROUP = 8
VOCABULARY = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A rollout: a prompt, then turns that each add what the agent said and what was sampled."""

    prompt: int = 1000
    added: int = 100
    sampled: int = 200
    turns: int = 8

    @property
    def spans(self) -> list[tuple[int, int]]:
        """[start, end) of each completion."""
        ends = [self.prompt + (t + 1) * (self.added + self.sampled) for t in range(self.turns)]
        return [(end - self.sampled, end) for end in ends]


def run(shape: Shape | None = None, repeats: int = 3) -> list[dict[str, Any]]:
    """Merged rows beside per-turn rows, then a trie beside merged rows at two budgets."""
    shape = shape or Shape()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        base = _base(Path(folder))
        return [
            _merging(base, shape, repeats),
            *(_sharing(base, shape, repeats, budget) for budget in (8192, 32_768)),
        ]


def _merging(base: Path, shape: Shape, repeats: int) -> dict[str, Any]:
    learner = _learner(base)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, size=shape.spans[-1][1])
    logprobs = learner.score(tokens.astype(np.int32))
    merged = [_row(tokens, logprobs, shape.spans)]
    per_turn = [_row(tokens[: span[1]], logprobs, [span]) for span in shape.spans]
    _step(learner, merged)  # the first pass allocates
    ours, peer = [], []
    for _ in range(repeats):
        ours.append(_tokens_per_second(_step(learner, merged)))
        peer.append(_tokens_per_second(_step(learner, per_turn)))
    name = f"training, merged rows / per-turn rows, {shape.turns} turns"
    return _record(name, ours, peer, GOAL)


def _sharing(base: Path, shape: Shape, repeats: int, budget: int) -> dict[str, Any]:
    sharing, alone = (
        _learner(base, tokens_per_micro_batch=budget, share_prefixes=share)
        for share in (True, False)
    )
    group = _group(alone, shape)
    _step(sharing, group)
    ours, peer = [], []
    for _ in range(repeats):
        ours.append(_tokens_per_second(_step(sharing, group)))
        peer.append(_tokens_per_second(_step(alone, group)))
    name = f"training, trie / merged rows, group of {GROUP}, {budget} tokens a pass"
    return _record(name, ours, peer, goal=None)


def _record(
    name: str, ours: Sequence[float], peer: Sequence[float], goal: float | None
) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    return {
        "name": name,
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "ratio": statistics.median(ratios),
        "goal": goal,
        "unit": "trained tokens/s",
        "spread": f"ratio {min(ratios):.2f}-{max(ratios):.2f} in {len(ratios)} repeats",
    }


def _group(learner: TorchLearner, shape: Shape) -> list[Sample]:
    """Rollouts that have their prompt in common."""
    noise = np.random.default_rng(0)
    prompt = noise.integers(0, VOCABULARY, size=shape.prompt)
    rows = []
    for _ in range(GROUP):
        own = noise.integers(0, VOCABULARY, size=shape.spans[-1][1] - shape.prompt)
        tokens = np.concatenate([prompt, own])
        rows.append(_row(tokens, learner.score(tokens.astype(np.int32)), shape.spans))
    return rows


def _base(folder: Path) -> Path:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def _learner(base: Path, **changes: Any) -> TorchLearner:
    spec = LearnerSpec(
        base_model=str(base), lora=LoraSpec(rank=16), optimizer=OptimizerSpec(), seed=0
    )
    return TorchLearner(replace(spec, **changes))


def _row(
    tokens: np.ndarray[Any, Any], logprobs: np.ndarray[Any, Any], spans: Sequence[tuple[int, int]]
) -> Sample:
    trained = np.zeros(len(tokens), dtype=np.bool_)
    for start, end in spans:
        trained[start:end] = True
    return Sample(
        rollout_id="rollout_a",
        tokens=tokens.astype(np.int32),
        trained=trained,
        logprobs=logprobs[: len(tokens)] * trained,
        advantages=trained.astype(np.float32),
        temperatures=np.ones(len(tokens), dtype=np.float32),
        policy_steps=np.zeros(len(tokens), dtype=np.int32),
    )


def _step(learner: TorchLearner, rows: Sequence[Sample]) -> StepResult:
    total = sum(row.num_trained for row in rows)
    weighted = tuple(
        WeightedSample(sample=row, weights=(row.trained / total).astype(np.float32)) for row in rows
    )
    return learner.step(
        StepRequest(
            step=0,
            mini_batches=(MiniBatch(samples=weighted),),
            loss=LossSpec(),
            learning_rate=0.0,
        )
    )


def _tokens_per_second(result: StepResult) -> float:
    return result.trained_tokens / result.seconds
