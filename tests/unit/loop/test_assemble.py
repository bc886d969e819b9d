from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests import builders
from turnwise.domain.algorithm import AlgorithmSpec
from turnwise.domain.job import BatchSpec, JobSpec, RolloutSpec, TruncatedTurns
from turnwise.domain.rollout import Blame, Fault, FinishReason, RolloutStatus, Trajectory
from turnwise.domain.training import AdvantageMethod, Aggregation, LossName, LossSpec
from turnwise.loop.assemble import Assembly, ClosedGroup, assemble, is_zero

FAILED = Fault(blame=Blame.AGENT, code="http_error")


def attempt(group: str, slot: int, reward: float | None, **changes: Any) -> Trajectory:
    """A closed rollout of one turn with two sampled tokens; reward None is a failed one."""
    nodes, turn = builders.turn_with_nodes()
    ending: dict[str, Any] = {"status": RolloutStatus.FAILED, "fault": FAILED}
    if reward is not None:
        ending = {"status": RolloutStatus.REWARDED, "rewards": (reward,)}
    rollout = builders.rollout(
        f"rol_{group}{slot}{changes.get('attempt', 0)}",
        group_id=f"grp_{group}",
        slot=slot,
        **(ending | changes),
    )
    return Trajectory(rollout=rollout, nodes=nodes, turns=(turn,))


