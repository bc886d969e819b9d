"""The dashboard over a store in memory, signed in to, with rollouts of every kind recorded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests import builders
from tests.builders import ACCOUNT
from tests.dashboard.kit import rooms_of
from tests.unit.control.kit import World
from turnwise.access.keys import Keyring
from turnwise.access.vault import Vault
from turnwise.dashboard import dashboard_app
from turnwise.domain.rollout import (
    Fault,
    ForkCause,
    Message,
    Node,
    Policy,
    Rollout,
    RolloutStatus,
    Turn,
)
from turnwise.ports import FinishedStep
from turnwise.storage.sql import SqlStore

URL = "http://turnwise.test"


@dataclass(frozen=True)
class Site:
    """A server's dashboard and who looks at it."""

    store: SqlStore
    keyring: Keyring
    app: Any

    @asynccontextmanager
    async def client(
        self, account_id: str = ACCOUNT, **narrow: Any
    ) -> AsyncIterator[httpx.AsyncClient]:
        """A browser that has signed in with a new key."""
        secret, _ = await self.keyring.create(account_id, "reader", **narrow)
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
            answer = await client.post("/dashboard/sign-in", data={"key": secret})
            assert answer.status_code == 303
            yield client


@asynccontextmanager
async def open_site(folder: Path) -> AsyncIterator[Site]:
    store = SqlStore.in_memory()
    vault = Vault(bytes(32))
    keyring = Keyring(store, vault)
    world = World(folder, store)
    rooms = rooms_of(world, keyring, vault, URL)
    try:
        yield Site(store=store, keyring=keyring, app=dashboard_app(rooms))
    finally:
        await world.jobs.close()
        await store.close()


# ── what is recorded ──────────────────────────────────────────────────────────────────────────


def asked(content: Any, role: str = "user", **more: Any) -> Message:
    return {"role": role, "content": content, **more}


def said(content: Any = "", **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


@dataclass(frozen=True)
class Step:
    """One turn to record: what it adds, under which node, and how it differs from the usual."""

    sent: Sequence[Message]
    reply: Message
    parent: int | None = None
    cause: ForkCause | None = None
    completion: Sequence[int] = (7, 8)
    prompt: Sequence[int] = (1, 2, 3)
    turn: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] = ()


def conversation(*steps: Step) -> list[tuple[list[Node], Turn]]:
    """Steps as nodes and turns: nodes 2i and 2i + 1 are those of turn i."""
    made = []
    for index, step in enumerate(steps):
        nodes, turn = builders.turn_with_nodes(
            index,
            prompt=step.prompt,
            completion=step.completion,
            parent=-1 if step.parent is None else step.parent,
            **(step.turn or {}),
        )
        prompt, completion = nodes
        made.append(
            (
                [
                    _node(
                        prompt,
                        messages=tuple(step.sent),
                        fork_cause=step.cause,
                        tools=tuple(step.tools),
                    ),
                    _node(completion, messages=(step.reply,)),
                ],
                turn,
            )
        )
    return made


def _node(node: Node, **changes: Any) -> Node:
    fields = {name: getattr(node, name) for name in Node.__slots__}
    return Node(**(fields | changes))


async def record(
    store: SqlStore,
    rollout: Rollout,
    turns: Sequence[tuple[Sequence[Node], Turn]],
    *,
    rewards: tuple[float, ...] | None = None,
    metrics: Mapping[str, float] | None = None,
    fault: Fault | None = None,
    reason: str = "",
    is_open: bool = False,
) -> None:
    """A rollout, its turns and its end."""
    await store.open_rollouts([rollout])
    for nodes, turn in turns:
        await store.commit_turn(rollout.account_id, rollout.rollout_id, nodes, turn)
    if is_open:
        return
    await store.move_rollout(
        rollout.account_id,
        rollout.rollout_id,
        [RolloutStatus.PENDING],
        status=RolloutStatus.FAILED if fault else RolloutStatus.REWARDED,
        rewards=rewards,
        metrics=metrics,
        fault=fault,
        ended_at=1010.0,
        reason=reason,
    )


async def take(store: SqlStore, step: int, group_ids: Collection[str]) -> None:
    """A training step takes these groups."""
    for group_id in group_ids:
        await store.close_group(ACCOUNT, group_id)
    done = FinishedStep(
        step=step,
        policy=Policy(policy_step=step + 1),
        groups=tuple(group_ids),
        bins={},
        checkpoint=None,
        packages=(),
        events=(),
    )
    await store.finish_step(ACCOUNT, "job_walk", done)


def tokens_of(count: int) -> tuple[int, ...]:
    return tuple(np.arange(count) % 26 + 1)
