from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.domain.training import Aggregation, Sample
from turnwise.rl.weights import mini_batches, split, weighted


def sample(rollout_id: str, trained: list[bool]) -> Sample:
    size = len(trained)
    return Sample(
        rollout_id=rollout_id,
        tokens=np.arange(size, dtype=np.int32),
        trained=np.array(trained, dtype=np.bool_),
        logprobs=np.zeros(size, dtype=np.float32),
        advantages=np.zeros(size, dtype=np.float32),
        temperatures=np.ones(size, dtype=np.float32),
        policy_steps=np.zeros(size, dtype=np.int32),
    )


def split_rows(whole: Sample) -> list[Sample]:
    """One row per trained token, each over the whole row."""
    masks = [np.arange(len(whole.tokens)) == at for at in np.flatnonzero(whole.trained)]
    return [replace(whole, trained=mask) for mask in masks]


def test_rollout_mean_gives_every_rollout_the_same_weight() -> None:
    batch = weighted(
        [sample("a", [False, True]), sample("a", [False, True, True]), sample("b", [False, True])],
        Aggregation.ROLLOUT_MEAN,
    )

    assert [each.weights.tolist() for each in batch] == [
        pytest.approx([0, 1 / 6]),
        pytest.approx([0, 1 / 6, 1 / 6]),
        pytest.approx([0, 1 / 2]),
    ]


def test_token_mean_gives_every_trained_token_the_same_weight() -> None:
    batch = weighted(
        [sample("a", [False, True, True]), sample("b", [False, True, True])],
        Aggregation.TOKEN_MEAN,
    )

    assert [each.weights.tolist() for each in batch] == [[0, 0.25, 0.25], [0, 0.25, 0.25]]


def test_token_sum_norm_divides_by_a_constant_whatever_the_batch() -> None:
    alone = weighted([sample("a", [False, True])], Aggregation.TOKEN_SUM_NORM, norm=8.0)
    rows = [sample("a", [False, True]), sample("b", [False, True, True])]
    batches = mini_batches(rows, Aggregation.TOKEN_SUM_NORM, updates=1, seed=0, step=0, norm=8.0)

    assert alone[0].weights.tolist() == [0, 0.125]
    assert [each.weights.tolist() for each in batches[0].samples] == [[0, 0.125], [0, 0.125, 0.125]]


@pytest.mark.parametrize("aggregation", Aggregation)
def test_a_rollout_without_trained_tokens_does_not_count(aggregation: Aggregation) -> None:
    empty, full = weighted([sample("a", [False]), sample("b", [False, True])], aggregation)

    assert (empty.weights.tolist(), full.weights.tolist()) == ([0], [0, 1])


@pytest.mark.parametrize("aggregation", Aggregation)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=5))
def test_a_tokens_weight_does_not_depend_on_how_its_rollout_is_split(
    aggregation: Aggregation, masks: list[list[bool]]
) -> None:
    merged = [sample(f"r{i}", mask) for i, mask in enumerate(masks)]
    rows = [row for whole in merged for row in split_rows(whole)]

    def by_token(samples: list[Sample]) -> dict[tuple[str, int], float]:
        return {
            (each.sample.rollout_id, int(at)): float(each.weights[at])
            for each in weighted(samples, aggregation)
            for at in np.flatnonzero(each.sample.trained)
        }

    whole = by_token(merged)
    assert by_token(rows) == whole
    total = sum(whole.values())
    expected = len(whole) if aggregation is Aggregation.TOKEN_SUM_NORM else 1.0
    assert not whole or total == pytest.approx(expected, rel=1e-6)


@given(st.integers(0, 40), st.integers(1, 8), st.integers(0, 2**64 - 1), st.integers(0, 5))
def test_parts_are_disjoint_balanced_and_repeatable(
    count: int, updates: int, seed: int, step: int
) -> None:
    ids = [f"r{i}" for i in range(count)]

    parts = split(ids, updates=updates, seed=seed, step=step)

    assert sorted(id for part in parts for id in part) == sorted(ids)
    assert len(parts) == min(updates, count)
    assert not parts or max(map(len, parts)) - min(map(len, parts)) <= 1
    renamed = split([f"x{i}" for i in range(count)], updates=updates, seed=seed, step=step)
    assert renamed == [[id.replace("r", "x") for id in part] for part in parts]


def test_each_step_is_shuffled_anew() -> None:
    ids = [f"r{i}" for i in range(16)]

    assert split(ids, updates=2, seed=0, step=0) != split(ids, updates=2, seed=0, step=1)


def test_a_rollouts_rows_stay_in_one_mini_batch() -> None:
    rows = [sample(f"r{i % 3}", [False, True]) for i in range(6)]

    batches = mini_batches(rows, Aggregation.ROLLOUT_MEAN, updates=3, seed=0, step=0)

    held = [[each.sample.rollout_id for each in batch.samples] for batch in batches]
    assert sorted(held) == [["r0", "r0"], ["r1", "r1"], ["r2", "r2"]]
    assert {float(w) for b in batches for s in b.samples for w in s.weights} == {0.0, 0.5}


def test_nothing_to_train_gives_no_mini_batch() -> None:
    assert mini_batches([], Aggregation.TOKEN_MEAN, updates=2, seed=0, step=0) == ()
