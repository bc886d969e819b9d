"""The pages of one job: what they show, who may see and change it, and how they stay fresh."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import httpx
import pytest

from tests import builders
from tests.builders import ACCOUNT
from tests.dashboard.kit import Site, record_steps
from tests.dashboard.whole import whole
from tests.unit.control.kit import ADMIN, World
from turnwise import errors
from turnwise.control.notes import NOTES
from turnwise.dashboard.job import job_pages
from turnwise.domain.access import Action
from turnwise.domain.evaluation import results_key
from turnwise.domain.event import EventDraft, EventKind
from turnwise.domain.job import JobKind, JobStatus
from turnwise.domain.rollout import Blame, Fault, Policy, Purpose, RolloutStatus
from turnwise.ports import FinishedStep

HOSTILE = '"><script>alert(1)</script>'


async def train(site: Site, steps: range, **values: float) -> None:
    """Finished steps of walk (job_a), their models, and a validation after each second one."""
    for step in steps:
        measured = {
            "rollout/reward/mean": 0.5 + step / 10,
            "rollout/reward/min": 0.0,
            "rollout/reward/max": 1.0,
            "training/epoch": step // 2,
            "training/num_groups": 8,
            "training/num_trajectories": 60,
            "timing_s/step": 2.0,
        }
        events = [
            EventDraft(
                kind=EventKind.METRICS, body={"step": step, "values": {**measured, **values}}
            ),
            EventDraft(
                kind=EventKind.STEP, body={"step": step, "groups": ["g"] * 8, "trained_tokens": 90}
            ),
        ]
        if step % 2:
            found = {"val/reward/mean": 0.25 + step / 100}
            body = {"step": step + 1, "values": found}
            events += [
                EventDraft(kind=EventKind.METRICS, body=body),
                EventDraft(
                    kind=EventKind.EVALUATION, body={**body, "purpose": Purpose.VALIDATION.value}
                ),
            ]
        await site.world.store.finish_step(
            ACCOUNT,
            "job_a",
            FinishedStep(
                step=step,
                policy=Policy(adapter_id="a", policy_step=step + 1),
                groups=(),
                bins={},
                checkpoint=None,
                packages=(builders.package(step + 1, job_id="job_a", step=step),),
                events=tuple(events),
            ),
        )


async def test_a_job_without_steps_says_so(browser: httpx.AsyncClient):
    page = whole(await browser.get("/dashboard/jobs/walk"))
    assert "No steps yet" in page
    assert 'hx-sse:connect="/dashboard/jobs/walk/live"' in page


async def test_a_training_job_shows_curves_steps_checkpoints_and_where_to_look(
    site: Site, browser: httpx.AsyncClient
):
    await site.world.running("walk")
    await train(site, range(4))

    page = whole(await browser.get("/dashboard/jobs/walk"))

    assert "Epoch 2 · step 4 of 50" in page
    assert "step 3: mean 0.8, max 1, min 0" in page  # the caption of the reward's chart
    assert "0.52 at step 4" in page  # the generalisation gap
    assert "Epoch 1" in page
    assert 'href="/dashboard/jobs/walk/rollouts?trained=3&amp;sample=10"' in page
    assert 'href="/dashboard/jobs/walk/logs?step=3"' in page
    assert 'href="/dashboard/jobs/new?from=walk&amp;from_model=walk/4"' in page
    assert 'href="/dashboard/models/walk/4"' in page
    assert '<td class="num">0.280</td>' in page  # the validation of walk/4
    assert 'data-chart-option="smooth"' in page


async def test_a_finding_is_told_with_its_evidence_its_remedy_and_its_rollouts(
    site: Site, browser: httpx.AsyncClient
):
    await site.world.running("walk")
    await train(site, range(5), **{"rollout/turns/at_cap_frac": 0.5})
    page = whole(await browser.get("/dashboard/jobs/walk"))
    assert "50 % of turns are cut off by a token limit" in page
    assert "step 4: rollout/turns/at_cap_frac = 0.5" in page
    assert "Raise sampling_params.max_tokens" in page
    assert 'href="/dashboard/jobs/walk/rollouts?trained=4"' in page


async def test_failures_are_listed_by_the_word_that_the_list_of_rollouts_knows(
    site: Site, browser: httpx.AsyncClient
):
    store = site.world.store
    await site.world.running("walk")
    rollouts = [builders.rollout(f"rol_{n}", job_id="job_a", slot=n) for n in range(12)]
    await store.open_rollouts(rollouts)
    late = Fault(blame=Blame.AGENT, code="deadline", message="not completed within 60 s")
    for each in rollouts:
        await store.move_rollout(
            ACCOUNT,
            each.rollout_id,
            [RolloutStatus.PENDING],
            status=RolloutStatus.FAILED,
            fault=late,
            ended_at=1500.0,
        )
    page = whole(await browser.get("/dashboard/jobs/walk"))
    assert "12 of the last 12 training rollouts ran out of time (deadline: 12)" in page
    assert 'href="/dashboard/jobs/walk/rollouts?reason=deadline"' in page


async def test_all_steps_are_paged_from_the_newest(
    site: Site, browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job_pages, "STEPS_PAGE", 3)
    await site.world.running("walk")
    await train(site, range(5))
    first = whole(await browser.get("/dashboard/jobs/walk/steps"))
    assert [f'id="step-{step}"' in first for step in range(5)] == [False, False, True, True, True]
    assert 'href="/dashboard/jobs/walk/steps?before=2"' in first
    last = whole(await browser.get("/dashboard/jobs/walk/steps?before=2"))
    assert [f'id="step-{step}"' in last for step in range(5)] == [True, True, False, False, False]
    assert "Older" not in last
    refused = await browser.get("/dashboard/jobs/walk/steps?before=-1")
    assert (refused.status_code, "before" in refused.text) == (400, True)


async def test_a_failed_job_says_why_and_nothing_listens_any_more(
    site: Site, browser: httpx.AsyncClient
):
    loop = await site.world.running("walk")
    loop.break_down(errors.Unavailable(f"the agent said {HOSTILE}"))
    await site.world.until("walk", JobStatus.FAILED)
    page = whole(await browser.get("/dashboard/jobs/walk"))
    assert "the agent said &#34;&gt;&lt;script&gt;" in page
    assert "hx-sse:connect" not in page


async def test_what_a_job_and_its_metrics_are_called_cannot_break_the_page(
    site: Site, browser: httpx.AsyncClient
):
    world = site.world
    (await world.running("walk")).end()
    await world.jobs.create(ADMIN, world.spec("odd", description=HOSTILE))
    await world.running("odd")
    body = {"step": 0, "values": {"rollout/metrics/" + HOSTILE: 1.0, "training/loss": 0.5}}
    await world.store.append(ACCOUNT, "job_b", [EventDraft(kind=EventKind.METRICS, body=body)])
    for path in ("", "/configuration", "/steps"):
        page = whole(await browser.get(f"/dashboard/jobs/odd{path}"))
        assert "<script>alert" not in page


# ── notes ─────────────────────────────────────────────────────────────────────────────────────


async def test_notes_are_written_shown_and_deleted_with_the_job(
    site: Site, browser: httpx.AsyncClient
):
    given = {"description": "first try", "hypothesis": HOSTILE, "result": "it\r\nlearned"}
    reply = await browser.post("/dashboard/jobs/walk/notes", data=given)
    assert (reply.status_code, reply.headers["location"]) == (303, "/dashboard/jobs/walk#notes")

    page = whole(await browser.get("/dashboard/jobs/walk"))
    assert '<dd class="lines">first try</dd>' in page
    assert "<script>alert" not in page
    assert '<dd class="lines">it\nlearned</dd>' in page

    (await site.world.running("walk")).end()
    await site.world.until("walk", JobStatus.COMPLETED)
    await site.world.jobs.delete(ADMIN, "walk")
    assert await site.world.store.resources(ACCOUNT, NOTES) == []


async def test_a_note_that_is_too_long_is_refused_and_what_was_typed_stays(
    site: Site, browser: httpx.AsyncClient
):
    await browser.post("/dashboard/jobs/walk/notes", data={"result": "as before"})
    given = {"result": "typed", "hypothesis": "x" * 4001}
    reply = await browser.post("/dashboard/jobs/walk/notes", data=given)
    assert reply.status_code == 400
    assert "hypothesis" in reply.text
    assert "has 4001 characters" in reply.text
    assert "typed" in reply.text
    [kept] = await site.world.store.resources(ACCOUNT, NOTES)
    assert kept.body["result"] == "as before"


async def test_a_key_that_may_only_read_sees_no_way_to_change_and_is_refused(site: Site):
    async with site.browser(actions=[Action.READ]) as reader:
        page = whole(await reader.get("/dashboard/jobs/walk"))
        assert "<textarea" not in page
        assert "/stop" not in page
        reply = await reader.post("/dashboard/jobs/walk/notes", data={"result": "mine"})
    assert reply.status_code == 403
    assert await site.world.store.resources(ACCOUNT, NOTES) == []


@pytest.mark.parametrize("path", ["", "/live", "/steps", "/configuration"])
async def test_a_key_of_another_job_sees_nothing_and_nobody_is_asked_to_sign_in(
    site: Site, path: str
):
    async with site.browser(job_ids=["job_other"]) as stranger:
        assert (await stranger.get(f"/dashboard/jobs/walk{path}")).status_code == 403
        assert (await stranger.get(f"/dashboard/jobs/none{path}")).status_code == 404
    async with site.visitor() as nobody:
        reply = await nobody.get(f"/dashboard/jobs/walk{path}")
    assert reply.headers["location"].startswith("/dashboard/sign-in")


# ── configuration ─────────────────────────────────────────────────────────────────────────────


async def test_a_configuration_tells_what_differs_and_how_to_repeat_it(
    site: Site, browser: httpx.AsyncClient
):
    page = whole(await browser.get("/dashboard/jobs/walk/configuration"))
    assert "What differs from the defaults" in page
    assert "<code>&#34;scripted&#34;</code>" in page
    assert "turnwise --url http://server train walk.yaml" in page
    assert "http://server/api/v1/jobs" in page
    assert "$TURNWISE_API_KEY" in page


# ── evaluations ───────────────────────────────────────────────────────────────────────────────


def results(**changes: Any) -> dict[str, Any]:
    """Two models on four rows."""

    def model(name: str, reward: float) -> dict[str, Any]:
        return {
            "name": name,
            "metrics": {
                "eval/reward/mean": reward,
                "eval/reward/mean_low": reward - 0.1,
                "eval/reward/mean_high": reward + 0.1,
                "eval/reward/pass_at_2": 0.75,
            },
            "faults": [{"fault": "agent deadline", "message": HOSTILE, "rollouts": 3}],
            "score_problems": [],
        }

    return {
        "rows": 4,
        "group_size": 2,
        "success_threshold": 1.0,
        "scorers": ["agent"],
        "labels": [],
        "models": [model("walk/2", 0.5), model("base", 0.25)],
        "comparisons": [
            {
                "measure": "reward",
                "against": "base",
                "difference": 0.25,
                "low": 0.1,
                "high": None,
                "p_value": 0.01,
                "rows": 4,
                "sentence": "walk/2 is better than base",
            }
        ],
        **changes,
    }


async def test_an_evaluation_shows_its_tables_once_it_has_results(
    site: Site, browser: httpx.AsyncClient
):
    world = site.world
    (await world.running("walk")).end()
    await world.jobs.create(ADMIN, world.spec("judge", kind=JobKind.EVALUATION))
    await world.running("judge")
    assert "No results yet" in whole(await browser.get("/dashboard/jobs/judge"))

    world.blobs.path(results_key("job_b")).write_text(json.dumps(results()))
    page = whole(await browser.get("/dashboard/jobs/judge"))

    assert "0.5 (0.4 to 0.6)" in page
    assert "pass@2" in page
    assert "+0.25 (+0.1 to –)" in page
    assert "walk/2 is better than base" in page
    assert "<script>alert" not in page
    assert 'id="charts-reward"' not in page


# ── live ──────────────────────────────────────────────────────────────────────────────────────


class Viewer:
    """Somebody who looks at a stream; `until` gives the event that says something."""

    def __init__(self, app: Any, browser: httpx.AsyncClient, path: str) -> None:
        self._events: asyncio.Queue[str] = asyncio.Queue()
        cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"server"), (b"cookie", cookie.encode())],
            "server": ("server", 80),
            "client": ("test", 1),
        }
        self._task = asyncio.create_task(app(scope, self._receive, self._send))

    async def until(self, text: str) -> str:
        async with asyncio.timeout(30):
            while text not in (event := await self._events.get()):
                pass
        return event

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("a viewer sends nothing")

    async def _send(self, message: Any) -> None:
        if body := message.get("body"):
            self._events.put_nowait(body.decode())


async def test_a_step_reaches_everyone_who_looks_and_only_what_changed_is_sent(
    site: Site, browser: httpx.AsyncClient
):
    await site.world.running("walk")
    await train(site, range(2))
    async with site.browser(actions=[Action.READ]) as reader:
        viewers = [
            Viewer(site.app, each, "/dashboard/jobs/walk/live") for each in (browser, reader)
        ]
        try:
            first = [await viewer.until("step 2 of 50") for viewer in viewers]
            assert first[0] == first[1]
            assert 'hx-target="#job-charts"' in first[0]
            await train(site, range(2, 3))
            second = [await viewer.until("step 3 of 50") for viewer in viewers]
            assert second[0] == second[1]
            assert 'hx-target="#job-state"' not in second[0]  # it is RUNNING as before
        finally:
            for viewer in viewers:
                await viewer.leave()


async def test_a_metric_that_was_not_finite_leaves_a_gap_and_the_page_whole(
    site: Site, world: World, browser: httpx.AsyncClient
):
    await record_steps(world, 0.25, math.nan, 0.75)
    for path in ("", "/logs", "/export", "/export/metrics?format=csv"):
        assert (await browser.get(f"/dashboard/jobs/walk{path}")).status_code == 200
    rows = (await browser.get("/dashboard/jobs/walk/export/metrics?format=json")).json()
    assert [row["rollout/reward/mean"] for row in rows] == [0.25, None, 0.75]
