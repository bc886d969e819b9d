import httpx
import pytest

from tests.dashboard.kit import Site
from turnwise.dashboard.app import MAX_FORM_BYTES
from turnwise.dashboard.session import COOKIE
from turnwise.domain.access import Action


async def test_a_page_asks_a_stranger_to_sign_in_and_leads_back_after(site: Site):
    async with site.visitor() as visitor:
        asked = await visitor.get("/dashboard/jobs/walk/logs?level=error")
        assert asked.status_code == 303
        assert asked.headers["location"] == (
            "/dashboard/sign-in?next=%2Fdashboard%2Fjobs%2Fwalk%2Flogs%3Flevel%3Derror"
        )
        secret, _ = await site.keyring.create("acc_default", "mine")
        form = {"key": f" {secret}\n", "next": "/dashboard/jobs/walk/logs?level=error"}
        signed_in = await visitor.post("/dashboard/sign-in", data=form)
        assert signed_in.headers["location"] == "/dashboard/jobs/walk/logs?level=error"
        assert (await visitor.get(signed_in.headers["location"])).status_code == 200


async def test_the_cookie_is_for_the_pages_alone_and_holds_no_secret(site: Site):
    async with site.visitor() as visitor:
        secret, _ = await site.keyring.create("acc_default", "mine")
        reply = await visitor.post("/dashboard/sign-in", data={"key": secret})
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Path=/dashboard" in cookie
    assert secret not in cookie


async def test_a_wrong_key_is_refused_on_the_form(site: Site):
    async with site.visitor() as visitor:
        reply = await visitor.post("/dashboard/sign-in", data={"key": "tw_wrong"})
    assert reply.status_code == 401
    assert "No such key" in reply.text
    assert "set-cookie" not in reply.headers


async def test_a_revoked_key_ends_its_sessions(site: Site):
    async with site.visitor() as visitor:
        secret, key = await site.keyring.create("acc_default", "mine")
        await visitor.post("/dashboard/sign-in", data={"key": secret})
        assert (await visitor.get("/dashboard")).status_code == 200
        await site.keyring.revoke("acc_default", key.key_id)
        assert (await visitor.get("/dashboard")).status_code == 303


@pytest.mark.parametrize("cookie", ["", "abc", "mcnocjmdofokimhn" * 8, "\x00"])
async def test_a_cookie_that_was_not_given_out_is_no_session(site: Site, cookie: str):
    async with site.visitor() as visitor:
        reply = await visitor.get("/dashboard", headers={"Cookie": f"{COOKIE}={cookie}"})
    assert reply.status_code == 303


async def test_signing_out_forgets_the_browser(browser: httpx.AsyncClient):
    assert (await browser.post("/dashboard/sign-out")).status_code == 303
    assert (await browser.get("/dashboard")).status_code == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Referer": "http://evil.example/page"},
        {"Referer": "http://server.evil.example/dashboard"},
    ],
)
async def test_a_form_of_another_site_changes_nothing(
    browser: httpx.AsyncClient, headers: dict[str, str]
):
    reply = await browser.post("/dashboard/sign-out", headers=headers)
    assert reply.status_code == 403
    assert (await browser.get("/dashboard")).status_code == 200


async def test_another_site_signs_nobody_in_with_its_own_key(site: Site):
    secret, _ = await site.keyring.create("acc_default", "mine")
    async with site.visitor() as visitor:
        reply = await visitor.post(
            "/dashboard/sign-in", data={"key": secret}, headers={"Origin": "http://evil.example"}
        )
    assert reply.status_code == 403
    assert "set-cookie" not in reply.headers


async def test_a_form_of_any_size_is_not_read_into_memory(site: Site):
    form = {"key": "x" * MAX_FORM_BYTES}
    files = {"key": ("key.bin", b"x" * MAX_FORM_BYTES)}
    async with site.visitor() as visitor:
        for reply in (
            await visitor.post("/dashboard/sign-in", data=form),
            await visitor.post("/dashboard/sign-in", files=files),
            await visitor.post("/dashboard/jobs/walk/notes", data=form),
        ):
            assert reply.status_code == 413
            assert "the form is larger than 2097152 bytes" in reply.text


async def test_a_fault_is_told_without_its_words_and_under_the_same_headers(
    site: Site, browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
):
    async def broken(*_: object) -> None:
        raise RuntimeError("secret words")

    monkeypatch.setattr(type(site.world.jobs), "describe", broken)
    reply = await browser.get("/dashboard/jobs/walk/logs")
    assert reply.status_code == 500
    assert "secret words" not in reply.text
    assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
    assert reply.headers["cache-control"] == "no-store"


async def test_every_answer_forbids_inline_script_and_frames(browser: httpx.AsyncClient):
    for path in ("/dashboard", "/dashboard/sign-in", "/dashboard/nowhere"):
        headers = (await browser.get(path)).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


async def test_what_is_not_there_is_said_on_a_page(browser: httpx.AsyncClient):
    for path in ("/dashboard/nowhere", "/dashboard/jobs/none/logs"):
        reply = await browser.get(path)
        assert reply.status_code == 404
        assert "<h1>Not here</h1>" in reply.text


async def test_static_files_need_no_key_and_nothing_above_them_is_served(site: Site):
    async with site.visitor() as visitor:
        page = (await visitor.get("/dashboard/sign-in")).text
        sheet = page.split('rel="stylesheet" href="')[2].split('"')[0]
        found = await visitor.get(sheet)
        assert found.status_code == 200
        assert "immutable" in found.headers["cache-control"]
        folder = sheet.rpartition("/")[0]
        for path in ("..%2Fapp.py", "%2e%2e/app.py", "nothing.css", "vendor", "a%00.css"):
            assert (await visitor.get(f"{folder}/{path}")).status_code == 404


async def test_a_key_without_the_right_to_read_sees_no_job(site: Site):
    async with site.browser(actions=[Action.SAMPLE]) as browser:
        reply = await browser.get("/dashboard/jobs/walk/logs")
    assert reply.status_code == 403
    assert "this key may not read" in reply.text
