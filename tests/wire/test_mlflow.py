"""The door to MLflow: who comes in, to what, and what passes through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from tests.builders import ACCOUNT, SetClock
from turnwise import errors
from turnwise.access.keys import Keyring
from turnwise.access.links import MLFLOW_SESSION, MLFLOW_SIGN_IN, Links
from turnwise.access.vault import Vault
from turnwise.domain.access import Account, Action
from turnwise.storage.sql import SqlStore
from turnwise.wire.mlflow import COOKIE, MlflowDoor

OTHER = Account(account_id="acc_other", slug="other", number="000000000002")
SEARCH = "/mlflow/api/2.0/mlflow/experiments/get-by-name"


class Servers:
    """One MLflow per account, each a few lines that say what reached them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing = ""
        self.down: errors.Unavailable | None = None
        self.seen: list[tuple[str, str, str, dict[str, str], bytes]] = []
        self._runners: list[web.AppRunner] = []

    async def address(self, account_id: str) -> str:
        if self.down is not None:
            raise self.down
        return str(self.folder / f"{account_id}.sock")

    async def start(self, account_id: str) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            headers = dict(request.headers)
            self.seen.append((account_id, request.method, request.raw_path, headers, body))
            if request.path == "/get-artifact":
                reply = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
                await reply.prepare(request)
                for _ in range(64):
                    await reply.write(b"x" * 65536)
                return reply
            if request.path == "/api/2.0/mlflow/moved/x":
                return web.Response(status=308, headers={"Location": "http://localhost/api/there"})
            headers = {"Set-Cookie": "session=theirs", "X-Frame-Options": "SAMEORIGIN"}
            return web.json_response({"account": account_id}, headers=headers)

        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(self.folder / f"{account_id}.sock")).start()
        self._runners.append(runner)

    async def close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()


class World:
    def __init__(self, store: SqlStore, servers: Servers, keyring: Keyring, links: Links) -> None:
        self.store = store
        self.servers = servers
        self.keyring = keyring
        self.links = links
        self.settled: list[str] = []
        self.door = MlflowDoor(
            servers,
            keyring,
            links,
            account=store.account,
            region="us-west-2",
            settle=self._settle,
        )
        transport = httpx.ASGITransport(self.door)  # type: ignore[arg-type]
        self.http = httpx.AsyncClient(transport=transport, base_url="http://tw.test:8420")

    async def _settle(self, account_id: str) -> None:
        self.settled.append(account_id)

    async def key(self, account_id: str = ACCOUNT, **limits: Any) -> tuple[str, str]:
        """A key's secret, and its access key id."""
        secret, key = await self.keyring.create(account_id, "test", **limits)
        return secret, key.access_key_id

    async def get(self, path: str, secret: str = "", **headers: str) -> httpx.Response:
        bearer = {"Authorization": f"Bearer {secret}"} if secret else {}
        return await self.http.get(path, headers=headers | bearer)

    async def sign_in(self, access_key_id: str, *, session_s: int = 3600) -> httpx.Response:
        token = self.links.make(MLFLOW_SIGN_IN, access_key_id, expires_s=60, session_s=session_s)
        return await self.http.get(f"/mlflow/auth?authToken={token}")


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
async def world(tmp_path: Path, clock: SetClock) -> AsyncIterator[World]:
    store = SqlStore.in_memory()
    await store.default_account()
    await store.create_account(OTHER)
    vault = Vault.open(tmp_path / "master.key")
    servers = Servers(tmp_path)
    for account_id in (ACCOUNT, OTHER.account_id):
        await servers.start(account_id)
    made = World(store, servers, Keyring(store, vault, clock=clock), Links(vault, clock))
    yield made
    await made.http.aclose()
    await made.door.close()
    await servers.close()
    await store.close()


async def test_each_key_is_led_to_its_own_accounts_mlflow(world: World) -> None:
    mine, _ = await world.key()
    theirs, _ = await world.key(OTHER.account_id)
    assert (await world.get(SEARCH, mine)).json() == {"account": ACCOUNT}
    assert (await world.get(SEARCH, theirs)).json() == {"account": OTHER.account_id}
    assert world.settled == [ACCOUNT, OTHER.account_id]


async def test_an_app_of_another_account_is_refused(world: World) -> None:
    mine, _ = await world.key()
    for number, status in (("000000000001", 200), (OTHER.number, 403)):
        for header in ("x-sm-mlflow-app-arn", "x-mlflow-sm-tracking-server-arn"):
            kind = "mlflow-app" if "app" in header else "mlflow-tracking-server"
            arn = f"arn:aws:sagemaker:us-west-2:{number}:{kind}/default"
            answer = await world.get(SEARCH, mine, **{header: arn})
            assert answer.status_code == status


