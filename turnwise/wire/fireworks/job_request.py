"""What a fine-tuning job is created with -> what is asked for, and the job file of it. Pure.

Defaults and ranges are those of the service's documentation; docs/fireworks.md has the table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from turnwise import errors
from turnwise.wire.fireworks.faults import Code, Refused
from turnwise.wire.fireworks.fields import Fields

Json = dict[str, Any]
Number = TypeVar("Number", int, float)

#: The column of a dataset's rows that holds the conversation to go on from.
MESSAGES = "messages"

#: Rows per step where nothing is said of it, and how many rows a dataset then has at least.
CHUNK, SMALLEST_CHUNKED = 200, 301

LEARNING_RATES = (1e-5, 5e-4)
RANK, RANKS = 8, (4, 8, 16, 32, 64, 128)
GRPO_KL = 0.001

#: Loss methods: the `algorithm` block that each stands for. Bounds are those documented.
_ALGORITHMS: Mapping[str, Json] = {
    "GRPO": {"name": "grpo", "aggregation": "token-mean"},
    "DAPO": {"name": "dapo"},
    "GSPO_TOKEN": {"name": "gspo"},
}

_NOT_HERE = {
    "mcpServer": "this server starts no MCP servers; let the evaluator's own code do it",
    "awsS3Config": "rows are read from datasets that were uploaded here",
    "azureBlobStorageConfig": "rows are read from datasets that were uploaded here",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How rollouts are sampled. `extra_body` is JSON of what goes with each model call, or ""."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    extra_body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wandb:
    """Where a job's metrics are to be shown. `api_key` is in clear."""

    enabled: bool
    project: str
    entity: str
    run_id: str
    api_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A job as it is asked for. Names of resources are as they were sent.

    `chunk_size` -1 takes all rows in one step, 0 is for the server to choose; `samples_per_update`
    0 makes one update per step; `lora_rank` 0 is that of what the job starts from.
    """

    dataset: str
    evaluator: str
    display_name: str
    evaluation_dataset: str
    carves_out: bool
    base_model: str
    warm_start_from: str
    output_model: str
    epochs: int
    chunk_size: int
    group_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    lora_rank: int
    samples_per_update: int
    max_concurrent_rollouts: int
    sampling: Sampling
    algorithm: Json
    wandb: Wandb

    @property
    def warning(self) -> str:
        """What was asked for and will not happen; "" if all will."""
        named = self.wandb.project or self.wandb.entity or self.wandb.api_key
        if named and not self.wandb.enabled:
            return (
                "wandb_config.enabled is false, so nothing is logged to Weights & Biases although "
                "a project, an entity or a key is set; send enabled: true (--wandb)"
            )
        return ""


def read_request(given: Mapping[str, Any]) -> JobRequest:
    """Read a job's body. Raises `InvalidInput` and `Refused`."""
    fields = Fields(given)
    fields.refuse(_NOT_HERE)
    training, inference = fields.block("trainingConfig"), fields.block("inferenceParameters")
    training.refuse({"jinjaTemplate": "a model is trained with the template that it comes with"})
    base, warm = training.text("baseModel"), training.text("warmStartFrom")
    if bool(base) == bool(warm):
        raise Refused(
            Code.INVALID_ARGUMENT,
            "training_config: exactly one of base_model and warm_start_from must be set, "
            + (f"not both ({base}, {warm})" if base else "and neither is"),
        )
    return JobRequest(
        dataset=_needed(fields, "dataset"),
        evaluator=_needed(fields, "evaluator"),
        display_name=fields.text("displayName"),
        evaluation_dataset=fields.text("evaluationDataset"),
        carves_out=fields.flag("evalAutoCarveout"),
        base_model=base,
        warm_start_from=warm,
        output_model=training.text("outputModel"),
        epochs=_in_range(training, "epochs", training.whole("epochs") or 1, 1, 10),
        chunk_size=_chunk_size(fields),
        group_size=_group_size(inference),
        learning_rate=_learning_rate(training),
        warmup_steps=_in_range(
            training, "learningRateWarmupSteps", training.whole("learningRateWarmupSteps"), 0
        ),
        weight_decay=_in_range(
            training, "optimizerWeightDecay", training.number("optimizerWeightDecay", 0.01), 0, 1
        ),
        lora_rank=_rank(training),
        samples_per_update=_samples_per_update(training),
        max_concurrent_rollouts=_in_range(
            fields, "maxConcurrentRollouts", fields.whole("maxConcurrentRollouts") or 96, 1
        ),
        sampling=_sampling(inference),
        algorithm=_algorithm(fields.block("lossConfig")),
        wandb=_wandb(fields.block("wandbConfig")),
    )


