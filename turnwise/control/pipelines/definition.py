"""A pipeline's definition: read, checked, and its expressions resolved. Pure.

The language is the part of SageMaker Pipelines' "2020-12-01" that evaluations are written in:

    {"Version": "2020-12-01", "Parameters": [{"Name", "Type", "DefaultValue"?, "EnumValues"?}],
     "Steps": [{"Name", "Type": "Lineage" | "Job", "Arguments": {...}, "DependsOn": [name]?}]}

and anywhere inside `Arguments`, in place of a value,

    {"Get": "Execution.<value>"}    {"Get": "Parameters.<name>"}
    {"Get": "Steps.<job step>.<member of its description>"}    e.g. JobConfigDocument.A.B
    {"Std:Join": {"On": text, "Values": [...]}}

What is not in it is refused by `parse_definition`, so that no execution finds out half-way.
"""

from __future__ import annotations

import graphlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from turnwise import errors
from turnwise.control.json_text import read_json

VERSION = "2020-12-01"
#: As many steps as AWS allows in one pipeline.
MAX_STEPS = 50
MAX_PARAMETERS = 200

#: What `Execution.` may be followed by.
EXECUTION_VALUES = (
    *("PipelineExecutionId", "PipelineExecutionArn", "PipelineName", "PipelineArn"),
    "StartDateTime",
)
#: What `Steps.<name>.` may be followed by; only the document has members of its own.
_DOCUMENT = "JobConfigDocument"
JOB_VALUES = (
    *("JobName", "JobArn", "JobCategory", "RoleArn", "JobStatus", "SecondaryStatus"),
    *("JobConfigSchemaVersion", _DOCUMENT),
)

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_STEP_PATH = re.compile(r"Steps\.(?P<step>[A-Za-z0-9_-]{1,64})\.(?P<path>\w+(\.[\w-]+)*)")
_STEP_MEMBERS = frozenset({"Name", "Type", "Arguments", "DependsOn", "DisplayName", "Description"})
_MEMBERS = frozenset({"Version", "Metadata", "Parameters", "PipelineExperimentConfig", "Steps"})
_JOB_NEEDS = ("JobCategory", "RoleArn", "JobConfigSchemaVersion", _DOCUMENT)
_JOB_MEMBERS = frozenset({*_JOB_NEEDS, "VpcConfig", "Tags"})
#: What a Lineage step's lists hold, and what each entry must have.
_LINEAGE_NEEDS = {
    "Actions": ("ActionName", "ActionType", "Source"),
    "Artifacts": ("ArtifactType", "Source"),
    "Contexts": ("ContextName", "ContextType", "Source"),
    "Associations": ("Source", "Destination"),
}


class StepKind(StrEnum):
    """What a step does."""

    LINEAGE = "Lineage"  # nothing here: what ran is in the jobs and their records
    JOB = "Job"  # creates a job and ends with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. `depends_on` holds what it names and what its arguments get values from."""

    name: str
    kind: StepKind
    arguments: Mapping[str, Any]
    depends_on: frozenset[str] = frozenset()
    display_name: str = ""
    description: str = ""


