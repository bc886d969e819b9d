"""What is done on a page is on record."""

import contextlib
import json
from collections.abc import AsyncIterator, Collection
from typing import Any

import httpx
import pytest

from tests.builders import ACCOUNT, SetClock
from tests.dashboard.kit import Site
from tests.unit.control.kit import ADMIN
from turnwise import errors
from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.witness import Witness
from turnwise.dashboard import Observed
from turnwise.dashboard.observed import NAMES
from turnwise.domain.access import ALL_ACTIONS, Action
from turnwise.domain.audit import AuditQuery, Sealer


class Watched:
    """A site whose changes are told to a trail."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.audit = AuditTrail(site.world.store, site.world.store, Sealer(b"k" * 32), SetClock())

        async def number(account_id: str) -> str:
            return "000000000001"

        async def arn(account_id: str, name: str) -> str:
            return f"arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/{name}"

        witness = Witness(SetClock(), region="us-west-2", account_number=number, job_arn=arn)
        self._app = Observed(site.app, self.audit, witness)

    @contextlib.asynccontextmanager
    async def browser(
        self, actions: Collection[Action] = ALL_ACTIONS
    ) -> AsyncIterator[httpx.AsyncClient]:
        secret, _ = await self.site.keyring.create(ACCOUNT, "mine", actions=actions)
        transport = httpx.ASGITransport(self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as browser:
            await browser.post("/dashboard/sign-in", data={"key": secret})
            yield browser

    async def records(self) -> list[dict[str, Any]]:
        """Oldest first."""
        found = await self.audit.search(ADMIN, AuditQuery())
        return [json.loads(each.body) for each in reversed(found)]


@pytest.fixture
def watched(site: Site) -> Watched:
    return Watched(site)


async def test_a_change_on_a_page_is_recorded_with_who_made_it(watched: Watched):
    async with watched.browser() as browser:
        await browser.get("/dashboard/jobs/walk/stop")
        assert (await browser.post("/dashboard/jobs/walk/stop")).status_code == 200  # it asks
        done = await browser.post("/dashboard/jobs/walk/stop", data={"confirmed": "yes"})
        assert done.status_code == 303
    signed_in, stopped = await watched.records()
    assert signed_in["eventName"] == "SignIn"
    assert (stopped["eventSource"], stopped["eventName"]) == ("turnwise-dashboard", "StopJob")
    assert stopped["readOnly"] is False
    assert stopped["requestParameters"] == {"name": "walk"}
    assert stopped["resources"][0]["ARN"].endswith("job/AgentRFT/walk")
    assert stopped["userIdentity"]["userName"] == "mine"


async def test_a_change_that_is_refused_is_recorded_as_that(watched: Watched):
    async with watched.browser([Action.READ]) as browser:
        refused = await browser.post("/dashboard/jobs/walk/stop", data={"confirmed": "yes"})
        assert refused.status_code == 403
    assert [each.get("errorCode") for each in await watched.records()] == [None, "HTTP403"]


async def test_a_change_that_cannot_be_recorded_is_not_answered_as_done(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
):
    async def full(*given: Any) -> int:
        raise errors.StorageFull("the disk is full")

    async with watched.browser() as browser:
        monkeypatch.setattr(watched.audit._store, "append_audit", full)
        answer = await browser.post("/dashboard/jobs/walk/stop", data={"confirmed": "yes"})
    assert answer.status_code == 503
    assert "could not be kept yet" in answer.text


def test_every_route_that_changes_something_has_a_name(site: Site):
    def posts(routes: Any) -> set[str]:
        found = set()
        for route in routes:
            inner = getattr(route, "original_router", None)
            found |= posts(inner.routes) if inner else set()
            found |= {route.path} if "POST" in (getattr(route, "methods", None) or ()) else set()
        return found

    assert posts(site.app.routes) - {"/dashboard/jobs/new/preview"} == set(NAMES)