def chunk_of(chunk_size: int, rows: int) -> int:
    """Rows per step. By itself a dataset is cut only where it is large.

    >>> chunk_of(0, 300), chunk_of(0, 301), chunk_of(-1, 1000), chunk_of(50, 20)
    (300, 200, 1000, 20)
    """
    if chunk_size == 0:
        chunk_size = CHUNK if rows >= SMALLEST_CHUNKED else -1
    return max(1, min(rows, chunk_size) if chunk_size > 0 else rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What the names in a request stand for on this server.

    `model` is the base model's folder, `rows` the number of rows trained on in an epoch, and
    `max_length` the most tokens that the model reads and writes. `lora` is the shape of the adapter
    that it starts from, None if it starts anew. `wandb_secret` is the id of the secret that holds
    the key.
    """

    model: str
    dataset: str
    rows: int
    evaluator: str
    validation_dataset: str = ""
    input_adapter: str = ""
    lora: Json | None = None
    output_group: str = ""
    max_length: int = 4096
    wandb_secret: str = ""


def job_file(name: str, asked: JobRequest, found: Resolved) -> Json:
    """The job file that `control.job_file` reads."""
    chunk = chunk_of(asked.chunk_size, found.rows)
    steps_per_epoch = math.ceil(max(1, found.rows) / chunk)
    rollouts = chunk * asked.group_size
    sampling = {
        "temperature": asked.sampling.temperature,
        "top_p": asked.sampling.top_p,
        "top_k": asked.sampling.top_k,
        "max_tokens": min(asked.sampling.max_tokens, found.max_length),
    }
    return {
        "name": name,
        "description": asked.display_name,
        "model": found.model,
        "dataset": found.dataset,
        "validation_dataset": found.validation_dataset,
        "prompt_column": MESSAGES,
        "agent": {
            "kind": "evaluator",
            "target": found.evaluator,
            "extra_body": asked.sampling.extra_body,
        },
        "input_adapter": found.input_adapter,
        "output_group": found.output_group,
        "batch": {
            "global_batch_size": chunk,
            "group_size": asked.group_size,
            "updates_per_step": _updates(rollouts, asked.samples_per_update),
        },
        "algorithm": asked.algorithm,
        "sampling_params": sampling,
        "val_sampling_params": sampling,
        "schedule": {
            "max_epochs": asked.epochs,
            "max_steps": steps_per_epoch * asked.epochs,
            "val_every": steps_per_epoch if found.validation_dataset else 0,
            "warmup_steps": asked.warmup_steps,
        },
        "lora": _lora(asked.lora_rank, found.lora),
        "optimizer": {
            "learning_rate": asked.learning_rate,
            "weight_decay": asked.weight_decay,
        },
        "rollout": {"rollout_max_concurrency": asked.max_concurrent_rollouts},
        **({"tracking": _tracking(asked.wandb, found)} if asked.wandb.enabled else {}),
    }


def kept_words(given: Mapping[str, Any]) -> Json:
    """What of a request is given back when the job is read: all but a key."""
    words = dict(given)
    if isinstance(words.get("wandbConfig"), dict):
        words["wandbConfig"] = {k: v for k, v in words["wandbConfig"].items() if k != "apiKey"}
    return words


# ── each field ────────────────────────────────────────────────────────────────────────────────


def _needed(fields: Fields, name: str) -> str:
    value = fields.text(name)
    if not value:
        raise fields.wrong(name, "is not set", "it is required")
    return value


def _in_range(
    fields: Fields, name: str, value: Number, low: float, high: float = math.inf
) -> Number:
    if not low <= value <= high:
        upper = "" if math.isinf(high) else f" and at most {high:g}"
        raise errors.InvalidInput(
            fields.path(name), value, "is out of range", remedy=f"use at least {low:g}{upper}"
        )
    return value


def _chunk_size(fields: Fields) -> int:
    size = fields.whole("chunkSize")
    return size if size == -1 else _in_range(fields, "chunkSize", size, 0, 10_000)


def _group_size(inference: Fields) -> int:
    name = "n" if not inference.has("responseCandidatesCount") else "responseCandidatesCount"
    size = inference.whole(name) or 8
    if size < 2:
        raise errors.InvalidInput(
            inference.path(name),
            size,
            "leaves a rollout nothing to be compared with",
            remedy="use at least 2",
        )
    return size


def _learning_rate(training: Fields) -> float:
    rate = training.number("learningRate") or 1e-4
    low, high = LEARNING_RATES
    if not low <= rate <= high:
        raise Refused(
            Code.INVALID_ARGUMENT,
            f"Learning rate {_scientific(rate)} outside valid range "
            f"[{_scientific(low)}, {_scientific(high)}]",
        )
    return rate


def _scientific(value: float) -> str:
    """A number as the service's messages write it.

    >>> _scientific(0.01), _scientific(0.0005)
    ('1e-2', '5e-4')
    """
    digits, _, exponent = f"{value:e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def _rank(training: Fields) -> int:
    rank = training.whole("loraRank")
    if rank not in (0, *RANKS):
        raise training.wrong(
            "loraRank", "is not a choice", "allowed: " + ", ".join(map(str, RANKS))
        )
    return rank


def _samples_per_update(training: Fields) -> int:
    samples = _in_range(training, "batchSizeSamples", training.whole("batchSizeSamples"), 0)
    accumulated = training.whole("gradientAccumulationSteps") or 1
    return samples * _in_range(training, "gradientAccumulationSteps", accumulated, 1)


def _updates(rollouts: int, samples_per_update: int) -> int:
    return math.ceil(rollouts / samples_per_update) if samples_per_update else 1


def _sampling(inference: Fields) -> Sampling:
    length = "maxOutputTokens" if inference.has("maxOutputTokens") else "maxTokens"
    temperature = inference.number("temperature", 0.7)
    if not 0 < temperature <= 2:
        raise inference.wrong("temperature", "is out of range", "use more than 0 and at most 2")
    top_p = inference.number("topP") or 1.0
    return Sampling(
        max_tokens=_in_range(inference, length, inference.whole(length) or 2048, 16),
        temperature=temperature,
        top_p=_in_range(inference, "topP", top_p, 0, 1),
        top_k=_in_range(inference, "topK", inference.whole("topK", 40), 0, 100),
        extra_body=_extra_body(inference),
    )


def _extra_body(inference: Fields) -> str:
    text = inference.text("extraBody")
    try:
        is_object = not text or isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise inference.wrong("extraBody", "is not a JSON object as text")
    return text


def _algorithm(loss: Fields) -> Json:
    method = loss.text("method", "METHOD_UNSPECIFIED").upper().replace("-", "_")
    method = "GRPO" if method == "METHOD_UNSPECIFIED" else method
    if method not in _ALGORITHMS:
        raise loss.wrong("method", "is not a choice", "allowed: " + ", ".join(_ALGORITHMS))
    kl = _in_range(loss, "klBeta", loss.number("klBeta"), 0)
    if method != "GRPO" and kl:
        raise Refused(
            Code.INVALID_ARGUMENT, f"loss_config.kl_beta must be 0/unset when method is {method}"
        )
    return {**_ALGORITHMS[method], "kl_coef": (kl or GRPO_KL) if method == "GRPO" else 0.0}


def _wandb(given: Fields) -> Wandb:
    return Wandb(
        enabled=given.flag("enabled"),
        project=given.text("project"),
        entity=given.text("entity"),
        run_id=given.text("runId"),
        api_key=given.text("apiKey"),
    )


def _lora(rank: int, started: Json | None) -> Json:
    """The shape of the adapter: what is asked for, else as it is, else the service's default."""
    if started is not None and rank in (0, started["rank"]):
        return started
    rank = rank or RANK
    return {"rank": rank, "alpha": 2 * rank}


def _tracking(wandb: Wandb, found: Resolved) -> Json:
    named = {"project": wandb.project, "entity": wandb.entity, "run_id": wandb.run_id}
    given = {key: value for key, value in named.items() if value}
    return {"wandb": {"enabled": True, "api_key_secret": found.wandb_secret} | given}
