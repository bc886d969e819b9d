from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from turnwise import errors
from turnwise.domain import metrics

DOC = Path(metrics.__file__).parents[2] / "docs" / "metrics.md"

# What SageMaker AgentRFT documents, by prefix.
PUBLISHED = {
    "training": "epoch global_step num_groups num_trajectories total_tokens num_datums "
    "datums_per_trajectory action_tokens_mean obs_tokens_mean trainable_token_positions "
    "nontrainable_token_positions trainable_token_ratio",
    "timing_s": "step training policy_update save_checkpoint eval",
    "rollout/reward": "mean valid_mean std min max zero_frac",
    "rollout/turns": "mean min max",
    "rollout/tokens": "prompt_mean response_mean response_std response_min response_max",
    "rollout/logprob": "zero_count zero_frac zero_per_group nz_mean nz_std nz_min nz_max",
    "rollout/advantage": "mean std min max n_positive n_negative",
    "analysis": "batch_completion_ratio batch_valid_ratio zero_adv_groups "
    "zero_adv_nonzero_reward zero_adv_zero_reward reward_variance_across_groups "
    "mean_group_reward_spread",
    "val/reward": "mean std min max zero_frac min_within_groups mean_within_groups "
    "max_within_groups std_within_groups rollouts_per_prompt num_prompts succeeded_rollouts "
    "failed_rollouts success_threshold pass_at_1 pass_at_32 pass_power_8 pass_k_8",
    "eval/reward": "mean pass_at_1 pass_power_1 max_within_groups",
}


def test_every_published_name_is_in_the_registry() -> None:
    metrics.check(
        f"{prefix}/{name}" for prefix, names in PUBLISHED.items() for name in names.split()
    )


def test_no_metric_is_defined_twice() -> None:
    names = [metric.name for metric in metrics.METRICS]

    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("val/reward/pass_at_16", "val/reward/pass_at_{k}"),
        ("ledger/dropped_deadline", "ledger/{bin}"),
        ("mismatch/age_0/k3", "mismatch/age_{age}/k3"),
        ("rollout/metrics/field_acc/mean", "rollout/metrics/{name}/mean"),
        ("rollout/metrics/tools/ok.rate/mean", "rollout/metrics/{name}/mean"),
    ],
)
def test_a_logged_name_belongs_to_its_family(name: str, family: str) -> None:
    assert metrics.metric(name).name == family


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "rollout/reward/meen",
            "metric: 'rollout/reward/meen' is not in the registry; "
            "did you mean rollout/reward/mean?",
        ),
        ("speed", "metric: 'speed' is not in the registry; see docs/metrics.md"),
        (
            "val/reward/pass_at_0",
            "metric: 'val/reward/pass_at_0' is not in the registry; "
            "did you mean val/reward/pass_at_{k}?",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name: str, message: str) -> None:
    with pytest.raises(errors.InvalidInput) as refused:
        metrics.check({name: 1.0})

    assert str(refused.value) == message


def test_every_metric_has_a_unit_and_one_sentence() -> None:
    for metric in metrics.METRICS:
        assert metric.unit, metric.name
        assert metric.definition.endswith("."), metric.name


def test_the_page_of_metrics_is_current() -> None:
    assert DOC.read_text() == metrics.markdown(), (
        "run: python -m turnwise.domain.metrics > docs/metrics.md"
    )


def test_the_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(metrics) == doctest.TestResults(failed=0, attempted=3)
