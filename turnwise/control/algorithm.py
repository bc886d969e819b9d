"""The `algorithm` block of a job file: defaults by its name, and what makes no sense in it."""

from __future__ import annotations

from collections.abc import Mapping

from turnwise import errors
from turnwise.domain.algorithm import ALGORITHMS, AlgorithmName, AlgorithmSpec
from turnwise.domain.job import BatchSpec, JobSpec
from turnwise.domain.training import AdvantageMethod, LossName

_CLIPPING = tuple(loss for loss in LossName if loss is not LossName.IMPORTANCE_SAMPLING)
_PER_TURN = tuple(method for method in AdvantageMethod if method.is_per_turn)

#: Settings that not every method or loss reads: which of the two decides, and who reads them.
_READ_BY: Mapping[str, tuple[str, tuple[AdvantageMethod | LossName, ...]]] = {
    "pass_k": ("advantage_method", (AdvantageMethod.PKPO,)),
    "turn_discount": ("advantage_method", _PER_TURN),
    "clip_low_threshold": ("loss_fn", _CLIPPING),
    "clip_high_threshold": ("loss_fn", _CLIPPING),
}


def bundle(name: AlgorithmName) -> AlgorithmSpec:
    """The vetted settings of an algorithm."""
    return ALGORITHMS[name][0]


def check_algorithm(spec: JobSpec) -> None:
    """Raise `InvalidInput` for settings that contradict each other, with the reason."""
    _check_name(spec.algorithm)
    _check_unread(spec.algorithm)
    _check_bounds(spec.algorithm)
    if spec.algorithm.advantage_method is AdvantageMethod.PKPO:
        _check_pass_k(spec.algorithm, spec.batch)


def check_group_budget(spec: JobSpec) -> None:
    """Raise `InvalidInput` where refill or a pilot could not be decided group by group."""
    batch, method = spec.batch, spec.algorithm.advantage_method
    if batch.refill and method.compares_with_step:
        raise errors.InvalidInput(
            "batch.refill",
            True,
            f"has no meaning with {method}, whose advantages are known only over the whole step",
            remedy="set it to false, or use another algorithm",
        )
    if not batch.pilot_size:
        return
    if not method.is_zero_for_constant_groups:
        raise errors.InvalidInput(
            "batch.pilot_size",
            batch.pilot_size,
            f"would drop siblings of equal rewards, from which {method} learns too",
            remedy="set it to 0, or use another algorithm",
        )
    if not 2 <= batch.pilot_size < batch.group_size:
        raise errors.InvalidInput(
            "batch.pilot_size",
            batch.pilot_size,
            f"is no first part of a group of {batch.group_size} that could be compared",
            remedy="use at least 2 and less than batch.group_size, or 0",
        )


def _check_name(algorithm: AlgorithmSpec) -> None:
    """An algorithm with a name is that one; `custom` may be anything."""
    if algorithm.name is AlgorithmName.CUSTOM:
        return
    its_own = bundle(algorithm.name)
    for setting in ("advantage_method", "loss_fn"):
        value, meant = getattr(algorithm, setting), getattr(its_own, setting)
        if value is not meant:
            raise errors.InvalidInput(
                f"algorithm.{setting}",
                str(value),
                f"is not what {algorithm.name} has ({meant})",
                remedy="leave it out, or use algorithm.name: custom to combine freely",
            )


def _check_unread(algorithm: AlgorithmSpec) -> None:
    for setting, (by, readers) in _READ_BY.items():
        value, chosen = getattr(algorithm, setting), getattr(algorithm, by)
        if chosen not in readers and value != getattr(bundle(algorithm.name), setting):
            raise errors.InvalidInput(
                f"algorithm.{setting}",
                value,
                f"is set, but {chosen} does not read it",
                remedy="leave it out; read by " + ", ".join(map(str, readers)),
            )


def _check_bounds(algorithm: AlgorithmSpec) -> None:
    low, high, cap = (
        algorithm.clip_low_threshold,
        algorithm.clip_high_threshold,
        algorithm.tis_cap,
    )
    if low > 1:
        raise errors.InvalidInput(
            "algorithm.clip_low_threshold",
            low,
            "would clip tokens whose probability has not changed (ratio 1)",
            remedy="it bounds the ratio itself, not its distance from 1: 0.8 is usual, at most 1",
        )
    if high < 1:
        raise errors.InvalidInput(
            "algorithm.clip_high_threshold",
            high,
            "would clip tokens whose probability has not changed (ratio 1)",
            remedy="it bounds the ratio itself, not its distance from 1: 1.2 is usual, at least 1",
        )
    if 0 < cap < 1:
        raise errors.InvalidInput(
            "algorithm.tis_cap",
            cap,
            "would cut the weight of tokens on which sampler and learner agree",
            remedy="use at least 1 (2 is usual), or 0 for none",
        )


def _check_pass_k(algorithm: AlgorithmSpec, batch: BatchSpec) -> None:
    if algorithm.pass_k > batch.group_size:
        raise errors.InvalidInput(
            "algorithm.pass_k",
            algorithm.pass_k,
            f"is more than a group has rollouts ({batch.group_size}), so the best of so many is "
            "unknown",
            remedy="use at most batch.group_size",
        )
