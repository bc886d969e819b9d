"""What people write about a job: its description, and what they expected and found of it.

Kept beside the job, which is as it was started; deleted with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Protocol

from turnwise import errors
from turnwise.domain.access import Action, Principal
from turnwise.domain.job import Job
from turnwise.domain.resource import Resource
from turnwise.ports import Clock, Resources

#: The kind of the records; each is named by its job's id.
NOTES = "job-notes"

#: Characters of each text: notes are for a page, longer ones for a document.
MAX_CHARS = 4000


class JobReader(Protocol):
    """Describes jobs: `control.jobs.Jobs`."""

    async def describe(self, principal: Principal, id_or_name: str) -> Job:
        """Raises `NotFound`, and `Denied` for who may not read it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What is written about a job; empty where nothing is.

    >>> Notes(hypothesis="a lower rate keeps entropy").result
    ''
    """

    description: str = ""
    hypothesis: str = ""
    result: str = ""


class JobNotes:
    """Reads and writes notes. Every call requires a principal with the right."""

    def __init__(self, jobs: JobReader, resources: Resources, clock: Clock) -> None:
        self._jobs = jobs
        self._resources = resources
        self._clock = clock
        self._writing = asyncio.Lock()

    async def of(self, principal: Principal, id_or_name: str) -> Notes:
        """A job's. Until one is written, the description is the job file's."""
        job = await self._jobs.describe(principal, id_or_name)
        try:
            found = await self._resources.resource(job.account_id, NOTES, job.job_id)
        except errors.NotFound:
            return Notes(description=job.spec.description)
        return _notes(found.body)

    async def all(self, principal: Principal) -> dict[str, Notes]:
        """Those that have been written about the jobs that the key may see, by job id."""
        principal.require(Action.READ)
        found = await self._resources.resources(principal.account_id, NOTES)
        return {
            each.name: _notes(each.body)
            for each in found
            if principal.allows(Action.READ, job_id=each.name)
        }

    async def write(self, principal: Principal, id_or_name: str, notes: Notes) -> Notes:
        """Replace a job's notes. Raises `InvalidInput` for a text that is too long, `Denied`."""
        job = await self._jobs.describe(principal, id_or_name)
        principal.require(Action.MANAGE, job_id=job.job_id)
        kept = Notes(**{name: _checked(name, text) for name, text in asdict(notes).items()})
        record = Resource(
            account_id=job.account_id,
            kind=NOTES,
            name=job.job_id,
            body=asdict(kept),
            created_at=self._clock.now(),
        )
        async with self._writing:
            try:
                await self._resources.change_resource(record)
            except errors.NotFound:
                await self._resources.create_resource(record)
        return kept


def _checked(name: str, text: str) -> str:
    text = text.replace("\r\n", "\n").strip()
    if len(text) > MAX_CHARS:
        raise errors.InvalidInput(
            name,
            text[:40] + "...",
            f"has {len(text)} characters",
            remedy=f"write at most {MAX_CHARS}, and link to the rest",
        )
    return text


def _notes(body: Mapping[str, str]) -> Notes:
    return Notes(**{each.name: str(body.get(each.name, "")) for each in fields(Notes)})
