"""The list of a job's rollouts, on a handful of them."""

import re
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path

import httpx
import pytest

from tests import builders
from tests.dashboard.rollout_kit import Site, Step, asked, conversation, open_site, record, said
from turnwise.domain.rollout import Blame, Fault, Purpose

AT = "/dashboard/jobs/walk/rollouts"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Signed in where job walk has rollouts 0 to 5, of rewards 0.0 to 0.4 and a failed one."""
    async with open_site(tmp_path) as site:
        await site.store.default_account()
        await site.store.create_job(builders.job())
        await play(site)
        async with site.client() as signed_in:
            yield signed_in


async def play(site: Site) -> None:
    for n in range(6):
        its = builders.rollout(
            f"rol_{n}",
            row_index=n,
            step=n // 4,
            group_id=f"grp_{n // 2}",
            slot=n % 2,
            purpose=Purpose.VALIDATION if n == 4 else Purpose.TRAIN,
        )
        step = Step([asked(f"Look at valve {n}.")], said(f"Valve {n} is <b>shut</b>."))
        fault = Fault(blame=Blame.AGENT, code="http_error") if n == 5 else None
        await record(
            site.store,
            its,
            conversation(step),
            rewards=None if fault else (n / 10,),
            fault=fault,
        )


async def shown(client: httpx.AsyncClient, query: str = "") -> list[str]:
    """The ids of the rollouts that a page lists, in order."""
    answer = await client.get(AT + query)
    assert answer.status_code == 200, answer.text
    return re.findall(r'href="/dashboard/rollouts/(rol_\d)"', answer.text)


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("", "012345"),
        ("?step=1", "45"),
        ("?row=3", "3"),
        ("?status=FAILED", "5"),
        ("?purpose=validation", "4"),
        ("?valid=no", "5"),
        ("?valid=yes&step=0", "0123"),
        ("?reason=http_error", "5"),
        ("?min=0.1&below=0.3", "12"),
        ("?group=grp_1", "23"),
        ("?sort=reward&order=desc", "432105"),
        ("?sort=reward", "012345"),
        ("?order=desc", "543210"),
        ("?step=7", ""),
        ("?step=&row=&status=&text=", "012345"),
    ],
)
async def test_the_address_decides_what_is_listed(client: httpx.AsyncClient, query: str, ids: str):
    assert await shown(client, query) == [f"rol_{n}" for n in ids]


async def test_pages_follow_each_other_and_lead_back(client: httpx.AsyncClient):
    seen = []
    page = (await client.get(AT + "?size=2&sort=reward&order=desc")).text
    addresses = []
    while following := re.search(r'rel="next" href="([^"]+)"', page):
        seen += re.findall(r'href="/dashboard/rollouts/(rol_\d)"', page)
        addresses.append(unescape(following[1]))
        page = (await client.get(addresses[-1])).text
    seen += re.findall(r'href="/dashboard/rollouts/(rol_\d)"', page)
    back = re.search(r'rel="prev" href="([^"]+)"', page)

    assert seen == [f"rol_{n}" for n in "432105"]
    assert back
    assert unescape(back[1]) == addresses[-2]


async def test_rows_tell_what_was_asked_and_replied_and_what_became_of_it(
    client: httpx.AsyncClient,
):
    page = (await client.get(AT + "?row=3")).text
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())

    assert "row 3 · 2 step 0 · siblings 0.300 ✓ valid – Look at valve 3." in text
    assert "Valve 3 is <b>shut</b>. 1 2 10 s" in text
    assert "Filtered, of 6 rollouts: row 3 ✕" in text


async def test_the_bars_count_and_lead_to_what_they_count(client: httpx.AsyncClient):
    page = (await client.get(AT)).text

    bars = re.findall(r'<a href="([^"]+)" aria-label="(\d+) rollouts with a score from', page)
    assert [int(count) for _, count in bars if count != "0"] == [1] * 5
    assert "5 scored, 1 without a score" in page
    lists = [await shown(client, unescape(href).removeprefix(AT)) for href, n in bars if n != "0"]
    assert lists == [[f"rol_{n}"] for n in range(5)]


async def test_a_sample_is_the_same_for_a_seed_and_another_for_the_next(
    client: httpx.AsyncClient,
):
    page = (await client.get(AT + "?step=0&sample=2&seed=1")).text
    again = await shown(client, "?step=0&sample=2&seed=1")

    assert len(again) == 2 == len(set(again))
    assert re.findall(r'href="/dashboard/rollouts/(rol_\d)"', page) == again
    assert f'href="{AT}?step=0&amp;sample=2&amp;seed=2">Another ten' in page
    others = [await shown(client, f"?step=0&sample=2&seed={seed}") for seed in range(2, 9)]
    assert any(sorted(other) != sorted(again) for other in others)


async def test_what_htmx_asks_for_is_the_part_that_filters_change(client: httpx.AsyncClient):
    asked_for = "?text=&step=1&row=&status=&size=50&sort=seq"

    part = await client.get(AT + asked_for, headers={"HX-Request": "true"})

    assert part.text.lstrip().startswith('<div id="found"')
    assert "<form" not in part.text
    assert part.headers["hx-push-url"] == f"{AT}?step=1"
    assert part.headers["vary"] == "HX-Request"


async def test_an_order_stays_when_a_filter_changes(client: httpx.AsyncClient):
    page = (await client.get(AT + "?sort=tokens&order=desc")).text

    assert '<input type="hidden" name="sort" value="tokens" form="filters">' in page
    assert '<input type="hidden" name="order" value="desc" form="filters">' in page
    assert 'aria-sort="descending"' in page


@pytest.mark.parametrize(
    ("query", "named"), [("?step=x", "step"), ("?after=x", "after"), ("?text=--", "text")]
)
async def test_an_address_that_cannot_be_says_what_is_wrong(
    client: httpx.AsyncClient, query: str, named: str
):
    answer = await client.get(AT + query)

    assert answer.status_code == 400
    assert named in re.findall(r'role="alert">([^<]+)', answer.text)[0]


async def test_a_job_without_rollouts_says_so(tmp_path: Path):
    async with open_site(tmp_path) as site:
        await site.store.default_account()
        await site.store.create_job(builders.job())
        async with site.client() as client:
            page = (await client.get(AT)).text

    assert "No rollouts yet" in page
    assert "bars" not in page
