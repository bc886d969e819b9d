"""Which row each group of a job gets, how many steps there are, and each step's learning rate.

Pure: a job's whole plan follows from its spec and the number of its rows. A group's `order` is
its place in the plan, so a group planned again after a crash gets the row it had.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from turnwise import errors
from turnwise.domain.job import JobSpec, ScheduleSpec


@dataclass(frozen=True)
class Plan:
    """The order of the rows: epoch after epoch, each in its own permutation by the seed.

    >>> plan = Plan(seed=0, num_rows=4, batch=2, max_epochs=3, max_steps=5)
    >>> plan.total, plan.num_steps
    (10, 5)
    >>> sorted(plan.row_index(order) for order in range(4)), plan.epoch(4)
    ([0, 1, 2, 3], 1)
    """

    seed: int
    num_rows: int
    batch: int  # groups per step
    max_epochs: int
    max_steps: int
    refill: bool = False  # up to one more batch per step

    @classmethod
    def of(cls, spec: JobSpec, num_rows: int) -> Plan:
        """A job's plan. Raises `InvalidInput` for a dataset without rows."""
        if not num_rows:
            raise errors.InvalidInput("dataset", spec.dataset, "has no rows")
        return cls(
            seed=spec.seed,
            num_rows=num_rows,
            batch=spec.batch.global_batch_size,
            max_epochs=spec.schedule.max_epochs,
            max_steps=spec.schedule.max_steps,
            refill=spec.batch.refill,
        )

    @property
    def total(self) -> int:
        """How many places there are for groups; the last step takes what is left of them.

        With `refill` a job may reach its last step before it has used them all.
        """
        per_step = 2 * self.batch if self.refill else self.batch
        return min(self.max_steps * per_step, self.max_epochs * self.num_rows)

    @property
    def num_steps(self) -> int:
        """How many training steps there are; with `refill`, the most there can be."""
        return self.steps_in_all(0, 0)

    def steps_in_all(self, done: int, trained: int) -> int:
        """How many steps there will be, where `done` of them have trained so many places.

        Usually `num_steps`; a step that took less than a batch, as the last one of a job that is
        continued with more epochs, is followed by one more.
        """
        left = self.total - trained
        return min(self.max_steps, done + -(-left // self.batch))

    def epoch(self, order: int) -> int:
        """Which pass over the rows a group belongs to."""
        return order // self.num_rows

    def row_index(self, order: int) -> int:
        """The place in the dataset of a group's row."""
        return int(self._permutations[self.epoch(order)][order % self.num_rows])

    def orders(self, done: Collection[int]) -> Iterator[int]:
        """The places to admit, in order, leaving out those already trained or kept."""
        return (order for order in range(self.total) if order not in done)

    @cached_property
    def _permutations(self) -> list[list[int]]:
        epochs = range(-(-self.total // self.num_rows))
        return [
            np.random.default_rng((self.seed % 2**64, epoch)).permutation(self.num_rows).tolist()
            for epoch in epochs
        ]


def learning_rate(peak: float, schedule: ScheduleSpec, step: int, num_steps: int) -> float:
    """Linear warm-up times linear decay: the peak's share of step `step` of `num_steps`.

    A step past them has the last one's.

    >>> half = ScheduleSpec(warmup_steps=2, final_learning_rate_fraction=0.5)
    >>> [learning_rate(1.0, half, step, 5) for step in range(5)]
    [0.5, 0.875, 0.75, 0.625, 0.5]
    """
    warmth = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    progress = min(1.0, step / (num_steps - 1)) if num_steps > 1 else 0.0
    return peak * warmth * (1.0 - (1.0 - schedule.final_learning_rate_fraction) * progress)
