"""Recipes: the hyperparameters that a door offers for a model, and the job's settings they set.

A recipe is narrower than the job file: names that a client knows, defaults that suit the model, and
the values that it is offered with. The standard ones have SageMaker's names, defaults and ranges; a
model's folder may hold its own (`control.models.catalogue`).
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from turnwise import errors
from turnwise.control.job_file import flattened
from turnwise.control.job_settings import Leaf, leaves
from turnwise.domain.training import AdvantageMethod, LossName

#: What a client's values are called in errors.
FIELD = "HyperParameters"

#: Settings that a client gives in other members of its request.
_SAID_ELSEWHERE = (
    *("name", "model", "dataset", "agent.", "kind", "validation_dataset", "description"),
    *("input_adapter", "resume_from", "output_", "checkpoint_group", "evaluation.models"),
)

#: What a model's own recipe may say of a hyperparameter.
_OVERRIDABLE = ("default", "min", "max", "choices", "required", "leaf")


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """One name that a client may set, and the job setting it is (`leaf`, as in docs/job-file.md).

    `kind` is "integer", "float", "string", "boolean" or "list". Bounds are inclusive, and bound
    each entry of a list. `also` are further names: nested ones, as `batch.group_size`.
    """

    name: str
    leaf: str
    kind: str
    default: Any
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()
    required: bool = False
    also: tuple[str, ...] = ()

    def read(self, given: object) -> Any:
        """A client's value, which may be text, checked. Raises `InvalidInput`."""
        value = _READERS[self.kind](given)
        if value is None:
            raise self._refused(given, f"is not {_KINDS[self.kind]}")
        for each in value if self.kind == "list" else (value,):
            if not self._holds(each):
                raise self._refused(given, "is not allowed")
        return value

    def _holds(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self.minimum is None and self.maximum is None
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        return math.isfinite(value) and low <= value <= high

    def _refused(self, given: object, reason: str) -> errors.InvalidInput:
        remedy = f"must be {self.allowed}"
        return errors.InvalidInput(f"{FIELD}.{self.name}", given, reason, remedy=remedy)

    @property
    def allowed(self) -> str:
        """What it may be, in words.

        >>> Hyperparameter("group_size", "batch.group_size", "integer", 8, 2, 32).allowed
        'a whole number from 2 to 32'
        """
        words = _KINDS[self.kind]
        if self.choices:
            return f"{words}, one of " + ", ".join(map(str, self.choices))
        if self.minimum is not None and self.maximum is not None:
            return f"{words} from {self.minimum:g} to {self.maximum:g}"
        if self.minimum is not None:
            return f"{words}, at least {self.minimum:g}"
        return words if self.maximum is None else f"{words}, at most {self.maximum:g}"

    def spec(self) -> dict[str, Any]:
        """As the sagemaker SDK reads it, which checks a user's value by it."""
        found: dict[str, Any] = {"type": self.kind, "default": self.default}
        if self.minimum is not None:
            found["min"] = self.minimum
        if self.maximum is not None:
            found["max"] = self.maximum
        if self.kind == "list":  # the SDK would compare the list itself with these
            found.pop("min", None)
            found.pop("max", None)
        elif self.choices:
            found["enum"] = list(self.choices)
        return found | {"required": self.required}


@dataclass(frozen=True, slots=True)
class Recipe:
    """The hyperparameters of one kind of job. `name` is "training" or "evaluation"."""

    name: str
    hyperparameters: tuple[Hyperparameter, ...]

    def with_overrides(self, overrides: Mapping[str, Any]) -> Recipe:
        """This recipe with what a model's own says: {name: {default, min, max, choices}}.

        A name that is not in it is added, if `leaf` says which job setting it is. Raises
        `InvalidInput`.
        """
        if not isinstance(overrides, Mapping):
            raise errors.InvalidInput(self.name, overrides, "is not a mapping of hyperparameters")
        known = {each.name: each for each in self.hyperparameters}
        for name, said in overrides.items():
            field = f"{self.name}.{name}"
            if not isinstance(said, Mapping):
                said = {"default": said}
            if unknown := [key for key in said if key not in _OVERRIDABLE]:
                raise errors.InvalidInput(
                    f"{field}.{unknown[0]}",
                    said[unknown[0]],
                    "is set, but there is no such property",
                    remedy="known: " + ", ".join(_OVERRIDABLE),
                )
            if name not in known and "leaf" not in said:
                raise _unknown(
                    self.name, name, said, known, "give `leaf`, the job setting that it is"
                )
            known[name] = _overridden(field, known.get(name), name, said)
        return dataclasses.replace(self, hyperparameters=tuple(known.values()))

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The job settings by their dotted names: what is given, and the defaults of the rest.

        Takes the SDK's flat texts ("12", "[1, 2]") and nested typed values alike. Raises
        `InvalidInput` that names the hyperparameter, the value and what is allowed.
        """
        chosen = self.chosen(given)
        for each in self.hyperparameters:
            if each.required and each.leaf not in chosen:
                raise errors.InvalidInput(
                    f"{FIELD}.{each.name}", None, "is required", remedy=f"must be {each.allowed}"
                )
        return {each.leaf: each.default for each in self.hyperparameters} | chosen

    def chosen(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Only what is given, by the settings' dotted names, checked."""
        if not isinstance(given, Mapping):
            raise errors.InvalidInput(FIELD, given, "is not a mapping")
        by_name = {name: each for each in self.hyperparameters for name in (each.name, *each.also)}
        chosen: dict[str, Any] = {}
        for name, value in flattened(given):
            if name not in by_name:
                raise _unknown(FIELD, name, value, by_name)
            each = by_name[name]
            read = each.read(value)
            if chosen.setdefault(each.leaf, read) != read:
                raise errors.InvalidInput(
                    f"{FIELD}.{name}", value, "is given twice, with another value"
                )
        return chosen

    def override_params(self) -> dict[str, dict[str, Any]]:
        """{name: {type, default, min, max, enum, required}}, from which the SDK makes options."""
        return {each.name: each.spec() for each in self.hyperparameters}


def _overridden(
    field: str, before: Hyperparameter | None, name: str, said: Mapping[str, Any]
) -> Hyperparameter:
    if before is None or said.get("leaf", before.leaf) != before.leaf:
        before = _of_setting(field, name, said["leaf"])
    bounds = [key for key in ("min", "max") if said.get(key) is not None]
    choices = said.get("choices", () if bounds else before.choices) or ()
    after = dataclasses.replace(
        before,
        minimum=_bound(f"{field}.min", said.get("min", before.minimum)),
        maximum=_bound(f"{field}.max", said.get("max", before.maximum)),
        choices=tuple(choices) if isinstance(choices, list | tuple) else (choices,),
        required=bool(said.get("required", before.required)),
    )
    try:
        return dataclasses.replace(after, default=after.read(said.get("default", before.default)))
    except errors.InvalidInput as error:
        raise errors.InvalidInput(
            f"{field}.default", error.value, error.reason, remedy=error.remedy
        ) from None


def _bound(field: str, value: Any) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise errors.InvalidInput(field, value, "is not a number")


def _of_setting(field: str, name: str, path: object) -> Hyperparameter:
    """A hyperparameter for a setting that the standard recipe leaves alone."""
    known: dict[str, Leaf] = {
        leaf.path: leaf
        for leaf in leaves()
        if "[]" not in leaf.path and not leaf.path.startswith(_SAID_ELSEWHERE)
    }
    if path not in known:
        near = difflib.get_close_matches(str(path), known, n=1)
        remedy = f"did you mean {near[0]}?" if near else "docs/job-file.md lists the settings"
        raise errors.InvalidInput(f"{field}.leaf", path, "is not a job setting", remedy=remedy)
    leaf = known[str(path)]
    allowed = leaf.setting.allowed
    low = None if allowed is None or not math.isfinite(allowed.low) else allowed.low
    high = None if allowed is None or not math.isfinite(allowed.high) else allowed.high
    is_choice = isinstance(leaf.kind, type) and issubclass(leaf.kind, StrEnum)
    return Hyperparameter(
        name,
        leaf.path,
        _kind_of(leaf.kind),
        list(leaf.default) if isinstance(leaf.default, tuple) else leaf.default,
        minimum=low,
        maximum=high,
        choices=tuple(str(each) for each in leaf.kind) if is_choice else (),
    )


def _kind_of(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "list"
    return {bool: "boolean", int: "integer", float: "float"}.get(kind, "string")


def _unknown(
    where: str, name: str, value: object, known: Mapping[str, Any], remedy: str = ""
) -> errors.InvalidInput:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else remedy or "known: " + ", ".join(known)
    return errors.InvalidInput(
        f"{where}.{name}", value, "is set, but there is no such hyperparameter", remedy=hint
    )


# ── values ────────────────────────────────────────────────────────────────────────────────────


def _literal(given: object) -> object:
    """Python's or JSON's literal in a text; other texts as they are."""
    if not isinstance(given, str):
        return given
    try:
        return ast.literal_eval(given.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return given


def _whole(given: object) -> int | None:
    value = _literal(given)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _number(given: object) -> float | None:
    value = _literal(given)
    if type(value) not in (int, float):
        return None
    try:
        return float(typing.cast(float, value))
    except OverflowError:
        return None


def _text(given: object) -> str | None:
    return given if isinstance(given, str) else None


def _boolean(given: object) -> bool | None:
    words = {"true": True, "false": False}
    value = words.get(given.strip().lower()) if isinstance(given, str) else given
    return value if isinstance(value, bool) else None


def _list(given: object) -> list[Any] | None:
    value = _literal(given)
    return list(value) if isinstance(value, list | tuple) else None


_READERS: Mapping[str, typing.Callable[[object], Any]] = {
    "integer": _whole,
    "float": _number,
    "string": _text,
    "boolean": _boolean,
    "list": _list,
}
_KINDS = {
    "integer": "a whole number",
    "float": "a number",
    "string": "text",
    "boolean": "true or false",
    "list": "a list",
}


# ── SageMaker's ───────────────────────────────────────────────────────────────────────────────

_METHODS = tuple(str(each) for each in AdvantageMethod)
_LOSSES = tuple(str(each) for each in LossName)
_PASS_K = [1, 2, 4, 8, 16, 32]

#: https://docs.aws.amazon.com/sagemaker/latest/dg/model-customize-mtrl-hyperparams.html; methods
#: and losses are all that this service has.
STANDARD_TRAINING = Recipe(
    "training",
    (
        Hyperparameter(
            "global_batch_size",
            "batch.global_batch_size",
            "integer",
            128,
            choices=(32, 64, 128),
            also=("batch.global_batch_size", "training_batch_size"),
        ),
        Hyperparameter(
            "group_size", "batch.group_size", "integer", 8, 2, 32, also=("batch.group_size",)
        ),
        Hyperparameter(
            "advantage_method",
            "algorithm.advantage_method",
            "string",
            "group_based",
            choices=_METHODS,
            also=("rl.advantage_method",),
        ),
        Hyperparameter(
            "loss_fn", "algorithm.loss_fn", "string", "ppo", choices=_LOSSES, also=("rl.loss_fn",)
        ),
        Hyperparameter(
            "clip_low_threshold",
            "algorithm.clip_low_threshold",
            "float",
            0.8,
            0,
            1,
            also=("rl.clip_low_threshold",),
        ),
        Hyperparameter(
            "clip_high_threshold",
            "algorithm.clip_high_threshold",
            "float",
            1.2,
            1,
            10,
            also=("rl.clip_high_threshold",),
        ),
        Hyperparameter(
            "temperature",
            "sampling_params.temperature",
            "float",
            1.0,
            0,
            2,
            also=("sampling_params.temperature", "sampling_temperature"),
        ),
        Hyperparameter(
            "sampling_top_p",
            "sampling_params.top_p",
            "float",
            1.0,
            0,
            1,
            also=("sampling_params.sampling_top_p", "sampling_params.top_p", "top_p"),
        ),
        Hyperparameter(
            "sampling_max_tokens",
            "sampling_params.max_tokens",
            "integer",
            4096,
            512,
            8192,
            also=("sampling_params.sampling_max_tokens", "sampling_params.max_tokens"),
        ),
        Hyperparameter(
            "val_sampling_max_tokens",
            "val_sampling_params.max_tokens",
            "integer",
            4096,
            512,
            8192,
            also=("val_sampling_params.sampling_max_tokens", "val_sampling_params.max_tokens"),
        ),
        Hyperparameter(
            "pass_k_values",
            "validation.pass_k_values",
            "list",
            _PASS_K,
            1,
            also=("val_metrics_config.pass_k_values",),
        ),
        Hyperparameter(
            "success_threshold",
            "validation.success_threshold",
            "float",
            1.0,
            also=("val_metrics_config.success_threshold",),
        ),
        Hyperparameter(
            "max_epochs", "schedule.max_epochs", "integer", 1, 1, 30, also=("schedule.max_epochs",)
        ),
        Hyperparameter(
            "max_steps", "schedule.max_steps", "integer", 50, 1, 1000, also=("schedule.max_steps",)
        ),
        Hyperparameter(
            "val_every", "schedule.val_every", "integer", 10, 0, 100, also=("schedule.val_every",)
        ),
        Hyperparameter("lora_rank", "lora.rank", "integer", 32, 16, 64, also=("model.lora_rank",)),
        Hyperparameter(
            "lora_alpha", "lora.alpha", "float", 64.0, 16, 128, also=("model.lora_alpha",)
        ),
        Hyperparameter(
            "learning_rate",
            "optimizer.learning_rate",
            "float",
            4e-5,
            1e-12,
            1e-2,
            also=("model.learning_rate",),
        ),
        Hyperparameter(
            "adam_beta1", "optimizer.beta1", "float", 0.9, 0, 0.9999, also=("model.adam_beta1",)
        ),
        Hyperparameter(
            "adam_beta2", "optimizer.beta2", "float", 0.95, 0, 0.9999, also=("model.adam_beta2",)
        ),
        Hyperparameter(
            "adam_eps", "optimizer.eps", "float", 1e-8, 1e-12, 1e-3, also=("model.adam_eps",)
        ),
        Hyperparameter(
            "adam_weight_decay",
            "optimizer.weight_decay",
            "float",
            0.0,
            0,
            1,
            also=("weight_decay", "model.adam_weight_decay", "model.weight_decay"),
        ),
        Hyperparameter(
            "adam_grad_clip_norm",
            "optimizer.grad_clip_norm",
            "float",
            1.0,
            0,
            100,
            also=("grad_clip_norm", "model.adam_grad_clip_norm", "model.grad_clip_norm"),
        ),
        Hyperparameter(
            "rollout_max_concurrency",
            "rollout.rollout_max_concurrency",
            "integer",
            96,
            32,
            96,
            also=("rollout.rollout_max_concurrency", "rollout.max_concurrency"),
        ),
        Hyperparameter(
            "rollout_timeout",
            "rollout.rollout_timeout",
            "float",
            600.0,
            300,
            86400,
            also=("rollout.rollout_timeout", "rollout.timeout"),
        ),
        Hyperparameter(
            "rollout_max_retries",
            "rollout.rollout_max_retries",
            "integer",
            3,
            1,
            10,
            also=("rollout.rollout_max_retries", "rollout.max_retries"),
        ),
        Hyperparameter(
            "max_steps_off_policy",
            "async_config.max_steps_off_policy",
            "integer",
            3,
            0,
            10,
            also=("async_config.max_steps_off_policy",),
        ),
    ),
)

STANDARD_EVALUATION = Recipe(
    "evaluation",
    (
        Hyperparameter(
            "eval_group_size",
            "evaluation.group_size",
            "integer",
            1,
            1,
            32,
            also=("batch.eval_group_size",),
        ),
        Hyperparameter(
            "sampling_temperature",
            "eval_sampling_params.temperature",
            "float",
            0.0,
            0,
            2,
            also=("eval_sampling_params.temperature", "temperature"),
        ),
        Hyperparameter(
            "top_p",
            "eval_sampling_params.top_p",
            "float",
            1.0,
            0,
            1,
            also=(
                "eval_sampling_params.sampling_top_p",
                "eval_sampling_params.top_p",
                "sampling_top_p",
            ),
        ),
        Hyperparameter(
            "max_tokens",
            "eval_sampling_params.max_tokens",
            "integer",
            4096,
            512,
            8192,
            also=(
                "eval_sampling_params.sampling_max_tokens",
                "eval_sampling_params.max_tokens",
                "sampling_max_tokens",
            ),
        ),
        Hyperparameter(
            "pass_k_values",
            "evaluation.pass_k_values",
            "list",
            _PASS_K,
            1,
            also=("eval_metrics_config.pass_k_values",),
        ),
        Hyperparameter(
            "success_threshold",
            "evaluation.success_threshold",
            "float",
            1.0,
            also=("eval_metrics_config.success_threshold",),
        ),
        Hyperparameter(
            "rollout_timeout",
            "rollout.rollout_timeout",
            "float",
            600.0,
            1,
            86400,
            also=("rollout.timeout", "rollout.rollout_timeout"),
        ),
        Hyperparameter(
            "rollout_max_concurrency",
            "rollout.rollout_max_concurrency",
            "integer",
            96,
            1,
            96,
            also=("rollout.max_concurrency", "rollout.rollout_max_concurrency"),
        ),
        Hyperparameter(
            "rollout_max_retries",
            "rollout.rollout_max_retries",
            "integer",
            3,
            0,
            10,
            also=("rollout.max_retries", "rollout.rollout_max_retries"),
        ),
    ),
)
