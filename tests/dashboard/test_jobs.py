from __future__ import annotations

import asyncio
import html

import httpx

from tests import builders
from tests.builders import ACCOUNT
from tests.dashboard.kit import Site, record_steps
from tests.dashboard.whole import whole
from tests.unit.control.kit import ADMIN
from turnwise.domain.access import Account, Action
from turnwise.domain.event import EventDraft, EventKind
from turnwise.domain.job import JobKind, JobStatus
from turnwise.domain.resource import Resource
from turnwise.domain.rollout import Purpose, RolloutStatus

HOSTILE = '"><script>alert(1)</script>'


async def test_a_server_without_jobs_says_how_to_make_one(site: Site, browser: httpx.AsyncClient):
    (await site.world.running("walk")).end()
    await site.world.until("walk", JobStatus.COMPLETED)
    await site.world.jobs.delete(ADMIN, "walk")
    assert "No jobs yet" in whole(await browser.get("/dashboard"))


async def test_a_training_job_shows_its_steps_its_reward_and_its_curve(
    site: Site, browser: httpx.AsyncClient
):
    await site.world.running("walk")
    body = {"message": "4 steps in all, on 1 rows", "steps": 4}
    await site.world.store.append(ACCOUNT, "job_a", [EventDraft(kind=EventKind.LOG, body=body)])
    await record_steps(site.world, 0.25, 0.75)
    page = whole(await browser.get("/dashboard"))
    assert "step 0 of 4" in page
    assert "0.750" in page
    assert '<path d="M0.0 22.0L96.0 2.0"/>' in page
    assert 'action="/dashboard/jobs/walk/stop"' in page
    assert "RUNNING" in page or "VALIDATING" in page


async def test_a_curve_goes_on_where_it_was_read(site: Site, browser: httpx.AsyncClient):
    await site.world.running("walk")
    await record_steps(site.world, 0.25, 0.75)
    whole(await browser.get("/dashboard"))
    body = {"step": 2, "values": {"rollout/reward/mean": 0.5}}
    await site.world.store.append(ACCOUNT, "job_a", [EventDraft(kind=EventKind.METRICS, body=body)])
    page = whole(await browser.get("/dashboard"))
    assert '<path d="M0.0 22.0L48.0 2.0L96.0 12.0"/>' in page
    assert "0.500" in page


async def test_an_evaluation_shows_how_many_rollouts_it_has_done(
    site: Site, browser: httpx.AsyncClient
):
    world = site.world
    (await world.running("walk")).end()
    await world.jobs.create(ADMIN, world.spec("judge", kind=JobKind.EVALUATION))
    await world.running("judge")
    body = {"message": "8 rollouts in all", "rollouts": 8}
    await world.store.append(ACCOUNT, "job_b", [EventDraft(kind=EventKind.LOG, body=body)])
    for name in ("rol_a", "rol_b"):
        its = builders.rollout(
            name, job_id="job_b", group_id=f"grp_{name}", purpose=Purpose.EVALUATION
        )
        await world.store.open_rollouts([its])
    await world.store.move_rollout(
        ACCOUNT, "rol_a", [RolloutStatus.PENDING], status=RolloutStatus.REWARDED, rewards=(1.0,)
    )
    page = whole(await browser.get("/dashboard?kind=evaluation"))
    assert "rollout 1 of 8" in page
    assert "walk" not in page.split("<tbody>")[1]


async def test_jobs_that_wait_say_how_many_are_ahead(site: Site, browser: httpx.AsyncClient):
    await site.world.create("run", "sit")
    page = whole(await browser.get("/dashboard?state=PENDING"))
    assert "next in the queue" in page
    assert "1 ahead in the queue" in page


async def test_another_doors_job_has_that_doors_words(site: Site, browser: httpx.AsyncClient):
    await site.world.create("loud")
    for job_id, name in (("job_b", "loud"), ("job_of_a_namesake", "walk")):
        record = Resource(account_id=ACCOUNT, kind="loud-job", name=name, body={"job_id": job_id})
        await site.world.store.create_resource(record)
    page = whole(await browser.get("/dashboard"))
    assert page.count("Loud: ") == 1
    assert "Loud: PENDING!" in page


async def test_the_list_is_filtered_by_state_and_name(site: Site, browser: httpx.AsyncClient):
    (await site.world.running("walk")).end()
    await site.world.create("run")
    await site.world.running("run")
    for query, shown in (
        ("state=COMPLETED", ["walk"]),
        ("state=RUNNING", ["run"]),
        ("state=FAILED", []),
        ("name=WAL", ["walk"]),
        ("state=&kind=&name=", ["run", "walk"]),
        ("name=100%25", []),
    ):
        page = whole(await browser.get(f"/dashboard?{query}"))
        found = [name for name in ("run", "walk") if f'href="/dashboard/jobs/{name}"' in page]
        assert found == shown, query


