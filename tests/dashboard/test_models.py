from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import builders
from tests.builders import ACCOUNT
from tests.dashboard.kit import Site
from tests.dashboard.whole import whole
from turnwise.domain.access import Account, Action
from turnwise.domain.event import EventDraft, EventKind
from turnwise.modeling.fingerprint import fingerprint

HOSTILE = '"><script>alert(1)</script>'
CONFIG = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
#: A file of no tensors: the length of its header, and that.
SAFETENSORS = struct.pack("<Q", 2) + b"{}"
YES = {"confirmed": "yes"}


async def registered(site: Site, *versions: int, **changes: Any) -> None:
    """Versions of the group "walk", of the job walk's steps."""
    metadata = {
        "job": {"id": "job_a", "name": "walk", "incarnation": 1},
        "metrics": {"rollout/reward/mean": 0.625},
        "dataset": {"path": "/data/train.jsonl", "sha256": "d" * 64},
        "parent": "",
        "code": "turnwise 0",
    }
    given: dict[str, Any] = {"job_id": "job_a", "metadata": metadata} | changes
    for version in versions:
        await site.world.store.register([builders.package(version, **given)])


async def test_models_stand_in_groups_with_what_was_measured(
    site: Site, browser: httpx.AsyncClient
):
    await registered(site, 1, 2)
    values = {"val/reward/mean": 0.875, "val/reward/pass_at_1": 0.5}
    body = {"step": 2, "purpose": "validation", "values": values}
    draft = EventDraft(kind=EventKind.EVALUATION, body=body)
    await site.world.store.append(ACCOUNT, "job_a", [draft])
    page = whole(await browser.get("/dashboard/models"))
    assert "2 versions" in page
    assert page.count("0.625") == 2
    assert page.count("0.875") == 1
    assert "50 %" in page
    assert 'href="/dashboard/models/walk/2"' in page
    assert 'href="/dashboard/jobs/walk"' in page
    whole(await browser.get("/dashboard/models?name=nothing"))
    assert "No such models" in whole(await browser.get("/dashboard/models?name=nothing"))
    assert "No models yet" in whole(await browser.get("/dashboard/models?kind=checkpoint"))
    assert "allowed: adapter" in whole(await browser.get("/dashboard/models?kind=x"), 400)


async def test_a_version_says_where_it_comes_from_and_how_to_call_it(
    site: Site, browser: httpx.AsyncClient
):
    await registered(site, 1)
    page = whole(await browser.get("/dashboard/models/walk/1"))
    assert "curl http://server/v1/chat/completions" in page
    assert "&#34;model&#34;: &#34;walk/1&#34;" in page
    assert "d" * 64 in page
    assert 'href="/dashboard/jobs/new?from_model=walk/1"' in page
    assert 'href="/dashboard/models/walk/1/archive?merged=1"' in page
    whole(await browser.get("/dashboard/models/walk/2"), 404)
    whole(await browser.get("/dashboard/models/nothing"), 404)


async def test_a_long_group_comes_in_pages(site: Site, browser: httpx.AsyncClient):
    await registered(site, *range(1, 53))
    first = whole(await browser.get("/dashboard/models/walk"))
    assert first.count('<th scope="row">') == 50
    assert 'href="/dashboard/models/walk?before=3"' in first
    assert whole(await browser.get("/dashboard/models/walk?before=3")).count('scope="row"') == 2


async def test_a_pruned_version_is_marked_and_cannot_be_taken(
    site: Site, browser: httpx.AsyncClient
):
    await registered(site, 1, pruned_at=2000.0)
    assert "pruned" in whole(await browser.get("/dashboard/models"))
    page = whole(await browser.get("/dashboard/models/walk/1"))
    assert "/archive" not in page
    assert "from_model" not in page
    assert "pruned" in whole(await browser.get("/dashboard/models/walk/1/archive"), 409)


