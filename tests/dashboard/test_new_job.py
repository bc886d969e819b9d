from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests import builders
from tests.builders import ACCOUNT
from tests.dashboard.kit import Site
from tests.dashboard.whole import whole
from tests.unit.control.kit import ADMIN
from turnwise.control.job_file import as_mapping
from turnwise.domain.access import Account, Action
from turnwise.domain.job import AgentKind, JobKind

HOSTILE = '"><script>alert(1)</script>'


def filled(site: Site, **changes: str) -> dict[str, str]:
    """The form of a small training job."""
    job_file = site.world.job_file("run")
    values = {"kind": "train", "rest": "", "agent.kind": "scripted"}
    return values | {key: job_file[key] for key in ("name", "model", "dataset")} | changes


def value_of(page: str, name: str) -> str:
    """What an input of the form holds."""
    found = re.search(rf'<input [^>]*name="{re.escape(name)}" value="([^"]*)"', page)
    assert found, name
    return html.unescape(found[1])


def preview_of(page: str) -> Any:
    return yaml.safe_load(html.unescape(page.split('id="job-file-preview">')[1].split("</pre>")[0]))


async def test_a_job_is_started_from_the_form(site: Site, browser: httpx.AsyncClient):
    whole(await browser.get("/dashboard/jobs/new"))
    form = filled(site) | {"batch.group_size": "4", "optimizer.learning_rate": "1e-5"}
    reply = await browser.post("/dashboard/jobs/new", data=form)
    assert (reply.status_code, reply.headers["location"]) == (303, "/dashboard/jobs/run")
    spec = (await site.world.jobs.describe(ADMIN, "run")).spec
    assert (spec.batch.group_size, spec.optimizer.learning_rate) == (4, 1e-5)
    assert spec.agent.kind is AgentKind.SCRIPTED


async def test_an_evaluation_is_started_from_its_form(site: Site, browser: httpx.AsyncClient):
    whole(await browser.get("/dashboard/jobs/new?kind=evaluation"))
    form = filled(site, kind="evaluation") | {"evaluation.max_rows": "1"}
    assert (await browser.post("/dashboard/jobs/new", data=form)).status_code == 303
    spec = (await site.world.jobs.describe(ADMIN, "run")).spec
    assert (spec.kind, spec.evaluation.max_rows) == (JobKind.EVALUATION, 1)


@pytest.mark.parametrize(
    ("field", "text", "told"),
    [
        ("batch.group_size", "1", "use at least 2"),
        ("batch.group_size", "many", "is not a whole number"),
        ("name", "not a name", "use 1 to 63 letters"),
        ("name", "", "is needed"),
        ("dataset", "", "is needed"),
        ("model", "relative", "give its absolute path"),
        ("agent.url", "nowhere", "use http://host:port"),
        ("sampling_params.temperature", "0", "use 1 for training"),
        ("evaluation.models", "x", ""),
    ],
)
async def test_an_error_stands_beside_the_field_that_it_names_and_nothing_is_lost(
    site: Site, browser: httpx.AsyncClient, field: str, text: str, told: str
):
    if field == "evaluation.models":
        form = filled(site, kind="evaluation")
        told = "is neither a registered model nor a PEFT folder"
    else:
        form = filled(site)
    form |= {"rest": "seed: 7\n", field: text, "description": HOSTILE}
    if field == "agent.url":
        form["agent.kind"] = "http"
    page = whole(await browser.post("/dashboard/jobs/new", data=form), 400)
    id = field.replace(".", "-")
    assert f'href="#{id}"' in page
    beside = page.split(f'id="{id}-problem">')[1].split("</span>")[0]
    assert told in html.unescape(beside)
    assert "MISSING" not in page
    assert value_of(page, "dataset") == form["dataset"]
    assert value_of(page, field) == text
    assert value_of(page, "description") == HOSTILE
    assert value_of(page, "rest") == "seed: 7\n"
    assert "<script>alert" not in page
    assert set(await site.world.statuses()) == {"walk"}


async def test_a_taken_name_is_told_beside_the_name(site: Site, browser: httpx.AsyncClient):
    reply = await browser.post("/dashboard/jobs/new", data=filled(site, name="walk"))
    assert "exists already" in whole(reply, 409).split('id="name-problem">')[1]


async def test_an_agent_that_is_not_registered_is_told_beside_it(
    site: Site, browser: httpx.AsyncClient
):
    form = filled(site) | {"agent.name": "nobody"}
    page = whole(await browser.post("/dashboard/jobs/new", data=form), 404)
    assert "does not exist" in page.split('id="agent-name-problem">')[1]


async def test_the_preview_is_the_job_file_of_the_form(site: Site, browser: httpx.AsyncClient):
    form = filled(site) | {"lora.rank": "8", "rest": "lora:\n  alpha: 16.0\n"}
    reply = await browser.post("/dashboard/jobs/new/preview", data=form)
    assert reply.status_code == 200
    assert preview_of(reply.text) == {
        "name": "run",
        "model": form["model"],
        "dataset": form["dataset"],
        "agent": {"kind": "scripted"},
        "lora": {"rank": 8, "alpha": 16.0},
    }


