"""The parity gate: do sampler and learner give the same tokens the same logprobs?

Pure arithmetic on numpy arrays. The learner hands in what both sides said before a step's first
update; over the limit it also hands in what other suppositions would have given for one row, and
the verdict names the one that explains the sampler's values.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from turnwise.domain.training import Mismatch
from turnwise.rl.losses import MAX_LOG_RATIO

Array = npt.NDArray[np.floating]

#: A supposition explains the difference if it removes this share of it.
_EXPLAINS = 0.9


def mismatches(
    step: int,
    learner: Array,  # [N] logprobs
    sampler: Array,  # [N]
    policy_steps: npt.NDArray[np.int64],  # [N]
) -> tuple[Mismatch, ...]:
    """One entry per age (step - policy step), youngest first."""
    difference = learner.astype(np.float64) - sampler.astype(np.float64)
    ages = step - policy_steps
    return tuple(_mismatch(int(age), difference[ages == age]) for age in np.unique(ages))


def exceeds(mismatch: Mismatch, limit: float) -> bool:
    """Whether the mean is over the limit, or is no number."""
    return not mismatch.mean <= limit


def verdict(
    sampler: Array,  # [n] of one row's trained tokens
    learner: Array,  # [n] as the step's batched forward gave them
    plain: Array,  # [n] a plain forward of this row alone
    suppositions: Mapping[str, Array],  # remedy-bearing sentence -> [n]
    limit: float,
) -> str:
    """Which side is wrong, in one sentence.

    A learner that contradicts its own plain forward is wrong itself. Otherwise the sampler (or
    what was recorded) is, and the closest supposition is named if it explains the difference.
    """
    own = _mean(learner - plain)
    if not own <= max(limit, _mean(sampler - plain) / 10):
        return (
            "the learner is wrong: its batched forward differs from its own plain forward of the "
            f"same row by {own:.3g} on average"
        )
    start = f"a plain forward agrees with the learner (mean {own:.1g}), so the sampler is wrong"
    cause, left = min(
        ((name, _mean(sampler - values)) for name, values in suppositions.items()),
        key=lambda found: found[1],
    )
    if left <= (1 - _EXPLAINS) * _mean(sampler - plain):
        return f"{start}: {cause} (then the difference is {left:.1g})"
    return (
        f"{start}; likely causes: a stale adapter, another temperature, a truncated distribution, "
        "logprobs recorded for other tokens"
    )


def _mismatch(age: int, difference: npt.NDArray[np.float64]) -> Mismatch:
    ratio = np.exp(np.clip(difference, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    return Mismatch(
        age=age,
        tokens=len(difference),
        mean=float(np.abs(difference).mean()),
        max=float(np.abs(difference).max()),
        k3=k3(difference),
        ess=float(ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum())),
    )


def k3(difference: Array) -> float:
    """Mean of r - log r - 1 with r = exp(difference): an estimate of KL that is never negative.

    http://joschu.net/blog/kl-approx.html
    """
    clipped = np.clip(difference.astype(np.float64), -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return float(np.mean(np.expm1(clipped) - clipped))


def _mean(difference: Array) -> float:
    return float(np.abs(difference).mean())
