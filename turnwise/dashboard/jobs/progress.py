"""How far a job is and how long it has to go, folded from its events. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from turnwise.domain.event import Event, EventKind
from turnwise.domain.job import JobKind, JobStatus, Secondary

#: What the list shows of how a job is doing: of a step of training, and of an evaluation.
REWARDS = ("rollout/reward/mean", "eval/reward/mean")
_EPOCH = "training/epoch"

#: An estimate looks at so many of the newest steps: speed changes as replies get longer.
RECENT_STEPS = 10
#: A curve in a list is drawn through so many points at most.
MOST_POINTS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a job's events up to `seq` say.

    `rewards` are (step, mean reward) in order; of a step that was trained again after a resume,
    the later one. `step_ends` are when the newest steps of the last start ended, seconds since the
    epoch. `steps` and `rollouts` are what the job said it plans; 0: not known.
    """

    seq: int = 0
    steps: int = 0
    rollouts: int = 0
    epoch: int | None = None  # from 0, of the newest step
    rewards: tuple[tuple[int, float], ...] = ()
    step_ends: tuple[float, ...] = ()
    evaluating_since: float | None = None  # of an evaluation

    @property
    def latest_reward(self) -> float | None:
        """The newest step's, or an evaluation's."""
        return self.rewards[-1][1] if self.rewards else None

    def after(self, events: Iterable[Event]) -> Progress:
        """The progress once these have been read too."""
        now = self
        for event in events:
            if event.kind is EventKind.LOG:
                now = _planned(now, event)
            elif event.kind is EventKind.METRICS:
                now = _measured(now, event)
            elif event.kind is EventKind.STATUS:
                now = _moved(now, event)
            now = replace(now, seq=event.seq)
        return now


def _planned(now: Progress, event: Event) -> Progress:
    steps = int(event.body.get("steps", now.steps))
    rollouts = int(event.body.get("rollouts", now.rollouts))
    return replace(now, steps=steps, rollouts=rollouts)


def _measured(now: Progress, event: Event) -> Progress:
    step, values = int(event.body["step"]), event.body["values"]
    reward = next((values[name] for name in REWARDS if values.get(name) is not None), None)
    if reward is None:
        return now
    earlier = [point for point in now.rewards if point[0] < step]
    return replace(
        now,
        rewards=(*earlier, (step, float(reward))),
        epoch=int(values[_EPOCH]) if values.get(_EPOCH) is not None else now.epoch,
        step_ends=(*now.step_ends, event.at)[-RECENT_STEPS - 1 :],
    )


def _moved(now: Progress, event: Event) -> Progress:
    """A start, first or not: the time until then says nothing about the speed of its steps."""
    secondary = Secondary(event.body["secondary"])
    if secondary in (Secondary.STARTING, Secondary.RESTARTING):
        return replace(now, step_ends=(), evaluating_since=None)
    if secondary is Secondary.EVALUATING and now.evaluating_since is None:
        return replace(now, evaluating_since=event.at)
    return now


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """So many of so many steps or rollouts; `total` 0: not known."""

    count: int
    total: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return min(self.count / self.total, 1.0) if self.total else 0.0


def done(
    progress: Progress, *, kind: JobKind, status: JobStatus, step: int, max_steps: int, ended: int
) -> Done:
    """How much is done: finished steps, or of an evaluation ended rollouts (`ended`).

    >>> done(Progress(steps=40), kind=JobKind.TRAIN, status=JobStatus.RUNNING, step=10,
    ...      max_steps=50, ended=0)
    Done(count=10, total=40)
    """
    if kind is JobKind.TRAIN:
        return Done(count=step, total=progress.steps or max_steps)
    if status is JobStatus.COMPLETED:
        return Done(count=progress.rollouts, total=progress.rollouts)
    return Done(count=min(ended, progress.rollouts), total=progress.rollouts)


def step_seconds(step_ends: Sequence[float]) -> float | None:
    """The mean time between the newest steps' ends; None before there are two.

    >>> step_seconds([100.0, 110.0, 124.0]), step_seconds([100.0])
    (12.0, None)
    """
    gaps = [later - earlier for earlier, later in pairwise(step_ends)]
    return sum(gaps) / len(gaps) if gaps else None


def ends_at(progress: Progress, of: Done, *, kind: JobKind, now: float) -> float | None:
    """When a running job will have ended if it goes on as now, seconds since the epoch.

    Of training by the mean of its newest steps, validations between them included; of an
    evaluation by the rollouts per second so far. None while there is nothing to go by.
    """
    left = of.total - of.count
    if not of.total or left < 0:
        return None
    if kind is JobKind.TRAIN:
        seconds = step_seconds(progress.step_ends)
        return None if seconds is None else progress.step_ends[-1] + left * seconds
    since = progress.evaluating_since
    if since is None or not of.count or now <= since:
        return None
    return now + left * (now - since) / of.count


def sparkline(
    rewards: Sequence[tuple[int, float]], *, width: float = 96.0, height: float = 24.0
) -> str:
    """The path of an SVG of that size through a curve; empty with fewer than two points.

    >>> sparkline([(0, 0.0), (1, 1.0), (2, 0.5)], width=20, height=12)
    'M0.0 10.0L10.0 2.0L20.0 6.0'
    """
    points = thinned(rewards, MOST_POINTS)
    if len(points) < 2:
        return ""
    steps, values = [step for step, _ in points], [value for _, value in points]
    wide = max(steps[-1] - steps[0], 1)
    low, high = min(values), max(values)
    margin = 2.0  # half of the line's width stays inside
    scale = (height - 2 * margin) / (high - low) if high > low else 0.0
    base = height - margin if high > low else height / 2
    places = [
        f"{(step - steps[0]) / wide * width:.1f} {base - (value - low) * scale:.1f}"
        for step, value in points
    ]
    return "M" + "L".join(places)


def thinned(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most so many of the points, evenly spaced, the first and the last among them.

    >>> thinned([(n, 0.0) for n in range(10)], 4)
    [(0, 0.0), (3, 0.0), (6, 0.0), (9, 0.0)]
    """
    if len(points) <= most:
        return list(points)
    last = len(points) - 1
    return [points[round(n * last / (most - 1))] for n in range(most)]
