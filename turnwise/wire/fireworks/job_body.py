"""A job -> its body as the service writes it, and its metrics. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from turnwise.domain.event import Event
from turnwise.domain.job import Job, JobKind, JobStatus, Secondary
from turnwise.domain.ledger import TokenUsage
from turnwise.wire.fireworks.names import DATASETS, EVALUATORS, JOBS, MODELS, full_name, rfc3339

Json = dict[str, Any]

_STATES = {
    JobStatus.PENDING: "PENDING",
    JobStatus.RUNNING: "RUNNING",
    JobStatus.STOPPING: "CANCELLING",
    JobStatus.STOPPED: "CANCELLED",
    JobStatus.COMPLETED: "COMPLETED",
    JobStatus.FAILED: "FAILED",
}
#: Phases of a running job that are over before the first rollout.
_VALIDATING = (Secondary.STARTING, Secondary.DOWNLOADING)

#: Ours of each step -> theirs.
_PER_STEP = {
    "reward_mean": "rollout/reward/mean",
    "reward_std": "rollout/reward/std",
    "loss": "training/loss",
    "kl": "training/kl_base",
    "lr": "training/learning_rate",
    "n_valid": "training/num_trajectories",
    "groups_total": "training/num_groups",
    "groups_filtered": "analysis/zero_adv_groups",
    "input_tokens": "training/nontrainable_token_positions",
    "output_tokens": "training/trainable_token_positions",
    "eval_reward": "val/reward/mean",
}
_VALIDATION = "val/"
_COUNTS = ("n_valid", "groups_total", "groups_filtered", "input_tokens", "output_tokens")

_NOT_JSON = re.compile(r"dataset (?:\S+ )?line (\d+): .* is not (?:JSON|UTF-8)\b.*", re.DOTALL)
_NO_MESSAGES = re.compile(r"dataset (?:\S+ )?line (\d+): .* has no 'messages' column.*", re.DOTALL)
_DATASET = re.compile(r"(?:validation_)?dataset\b.*", re.DOTALL)


def state_of(job: Job) -> str:
    """One of the service's states."""
    return state_words(job.spec.kind, job.status, job.secondary)


def state_words(kind: JobKind, status: JobStatus, secondary: Secondary) -> str:
    """The service's state of a job of that kind.

    >>> state_words(JobKind.TRAIN, JobStatus.COMPLETED, Secondary.EARLY_STOPPED)
    'JOB_STATE_EARLY_STOPPED'
    """
    if status is JobStatus.RUNNING and secondary in _VALIDATING:
        return "JOB_STATE_VALIDATING"
    if status is JobStatus.COMPLETED and secondary is Secondary.EARLY_STOPPED:
        return "JOB_STATE_EARLY_STOPPED"
    return f"JOB_STATE_{_STATES[status]}"


def status_of(job: Job, warning: str = "") -> Json:
    """Why it is as it is. `warning` is what was asked for and does not happen."""
    if job.status is JobStatus.FAILED:
        code = "INVALID_ARGUMENT" if _DATASET.match(job.message) else "INTERNAL"
        return {"code": code, "message": failure_of(job.message)}
    if job.status is JobStatus.STOPPED:
        return {"code": "CANCELLED", "message": job.message or "the job was cancelled"}
    return {"code": "OK", "message": "; ".join(filter(None, (job.message, warning)))}


def failure_of(message: str) -> str:
    """Why a job failed; what is wrong with its dataset in the service's words, and then ours.

    >>> failure_of("dataset line 42: '{' is not JSON (Expecting value, column 2)")[:56]
    'Dataset validation failed: invalid JSON on line 42 (data'
    """
    if found := _NOT_JSON.match(message):
        return f"Dataset validation failed: invalid JSON on line {found[1]} ({message})"
    if found := _NO_MESSAGES.match(message):
        return (
            f"Dataset validation failed: Missing required field 'messages' on line {found[1]} "
            f"({message})"
        )
    return f"Dataset validation failed: {message}" if _DATASET.match(message) else message


