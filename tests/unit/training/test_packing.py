from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.training.samples import batch, row
from turnwise.rl.packing import micro_batches, pack


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 100))
def test_every_row_is_packed_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = pack(lengths, budget)
    assert sorted(i for b in batches for i in b) == [i for i, n in enumerate(lengths) if n]
    for rows in batches:
        padded = len(rows) * max(lengths[i] for i in rows)
        assert padded <= budget or len(rows) == 1


def test_equal_rows_fill_their_batches() -> None:
    assert pack([4] * 7, budget=12) == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_batch_lists_trained_tokens_where_they_are_predicted() -> None:
    long = row(np.array([1, 2, 3, 4, 5, 6, 7]), [(2, 4), (5, 6)], advantage=2.0, policy_step=3)
    short = row(np.array([8, 9, 10, 11]), [(1, 3)], advantage=-1.0, temperature=0.5)
    (found,) = micro_batches(batch([short, long]).samples, budget=100)
    # Rows end before their last trained token; [7] and [11] would be read for nothing.
    assert found.inputs.tolist() == [[1, 2, 3, 4, 5], [8, 9, 0, 0, 0]]
    assert found.targets.tolist() == [3, 4, 6, 9, 10]
    assert found.positions.tolist() == [1, 2, 4, 5, 6]
    assert found.inputs.ravel()[found.positions].tolist() == [2, 3, 5, 8, 9]
    assert found.sample.tolist() == [1, 1, 1, 0, 0]
    assert found.index.tolist() == [2, 3, 5, 1, 2]
    assert found.advantages.tolist() == [2, 2, 2, -1, -1]
    assert found.temperatures.tolist() == [1, 1, 1, 0.5, 0.5]
    assert found.policy_steps.tolist() == [3, 3, 3, 0, 0]
    assert np.allclose(found.weights, 0.2)


def test_rows_that_train_nothing_are_left_out() -> None:
    silent, short = row(np.arange(9), []), row(np.arange(9), [(4, 5)])
    found = micro_batches(batch([silent, short]).samples, budget=64)
    assert [b.inputs.shape for b in found] == [(1, 4)]
    assert [b.sample.tolist() for b in found] == [[1]]
    assert micro_batches((), budget=64) == []
