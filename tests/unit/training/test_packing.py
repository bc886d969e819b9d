from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.samples import batch, row
from turnwise.domain.training import Sample
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


def siblings(*ends: int) -> list[Sample]:
    """Rows that begin with the same 40 tokens and end in one of their own, trained twice."""
    return [
        row(np.array([*range(40), end, end, end]), [(30, 32), (41, 43)], advantage=float(end))
        for end in ends
    ]


def test_a_trie_lists_trained_tokens_of_all_its_rows() -> None:
    (found,) = micro_batches(batch(siblings(7, 5, 7)).samples, budget=100, share=True)
    # The last two begin alike once more, but not for long enough.
    assert found.inputs.tolist() == [[*range(40), 5, 5, 7, 7, 7, 7]]
    assert [(s.start, s.end) for s in found.segments] == [(0, 40), (40, 42), (42, 44), (44, 46)]
    # The beginning is computed once and trained by each row, with its own advantage.
    assert found.positions.tolist() == [29, 30, 40, 41, 29, 30, 42, 43, 29, 30, 44, 45]
    assert found.targets.tolist() == [30, 31, 5, 5, 30, 31, 7, 7, 30, 31, 7, 7]
    assert found.sample.tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 2, 2, 2, 2]
    assert found.index.tolist() == [30, 31, 41, 42] * 3
    assert found.turns.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert found.advantages.tolist() == [5] * 4 + [7] * 8


def test_rows_stay_plain_where_a_trie_saves_nothing() -> None:
    apart = [row(np.arange(9) + 10 * i, [(4, 9)]) for i in range(5)]
    (found,) = micro_batches(batch(apart).samples, budget=100, share=True)
    assert (found.inputs.shape, found.segments) == ((5, 8), ())
    (found,) = micro_batches(batch(siblings(7, 5)).samples, budget=100)
    assert (found.inputs.shape, found.segments) == ((2, 42), ())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(1, 300), st.booleans())
def test_every_trained_token_is_listed_once_after_the_one_before_it(
    ends: list[int], budget: int, share: bool
) -> None:
    rows = siblings(*ends)
    found = micro_batches(batch(rows).samples, budget=budget, share=share)
    entries = [(int(s), int(i)) for b in found for s, i in zip(b.sample, b.index, strict=True)]
    assert sorted(entries) == [(s, i) for s in range(len(ends)) for i in (30, 31, 41, 42)]
    for b in found:
        before = [rows[s].tokens[i - 1] for s, i in zip(b.sample, b.index, strict=True)]
        assert b.inputs.ravel()[b.positions].tolist() == before
