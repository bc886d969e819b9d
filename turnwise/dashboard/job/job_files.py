"""A job file as its page shows it: how it differs from the defaults, how to repeat it. Pure."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from turnwise.control.algorithm import bundle
from turnwise.control.job_file import as_mapping
from turnwise.control.job_settings import Leaf, leaves
from turnwise.domain.job import JobSpec

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingLine:
    """A setting as a job has it. `default` is None where it must be given."""

    path: str
    value: str
    default: str | None
    meaning: str

    @property
    def is_default(self) -> bool:
        """Whether the job file could leave it out."""
        return self.value == self.default


def setting_lines(spec: JobSpec) -> tuple[SettingLine, ...]:
    """Every setting of a job, in the order of docs/job-file.md.

    The defaults of `algorithm` are those of its bundle.
    """
    values = as_mapping(spec)
    bundled = as_mapping(dataclasses.replace(spec, algorithm=bundle(spec.algorithm.name)))
    lines = []
    for leaf in leaves():
        if "[]" in leaf.path:
            continue  # an entry of a list, which is shown whole
        value = _at(values, leaf.path)
        default = _default(leaf, bundled)
        lines.append(
            SettingLine(
                path=leaf.path, value=_shown(value), default=default, meaning=leaf.setting.meaning
            )
        )
    return tuple(lines)


def _default(leaf: Leaf, bundled: Json) -> str | None:
    if leaf.path.startswith("algorithm.") and leaf.path != "algorithm.name":
        return _shown(_at(bundled, leaf.path))
    if leaf.default is dataclasses.MISSING:
        return None
    return _shown(_plain(leaf.default))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: object) -> str:
    """A value as YAML writes it on one line."""
    return json.dumps(value, ensure_ascii=False)


def _at(values: Json, path: str) -> Any:
    found: Any = values
    for name in path.split("."):
        found = found[name]
    return found


def without_defaults(spec: JobSpec) -> Json:
    """The shortest job file that gives this spec."""
    values = as_mapping(spec)
    short: Json = {}
    for line in setting_lines(spec):
        if not line.is_default:
            _put(short, line.path.split("."), _at(values, line.path))
    return short


def _put(into: Json, names: list[str], value: object) -> None:
    for name in names[:-1]:
        into = into.setdefault(name, {})
    into[names[-1]] = value


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something to copy into a shell."""

    id: str
    title: str
    text: str


def commands(spec: JobSpec, url: str) -> tuple[Command, ...]:
    """Ways to start such a job again, under another name where this one is still there."""
    file = f"{spec.name}.yaml"
    short = without_defaults(spec)
    body = json.dumps(short, indent=2, ensure_ascii=False)
    verb = "train" if spec.kind == "train" else "eval"
    return (
        Command(id="yaml", title=f"{file}: what differs from the defaults", text=as_yaml(short)),
        Command(
            id="cli",
            title="With the command line",
            text=f"turnwise --url {shlex.quote(url)} {verb} {shlex.quote(file)}",
        ),
        Command(
            id="curl",
            title="With curl",
            text=f"curl --fail-with-body {shlex.quote(url + '/api/v1/jobs')} \\\n"
            '  --header "Authorization: Bearer $TURNWISE_API_KEY" \\\n'
            '  --header "Content-Type: application/json" \\\n'
            f"  --data {shlex.quote(body)}",
        ),
    )


def as_yaml(values: Mapping[str, Any]) -> str:
    """A job file."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def blocks(lines: tuple[SettingLine, ...]) -> Iterator[tuple[str, list[SettingLine]]]:
    """Settings by their block; those of none come first, under ""."""
    found: dict[str, list[SettingLine]] = {"": []}
    for line in lines:
        block, dot, _ = line.path.rpartition(".")
        found.setdefault(block if dot else "", []).append(line)
    yield from found.items()
