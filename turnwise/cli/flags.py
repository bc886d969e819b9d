"""The flags of `turnwise train` -> the job file that says the same. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnwise import errors

Json = dict[str, Any]

#: Flags that are one setting of the job file each, by their field of `Flags`.
SETTINGS: Mapping[str, str] = {
    "epochs": "schedule.max_epochs",
    "n": "batch.group_size",
    "chunk_size": "batch.global_batch_size",
    "batch_size": "batch.tokens_per_micro_batch",
    "temperature": "sampling_params.temperature",
    "top_p": "sampling_params.top_p",
    "top_k": "sampling_params.top_k",
    "max_tokens": "sampling_params.max_tokens",
    "learning_rate": "optimizer.learning_rate",
    "lora_rank": "lora.rank",
    "rollout_timeout": "rollout.rollout_timeout",
    "max_concurrent_rollouts": "rollout.rollout_max_concurrency",
    "wandb_project": "tracking.wandb.project",
    "wandb_entity": "tracking.wandb.entity",
}

#: The bucket that uploaded datasets lie in, each below its id.
DATASETS = "turnwise-datasets"

#: More steps than any number of epochs has: the epochs alone say how long.
MANY_STEPS = 1_000_000

#: The column of an evaluator's rows that holds the conversation to go on from.
MESSAGES = "messages"

_FULL_NAME = re.compile(r"accounts/[^/]+/([^/]+)/([^/]+)")
_UPLOADED = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What was given; None or empty: nothing. Names are those of the flags."""

    base_model: str = ""
    dataset: str = ""
    evaluation_dataset: str = ""
    evaluator: str = ""
    agent_url: str = ""
    output_model: str = ""
    warm_start_from: str = ""
    job_id: str = ""
    epochs: int | None = None
    n: int | None = None
    chunk_size: int | None = None
    batch_size: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    learning_rate: float | None = None
    lora_rank: int | None = None
    rollout_timeout: float | None = None
    max_concurrent_rollouts: int | None = None
    wandb_project: str | None = None
    wandb_entity: str | None = None


def job_of(
    flags: Flags, *, model: str, lora: Mapping[str, Any] | None = None, folder: Path, now: str
) -> Json:
    """The job file, with only what differs from its defaults.

    `model` is the base model's folder and `lora` the shape of the adapter to start from, if any;
    relative paths are taken from `folder`, and `now` makes the name of a job that is given none.
    Raises `InvalidInput` naming the flag.
    """
    job: Json = {
        "name": flags.job_id or _name(flags, now),
        "model": model,
        "dataset": dataset_of("--dataset", flags.dataset, folder),
        "agent": _agent(flags),
        "schedule": {"max_steps": MANY_STEPS},
    }
    if flags.evaluation_dataset:
        where = dataset_of("--evaluation-dataset", flags.evaluation_dataset, folder)
        job["validation_dataset"] = where
    if flags.evaluator:
        job["prompt_column"] = MESSAGES
    if flags.output_model:
        job["output_group"] = id_of("--output-model", flags.output_model, "models")
    if flags.warm_start_from:
        job["input_adapter"] = model_name(flags.warm_start_from)
        if lora:
            job["lora"] = dict(lora)
    for name, setting in SETTINGS.items():
        if (value := getattr(flags, name)) is not None:
            _set(job, setting, value)
    if flags.lora_rank is not None:
        job["lora"]["alpha"] = 2 * flags.lora_rank
    if "tracking" in job:
        job["tracking"]["wandb"]["enabled"] = True
    return job


def dataset_of(flag: str, text: str, folder: Path) -> str:
    """A URI as it is, a path made absolute, or where an uploaded dataset lies.

    >>> dataset_of("--dataset", "accounts/default/datasets/rows", Path("/nowhere"))
    's3://turnwise-datasets/rows/'
    >>> dataset_of("--dataset", "rows.jsonl", Path("/nowhere"))
    '/nowhere/rows.jsonl'
    """
    if not text:
        raise errors.InvalidInput(
            flag, text, "is empty", remedy="name a path, an s3:// URI or an uploaded dataset"
        )
    if "://" in text:
        return text
    path = folder / Path(text).expanduser()
    if not path.exists():
        if found := _FULL_NAME.fullmatch(text):
            return f"s3://{DATASETS}/{_of(flag, text, found, 'datasets')}/"
        if _UPLOADED.fullmatch(text):
            return f"s3://{DATASETS}/{text}/"
    return str(path)


def id_of(flag: str, text: str, collection: str) -> str:
    """The id in `accounts/ACCOUNT/{collection}/ID`, or the id alone.

    >>> id_of("--evaluator", "accounts/default/evaluators/maths", "evaluators")
    'maths'
    """
    if found := _FULL_NAME.fullmatch(text):
        return _of(flag, text, found, collection)
    if not text or "/" in text:
        raise errors.InvalidInput(
            flag, text, "is not a name", remedy=f"use ID or accounts/ACCOUNT/{collection}/ID"
        )
    return text


def model_name(text: str) -> str:
    """A registered model's name: of accounts/ACCOUNT/models/GROUP, GROUP or GROUP/VERSION.

    >>> model_name("accounts/default/models/walk"), model_name("walk/3")
    ('walk', 'walk/3')
    """
    if found := _FULL_NAME.fullmatch(text):
        return _of("--warm-start-from", text, found, "models")
    if not re.fullmatch(r"[^/]+(/[0-9]+)?", text):
        raise errors.InvalidInput(
            "--warm-start-from",
            text,
            "is not a registered model",
            remedy="use GROUP, GROUP/VERSION or accounts/ACCOUNT/models/GROUP",
        )
    return text


def _of(flag: str, text: str, found: re.Match[str], collection: str) -> str:
    if found[1] != collection:
        raise errors.InvalidInput(
            flag, text, f"names one of {found[1]}", remedy=f"use accounts/ACCOUNT/{collection}/ID"
        )
    return found[2]


def _agent(flags: Flags) -> Json:
    if bool(flags.evaluator) == bool(flags.agent_url):
        given = f"{flags.evaluator} and {flags.agent_url}" if flags.evaluator else ""
        raise errors.InvalidInput(
            "--evaluator",
            given,
            "is set together with --agent-url" if given else "is not set, nor is --agent-url",
            remedy="give one of them: what drives the rollouts and scores them",
        )
    if flags.agent_url:
        return {"kind": "http", "url": flags.agent_url}
    return {"kind": "evaluator", "target": id_of("--evaluator", flags.evaluator, "evaluators")}


def _name(flags: Flags, now: str) -> str:
    """A name after what the job makes, or what it is scored by."""
    about = (flags.output_model or flags.evaluator or "train").rpartition("/")[2]
    words = re.sub("[^a-zA-Z0-9]+", "-", about).strip("-")[:40].strip("-")
    return f"{words or 'train'}-{now}"


def _set(job: Json, setting: str, value: object) -> None:
    *blocks, name = setting.split(".")
    for block in blocks:
        job = job.setdefault(block, {})
    job[name] = value