async def test_a_sign_in_gives_a_cookie_for_this_folder_and_the_pages(world: World) -> None:
    _, access_key_id = await world.key()
    answer = await world.sign_in(access_key_id)
    assert (answer.status_code, answer.headers["location"]) == (302, "./")
    assert "HttpOnly; SameSite=Lax" in answer.headers["set-cookie"]
    assert (await world.get("/mlflow/")).json() == {"account": ACCOUNT}  # httpx keeps the cookie
    _, _, path, headers, _ = world.servers.seen[-1]
    assert path == "/"
    assert "Cookie" not in headers


async def test_an_expired_sign_in_and_an_expired_session_are_refused(
    world: World, clock: SetClock
) -> None:
    _, access_key_id = await world.key()
    token = world.links.make(MLFLOW_SIGN_IN, access_key_id, expires_s=5, session_s=3600)
    clock.at += 5
    late = await world.http.get(f"/mlflow/auth?authToken={token}")
    assert late.status_code == 403
    assert "expired" in late.json()["message"]
    await world.sign_in(access_key_id, session_s=1800)
    assert (await world.get(SEARCH)).status_code == 200
    clock.at += 1800
    assert (await world.get(SEARCH)).status_code == 403


async def test_a_token_is_good_for_its_purpose_only(world: World) -> None:
    _, access_key_id = await world.key()
    sign_in = world.links.make(MLFLOW_SIGN_IN, access_key_id, expires_s=60, session_s=60)
    session = world.links.make(MLFLOW_SESSION, access_key_id, expires_s=60)
    assert (await world.get(SEARCH, Cookie=f"{COOKIE}={sign_in}")).status_code == 403
    answer = await world.http.get(f"/mlflow/auth?authToken={session}")
    assert answer.status_code == 403
    assert sign_in.isalpha()
    for forged in (session[:-1] + "a", session[:40], "", "a", "zz"):
        if forged != session:
            assert (await world.get(SEARCH, Cookie=f"{COOKIE}={forged}")).status_code == 403


async def test_a_revoked_key_takes_its_sessions_with_it(world: World) -> None:
    _, key = await world.keyring.create(ACCOUNT, "test")
    await world.sign_in(key.access_key_id)
    assert (await world.get(SEARCH)).status_code == 200
    await world.keyring.revoke(ACCOUNT, key.key_id)
    assert (await world.get(SEARCH)).status_code == 403


async def test_reading_and_changing_are_two_rights(world: World) -> None:
    reader, _ = await world.key(actions={Action.READ})
    writer, _ = await world.key(actions={Action.MANAGE})
    headers = [{"Authorization": f"Bearer {secret}"} for secret in (reader, writer)]

    async def posts(path: str) -> list[int]:
        return [(await world.http.post(path, json={}, headers=h)).status_code for h in headers]

    api = "/api/2.0/mlflow/"
    assert await posts(api + "runs/search") == [200, 403]
    assert await posts(api + "runs/create") == [403, 200]
    assert await posts("/mlflow/ajax-api/3.0/mlflow/traces/search") == [200, 403]
    assert await posts("/v1/traces") == [403, 200]
    delete = await world.http.delete("/api/2.0/mlflow/webhooks/x", headers=headers[1])
    assert delete.status_code == 404


async def test_a_key_for_certain_jobs_does_not_see_the_whole_account(world: World) -> None:
    limited, access_key_id = await world.key(job_ids={"job_a"})
    answer = await world.get(SEARCH, limited)
    assert answer.status_code == 403
    assert "certain jobs" in answer.json()["message"]
    assert (await world.sign_in(access_key_id)).status_code == 403


async def test_another_sites_page_changes_nothing_by_our_cookie(world: World) -> None:
    _, access_key_id = await world.key()
    await world.sign_in(access_key_id)
    path = "/mlflow/api/2.0/mlflow/runs/create"
    for origin, status in (
        ("https://evil.example", 403),
        ("null", 403),
        ("http://tw.test:8420", 200),
    ):
        answer = await world.http.post(path, json={}, headers={"Origin": origin})
        assert answer.status_code == status
    crossing = {"Sec-Fetch-Site": "cross-site"}
    assert (await world.http.post(path, json={}, headers=crossing)).status_code == 403


