"""Whether a whole epoch gave nothing to learn from, so that going on would waste the rest. Pure.

    early = EarlyStop(num_rows=64)
    early.see(tallies)   # of each finished step
    early.epoch          # the epoch that says to stop; None: go on

An epoch says so once all of its groups are trained and none of them, nor of a later epoch, was
learnable. A group without two scored rollouts says nothing about rewards: its agent failed, which
another epoch may not repeat. So at least half of the epoch's groups must have been scored alike.

Tallies travel in STEP events, from which a job that starts again has its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turnwise.rl.statistics import ScoredGroup

#: Rollouts that a tally names, each of another group, and scores that its text does.
MAX_ROLLOUTS, MAX_SCORES = 4, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What trained groups of one epoch were like.

    `alike` counts the groups that are not learnable and have at least two scored rollouts, by the
    total reward that all of them got. `rollouts` are ids of such rollouts.
    """

    epoch: int
    groups: int = 0
    learnable: int = 0  # groups with an advantage that is not 0, or rewards that differ
    alike: Mapping[float, int]
    rollouts: tuple[str, ...] = ()

    @classmethod
    def of(cls, epoch: int, group: ScoredGroup) -> Tally:
        """One group's."""
        scored = group.scored
        if group.is_valid or len({each.rollout.rewards for each in scored}) > 1:
            return cls(epoch=epoch, groups=1, learnable=1, alike={})
        if len(scored) < 2:
            return cls(epoch=epoch, groups=1, alike={})
        shown = (scored[0].rollout.rollout_id,)
        return cls(epoch=epoch, groups=1, alike={group.rewards[0]: 1}, rollouts=shown)

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Tally:
        """As an event holds it."""
        return cls(
            epoch=body["epoch"],
            groups=body["groups"],
            learnable=body["learnable"],
            alike={float(score): count for score, count in body["alike"]},
            rollouts=tuple(body["rollouts"]),
        )

    def as_body(self) -> dict[str, Any]:
        """For an event."""
        return {
            "epoch": self.epoch,
            "groups": self.groups,
            "learnable": self.learnable,
            "alike": [[score, count] for score, count in self.alike.items()],
            "rollouts": list(self.rollouts),
        }

    def plus(self, other: Tally) -> Tally:
        """Both together, of the same epoch."""
        return Tally(
            epoch=self.epoch,
            groups=self.groups + other.groups,
            learnable=self.learnable + other.learnable,
            alike=Counter(self.alike) + Counter(other.alike),
            rollouts=(*self.rollouts, *other.rollouts)[:MAX_ROLLOUTS],
        )


def tallies(groups: Iterable[tuple[int, ScoredGroup]]) -> tuple[Tally, ...]:
    """The tallies of one step's groups, each given with its epoch."""
    return tuple(_together(Tally.of(epoch, group) for epoch, group in groups).values())


def _together(seen: Iterable[Tally]) -> dict[int, Tally]:
    """By epoch."""
    epochs: dict[int, Tally] = {}
    for tally in seen:
        known = epochs.get(tally.epoch)
        epochs[tally.epoch] = known.plus(tally) if known else tally
    return epochs


class EarlyStop:
    """What a job's epochs gave to learn from so far.

    Groups of which there is no tally, as those that the job's predecessor trained, leave their
    epoch undecided.
    """

    def __init__(self, num_rows: int, seen: Iterable[Tally] = ()) -> None:
        """`num_rows` is how many groups an epoch has; `seen`, of steps that are finished."""
        self._num_rows = num_rows
        self._epochs = _together(seen)

    def see(self, step: Sequence[Tally]) -> None:
        """One more step is finished."""
        self._epochs = _together((*self._epochs.values(), *step))

    @property
    def epoch(self) -> Tally | None:
        """The newest epoch that gave nothing to learn from, with nothing to learn since."""
        for number in sorted(self._epochs, reverse=True):
            tally = self._epochs[number]
            if tally.learnable:
                return None
            is_whole = tally.groups == self._num_rows
            if is_whole and 2 * sum(tally.alike.values()) >= tally.groups:
                return tally
        return None

    def reason(self, epoch: Tally) -> str:
        """Why a job that ends after `epoch` does."""
        before = any(tally.learnable for tally in self._epochs.values())
        return (
            f"epoch {epoch.epoch} had {_groups(epoch.groups)} and none with differing rewards "
            f"({_scores(epoch)}): nothing {'left ' if before else ''}to learn from; "
            "check that the evaluator gives varied scores"
        )


def _groups(count: int) -> str:
    return "1 group" if count == 1 else f"{count} groups"


def _scores(tally: Tally) -> str:
    """The common scores, the most frequent first."""
    ordered = sorted(tally.alike.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count} scored {score:g}" for score, count in ordered[:MAX_SCORES]]
    parts[0] += " throughout"
    if others := sum(count for _, count in ordered[MAX_SCORES:]):
        parts.append(f"{others} something else")
    if unscored := tally.groups - sum(tally.alike.values()):
        parts.append(f"{unscored} with fewer than two scored rollouts")
    return ", ".join(parts)
