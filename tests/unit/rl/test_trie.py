from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.rl.trie import PASS_TOKENS, SEGMENT_TOKENS, Trie, depths, tries, untils

#: Runs of one token each, of few lengths: rows often begin alike, for long and for short.
_runs = st.tuples(st.integers(0, 1), st.sampled_from([1, 5, 20]))
_row = st.lists(_runs, max_size=5).map(
    lambda runs: np.array([token for token, n in runs for _ in range(n)], dtype=np.int32)
)
_rows = st.lists(_row, max_size=8)
_budgets = st.integers(1, 300)
_settings = settings(deadline=None, max_examples=60)


def row(*runs: tuple[int, int]) -> np.ndarray:
    """(token, times) pieces."""
    return np.concatenate([np.full(times, token, dtype=np.int32) for token, times in runs])


def laid_out(found: Sequence[Trie]) -> list[list[int]]:
    return [trie.tokens.tolist() for trie in found]


@_settings
@given(_rows, _budgets)
def test_every_row_s_tokens_lie_on_its_path_in_order(rows: list[np.ndarray], budget: int) -> None:
    found = tries(rows, budget)
    assert sorted(i for trie in found for i in trie.rows) == [
        i for i, tokens in enumerate(rows) if len(tokens)
    ]
    for trie in found:
        for i, places in zip(trie.rows, trie.places, strict=True):
            assert trie.tokens[places].tolist() == rows[i].tolist()
            assert depths(trie.segments)[places].tolist() == list(range(len(rows[i])))


@_settings
@given(_rows, _budgets)
def test_a_token_follows_from_those_of_its_rows_alone(rows: list[np.ndarray], budget: int) -> None:
    for trie in tries(rows, budget):
        ends = untils(trie.segments)
        for places in trie.places:
            for count, place in enumerate(places.tolist(), 1):
                earlier = np.arange(place + 1)
                seen = earlier[place < ends[: place + 1]]
                assert seen.tolist() == places[:count].tolist()


@_settings
@given(_rows, _budgets)
def test_segments_cover_a_trie_within_its_budget(rows: list[np.ndarray], budget: int) -> None:
    for trie in tries(rows, budget):
        bounds = [(s.start, s.end) for s in trie.segments]
        assert all(start < end for start, end in bounds)
        assert all(before == after for (_, before), (after, _) in pairwise(bounds))
        assert (bounds[0][0], bounds[-1][1]) == (0, len(trie.tokens))
        assert len(trie.tokens) <= budget or len(trie.rows) == 1
        assert trie.price == len(trie.tokens) + SEGMENT_TOKENS * len(bounds)


@_settings
@given(_rows, _budgets, st.randoms())
def test_the_order_of_rows_changes_nothing(rows: list[np.ndarray], budget: int, random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(rows)))
    random.shuffle(order)
    ours, theirs = tries(rows, budget), tries([rows[i] for i in order], budget)
    assert laid_out(ours) == laid_out(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.segments == other.segments
        paths = [[p.tolist() for p in trie.places] for trie in (one, other)]
        assert paths[0] == paths[1]
        assert [rows[i].tolist() for i in one.rows] == [rows[order[i]].tolist() for i in other.rows]


@_settings
@given(_rows, _budgets)
def test_rows_are_divided_where_it_costs_least(rows: list[np.ndarray], budget: int) -> None:
    """Against every division of the sorted rows."""
    (whole, *_rest) = [*tries(rows, 10_000), None]
    if whole is None:
        return

    def cost(first: int, last: int) -> int:
        places = {int(p) for path in whole.places[first:last] for p in path}
        return len(places) if last - first == 1 or len(places) <= budget else 1_000_000

    least = [0]
    for last in range(1, len(whole.rows) + 1):
        least.append(min(least[i] + cost(i, last) + PASS_TOKENS for i in range(last)))
    found = tries(rows, budget)
    assert sum(len(trie.tokens) + PASS_TOKENS for trie in found) == least[-1]


def test_siblings_share_their_prompt_and_forks_what_came_before() -> None:
    prompt, turn = (1, 40), (2, 30)
    rows = [row(prompt, (5, 10)), row(prompt, turn, (3, 9)), row(prompt, turn, (4, 8))]
    (found,) = tries(rows, budget=1000)
    assert found.rows == (1, 2, 0)
    assert [(s.start, s.end, s.until, s.depth) for s in found.segments] == [
        (0, 40, 97, 0),
        (40, 70, 87, 40),
        (70, 79, 79, 70),
        (79, 87, 87, 70),
        (87, 97, 97, 40),
    ]


def test_equal_rows_are_one_and_a_row_may_end_inside_another() -> None:
    rows = [row((1, 50)), row((1, 30)), row((1, 50))]
    (found,) = tries(rows, budget=50)
    assert (found.rows, len(found.tokens)) == ((1, 0, 2), 50)
    assert [(s.start, s.end, s.until) for s in found.segments] == [(0, 30, 50), (30, 50, 50)]
    assert [places.tolist() for places in found.places] == [
        list(range(30)),
        list(range(50)),
        list(range(50)),
    ]


def test_what_is_shared_for_a_few_tokens_is_computed_twice() -> None:
    apart = [row((1, SEGMENT_TOKENS - 1), (2, 50)), row((1, SEGMENT_TOKENS - 1), (3, 50))]
    together = [row((1, SEGMENT_TOKENS), (2, 50)), row((1, SEGMENT_TOKENS), (3, 50))]
    assert [len(s.segments) for s in tries(apart, 1000)] == [2]
    assert [len(s.segments) for s in tries(together, 1000)] == [3]


def test_a_division_falls_between_groups_and_a_long_row_stays_alone() -> None:
    first = [row((1, 40), (token, 10)) for token in (2, 3, 4)]
    second = [row((5, 40), (token, 10)) for token in (6, 7, 8)]
    found = tries([row((9, 150)), *second, *first], budget=100)
    assert [trie.rows for trie in found] == [(4, 5, 6), (1, 2, 3), (0,)]
    assert [len(trie.tokens) for trie in found] == [70, 70, 150]


def test_no_rows_make_no_tries() -> None:
    assert tries([], 10) == []
    assert tries([np.array([], dtype=np.int32)], 10) == []