async def test_paths_reach_mlflow_as_they_were_sent_and_only_known_ones(world: World) -> None:
    mine, _ = await world.key()
    await world.get("/mlflow/api/2.0/mlflow-artifacts/artifacts/1/a%20b%2Fc?path=x%2By", mine)
    assert world.servers.seen[-1][2] == "/api/2.0/mlflow-artifacts/artifacts/1/a%20b%2Fc?path=x%2By"
    before = len(world.servers.seen)
    for path in (
        "/mlflow/api/2.0/mlflow/runs/..%2f..%2fgateway",
        "/mlflow/gateway/x/mlflow/invocations",
        "/mlflow/ajax-api/3.0/mlflow/assistant/status",
        "/mlflow/ajax-api/3.0/jobs/x",
        "/mlflow/%2e%2e/api/v1/jobs",
        "/mlflow/mcp",
    ):
        assert (await world.get(path, mine)).status_code == 404, path
    assert len(world.servers.seen) == before


async def test_what_mlflow_is_asked_for_is_what_was_looked_at(world: World) -> None:
    mine, _ = await world.key()
    for path in (
        "/mlflow%2Fstatic-files/ajax-api/2.0/mlflow/gateway-proxy",
        "/mlflow%2Fapi%2F2.0%2Fmlflow%2Fruns/ajax-api/3.0/mlflow/assistant/status",
        "/%6Dlflow/static-files/x",
        "/mlflow%2F@elsewhere/api/2.0/mlflow/runs/search",
    ):
        assert (await world.get(path, mine)).status_code == 404, path
    assert world.servers.seen == []


async def test_nothing_of_the_key_reaches_mlflow_and_none_of_its_cookies_comes_back(
    world: World,
) -> None:
    mine, _ = await world.key()
    answer = await world.get(SEARCH, mine, Origin="http://tw.test:8420")
    headers = {name.lower() for name in world.servers.seen[-1][3]}
    assert not headers & {"authorization", "cookie", "origin"}
    assert world.servers.seen[-1][3]["Host"] == "localhost"
    assert "set-cookie" not in answer.headers
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"


async def test_large_bodies_pass_both_ways(world: World) -> None:
    mine, _ = await world.key()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(1 << 20)

    sent = await world.http.put(
        "/mlflow/api/2.0/mlflow-artifacts/artifacts/big",
        content=pieces(),
        headers={"Authorization": f"Bearer {mine}"},
    )
    assert sent.status_code == 200
    assert len(world.servers.seen[-1][4]) == 20 << 20
    got = await world.get("/mlflow/get-artifact?path=x&run_uuid=y", mine)
    assert len(got.content) == 64 * 65536


async def test_a_redirect_stays_behind_the_door(world: World) -> None:
    mine, _ = await world.key()
    answer = await world.get("/mlflow/api/2.0/mlflow/moved/x", mine)
    assert (answer.status_code, answer.headers["location"]) == (308, "/mlflow/api/there")
    slash = await world.http.get("/mlflow?x=1")
    assert (slash.status_code, slash.headers["location"]) == (302, "mlflow/?x=1")


async def test_a_server_without_mlflow_says_so_and_is_not_asked_again(world: World) -> None:
    mine, _ = await world.key()
    world.servers.down = errors.Unavailable("MLflow is switched off on this server; set X")
    answer = await world.get(SEARCH, mine)
    assert (answer.status_code, answer.json()["error_code"]) == (501, "NOT_IMPLEMENTED")
    assert "switched off" in answer.json()["message"]
    page = await world.get("/mlflow/", mine, Accept="text/html")
    assert page.headers["content-type"].startswith("text/html")
    assert "switched off" in page.text


async def test_a_server_that_cannot_start_now_is_asked_again_later(world: World) -> None:
    mine, _ = await world.key()
    world.servers.down = errors.Unavailable("it did not start", retry_after_s=4.2)
    answer = await world.get(SEARCH, mine)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "4")
    world.servers.down = None
    (world.servers.folder / f"{ACCOUNT}.sock").unlink()
    gone = await world.get(SEARCH, mine)
    assert gone.status_code == 503


async def test_a_page_that_is_refused_shows_no_markup_of_the_callers(world: World) -> None:
    mine, _ = await world.key()
    answer = await world.get("/mlflow/<script>", mine, Accept="text/html")
    assert answer.status_code == 404
    assert "<script>" not in answer.text


async def test_callers_do_not_wait_for_each_other(world: World) -> None:
    mine, _ = await world.key()
    answers = await asyncio.gather(*(world.get(SEARCH, mine) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