async def test_form_and_editor_become_each_other(site: Site, browser: httpx.AsyncClient):
    form = filled(site) | {"rest": "seed: 7\n", "do": "yaml"}
    editor = whole(await browser.post("/dashboard/jobs/new", data=form))
    text = html.unescape(re.split(r"<textarea[^>]*>", editor)[1].split("</textarea>")[0])
    assert yaml.safe_load(text)["seed"] == 7
    back = whole(await browser.post("/dashboard/jobs/new", data={"job_file": text, "do": "form"}))
    assert value_of(back, "name") == "run"
    assert value_of(back, "rest") == "seed: 7\n"
    checked = await browser.post("/dashboard/jobs/new", data={"job_file": text, "do": "check"})
    assert "This is a valid job file" in whole(checked)
    assert set(await site.world.statuses()) == {"walk"}
    started = await browser.post("/dashboard/jobs/new", data={"job_file": text, "do": "start"})
    assert started.status_code == 303
    assert (await site.world.jobs.describe(ADMIN, "run")).spec.seed == 7


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [", "is not YAML"),
        ("just words", "is not a mapping of settings"),
        ("", "is not a mapping of settings"),
        ("name: a\nname: b\n", "is set twice"),
        (BOMB, "aliases are not taken here"),
        ("[" * 5000, "is not YAML"),
        ('name: "\\ud800"', "holds half a character"),
        ("naem: run", "did you mean name?"),
        (f"name: '{HOSTILE}'\nmodel: /m\ndataset: /d\nagent: {{}}\n", "is not a job name"),
        ("x: " + "y" * 70_000, "is too long"),
    ],
)
async def test_a_bad_job_file_is_kept_in_the_editor_with_what_is_wrong(
    site: Site, browser: httpx.AsyncClient, text: str, told: str
):
    reply = await browser.post("/dashboard/jobs/new", data={"job_file": text, "do": "start"})
    page = whole(reply, 400)
    assert told in html.unescape(page)
    assert "<script>alert" not in page
    if len(text) < 70_000:
        kept = html.unescape(re.split(r"<textarea[^>]*>", page)[1].split("</textarea>")[0])
        assert kept.lstrip("\n") == text
    assert set(await site.world.statuses()) == {"walk"}


async def test_another_jobs_configuration_gets_a_fresh_name(site: Site, browser: httpx.AsyncClient):
    spec = site.world.spec("run-2", seed=7, description="again")
    await site.world.jobs.create(ADMIN, spec)
    page = whole(await browser.get("/dashboard/jobs/new?from=run-2"))
    assert value_of(page, "name") == "run-3"
    form = {"kind": "train", "rest": value_of(page, "rest"), "agent.kind": "scripted"}
    form |= {name: value_of(page, name) for name in ("name", "model", "dataset", "description")}
    assert (await browser.post("/dashboard/jobs/new", data=form)).status_code == 303
    first, second = [
        as_mapping((await site.world.jobs.describe(ADMIN, name)).spec)
        for name in ("run-2", "run-3")
    ]
    assert second == first | {"name": "run-3"}
    whole(await browser.get("/dashboard/jobs/new?from=nothing"), 404)


@pytest.mark.parametrize(
    ("kind", "query", "expected"),
    [
        ("adapter", "", {"input_adapter": "walk/1"}),
        ("checkpoint", "", {"resume_from": "walk/1"}),
        (
            "adapter",
            "&kind=evaluation",
            {"kind": "evaluation", "evaluation": {"models": ["base", "walk/1"]}},
        ),
    ],
)
async def test_a_registered_model_begins_a_job(
    site: Site, browser: httpx.AsyncClient, kind: str, query: str, expected: dict[str, Any]
):
    config = as_mapping(site.world.spec("walk", output_group="walk"))
    metadata = {"job": {"name": "walk", "incarnation": 1}, "config": config}
    package = builders.package(kind=kind, job_id="job_a", metadata=metadata)
    await site.world.store.register([package])
    page = whole(await browser.get(f"/dashboard/jobs/new?from_model=walk/1{query}"))
    made = preview_of(page)
    assert made == made | expected
    assert made["model"] == "/models/tiny"
    assert made["dataset"] == config["dataset"]
    assert "output_group" not in made
    assert made["name"] not in ("walk", "")


async def test_a_base_model_is_named_as_in_the_catalogue(site: Site, browser: httpx.AsyncClient):
    folder: Path = site.world.folder / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    assert '<option value="tiny">' in whole(await browser.get("/dashboard/jobs/new"))
    reply = await browser.post("/dashboard/jobs/new", data=filled(site, model="tiny"))
    assert reply.status_code == 303
    assert (await site.world.jobs.describe(ADMIN, "run")).spec.model == str(folder.resolve())


async def test_another_account_may_not_name_files_of_the_server(site: Site):
    other = Account(account_id="acc_other", slug="other", number="000000000002")
    await site.world.store.create_account(other)
    async with site.browser("acc_other") as stranger:
        page = whole(await stranger.post("/dashboard/jobs/new", data=filled(site)), 403)
    assert "only the operator" in html.unescape(page)
    assert value_of(page, "name") == "run"


async def test_who_may_not_create_jobs_sees_no_form(site: Site):
    for rights in ({"actions": [Action.READ]}, {"job_ids": ["job_a"]}):
        async with site.browser(**rights) as browser:
            whole(await browser.get("/dashboard/jobs/new"), 403)
            whole(await browser.post("/dashboard/jobs/new", data=filled(site)), 403)
    assert set(await site.world.statuses()) == {"walk"}


async def test_a_form_of_another_site_starts_nothing(site: Site, browser: httpx.AsyncClient):
    headers = {"origin": "http://evil.example"}
    whole(await browser.post("/dashboard/jobs/new", data=filled(site), headers=headers), 403)
    assert await site.world.store.jobs(ACCOUNT) != []
    assert set(await site.world.statuses()) == {"walk"}
