from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests import builders
from tests.unit.rl.graphs import chain
from turnwise.domain import metrics
from turnwise.domain.data import Row
from turnwise.domain.evaluation import Score
from turnwise.domain.job import EvaluationSpec, JobSpec, ScorerSpec
from turnwise.domain.rollout import Blame, Fault, RolloutStatus, Trajectory
from turnwise.rl.evaluation import (
    AttemptedRow,
    comparison_metrics,
    comparisons,
    evaluation_metrics,
    fault_counts,
    labelled_validation_metrics,
    problem_counts,
)
from turnwise.rl.passk import pass_at_k

LATE = Fault(blame=Blame.AGENT, code="deadline", message="not completed within 9 s")


def attempt(index: int, slot: int, reward: float | None) -> Trajectory:
    """A rollout of one turn; without a reward it failed."""
    rollout_id = f"rol_{index}_{slot}"
    if reward is None:
        return chain(
            1,
            rollout_id=rollout_id,
            slot=slot,
            status=RolloutStatus.FAILED,
            rewards=None,
            fault=LATE,
        )
    return chain(1, rollout_id=rollout_id, slot=slot, rewards=(reward,))


def row(
    index: int,
    *rewards: float | None,
    label: str | None = None,
    slots: int = 0,
    **scores: tuple[float | None, ...],
) -> AttemptedRow:
    """A row with these rewards, and each scorer's scores of the same rollouts."""
    attempts = tuple(attempt(index, slot, reward) for slot, reward in enumerate(rewards))
    return AttemptedRow(
        row=Row(index=index, prompt=f"task {index}", fields={}, label=label),
        slots=slots or len(rewards),
        attempts=attempts,
        scores={
            (name, each.rollout.rollout_id): Score(
                scorer=name,
                rollout_id=each.rollout.rollout_id,
                value=value,
                problem="" if value is not None else "raised ValueError()",
            )
            for name, values in scores.items()
            for each, value in zip(attempts, values, strict=True)
        },
    )


def job_spec(evaluation: EvaluationSpec | None = None) -> JobSpec:
    return builders.spec(evaluation=evaluation or EvaluationSpec())


def figures(rows: list[AttemptedRow], spec: EvaluationSpec | None = None) -> dict[str, float]:
    found = evaluation_metrics(rows, job_spec(spec))
    metrics.check(found)
    return found


def test_completion_and_correctness_are_apart() -> None:
    found = figures([row(0, 1.0, None), row(1, 0.0, 1.0), row(2, None, slots=2)])

    assert found["eval/completion_rate"] == 0.5
    assert found["eval/reward/success_rate"] == pytest.approx(2 / 3)
    assert found["eval/reward/mean"] == pytest.approx(2 / 3)
    assert found["eval/reward/failed_rollouts"] == 2


def test_a_slot_counts_once_with_its_last_attempt() -> None:
    failed, retried = attempt(0, 0, None), attempt(0, 0, 1.0)
    second = replace(retried.rollout, rollout_id="rol_0_0_1", attempt=1)
    tried = replace(row(0, 1.0), attempts=(failed, replace(retried, rollout=second)))
    found = figures([tried, row(1, 0.0)])

    assert found["eval/completion_rate"] == 1.0
    assert found["eval/reward/mean"] == 0.5
    assert found["eval/reward/failed_rollouts"] == 0
    assert fault_counts([tried]) == []


def test_turns_that_add_up_to_the_threshold_are_a_success() -> None:
    made = chain(10, rollout_id="rol_0_0", rewards=(0.1,) * 10)
    found = figures([replace(row(0, 1.0), attempts=(made,))])

    assert found["eval/reward/mean"] == 1.0
    assert found["eval/reward/success_rate"] == 1.0


def test_pass_at_k_is_the_unbiased_mean_over_rows_and_has_an_interval() -> None:
    rewards = [(1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 1.0), (0.0,) * 4, (1.0,) * 4]
    spec = EvaluationSpec(group_size=4, pass_k_values=(1, 2, 8))
    found = figures([row(at, *each) for at, each in enumerate(rewards)], spec)

    wanted = np.mean([pass_at_k(4, int(sum(each)), 2) for each in rewards])
    assert found["eval/reward/pass_at_2"] == pytest.approx(wanted)
    assert found["eval/reward/pass_at_2_low"] < wanted < found["eval/reward/pass_at_2_high"]
    assert found["eval/reward/pass_power_2"] == pytest.approx((0 + 0.5 + 0 + 1) / 4)
    assert "eval/reward/pass_at_8" not in found


def test_the_interval_is_over_rows_so_that_attempts_alike_prove_nothing() -> None:
    once = [row(at, float(at % 2)) for at in range(12)]
    often = [row(at, *[float(at % 2)] * 16) for at in range(12)]
    ends = ("eval/reward/mean_low", "eval/reward/mean_high", "eval/reward/success_rate_low")

    assert [figures(once)[name] for name in ends] == pytest.approx(
        [figures(often)[name] for name in ends]
    )


def test_one_row_has_figures_without_intervals_and_no_rows_have_none() -> None:
    found = figures([row(0, 0.5)])

    assert found["eval/reward/mean"] == 0.5
    assert [name for name in found if name.endswith(("_low", "_high"))] == []
    assert "eval/reward/mean" not in figures([])


