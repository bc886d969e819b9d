"""The door for agents that run in the server's own process: the same calls without HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from turnwise.domain.access import Action, Principal
from turnwise.gateway.gateway import Gateway
from turnwise.wire.openai import codec

_encode = msgspec.json.Encoder().encode
_ACTIONS = frozenset({Action.SAMPLE, Action.REPORT})


class InsideDoor:
    """`ports.AgentDoor` over the gateway, for the rollouts of one account."""

    def __init__(self, gateway: Gateway, account_id: str) -> None:
        self._gateway = gateway
        self._account_id = account_id

    async def chat(self, rollout_id: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """One turn, checked and recorded as any other."""
        # By way of JSON: the record must not change when the agent goes on with its lists.
        sent = _encode(body)
        reply = await self._gateway.chat(
            self._agent(rollout_id), rollout_id, codec.decode_chat(sent), body=sent
        )
        return codec.reply_body(reply)

    async def report(
        self,
        rollout_id: str,
        rewards: Sequence[float],
        metrics: Mapping[str, float],
        reason: str = "",
    ) -> None:
        """Complete and reward a rollout."""
        await self._gateway.finish(
            self._agent(rollout_id), rollout_id, rewards, metrics=metrics, reason=reason
        )

    def _agent(self, rollout_id: str) -> Principal:
        return Principal(
            account_id=self._account_id,
            actions=_ACTIONS,
            rollout_id=rollout_id,
            name=f"rollout {rollout_id}",
        )
