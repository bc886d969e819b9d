"""Continuous batching: which requests run, and what the next step computes. Pure data.

    submit -> waiting, one queue per claimant -> admitted to a slot -> prefilled in chunks
           -> decoded, one token per step -> finished

Every step decodes all requests that have a token, and beside them prefills at most
`prefill_tokens` tokens, so that a long prompt does not stall the others.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from turnwise import errors
from turnwise.ports import SampleRequest
from turnwise.sampling.slots import Copy, SlotTable

#: Waiting for another request to prefill a shared prefix costs a step or more; not worth it for
#: fewer tokens than this.
MIN_SHARED = 16
#: How far into one claimant's queue to look for a request that need not wait for a prefix.
_LOOK_AHEAD = 64


@dataclass(slots=True, eq=False)
class Entry:
    """A request under way."""

    request: SampleRequest
    key: int  # of its adapter, as `SlotTable.key`
    max_new: int
    stop_ids: frozenset[int]
    slot: int = -1
    cached: int = 0
    aborted: bool = False
    delivered: int = 0  # sampled tokens already sent
    delivered_at: float = 0.0
    awaits: tuple[int, int, int] | None = None  # slot, generation, its kv: a shared prefix

    @property
    def prompt_length(self) -> int:
        """Tokens in the prompt."""
        return len(self.request.prompt)


@dataclass(frozen=True, slots=True)
class Span:
    """Positions [start, end) of a request's prompt, to be prefilled."""

    entry: Entry
    start: int
    end: int


@dataclass(slots=True)
class Plan:
    """One step: first the copies in order, then one forward over all the rest."""

    copies: list[Copy] = field(default_factory=list)
    prefill: list[Span] = field(default_factory=list)
    decode: list[Entry] = field(default_factory=list)
    started: list[Entry] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not (self.prefill or self.decode)


