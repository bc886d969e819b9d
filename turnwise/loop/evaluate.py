"""An evaluation job: every row attempted under each model alike, nothing trained.

    models --load--> policies          per row, all models side by side:
                        |                collect -> scorers -> AttemptedRow
    rows ---------------+--> attempts ---------------------------------------------.
                                                                                    v
    metrics, results.json, rows.csv, a verdict  <--  figures of each model, comparisons

A turn's seed comes from the job's seed and the rollout's place (row, slot, attempt), never from
its model: two models draw the same random numbers for the same row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from turnwise import errors
from turnwise.domain.data import Row
from turnwise.domain.evaluation import Finished, display_names, metric_words, results_folder
from turnwise.domain.event import EventDraft, EventKind, Level
from turnwise.domain.job import BASE, Job
from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import Policy, Purpose, Trajectory
from turnwise.loop.collect import Assignment, Collector
from turnwise.loop.results import EvaluatedModel, Results, write_results
from turnwise.loop.sockets import Sockets
from turnwise.loop.validate import record
from turnwise.modeling.fingerprint import fingerprint
from turnwise.rl.conduct import conversation
from turnwise.rl.evaluation import (
    MAX_LABELS,
    AttemptedRow,
    by_label,
    comparisons,
    evaluation_metrics,
    fault_counts,
)
from turnwise.rl.statistics import ledger_metrics

#: Progress is told after each such share of the rows.
PROGRESS_PARTS = 10


async def run_evaluation(job: Job, rows: Sequence[Row], sockets: Sockets) -> None:
    """An evaluation job from start to end. Raises `NothingScored` if no rollout was scored.

    After a crash it begins anew; what was attempted before is superseded.
    """
    await sockets.blobs.delete(results_folder(job.job_id))
    models = await _load_models(job, sockets)
    await sockets.store.supersede(job.account_id, job.job_id, job.incarnation)
    collector = Collector(job, sockets)
    try:
        await Evaluation(job, rows, models, collector, sockets).run()
    finally:
        await collector.abandon()


async def _load_models(job: Job, sockets: Sockets) -> list[EvaluatedModel]:
    """Have the sampler serve every model."""
    names = job.spec.evaluated_models
    shown = display_names(names)
    keys = metric_words(shown)
    return [
        EvaluatedModel(name=shown[at], key=keys[at], policy=await _load(name, sockets))
        for at, name in enumerate(names)
    ]


async def _load(name: str, sockets: Sockets) -> Policy:
    if name == BASE:
        return Policy()
    folder = await sockets.model_folder(name)
    adapter_id = await asyncio.to_thread(fingerprint, folder)
    await sockets.sampler.load(adapter_id, folder)
    return Policy(adapter_id=adapter_id)


class Evaluation:
    """One incarnation of an evaluation job."""

    def __init__(
        self,
        job: Job,
        rows: Sequence[Row],
        models: Sequence[EvaluatedModel],
        collector: Collector,
        sockets: Sockets,
    ) -> None:
        self._job = job
        self._spec = job.spec.evaluation
        self._rows = rows[: self._spec.max_rows or None]
        self._models = models
        self._collector = collector
        self._sockets = sockets
        self._sampled_tokens = 0
        self._rows_done = 0

    async def run(self) -> None:
        """Attempt, count, record; the files are written before anything is told."""
        started = self._sockets.clock.now()
        await self._warn_of_copies()
        attempted = await self._attempt_all()
        results = await asyncio.to_thread(self._results, attempted)
        await asyncio.to_thread(write_results, results, self._sockets.blobs)
        values = results.metrics()
        values |= ledger_metrics({Bin.NOT_FOR_TRAINING: self._sampled_tokens})
        values["timing_s/eval"] = self._sockets.clock.now() - started
        await record(self._job, Purpose.EVALUATION, values, self._sockets, step=0)
        await self._tell(results)

    async def _warn_of_copies(self) -> None:
        size = self._spec.group_size
        if size > 1 and not self._job.spec.eval_sampling_params.temperature:
            text = (
                f"at temperature 0 the {size} rollouts of a row are alike, unless the agent "
                "differs; for pass@k set eval_sampling_params.temperature"
            )
            await self._log(text, Level.WARNING)

    # ── attempts ──────────────────────────────────────────────────────────────────────────────

    async def _attempt_all(self) -> list[tuple[AttemptedRow, ...]]:
        """Every row, each under every model in the models' order."""
        async with asyncio.TaskGroup() as tasks:
            pending = [
                tasks.create_task(self._row(row), name=f"evaluate row {row.index}")
                for row in self._rows
            ]
        return [task.result() for task in pending]

    async def _row(self, row: Row) -> tuple[AttemptedRow, ...]:
        async with asyncio.TaskGroup() as tasks:
            pending = [
                tasks.create_task(self._attempt(row, model), name=f"{model.key} row {row.index}")
                for model in self._models
            ]
        self._rows_done += 1
        await self._say_progress()
        return tuple(task.result() for task in pending)

    async def _attempt(self, row: Row, model: EvaluatedModel) -> AttemptedRow:
        assignment = Assignment(
            group_id=self._sockets.new_id("group"),
            row=row,
            size=self._spec.group_size,
            step=0,
            purpose=Purpose.EVALUATION,
            sampling=self._job.spec.eval_sampling_params,
            policy=model.policy,
        )
        attempts = await self._collector.collect(assignment)
        self._sampled_tokens += sum(trajectory.sampled_tokens for trajectory in attempts)
        attempted = AttemptedRow(row=row, slots=self._spec.group_size, attempts=attempts)
        return await self._scored(attempted, model)

    async def _scored(self, attempted: AttemptedRow, model: EvaluatedModel) -> AttemptedRow:
        """The row with what every scorer says of its rollouts that count."""
        finished = [_finished(attempted.row, each, model.name) for each in attempted.scored]
        scores = await asyncio.gather(
            *(scorer.score(each) for scorer in self._sockets.scorers for each in finished)
        )
        by_place = {(score.scorer, score.rollout_id): score for score in scores}
        return replace(attempted, scores=by_place)

    async def _say_progress(self) -> None:
        done, total = self._rows_done, len(self._rows)
        if done * PROGRESS_PARTS // total == (done - 1) * PROGRESS_PARTS // total:
            return
        message = f"{done} of {total} rows evaluated"
        await self._log(message, Level.INFO, completed=done, total=total)

    # ── what comes out ────────────────────────────────────────────────────────────────────────

    def _results(self, attempted: Sequence[Sequence[AttemptedRow]]) -> Results:
        spec = self._job.spec
        columns = [[row[at] for row in attempted] for at in range(len(self._models))]
        first = columns[0]
        return Results(
            job=self._job,
            models=tuple(self._models),
            rows=tuple(tuple(column) for column in columns),
            values=tuple(evaluation_metrics(column, spec) for column in columns),
            comparisons=tuple(comparisons(first, other, spec) for other in columns[1:]),
        )

    async def _tell(self, results: Results) -> None:
        """The findings, and a warning for whatever makes them less than they seem."""
        unscored = [model for model, rows in results.by_model() if not any(r.scored for r in rows)]
        failures = {model.name: failure_text(rows) for model, rows in results.by_model()}
        for name, text in failures.items():
            if text:
                await self._log(f"{name}: {text}", Level.WARNING)
        for name, text in results.problems():
            await self._log(f"scorer {name}: {text}", Level.WARNING)
        labels = {row.label for row in self._rows if row.label is not None}
        if labels and not by_label(results.rows[0]):
            text = f"{len(labels)} labels are more than {MAX_LABELS}: no metrics by label"
            await self._log(text, Level.WARNING)
        for sentence in results.sentences():
            await self._log(sentence, Level.INFO)
        if len(unscored) == len(self._models):
            raise errors.NothingScored("nothing was evaluated: " + failures[unscored[0].name])

    async def _log(self, message: str, level: Level, **more: int) -> None:
        draft = EventDraft(kind=EventKind.LOG, body={"message": message, **more}, level=level)
        await self._sockets.store.append(self._job.account_id, self._job.job_id, [draft])


def failure_text(rows: Sequence[AttemptedRow]) -> str:
    """How many rollouts were not scored and why most of them; empty if all were."""
    faults = fault_counts(rows)
    if not faults:
        return ""
    slots = sum(each.slots for each in rows)
    name, message, count = faults[0]
    failed = sum(number for _, _, number in faults)
    return f"{failed} of {slots} rollouts were not scored; {count} failed so: {name}: {message}"


def _finished(row: Row, trajectory: Trajectory, model: str) -> Finished:
    rollout = trajectory.rollout
    return Finished(
        rollout_id=rollout.rollout_id,
        model=model,
        row_index=row.index,
        row=row.fields,
        prompt=row.prompt,
        label=row.label,
        messages=conversation(trajectory),
        reward=rollout.reward or 0.0,
        rewards=rollout.rewards or (),
        metrics=rollout.metrics,
    )