def job_body(job: Job, account: str, kept: Mapping[str, Any]) -> Json:
    """A job: what was sent, as it was, and what became of it.

    `kept` is the record that came with it; of a job of another door, it is empty.
    """
    given = kept.get("given") or _given(job, account)
    training = {"outputModel": full_name(account, MODELS, job.spec.adapters_in)}
    return given | {
        "name": full_name(account, JOBS, job.name),
        "displayName": given.get("displayName") or job.spec.description,
        "trainingConfig": given.get("trainingConfig", {}) | training,
        "createTime": rfc3339(job.created_at),
        "completedTime": rfc3339(job.ended_at),
        "createdBy": kept.get("created_by", ""),
        "state": state_of(job),
        "status": status_of(job, kept.get("warning", "")),
        "jobProgress": progress_of(job),
    }


def _given(job: Job, account: str) -> Json:
    """What a job of another door would have been sent as."""
    return {
        "dataset": full_name(account, DATASETS, _dataset_id(job)),
        "evaluator": full_name(account, EVALUATORS, job.spec.agent.target),
    }


def _dataset_id(job: Job) -> str:
    """The folder that the rows lie in."""
    return job.spec.dataset.rstrip("/").rpartition("/")[2]


def progress_of(job: Job) -> Json:
    """How far it is, by its steps."""
    schedule = job.spec.schedule
    is_done = job.status is JobStatus.COMPLETED
    return {
        "percent": 100 if is_done else min(99, 100 * job.step // schedule.max_steps),
        "epoch": min(schedule.max_epochs - 1, job.step // steps_per_epoch(job)),
    }


def steps_per_epoch(job: Job) -> int:
    """Training steps in a pass over the rows."""
    return math.ceil(job.spec.schedule.max_steps / job.spec.schedule.max_epochs)


def counted(job: Job, steps: list[Json], usage: TokenUsage, rows: int) -> Json:
    """What a job's progress says beside `progress_of`, from its metrics and its tokens."""
    valid = sum(step["n_valid"] for step in steps)
    made = sum(step["n_rollouts"] for step in steps)
    return {
        "totalInputRequests": rows * job.spec.batch.group_size * job.spec.schedule.max_epochs,
        "totalProcessedRequests": made,
        "successfullyProcessedRequests": valid,
        "failedRequests": made - valid,
        "outputRows": valid,
        "inputTokens": usage.prefill,
        "outputTokens": usage.sample,
        "cachedInputTokenCount": usage.cached,
    }


def steps_of(job: Job, events: Iterable[Event]) -> list[Json]:
    """A job's metrics by step, from its events of the kind METRICS; a later record stands."""
    found: dict[int, dict[str, float]] = {}
    times: dict[int, float] = {}
    for event in events:
        step, values = int(event.body["step"]), event.body["values"]
        if any(name.startswith(_VALIDATION) for name in values):
            step = max(0, step - 1)  # what is validated is what the step before has made
        found.setdefault(step, {}).update(values)
        times[step] = event.at
    its = steps_per_epoch(job)
    return [
        {
            "step": step,
            "epoch": step // its,
            "chunk": step % its,
            "time": rfc3339(times[step]),
            **_numbers(job, found[step]),
        }
        for step in sorted(found)
    ]


def _numbers(job: Job, values: Mapping[str, float]) -> Json:
    numbers: Json = {name: values.get(ours) for name, ours in _PER_STEP.items()}
    for name in _COUNTS:
        numbers[name] = int(numbers[name] or 0)
    slots = numbers["groups_total"] * job.spec.batch.group_size
    numbers["n_rollouts"] = slots
    return numbers


def metrics_body(job: Job, account: str, steps: list[Json]) -> Json:
    """A job's metrics: a record per step, and the curve of the mean reward."""
    rewards = [step["reward_mean"] for step in steps if step["reward_mean"] is not None]
    return {
        "name": f"{full_name(account, JOBS, job.name)}/metrics",
        "state": state_of(job),
        "steps": steps,
        "curves": {"average": {"Score": rewards}},
    }


def as_text(body: Json) -> str:
    """A body inside a body."""
    return json.dumps(body, separators=(",", ":"))
