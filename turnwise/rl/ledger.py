"""Where every sampled token ended: in exactly one bin, so that the bins add up to what was sampled.

A token's bin is the first of these that applies to it:

1. its rollout was made for validation or evaluation: `not_for_training`
2. it came behind its turn's stop string: `dropped_past_stop`
3. its reply did not reach the agent: `dropped_undelivered`
4. its rollout failed: `dropped_deadline` where a deadline passed, whatever it lacked then (its
   reward, say), `dropped_superseded` by the fault's code, else `dropped_failed`
5. its rollout was scored, but nothing of it is trained: `dropped_unpaired`,
   `dropped_zero_advantage` or `dropped_superseded`, as its group's fate says
6. a rule masks it: `masked_greedy`, `masked_truncated`, `masked_first_position` (see
   `turnwise.rl.rows`)
7. `trained`

The bins of a rollout are written when a step takes its group, or an incarnation supersedes it. A
job that has ended has rollouts of which neither is true: `dropped_unfinished`, which the store
counts when it is asked, so that a resume may still train or supersede them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from turnwise import errors
from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import Fault, Purpose, Trajectory, Turn
from turnwise.rl.advantages import GroupAdvantages
from turnwise.rl.rows import is_first, is_greedy

_OF_NO_STEP = (Bin.NOT_FOR_TRAINING, Bin.DROPPED_UNFINISHED)


def of_fault(fault: Fault) -> Bin:
    """The bin of a failed rollout's tokens."""
    if fault.is_late:
        return Bin.DROPPED_DEADLINE
    return Bin.DROPPED_SUPERSEDED if fault.code == "superseded" else Bin.DROPPED_FAILED


def of_group(group: GroupAdvantages) -> Bin:
    """The bin of a group's scored rollouts, before masks: its fate."""
    if group.is_unpaired:
        return Bin.DROPPED_UNPAIRED
    return Bin.DROPPED_ZERO_ADVANTAGE if group.is_zero else Bin.TRAINED


def account(trajectory: Trajectory, fate: Bin, *, mask_truncated: bool = False) -> dict[Bin, int]:
    """Tokens per bin of one closed rollout; they add up to `trajectory.sampled_tokens`.

    `fate` is its group's, and counts if the rollout was scored. Empty bins are left out. Raises
    `Conflict` while a training rollout is open: its tokens have not ended anywhere yet.
    """
    bins: Counter[Bin] = Counter()
    for turn in trajectory.turns:
        bin = _bin(trajectory, turn, fate)
        if bin is Bin.TRAINED and mask_truncated and turn.is_truncated:
            bin = Bin.MASKED_TRUNCATED
        bins[bin] += turn.completion_tokens
        bins[_past_stop(bin)] += turn.past_stop_tokens
        if bin is Bin.TRAINED and is_first(trajectory, turn):
            bins[Bin.TRAINED] -= 1
            bins[Bin.MASKED_FIRST_POSITION] += 1
    return {bin: tokens for bin, tokens in bins.items() if tokens}


def _past_stop(bin: Bin) -> Bin:
    """The bin of what followed a turn's stop string, by the bin of the turn."""
    return bin if bin is Bin.NOT_FOR_TRAINING else Bin.DROPPED_PAST_STOP


def total(accounts: Iterable[Mapping[Bin, int]]) -> dict[Bin, int]:
    """Tokens per bin over many rollouts; every bin that a step's rollouts may end in is there."""
    sums: dict[Bin, int] = {bin: 0 for bin in Bin if bin not in _OF_NO_STEP}
    for bins in accounts:
        for bin, tokens in bins.items():
            sums[bin] = sums.get(bin, 0) + tokens
    return sums


def _bin(trajectory: Trajectory, turn: Turn, fate: Bin) -> Bin:
    rollout = trajectory.rollout
    if rollout.purpose is not Purpose.TRAIN:
        return Bin.NOT_FOR_TRAINING
    if rollout.status.is_open:
        raise errors.Conflict(f"rollout {rollout.rollout_id} is still open")
    if not turn.is_delivered:
        return Bin.DROPPED_UNDELIVERED
    if not rollout.is_scored:
        return of_fault(rollout.fault) if rollout.fault else Bin.DROPPED_FAILED
    if fate is Bin.TRAINED and is_greedy(turn):
        return Bin.MASKED_GREEDY
    return fate
