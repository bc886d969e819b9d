"""The server as a Python agent sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Door:
    """Answers every call and keeps it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def chat(self, rollout_id: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        self.calls.append((rollout_id, body))
        return {"choices": [{"message": {"role": "assistant", "content": "three"}}]}

    async def report(
        self,
        rollout_id: str,
        rewards: Sequence[float],
        metrics: Mapping[str, float],
        reason: str = "",
    ) -> None:
        self.calls.append((rollout_id, rewards, metrics))
