from __future__ import annotations

import numpy as np

from turnwise.domain.rollout import SamplingParams
from turnwise.ports import SampleRequest
from turnwise.sampling.layout import NOBODY, Layout, Segment, bucket, lay_out
from turnwise.sampling.scheduler import Entry, Plan, Span
from turnwise.sampling.slots import SlotTable

SCRATCH = 8


def entry(table: SlotTable, slot: int, length: int, key: int, kv: int) -> Entry:
    request = SampleRequest(
        request_id=str(slot),
        claimant="job",
        prompt=np.arange(length, dtype=np.int32) + 100 * slot,
        adapter_id=None,
        sampling=SamplingParams(),
        seed=0,
    )
    table.tokens[slot, : max(length, kv + 1)] = np.arange(max(length, kv + 1)) + 100 * slot
    table.key[slot], table.kv[slot], table.prompt[slot] = key, kv, length
    return Entry(request=request, key=key, max_new=9, stop_ids=frozenset(), slot=slot)


def example(*, fixed: bool) -> Layout:
    """Slots 1 and 3 decode at 5 and 6; slot 2 prefills [4, 7) of 7, slot 0 [0, 2) of 9."""
    table = SlotTable(SCRATCH, 128, exact_only=fixed)
    decode = [entry(table, 3, 6, 0, 6), entry(table, 1, 5, 0, 5)]
    ending, starting = entry(table, 2, 7, 0, 4), entry(table, 0, 9, 1, 0)
    plan = Plan(prefill=[Span(starting, 0, 2), Span(ending, 4, 7)], decode=decode)
    return lay_out(plan, table, fixed=fixed)


def test_rows_are_decode_then_prefill_by_adapter_then_padding() -> None:
    layout = example(fixed=False)
    assert layout.tokens.tolist() == [105, 306, 204, 205, 206, 0, 1, 0]
    assert layout.places.tolist() == [1, 3, 2, 2, 2, 0, 0, SCRATCH]
    assert layout.positions.tolist() == [5, 6, 4, 5, 6, 0, 1, 0]
    assert layout.segments == (Segment(0, 5, 0), Segment(5, 7, 1))


def test_logits_are_wanted_of_decoded_rows_and_of_prompts_that_end() -> None:
    layout = example(fixed=False)
    assert layout.samples.tolist() == [0, 1, 4]
    assert layout.sample_slots.tolist() == [1, 3, 2]


def test_a_short_span_repeats_its_last_query() -> None:
    groups = [g for g in example(fixed=False).groups if g.rows.shape[1] > 1]
    assert [(g.rows.tolist(), g.places.tolist(), g.keys) for g in groups] == [
        ([[2, 3, 4], [5, 6, 6]], [2, 0], 7),
    ]


def test_rows_find_their_attention_among_the_groups_queries() -> None:
    layout = example(fixed=False)
    queries = np.concatenate([group.rows.ravel() for group in layout.groups])
    assert queries[layout.attended[:7]].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_places_at_the_front_that_do_not_decode_are_read_in_vain() -> None:
    table = SlotTable(SCRATCH, 128, exact_only=False)
    entries = [entry(table, slot, 5, 0, 5) for slot in (0, 2)]
    layout = lay_out(Plan(decode=entries), table, fixed=False)
    [group] = layout.groups
    assert (group.rows.tolist(), group.places.tolist()) == ([[0], [0], [1]], [0, 1, 2])
    assert group.positions.tolist() == [[5], [NOBODY], [5]]
    assert layout.attended[:2].tolist() == [0, 2]


def test_rows_that_lie_far_apart_are_gathered() -> None:
    table = SlotTable(SCRATCH, 128, exact_only=False)
    entries = [entry(table, slot, 5, 0, 5) for slot in (1, 7)]
    [group] = lay_out(Plan(decode=entries), table, fixed=False).groups
    assert (group.rows.tolist(), group.places.tolist()) == ([[0], [1]], [1, 7])


def test_fixed_blocks_hold_one_adapter_and_positions_keep_their_rows() -> None:
    layout = example(fixed=True)
    assert len(layout.tokens) == 96
    assert layout.segments == (Segment(0, 64, 0), Segment(64, 96, 1))
    # Slot 2's span [4, 7) sits at rows 4, 5, 6 of its block, which begins at row 32.
    assert np.flatnonzero(layout.places == 2).tolist() == [36, 37, 38]
    assert layout.samples.tolist() == [0, 1, 38]
    assert {(g.rows.shape[1], g.keys) for g in layout.groups} == {(1, 64), (32, 64)}


def test_key_buckets_grow_by_at_most_a_quarter() -> None:
    sizes = [bucket(n) for n in range(1, 5000)]
    assert sizes == sorted(sizes)
    assert all(n <= size <= max(64, n * 1.25 + 1) for n, size in enumerate(sizes, 1) if n > 256)
    assert len(set(sizes)) < 25
