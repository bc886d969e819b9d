"""Recipes: what a client gives, read into job settings."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from turnwise import errors
from turnwise.control.job_file import as_mapping
from turnwise.control.job_settings import leaves
from turnwise.control.models.recipes import STANDARD_EVALUATION, STANDARD_TRAINING, Recipe
from turnwise.domain.job import AgentSpec, JobSpec

STANDARD = [STANDARD_TRAINING, STANDARD_EVALUATION]


@pytest.mark.parametrize("recipe", STANDARD, ids=lambda recipe: recipe.name)
def test_every_hyperparameter_is_a_job_setting_and_its_default_is_allowed(recipe: Recipe) -> None:
    known = {leaf.path for leaf in leaves()}
    for each in recipe.hyperparameters:
        assert each.leaf in known
        assert each.read(each.default) == each.default


@pytest.mark.parametrize("recipe", STANDARD, ids=lambda recipe: recipe.name)
def test_the_standard_defaults_are_those_of_the_job_file(recipe: Recipe) -> None:
    spec = as_mapping(JobSpec(name="a", model="/m", dataset="/d", agent=AgentSpec(url="http://a")))
    for each in recipe.hyperparameters:
        block, name = each.leaf.split(".")
        if "max_tokens" not in name:  # SageMaker's 4096 a turn
            assert spec[block][name] == each.default, each.name


@pytest.mark.parametrize("recipe", STANDARD, ids=lambda recipe: recipe.name)
def test_no_name_means_two_hyperparameters(recipe: Recipe) -> None:
    names = [name for each in recipe.hyperparameters for name in (each.name, *each.also)]
    assert len(names) == len(set(names))


def test_only_changed_hyperparameters_sent_as_strings_are_merged_with_defaults() -> None:
    """Contract check 7."""
    read = STANDARD_TRAINING.read(
        {"max_steps": "12", "pass_k_values": "[1, 2]", "learning_rate": "1e-4", "loss_fn": "cispo"}
    )
    assert read == STANDARD_TRAINING.read({}) | {
        "schedule.max_steps": 12,
        "validation.pass_k_values": [1, 2],
        "optimizer.learning_rate": 1e-4,
        "algorithm.loss_fn": "cispo",
    }
    assert read["batch.global_batch_size"] == 128


def test_nested_typed_hyperparameters_give_the_same_effective_config() -> None:
    """Contract check 8."""
    nested = STANDARD_EVALUATION.read(
        {
            "batch": {"eval_group_size": 2},
            "eval_metrics_config": {"pass_k_values": [1, 2], "success_threshold": 1},
            "eval_sampling_params": {"temperature": 1, "sampling_max_tokens": 1024},
            "rollout": {"timeout": 60},
        }
    )
    flat = STANDARD_EVALUATION.read(
        {
            "eval_group_size": "2",
            "pass_k_values": "[1, 2]",
            "success_threshold": "1",
            "sampling_temperature": "1.0",
            "max_tokens": "1024",
            "rollout_timeout": "60",
        }
    )
    assert nested == flat


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"group_sise": "8"}, "HyperParameters.group_sise: '8' .* did you mean group_size?"),
        ({"batch": {"group_sise": 8}}, "HyperParameters.batch.group_sise: 8 .* batch.group_size?"),
        ({"group_size": "1"}, "group_size: '1' is not allowed; must be a whole number from 2 to"),
        ({"group_size": "8.5"}, "group_size: '8.5' is not a whole number; must be"),
        ({"group_size": True}, "group_size: True is not a whole number"),
        ({"global_batch_size": 10}, "global_batch_size: 10 .* one of 32, 64, 128"),
        ({"loss_fn": "ppoo"}, "loss_fn: 'ppoo' is not allowed; must be text, one of ppo, cispo"),
        ({"learning_rate": "nan"}, "learning_rate: 'nan' is not a number"),
        ({"learning_rate": "0"}, "learning_rate: '0' is not allowed"),
        ({"learning_rate": float("inf")}, "learning_rate: inf is not allowed"),
        ({"pass_k_values": "[0]"}, "pass_k_values: '\\[0\\]' is not allowed"),
        ({"pass_k_values": "1"}, "pass_k_values: '1' is not a list"),
        ({"max_steps": 2, "schedule": {"max_steps": 3}}, "schedule.max_steps: 3 is given twice"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(given: dict[str, object], said: str) -> None:
    with pytest.raises(errors.InvalidInput, match=said):
        STANDARD_TRAINING.read(given)


def test_a_models_own_recipe_changes_defaults_and_ranges_and_adds_settings() -> None:
    own = STANDARD_TRAINING.with_overrides(
        {
            "global_batch_size": {"default": 4, "min": 1, "max": 64},
            "updates_per_step": {"leaf": "batch.updates_per_step", "default": 2},
            "max_steps": 3,
        }
    )
    assert own.read({"global_batch_size": "10", "updates_per_step": "4"}) == (
        STANDARD_TRAINING.read({})
        | {
            "batch.global_batch_size": 10,
            "batch.updates_per_step": 4,
            "schedule.max_steps": 3,
        }
    )
    assert own.override_params()["global_batch_size"] == {
        "type": "integer",
        "default": 4,
        "min": 1,
        "max": 64,
        "required": False,
    }


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"max_step": {"default": 3}}, "training.max_step: .* did you mean max_steps?"),
        ({"max_steps": {"defualt": 3}}, "training.max_steps.defualt: 3 .* known: default, min"),
        ({"max_steps": {"default": 3000}}, "training.max_steps.default: 3000 is not allowed"),
        ({"max_steps": {"max": "9"}}, "training.max_steps.max: '9' is not a number"),
        ({"x": {"leaf": "batch.update", "default": 1}}, "training.x.leaf: 'batch.update' is not a"),
        ({"model": {"leaf": "model", "default": "/"}}, "training.model.leaf: 'model' is not a job"),
        ([1], "training: \\[1\\] is not a mapping"),
    ],
)
def test_a_broken_recipe_says_what_is_wrong(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(errors.InvalidInput, match=said):
        STANDARD_TRAINING.with_overrides(overrides)


def test_what_the_sdk_reads_says_type_default_range_and_choices() -> None:
    params = STANDARD_TRAINING.override_params()
    assert params["global_batch_size"] == {
        "type": "integer",
        "default": 128,
        "enum": [32, 64, 128],
        "required": False,
    }
    assert params["pass_k_values"]["default"] == [1, 2, 4, 8, 16, 32]
    assert "min" not in params["pass_k_values"]
    assert len(params) <= 50  # the SDK's limit


def test_a_required_hyperparameter_must_be_given() -> None:
    own = STANDARD_TRAINING.with_overrides({"max_steps": {"required": True}})
    with pytest.raises(errors.InvalidInput, match="max_steps: None is required"):
        own.read({})
    assert own.read({"max_steps": 7})["schedule.max_steps"] == 7
    assert asdict(own)["name"] == "training"
