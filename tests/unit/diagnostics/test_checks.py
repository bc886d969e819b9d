"""What the checks find: nothing on a run that learned, and each what it is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests import builders
from turnwise.diagnostics import CHECKS, Evidence, Finding, Recorded, Severity, findings
from turnwise.domain.curves import Curve
from turnwise.domain.job import AsyncSpec, ParitySpec, ValidationSpec
from turnwise.domain.rollout import Purpose, RolloutStatus
from turnwise.ports import Tally

#: What a run of the demo recorded, rounded: fourteen steps, and its validations.
DEMO_STEPS = tuple(range(14))
DEMO_VALIDATED = (0, 4, 8, 12, 14)
DEMO: dict[str, tuple[float, ...]] = {
    "rollout/reward/mean": (
        0.7536,
        0.8068,
        0.7615,
        0.7885,
        0.849,
        0.9167,
        0.9266,
        0.9187,
        0.8516,
        0.8396,
        0.8646,
        0.8922,
        0.938,
        0.9099,
    ),
    "rollout/reward/std": (
        0.2409,
        0.2302,
        0.2044,
        0.2206,
        0.1551,
        0.1141,
        0.1056,
        0.2061,
        0.2939,
        0.3174,
        0.2936,
        0.2655,
        0.2139,
        0.1729,
    ),
    "training/num_trajectories": (
        64.0,
        64.0,
        64.0,
        64.0,
        64.0,
        64.0,
        56.0,
        56.0,
        56.0,
        64.0,
        64.0,
        56.0,
        40.0,
        64.0,
    ),
    "training/num_groups": (8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0),
    "val/reward/mean": (0.8177, 0.8958, 0.9083, 0.9188, 0.924),
    "val/reward/std": (0.188, 0.09991, 0.1974, 0.1975, 0.1974),
    "val/reward/num_prompts": (32.0, 32.0, 32.0, 32.0, 32.0),
    "training/loss": (
        -0.08704,
        -0.07262,
        -0.04814,
        -0.05279,
        -0.07375,
        -0.02967,
        -0.06521,
        -0.04139,
        0.004493,
        -0.03123,
        -0.04186,
        -0.1165,
        0.04337,
        -0.04232,
    ),
    "training/grad_norm": (
        0.01924,
        0.02408,
        0.02783,
        0.03669,
        0.02481,
        0.04848,
        0.1533,
        0.1045,
        0.06445,
        0.06292,
        0.09493,
        0.05051,
        0.09359,
        0.06519,
    ),
    "training/entropy": (
        0.04276,
        0.03973,
        0.0459,
        0.04228,
        0.04008,
        0.03078,
        0.02891,
        0.0311,
        0.03105,
        0.03834,
        0.03195,
        0.02632,
        0.0242,
        0.02735,
    ),
    "training/kl_k3": (
        3.549e-05,
        6.074e-05,
        8.409e-05,
        0.0001705,
        0.0001814,
        5.777e-05,
        0.0002209,
        5.065e-05,
        5.521e-05,
        2.647e-05,
        2.925e-05,
        6.441e-06,
        5.502e-06,
        4.51e-05,
    ),
    "training/ratio_mean": (
        1.0,
        0.9998,
        0.9997,
        0.9996,
        0.9998,
        0.9999,
        1.0,
        0.9999,
        1.0,
        0.9999,
        0.9998,
        1.0,
        1.0,
        1.0,
    ),
    "mismatch/age_0/mean": (
        3.645e-08,
        4.33e-08,
        6.294e-08,
        4.085e-08,
        4.569e-08,
        3.574e-08,
        3.664e-08,
        3.42e-08,
        3.983e-08,
        3.833e-08,
        5.133e-08,
        2.573e-08,
        3.874e-08,
        4.214e-08,
    ),
    "analysis/batch_valid_ratio": (
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        0.875,
        0.875,
        0.875,
        1.0,
        1.0,
        0.875,
        0.625,
        1.0,
    ),
    "rollout/turns/at_cap_frac": (
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
    ),
    "staleness/max": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
}


def demo(**changes: Sequence[float]) -> dict[str, Curve]:
    """The demo's curves; a change is a metric's values, from step 0, "__" standing for "/"."""
    steps = {name: DEMO_VALIDATED if name.startswith("val/") else DEMO_STEPS for name in DEMO}
    curves: dict[str, Curve] = {
        name: list(zip(steps[name], values, strict=True)) for name, values in DEMO.items()
    }
    for name, values in changes.items():
        curves[name.replace("__", "/")] = list(enumerate(values))
    return curves


def tally(count: int, fault_code: str | None = None, step: int = 13, **changes: Any) -> Tally:
    fields: dict[str, Any] = {
        "step": step,
        "purpose": Purpose.TRAIN,
        "status": RolloutStatus.FAILED if fault_code else RolloutStatus.REWARDED,
        "fault_code": fault_code,
        "count": count,
    }
    return Tally(**(fields | changes))


PARITY = ParitySpec(max_mean_difference=1e-5)


def found(
    curves: dict[str, Curve], rollouts: Sequence[Tally] = (), **spec: Any
) -> tuple[Finding, ...]:
    given = {"parity": PARITY, **spec}
    return findings(Recorded(spec=builders.spec(**given), curves=curves, rollouts=rollouts))


def test_a_run_that_learned_has_no_finding_at_any_of_its_steps():
    for seen in DEMO_STEPS:
        curves = {name: [p for p in curve if p[0] <= seen] for name, curve in demo().items()}
        assert found(curves, [tally(64, step=step) for step in range(seen)]) == ()


def test_a_job_that_has_recorded_nothing_has_no_finding():
    assert found({}) == ()


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("low_reward", {"rollout__reward__mean": [0.1] * 20}),
        ("reward_dropped", {"rollout__reward__mean": [0.8] * 9 + [0.3] * 5}),
        ("validation_worse", {"val__reward__mean": [0.8, 0.75, 0.7]}),
        ("overfitting", {"val__reward__mean": [0.75, 0.7, 0.75, 0.74, 0.8, 0.74, 0.72]}),
        ("no_advantage", {"analysis__batch_valid_ratio": [0.5] * 9 + [0.0] * 5}),
        ("little_advantage", {"analysis__batch_valid_ratio": [1.0] * 9 + [0.4] * 5}),
        ("few_groups", {"training__num_groups": [2] * 14}),
        ("truncation", {"rollout__turns__at_cap_frac": [0.0] * 9 + [0.2] * 5}),
        ("loss_rising", {"training__loss": [-0.1, -0.08, -0.09, -0.1, -0.07] + [0.9] * 9}),
        ("gradient_rising", {"training__grad_norm": [0.02] * 9 + [3.0] * 5}),
        ("entropy_collapsed", {"training__entropy": [0.5] * 9 + [0.01] * 5}),
        ("mismatch", {"training__kl_k3": [0.2] * 14}),
        ("mismatch", {"training__ratio_mean": [1.3] * 14}),
        ("mismatch", {"mismatch__age_0__mean": [1e-3] * 14}),
        ("stale", {"staleness__max": [3.0] * 14}),
    ],
)
def test_each_check_finds_what_it_is_for_and_the_others_stay_quiet(
    code: str, changes: dict[str, list[float]]
):
    [finding] = found(demo(**changes))

    assert finding.code == code
    check = next(each for each in CHECKS if each.code == code)
    assert (finding.severity, finding.remedy) == (check.severity, check.remedy)
    [metric] = [name.replace("__", "/") for name in changes]
    assert finding.evidence[-1].metric == metric
    assert finding.evidence[-1].value == changes[metric.replace("/", "__")][-1]


def test_evidence_names_the_steps_and_the_rollouts_to_look_at():
    [finding] = found(demo(rollout__reward__mean=[0.8] * 9 + [0.3] * 5))

    assert finding == Finding(
        code="reward_dropped",
        severity=Severity.ERROR,
        title="Reward fell from 0.8 to 0.3",
        evidence=(
            Evidence(step=4, metric="rollout/reward/mean", value=0.8),
            Evidence(step=13, metric="rollout/reward/mean", value=0.3),
        ),
        remedy=finding.remedy,
        rollouts={"step": "13"},
    )


def test_a_fall_that_few_noisy_rollouts_explain_is_none():
    noisy = {"rollout__reward__std": [0.9] * 14, "training__num_trajectories": [4] * 14}
    assert found(demo(rollout__reward__mean=[0.8] * 9 + [0.5] * 5, **noisy)) == ()


@pytest.mark.parametrize(
    ("code", "fault", "words"),
    [
        ("rollout_timeouts", "deadline", "ran out of time (deadline: 20)"),
        ("agent_errors", "http_error", "failed in the agent (http_error: 20)"),
        ("sampler_errors", "sampler_error", "failed in the sampler (sampler_error: 20)"),
    ],
)
def test_rollouts_that_fail_are_told_by_their_reason(code: str, fault: str, words: str):
    [finding] = found(demo(), [tally(40), tally(20, fault)])

    assert finding.code == code
    assert finding.title == f"20 of the last 60 training rollouts {words}"
    assert finding.rollouts == {"fault_code": fault}


@pytest.mark.parametrize(
    "rollouts",
    [
        [tally(90), tally(10, "deadline")],  # no more than the limit
        [tally(5), tally(4, "deadline")],  # too few to tell
        [tally(40), tally(20, "superseded")],  # the service's own doing
        [tally(40), tally(20, "deadline", purpose=Purpose.VALIDATION)],
        [tally(20, "deadline", step=3), *(tally(8, step=step) for step in range(4, 14))],  # past
        [tally(40), tally(20, None, status=RolloutStatus.PENDING)],
    ],
)
def test_failures_that_say_nothing_about_agent_or_sampler_are_no_finding(rollouts: list[Tally]):
    assert found(demo(), rollouts) == ()


def test_rewards_are_judged_by_the_jobs_own_scale():
    tens = demo(rollout__reward__mean=[1.0] * 20)
    assert found(tens, validation=ValidationSpec(success_threshold=1.0)) == ()
    [finding] = found(tens, validation=ValidationSpec(success_threshold=10.0))
    assert finding.code == "low_reward"


def test_age_is_no_finding_for_a_job_that_is_synchronous():
    old = demo(staleness__max=[3.0] * 14)
    assert found(old, async_config=AsyncSpec(max_steps_off_policy=0)) == ()
    assert found(old, async_config=AsyncSpec(max_steps_off_policy=4)) == ()


def test_errors_are_told_first():
    many = demo(training__num_groups=[2] * 14, val__reward__mean=[0.8, 0.75, 0.7])
    both = found(many, [tally(40), tally(20, "deadline")])
    assert [finding.severity.value for finding in both] == ["error", "warning", "info"]