async def test_a_model_that_no_job_made_has_a_page_too(site: Site, browser: httpx.AsyncClient):
    imported = {"imported_from": f"s3://b/{HOSTILE}"}
    await registered(site, 1, job_id="", metadata=imported)
    page = whole(await browser.get("/dashboard/models/walk/1"))
    assert "Registered from" in page
    assert "<script>alert" not in page
    assert "registered by hand" in whole(await browser.get("/dashboard/models"))


async def test_the_models_of_a_deleted_job_stay(site: Site, browser: httpx.AsyncClient):
    await registered(site, 1, job_id="job_gone")
    page = whole(await browser.get("/dashboard/models/walk/1"))
    assert "(deleted)" in page


async def test_an_adapter_is_downloaded_as_a_tar(
    site: Site, browser: httpx.AsyncClient, tmp_path: Path
):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    (folder / "adapter_model.safetensors").write_bytes(SAFETENSORS)
    await registered(site, 1, path=str(folder), sha256=fingerprint(folder))
    reply = await browser.get("/dashboard/models/walk/1/archive")
    assert reply.status_code == 200
    assert reply.headers["content-disposition"] == 'attachment; filename="walk-1.tar"'
    with tarfile.open(fileobj=io.BytesIO(reply.content)) as tar:
        assert tar.getnames() == ["adapter_config.json", "adapter_model.safetensors"]
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"r": 4}))
    assert "is damaged" in whole(await browser.get("/dashboard/models/walk/1/archive"), 500)


async def test_a_version_is_deleted_once_it_was_asked_for_twice(
    site: Site, browser: httpx.AsyncClient
):
    await registered(site, 1, 2, job_id="job_gone")
    asked = whole(await browser.post("/dashboard/models/walk/1/delete"))
    assert "Delete model walk/1?" in asked
    reply = await browser.post("/dashboard/models/walk/1/delete", data=YES)
    assert (reply.status_code, reply.headers["location"]) == (303, "/dashboard/models/walk")
    page = whole(await browser.get("/dashboard/models/walk"))
    assert [n for n in (1, 2) if f"walk/{n}" in page] == [2]


async def test_a_model_that_a_job_needs_stays_and_the_page_says_why(
    site: Site, browser: httpx.AsyncClient
):
    await registered(site, 1)
    page = whole(await browser.post("/dashboard/models/walk/1/delete", data=YES), 409)
    assert 'role="alert"' in page
    assert (await site.world.store.package(ACCOUNT, "walk/1")).version == 1


@pytest.mark.parametrize("path", ["", "/walk", "/walk/1", "/walk/1/archive", "/walk/1/delete"])
async def test_another_accounts_models_are_not_there(site: Site, path: str):
    await registered(site, 1)
    other = Account(account_id="acc_other", slug="other", number="000000000002")
    await site.world.store.create_account(other)
    async with site.browser("acc_other") as stranger:
        page = whole(await stranger.get(f"/dashboard/models{path}"), 404 if path else 200)
    assert "job_a" not in page


async def test_a_read_only_key_may_look_but_not_delete(site: Site):
    await registered(site, 1)
    async with site.browser(actions=[Action.READ]) as reader:
        page = whole(await reader.get("/dashboard/models/walk/1"))
        assert "delete" not in page
        assert "jobs/new" not in page
        whole(await reader.post("/dashboard/models/walk/1/delete", data=YES), 403)
    assert len(await site.world.store.packages(ACCOUNT)) == 1


async def test_a_key_for_certain_jobs_sees_their_models_alone(site: Site):
    await registered(site, 1)
    await registered(site, 1, job_id="job_b", group="run", package_id="package_b")
    async with site.browser(job_ids=["job_b"]) as narrow:
        page = whole(await narrow.get("/dashboard/models"))
        whole(await narrow.get("/dashboard/models/walk/1"), 403)
    assert "models/run/1" in page
    assert "models/walk" not in page
