"""From rows to mini-batches: which rollouts share an update, and how much each token weighs.

Weights carry the aggregation, so that a mini-batch's loss is sum(weight * token loss) and stays
the same however its rollouts are split into rows, micro-batches or ranks. Rollouts of groups
without advantage are removed before and thus leave the denominators, but for the constant one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from turnwise.domain.training import Aggregation, MiniBatch, Sample, WeightedSample


def mini_batches(
    samples: Sequence[Sample],
    aggregation: Aggregation,
    *,
    updates: int,
    seed: int,
    step: int,
    norm: float = 1.0,
) -> tuple[MiniBatch, ...]:
    """A step's samples as disjoint mini-batches, one per optimizer update.

    A rollout's rows stay together. Parts depend on the order in which rollouts come, so give the
    samples ordered by (row, slot). `norm` as for `weighted`.
    """
    by_rollout: dict[str, list[Sample]] = {}
    for sample in samples:
        by_rollout.setdefault(sample.rollout_id, []).append(sample)
    parts = split(tuple(by_rollout), updates=updates, seed=seed, step=step)
    return tuple(
        MiniBatch(
            samples=weighted([s for id in part for s in by_rollout[id]], aggregation, norm=norm)
        )
        for part in parts
    )


def split(rollouts: Sequence[str], *, updates: int, seed: int, step: int) -> list[list[str]]:
    """Shuffle rollouts into `updates` parts whose sizes differ by at most one; none is empty.

    Decided by (seed, step, place in the sequence) through a hash and not by the ids, which differ
    between two runs of one job. Inside a part rollouts keep their order.
    """

    def key(place: int) -> bytes:
        return hashlib.sha256(f"{seed}/{step}/{place}".encode()).digest()

    shuffled = sorted(range(len(rollouts)), key=key)
    parts = (sorted(shuffled[first::updates]) for first in range(updates))
    return [[rollouts[place] for place in part] for part in parts if part]


def weighted(
    samples: Sequence[Sample], aggregation: Aggregation, *, norm: float = 1.0
) -> tuple[WeightedSample, ...]:
    """The samples of one mini-batch with each token's weight.

    `rollout-mean`: 1 / (rollouts x trained tokens of the token's rollout, over all its rows).
    `token-mean`: 1 / trained tokens of the mini-batch. In both all weights add up to 1, and a
    rollout without trained tokens does not count. `token-sum-norm`: 1 / `norm`, which must not
    come from the batch (Dr. GRPO, arXiv 2503.20783: rollouts x most tokens of one reply; with
    several turns the scale is that of a turn, and AdamW does not notice).
    """
    trained: Counter[str] = Counter()
    for sample in samples:
        trained[sample.rollout_id] += sample.num_trained
    rollouts = sum(1 for tokens in trained.values() if tokens)

    def weight(sample: Sample) -> float:
        if aggregation is Aggregation.TOKEN_SUM_NORM:
            return 1.0 / norm
        if aggregation is Aggregation.TOKEN_MEAN:
            return 1.0 / max(trained.total(), 1)
        return 1.0 / max(rollouts * trained[sample.rollout_id], 1)

    return tuple(
        WeightedSample(
            sample=sample, weights=np.where(sample.trained, weight(sample), 0.0).astype(np.float32)
        )
        for sample in samples
    )