def closed(name: str, order: int, *rewards: float | None) -> ClosedGroup:
    return ClosedGroup(
        group=builders.group(f"grp_{name}", order=order, epoch=order // 2, size=len(rewards)),
        attempts=tuple(attempt(name, slot, reward) for slot, reward in enumerate(rewards)),
    )


def spec(**changes: Any) -> JobSpec:
    return builders.spec(batch=BatchSpec(global_batch_size=2, group_size=2), **changes)


def trained(groups: list[ClosedGroup]) -> list[str]:
    request = assemble(spec(), 0, groups, 1e-3).request
    assert request is not None
    return [w.sample.rollout_id for batch in request.mini_batches for w in batch.samples]


def test_rollouts_are_ordered_by_the_plan_however_they_closed() -> None:
    groups = [closed("b", 1, 0.0, 1.0), closed("a", 0, 1.0, 0.0)]
    assert trained(groups) == trained(groups[::-1]) == ["rol_a00", "rol_a10", "rol_b00", "rol_b10"]


def test_every_sampled_token_has_its_bin() -> None:
    groups = [
        closed("a", 0, 1.0, 0.0, None),
        closed("b", 1, 1.0, 1.0),
        closed("c", 2, 1.0, None),
    ]
    assembly = assemble(spec(), 0, groups, 1e-3)
    assert assembly.bins == {
        "rol_a00": {"trained": 2},
        "rol_a10": {"trained": 2},
        "rol_a20": {"dropped_failed": 2},
        "rol_b00": {"dropped_zero_advantage": 2},
        "rol_b10": {"dropped_zero_advantage": 2},
        "rol_c00": {"dropped_unpaired": 2},
        "rol_c10": {"dropped_failed": 2},
    }
    assert assembly.metrics["ledger/trained"] == 4
    assert assembly.metrics["training/epoch"] == 1


def test_the_request_carries_the_jobs_algorithm() -> None:
    algorithm = AlgorithmSpec(
        loss_fn=LossName.CISPO,
        clip_low_threshold=1.0,
        clip_high_threshold=6.0,
        tis_cap=2.0,
        kl_coef=0.01,
    )
    assembly = assemble(spec(algorithm=algorithm), 3, [closed("a", 0, 1.0, 0.0)], 2e-3)
    request = assembly.request
    assert request is not None
    assert (request.step, request.learning_rate, request.parity_limit) == (3, 2e-3, 1e-5)
    assert request.loss == LossSpec(
        name=LossName.CISPO, clip_low=1.0, clip_high=6.0, tis_cap=2.0, kl_coef=0.01
    )
    [batch] = request.mini_batches
    weights = np.concatenate([w.weights for w in batch.samples])
    assert weights.sum() == np.float32(1.0)


def test_token_sum_norm_counts_the_rollouts_planned_and_not_those_that_train() -> None:
    made = spec(algorithm=AlgorithmSpec(aggregation=Aggregation.TOKEN_SUM_NORM))
    request = assemble(made, 0, [closed("a", 0, 1.0, 0.0), closed("b", 1, 1.0, 1.0)], 1e-3).request
    assert request is not None
    [batch] = request.mini_batches
    weights = np.concatenate([w.weights[w.sample.trained] for w in batch.samples])
    planned = 2 * 2 * made.sampling_params.max_tokens
    assert weights.tolist() == pytest.approx([1 / planned] * 4)


def test_a_step_is_whitened_over_its_groups_together() -> None:
    made = spec(algorithm=AlgorithmSpec(advantage_method=AdvantageMethod.REINFORCE_PP))
    groups = [closed("a", 0, 1.0, 1.0), closed("b", 1, 0.0, 0.0), closed("c", 2, 9.0, None)]
    assembly = assemble(made, 0, groups, 1e-3)
    assert assembly.request is not None
    samples = [w.sample for batch in assembly.request.mini_batches for w in batch.samples]
    found = {s.rollout_id: float(s.advantages[s.trained][0]) for s in samples}
    value = 0.5 / (8 * 0.25 / 7) ** 0.5  # 8 tokens, half of them of return 1
    assert found == {
        "rol_a00": pytest.approx(value),
        "rol_a10": pytest.approx(value),
        "rol_b00": pytest.approx(-value),
        "rol_b10": pytest.approx(-value),
    }
    assert assembly.bins["rol_c00"] == {"dropped_unpaired": 2}


def test_a_retried_slot_counts_its_last_attempt_and_keeps_the_first_ones_tokens() -> None:
    group = closed("a", 0, 1.0, 0.0)
    first = attempt("a", 1, None)
    retried = ClosedGroup(
        group=group.group,
        attempts=(group.attempts[0], first, attempt("a", 1, 0.0, attempt=1)),
    )
    assembly = assemble(spec(), 0, [retried], 1e-3)
    assert assembly.bins["rol_a10"] == {"dropped_failed": 2}
    assert assembly.bins["rol_a11"] == {"trained": 2}
    assert assembly.metrics["rollout/retried"] == 1


def test_without_a_difference_in_reward_there_is_nothing_to_train() -> None:
    assembly = assemble(spec(), 0, [closed("a", 0, 1.0, 1.0), closed("b", 1, None, None)], 1e-3)
    assert assembly.request is None
    assert assembly.metrics["ledger/trained"] == 0


def test_only_a_group_that_was_compared_is_replaced_for_having_no_advantage() -> None:
    groups = [(1.0, 1.0), (1.0, 0.0), (1.0, None), (None, None)]

    found = [is_zero(spec(), closed("a", 0, *rewards)) for rewards in groups]

    assert found == [True, False, False, False]


def test_a_slot_that_its_group_had_no_time_to_try_counts_as_expired() -> None:
    group = closed("a", 0, 1.0, 0.0, None, None)
    assembly = assemble(spec(), 0, [replace(group, attempts=group.attempts[:3])], 1e-3)
    names = ("rollout/failed", "rollout/expired", "analysis/batch_completion_ratio")
    assert [assembly.metrics[name] for name in names] == [2, 1, 0.5]


# ── truncated turns ───────────────────────────────────────────────────────────────────────────


def cut(trajectory: Trajectory) -> Trajectory:
    (turn,) = trajectory.turns
    return replace(trajectory, turns=(replace(turn, finish_reason=FinishReason.LENGTH),))


def with_cut(group: ClosedGroup, *slots: int) -> ClosedGroup:
    attempts = [cut(t) if t.rollout.slot in slots else t for t in group.attempts]
    return replace(group, attempts=tuple(attempts))


def limits(rule: TruncatedTurns, penalty: float = 0.0) -> RolloutSpec:
    return RolloutSpec(truncated_turns=rule, truncation_penalty=penalty)


def test_a_masked_rollout_is_compared_with_its_siblings_but_leaves_the_denominators() -> None:
    made = spec(rollout=limits(TruncatedTurns.MASK))
    group = with_cut(closed("a", 0, 1.0, 0.0, 0.0), 0)
    assembly = assemble(made, 0, [group], 1e-3)
    assert assembly.request is not None
    [batch] = assembly.request.mini_batches
    found = {w.sample.rollout_id: (w.weights.sum(), w.sample.advantages[-1]) for w in batch.samples}
    below = pytest.approx(-1 / 3 / (1 / 3) ** 0.5, rel=1e-5)  # the mean has the masked reward in it
    assert found == {"rol_a10": (0.5, below), "rol_a20": (0.5, below)}
    assert assembly.bins["rol_a00"] == {"masked_truncated": 2}
    assert assembly.metrics["rollout/reward/mean"] == pytest.approx(1 / 3)


def test_masked_tokens_are_in_no_length_that_opo_weighs_by() -> None:
    algorithm = AlgorithmSpec(advantage_method=AdvantageMethod.OPO)
    group = with_cut(closed("a", 0, 1.0, 0.0, 0.5), 0)
    made = spec(algorithm=algorithm, rollout=limits(TruncatedTurns.MASK))
    request = assemble(made, 0, [group], 1e-3).request
    assert request is not None
    samples = [w.sample for batch in request.mini_batches for w in batch.samples]
    # The baseline is the mean weighted by length: (0 x 1.0 + 2 x 0.0 + 2 x 0.5) / 4.
    assert [float(s.advantages[-1]) for s in samples] == [-0.25, 0.25]


def test_a_step_whose_turns_are_all_masked_trains_nothing() -> None:
    made = spec(rollout=limits(TruncatedTurns.MASK))
    assembly = assemble(made, 0, [with_cut(closed("a", 0, 1.0, 0.0), 0, 1)], 1e-3)
    assert assembly.request is None
    assert assembly.metrics["ledger/masked_truncated"] == 4


@pytest.mark.parametrize("method", list(AdvantageMethod))
def test_every_method_learns_from_the_penalised_reward(method: AdvantageMethod) -> None:
    """As if the agent had reported it; what it did report stays in the metrics."""
    made = spec(algorithm=AlgorithmSpec(advantage_method=method, pass_k=2))
    penalised = replace(made, rollout=limits(TruncatedTurns.PENALISE, 0.5))
    groups = [closed("a", 0, 1.0, 1.0), closed("b", 1, 0.0, 1.0)]
    cut_off = [with_cut(groups[0], 1), with_cut(groups[1], 0)]

    found = assemble(penalised, 0, cut_off, 1e-3)

    lowered = [closed("a", 0, 1.0, 0.5), closed("b", 1, -0.5, 1.0)]
    assert learned(found) == learned(assemble(made, 0, lowered, 1e-3)) != {}
    assert found.metrics["rollout/reward/mean"] == 0.75
    assert found.metrics["rollout/reward/penalised_mean"] == 0.5
    assert found.metrics["rollout/truncated/penalised"] == 2


def learned(assembly: Assembly) -> dict[str, list[float]]:
    if assembly.request is None:
        return {}
    samples = [w.sample for batch in assembly.request.mini_batches for w in batch.samples]
    return {s.rollout_id: s.advantages.tolist() for s in samples}


def test_a_rule_leaves_truncated_turns_alone_where_nothing_is_cut() -> None:
    groups = [closed("a", 0, 1.0, 0.0)]
    assert learned(assemble(spec(rollout=limits(TruncatedTurns.MASK)), 0, groups, 1e-3)) == learned(
        assemble(spec(), 0, groups, 1e-3)
    )
