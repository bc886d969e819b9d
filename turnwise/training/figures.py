"""What a step reports about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from turnwise.domain.rollout import Floats
from turnwise.domain.training import LossName, LossSpec, Mismatch
from turnwise.rl.losses import MAX_LOG_RATIO
from turnwise.rl.packing import MicroBatch
from turnwise.rl.statistics import quantiles
from turnwise.training.parity import k3


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """What a micro-batch's forward said: one entry per trained token."""

    batch: MicroBatch
    loss: float  # the micro-batch's share of its mini-batch's loss
    logprobs: Floats  # [N] the learner's
    entropies: Floats  # [N]
    start: Floats | None = None  # [N] the learner's when the step began, where that was not now
    base: Floats | None = None  # [N] the base model's, where the loss uses them


@dataclass(slots=True)
class Tally:
    """A step's figures as its updates come in."""

    forwards: list[Forward] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # one per update
    grad_norms: list[float] = field(default_factory=list)  # one per update, before clipping
    mismatch: tuple[Mismatch, ...] = ()

    def add(self, forwards: Sequence[Forward], loss: float, grad_norm: float) -> None:
        """Count one update."""
        self.forwards += forwards
        self.losses.append(loss)
        self.grad_norms.append(grad_norm)

    @property
    def trained_tokens(self) -> int:
        """Over all updates."""
        return sum(len(f.batch.targets) for f in self.forwards)

    def metrics(self, loss: LossSpec, learning_rate: float) -> dict[str, float]:
        """The training/* values. A step without an update has only the first three."""
        counts = {
            "training/learning_rate": learning_rate,
            "training/micro_batches": float(len(self.forwards)),
            "training/padded_tokens": float(sum(f.batch.inputs.size for f in self.forwards)),
        }
        if not self.losses:
            return counts
        difference = _joined([f.logprobs - f.batch.logprobs for f in self.forwards])
        ratios = np.exp(difference.clip(-MAX_LOG_RATIO, MAX_LOG_RATIO))
        bounded = np.exp(_joined([_bounded(f, loss) for f in self.forwards]))
        outside = (bounded < loss.clip_low) | (bounded > loss.clip_high)
        base = [f.base - f.logprobs for f in self.forwards if f.base is not None]
        return {
            **counts,
            **({"training/kl_base": k3(_joined(base))} if base else {}),
            "training/loss": float(np.mean(self.losses)),
            "training/grad_norm": float(np.mean(self.grad_norms)),
            "training/clip_fraction": float(outside.mean()),
            "training/ratio_mean": float(ratios.mean()),
            "training/ratio_max": float(ratios.max()),
            **quantiles("training/ratio_", ratios),
            "training/kl_k3": k3(difference),
            "training/entropy": float(_joined([f.entropies for f in self.forwards]).mean()),
        }


def _bounded(forward: Forward, loss: LossSpec) -> Floats:
    """Log of the ratio that the loss held against its bounds, [N]."""
    reference = forward.batch.logprobs
    if loss.tis_cap:
        reference = forward.logprobs if forward.start is None else forward.start
    difference = forward.logprobs - reference
    if loss.name is LossName.GSPO:
        turns = forward.batch.turns
        difference = (np.bincount(turns, difference) / np.bincount(turns))[turns]
    return difference.clip(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _joined(parts: Sequence[Floats]) -> npt.NDArray[np.float64]:
    return np.concatenate(parts).astype(np.float64)
