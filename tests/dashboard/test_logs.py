import asyncio
import re
from html import unescape

import httpx
import pytest

from tests.builders import ACCOUNT
from tests.dashboard.kit import Site, record_rollout, record_steps
from tests.unit.control.kit import World
from tests.wire.listening import listening
from turnwise import errors
from turnwise.dashboard.session import COOKIE
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


async def test_a_follower_whose_connection_is_slow_misses_no_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("turnwise.dashboard.tail.HELD", 3)
    log = Written("1")
    tails = Tails(every_s=0.0, beat_s=30.0)
    slow = tails.stream("walk", 0, log.read, log.news).body_iterator
    quick = tails.stream("walk", 0, log.read, log.news).body_iterator
    got = ""
    async with asyncio.timeout(30):
        got += bytes(await anext(slow)).decode()  # type: ignore[call-overload]
        await anext(quick)  # type: ignore[call-overload]
        for n in range(2, 12):
            log.write(str(n))
            await anext(quick)  # type: ignore[call-overload]
        while "11" not in got:
            got += bytes(await anext(slow)).decode()  # type: ignore[call-overload]
    assert re.findall(r"data: (.*)\n", got) == [str(n) for n in range(1, 12)]
    await slow.aclose()  # type: ignore[attr-defined]
    await quick.aclose()  # type: ignore[attr-defined]


async def test_a_follower_whose_key_is_revoked_is_let_go():
    log = Written("one")

    async def revoked() -> None:
        raise errors.UnknownKey("the key was revoked")

    stream = Tails(beat_s=0.01).stream("walk", 0, log.read, log.news, revoked).body_iterator
    async with asyncio.timeout(30):
        pieces = [bytes(piece) async for piece in stream]  # type: ignore[arg-type]
    assert pieces[0] == b"id: 1\ndata: one\n\n"


async def test_a_log_that_cannot_be_read_ends_for_its_followers_and_not_for_the_next():
    log = Written("one")
    tails = Tails(every_s=0.0)

    async def broken(past: int) -> tuple[list[Rendered], int]:
        raise RuntimeError("a disk error")

    async with asyncio.timeout(30):
        stream = tails.stream("walk", 0, broken, log.news).body_iterator
        assert [piece async for piece in stream] == []
        again = tails.stream("walk", 0, log.read, log.news).body_iterator
        assert b"one" in bytes(await anext(again))  # type: ignore[call-overload]
    await again.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("seen", ["9" * 18, "9" * 5000, "-5", "x"])
async def test_who_claims_to_have_seen_what_is_not_written_yet_hides_it_from_nobody(
    site: Site, world: World, seen: str
):
    """The first to follow says where the lines that are held begin."""
    async with site.browser() as browser:
        cookie = {"cookie": f"{COOKIE}={browser.cookies[COOKIE]}"}
    async with (
        listening(site.app) as url,
        httpx.AsyncClient(base_url=url, headers=cookie) as client,
        client.stream(
            "GET", "/dashboard/jobs/walk/logs/live", headers={"Last-Event-ID": seen}
        ) as first,
    ):
        assert first.status_code == (
            200 if seen.lstrip("-").isdecimal() and len(seen) < 99 else 400
        )
        async with (
            asyncio.timeout(30),
            client.stream("GET", "/dashboard/jobs/walk/logs/live?after=0") as other,
        ):
            pieces = other.aiter_text()
            await anext(pieces)
            await asyncio.sleep(0.1)  # for it to have caught up with what is held
            draft = EventDraft(kind=EventKind.LOG, body={"message": "fresh news"})
            await world.store.append(ACCOUNT, "job_a", [draft])
            async for piece in pieces:
                if "fresh news" in piece:
                    break
