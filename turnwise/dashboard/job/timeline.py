"""A job's past, folded from its events: the states that it went through, its steps. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from turnwise.domain.event import Event, EventKind
from turnwise.domain.rollout import Purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A state that the job entered. `seconds` is how long it lasted, None while it does."""

    at: float
    status: str
    secondary: str
    message: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLine:
    """A finished step."""

    step: int
    epoch: int
    ended_at: float
    seconds: float | None
    reward: float | None
    groups: int
    rollouts: int
    trained_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochLines:
    """An epoch's steps, newest first; `reward` is their mean."""

    epoch: int
    steps: tuple[StepLine, ...]
    reward: float | None


class Timeline:
    """As far as events have been added. A step that was trained again is as it was last."""

    def __init__(self) -> None:
        self._phases: list[Event] = []
        self._metrics: Mapping[str, Any] = {}  # of the step that is about to end
        self._steps: dict[int, StepLine] = {}
        self._validated: dict[int, float] = {}

    def add(self, events: Iterable[Event]) -> None:
        """Take in these, which come in order."""
        for event in events:
            if event.kind is EventKind.STATUS:
                self._phases.append(event)
            elif event.kind is EventKind.METRICS:
                self._metrics = event.body
            elif event.kind is EventKind.STEP:
                self._steps[event.body["step"]] = _line(event, self._metrics)
            elif event.kind is EventKind.EVALUATION:
                self._validate(event.body)

    def _validate(self, body: Mapping[str, Any]) -> None:
        reward = body["values"].get("val/reward/mean")
        if body["purpose"] == Purpose.VALIDATION and reward is not None:
            self._validated[body["step"]] = float(reward)

    @property
    def validated(self) -> Mapping[int, float]:
        """Validation rewards by how many steps the policy had been trained."""
        return self._validated

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Oldest first."""
        ends: Sequence[float | None] = [*(event.at for event in self._phases[1:]), None]
        return tuple(
            Phase(
                at=event.at,
                status=event.body["status"],
                secondary=event.body["secondary"],
                message=str(event.body.get("message", "")),
                seconds=None if end is None else end - event.at,
            )
            for event, end in zip(self._phases, ends, strict=True)
        )

    def steps(self, *, before: int | None = None, limit: int | None = None) -> list[StepLine]:
        """Newest first: those below `before`, and no more than `limit`."""
        chosen = sorted((s for s in self._steps if before is None or s < before), reverse=True)
        return [self._steps[step] for step in chosen[:limit]]

    def __len__(self) -> int:
        return len(self._steps)


def epochs(steps: Sequence[StepLine]) -> tuple[EpochLines, ...]:
    """Steps, newest first, by their epochs."""
    grouped = ((epoch, tuple(its)) for epoch, its in groupby(steps, key=lambda line: line.epoch))
    return tuple(
        EpochLines(epoch=epoch, steps=its, reward=_mean([line.reward for line in its]))
        for epoch, its in grouped
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _line(event: Event, metrics: Mapping[str, Any]) -> StepLine:
    """A STEP event, with the metrics that were written together with it."""
    step = int(event.body["step"])
    values: Mapping[str, float] = metrics.get("values", {}) if metrics.get("step") == step else {}
    return StepLine(
        step=step,
        epoch=int(values.get("training/epoch", 0)),
        ended_at=event.at,
        seconds=values.get("timing_s/step"),
        reward=values.get("rollout/reward/mean"),
        groups=len(event.body["groups"]),
        rollouts=int(values.get("training/num_trajectories", 0)),
        trained_tokens=int(event.body["trained_tokens"]),
    )
