from __future__ import annotations

import html
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.dashboard.kit import Site
from tests.dashboard.whole import whole
from tests.unit.control.kit import ADMIN
from turnwise.domain.access import Account, Action
from turnwise.domain.evaluator import Evaluator

HOSTILE = '"><script>alert(1)</script>'


async def pieces() -> AsyncIterator[bytes]:
    yield b"archive"


async def an_evaluator(site: Site, id: str = "judge") -> None:
    made = Evaluator(
        account_id=ADMIN.account_id,
        evaluator_id=id,
        entry_point="test_math.py::test_math",
        description=HOSTILE,
    )
    await site.evaluators.create(ADMIN, made)


async def a_dataset(site: Site, content: bytes, folder: Path, id: str = "rows") -> None:
    await site.datasets.create(ADMIN, id, {})
    file = folder / "upload"
    file.write_bytes(content)
    await site.datasets.put(ADMIN, id, "rows.jsonl", file, is_whole=True)


async def test_evaluators_are_listed_with_their_state(site: Site, browser: httpx.AsyncClient):
    assert "No evaluators yet" in whole(await browser.get("/dashboard/evaluators"))
    await an_evaluator(site)
    page = whole(await browser.get("/dashboard/evaluators"))
    assert "BUILDING" in page
    assert "waiting for its archive" in page
    assert 'href="/dashboard/evaluators/judge"' in page


async def test_an_evaluators_page_has_its_build_log(site: Site, browser: httpx.AsyncClient):
    await an_evaluator(site)
    page = whole(await browser.get("/dashboard/evaluators/judge"))
    assert "Nothing was printed yet" in page
    assert "jobs/new" not in page
    assert "<script>alert" not in page
    await site.evaluators.put_archive(ADMIN, "judge", pieces(), 7)
    await site.evaluators.build(ADMIN, "judge")
    await site.evaluators.settled(ADMIN, "judge")
    page = whole(await browser.get("/dashboard/evaluators/judge"))
    assert "building judge" in page
    assert "ACTIVE" in page
    assert 'href="/dashboard/jobs/new?evaluator=judge"' in page
    assert "test_math.py::test_math" in page
    form = whole(await browser.get("/dashboard/jobs/new?evaluator=judge"))
    assert 'value="judge"' in form
    whole(await browser.get("/dashboard/evaluators/nothing"), 404)


async def test_a_datasets_page_shows_its_first_rows(
    site: Site, browser: httpx.AsyncClient, tmp_path: Path
):
    assert "No datasets yet" in whole(await browser.get("/dashboard/datasets"))
    lines = [b'{"prompt": "row %d"}' % n for n in range(25)]
    await a_dataset(site, b"\n\n".join(lines), tmp_path)
    listed = whole(await browser.get("/dashboard/datasets"))
    assert "READY" in listed
    assert ">25<" in listed
    page = whole(await browser.get("/dashboard/datasets/rows"))
    assert "s3://turnwise-datasets/rows/" in page
    assert html.unescape(page).count('  "prompt": "row') == 20
    form = whole(await browser.get("/dashboard/jobs/new?dataset=s3://turnwise-datasets/rows/"))
    assert 'value="s3://turnwise-datasets/rows/"' in form


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "{"),
        (b"\xff\xfe", "\ufffd"),
        (b"[" * 5000, "[[[["),
        (b'{"prompt": "' + b"x" * 70_000 + b'"}\n{"prompt": "next"}', "longer than is shown"),
        (HOSTILE.encode(), "&lt;script&gt;"),
    ],
)
async def test_odd_rows_are_shown_as_they_are(
    site: Site, browser: httpx.AsyncClient, tmp_path: Path, content: bytes, told: str
):
    await a_dataset(site, content, tmp_path)
    page = whole(await browser.get("/dashboard/datasets/rows"))
    assert told in page
    assert "<script>alert" not in page
    assert ("next" in page) == (b"next" in content)


async def test_a_dataset_without_files_has_a_page(site: Site, browser: httpx.AsyncClient):
    await site.datasets.create(ADMIN, "empty", {})
    page = whole(await browser.get("/dashboard/datasets/empty"))
    assert "UPLOADING" in page
    assert "No rows yet" in page
    whole(await browser.get("/dashboard/datasets/nothing"), 404)


async def test_uploads_are_the_whole_accounts(site: Site, tmp_path: Path):
    await an_evaluator(site)
    await a_dataset(site, b"{}", tmp_path)
    other = Account(account_id="acc_other", slug="other", number="000000000002")
    await site.world.store.create_account(other)
    async with site.browser("acc_other") as stranger:
        whole(await stranger.get("/dashboard/evaluators/judge"), 404)
        whole(await stranger.get("/dashboard/datasets/rows"), 404)
    async with site.browser(job_ids=["job_a"]) as narrow:
        whole(await narrow.get("/dashboard/evaluators"), 403)
        whole(await narrow.get("/dashboard/datasets"), 403)
    async with site.browser(actions=[Action.READ]) as reader:
        assert "jobs/new" not in whole(await reader.get("/dashboard/evaluators/judge"))
        assert "jobs/new" not in whole(await reader.get("/dashboard/datasets/rows"))
