"""What a job leaves, written where its `output_path` says when it ends.

    <output_path>/<name>/output/   train: the adapter's PEFT folder, and its metrics.json
                                   evaluation: results.json and rows.csv

The job has its outcome anyway, so a place that cannot be written to is told in its log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from pathlib import Path

from turnwise import errors
from turnwise.control.lineage import adapter_folder
from turnwise.control.objects.buckets import Buckets
from turnwise.control.objects.locations import Location, parse_location
from turnwise.domain.evaluation import results_key, table_key
from turnwise.domain.event import EventDraft, EventKind, Level
from turnwise.domain.job import Job, JobKind
from turnwise.ports import Blobs, ModelPackage, Store

log = logging.getLogger(__name__)


class Outputs:
    """Writes outcomes."""

    def __init__(self, store: Store, buckets: Buckets, blobs: Blobs) -> None:
        self._store = store
        self._transfer = buckets.transfer
        self._blobs = blobs

    async def deliver(self, job: Job) -> None:
        """Write what there is of a job that is about to end. Its log says where, or why not."""
        if not job.spec.output_path:
            return
        try:
            to = output_of(job)
            write = self._results if job.spec.kind is JobKind.EVALUATION else self._adapter
            is_there = await write(job, to)
        except Exception as error:  # supervision: a job that has trained does not fail by this
            is_ours = isinstance(error, errors.TurnwiseError)
            reason = str(error) if is_ours else f"{type(error).__name__}: {error}"
            if not is_ours:
                log.exception("the output of job %s could not be written", job.name)
            message = (
                f"the output could not be written to {job.spec.output_path}: {reason}; the job "
                "keeps it: `turnwise models export` or `turnwise jobs results` gives it out"
            )
            await self._say(job, message, Level.WARNING)
        else:
            if is_there:
                await self._say(job, f"the output is at {to}", Level.INFO)

    async def _adapter(self, job: Job, to: Location) -> bool:
        package = await self._newest(job)
        if package is None:
            return False
        await self._transfer.upload(job.account_id, Path(adapter_folder(package)), to)
        summary = {
            "model": package.name,
            "step": package.step,
            "metrics": package.metadata.get("metrics", {}),
        }
        await self._write_text(job, json.dumps(summary, indent=2), to.below("metrics.json"))
        return True

    async def _results(self, job: Job, to: Location) -> bool:
        is_there = False
        for key, name in (
            (results_key(job.job_id), "results.json"),
            (table_key(job.job_id), "rows.csv"),
        ):
            file = self._blobs.path(key)
            if await asyncio.to_thread(file.is_file):
                await self._transfer.write(job.account_id, file, to.below(name))
                is_there = True
        return is_there

    async def _newest(self, job: Job) -> ModelPackage | None:
        """The adapter of the last step whose files are still there."""
        found = await self._store.packages(job.account_id, group=job.spec.adapters_in)
        kept = (
            each
            for each in reversed(found)
            if each.job_id == job.job_id and each.kind == "adapter" and each.pruned_at is None
        )
        return next(kept, None)

    async def _write_text(self, job: Job, text: str, to: Location) -> None:
        with tempfile.TemporaryDirectory(prefix="turnwise-") as folder:
            file = Path(folder) / "text"
            await asyncio.to_thread(file.write_text, text, encoding="utf-8")
            await self._transfer.write(job.account_id, file, to)

    async def _say(self, job: Job, message: str, level: Level) -> None:
        draft = EventDraft(kind=EventKind.LOG, body={"message": message}, level=level)
        await self._store.append(job.account_id, job.job_id, [draft])


def output_of(job: Job) -> Location:
    """Where a job's output goes."""
    return parse_location(job.spec.output_path, "output_path").below(f"{job.name}/output")
