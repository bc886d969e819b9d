"""One job as its page shows it: what its events say, each read once, and what is asked again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from turnwise.control.browse import PAGE
from turnwise.dashboard.job.prices import UsageLine, total, usage_lines
from turnwise.dashboard.job.timeline import Timeline
from turnwise.dashboard.jobs.progress import Done, Progress, done, ends_at
from turnwise.dashboard.rooms import DashboardRooms
from turnwise.diagnostics import Finding, Recorded, findings
from turnwise.domain.access import Principal
from turnwise.domain.curves import Curves
from turnwise.domain.event import EventKind
from turnwise.domain.job import BASE, Job, JobKind, JobStatus
from turnwise.domain.ledger import TokenUsage
from turnwise.ports import LogQuery, ModelPackage, Tally

#: What is not told by events is asked again after so long: each is a sum over all rollouts.
ASK_AGAIN_S = 5.0
#: Jobs whose events are remembered; others are read from their first event again.
_REMEMBERED = 64
#: Of the events that a job's page reads; rollouts, by far the most, are counted by the store.
_KINDS = (
    EventKind.STATUS,
    EventKind.LOG,
    EventKind.METRICS,
    EventKind.STEP,
    EventKind.EVALUATION,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the store sums up, as of a time."""

    at: float
    step: int
    status: JobStatus
    tally: tuple[Tally, ...]
    usage: TokenUsage
    ledger: Mapping[str, int]  # tokens by bin, over all steps
    packages: tuple[ModelPackage, ...]  # of the job, newest first


@dataclass(slots=True)
class Watch:
    """One job's events so far."""

    seq: int = 0
    progress: Progress = field(default_factory=Progress)
    curves: Curves = field(default_factory=Curves)
    timeline: Timeline = field(default_factory=Timeline)
    asked: Asked | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job at a moment; `watch` goes on, so what is drawn of it is drawn at once."""

    job: Job
    watch: Watch
    asked: Asked
    done: Done
    newest: int  # the newest event's seq
    ends_at: float | None  # by the estimate
    usage: tuple[UsageLine, ...]
    cost: float | None
    findings: tuple[Finding, ...]

    @property
    def is_training(self) -> bool:
        """Whether it has steps."""
        return self.job.spec.kind is JobKind.TRAIN

    @property
    def unit(self) -> str:
        """What is counted."""
        return "step" if self.is_training else "rollout"

    @property
    def epoch(self) -> int | None:
        """From 1, of the newest step."""
        return None if self.watch.progress.epoch is None else self.watch.progress.epoch + 1

    @property
    def base(self) -> str:
        """The base model's folder, without the path."""
        return Path(self.job.spec.model).name

    @property
    def starts_from(self) -> str:
        """What it continues or starts from, empty for the base model."""
        named = self.job.parent or self.job.spec.input_adapter
        return "" if named == BASE else named


class Watches:
    """The jobs that somebody has looked at lately."""

    def __init__(self, rooms: DashboardRooms) -> None:
        self._rooms = rooms
        self._known: OrderedDict[str, Watch] = OrderedDict()

    async def view(self, who: Principal, id_or_name: str) -> JobView:
        """A job as it stands. Raises `NotFound`, and `Denied` for who may not read it."""
        job = await self._rooms.jobs.describe(who, id_or_name)
        watch = self._watch(job.job_id)
        newest = await self._newest(who, job)
        await self._read(who, job, watch)
        asked = watch.asked = await self._ask(who, job, watch.asked)
        ended = sum(each.count for each in asked.tally if not each.status.is_open)
        its = done(
            watch.progress,
            kind=job.spec.kind,
            status=job.status,
            step=job.step,
            max_steps=job.spec.schedule.max_steps,
            ended=ended,
        )
        lines = usage_lines(asked.usage, self._rooms.prices)
        now = self._rooms.clock.now()
        is_running = job.status is JobStatus.RUNNING
        return JobView(
            job=job,
            watch=watch,
            asked=asked,
            done=its,
            newest=newest,
            ends_at=ends_at(watch.progress, its, kind=job.spec.kind, now=now)
            if is_running
            else None,
            usage=lines,
            cost=total(lines),
            findings=_findings(job, watch, asked),
        )

    def _watch(self, job_id: str) -> Watch:
        watch = self._known.setdefault(job_id, Watch())
        self._known.move_to_end(job_id)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return watch

    async def _newest(self, who: Principal, job: Job) -> int:
        query = LogQuery(job_id=job.job_id, newest_first=True, limit=1)
        found = await self._rooms.browse.log_events(who, query)
        return found[0].seq if found else 0

    async def _read(self, who: Principal, job: Job, watch: Watch) -> None:
        """Take in new events. Of two readers at once, the later passes over what is known."""
        while True:
            page = await self._rooms.browse.events(
                who, job.job_id, after=watch.seq, kinds=_KINDS, limit=PAGE
            )
            new = [event for event in page if event.seq > watch.seq]
            if new:
                watch.progress = watch.progress.after(new)
                watch.curves.add(new)
                watch.timeline.add(new)
                watch.seq = new[-1].seq
            if len(page) < PAGE:
                return

    async def _ask(self, who: Principal, job: Job, before: Asked | None) -> Asked:
        now = self._rooms.clock.now()
        if before is not None and (before.step, before.status) == (job.step, job.status):
            is_fresh = now - before.at < ASK_AGAIN_S
            if is_fresh or (job.status.is_final and before.at > (job.ended_at or now)):
                return before
        browse = self._rooms.browse
        packages = await browse.packages(who, group=job.spec.adapters_in)
        return Asked(
            at=now,
            step=job.step,
            status=job.status,
            tally=tuple(await browse.tally(who, job.job_id)),
            usage=await browse.usage(who, job.job_id),
            ledger=_summed(await browse.ledger(who, job.job_id)),
            packages=tuple(each for each in reversed(packages) if each.job_id == job.job_id),
        )


def _summed(ledger: Mapping[int, Mapping[str, int]]) -> Mapping[str, int]:
    """Tokens by bin over all steps, the most first; empty bins are left out."""
    found: dict[str, int] = {}
    for bins in ledger.values():
        for name, tokens in bins.items():
            found[name] = found.get(name, 0) + tokens
    return dict(sorted(((n, t) for n, t in found.items() if t), key=lambda each: -each[1]))


def _findings(job: Job, watch: Watch, asked: Asked) -> tuple[Finding, ...]:
    if job.spec.kind is not JobKind.TRAIN:
        return ()
    return findings(Recorded(spec=job.spec, curves=watch.curves, rollouts=asked.tally))
