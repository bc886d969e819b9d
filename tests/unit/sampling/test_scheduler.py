from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise import errors
from turnwise.domain.rollout import SamplingParams
from turnwise.ports import SampleRequest
from turnwise.sampling.scheduler import Entry, Plan, Scheduler
from turnwise.sampling.slots import SlotTable


def entry(
    name: str, length: int = 4, *, claimant: str = "job", first: int = 0, admitted: bool = True
) -> Entry:
    """A request whose prompt is unlike others' unless they have the same `first` token."""
    request = SampleRequest(
        request_id=name,
        claimant=claimant,
        prompt=np.arange(length, dtype=np.int32) + (first or 1000 * (1 + sum(name.encode()))),
        adapter_id=None,
        sampling=SamplingParams(),
        seed=0,
        admitted=admitted,
    )
    return Entry(request=request, key=0, max_new=2, stop_ids=frozenset())


def scheduler(
    *,
    num_slots: int = 4,
    max_running: int = 4,
    max_waiting: int = 8,
    prefill_tokens: int = 100,
    border: int = 1,
) -> Scheduler:
    return Scheduler(
        SlotTable(num_slots, 256, exact_only=border > 1),
        max_running=max_running,
        max_waiting=max_waiting,
        prefill_tokens=prefill_tokens,
        border=border,
    )


def step(queue: Scheduler) -> Plan:
    plan = queue.plan()
    queue.advance(plan)
    return plan


def spans(plan: Plan) -> list[tuple[str, int, int]]:
    return [(s.entry.request.request_id, s.start, s.end) for s in plan.prefill]


def names(entries: list[Entry]) -> list[str]:
    return [each.request.request_id for each in entries]


def test_prompts_are_prefilled_in_chunks_beside_decoding() -> None:
    queue = scheduler(prefill_tokens=10)
    queue.submit(entry("a", 4))
    queue.submit(entry("b", 25))
    first, second, third, fourth = (step(queue) for _ in range(4))
    assert spans(first) == [("a", 0, 4), ("b", 0, 6)]
    assert (spans(second), names(second.decode)) == ([("b", 6, 16)], ["a"])
    assert (spans(third), names(third.decode)) == ([("b", 16, 25)], ["a"])
    assert (spans(fourth), names(fourth.decode)) == ([], ["a", "b"])


def test_borders_are_multiples_of_absolute_positions() -> None:
    queue = scheduler(prefill_tokens=40, border=16)
    queue.submit(entry("a", 90))
    assert [spans(step(queue)) for _ in range(3)] == [
        [("a", 0, 32)],
        [("a", 32, 64)],
        [("a", 64, 90)],
    ]


def test_claimants_take_turns() -> None:
    queue = scheduler(max_running=3)
    for name in ("a1", "a2", "a3"):
        queue.submit(entry(name, claimant="a"))
    for name in ("b1", "c1"):
        queue.submit(entry(name, claimant=name[0]))
    assert names(step(queue).started) == ["a1", "b1", "c1"]
    queue.finish(queue.decoding[0])
    assert names(step(queue).started) == ["a2"]


def test_a_full_queue_refuses_all_but_admitted_requests() -> None:
    queue = scheduler(max_waiting=1)
    queue.submit(entry("a"))
    queue.submit(entry("b"))
    with pytest.raises(errors.LimitExceeded, match="2 requests are waiting already, 1 may"):
        queue.submit(entry("c", admitted=False))
    assert queue.num_waiting == 2


def test_siblings_wait_for_the_first_to_prefill_their_prompt() -> None:
    queue = scheduler(prefill_tokens=30)
    for name in ("a", "b", "c"):
        queue.submit(entry(name, 40, first=7))
    queue.submit(entry("other", 5))
    assert names((first := step(queue)).started) == ["a", "other"]
    assert spans(first) == [("a", 0, 30)]
    assert names(step(queue).started) == []
    third = step(queue)
    assert (names(third.started), len(third.copies)) == (["b", "c"], 2)
    assert spans(third) == [("b", 39, 40), ("c", 39, 40)]


def test_a_sibling_goes_on_alone_when_the_first_is_aborted() -> None:
    queue = scheduler(prefill_tokens=16)
    first, second = entry("a", 64, first=7), entry("b", 64, first=7)
    queue.submit(first)
    queue.submit(second)
    step(queue)
    assert queue.abort(first) is False
    assert names(queue.drop_aborted()) == ["a"]
    assert names(step(queue).started) == ["b"]
    assert second.cached == 16  # what the first had done


def test_a_waiting_request_is_aborted_at_once_and_leaves_no_gap() -> None:
    queue = scheduler(max_running=1, num_slots=1)
    entries = [entry(name, claimant=name) for name in ("a", "b", "c")]
    for each in entries:
        queue.submit(each)
    step(queue)
    assert queue.abort(entries[1]) is True
    queue.finish(entries[0])
    assert names(step(queue).started) == ["c"]
    assert queue.num_waiting == 0


def test_nothing_is_left_after_taking_all_unfinished() -> None:
    queue = scheduler(max_running=1)
    queue.submit(entry("a"))
    queue.submit(entry("b"))
    step(queue)
    assert sorted(names(queue.unfinished())) == ["a", "b"]
    assert (queue.num_running, queue.num_waiting, step(queue).is_empty) == (0, 0, True)


@given(
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=20),
    shared=st.lists(st.integers(1, 3), min_size=20, max_size=20),
    aborted=st.sets(st.integers(0, 19)),
    border=st.sampled_from([1, 16]),
)
def test_every_request_is_served_to_its_end(
    lengths: list[int], shared: list[int], aborted: set[int], border: int
) -> None:
    queue = scheduler(num_slots=5, max_running=3, prefill_tokens=32, border=border)
    entries = [
        entry(str(i), length, claimant=str(i % 2), first=1000 * shared[i])
        for i, length in enumerate(lengths)
    ]
    for each in entries:
        queue.submit(each)
    covered: dict[str, int] = {}
    ended: list[Entry] = []
    for turn in range(1000):
        if queue.num_running + queue.num_waiting == 0:
            break
        leaves = turn in aborted and turn < len(entries) and entries[turn] not in ended
        if leaves and queue.abort(entries[turn]):
            ended.append(entries[turn])
        ended += queue.drop_aborted()
        plan = step(queue)
        assert queue.num_running <= 3
        for each in plan.started:
            covered[each.request.request_id] = each.cached
        for span in plan.prefill:
            assert covered[span.entry.request.request_id] == span.start
            assert span.end == span.entry.prompt_length or span.end % border == 0
            covered[span.entry.request.request_id] = span.end
        for each in plan.decode:
            if each in queue.decoding.values():
                queue.finish(each)
                ended.append(each)
    assert sorted(names(ended)) == sorted(names(entries))
    assert not queue.slots.busy.any()
