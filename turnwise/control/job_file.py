"""A job file (a mapping, from YAML or JSON) -> JobSpec, or an error that says what to write."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from turnwise import errors
from turnwise.domain.job import AgentKind, JobKind, JobSpec


@dataclass(frozen=True, slots=True)
class Range:
    """Allowed numbers, both ends included unless `above` says that the low end is not."""

    low: float
    high: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value lies inside."""
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        return low if math.isinf(self.high) else f"{low} and at most {self.high:g}"


#: What makes sense for any model. A model's own, narrower ranges belong to its recipe, at a door.
RANGES: dict[str, Range] = {
    "batch.global_batch_size": Range(1),
    "batch.group_size": Range(1),
    "batch.updates_per_step": Range(1),
    "batch.tokens_per_micro_batch": Range(1),
    "algorithm.clip_low_threshold": Range(0, 1),
    "algorithm.clip_high_threshold": Range(1),
    "algorithm.turn_discount": Range(0, 1),
    "sampling_params.temperature": Range(0, 100),
    "sampling_params.top_p": Range(0, 1, above=True),
    "sampling_params.top_k": Range(0),
    "sampling_params.max_tokens": Range(1),
    "val_sampling_params.temperature": Range(0, 100),
    "val_sampling_params.top_p": Range(0, 1, above=True),
    "val_sampling_params.top_k": Range(0),
    "val_sampling_params.max_tokens": Range(1),
    "validation.max_rows": Range(0),
    "validation.group_size": Range(1),
    "schedule.max_epochs": Range(1),
    "schedule.max_steps": Range(1),
    "schedule.val_every": Range(0),
    "schedule.warmup_steps": Range(0),
    "schedule.final_learning_rate_fraction": Range(0, 1),
    "lora.rank": Range(1),
    "lora.alpha": Range(0, above=True),
    "optimizer.learning_rate": Range(0, above=True),
    "optimizer.beta1": Range(0, 1),
    "optimizer.beta2": Range(0, 1),
    "optimizer.eps": Range(0, above=True),
    "optimizer.weight_decay": Range(0),
    "optimizer.grad_clip_norm": Range(0),
    "rollout.rollout_max_concurrency": Range(1),
    "rollout.rollout_timeout": Range(0, above=True),
    "rollout.turn_timeout": Range(0, above=True),
    "rollout.rollout_max_retries": Range(0),
    "rollout.group_timeout": Range(0),
    "async_config.max_steps_off_policy": Range(0, 10),
    "parity.max_mean_difference": Range(0, above=True),
}


def parse_job(data: object, *, folder: Path | None = None) -> JobSpec:
    """Read a job file's content. Relative paths are taken from `folder`, where given.

    Raises `InvalidInput` naming the field, the value and what is allowed.
    """
    if not isinstance(data, Mapping):
        raise errors.InvalidInput("job", data, "is not a mapping of settings")
    spec: JobSpec = _build(JobSpec, data, "")
    if folder is not None:
        spec = dataclasses.replace(
            spec,
            model=_absolute(spec.model, folder),
            dataset=_absolute(spec.dataset, folder),
            validation_dataset=_absolute(spec.validation_dataset, folder),
        )
    _check_sense(spec)
    return spec


def as_mapping(spec: JobSpec) -> dict[str, Any]:
    """The job file that gives this spec, defaults written out."""
    return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(spec)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value


def _absolute(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).resolve()) if path else ""


def _build(cls: type[Any], data: object, prefix: str) -> Any:
    """A dataclass from a mapping, field by field."""
    if not isinstance(data, Mapping):
        raise errors.InvalidInput(prefix.rstrip("."), data, "is not a block of settings")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise errors.InvalidInput(prefix + str(key), data[key], _unknown(str(key), fields))
    missing = [
        name
        for name, field in fields.items()
        if name not in data
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise errors.InvalidInput(prefix + missing[0], None, "is missing from the job file")
    hints = typing.get_type_hints(cls)
    return cls(**{key: _value(hints[key], data[key], prefix + key) for key in data})


def _unknown(key: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"is set, but there is no such setting; did you mean {near[0]!r}?"
    return "is set, but there is no such setting; known here: " + ", ".join(sorted(known))


def _value(kind: Any, value: object, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast("type[Any]", kind), value, name + ".")
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _choice(kind, value, name)
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            raise errors.InvalidInput(name, value, "is not a list")
        return tuple(_value(item, each, f"{name}[{i}]") for i, each in enumerate(value))
    return _in_range(_scalar(kind, value, name), name)


def _choice(kind: type[StrEnum], value: object, name: str) -> StrEnum:
    choices = [str(member) for member in kind]
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise errors.InvalidInput(
            name, value, "is not a choice", remedy=hint + "allowed: " + ", ".join(choices)
        )
    return kind(value)


def _scalar(kind: Any, value: object, name: str) -> Any:
    # YAML reads "1e-4" without a dot as text; a number in text form is what the user meant.
    if kind in (int, float) and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise errors.InvalidInput(name, value, "is not a number") from None
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wanted = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if isinstance(kind, types.UnionType) or type(value) is not kind:
        raise errors.InvalidInput(name, value, f"is not {wanted.get(kind, kind)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise errors.InvalidInput(name, value, "is not a finite number")
    return value


def _in_range(value: Any, name: str) -> Any:
    allowed = RANGES.get(name)
    if allowed is not None and not allowed.holds(value):
        raise errors.InvalidInput(name, value, "is out of range", remedy=f"must be {allowed}")
    return value


def _check_sense(spec: JobSpec) -> None:
    """Refuse combinations that cannot mean anything."""
    if not spec.name or not spec.name.replace("-", "").isalnum() or len(spec.name) > 63:
        raise errors.InvalidInput(
            "name", spec.name, "is not a job name", remedy="use 1 to 63 letters, digits and hyphens"
        )
    needs = {AgentKind.HTTP: "url", AgentKind.PYTHON: "target"}.get(spec.agent.kind)
    if needs and not getattr(spec.agent, needs):
        raise errors.InvalidInput(
            f"agent.{needs}", "", f"is needed for agent.kind {spec.agent.kind}"
        )
    if spec.kind is JobKind.TRAIN and spec.batch.group_size < 2:
        raise errors.InvalidInput(
            "batch.group_size",
            spec.batch.group_size,
            f"leaves {spec.algorithm.advantage_method} nothing to compare",
            remedy="use at least 2",
        )
    too_large = [k for k in spec.validation.pass_k_values if k < 1]
    if too_large:
        raise errors.InvalidInput("validation.pass_k_values", too_large[0], "must be at least 1")
    if spec.sampling_params.temperature == 0 and spec.kind is JobKind.TRAIN:
        raise errors.InvalidInput(
            "sampling_params.temperature",
            0,
            "gives siblings that are all alike, so nothing can be learned",
            remedy="use 1 for training; val_sampling_params may be 0",
        )
