from __future__ import annotations

import numpy as np
import pytest

from tests import builders
from tests.unit.rl.graphs import Graph, chain
from turnwise.domain import metrics
from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import Blame, Delivery, Fault, RolloutStatus, Trajectory
from turnwise.domain.training import AdvantageMethod, Mismatch
from turnwise.rl.advantages import advantages
from turnwise.rl.ledger import account, total
from turnwise.rl.rows import rows
from turnwise.rl.statistics import (
    ScoredGroup,
    ledger_metrics,
    mismatch_metrics,
    rollout_metrics,
    scored,
    throughput_metrics,
    training_metrics,
    validation_metrics,
)


def scored_group(*trajectories: Trajectory) -> ScoredGroup:
    counted = scored(trajectories)
    return ScoredGroup(
        trajectories=trajectories,
        advantages=advantages(
            AdvantageMethod.RLOO,
            [t.rollout.rewards or () for t in counted],
            [len(t.delivered) for t in counted],
        ),
        size=len({t.rollout.slot for t in trajectories}),
    )


def rewarded(slot: int, *rewards: float, turns: int = 1, **rollout: object) -> Trajectory:
    return chain(turns, rollout_id=f"rol_{slot}", slot=slot, rewards=rewards, **rollout)


def failed(slot: int, code: str = "agent_failed", **rollout: object) -> Trajectory:
    fault = Fault(blame=Blame.AGENT, code=code)
    return chain(1, slot=slot, status=RolloutStatus.FAILED, rewards=None, fault=fault, **rollout)


def test_a_steps_rollouts_are_described_as_documented() -> None:
    groups = [
        scored_group(rewarded(0, 1.0, turns=3), rewarded(1, 0.0), failed(2, "deadline")),
        scored_group(failed(0), rewarded(0, 0.5, attempt=1), rewarded(1, 0.5)),
        scored_group(rewarded(0, 0.0), rewarded(1, 0.0)),
        scored_group(rewarded(0, 2.0), failed(1, "no_reward")),
    ]

    values = rollout_metrics(groups)

    metrics.check(values)
    assert _part(values, "rollout/reward/") == {
        "mean": pytest.approx(4 / 7),
        "std": pytest.approx(np.std([1, 0, 0.5, 0.5, 0, 0, 2])),
        "min": 0.0,
        "max": 2.0,
        "zero_frac": pytest.approx(3 / 7),
        "valid_mean": 0.5,
    }
    assert _part(values, "rollout/turns/") == {"mean": pytest.approx(9 / 7), "min": 1, "max": 3}
    assert _part(values, "analysis/") == {
        "batch_completion_ratio": pytest.approx(7 / 9),
        "batch_valid_ratio": 0.25,
        "zero_adv_groups": 2,
        "zero_adv_nonzero_reward": 1,
        "zero_adv_zero_reward": 1,
        "unpaired_groups": 1,
        "reward_variance_across_groups": pytest.approx(np.var([0.5, 0.5, 0, 2])),
        "mean_group_reward_spread": 0.25,
    }
    assert _part(values, "rollout/advantage/") == {
        "mean": 0.0,
        "std": pytest.approx((2 / 7) ** 0.5),
        "min": -1.0,
        "max": 1.0,
        "p5": pytest.approx(-0.7),
        "p25": 0.0,
        "p50": 0.0,
        "p75": 0.0,
        "p95": pytest.approx(0.7),
        "n_positive": 1,
        "n_negative": 1,
    }
    assert {name: values[f"rollout/{name}"] for name in ("failed", "expired", "retried")} == {
        "failed": 2,
        "expired": 2,
        "retried": 1,
    }


def test_tokens_and_logprobs_are_those_of_delivered_turns() -> None:
    graph = Graph()
    leaf = graph.turn(None, prompt=4, completion=3)
    graph.turn(leaf, completion=9, delivery=Delivery.UNDELIVERED)
    graph.nodes[leaf] = builders.turn_with_nodes(completion=(1, 2, 3), logprobs=(0.0, -1.0, -2.0))[
        0
    ][1]

    values = rollout_metrics([scored_group(graph.trajectory())])

    assert _part(values, "rollout/tokens/") == {
        "prompt_mean": 4,
        "response_mean": 3,
        "response_std": 0,
        "response_min": 3,
        "response_max": 3,
    }
    assert _part(values, "rollout/logprob/") == {
        "zero_count": 1,
        "zero_frac": pytest.approx(1 / 3),
        "zero_per_group": 1,
        "nz_mean": -1.5,
        "nz_std": 0.5,
        "nz_min": -2.0,
        "nz_max": -1.0,
    }


def test_an_agents_own_metrics_are_averaged_over_the_rollouts_that_report_them() -> None:
    group = scored_group(
        rewarded(0, 1.0, metrics={"field_acc": 0.5}),
        rewarded(1, 1.0, metrics={"field_acc": 1.0, "completion": 1.0}),
        rewarded(2, 1.0),
    )

    values = rollout_metrics([group])

    assert _part(values, "rollout/metrics/") == {"field_acc/mean": 0.75, "completion/mean": 1.0}


def test_single_numbers_are_counted_where_one_per_turn_was_possible() -> None:
    group = scored_group(
        rewarded(0, 1.0, turns=3), rewarded(1, 1.0, turns=1), rewarded(2, 0.5, 0.5, turns=2)
    )

    assert "rollout/reward/single_number" not in rollout_metrics([group])
    assert rollout_metrics([group], per_turn=True)["rollout/reward/single_number"] == 1


