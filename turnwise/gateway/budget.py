"""How many tokens a rollout may still sample, shared by the calls that it has under way."""

from __future__ import annotations

import asyncio

from turnwise import errors


class Budget:
    """One rollout's tokens: spent by the turns on record, or held by calls that may need them.

    A call holds its max_tokens while it runs, so that parallel calls cannot exceed the limit
    together; what it did not use is free again once its turn is on record.
    """

    def __init__(self, spent: int) -> None:
        self._spent = spent
        self._held: dict[str, int] = {}  # by turn
        self._changed = asyncio.Event()

    async def hold(self, turn_id: str, wanted: int, limit: int) -> int:
        """Hold up to `wanted` of what `limit` leaves; how many. Limit 0 grants all of them.

        Waits while other calls hold all that is left. Raises `OverBudget` once it is spent.
        """
        while limit and self._left(limit) <= 0:
            if self._spent >= limit:
                raise errors.OverBudget(
                    f"the rollout has sampled {self._spent} tokens and may sample {limit} "
                    "(rollout.rollout_max_tokens); complete it and report its reward"
                )
            await self._changed.wait()
        self._held[turn_id] = min(wanted, self._left(limit)) if limit else wanted
        return self._held[turn_id]

    def spend(self, turn_id: str, tokens: int) -> None:
        """The turn is on record with so many sampled tokens."""
        self._spent += tokens
        self.release(turn_id)

    def release(self, turn_id: str) -> None:
        """The call needs no more; it may have held nothing."""
        self._held.pop(turn_id, None)
        self._changed.set()
        self._changed = asyncio.Event()

    def _left(self, limit: int) -> int:
        return limit - self._spent - sum(self._held.values())
