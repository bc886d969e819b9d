from __future__ import annotations

import numpy as np

from turnwise.domain.rollout import Tokens
from turnwise.sampling.slots import Copy, Exchange, Prefix, SlotTable

BASE = 0
TUNED = 1


def tokens(length: int, *, then: int = 0) -> Tokens:
    """1, 2, 3 ... of that length; with `then`, that last token instead."""
    made = np.arange(1, length + 1, dtype=np.int32)
    if then:
        made[-1] = then
    return made


def table(num_slots: int = 3, *, exact_only: bool = False) -> SlotTable:
    return SlotTable(num_slots, 64, exact_only=exact_only)


def hold(slots: SlotTable, prompt: Tokens, key: int = BASE) -> int:
    """Run a request to the end of its prompt; its slot, which stays busy."""
    taken = slots.take(key, prompt, slots.best_prefix(key, prompt))
    assert taken is not None
    slots.kv[taken[0]] = slots.exact[taken[0]] = len(prompt)
    return taken[0]


def test_an_idle_slot_that_holds_a_prefix_is_continued_in_place() -> None:
    slots = table()
    slots.release(hold(slots, tokens(20)))
    prefix = slots.best_prefix(BASE, tokens(30))
    assert prefix == Prefix(slot=0, ready=20, coming_slot=0, coming=20)
    assert slots.take(BASE, tokens(30), prefix) == (0, None)
    assert slots.kv[0] == 20


def test_a_busy_slot_and_one_that_holds_more_are_copied_from() -> None:
    slots = table()
    hold(slots, tokens(20))
    other = tokens(20, then=99)
    assert slots.take(BASE, other, slots.best_prefix(BASE, other)) == (1, Copy(0, 1, 19))
    slots.release(0)
    third = tokens(15, then=77)
    assert slots.take(BASE, third, slots.best_prefix(BASE, third)) == (2, Copy(0, 2, 14))


def test_the_last_token_of_a_prompt_is_never_taken_from_the_cache() -> None:
    slots = table()
    slots.release(hold(slots, tokens(20)))
    assert slots.best_prefix(BASE, tokens(20)).ready == 19


def test_adapters_do_not_share_prefixes() -> None:
    slots = table()
    slots.release(hold(slots, tokens(20), BASE))
    assert slots.best_prefix(TUNED, tokens(30)).ready == 0


def test_a_prefix_that_is_being_prefilled_is_coming() -> None:
    slots = table()
    slots.take(BASE, tokens(40), slots.best_prefix(BASE, tokens(40)))
    slots.kv[0] = 16
    prefix = slots.best_prefix(BASE, tokens(40, then=99))
    assert prefix == Prefix(slot=0, ready=16, coming_slot=0, coming=39)


def test_the_slot_used_longest_ago_is_evicted_empty_ones_first() -> None:
    slots = table()
    for start in (100, 200, 300):
        slots.release(hold(slots, tokens(10) + start))
    hold(slots, tokens(12) + 100)  # uses slot 0 again
    slots.release(0)
    assert hold(slots, tokens(10) + 400) == 1
    slots.release(1)
    slots.forget(BASE)
    assert hold(slots, tokens(10) + 500) == 0


def test_there_is_no_slot_when_all_are_busy() -> None:
    slots = table(1)
    hold(slots, tokens(20))
    assert slots.take(BASE, tokens(30), slots.best_prefix(BASE, tokens(30))) is None


def test_with_one_idle_slot_left_its_own_prefix_survives() -> None:
    slots = table(1)
    slots.release(hold(slots, tokens(20)))
    other = tokens(20, then=99)
    assert slots.take(BASE, other, slots.best_prefix(BASE, other)) == (0, None)
    assert slots.kv[0] == 19


def test_exact_only_leaves_decoded_positions_out() -> None:
    slots = table(exact_only=True)
    slot = hold(slots, tokens(20))
    slots.tokens[slot, :30] = tokens(30)
    slots.kv[slot] = 30
    slots.release(slot)
    assert slots.best_prefix(BASE, tokens(40)) == Prefix(0, 20, 0, 20)


def test_an_adapters_entries_are_forgotten_but_not_its_running_requests() -> None:
    slots = table()
    slots.release(hold(slots, tokens(20), TUNED))
    hold(slots, tokens(20) + 50, TUNED)
    slots.forget(TUNED)
    assert slots.key.tolist() == [-1, TUNED, -1]


def test_slots_that_run_are_brought_to_the_front_and_no_further() -> None:
    slots = table(5)
    for start in (100, 200, 300, 400):
        slots.release(hold(slots, tokens(10) + start))
    assert slots.bring_forward(np.array([1, 3])) == [Exchange(0, 10, 3, 10)]
    assert slots.place.tolist() == [3, 1, 2, 0, 4]
    assert slots.bring_forward(np.array([3, 1])) == []
    # Slot 4 is empty: there is nothing to keep of it.
    assert slots.bring_forward(np.array([4])) == [Exchange(0, 10, 4, 0)]
    assert slots.place.tolist() == [3, 1, 2, 4, 0]
