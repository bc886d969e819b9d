"""An evaluation's results: as metrics, as a JSON document, and as a table with a line per row."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turnwise import errors
from turnwise.domain.evaluation import AGENT, results_key, table_key
from turnwise.domain.job import Job
from turnwise.domain.rollout import Policy, Trajectory
from turnwise.ports import Blobs
from turnwise.rl.comparison import Comparison
from turnwise.rl.evaluation import (
    AttemptedRow,
    Values,
    by_label,
    comparison_metrics,
    fault_counts,
    problem_counts,
)

Json = dict[str, Any]

#: How much of a prompt the table quotes.
PROMPT_CHARS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedModel:
    """A model of an evaluation: its name for people, for metrics, and what samples it."""

    name: str
    key: str
    policy: Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What was found of each model; `comparisons` are of the first with each of the others."""

    job: Job
    models: tuple[EvaluatedModel, ...]
    rows: tuple[tuple[AttemptedRow, ...], ...]  # [models][rows]
    values: tuple[Values, ...]  # [models], named eval/*
    comparisons: tuple[dict[str, Comparison], ...]  # [models - 1], by measure

    def by_model(self) -> Iterator[tuple[EvaluatedModel, tuple[AttemptedRow, ...]]]:
        """Each model with its rows."""
        return zip(self.models, self.rows, strict=True)

    def metrics(self) -> Values:
        """eval/* of the first model and, if there are several, eval/model/{key}/* of each."""
        found = dict(self.values[0])
        if len(self.models) == 1:
            return found
        for model, values in zip(self.models, self.values, strict=True):
            tails = {name.removeprefix("eval/"): value for name, value in values.items()}
            found |= {f"eval/model/{model.key}/{tail}": value for tail, value in tails.items()}
        for model, compared in zip(self.models[1:], self.comparisons, strict=True):
            found |= comparison_metrics(compared, model.key)
        return found

    def problems(self) -> list[tuple[str, str]]:
        """Per scorer that lacks scores: how many, and why most of them."""
        counts: dict[str, list[tuple[str, int]]] = {}
        for _, rows in self.by_model():
            for scorer, problem, count in problem_counts(rows):
                counts.setdefault(scorer, []).append((problem, count))
        return [
            (scorer, f"{sum(n for _, n in found)} scores are missing; most often: {found[0][0]}")
            for scorer, found in counts.items()
        ]

    def sentences(self) -> list[str]:
        """The comparisons in words, reward first."""
        return [each["sentence"] for each in self._compared()]

    def document(self) -> Json:
        """All of it as JSON."""
        spec = self.job.spec
        return {
            "job_id": self.job.job_id,
            "job": self.job.name,
            "base_model": spec.model,
            "dataset": spec.dataset,
            "seed": spec.seed,
            "rows": len(self.rows[0]),
            "group_size": spec.evaluation.group_size,
            "success_threshold": spec.evaluation.success_threshold,
            "sampling": asdict(spec.eval_sampling_params),
            "scorers": [AGENT, *(scorer.name for scorer in spec.evaluation.scorers)],
            "labels": self._labels(),
            "models": [self._model(at) for at in range(len(self.models))],
            "comparisons": self._compared(),
            "table": [self._row(at) for at in range(len(self.rows[0]))],
        }

    def _labels(self) -> list[Json]:
        """Each label as it is in the metrics, as its rows have it, and how many there are."""
        return [
            {"key": key, "label": part[0].row.label, "rows": len(part)}
            for key, part in by_label(self.rows[0]).items()
        ]

    def _model(self, at: int) -> Json:
        model, rows = self.models[at], self.rows[at]
        return {
            "name": model.name,
            "key": model.key,
            "adapter_id": model.policy.adapter_id,
            "metrics": self.values[at],
            "faults": [
                {"fault": name, "message": message, "rollouts": count}
                for name, message, count in fault_counts(rows)
            ],
            "score_problems": [
                {"scorer": scorer, "problem": problem, "rollouts": count}
                for scorer, problem, count in problem_counts(rows)
            ],
        }

    def _compared(self) -> list[Json]:
        first = self.models[0].name
        return [
            {
                "model": first,
                "against": other.name,
                "measure": measure,
                **asdict(each),
                "sentence": each.sentence(first, other.name, _in_words(measure)),
            }
            for other, compared in zip(self.models[1:], self.comparisons, strict=True)
            for measure, each in compared.items()
        ]

    def _row(self, at: int) -> Json:
        row = self.rows[0][at].row
        return {
            "row": row.index,
            "label": row.label,
            "prompt": _excerpt(row.prompt),
            "models": {
                model.name: [self._rollout(rows[at], each) for each in rows[at].last]
                for model, rows in self.by_model()
            },
        }

    def _rollout(self, attempted: AttemptedRow, trajectory: Trajectory) -> Json:
        rollout = trajectory.rollout
        reward = rollout.reward if rollout.is_scored else None
        return {
            "rollout_id": rollout.rollout_id,
            "slot": rollout.slot,
            "attempt": rollout.attempt,
            "status": rollout.status.value,
            "fault": f"{rollout.fault.blame}/{rollout.fault.code}" if rollout.fault else None,
            "reward": reward,
            "success": None
            if reward is None
            else reward >= self.job.spec.evaluation.success_threshold,
            "scores": {
                scorer.name: attempted.value(scorer.name, trajectory)
                for scorer in self.job.spec.evaluation.scorers
            },
            "turns": len(trajectory.delivered),
            "tokens": trajectory.sampled_tokens,
        }


