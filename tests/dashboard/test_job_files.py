from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import yaml

from tests import builders
from turnwise.control.job_file import as_mapping, parse_job
from turnwise.dashboard.job.job_files import commands, setting_lines, without_defaults
from turnwise.domain.algorithm import AlgorithmName, AlgorithmSpec
from turnwise.domain.job import BatchSpec, EvaluationSpec, JobKind, JobSpec, ScorerSpec

AWKWARD = 'it\'s $HOME, `x`\n"quoted" \\ ü'


def specs() -> list[JobSpec]:
    bundled = parse_job(
        {**as_mapping_without_algorithm(builders.spec()), "algorithm": {"name": "dapo"}}
    )
    return [
        builders.spec(),
        builders.spec(description=AWKWARD, batch=BatchSpec(global_batch_size=4)),
        bundled,
        replace(bundled, algorithm=replace(bundled.algorithm, kl_coef=0.5)),
        builders.spec(
            kind=JobKind.EVALUATION,
            evaluation=EvaluationSpec(
                models=("base",), scorers=(ScorerSpec(name="judge", target="a:b"),)
            ),
        ),
    ]


def as_mapping_without_algorithm(spec: JobSpec) -> dict[str, object]:
    return {name: value for name, value in as_mapping(spec).items() if name != "algorithm"}


def test_the_short_file_gives_the_same_job():
    for spec in specs():
        assert parse_job(without_defaults(spec)) == spec


def test_the_commands_give_the_same_job():
    for spec in specs():
        by_id = {command.id: command.text for command in commands(spec, "http://server")}
        assert parse_job(yaml.safe_load(by_id["yaml"])) == spec
        words = shlex.split(by_id["curl"].replace("\\\n", " "))
        assert words[:3] == ["curl", "--fail-with-body", "http://server/api/v1/jobs"]
        assert parse_job(json.loads(words[-1])) == spec


def test_only_what_differs_is_marked(tmp_path: Path):
    lines = {line.path: line for line in setting_lines(builders.spec(seed=3))}
    assert [path for path, line in lines.items() if not line.is_default] == [
        "name",
        "model",
        "dataset",
        "agent.kind",
        "seed",
    ]
    assert (lines["seed"].value, lines["seed"].default) == ("3", "0")
    assert lines["name"].default is None


def test_an_algorithms_own_settings_are_its_defaults():
    dapo = parse_job(
        {**as_mapping_without_algorithm(builders.spec()), "algorithm": {"name": "dapo"}}
    )
    changed = [line.path for line in setting_lines(dapo) if not line.is_default]
    assert [path for path in changed if path.startswith("algorithm.")] == ["algorithm.name"]
    assert dapo.algorithm.name is AlgorithmName.DAPO
    assert dapo.algorithm != AlgorithmSpec()