def test_rows_all_equal_and_rows_all_failed_are_borne() -> None:
    alike = figures([row(at, 1.0) for at in range(5)])
    failed = figures([row(at, None) for at in range(5)])

    assert (alike["eval/reward/mean_low"], alike["eval/reward/mean_high"]) == (1.0, 1.0)
    assert failed["eval/completion_rate"] == 0.0
    assert "eval/reward/success_rate" not in failed


def test_labels_have_all_the_same_figures_of_their_own() -> None:
    rows = [row(at, float(at < 3), label="easy" if at < 3 else "hard/er") for at in range(6)]
    found = figures(rows)

    assert found["eval/label/easy/reward/mean"] == 1.0
    assert found["eval/label/hard_er/reward/success_rate"] == 0.0
    of_all = {name for name in found if "/label/" not in name}
    of_easy = {name.replace("label/easy/", "") for name in found if "/label/easy/" in name}
    assert of_easy == of_all


def test_a_column_of_ids_taken_for_labels_gives_no_curves() -> None:
    found = figures([row(at, 1.0, label=f"id-{at}") for at in range(60)])

    assert [name for name in found if "/label/" in name] == []


LABELLED = [("a", 1.0), ("b", 0.0), ("a", 0.5)]


def test_validation_shows_labels_as_curves_of_their_own() -> None:
    rows = [row(at, reward, label=label) for at, (label, reward) in enumerate(LABELLED)]
    found = labelled_validation_metrics(rows, builders.spec())

    metrics.check(found)
    assert [found[f"val/{part}reward/mean"] for part in ("", "label/a/", "label/b/")] == [
        *(0.5, 0.75, 0.0),
    ]


# ── scorers ───────────────────────────────────────────────────────────────────────────────────

JUDGED = EvaluationSpec(scorers=(ScorerSpec(name="exact", target="a:b", success_threshold=10.0),))


def test_reward_and_truth_are_compared_rollout_by_rollout() -> None:
    rows = [
        row(0, 1.0, exact=(10.0,)),
        row(1, 1.0, exact=(2.0,)),  # the reward says success, the scorer not
        row(2, 0.0, exact=(12.0,)),
        row(3, 0.0, exact=(0.0,)),
        row(4, 1.0, exact=(None,)),
        row(5, None, exact=(None,)),  # failed: nobody was asked
    ]
    found = figures(rows, JUDGED)

    of_scorer = {
        name.removeprefix("eval/scorer/exact/"): value
        for name, value in found.items()
        if name.startswith("eval/scorer/exact/") and not name.endswith(("_low", "_high"))
    }
    assert of_scorer == {
        "mean": 6.0,
        "success_rate": 0.5,
        "scored": 4,
        "failed": 1,
        "agreement": 0.5,
        "reward_only_frac": 0.25,
        "scorer_only_frac": 0.25,
        "correlation": pytest.approx(np.corrcoef([1, 1, 0, 0], [10, 2, 12, 0])[0, 1]),
    }
    assert found["eval/scorer/agent/mean"] == found["eval/reward/mean"] == 0.6


def test_without_spread_there_is_no_correlation() -> None:
    found = figures([row(at, 1.0, exact=(float(at),)) for at in range(4)], JUDGED)

    assert "eval/scorer/exact/correlation" not in found
    assert found["eval/scorer/exact/agreement"] == 0.0


def test_a_scorer_that_never_answers_is_counted_and_has_no_mean() -> None:
    rows = [row(at, 1.0, exact=(None,)) for at in range(3)]
    found = figures(rows, JUDGED)

    assert found["eval/scorer/exact/failed"] == 3
    assert "eval/scorer/exact/mean" not in found
    assert problem_counts(rows) == [("exact", "raised ValueError()", 3)]


# ── two models ────────────────────────────────────────────────────────────────────────────────


def test_models_are_compared_on_the_rows_that_both_have() -> None:
    ours = [row(at, 1.0, 1.0, exact=(10.0, 10.0)) for at in range(8)] + [row(8, None, None)]
    theirs = [row(at, 1.0, 0.0, exact=(10.0, None)) for at in range(9)]

    found = comparisons(ours, theirs, job_spec(JUDGED))

    assert {measure: each.difference for measure, each in found.items()} == {
        "reward": 0.5,
        "success": 0.5,
        "scorer/exact": 0.0,
    }
    assert (found["reward"].rows, found["reward"].unpaired) == (8, 1)
    assert found["reward"].p_value == 2 / 2**8
    values = comparison_metrics(found, "walk_3")
    metrics.check(values)
    assert values["eval/compare/walk_3/success/difference"] == 0.5
    assert values["eval/compare/walk_3/scorer/exact/p_value"] == 1.0


def test_models_without_a_common_row_are_not_compared() -> None:
    assert comparisons([row(0, 1.0)], [row(0, None)], job_spec()) == {}


def test_faults_are_counted_by_name_commonest_first_with_the_slots_never_begun() -> None:
    refused = Fault(blame=Blame.SAMPLER, code="sampler_error", message="no room")
    broken = row(1, None)
    other = replace(broken.attempts[0].rollout, fault=refused)
    broken = replace(broken, attempts=(replace(broken.attempts[0], rollout=other),))

    assert fault_counts([row(0, 1.0, None, None, slots=4), broken]) == [
        ("agent/deadline", "not completed within 9 s", 3),
        ("sampler/sampler_error", "no room", 1),
    ]
