"""What the audit trail is told of this door."""

import json
from typing import Any

import httpx
import pytest

from tests.unit.control.kit import ADMIN
from tests.wire.fireworks.kit import HOME, Place, a_dataset, message_of
from tests.wire.fireworks.test_datasets import range_of
from turnwise import errors
from turnwise.domain.audit import AuditQuery


async def recorded(place: Place) -> list[dict[str, Any]]:
    """All records, oldest first."""
    found = await place.audit.search(ADMIN, AuditQuery(newest_first=False, limit=50))
    return [json.loads(each.body) for each in found]


async def test_each_request_is_on_record_with_its_name_and_its_fault_and_no_body(
    api: httpx.AsyncClient, place: Place
):
    given = {"keyName": "MY_TOKEN", "name": "my-token", "value": "very-secret"}
    await api.post(f"{HOME}/secrets", json=given)
    message_of(await api.get(f"{HOME}/secrets/nothing"), 404)
    await a_dataset(api)
    records = await recorded(place)
    names = ["CreateSecret", "GetSecret", "CreateDataset", "UploadDataset"]
    assert [each["eventName"] for each in records] == names
    assert records[1]["errorCode"] == "NOT_FOUND"
    assert "very-secret" not in json.dumps(records)


async def test_who_uses_a_signed_address_is_on_record_without_its_token(
    api: httpx.AsyncClient, place: Place
):
    await api.post(f"{HOME}/datasets", json={"dataset": {}, "datasetId": "rows"})
    sizes = {"filenameToSize": {"a.jsonl": 3}}
    answer = await api.post(f"{HOME}/datasets/rows:getUploadEndpoint", json=sizes)
    url = answer.json()["filenameToSignedUrls"]["a.jsonl"]
    async with place.client() as nobody:
        await nobody.put(url, content="{}\n", headers=range_of(3))
    last = (await recorded(place))[-1]
    assert last["eventName"] == "PutSigned"
    assert url.partition("token=")[2] not in json.dumps(last)


async def test_who_is_not_known_is_not_on_record(place: Place):
    async with place.client("tw_wrong") as wrong:
        message_of(await wrong.get("/verifyApiKey"), 401)
    assert await recorded(place) == []


async def test_a_change_whose_record_cannot_be_kept_is_not_answered_as_done(
    api: httpx.AsyncClient, place: Place, monkeypatch: pytest.MonkeyPatch
):
    async def full(seen: object) -> None:
        raise errors.StorageFull("no room")

    monkeypatch.setattr(place.audit, "record", full)
    given = {"keyName": "MY_TOKEN", "name": "my-token", "value": "x"}
    refused = await api.post(f"{HOME}/secrets", json=given)
    assert "its audit record could not be kept yet" in message_of(refused, 503)
    assert refused.headers["x-should-retry"] == "false"
    assert (await api.get(f"{HOME}/secrets/my-token")).status_code == 200
