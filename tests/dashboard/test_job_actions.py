from __future__ import annotations

import httpx
import pytest

from tests.dashboard.kit import Site
from tests.dashboard.whole import whole
from tests.unit.control.kit import ADMIN
from turnwise.domain.access import Action
from turnwise.domain.job import JobStatus

YES = {"confirmed": "yes"}


async def test_without_script_a_button_leads_to_the_question_and_the_question_to_the_deed(
    site: Site, browser: httpx.AsyncClient
):
    await site.world.running("walk")
    asked = await browser.post(
        "/dashboard/jobs/walk/stop", data={"next": "/dashboard?state=RUNNING"}
    )
    page = whole(asked)
    assert "Cancel job walk?" in page
    assert 'action="/dashboard/jobs/walk/stop"' in page
    assert 'value="/dashboard?state=RUNNING"' in page
    assert (await site.world.statuses())["walk"] == "RUNNING"
    done = await browser.post(
        "/dashboard/jobs/walk/stop", data=YES | {"next": "/dashboard?state=RUNNING"}
    )
    assert (done.status_code, done.headers["location"]) == (303, "/dashboard?state=RUNNING")
    await site.world.until("walk", JobStatus.STOPPED)


async def test_a_stopped_job_is_resumed_and_a_finished_one_deleted(
    site: Site, browser: httpx.AsyncClient
):
    (await site.world.running("walk")).end(JobStatus.STOPPED)
    await site.world.until("walk", JobStatus.STOPPED)
    site.world.loops.clear()
    reply = await browser.post("/dashboard/jobs/walk/resume", data=YES)
    assert reply.headers["location"] == "/dashboard/jobs/walk"
    (await site.world.running("walk")).end()
    await site.world.until("walk", JobStatus.COMPLETED)
    reply = await browser.post("/dashboard/jobs/walk/delete", data=YES)
    assert reply.headers["location"] == "/dashboard"
    assert await site.world.statuses() == {}


async def test_what_cannot_be_done_is_told_on_the_page_and_changes_nothing(
    site: Site, browser: httpx.AsyncClient
):
    await site.world.running("walk")
    for verb, told in (("resume", "stop it first"), ("delete", "cannot be deleted")):
        page = whole(await browser.post(f"/dashboard/jobs/walk/{verb}", data=YES), 409)
        assert 'role="alert"' in page
        assert told in page
    assert await site.world.statuses() == {"walk": "RUNNING"}


@pytest.mark.parametrize("verb", ["stop", "resume", "delete"])
async def test_a_read_only_key_may_not(site: Site, verb: str):
    await site.world.running("walk")
    async with site.browser(actions=[Action.READ]) as reader:
        whole(await reader.get(f"/dashboard/jobs/walk/{verb}"), 403)
        page = whole(await reader.post(f"/dashboard/jobs/walk/{verb}", data=YES), 403)
    assert "may not manage" in page
    assert await site.world.statuses() == {"walk": "RUNNING"}


async def test_a_key_for_another_job_may_not(site: Site):
    await site.world.create("run")
    async with site.browser(job_ids=["job_b"]) as narrow:
        whole(await narrow.post("/dashboard/jobs/walk/stop", data=YES), 403)
        assert (await narrow.post("/dashboard/jobs/run/stop", data=YES)).status_code == 303
    assert (await site.world.statuses())["run"] == "STOPPED"


async def test_a_form_of_another_site_changes_nothing(site: Site, browser: httpx.AsyncClient):
    await site.world.running("walk")
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        reply = await browser.post("/dashboard/jobs/walk/stop", data=YES, headers=headers)
        whole(reply, 403)
    assert await site.world.statuses() == {"walk": "RUNNING"}


async def test_nobody_is_sent_to_another_site_afterwards(site: Site, browser: httpx.AsyncClient):
    reply = await browser.post("/dashboard/jobs/walk/stop", data=YES | {"next": "//evil.example/x"})
    assert reply.headers["location"] == "/dashboard"


async def test_who_is_not_signed_in_is_asked_to(site: Site):
    async with site.visitor() as nobody:
        reply = await nobody.post("/dashboard/jobs/walk/stop", data=YES)
    assert (reply.status_code, reply.headers["location"]) == (303, "/dashboard/sign-in")
    assert (await site.world.jobs.describe(ADMIN, "walk")).status is not JobStatus.STOPPING
