"""A job file (a mapping, from YAML or JSON) -> JobSpec, or an error that says what to write."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from turnwise import errors
from turnwise.control.algorithm import bundle, check_algorithm, check_group_budget
from turnwise.control.evaluation import check_evaluation
from turnwise.control.job_settings import SETTINGS, Setting, default_of, entry, leaves
from turnwise.control.json_text import read_json
from turnwise.control.objects.locations import check_address, is_uri, parse_location
from turnwise.domain.algorithm import AlgorithmName, AlgorithmSpec
from turnwise.domain.job import (
    BASE,
    CHECKPOINTS,
    AgentKind,
    AgentSpec,
    EvaluationSpec,
    JobKind,
    JobSpec,
    RolloutSpec,
    TruncatedTurns,
    WandbSpec,
)

_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")


def read_job(file: Path) -> JobSpec:
    """Read a YAML (or JSON) job file; its relative paths are taken from its own folder.

    Raises `InvalidInput` naming the field, the value and what is allowed.
    """
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise errors.InvalidInput("job file", str(file), f"cannot be read: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _no_yaml(str(file), error) from None
    return parse_job(data, folder=file.resolve().parent)


def read_text(text: str) -> object:
    """What a job file says that somebody sent: for `parse_job`.

    Aliases are refused: a few lines of them can stand for more than the memory holds. Raises
    `InvalidInput` for them, for what is not YAML, and for what nothing could store.
    """
    try:
        data: object = yaml.load(text, _SentLoader)
        json.dumps(data, default=str, skipkeys=True, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise errors.InvalidInput("job file", text, "holds half a character") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _no_yaml(text, error) from None
    return data


def _no_yaml(what: str, error: Exception) -> errors.InvalidInput:
    return errors.InvalidInput("job file", what, f"is not YAML: {' '.join(str(error).split())}")


class _Loader(yaml.SafeLoader):
    """Refuses a key that is set twice, where YAML's own loader would take the last silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is set twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


class _SentLoader(_Loader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            problem = "aliases are not taken here; write out what they stand for"
            raise yaml.MarkedYAMLError(problem=problem)
        return super().compose_node(parent, index)


def parse_job(data: object, *, folder: Path | None = None) -> JobSpec:
    """Read a job file's content.

    Relative paths are taken from `folder`; without one they are refused, since reader and writer
    need not share a working directory. Raises `InvalidInput` naming the field, the value and what
    is allowed.
    """
    if not isinstance(data, Mapping):
        raise errors.InvalidInput("job", data, "is not a mapping of settings")
    spec: JobSpec = _build(JobSpec, data, "")
    spec = dataclasses.replace(
        spec,
        model=_absolute("model", spec.model, folder),
        dataset=_absolute("dataset", spec.dataset, folder),
        validation_dataset=_absolute("validation_dataset", spec.validation_dataset, folder),
        input_adapter=_adapter(spec.input_adapter, folder),
        evaluation=_with_models(spec.evaluation, folder),
    )
    if spec.output_path:
        parse_location(spec.output_path, "output_path")
    _check_sense(spec)
    return spec


def as_mapping(spec: JobSpec) -> dict[str, Any]:
    """The job file that gives this spec, defaults written out."""
    return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(spec)))


