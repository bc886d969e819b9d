"""One job's events told to its MLflow run.

    events --tell--> run: parameters, dataset; metrics of each step; status; the adapter
    events --trace-> traces: one per chosen rollout, in batches

Both readers keep a cursor in the job's `RunState`, saved after what it counts is in MLflow; each
call may be repeated without doubling anything. So a feed goes on where it stood after a restart,
and while MLflow is down it waits. It holds a page of events and a batch of traces at a time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

import turnwise
from turnwise import errors
from turnwise.domain.event import Event, EventKind
from turnwise.domain.job import Job, JobKind, JobStatus
from turnwise.ports import Clock, Resources, Store
from turnwise.tracking.details import RunState, change_run_state, run_state, save_run_state
from turnwise.tracking.mlflow import MAX_DIGEST_CHARS, Failed, Json, Mlflow, Refused
from turnwise.tracking.reading import FIRST_PAUSE_S, PAGE, Reader
from turnwise.tracking.traces import is_traced, otlp, spans_of

log = logging.getLogger(__name__)

#: A batch of traces, in rollouts and in spans; MLflow keeps all of one or nothing.
MAX_TRACES, MAX_SPANS = 50, 512
#: Events that come close together are told together.
TELL_LINGER_S, TRACE_LINGER_S = 0.2, 1.0
#: A trace that MLflow fails at so often is given up; others wait behind it.
TRACE_TRIES = 5

#: The tag that finds a job's run again.
JOB_TAG = "turnwise.job_id"

_ENDS = {
    JobStatus.COMPLETED: "FINISHED",
    JobStatus.FAILED: "FAILED",
    JobStatus.STOPPED: "KILLED",
}


class Feed:
    """Tells one job's events; ends when the job has, and everything is told."""

    def __init__(
        self,
        job: Job,
        *,
        store: Store,
        resources: Resources,
        mlflow: Mlflow,
        clock: Clock,
        share: Callable[[Job], Awaitable[float]],
    ) -> None:
        """`share` says which part of the job's rollouts is to be traced, before its first."""
        self._job = job
        self._store = store
        self._resources = resources
        self._mlflow = mlflow
        self._clock = clock
        self._share = share
        self._reader = Reader(job, store=store, clock=clock, destination="MLflow")
        self._state: RunState | None = None
        self._has_run = asyncio.Event()
        self._moved = asyncio.Event()

    @property
    def account_id(self) -> str:
        """Whose job it is."""
        return self._job.account_id

    async def run(self) -> None:
        """Tell and trace until the job has ended."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for work, name in ((self._tell, "tell"), (self._trace, "trace")):
                    lasting = self._reader.lasting(work, lambda: self._state)
                    tasks.create_task(lasting, name=f"{name} {self._job.name}")
        except* errors.NotFound:
            log.info("job %s was deleted while it was told to MLflow", self._job.name)

    async def told_until_now(self) -> None:
        """Wait until the run has everything that the event log holds at this moment.

        Returns at once where that is more than a page: it would take too long.
        """
        page = await self._reader.events(self._state.told if self._state else 0)
        if not page or len(page) == PAGE:
            return
        self._reader.hurry()
        while self._state is None or self._state.told < page[-1].seq:
            self._moved.clear()
            await self._moved.wait()

    # ── the run ───────────────────────────────────────────────────────────────────────────────

    async def _tell(self) -> None:
        state = await self._opened()
        self._has_run.set()
        async for page in self._reader.pages(state.told, TELL_LINGER_S):
            for event in page:
                try:
                    await self._tell_event(event, state)
                except Refused as error:
                    log.warning("of job %s, event %d: %s", self._job.name, event.seq, error)
            await self._save(told=page[-1].seq)

    async def _save(self, **changes: Any) -> None:
        assert self._state is not None
        self._state = dataclasses.replace(self._state, **changes)
        await change_run_state(self._resources, self._job.account_id, self._job.job_id, self._state)
        self._moved.set()

    async def _opened(self) -> RunState:
        """The job's run, made if there is none."""
        if self._state is None:
            job = self._job
            found = await run_state(self._resources, job.account_id, job.job_id)
            if found is None:
                found = await self._new_run()
                await save_run_state(self._resources, job.account_id, job.job_id, found)
            self._state = found
            self._moved.set()
        return self._state

    async def _new_run(self) -> RunState:
        job, tracking = self._job, self._job.spec.tracking
        experiment = tracking.experiment or default_experiment(job)
        run_name = tracking.run_name or job.name
        share = await self._share(job)
        experiment_id = await self._mlflow.experiment(experiment)
        run_id = await self._mlflow.find_run(experiment_id, JOB_TAG, job.job_id)
        if not run_id:  # else an earlier server process got no further
            at = job.started_at or job.created_at
            run_id = await self._mlflow.create_run(
                experiment_id, run_name, run_tags(job, share), at=at
            )
        try:
            await self._mlflow.log_params(run_id, params(job))
            await self._mlflow.log_datasets(run_id, datasets(job))
        except Refused as error:
            log.warning("parameters of job %s: %s", job.name, error)
        return RunState(
            experiment=experiment,
            experiment_id=experiment_id,
            run_name=run_name,
            run_id=run_id,
            share=share,
        )

    async def _tell_event(self, event: Event, state: RunState) -> None:
        # An EVALUATION event repeats the values of the METRICS event before it.
        if event.kind is EventKind.METRICS:
            await self._mlflow.log_metrics(
                state.run_id, event.body["values"], step=event.body["step"], at=event.at
            )
        elif event.kind is EventKind.STATUS:
            await self._tell_status(event, state)
        elif event.kind is EventKind.PROMOTION:
            await self._tell_promotion(event, state)

    async def _tell_status(self, event: Event, state: RunState) -> None:
        status = JobStatus(event.body["status"])
        tags = {"turnwise.status": status.value}
        if message := event.body.get("message"):
            tags["turnwise.message"] = message
        await self._mlflow.set_tags(state.run_id, tags)
        ended_at = event.at if status.is_final else None
        await self._mlflow.update_run(state.run_id, _ENDS.get(status, "RUNNING"), ended_at=ended_at)

    async def _tell_promotion(self, event: Event, state: RunState) -> None:
        """The adapter that a job's end leaves, as artifacts."""
        try:
            package = await self._store.package(self._job.account_id, event.body["model"])
        except errors.NotFound:  # deleted since
            return
        files = await asyncio.to_thread(_files, Path(package.path))
        if package.pruned_at is not None or not files:
            return
        await self._mlflow.upload(state.run_id, [(file, f"adapter/{name}") for file, name in files])
        tags = {"turnwise.output": package.name, "turnwise.adapter_id": package.sha256}
        await self._mlflow.set_tags(state.run_id, tags)

    # ── the traces ────────────────────────────────────────────────────────────────────────────

    async def _trace(self) -> None:
        await self._has_run.wait()
        state = await self._opened()
        async for page in self._reader.pages(state.traced, TRACE_LINGER_S):
            chosen = [event for event in page if _is_chosen(event, state.share)]
            for first in range(0, len(chosen), MAX_TRACES):
                batch = chosen[first : first + MAX_TRACES]
                traces = [await self._spans(event.body["rollout_id"]) for event in batch]
                for part in _batches(traces):
                    await self._post(part, state)
                await self._save(traced=batch[-1].seq)
            await self._save(traced=page[-1].seq)

    async def _spans(self, rollout_id: str) -> list[Json]:
        trajectory = await self._store.trajectory(self._job.account_id, rollout_id)
        return await asyncio.to_thread(spans_of, self._job, trajectory)

    async def _post(self, traces: Sequence[list[Json]], state: RunState) -> None:
        """Send traces; where MLflow will not have them together, apart."""
        body = await asyncio.to_thread(otlp, traces)
        for attempt in range(TRACE_TRIES):
            try:
                await self._mlflow.post_spans(state.experiment_id, state.run_id, body)
                return
            except (Refused, Failed) as error:
                if len(traces) > 1:
                    half = len(traces) // 2
                    await self._post(traces[:half], state)
                    await self._post(traces[half:], state)
                    return
                if isinstance(error, Refused) or attempt == TRACE_TRIES - 1:
                    # Unless nothing else can be written either: then it is not the trace's fault.
                    left_out = {"turnwise.trace_left_out": traces[0][0]["traceId"]}
                    await self._mlflow.set_tags(state.run_id, left_out)
                    log.warning("a trace of job %s is left out: %s", self._job.name, error)
                    return
                await self._clock.sleep(FIRST_PAUSE_S * 2**attempt)


