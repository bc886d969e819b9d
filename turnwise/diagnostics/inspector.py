"""Looks at a job's records through whoever reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from turnwise.diagnostics.checks import findings
from turnwise.diagnostics.findings import Finding, Recorded
from turnwise.domain.access import Principal
from turnwise.domain.curves import Curves
from turnwise.domain.event import Event
from turnwise.domain.job import Job
from turnwise.ports import Tally


class JobReader(Protocol):
    """Describes jobs: `control.jobs.Jobs`."""

    async def describe(self, principal: Principal, id_or_name: str) -> Job:
        """Raises `NotFound`, and `Denied` for who may not read it."""
        ...


class RecordReader(Protocol):
    """Reads what jobs have recorded: `control.browse.Browse`."""

    async def metrics_since(
        self, principal: Principal, id_or_name: str, after: int = 0
    ) -> list[Event]:
        """All METRICS events past one."""
        ...

    async def tally(self, principal: Principal, id_or_name: str) -> Sequence[Tally]:
        """How many rollouts there are of each kind."""
        ...


class Inspector:
    """Finds what is wrong with jobs. Every call requires a principal with the right."""

    def __init__(self, jobs: JobReader, records: RecordReader) -> None:
        self._jobs = jobs
        self._records = records

    async def findings(self, principal: Principal, id_or_name: str) -> tuple[Finding, ...]:
        """What all checks find in a job so far, errors first. Raises `NotFound`."""
        job = await self._jobs.describe(principal, id_or_name)
        curves = Curves()
        curves.add(await self._records.metrics_since(principal, job.job_id))
        tallies = await self._records.tally(principal, job.job_id)
        return findings(Recorded(spec=job.spec, curves=curves, rollouts=tallies))