class Scheduler:
    """Owns the slots and the queues; the engine asks for a `plan` and then calls `advance`.

    `border` > 1 (deterministic mode) lets a prefill end, short of the prompt's end, only at
    positions that are multiples of it.
    """

    def __init__(
        self,
        slots: SlotTable,
        *,
        max_running: int,
        max_waiting: int,
        prefill_tokens: int,
        border: int = 1,
    ) -> None:
        self.slots = slots
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._prefill_tokens = prefill_tokens
        self._border = border
        self._queues: dict[str, deque[Entry]] = {}
        self._turns: deque[str] = deque()
        self._prefilling: list[Entry] = []
        self.decoding: dict[int, Entry] = {}
        self._waiting = 0

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return self._waiting

    @property
    def num_running(self) -> int:
        """Requests with a slot."""
        return len(self._prefilling) + len(self.decoding)

    def running_slots(self) -> npt.NDArray[np.int64]:
        """The slots of all running requests."""
        prefilling = [entry.slot for entry in self._prefilling]
        return np.array([*prefilling, *self.decoding], np.int64)

    def submit(self, entry: Entry) -> None:
        """Queue a request. Raises `LimitExceeded` if the queue is full and it is not admitted."""
        request = entry.request
        if not request.admitted and self._waiting >= self._max_waiting:
            raise errors.LimitExceeded(
                f"{self._waiting} requests are waiting already, {self._max_waiting} may",
                retry_after_s=float(1 + self._waiting // self._max_running),
            )
        if request.claimant not in self._queues:
            self._queues[request.claimant] = deque()
            self._turns.append(request.claimant)
        self._queues[request.claimant].append(entry)
        self._waiting += 1

    def abort(self, entry: Entry) -> bool:
        """End a request: at once if it waits (then True), else with `drop_aborted`."""
        entry.aborted = True
        queue = self._queues.get(entry.request.claimant)
        if entry.slot >= 0 or queue is None or entry not in queue:
            return False
        queue.remove(entry)
        self._waiting -= 1
        return True

    def plan(self) -> Plan:
        """What the next step computes."""
        plan = Plan()
        self._admit(plan)
        plan.prefill = self._spans()
        plan.decode = list(self.decoding.values())
        return plan

    def advance(self, plan: Plan) -> None:
        """The step is done: its KV exists, and prompts that it completed will be decoded."""
        for span in plan.prefill:
            slot = span.entry.slot
            self.slots.kv[slot] = self.slots.exact[slot] = span.end
            if span.end == span.entry.prompt_length:
                self._prefilling.remove(span.entry)
                self.decoding[slot] = span.entry
        if plan.decode:
            self.slots.kv[np.fromiter((e.slot for e in plan.decode), np.int64)] += 1

    def finish(self, entry: Entry) -> None:
        """A decoding request has got its last token."""
        del self.decoding[entry.slot]
        self.slots.release(entry.slot)

    def unfinished(self) -> list[Entry]:
        """All requests, waiting or running; afterwards there are none."""
        waiting = [entry for queue in self._queues.values() for entry in queue]
        running = [*self._prefilling, *self.decoding.values()]
        for entry in running:
            self.slots.release(entry.slot)
        self._queues.clear()
        self._turns.clear()
        self._prefilling.clear()
        self.decoding.clear()
        self._waiting = 0
        return waiting + running

    def drop_aborted(self) -> list[Entry]:
        """Take out running requests that were aborted; their slots keep their tokens until `plan`.

        To be called before `plan`.
        """
        aborted = [e for e in (*self._prefilling, *self.decoding.values()) if e.aborted]
        for entry in aborted:
            if entry.slot in self.decoding:
                del self.decoding[entry.slot]
            else:
                self._prefilling.remove(entry)
            self.slots.release(entry.slot)
        return aborted

    def _admit(self, plan: Plan) -> None:
        """Start requests, one per claimant in turn, while there is room."""
        passed = 0  # claimants in a row that could start nothing
        while self.num_running < self._max_running and passed < len(self._turns):
            claimant = self._turns.popleft()
            queue = self._queues[claimant]
            passed = 0 if self._start_one(queue, plan) else passed + 1
            if queue:
                self._turns.append(claimant)
            else:
                del self._queues[claimant]
                passed = 0

    def _start_one(self, queue: deque[Entry], plan: Plan) -> bool:
        for index in range(min(len(queue), _LOOK_AHEAD)):
            entry = queue[index]
            if self._awaits_prefix(entry):
                continue
            if not self._start(entry, plan):
                if entry.awaits is None:
                    return False  # no slot is free
                continue
            del queue[index]
            self._waiting -= 1
            return True
        return False

    def _awaits_prefix(self, entry: Entry) -> bool:
        if entry.awaits is None:
            return False
        slot, generation, length = entry.awaits
        if self.slots.generation[slot] == generation and self.slots.kv[slot] < length:
            return True
        entry.awaits = None
        return False

    def _start(self, entry: Entry, plan: Plan) -> bool:
        prompt, slots = entry.request.prompt, self.slots
        prefix = slots.best_prefix(entry.key, prompt)
        if prefix.coming - prefix.ready >= MIN_SHARED:
            at = prefix.coming_slot
            entry.awaits = (at, int(slots.generation[at]), prefix.coming)
            return False
        taken = slots.take(entry.key, prompt, prefix)
        if taken is None:
            return False
        entry.slot, copy = taken
        entry.cached = prefix.ready
        if copy is not None:
            plan.copies.append(copy)
        plan.started.append(entry)
        self._prefilling.append(entry)
        return True

    def _spans(self) -> list[Span]:
        spans, left = [], self._prefill_tokens
        for entry in self._prefilling:
            if left <= 0:
                break
            start = int(self.slots.kv[entry.slot])
            end = min(entry.prompt_length, start + left)
            if end < entry.prompt_length and self._border > 1:
                end = max(end // self._border, start // self._border + 1) * self._border
                end = min(end, entry.prompt_length)
            spans.append(Span(entry, start, end))
            left -= -(-(end - start) // self._border) * self._border
        return spans