# ── what a run says of its job ────────────────────────────────────────────────────────────────


def default_experiment(job: Job) -> str:
    """The experiment of a job that names none.

    >>> from turnwise.domain.job import AgentSpec, JobSpec
    >>> spec = JobSpec(name="walk", model="/models/tiny", dataset="", agent=AgentSpec())
    >>> default_experiment(Job(job_id="job_a", account_id="acc_a", name="walk", spec=spec))
    'tiny-mtrl'
    """
    model = Path(job.spec.model).name
    return f"mtrl-eval-{model}" if job.spec.kind is JobKind.EVALUATION else f"{model}-mtrl"


def run_tags(job: Job, share: float) -> dict[str, str]:
    """What a run is found and read by."""
    words = "every rollout has a trace"
    if share < 1:
        words = (
            f"{share:.1%} of the rollouts have a trace, chosen by a hash of their id, "
            "and so has every one that failed"
        )
    tags = {
        JOB_TAG: job.job_id,
        "turnwise.job": job.name,
        "turnwise.kind": job.spec.kind.value,
        "turnwise.version": turnwise.__version__,
        "turnwise.trace_share": f"{share:.6g}",
        "turnwise.traces": words,
        "mlflow.source.name": f"turnwise job {job.name}",
        "mlflow.source.type": "JOB",
        "mlflow.note.content": f"{job.spec.description}\n\nTraces: {words}.".strip(),
    }
    return tags | ({"turnwise.parent": job.parent} if job.parent else {})