def flattened(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names; lists as they come from JSON.

    >>> dict(flattened({"seed": 1, "lora": {"rank": 8}}))
    {'seed': 1, 'lora.rank': 8}
    """
    for name, value in block.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value


# ── paths ─────────────────────────────────────────────────────────────────────────────────────


def _absolute(field: str, path: str, folder: Path | None) -> str:
    if not path or Path(path).is_absolute():
        return path
    if is_uri(path):
        parse_location(path, field)
        return path
    if folder is None:
        raise errors.InvalidInput(
            field, path, "is a relative path", remedy="give its absolute path on the server"
        )
    return str((folder / Path(path).expanduser()).resolve())


def _adapter(name: str, folder: Path | None) -> str:
    """A folder beside the job file by its absolute path; anything else is a registered model."""
    if not name or folder is None:
        return name
    beside = folder / Path(name).expanduser()
    return str(beside.resolve()) if beside.is_dir() else name


def _with_models(evaluation: EvaluationSpec, folder: Path | None) -> EvaluationSpec:
    """The models by their absolute paths or names; an empty name is the base model."""
    models = [name if name in ("", BASE) else _adapter(name, folder) for name in evaluation.models]
    return dataclasses.replace(evaluation, models=tuple(name or BASE for name in models))


# ── values ────────────────────────────────────────────────────────────────────────────────────


def _build(cls: type[Any], data: object, prefix: str, block: object = None) -> Any:
    """A dataclass from a mapping, field by field; what is not given is as in `block`, if any."""
    if not isinstance(data, Mapping):
        raise errors.InvalidInput(prefix.rstrip("."), data, "is not a block of settings")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise _unknown(prefix, str(key), data[key], fields)
    for name, field in fields.items():
        is_needed = block is None and default_of(field) is dataclasses.MISSING
        if is_needed and name not in data:
            raise errors.InvalidInput(
                prefix + name, None, "is not a value", remedy="the job file must set it"
            )
    hints, settings = typing.get_type_hints(cls), SETTINGS[cls]
    given = {
        key: _value(hints[key], data[key], prefix + key, settings[key], default_of(fields[key]))
        for key in data
    }
    if cls is AlgorithmSpec:  # the one block whose defaults depend on its tag
        block = bundle(given.get("name", AlgorithmName.CUSTOM))
    return cls(**given) if block is None else dataclasses.replace(typing.cast(Any, block), **given)


def _unknown(prefix: str, key: str, value: object, fields: Iterable[str]) -> errors.InvalidInput:
    """Suggests the nearest name of the same block, else one of the whole job file."""
    here = {name: prefix + name for name in fields}
    elsewhere = {leaf.path.rpartition(".")[2]: leaf.path for leaf in reversed([*leaves()])}
    for known in (here, elsewhere):
        if near := difflib.get_close_matches(key, known, n=1):
            remedy = f"did you mean {known[near[0]]}?"
            break
    else:
        remedy = "known here: " + ", ".join(here.values())
    return errors.InvalidInput(
        prefix + key, value, "is set, but there is no such setting", remedy=remedy
    )


def _value(kind: Any, value: object, name: str, setting: Setting, default: object = None) -> Any:
    if dataclasses.is_dataclass(kind):
        block = default if isinstance(default, typing.cast("type[Any]", kind)) else None
        return _build(typing.cast("type[Any]", kind), value, name + ".", block)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _choice(kind, value, name)
    if typing.get_origin(kind) is tuple:
        may_be_empty = default == ()
        if not isinstance(value, (list, tuple)) or not (value or may_be_empty):
            wanted = "is not a list" + ("" if may_be_empty else " with at least one entry")
            raise errors.InvalidInput(name, value, wanted)
        item = entry(kind)
        return tuple(_value(item, each, f"{name}[{i}]", setting) for i, each in enumerate(value))
    return _in_range(_scalar(kind, value, name), name, setting)


def _choice(kind: type[StrEnum], value: object, name: str) -> StrEnum:
    choices = [str(member) for member in kind]
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise errors.InvalidInput(
            name, value, "is not a choice", remedy=hint + "allowed: " + ", ".join(choices)
        )
    return kind(value)


_WANTED = {
    int: "is not a whole number",
    float: "is not a number",
    str: "is not text (quote it, or leave the setting out)",
    bool: "is not true or false",
}


#: The largest whole number that every reader of JSON keeps as it is.
_MOST = 2**53


def _scalar(kind: type, value: object, name: str) -> Any:
    number = value
    if kind in (int, float) and isinstance(value, str):
        number = _number(value)  # YAML reads "1e-4", without a dot, as text
    if kind is int and isinstance(number, float) and number.is_integer():
        number = int(number)
    if kind is float and type(number) is int:
        number = _number(str(number))
    if type(number) is not kind:
        raise errors.InvalidInput(name, value, _WANTED[kind])
    if isinstance(number, float) and not math.isfinite(number):
        raise errors.InvalidInput(name, value, "is not a finite number")
    if type(number) is int and abs(number) > _MOST:
        raise errors.InvalidInput(name, value, "is out of range", remedy=f"must be at most {_MOST}")
    return number


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _in_range(value: Any, name: str, setting: Setting) -> Any:
    if setting.allowed is not None and not setting.allowed.holds(value):
        raise errors.InvalidInput(
            name, value, "is out of range", remedy=f"must be {setting.allowed}"
        )
    return value


# ── sense ─────────────────────────────────────────────────────────────────────────────────────


def _check_sense(spec: JobSpec) -> None:
    """Refuse combinations that cannot mean anything."""
    if not _NAME.fullmatch(spec.name):
        raise errors.InvalidInput(
            "name",
            spec.name,
            "is not a job name",
            remedy="use 1 to 63 letters, digits and, between them, hyphens",
        )
    _check_given(spec)
    _check_beginning(spec)
    _check_groups(spec)
    _check_agent(spec.agent)
    _check_wandb(spec.tracking.wandb)
    check_evaluation(spec.evaluation)
    if spec.kind is JobKind.TRAIN:
        _check_training(spec)
    if 0 < spec.rollout.group_timeout < spec.rollout.rollout_timeout:
        raise errors.InvalidInput(
            "rollout.group_timeout",
            spec.rollout.group_timeout,
            f"ends a group before its rollouts may end ({spec.rollout.rollout_timeout:g})",
            remedy="use at least rollout.rollout_timeout, or 0",
        )
    _check_truncation(spec.rollout)


def _check_given(spec: JobSpec) -> None:
    for name in ("model", "dataset"):
        if not getattr(spec, name):
            raise errors.InvalidInput(name, "", "is empty", remedy="it must be set")


def _check_beginning(spec: JobSpec) -> None:
    if spec.name.endswith(CHECKPOINTS):
        raise errors.InvalidInput(
            "name",
            spec.name,
            f"ends as the groups of checkpoints do, in {CHECKPOINTS!r}",
            remedy="choose another name",
        )
    if spec.resume_from and spec.input_adapter:
        raise errors.InvalidInput(
            "resume_from",
            spec.resume_from,
            f"is set together with input_adapter ({spec.input_adapter})",
            remedy="continue a checkpoint, or start anew from an adapter",
        )
    if spec.resume_from and spec.kind is not JobKind.TRAIN:
        raise errors.InvalidInput(
            "resume_from",
            spec.resume_from,
            f"cannot be for a job of kind {spec.kind}",
            remedy="name what to evaluate in input_adapter",
        )


def _check_groups(spec: JobSpec) -> None:
    for field in ("output_group", "checkpoint_group"):
        group = getattr(spec, field)
        if group and not _NAME.fullmatch(group):
            raise errors.InvalidInput(
                field,
                group,
                "is not a group's name",
                remedy="use 1 to 63 letters, digits and, between them, hyphens",
            )
    if spec.adapters_in == spec.checkpoints_in:
        raise errors.InvalidInput(
            "checkpoint_group",
            spec.checkpoints_in,
            "is the group of the adapters too",
            remedy="name another group, or leave both out",
        )


def _check_agent(agent: AgentSpec) -> None:
    _check_extra_body(agent)
    if agent.name:
        return  # its record says the rest
    if agent.has_url:
        check_address(agent.url, "agent.url", remedy="use http://host:port, or agent.name")
    if agent.kind is AgentKind.PYTHON and not all(agent.target.partition(":")):
        raise errors.InvalidInput(
            "agent.target",
            agent.target,
            "names no function",
            remedy='use "package.module:function"',
        )
    if agent.kind is AgentKind.EVALUATOR and not agent.target:
        raise errors.InvalidInput(
            "agent.target",
            agent.target,
            "names no evaluator",
            remedy="use the id of one that was uploaded and built",
        )


def _check_extra_body(agent: AgentSpec) -> None:
    if not agent.extra_body:
        return
    field = "agent.extra_body"
    if agent.kind is not AgentKind.EVALUATOR:
        raise errors.InvalidInput(
            field,
            agent.extra_body,
            f"goes with no model call of an agent of kind {agent.kind.value}",
            remedy="leave it out; other agents say in each call what they want",
        )
    if not isinstance(read_json(field, agent.extra_body), dict):
        raise errors.InvalidInput(
            field, agent.extra_body, "is not a JSON object as text", remedy='as {"stop": ["END"]}'
        )


def _check_wandb(wandb: WandbSpec) -> None:
    """Names that W&B would refuse only once the job runs."""
    for field in ("project", "run_id"):
        if (name := getattr(wandb, field)) and re.search(r"[/\\#?%:]", name):
            raise errors.InvalidInput(
                f"tracking.wandb.{field}",
                name,
                "has a character that W&B does not allow",
                remedy="use none of / \\ # ? % :",
            )


def _check_truncation(limits: RolloutSpec) -> None:
    is_penalised = limits.truncated_turns is TruncatedTurns.PENALISE
    if is_penalised and not limits.truncation_penalty:
        raise errors.InvalidInput(
            "rollout.truncation_penalty",
            limits.truncation_penalty,
            "penalises nothing",
            remedy="use more than 0, or rollout.truncated_turns: keep",
        )
    if limits.truncation_penalty and not is_penalised:
        raise errors.InvalidInput(
            "rollout.truncation_penalty",
            limits.truncation_penalty,
            f"has no effect with rollout.truncated_turns: {limits.truncated_turns}",
            remedy="use rollout.truncated_turns: penalise, or leave the penalty out",
        )


def _check_training(spec: JobSpec) -> None:
    batch = spec.batch
    if batch.group_size < 2:
        raise errors.InvalidInput(
            "batch.group_size",
            batch.group_size,
            f"leaves {spec.algorithm.advantage_method} nothing to compare",
            remedy="use at least 2",
        )
    check_algorithm(spec)
    check_group_budget(spec)
    if batch.updates_per_step > batch.global_batch_size * batch.group_size:
        raise errors.InvalidInput(
            "batch.updates_per_step",
            batch.updates_per_step,
            "leaves updates without a rollout",
            remedy=f"use at most {batch.global_batch_size * batch.group_size}, "
            "global_batch_size x group_size",
        )
    if spec.sampling_params.temperature == 0:
        raise errors.InvalidInput(
            "sampling_params.temperature",
            0,
            "gives siblings that are all alike, so nothing can be learned",
            remedy="use 1 for training; val_sampling_params may be 0",
        )
