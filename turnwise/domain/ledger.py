"""Where sampled tokens end: the bins of the ledger. `rl.ledger` says which token ends where.

And what a job cost in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Bin(StrEnum):
    """The bins. Each is a metric, `ledger/{bin}`."""

    TRAINED = "trained"
    MASKED_GREEDY = "masked_greedy"  # sampled at temperature 0
    MASKED_FIRST_POSITION = "masked_first_position"  # nothing precedes it, so nothing predicts it
    MASKED_TRUNCATED = "masked_truncated"  # its turn was cut off, and the job masks such turns
    DROPPED_PAST_STOP = "dropped_past_stop"  # sampled behind a stop string, before sampling ended
    DROPPED_FAILED = "dropped_failed"  # the rollout failed
    DROPPED_DEADLINE = "dropped_deadline"  # the rollout or its group ran out of time
    DROPPED_UNDELIVERED = "dropped_undelivered"  # the agent never got the reply
    DROPPED_SUPERSEDED = "dropped_superseded"  # of an earlier incarnation, planned again
    DROPPED_UNFINISHED = "dropped_unfinished"  # the job ended before a step took its group
    DROPPED_ZERO_ADVANTAGE = "dropped_zero_advantage"  # all advantages of the group are 0
    DROPPED_UNPAIRED = "dropped_unpaired"  # fewer than two siblings were scored
    NOT_FOR_TRAINING = "not_for_training"  # validation and evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """The tokens of a job, over all its rollouts: training, validation and evaluation.

    Once the job has ended, `sample` is the sum of its ledger over all steps and bins, and `train`
    that of the bin `trained`.
    """

    train: int = 0  # trained on, each once
    prefill: int = 0  # in the prompts of all turns, as each turn shows its whole prompt
    cached: int = 0  # those of `prefill` that came from the sampler's prefix cache
    sample: int = 0  # sampled, whatever became of them