def params(job: Job) -> dict[str, str]:
    """The job file, flat: `batch.group_size` and so on; what is empty is left out."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in _leaves(msgspec.to_builtins(job.spec))
        if value not in ("", [])
    }


def _leaves(block: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in block.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def datasets(job: Job) -> list[Json]:
    """What the job reads, as MLflow's dataset inputs."""
    spec, inputs = job.spec, job.inputs
    context = "evaluation" if spec.kind is JobKind.EVALUATION else "training"
    read = [(context, spec.dataset, inputs.dataset_sha256 if inputs else "")]
    if spec.validation_dataset:
        digest = inputs.validation_sha256 if inputs else ""
        read.append(("validation", spec.validation_dataset, digest))
    return [
        {
            "tags": [{"key": "mlflow.data.context", "value": context}],
            "dataset": {
                "name": Path(path).name,
                "digest": (sha256 or "unknown")[:MAX_DIGEST_CHARS],
                "source_type": "local",
                "source": json.dumps({"uri": path, "sha256": sha256}),
            },
        }
        for context, path, sha256 in read
    ]


def _is_chosen(event: Event, share: float) -> bool:
    if event.kind is not EventKind.ROLLOUT:
        return False
    return "fault" in event.body or is_traced(event.body["rollout_id"], share)


def _batches(traces: Sequence[list[Json]]) -> Iterator[list[list[Json]]]:
    """Runs of traces of at most MAX_SPANS spans together; a longer trace goes alone."""
    batch: list[list[Json]] = []
    for trace in traces:
        if batch and sum(map(len, batch)) + len(trace) > MAX_SPANS:
            yield batch
            batch = []
        batch.append(trace)
    if batch:
        yield batch


def _files(folder: Path) -> list[tuple[Path, str]]:
    """The files of a folder with their relative names. Blocks."""
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(file, file.relative_to(folder).as_posix()) for file in found]