def _in_words(measure: str) -> str:
    """A measure in a sentence; without a word it is the reward."""
    fixed = {"reward": "", "success": "in success rate"}
    return fixed.get(measure, f"in score {measure.removeprefix('scorer/')}")


def _excerpt(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= PROMPT_CHARS else line[: PROMPT_CHARS - 3] + "..."


# ── the table ─────────────────────────────────────────────────────────────────────────────────

_ROLLOUT_COLUMNS = ("reward", "success", "turns", "tokens", "status", "fault", "rollout_id")


def as_csv(document: Json) -> str:
    """A line per row and slot; the models side by side, their columns named "model: column"."""
    scorers = [_score_column(name) for name in document["scorers"] if name != AGENT]
    names = [model["name"] for model in document["models"]]
    columns = (*_ROLLOUT_COLUMNS[:2], *scorers, *_ROLLOUT_COLUMNS[2:])
    written = io.StringIO(newline="")
    table = csv.writer(written)
    head = [f"{name}: {column}" for name in names for column in columns]
    table.writerow(["row", "slot", "label", "prompt", *head])
    for row in document["table"]:
        by_slot = {name: {r["slot"]: r for r in row["models"][name]} for name in names}
        for slot in range(document["group_size"]):
            cells = [
                _cell(by_slot[name].get(slot, {}), column) for name in names for column in columns
            ]
            table.writerow([row["row"], slot, row["label"] or "", row["prompt"], *cells])
    return written.getvalue()


def _score_column(scorer: str) -> str:
    return f"score {scorer}"


def _cell(rollout: Json, column: str) -> object:
    """A number (1 and 0 for true and false) or text; empty where there is nothing."""
    scores = {_score_column(name): value for name, value in rollout.get("scores", {}).items()}
    value = (rollout | scores).get(column)
    return "" if value is None else int(value) if isinstance(value, bool) else value


# ── files ─────────────────────────────────────────────────────────────────────────────────────


def write_results(results: Results, blobs: Blobs) -> None:
    """Write results.json and rows.csv. Raises `StorageFull`."""
    document = results.document()
    job_id = results.job.job_id
    _write(blobs.path(results_key(job_id)), json.dumps(document, ensure_ascii=False))
    _write(blobs.path(table_key(job_id)), as_csv(document))


def _write(file: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old one or the new one."""
    new = file.with_name(f".{file.name}.new")
    try:
        new.write_bytes(text.encode("utf-8", "replace"))  # JSON can spell half a character
        os.replace(new, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        if error.errno != errno.ENOSPC:
            raise
        raise errors.StorageFull(f"no room for {file.name}: {error.strerror}") from error
