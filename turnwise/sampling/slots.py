"""What each KV slot holds: the prefix cache's bookkeeping. Pure data; the tensors are in `cache`.

A slot that has finished stays as a cache entry, under its adapter's key, until it is taken again:
the least recently used first.

Where a slot's KV lies in the tensors is its `place`. Those of slots that run are kept together at
the front, so that attention reads one stretch of memory where it is: gathering scattered rows in
every layer of every step costs more than moving a row twice in a request's life.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from turnwise.domain.rollout import Tokens

#: Key of a slot that holds nothing.
EMPTY = -1
#: Fewer tokens than this are cheaper to compute again than to copy.
MIN_REUSED = 8


@dataclass(frozen=True, slots=True)
class Prefix:
    """The most of a prompt that slots hold under its adapter.

    `ready` tokens could be taken from `slot` now. A slot that is still being prefilled will hold
    `coming` tokens of it (>= ready), and waiting for `coming_slot` would save computing them.
    """

    slot: int
    ready: int
    coming_slot: int
    coming: int


NO_PREFIX = Prefix(EMPTY, 0, EMPTY, 0)


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy the KV of the first `length` positions from one slot to another."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """Let the KV of two places change places; each has so many positions worth keeping."""

    front: int
    front_length: int
    back: int
    back_length: int


class SlotTable:
    """Arrays over S slots; row `s` of `tokens` lists what slot s holds or will hold.

    `kv` counts positions whose KV is computed; `exact` those of them computed by prefill (in
    deterministic mode only these are reused: decoding rounds differently); `prompt` is how many
    of the tokens are the request's prompt.
    """

    def __init__(self, num_slots: int, max_length: int, *, exact_only: bool) -> None:
        self.num_slots = num_slots
        self.tokens: npt.NDArray[np.int32] = np.zeros((num_slots, max_length), np.int32)
        self.kv = np.zeros(num_slots, np.int64)
        self.exact = np.zeros(num_slots, np.int64)
        self.prompt = np.zeros(num_slots, np.int64)
        self.key = np.full(num_slots, EMPTY, np.int64)
        self.busy = np.zeros(num_slots, np.bool_)
        self.place = np.arange(num_slots)
        self.generation = np.zeros(num_slots, np.int64)  # counts owners: stale references show
        self._used_at = np.zeros(num_slots, np.int64)
        self._now = 0
        self._reusable = self.exact if exact_only else self.kv

    def best_prefix(self, key: int, prompt: Tokens) -> Prefix:
        """The longest cached prefix of `prompt` but for its last token, whose logits are needed."""
        usable = len(prompt) - 1
        rows = np.flatnonzero(self.key == key)
        if usable == 0 or len(rows) == 0:
            return NO_PREFIX
        same = self.tokens[rows, :usable] == prompt[:usable]
        common = np.where(same.all(axis=1), usable, same.argmin(axis=1))
        reusable = self._reusable[rows]
        ready = np.minimum(common, reusable)
        # Among equals, one that can be continued in place needs no copy.
        in_place = ~self.busy[rows] & (ready == reusable)
        best = int(np.argmax(2 * ready + in_place))
        held = np.where(self.busy[rows], np.maximum(self.prompt[rows], reusable), reusable)
        coming = np.minimum(common, held)
        later = int(np.argmax(coming))
        found = int(ready[best]) if ready[best] >= MIN_REUSED else 0
        return Prefix(int(rows[best]), found, int(rows[later]), int(coming[later]))

    def take(self, key: int, prompt: Tokens, prefix: Prefix) -> tuple[int, Copy | None] | None:
        """Give a slot to a request, with its prefix kept or to be copied. None: all are busy."""
        slot = self._choose(prefix)
        if slot is None:
            return None
        copy = None
        if prefix.ready and slot != prefix.slot:
            copy = Copy(prefix.slot, slot, prefix.ready)
        self.tokens[slot, : len(prompt)] = prompt
        self.kv[slot] = self.exact[slot] = prefix.ready
        self.prompt[slot] = len(prompt)
        self.key[slot] = key
        self.busy[slot] = True
        self.generation[slot] += 1
        self._touch(slot)
        if copy is not None:
            self._touch(copy.source)
        return slot, copy

    def release(self, slot: int) -> None:
        """The request on it has ended; what it holds stays as a cache entry."""
        self.busy[slot] = False
        self.generation[slot] += 1
        self._touch(slot)

    def forget(self, key: int) -> None:
        """Drop the cache entries of an adapter."""
        self.key[(self.key == key) & ~self.busy] = EMPTY

    def bring_forward(self, slots: npt.NDArray[np.int64]) -> list[Exchange]:
        """Give n slots the first n places."""
        places = self.place[slots]
        far = slots[places >= len(slots)]
        if len(far) == 0:
            return []
        is_taken = np.zeros(self.num_slots, np.bool_)
        is_taken[places] = True
        free = np.flatnonzero(~is_taken[: len(slots)])
        owner = np.argsort(self.place)
        return [
            self._exchange(owner[place], slot)
            for slot, place in zip(far.tolist(), free.tolist(), strict=True)
        ]

    def _exchange(self, front: int, back: int) -> Exchange:
        """Of the owners of two places."""
        self.place[[front, back]] = self.place[[back, front]]
        held = [0 if self.key[s] == EMPTY else int(self.kv[s]) for s in (front, back)]
        return Exchange(int(self.place[back]), held[0], int(self.place[front]), held[1])

    def _choose(self, prefix: Prefix) -> int | None:
        source = prefix.slot
        if prefix.ready and not self.busy[source] and prefix.ready == self._reusable[source]:
            return source
        idle = np.flatnonzero(~self.busy)
        if len(idle) == 0:
            return None
        empty = idle[self.key[idle] == EMPTY]
        if len(empty):
            return int(empty[0])
        others = idle[idle != source]
        return int(others[np.argmin(self._used_at[others])]) if len(others) else int(idle[0])

    def _touch(self, slot: int) -> None:
        self._now += 1
        self._used_at[slot] = self._now
