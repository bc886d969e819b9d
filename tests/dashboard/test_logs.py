import asyncio
import re
from html import unescape

import httpx
import pytest

from tests.builders import ACCOUNT
from tests.dashboard.kit import Site, record_rollout, record_steps
from tests.unit.control.kit import World
from turnwise.dashboard.tail import Rendered, Tails
from turnwise.domain.event import EventDraft, EventKind, Level


def lines(page: str) -> list[str]:
    """The log's lines as they read, without their time."""
    found = re.findall(r'<li class="log .*?</a> (.*?)</li>', page, re.DOTALL)
    return [unescape(re.sub(r"<[^>]+>", "", each)) for each in found]


async def test_a_log_shows_what_happened_in_order(
    site: Site, world: World, browser: httpx.AsyncClient
):
    await record_steps(world, 0.25, 0.5)
    page = (await browser.get("/dashboard/jobs/walk/logs")).text
    assert [line.split(" ")[0] for line in lines(page)] == ["INFO"] * 4 + ["WARNING"]
    assert lines(page)[-2].startswith("INFO step 1 rollout/reward/mean=0.5")
    assert page.count("<h1>") == 1


@pytest.mark.parametrize(
    ("asked", "count"),
    [("level=warning", 1), ("level=info", 6), ("q=HALF", 1), ("q=nothing", 0), ("step=1", 1)],
)
async def test_a_filter_lets_through_what_it_says(
    site: Site, world: World, browser: httpx.AsyncClient, asked: str, count: int
):
    await record_steps(world, 0.25, 0.5)
    await record_rollout(world)
    page = (await browser.get(f"/dashboard/jobs/walk/logs?{asked}")).text
    assert len(lines(page)) == count


async def test_a_line_leads_to_its_rollout_and_a_rollout_to_its_lines(
    site: Site, world: World, browser: httpx.AsyncClient
):
    await record_rollout(world, "rol_a")
    await record_rollout(world, "rol_ab", slot=1)
    page = (await browser.get("/dashboard/jobs/walk/logs?rollout=rol_a")).text
    assert [line.partition(" ")[2] for line in lines(page)] == [
        "rollout rol_a REWARD_RECEIVED reward=0.5"
    ]
    assert '<a href="/dashboard/rollouts/rol_a">rol_a</a>' in page


@pytest.mark.parametrize("asked", ["level=loud", "step=x", "before=1e9", "step=" + "9" * 30])
async def test_a_filter_that_means_nothing_is_named(browser: httpx.AsyncClient, asked: str):
    reply = await browser.get(f"/dashboard/jobs/walk/logs?{asked}")
    assert reply.status_code == 400
    assert asked.partition("=")[0] in reply.text


async def test_pages_lead_back_to_the_beginning_and_forward_to_the_end(
    site: Site, world: World, browser: httpx.AsyncClient
):
    drafts = [EventDraft(kind=EventKind.LOG, body={"message": f"line {n}"}) for n in range(450)]
    await world.store.append(ACCOUNT, "job_a", drafts)
    newest = (await browser.get("/dashboard/jobs/walk/logs")).text
    seen = lines(newest)
    page = newest
    while older := re.search(r'href="(\?[^"]*before=\d+)">Older', page):
        page = (await browser.get(f"/dashboard/jobs/walk/logs{unescape(older[1])}")).text
        seen = lines(page) + seen
    assert [line for line in seen if "line" in line] == [f"INFO line {n}" for n in range(450)]
    newer = re.search(r'href="(\?[^"]*after=\d+)">Newer', page)
    assert newer is not None
    second = (await browser.get(f"/dashboard/jobs/walk/logs{unescape(newer[1])}")).text
    assert lines(second)[0] == seen[len(lines(page))]


async def test_what_an_agent_says_is_shown_and_never_run(
    site: Site, world: World, browser: httpx.AsyncClient
):
    said = "<script>alert(1)</script> & <img src=x onerror=y>"
    draft = EventDraft(kind=EventKind.LOG, body={"message": said}, level=Level.ERROR)
    await world.store.append(ACCOUNT, "job_a", [draft])
    page = (await browser.get("/dashboard/jobs/walk/logs")).text
    assert "<script>alert" not in page
    assert lines(page)[-1] == f"ERROR {said}"


async def test_a_key_for_another_job_and_another_account_see_no_line(site: Site):
    async with site.browser(job_ids=["job_other"]) as browser:
        assert (await browser.get("/dashboard/jobs/walk/logs")).status_code == 403
        assert (await browser.get("/dashboard/jobs/walk/logs/live")).status_code == 403
    async with site.browser("acc_other") as browser:
        assert (await browser.get("/dashboard/jobs/walk/logs")).status_code == 404


# ── following ─────────────────────────────────────────────────────────────────────────────────


class Written:
    """A log that a test writes; counts how often it is read."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.reads = 0
        self._changed = asyncio.Event()

    def write(self, *texts: str) -> None:
        self.texts += texts
        self._changed.set()

    async def read(self, past: int) -> tuple[list[Rendered], int]:
        self.reads += 1
        return [(n, t) for n, t in enumerate(self.texts, 1) if n > past], len(self.texts)

    async def news(self, past: int) -> None:
        while len(self.texts) <= past:
            self._changed.clear()
            await self._changed.wait()


async def test_followers_get_each_line_once_whenever_they_joined_and_it_is_read_once():
    log = Written("one", "two")
    tails = Tails(every_s=0.0, beat_s=30.0)

    async def follow(after: int, upto: str) -> str:
        got = ""
        stream = tails.stream("walk", after, log.read, log.news).body_iterator
        async for piece in stream:
            got += bytes(piece).decode()
            if upto in got:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return "".join(re.findall(r"data: (.*)\n", got))

    async with asyncio.timeout(30):
        early = asyncio.create_task(follow(0, "four"))
        while not log.reads:
            await asyncio.sleep(0)
        late = asyncio.create_task(follow(2, "four"))
        await asyncio.sleep(0)
        log.write("three")
        await asyncio.sleep(0)
        log.write("four")
        assert await early == "onetwothreefour"
        assert await late == "threefour"
    assert log.reads <= 4


async def test_a_follower_who_comes_back_goes_on_after_what_it_saw_last():
    log = Written(*"abcdef")
    tails = Tails(every_s=0.0, beat_s=30.0)
    newest = tails.stream("walk", 6, log.read, log.news).body_iterator
    waiting = asyncio.create_task(anext(newest))  # type: ignore[call-overload]
    await asyncio.sleep(0.01)
    back = tails.stream("walk", 3, log.read, log.news).body_iterator
    async with asyncio.timeout(30):
        first = await anext(back)  # type: ignore[call-overload]
    assert bytes(first) == b"id: 6\ndata: d\ndata: e\ndata: f\n\n"
    waiting.cancel()