_Typed = str | int | float | bool
_PARAMETERS: dict[str, type[_Typed]] = {
    "String": str,
    "Integer": int,
    "Float": float,
    "Boolean": bool,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A value that an execution may be started with; required where there is no default."""

    name: str
    kind: str
    default: _Typed | None = None
    choices: tuple[_Typed, ...] = ()

    def read(self, text: str) -> _Typed:
        """A value from its text. Raises `InvalidInput`."""
        value: _Typed | None = text
        if self.kind == "Boolean":
            value = {"true": True, "false": False}.get(text.lower())
        elif self.kind != "String":
            try:
                value = int(text) if self.kind == "Integer" else float(text)
            except ValueError:
                value = None
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            value = None
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise errors.InvalidInput(f"parameter {self.name}", text, f"is no {self.kind}")
        if self.choices and value not in self.choices:
            choices = ", ".join(map(str, self.choices))
            raise errors.InvalidInput(
                f"parameter {self.name}", text, "is not allowed", remedy=f"one of {choices}"
            )
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A checked definition: an acyclic graph of steps."""

    steps: tuple[Step, ...]
    parameters: tuple[Parameter, ...] = ()

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)

    def bind(self, given: Mapping[str, str]) -> dict[str, _Typed]:
        """The parameters' values of an execution that is started with these texts.

        Raises `InvalidInput` for one that is unknown, missing or of another type.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in given:
            if name not in known:
                raise errors.InvalidInput(
                    "PipelineParameters", name, "is no parameter of this pipeline"
                )
        values = {}
        for name, parameter in known.items():
            value = parameter.read(given[name]) if name in given else parameter.default
            if value is None:
                raise errors.InvalidInput(
                    "PipelineParameters", name, "is required and has no default"
                )
            values[name] = value
        return values


# ── reading ───────────────────────────────────────────────────────────────────────────────────


def parse_definition(text: str) -> Definition:
    """Read and check a definition. Raises `InvalidInput` that names the step at fault."""
    data = read_json("PipelineDefinition", text)
    try:
        return _definition(data)
    except RecursionError:
        raise errors.InvalidInput("PipelineDefinition", text, "is nested too deeply") from None


def _definition(data: Any) -> Definition:
    if not isinstance(data, dict):
        raise errors.InvalidInput("PipelineDefinition", data, "must be an object")
    _check_members("PipelineDefinition", data, _MEMBERS)
    if data.get("Version") != VERSION:
        raise errors.InvalidInput(
            "PipelineDefinition.Version", data.get("Version"), f'must be "{VERSION}"'
        )
    declared = _list(data.get("Parameters", []), "Parameters")
    if len(declared) > MAX_PARAMETERS:
        raise errors.InvalidInput("Parameters", len(declared), f"are more than {MAX_PARAMETERS}")
    parameters = tuple(_parameter(item) for item in declared)
    _check_unique("parameter", [parameter.name for parameter in parameters])
    given = _list(data.get("Steps"), "Steps")
    if not 1 <= len(given) <= MAX_STEPS:
        raise errors.InvalidInput("Steps", len(given), f"must be 1 to {MAX_STEPS} steps")
    steps = tuple(_step(item, number) for number, item in enumerate(given))
    _check_unique("step", [step.name for step in steps])
    definition = Definition(steps=steps, parameters=parameters)
    _check_references(definition)
    return definition


def _parameter(item: Any) -> Parameter:
    where = "Parameters"
    if not isinstance(item, dict) or not isinstance(item.get("Name"), str):
        raise errors.InvalidInput(where, item, "must have a Name and a Type")
    _check_members(where, item, frozenset({"Name", "Type", "DefaultValue", "EnumValues"}))
    name, kind = item["Name"], item.get("Type")
    if not isinstance(kind, str) or kind not in _PARAMETERS:
        raise errors.InvalidInput(
            f"{where}.{name}.Type", kind, "is unknown", remedy=f"one of {', '.join(_PARAMETERS)}"
        )
    choices = _list(item.get("EnumValues", []), f"{where}.{name}.EnumValues")
    default = item.get("DefaultValue")
    for value in [*choices, *([] if default is None else [default])]:
        is_number = kind == "Float" and type(value) is int
        if type(value) is not _PARAMETERS[kind] and not is_number:
            raise errors.InvalidInput(f"{where}.{name}", value, f"is no {kind}")
    if choices and default is not None and default not in choices:
        raise errors.InvalidInput(f"{where}.{name}.DefaultValue", default, "is not in EnumValues")
    return Parameter(name=name, kind=kind, default=default, choices=tuple(choices))


def _step(item: Any, number: int) -> Step:
    if not isinstance(item, dict):
        raise errors.InvalidInput(f"Steps[{number}]", item, "must be an object")
    name = item.get("Name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise errors.InvalidInput(
            f"Steps[{number}].Name", name, "must be 1 to 64 letters, digits, '-' and '_'"
        )
    where = f"step {name!r}"
    _check_members(where, item, _STEP_MEMBERS)
    if item.get("Type") not in list(StepKind):
        raise errors.InvalidInput(
            f"{where}: Type",
            item.get("Type"),
            "is not run here",
            remedy=f"one of {', '.join(StepKind)}",
        )
    kind = StepKind(item["Type"])
    arguments = item.get("Arguments", {})
    if not isinstance(arguments, dict):
        raise errors.InvalidInput(f"{where}: Arguments", arguments, "must be an object")
    (_check_job if kind is StepKind.JOB else _check_lineage)(where, arguments)
    depends_on = _list(item.get("DependsOn", []), f"{where}: DependsOn")
    if not all(isinstance(other, str) for other in depends_on):
        raise errors.InvalidInput(f"{where}: DependsOn", depends_on, "must be names of steps")
    gets = [path for path in references(arguments, where) if path.startswith("Steps.")]
    return Step(
        name=name,
        kind=kind,
        arguments=arguments,
        depends_on=frozenset([*depends_on, *(path.split(".")[1] for path in gets)]),
        display_name=_text_member(item, "DisplayName", where),
        description=_text_member(item, "Description", where),
    )


def _check_job(where: str, arguments: Mapping[str, Any]) -> None:
    _check_members(f"{where}: Arguments", arguments, _JOB_MEMBERS)
    for name in _JOB_NEEDS:
        if arguments.get(name) in (None, ""):
            raise errors.InvalidInput(f"{where}: Arguments.{name}", None, "is required")


def _check_lineage(where: str, arguments: Mapping[str, Any]) -> None:
    _check_members(f"{where}: Arguments", arguments, frozenset(_LINEAGE_NEEDS))
    for block, needs in _LINEAGE_NEEDS.items():
        for item in _list(arguments.get(block, []), f"{where}: Arguments.{block}"):
            missing = [n for n in needs if not isinstance(item, dict) or n not in item]
            if missing:
                raise errors.InvalidInput(
                    f"{where}: Arguments.{block}", item, f"lacks {', '.join(missing)}"
                )


def _check_members(where: str, given: Mapping[str, Any], known: frozenset[str]) -> None:
    for name, value in given.items():
        if name not in known:
            raise errors.InvalidInput(
                f"{where}: {name}",
                value,
                "is not understood here",
                remedy=f"known: {', '.join(sorted(known))}",
            )


def _check_unique(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise errors.InvalidInput(f"{what} name", name, "is there twice")


def _check_references(definition: Definition) -> None:
    kinds = {step.name: step.kind for step in definition.steps}
    parameters = {parameter.name for parameter in definition.parameters}
    for step in definition.steps:
        for other in sorted(step.depends_on):
            if other not in kinds:
                raise errors.InvalidInput(
                    f"step {step.name!r}: DependsOn", other, "is no step of this pipeline"
                )
        for path in references(step.arguments, f"step {step.name!r}"):
            room, _, rest = path.partition(".")
            if room == "Parameters" and rest not in parameters:
                raise errors.InvalidInput(
                    f"step {step.name!r}: Get", path, "is no parameter of this pipeline"
                )
            if room == "Steps" and kinds[rest.split(".")[0]] is not StepKind.JOB:
                raise errors.InvalidInput(
                    f"step {step.name!r}: Get", path, "is of a step that has no values"
                )
    graph = {step.name: step.depends_on for step in definition.steps}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        name = error.args[1][0]
        raise errors.InvalidInput(f"step {name!r}: DependsOn", cycle, "goes in a circle") from None


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise errors.InvalidInput(where, value, "must be a list")
    return value


def _text_member(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name, "")
    if not isinstance(value, str):
        raise errors.InvalidInput(f"{where}: {name}", value, "must be text")
    return value


# ── expressions ───────────────────────────────────────────────────────────────────────────────


def references(value: Any, where: str) -> Iterator[str]:
    """The paths that the expressions in a value get, outside in.

    Raises `InvalidInput` for what looks like an expression and is none of ours.
    """
    if isinstance(value, list):
        for item in value:
            yield from references(item, where)
    if not isinstance(value, dict):
        return
    if not _is_expression(value):
        for item in value.values():
            yield from references(item, where)
    elif "Get" in value and len(value) == 1:
        yield _checked_path(value["Get"], where)
    elif "Std:Join" in value and len(value) == 1:
        for item in _joined(value["Std:Join"], where):
            yield from references(item, where)
    else:
        raise errors.InvalidInput(
            where, value, "is an expression unknown here", remedy="use Get or Std:Join alone"
        )


def resolve(value: Any, get: Callable[[str], Any]) -> Any:
    """A checked value with its expressions replaced; `get` finds what is at a path.

    >>> resolve({"a": [{"Std:Join": {"On": "-", "Values": ["x", {"Get": "Parameters.n"}]}}]},
    ...         {"Parameters.n": 3}.__getitem__)
    {'a': ['x-3']}
    """
    if isinstance(value, list):
        return [resolve(item, get) for item in value]
    if not isinstance(value, dict):
        return value
    if not _is_expression(value):
        return {key: resolve(item, get) for key, item in value.items()}
    if "Get" in value:
        return get(value["Get"])
    join = value["Std:Join"]
    return join["On"].join(_as_text(resolve(item, get)) for item in join["Values"])


def _is_expression(value: Mapping[str, Any]) -> bool:
    return any(key == "Get" or key.startswith("Std:") for key in value)


def _checked_path(path: Any, where: str) -> str:
    text = path if isinstance(path, str) else ""
    room, _, rest = text.partition(".")
    found = _STEP_PATH.fullmatch(text)
    first, *more = found["path"].split(".") if found else ("",)
    if not (
        (room == "Execution" and rest in EXECUTION_VALUES)
        or (room == "Parameters" and rest)
        or (first in JOB_VALUES and (not more or first == _DOCUMENT))
    ):
        raise errors.InvalidInput(
            f"{where}: Get",
            path,
            "is no value here",
            remedy=f"Execution.<{' | '.join(EXECUTION_VALUES)}>, Parameters.<name>, or "
            f"Steps.<name>.<{' | '.join(JOB_VALUES)}>",
        )
    return text


def _joined(join: Any, where: str) -> list[Any]:
    values = join.get("Values") if isinstance(join, dict) else None
    if not isinstance(values, list) or not isinstance(join.get("On"), str) or len(join) != 2:
        raise errors.InvalidInput(f"{where}: Std:Join", join, "must have On (text) and Values")
    for value in values:
        is_plain = isinstance(value, str | int | float | bool)
        if not is_plain and not (isinstance(value, dict) and _is_expression(value)):
            raise errors.InvalidInput(f"{where}: Std:Join", value, "cannot be joined to a text")
    return values


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
