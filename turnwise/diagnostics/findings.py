"""What is looked at, and what is found in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from turnwise.domain.curves import Curve
from turnwise.domain.job import JobSpec
from turnwise.ports import Tally


class Severity(StrEnum):
    """How much of the job's worth is at stake."""

    ERROR = "error"  # going on as it is will not lead anywhere
    WARNING = "warning"  # it learns worse, slower or from less than it could
    INFO = "info"  # worth knowing when its curves are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a job has recorded so far."""

    spec: JobSpec
    curves: Mapping[str, Curve]  # by metric
    rollouts: Sequence[Tally] = ()

    def curve(self, metric: str) -> Curve:
        """A metric's curve, empty where it was never logged."""
        return self.curves.get(metric, ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One number that a finding rests on."""

    step: int
    metric: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something about a job that whoever runs it should know.

    `rollouts` are the filters, in the words of `ports.RolloutQuery`, that show rollouts of it; none
    where no rollouts are more telling than others.

    >>> found = Finding(code="low_reward", severity=Severity.WARNING, title="Reward is stuck",
    ...     evidence=(Evidence(step=9, metric="rollout/reward/mean", value=0.1),),
    ...     remedy="start from a better model", rollouts={"step": "9"})
    >>> found.severity.value
    'warning'
    """

    code: str
    severity: Severity
    title: str  # with the numbers
    evidence: tuple[Evidence, ...]
    remedy: str
    rollouts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a check saw: the sentence with its numbers, and what it saw them in."""

    title: str
    evidence: tuple[Evidence, ...]
    rollouts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A question put to what was recorded. `when` says in words when it finds something."""

    code: str
    severity: Severity
    when: str
    remedy: str
    look: Callable[[Recorded], Found | None]

    def finding(self, recorded: Recorded) -> Finding | None:
        """The answer, if there is something to say."""
        found = self.look(recorded)
        if found is None:
            return None
        return Finding(
            code=self.code,
            severity=self.severity,
            title=found.title,
            evidence=found.evidence,
            remedy=self.remedy,
            rollouts=found.rollouts,
        )
