"""The form that starts a job: its fields, and how they and a job file become each other. Pure.

A form holds the settings that most jobs change, each as text; whatever else a job file says rides
along as `rest`, so that going from one to the other and back loses nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from turnwise.control.algorithm import bundle
from turnwise.control.job_file import as_mapping
from turnwise.control.job_settings import leaves
from turnwise.domain.algorithm import AlgorithmSpec
from turnwise.domain.job import AgentKind, JobKind, JobSpec

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FormField:
    """One input. `path` is the setting's full name; `suggestions` names a list of values."""

    path: str
    label: str
    hint: str = ""
    is_number: bool = False
    is_list: bool = False
    choices: tuple[str, ...] = ()
    suggestions: str = ""
    is_needed: bool = False

    @property
    def default(self) -> str:
        """What holds where the input is left empty."""
        value = _DEFAULTS[self.path]
        if value is dataclasses.MISSING:
            return ""
        return f"{value:g}" if isinstance(value, float) else str(value or "")


@dataclass(frozen=True, slots=True)
class FieldSet:
    """Inputs under one heading."""

    title: str
    fields: tuple[FormField, ...]


def _number(path: str, label: str, hint: str = "") -> FormField:
    return FormField(path=path, label=label, hint=hint, is_number=True)


_DEFAULTS = {leaf.path: leaf.default for leaf in leaves()}

_AGENT = FieldSet(
    "Agent",
    (
        FormField(
            path="agent.name",
            label="Registered agent",
            hint="Its record says the rest; leave it empty to say it here.",
            suggestions="agents",
        ),
        FormField(
            path="agent.kind", label="Kind", choices=("", *(kind.value for kind in AgentKind))
        ),
        FormField(path="agent.url", label="URL", hint="For http, agentcore and lambda."),
        FormField(
            path="agent.target",
            label="Target",
            hint="package.module:function for python; an evaluator's id.",
            suggestions="evaluators",
        ),
    ),
)

_TRAINING = (
    FieldSet(
        "Job",
        (
            FormField(path="name", label="Name", is_needed=True),
            FormField(path="description", label="Description"),
            FormField(path="model", label="Base model", suggestions="bases", is_needed=True),
            FormField(
                path="input_adapter",
                label="Warm start from",
                hint="A registered model; empty: the base model as it is.",
                suggestions="adapters",
            ),
            FormField(
                path="resume_from",
                label="Continue checkpoint",
                hint="With its optimizer and its place in the data.",
                suggestions="checkpoints",
            ),
        ),
    ),
    FieldSet(
        "Data",
        (
            FormField(path="dataset", label="Dataset", suggestions="datasets", is_needed=True),
            FormField(
                path="validation_dataset", label="Validation dataset", suggestions="datasets"
            ),
        ),
    ),
    _AGENT,
    FieldSet(
        "How long",
        (
            _number("schedule.max_epochs", "Epochs"),
            _number("schedule.max_steps", "Steps", "Whichever of the two is reached first."),
            _number("batch.global_batch_size", "Groups per step"),
            _number("batch.group_size", "Rollouts per group"),
        ),
    ),
    FieldSet(
        "Learning",
        (
            _number("optimizer.learning_rate", "Learning rate"),
            _number("lora.rank", "LoRA rank"),
            _number("sampling_params.temperature", "Temperature"),
            _number("sampling_params.max_tokens", "Tokens per turn, at most"),
        ),
    ),
)

_EVALUATION = (
    FieldSet(
        "Evaluation",
        (
            FormField(path="name", label="Name", is_needed=True),
            FormField(path="description", label="Description"),
            FormField(path="model", label="Base model", suggestions="bases", is_needed=True),
            FormField(
                path="evaluation.models",
                label="Models",
                hint="Registered ones and `base`, with commas between; empty: the base model.",
                is_list=True,
                suggestions="adapters",
            ),
            FormField(path="dataset", label="Dataset", suggestions="datasets", is_needed=True),
        ),
    ),
    _AGENT,
    FieldSet(
        "How much",
        (
            _number("evaluation.max_rows", "Rows, at most", "0: all."),
            _number("evaluation.group_size", "Rollouts per row and model"),
            _number("eval_sampling_params.temperature", "Temperature"),
            _number("eval_sampling_params.max_tokens", "Tokens per turn, at most"),
        ),
    ),
)

FIELDS: Mapping[JobKind, tuple[FieldSet, ...]] = {
    JobKind.TRAIN: _TRAINING,
    JobKind.EVALUATION: _EVALUATION,
}