def test_what_does_not_exist_is_left_out() -> None:
    assert rollout_metrics([]) == {
        "rollout/advantage/n_positive": 0,
        "rollout/advantage/n_negative": 0,
        "rollout/failed": 0,
        "rollout/expired": 0,
        "rollout/retried": 0,
    }
    assert "rollout/reward/mean" not in rollout_metrics([scored_group(failed(0), failed(1))])
    assert "training/trainable_token_ratio" not in training_metrics(
        [], step=0, epoch=0, num_groups=1
    )


def test_validation_leaves_failed_rollouts_out_of_every_mean() -> None:
    groups = [
        [rewarded(0, 1.0), rewarded(1, 0.0), rewarded(2, 0.8), failed(3)],
        [
            rewarded(0, 1.0),
            failed(1),
            rewarded(1, 1.0, attempt=1),
            failed(2),
            failed(3, "deadline"),
        ],
    ]

    values = validation_metrics(groups, (1, 2, 8), success_threshold=0.8)

    metrics.check(values)
    assert _part(values, "val/reward/") == {
        "mean": pytest.approx(0.76),
        "std": pytest.approx(np.std([1, 0, 0.8, 1, 1])),
        "min": 0.0,
        "max": 1.0,
        "zero_frac": 0.2,
        "min_within_groups": 0.5,
        "mean_within_groups": pytest.approx(0.8),
        "max_within_groups": 1.0,
        "std_within_groups": pytest.approx(np.std([1, 0, 0.8]) / 2),
        "rollouts_per_prompt": 4.0,
        "num_prompts": 2,
        "succeeded_rollouts": 5,
        "failed_rollouts": 3,
        "expired_rollouts": 1,
        "success_threshold": 0.8,
        "pass_at_1": pytest.approx(5 / 6),
        "pass_k_1": pytest.approx(5 / 6),
        "pass_power_1": pytest.approx(5 / 6),
        "pass_at_2": pytest.approx(1.0),
        "pass_k_2": pytest.approx(1.0),
        "pass_power_2": pytest.approx(2 / 3),
    }


def test_an_evaluation_has_the_same_numbers_under_its_own_prefix() -> None:
    groups = [[rewarded(0, 1.0)]]

    val = validation_metrics(groups, (1,), 1.0)
    found = validation_metrics(groups, (1,), 1.0, prefix="eval")

    metrics.check(found)
    assert found == {name.replace("val/", "eval/", 1): value for name, value in val.items()}


def test_rows_are_described_with_the_ages_of_their_tokens() -> None:
    graph = Graph()
    first = graph.turn(None, prompt=4, policy_step=3)
    graph.turn(first, policy_step=5)
    graph.turn(None)
    samples = rows(graph.trajectory(), [1.0, 1.0, 1.0])

    values = training_metrics(samples, step=5, epoch=1, num_groups=2)

    metrics.check(values)
    assert values == {
        "training/epoch": 1,
        "training/global_step": 5,
        "training/num_groups": 2,
        "training/num_trajectories": 1,
        "training/num_datums": 2,
        "training/datums_per_trajectory": 2.0,
        "training/total_tokens": 14,
        "training/action_tokens_mean": 6.0,
        "training/obs_tokens_mean": 8.0,
        "training/trainable_token_positions": 6,
        "training/nontrainable_token_positions": 8,
        "training/trainable_token_ratio": pytest.approx(6 / 14),
        "staleness/mean": pytest.approx((2 + 0 + 5) / 3),
        "staleness/max": 5.0,
    }


def test_bins_and_mismatches_have_names_in_the_registry() -> None:
    bins = ledger_metrics(total([account(chain(2), Bin.TRAINED)]))
    apart = mismatch_metrics([Mismatch(age=0, tokens=9, mean=1e-6, max=2e-6, k3=0.0, ess=1.0)])

    metrics.check(bins | apart)
    of_no_step = (Bin.NOT_FOR_TRAINING, Bin.DROPPED_UNFINISHED)
    expected = {f"ledger/{bin}": 0 for bin in Bin if bin not in of_no_step}
    assert bins == expected | {"ledger/trained": 4}
    assert _part(apart, "mismatch/age_0/") == {
        "mean": 1e-6,
        "max": 2e-6,
        "k3": 0.0,
        "ess": 1.0,
        "tokens": 9,
    }


def _part(values: dict[str, float], prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }


def test_the_spread_of_advantages_is_told_by_quantiles() -> None:
    values = rollout_metrics([scored_group(*(rewarded(slot, float(slot)) for slot in range(5)))])

    metrics.check(values)
    spread = _part(values, "rollout/advantage/p")
    assert spread == pytest.approx({"5": -2.25, "25": -1.25, "50": 0.0, "75": 1.25, "95": 2.25})
    assert _part(rollout_metrics([scored_group(failed(0))]), "rollout/advantage/p") == {}


def test_throughput_is_per_second_of_the_whole_step() -> None:
    values = throughput_metrics(sampled_tokens=300, trained_tokens=200, seconds=4.0)
    metrics.check(values)
    assert values == {
        "throughput/sampled_tokens_per_s": 75.0,
        "throughput/trained_tokens_per_s": 50.0,
    }
    assert throughput_metrics(sampled_tokens=300, trained_tokens=200, seconds=0.0) == {}
