"""The pages over one world's store in memory, and browsers signed in to them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from tests import builders
from tests.builders import ACCOUNT
from tests.unit.control.kit import ADMIN, World, a_registry, archives
from turnwise.access.accounts import Accounts
from turnwise.access.keys import Keyring
from turnwise.access.links import Links
from turnwise.access.vault import Vault
from turnwise.control.browse import Browse
from turnwise.control.evaluators import Evaluators
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.named_datasets import NamedDatasets
from turnwise.control.results import StoredResults
from turnwise.dashboard import DashboardRooms, OtherDoor, dashboard_app
from turnwise.domain.access import ALL_ACTIONS, Action
from turnwise.domain.evaluator import Evaluator
from turnwise.domain.event import EventDraft, EventKind, Level
from turnwise.domain.rollout import RolloutStatus
from turnwise.ports import Built
from turnwise.system import new_id

#: A door that keeps records of jobs, and says their states aloud.
OTHER_DOORS = (
    OtherDoor(
        name="Loud", kind="loud-job", words=lambda kind, status, secondary: f"{status.value}!"
    ),
)


class Builds:
    """Builds that print one line, and end well."""

    async def build(self, evaluator: Evaluator, archive: Path, log: Path) -> Built:
        log.write_text(f"building {evaluator.evaluator_id}\n")
        return Built(is_active=True, message="built")

    async def forget(self, account_id: str, evaluator_id: str) -> None:
        """Nothing was kept."""


class Site:
    """A dashboard, and keys for it."""

    admin = ADMIN

    def __init__(self, world: World) -> None:
        self.world = world
        vault = Vault(bytes(32))
        self.keyring = Keyring(world.store, vault)
        self.evaluators = Evaluators(world.store, world.blobs, Builds(), world.clock, new_id)
        self.datasets = NamedDatasets(world.store, world.buckets, world.clock)
        self.app: FastAPI = dashboard_app(
            DashboardRooms(
                url="http://server",
                clock=world.clock,
                accounts=Accounts(
                    world.store, self.keyring, find_job=world.store.job, region="us-west-2"
                ),
                keyring=self.keyring,
                links=Links(vault, world.clock),
                jobs=world.jobs,
                browse=Browse(world.store),
                results=StoredResults(world.store, world.blobs),
                registry=a_registry(world.store, world.folder),
                catalogue=Catalogue(world.folder / "models"),
                resources=world.store,
                agents=world.agents,
                archives=archives(),
                evaluators=self.evaluators,
                datasets=self.datasets,
                other_doors=OTHER_DOORS,
            )
        )

    def visitor(self) -> httpx.AsyncClient:
        """A browser that nobody has signed in with."""
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False),
            base_url="http://server",
        )

    @contextlib.asynccontextmanager
    async def browser(
        self,
        account: str = ACCOUNT,
        *,
        actions: Collection[Action] = ALL_ACTIONS,
        job_ids: Collection[str] | None = None,
    ) -> AsyncIterator[httpx.AsyncClient]:
        """A browser that has signed in with a new key."""
        secret, _ = await self.keyring.create(account, "test", actions=actions, job_ids=job_ids)
        async with self.visitor() as browser:
            reply = await browser.post("/dashboard/sign-in", data={"key": secret})
            assert reply.status_code == 303, reply.text
            yield browser


async def record_steps(world: World, *rewards: float, name: str = "walk") -> None:
    """Metrics of so many steps, with a warning beside the last."""
    job = await world.store.job(ACCOUNT, name)
    drafts = [
        EventDraft(
            kind=EventKind.METRICS,
            body={"step": step, "values": {"rollout/reward/mean": reward, "training/loss": 0.5}},
        )
        for step, reward in enumerate(rewards)
    ]
    drafts.append(
        EventDraft(
            kind=EventKind.LOG, body={"message": "half of the groups failed"}, level=Level.WARNING
        )
    )
    await world.store.append(ACCOUNT, job.job_id, drafts)


async def record_rollout(world: World, rollout_id: str = "rol_a", **changes: Any) -> None:
    """A rollout of one turn in job_a, scored 0.5 and told of in the log."""
    given: dict[str, Any] = {"job_id": "job_a", "group_id": f"grp_{rollout_id}"} | changes
    await world.store.open_rollouts([builders.rollout(rollout_id, **given)])
    nodes, turn = builders.turn_with_nodes()
    await world.store.commit_turn(ACCOUNT, rollout_id, nodes, turn)
    await world.store.move_rollout(
        ACCOUNT,
        rollout_id,
        expected=[RolloutStatus.PENDING],
        status=RolloutStatus.REWARDED,
        rewards=(0.5,),
        ended_at=1002.5,
    )
    body = {"rollout_id": rollout_id, "status": "REWARD_RECEIVED", "reward": 0.5}
    await world.store.append(
        ACCOUNT, given["job_id"], [EventDraft(kind=EventKind.ROLLOUT, body=body)]
    )