def fields_of(kind: JobKind) -> list[FormField]:
    """All inputs of a kind of job."""
    return [each for group in FIELDS[kind] for each in group.fields]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A form as it is filled in: text by setting, and the settings that have no input."""

    kind: JobKind = JobKind.TRAIN
    values: Mapping[str, str] = field(default_factory=dict)
    rest: Mapping[str, Any] = field(default_factory=dict)

    def job_file(self) -> Json:
        """The job file that says the same; an empty input says nothing."""
        made: Json = {} if self.kind is JobKind.TRAIN else {"kind": self.kind.value}
        for each in fields_of(self.kind):
            if text := self.values.get(each.path, "").strip():
                _put(made, each.path, _typed(each, text))
        return _over(made, copy.deepcopy(dict(self.rest)))


def draft_of(job_file: Mapping[str, Any]) -> Draft:
    """The form that says the same as a job file.

    >>> draft = draft_of({"name": "walk", "batch": {"group_size": 4, "refill": True}})
    >>> draft.values, draft.rest
    ({'name': 'walk', 'batch.group_size': '4'}, {'batch': {'refill': True}})
    """
    rest: Json = copy.deepcopy(dict(job_file))
    kind = JobKind.TRAIN
    if rest.get("kind") in list(JobKind):
        kind = JobKind(rest.pop("kind"))
    values = {}
    for each in fields_of(kind):
        if (text := _text(each, _get(rest, each.path))) is not None:
            values[each.path] = text
            _take(rest, each.path)
    return Draft(kind=kind, values=values, rest=rest)


def short_job_file(spec: JobSpec) -> Json:
    """The job file that gives this spec, without what it leaves at its default."""
    plain = JobSpec(
        name="",
        model="",
        dataset="",
        agent=type(spec.agent)(),
        algorithm=bundle(spec.algorithm.name),
    )
    short = _difference(as_mapping(spec), as_mapping(plain))
    if spec.algorithm.name is not AlgorithmSpec().name:
        short["algorithm"] = {"name": spec.algorithm.name.value} | short.get("algorithm", {})
    return {"name": spec.name, "model": spec.model, "dataset": spec.dataset, "agent": {}} | short


def as_yaml(job_file: Mapping[str, Any]) -> str:
    """A job file as text."""
    text = yaml.safe_dump(dict(job_file), sort_keys=False, allow_unicode=True, width=100)
    return text if job_file else ""


def fresh_name(name: str, taken: Collection[str]) -> str:
    """A name like this one that no job has.

    >>> fresh_name("walk", {"walk", "walk-2"}), fresh_name("walk-2", {"walk-2"})
    ('walk-3', 'walk-3')
    """
    stem, number = name, 2
    if found := re.fullmatch(r"(.+)-(\d{1,6})", name):
        stem, number = found[1], int(found[2]) + 1
    while (fresh := f"{stem[: 62 - len(str(number))]}-{number}") in taken:
        number += 1
    return fresh


def _difference(its: Json, plain: Json) -> Json:
    """What of a mapping another does not say alike."""
    found: Json = {}
    for key, value in its.items():
        if isinstance(value, dict) and isinstance(plain.get(key), dict):
            if inner := _difference(value, plain[key]):
                found[key] = inner
        elif key not in plain or value != plain[key]:
            found[key] = value
    return found


def _over(made: Json, rest: Json) -> Json:
    """Both; blocks that both have are joined."""
    for key, value in rest.items():
        if isinstance(value, dict) and isinstance(made.get(key), dict):
            made[key] = _over(made[key], value)
        else:
            made.setdefault(key, value)
    return made


def _typed(each: FormField, text: str) -> Any:
    """The value an input's text stands for; what is no number stays text, to be refused as that."""
    if each.is_list:
        return [part.strip() for part in text.split(",") if part.strip()]
    if not each.is_number:
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _text(each: FormField, value: Any) -> str | None:
    """What an input shows of a value; None for what it cannot show."""
    if each.is_list:
        is_shown = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return ", ".join(value) if is_shown else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value)


def _put(job_file: Json, path: str, value: Any) -> None:
    *blocks, name = path.split(".")
    for block in blocks:
        job_file = job_file.setdefault(block, {})
    job_file[name] = value


def _get(job_file: Json, path: str) -> Any:
    found: Any = job_file
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _take(job_file: Json, path: str) -> None:
    """Remove a setting, and the block that it leaves empty."""
    block, _, name = path.rpartition(".")
    if not block:
        del job_file[name]
        return
    inner = job_file[block]
    del inner[name]
    if not inner:
        del job_file[block]
