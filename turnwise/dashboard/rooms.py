"""What the pages are made from: the rooms they call, each of which checks the caller's rights."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from turnwise.access.accounts import Accounts
from turnwise.access.keys import Keyring
from turnwise.access.links import Links
from turnwise.control.agents import Agents
from turnwise.control.browse import Browse
from turnwise.control.evaluators import Evaluators
from turnwise.control.jobs import Jobs
from turnwise.control.learned import Learned
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.models.registry import Registry
from turnwise.control.named_datasets import NamedDatasets
from turnwise.control.results import StoredResults
from turnwise.dashboard.job.prices import Prices
from turnwise.dashboard.live import Hub, MayLook, Streams
from turnwise.dashboard.pages import Pages
from turnwise.domain.access import Action, Principal
from turnwise.domain.job import Job, JobKind, JobStatus, Secondary
from turnwise.domain.rollout import Trajectory
from turnwise.exporting.archives import Archives
from turnwise.ports import Clock, Resources

#: Finds the caller of a request, or sends the browser to the sign-in page.
Caller = Callable[[Request], Awaitable[Principal]]

#: What each token adds to the text, by the tokenizer of a job's base model. Raises `NotFound` where
#: its folder is gone, and `InvalidInput` where it is not readable.
TokenBytes = Callable[[Job, Sequence[int]], Awaitable[list[bytes]]]

#: A trajectory as the native API shows it.
TrajectoryBody = Callable[[Trajectory], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherDoor:
    """A door that keeps a record of each job that came by it, and has its own words for states.

    The records' `kind`; each has the job's name, and in its body its `job_id` if the record may
    outlive the job.
    """

    name: str
    kind: str
    words: Callable[[JobKind, JobStatus, Secondary], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardRooms:
    """`url` is how people reach the server; over https its cookies are marked secure."""

    url: str
    clock: Clock
    accounts: Accounts
    keyring: Keyring
    links: Links
    jobs: Jobs
    browse: Browse
    learned: Learned
    results: StoredResults
    registry: Registry
    catalogue: Catalogue
    resources: Resources
    agents: Agents
    archives: Archives
    evaluators: Evaluators
    datasets: NamedDatasets
    other_doors: tuple[OtherDoor, ...] = ()
    token_bytes: TokenBytes
    trajectory_body: TrajectoryBody
    prices: Prices = field(default_factory=Prices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """What every module of pages is given."""

    rooms: DashboardRooms
    pages: Pages
    hub: Hub
    streams: Streams
    principal: Caller

    def reading(self, who: Principal, job_id: str) -> MayLook:
        """Asks whether a key may still read a job; see `live.MayLook`."""

        async def may_look() -> None:
            holder = await self.rooms.keyring.holder(who.access_key_id)
            holder.require(Action.READ, job_id=job_id)

        return may_look
