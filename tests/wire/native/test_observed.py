"""The native API's calls in the audit trail."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from tests.builders import ACCOUNT, SetClock
from turnwise import errors
from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.witness import Witness
from turnwise.domain.access import Principal
from turnwise.domain.audit import AuditQuery, Sealer
from turnwise.storage.sql import SqlStore
from turnwise.wire.native.observed import Observed, event_name

ADMIN = Principal(account_id=ACCOUNT, name="admin")


@pytest.fixture
async def store() -> AsyncIterator[SqlStore]:
    opened = SqlStore.in_memory(clock=SetClock())
    await opened.default_account()
    yield opened
    await opened.close()


@pytest.fixture
def audit(store: SqlStore) -> AuditTrail:
    return AuditTrail(store, store, Sealer(b"k" * 32), SetClock())


@pytest.fixture
def app(audit: AuditTrail) -> Observed:
    api = FastAPI()

    @api.post("/api/v1/jobs/{name}/stop")
    async def stop(name: str, request: Request) -> dict[str, str]:
        await request.body()
        if request.headers.get("authorization"):
            request.state.principal = ADMIN
        return {"name": name}

    @api.get("/api/v1/jobs/{name}/events")
    async def events(name: str, request: Request) -> dict[str, str]:
        request.state.principal = ADMIN
        return {}

    async def number(account_id: str) -> str:
        return "000000000001"

    async def arn(account_id: str, name: str) -> str:
        return f"arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/{name}"

    witness = Witness(SetClock(), region="us-west-2", account_number=number, job_arn=arn)
    return Observed(api, audit, witness)


def client(app: Observed) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")


KEY = {"Authorization": "Bearer tw_" + "a" * 40}


async def test_a_request_is_recorded_with_its_caller_and_its_job(
    app: Observed, audit: AuditTrail
) -> None:
    async with client(app) as http:
        body = {"note": "tw_" + "a" * 40}
        assert (await http.post("/api/v1/jobs/walk/stop", json=body, headers=KEY)).is_success
        await http.post("/api/v1/jobs/walk/stop")  # nobody's
        await http.get("/api/v1/jobs/walk/events")  # a data event, which nobody selects
    [record] = await audit.search(ADMIN, AuditQuery())
    body = json.loads(record.body)
    assert (body["eventSource"], body["eventName"]) == ("turnwise", "StopJob")
    assert body["readOnly"] is False
    assert body["requestParameters"] == {"name": "walk", "body": {"note": "tw_****"}}
    assert body["resources"][0]["ARN"].endswith("job/AgentRFT/walk")


async def test_a_change_that_cannot_be_recorded_is_not_answered_as_done(
    app: Observed, audit: AuditTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*given: Any) -> int:
        raise errors.StorageFull("the disk is full")

    monkeypatch.setattr(audit._store, "append_audit", full)
    async with client(app) as http:
        answer = await http.post("/api/v1/jobs/walk/stop", headers=KEY)
    assert answer.status_code == 503
    assert "its audit record could not be kept yet" in answer.json()["error"]["message"]


async def test_a_body_that_does_not_end_is_not_kept_before_it_is_known_whose_it_is(
    app: Observed, audit: AuditTrail
) -> None:
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 1 << 20
            yield bytes(1 << 20)

    async with client(app) as http:
        answer = await http.post("/api/v1/jobs/walk/stop", content=pieces())
    assert answer.status_code == 413
    assert "larger than 8388608 bytes" in answer.text
    assert await audit.search(ADMIN, AuditQuery()) == []


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "/api/v1/keys", "CreateKey"),
        ("DELETE", "/api/v1/keys/{key_id}", "DeleteKey"),
        ("GET", "/api/v1/models/{name:path}/archive", "GetModelArchive"),
        ("POST", "/api/v1/audit/trails/{name}/start", "StartAuditTrail"),
        ("PUT", "/api/v1/audit/trails/{name}/selectors", "PutAuditTrailSelectors"),
        ("GET", "/api/v1/audit/records", "GetAuditRecords"),
        ("POST", "/api/v1/agents/{name}/test", "TestAgent"),
    ],
)
def test_routes_have_names_as_aws_would_give_them(method: str, path: str, name: str) -> None:
    assert event_name(method, path) == name
