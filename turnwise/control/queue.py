"""The queue of waiting jobs: who is next when a place is free, and what an account may have. Pure.

The server's places are given out one by one. The next one goes to the waiting job of the highest
priority; among equals, to the account that runs the fewest jobs; then to the job created first.
An account at its own limit is passed over, so its jobs hold nobody up. Priority counts across
accounts: where accounts do not trust each other, `account_running_jobs` below `max_running_jobs`
keeps places for the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from turnwise import errors
from turnwise.domain.job import Job, JobKind
from turnwise.ports import JobSummary

J = TypeVar("J", Job, JobSummary)

_SETTING = {
    JobKind.TRAIN: "quota_training_jobs",
    JobKind.EVALUATION: "quota_evaluation_jobs",
}
_CALLED = {JobKind.TRAIN: "training", JobKind.EVALUATION: "evaluation"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many jobs there may be. 0 means as many as `running`.

    `running` and `account_running` bound the jobs that run at once, on the server and of one
    account; jobs beyond wait. The quotas bound an account's unfinished jobs of a kind, waiting
    ones included; only a door that refuses rather than lets wait asks for them.
    """

    running: int
    account_running: int = 0
    training_quota: int = 0
    evaluation_quota: int = 0

    @property
    def of_an_account(self) -> int:
        """Jobs of one account that run at once."""
        return min(self.account_running or self.running, self.running)

    def quota(self, kind: JobKind) -> int:
        """Unfinished jobs of a kind that an account may have."""
        given = self.training_quota if kind is JobKind.TRAIN else self.evaluation_quota
        return given or self.running


def in_order(waiting: Iterable[J], running: Mapping[str, int]) -> list[J]:
    """Waiting jobs (oldest first) in the order in which they get places.

    `running` counts the places held, by account id. Each job a place is given to counts at once,
    so two accounts with many equal jobs take turns.

    >>> from turnwise.domain.job import AgentSpec, JobSpec
    >>> def job(account, name, priority=0):
    ...     spec = JobSpec(name=name, model="", dataset="", agent=AgentSpec(), priority=priority)
    ...     return Job(job_id=name, account_id=account, name=name, spec=spec)
    >>> waiting = [job("a", "a1"), job("a", "a2"), job("b", "b1"), job("a", "a3", priority=1)]
    >>> [job.name for job in in_order(waiting, {})]
    ['a3', 'b1', 'a1', 'a2']
    """
    taken = Counter(running)
    keyed: list[tuple[int, int, int, J]] = []
    by_priority = sorted(enumerate(waiting), key=lambda at: (-at[1].priority, at[0]))
    for created, job in by_priority:
        keyed.append((-job.priority, taken[job.account_id], created, job))
        taken[job.account_id] += 1
    return [job for *_, job in sorted(keyed, key=lambda key: key[:3])]


def startable(waiting: Iterable[Job], running: Mapping[str, int], limits: Limits) -> Iterator[Job]:
    """The waiting jobs that get the free places, in order."""
    taken = Counter(running)
    for job in in_order(waiting, running):
        if taken.total() >= limits.running:
            return
        if taken[job.account_id] < limits.of_an_account:
            taken[job.account_id] += 1
            yield job


def check_quota(unfinished: Sequence[J], kind: JobKind, limits: Limits) -> None:
    """Raise `LimitExceeded` if the account's unfinished jobs leave no room for one more of `kind`.

    The text names the quota, its value and the jobs that use it.
    """
    using = [job for job in unfinished if job.kind is kind]
    quota = limits.quota(kind)
    if len(using) < quota:
        return
    names = ", ".join(f"{job.name} ({job.status.value})" for job in using[:5])
    more = f" and {len(using) - 5} more" if len(using) > 5 else ""
    raise errors.LimitExceeded(
        f"the account may have {quota} unfinished {_CALLED[kind]} job{'s' if quota > 1 else ''} "
        f"({_SETTING[kind]}), and has {names}{more}; wait for one to end, or stop one"
    )