async def test_a_long_list_comes_in_pages_of_which_each_has_an_address(
    site: Site, browser: httpx.AsyncClient
):
    for number in range(51):
        await site.world.store.create_job(
            builders.job(f"job-{number:02}", job_id=f"job_x{number:02}")
        )
    first = whole(await browser.get("/dashboard?name=job-"))
    assert first.count('<th scope="row">') == 50
    older = html.unescape(first.split('rel="next" href="')[1].split('"')[0])
    second = whole(await browser.get(older))
    assert second.count('<th scope="row">') == 1
    assert "job-00" in second
    assert 'href="/dashboard?name=job-"' in second
    assert 'rel="next"' not in second


async def test_a_bad_filter_is_refused_with_what_is_allowed(browser: httpx.AsyncClient):
    page = whole(await browser.get("/dashboard?state=ASLEEP"), 400)
    assert "allowed: PENDING, RUNNING" in page
    assert "is no place in the list" in whole(await browser.get("/dashboard?after=-1"), 400)
    page = whole(await browser.get("/dashboard", params={"kind": HOSTILE}), 400)
    assert "<script>alert" not in page


async def test_what_a_job_says_of_itself_is_only_text(site: Site, browser: httpx.AsyncClient):
    await site.world.running("walk")
    spec = site.world.spec("run", description=HOSTILE)
    await site.world.jobs.create(ADMIN, spec)
    site.world.loops["walk"].break_down(RuntimeError(HOSTILE))
    await site.world.until("walk", JobStatus.FAILED)
    page = whole(await browser.get("/dashboard", params={"name": HOSTILE}))
    assert "<script>alert" not in page
    page = whole(await browser.get("/dashboard"))
    assert "<script>alert" not in page
    assert "RuntimeError" in page
    assert page.count("&lt;script&gt;") >= 2


async def test_a_read_only_key_sees_jobs_and_no_buttons(site: Site):
    async with site.browser(actions=[Action.READ]) as reader:
        page = whole(await reader.get("/dashboard"))
    assert 'href="/dashboard/jobs/walk"' in page
    for button in ("walk/stop", "walk/delete", "jobs/new"):
        assert button not in page


async def test_a_key_for_certain_jobs_sees_these_alone(site: Site):
    await site.world.create("run", "sit")
    async with site.browser(job_ids=["job_b"]) as narrow:
        page = whole(await narrow.get("/dashboard"))
    assert [name for name in ("walk", "run", "sit") if f"jobs/{name}" in page] == ["run"]
    assert "next in the queue" in page
    assert "jobs/new" not in page


async def test_another_account_sees_none(site: Site):
    other = Account(account_id="acc_other", slug="other", number="000000000002")
    await site.world.store.create_account(other)
    async with site.browser("acc_other") as stranger:
        assert "No jobs yet" in whole(await stranger.get("/dashboard"))
        whole(await stranger.get("/dashboard/fine-tuning/reinforcement/walk"), 404)
        whole(await stranger.get("/dashboard/jobs/walk/stop"), 404)


async def test_links_that_fireworks_clients_print_lead_to_the_job(browser: httpx.AsyncClient):
    for path in ("fine-tuning/reinforcement", "evaluation-jobs"):
        reply = await browser.get(f"/dashboard/{path}/walk")
        assert (reply.status_code, reply.headers["location"]) == (307, "/dashboard/jobs/walk")
        assert "does not exist" in whole(await browser.get(f"/dashboard/{path}/nothing"), 404)


async def test_a_job_with_the_name_of_a_page_is_found_by_its_id(
    site: Site, browser: httpx.AsyncClient
):
    await site.world.create("new")
    assert 'href="/dashboard/jobs/job_b"' in whole(await browser.get("/dashboard"))


async def test_who_looks_at_the_list_gets_it_again_when_something_happened(site: Site):
    async with Stream(site, "/dashboard/live?state=PENDING") as stream:
        assert "No such job" in await stream.next()
        await site.world.create("run")
        assert 'href="/dashboard/jobs/run"' in await stream.next()


async def test_a_revoked_key_ends_the_stream(site: Site):
    async with Stream(site, "/dashboard/live") as stream:
        assert "walk" in await stream.next()
        [key] = await site.world.store.keys(ACCOUNT)
        await site.keyring.revoke(ACCOUNT, key.key_id)
        assert await stream.next() == ""


class Stream:
    """A stream of the site, read by its ASGI app as it comes."""

    def __init__(self, site: Site, path: str) -> None:
        self._site = site
        self._path, _, self._query = path.partition("?")
        self._sent: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def __aenter__(self) -> Stream:
        async with self._site.browser() as browser:
            cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": self._query.encode(),
            "root_path": "",
            "headers": [(b"host", b"server"), (b"cookie", cookie.encode())],
            "server": ("server", 80),
            "client": ("127.0.0.1", 1),
        }
        self._task = asyncio.create_task(self._run(scope))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, scope: dict[str, object]) -> None:
        async def receive() -> dict[str, object]:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, object]) -> None:
            body = message.get("body", b"")
            assert isinstance(body, bytes)
            if body:
                self._sent.put_nowait(body)

        await self._site.app(scope, receive, send)  # type: ignore[arg-type]
        self._sent.put_nowait(None)

    async def next(self) -> str:
        """The next message; empty at the end."""
        async with asyncio.timeout(30):
            return (await self._sent.get() or b"").decode()
