from __future__ import annotations

from typing import Any

import pytest

from turnwise.control.job_file import parse_job
from turnwise.dashboard.jobs.job_form import Draft, as_yaml, draft_of, fresh_name, short_job_file
from turnwise.domain.job import JobKind

SMALL = {
    "name": "walk",
    "model": "/models/tiny",
    "dataset": "/data/train.jsonl",
    "agent": {"url": "http://127.0.0.1:1"},
}
LARGE = SMALL | {
    "batch": {"group_size": 4, "refill": True},
    "algorithm": {"name": "dapo", "tis_cap": 2.0},
    "lora": {"rank": 8, "target_modules": ["q_proj"]},
    "optimizer": {"learning_rate": 1e-5},
    "validation": {"pass_k_values": [1, 2]},
    "tracking": {"mlflow": True},
}
EVALUATION = SMALL | {
    "kind": "evaluation",
    "evaluation": {"models": ["walk/3", "base"], "max_rows": 5},
}


@pytest.mark.parametrize("job_file", [SMALL, LARGE, EVALUATION])
def test_a_job_file_becomes_a_form_and_comes_back_as_it_was(job_file: dict[str, Any]):
    assert draft_of(job_file).job_file() == job_file


@pytest.mark.parametrize("job_file", [SMALL, LARGE, EVALUATION])
def test_a_short_job_file_gives_the_same_spec(job_file: dict[str, Any]):
    spec = parse_job(job_file)
    short = short_job_file(spec)
    assert parse_job(short) == spec
    assert len(as_yaml(short)) < 700


def test_what_has_no_input_rides_along():
    draft = draft_of(LARGE)
    assert draft.values["batch.group_size"] == "4"
    assert draft.rest["batch"] == {"refill": True}
    changed = Draft(values={**draft.values, "batch.group_size": "8"}, rest=draft.rest)
    assert changed.job_file()["batch"] == {"group_size": 8, "refill": True}


def test_an_emptied_input_is_left_to_its_default():
    draft = draft_of(LARGE)
    emptied = Draft(values={**draft.values, "batch.group_size": " "}, rest=draft.rest)
    assert emptied.job_file()["batch"] == {"refill": True}


def test_values_that_an_input_cannot_show_stay_what_they_are():
    odd = {"name": ["a"], "lora": {"rank": True}, "evaluation": 3, "batch": [1]}
    assert draft_of(odd).rest == odd
    assert draft_of(odd).job_file() == odd


def test_text_that_is_no_number_stays_text_for_the_check_to_refuse():
    draft = Draft(values={"lora.rank": "many", "schedule.max_steps": "1e2"})
    assert draft.job_file() == {"schedule": {"max_steps": 100.0}, "lora": {"rank": "many"}}


def test_an_evaluation_lists_its_models_with_commas():
    draft = Draft(kind=JobKind.EVALUATION, values={"evaluation.models": "walk/3, base,"})
    assert draft.job_file()["evaluation"] == {"models": ["walk/3", "base"]}


def test_a_fresh_name_is_no_longer_than_a_name_may_be():
    assert len(fresh_name("w" * 63, set())) == 63
