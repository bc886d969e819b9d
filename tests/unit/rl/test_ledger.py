from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.rl.graphs import Graph, chain, think_drop, trajectories
from turnwise import errors
from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import Blame, Delivery, Fault, Purpose, RolloutStatus, Trajectory
from turnwise.rl.advantages import GroupAdvantages
from turnwise.rl.ledger import account, of_group, total
from turnwise.rl.rows import rows, trained_tokens


def failed(code: str, turns: int = 1) -> Trajectory:
    fault = Fault(blame=Blame.AGENT, code=code)
    return chain(turns, status=RolloutStatus.FAILED, rewards=None, fault=fault)


def test_a_trained_rollout_is_split_by_the_named_masks() -> None:
    graph = Graph()
    leaf = graph.turn(None, prompt=0, completion=3)
    graph.turn(leaf, completion=5, delivery=Delivery.UNDELIVERED)
    graph.turn(leaf, completion=7, temperature=0.0)

    assert account(graph.trajectory(), Bin.TRAINED) == {
        Bin.TRAINED: 2,
        Bin.MASKED_FIRST_POSITION: 1,
        Bin.DROPPED_UNDELIVERED: 5,
        Bin.MASKED_GREEDY: 7,
    }


@pytest.mark.parametrize(("is_masked", "bin"), [(True, "masked_truncated"), (False, "trained")])
def test_a_truncated_turns_tokens_have_their_own_bin_only_where_they_are_masked(
    is_masked: bool, bin: str
) -> None:
    graph = Graph()
    leaf = graph.turn(None, completion=3)
    graph.turn(leaf, completion=5, is_cut=True)
    graph.turn(leaf, completion=7, is_cut=True, temperature=0.0)
    graph.turn(leaf, completion=9, is_cut=True, delivery=Delivery.UNDELIVERED)

    expected = Counter({"trained": 3, "masked_greedy": 7, "dropped_undelivered": 9})
    expected[bin] += 5
    assert account(graph.trajectory(), Bin.TRAINED, mask_truncated=is_masked) == expected
    zero = account(graph.trajectory(), Bin.DROPPED_ZERO_ADVANTAGE, mask_truncated=is_masked)
    assert zero == {Bin.DROPPED_ZERO_ADVANTAGE: 15, Bin.DROPPED_UNDELIVERED: 9}


@pytest.mark.parametrize(
    ("code", "bin"),
    [
        ("deadline", Bin.DROPPED_DEADLINE),
        ("superseded", Bin.DROPPED_SUPERSEDED),
        ("agent_failed", Bin.DROPPED_FAILED),
        ("no_reward", Bin.DROPPED_DEADLINE),
    ],
)
def test_a_failed_rollouts_tokens_go_where_its_fault_says(code: str, bin: Bin) -> None:
    assert account(failed(code), Bin.TRAINED) == {bin: 2}


def test_a_reward_on_a_failed_rollout_leaves_it_failed() -> None:
    late = chain(1, status=RolloutStatus.FAILED, rewards=(1.0,))

    assert account(late, Bin.TRAINED) == {Bin.DROPPED_FAILED: 2}


@pytest.mark.parametrize(
    ("per_turn", "bin"),
    [
        (((0.5,),), Bin.DROPPED_UNPAIRED),
        (((0.0,), (0.0, 0.0)), Bin.DROPPED_ZERO_ADVANTAGE),
        (((1.0,), (-1.0, 0.0)), Bin.TRAINED),
    ],
)
def test_a_groups_fate_is_read_from_its_advantages(
    per_turn: tuple[tuple[float, ...], ...], bin: Bin
) -> None:
    assert of_group(GroupAdvantages(per_turn=per_turn)) is bin
    assert account(chain(2), bin) == {bin: 4}


def test_validation_tokens_are_not_for_training_whatever_became_of_them() -> None:
    graph = Graph()
    graph.turn(None, temperature=0.0)
    graph.turn(None, delivery=Delivery.UNDELIVERED)

    trajectory = graph.trajectory(purpose=Purpose.VALIDATION)

    assert account(trajectory, Bin.TRAINED) == {Bin.NOT_FOR_TRAINING: 4}


def test_an_open_rollout_has_no_account_yet() -> None:
    with pytest.raises(errors.Conflict, match="rollout rol_a is still open"):
        account(chain(1, status=RolloutStatus.READY, rewards=None), Bin.TRAINED)


def test_dropped_thinking_is_all_trained() -> None:
    assert account(think_drop(), Bin.TRAINED) == {Bin.TRAINED: 2080}


def test_accounts_add_up_with_every_bin_of_training_present() -> None:
    sums = total([account(chain(2), Bin.TRAINED), account(failed("deadline"), Bin.TRAINED)])

    expected = {Bin.TRAINED: 4, Bin.DROPPED_DEADLINE: 2}
    of_no_step = (Bin.NOT_FOR_TRAINING, Bin.DROPPED_UNFINISHED)
    assert sums == {b: expected.get(b, 0) for b in Bin if b not in of_no_step}


@given(trajectories(), st.sampled_from(Bin), st.booleans())
def test_the_bins_add_up_to_the_tokens_sampled(
    trajectory: Trajectory, fate: Bin, is_masked: bool
) -> None:
    bins = account(trajectory, fate, mask_truncated=is_masked)
    assert sum(bins.values()) == trajectory.sampled_tokens


@given(trajectories(), st.booleans())
def test_the_trained_bin_is_what_the_rows_train(trajectory: Trajectory, is_masked: bool) -> None:
    samples = rows(trajectory, [1.0] * len(trajectory.delivered), mask_truncated=is_masked)

    trained = account(trajectory, Bin.TRAINED, mask_truncated=is_masked).get(Bin.TRAINED, 0)
    assert sum(sample.num_trained for sample in samples) == trained
    assert sum(trained_tokens(trajectory, mask_truncated=is_masked)) == trained
