"""Reading what an evaluation left behind."""

from __future__ import annotations

import asyncio

from turnwise import errors
from turnwise.domain.access import Action, Principal
from turnwise.domain.evaluation import results_key, table_key
from turnwise.domain.job import Job, JobKind
from turnwise.ports import Blobs, Store


class StoredResults:
    """The files of evaluation jobs. Every call requires a principal with the right."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs

    async def document(self, principal: Principal, id_or_name: str) -> bytes:
        """The results as JSON. Raises `Conflict` while there are none."""
        job = await self._job(principal, id_or_name)
        return await self._read(job, results_key(job.job_id))

    async def table(self, principal: Principal, id_or_name: str) -> bytes:
        """The table of rows as CSV. Raises `Conflict` while there is none."""
        job = await self._job(principal, id_or_name)
        return await self._read(job, table_key(job.job_id))

    async def _job(self, principal: Principal, id_or_name: str) -> Job:
        job = await self._store.job(principal.account_id, id_or_name)
        principal.require(Action.READ, job_id=job.job_id)
        if job.spec.kind is not JobKind.EVALUATION:
            raise errors.Conflict(
                f"job {job.name!r} is not an evaluation; `turnwise eval` makes one of its job file"
            )
        return job

    async def _read(self, job: Job, key: str) -> bytes:
        try:
            return await asyncio.to_thread(self._blobs.path(key).read_bytes)
        except FileNotFoundError:
            raise errors.Conflict(
                f"job {job.name!r} is {job.status.value} and has no results"
                + ("" if job.status.is_final else " yet; they come at its end")
            ) from None
