"""Deployments: further names of models, which need no accelerators here."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests import builders
from tests.builders import ACCOUNT
from tests.wire.fireworks.kit import HOME, Place, message_of
from turnwise import errors
from turnwise.domain.access import Action
from turnwise.wire.fireworks.deployments import find_deployed

DEPLOYMENTS = f"{HOME}/deployments"
TINY = "accounts/fireworks/models/tiny"


async def deploy(api: httpx.AsyncClient, model: Any = TINY, id: str = "mine") -> httpx.Response:
    body = {"baseModel": model, "minReplicaCount": 1, "acceleratorType": "NVIDIA_H200_141GB"}
    return await api.post(DEPLOYMENTS, params={"deploymentId": id}, json=body)


async def test_a_deployment_is_ready_at_once_and_gone_when_deleted(
    api: httpx.AsyncClient, place: Place
):
    made = (await deploy(api)).json()
    assert made["name"] == "accounts/default/deployments/mine"
    assert (made["baseModel"], made["state"]) == (TINY, "READY")
    assert (await api.get(f"{DEPLOYMENTS}/mine")).json() == made
    assert (await api.get(DEPLOYMENTS)).json()["deployments"] == [made]
    find = find_deployed(place.world.store)
    assert await find(ACCOUNT, "mine") == TINY

    assert (await api.delete(f"{DEPLOYMENTS}/mine?ignoreChecks=true")).json() == {}
    message_of(await api.get(f"{DEPLOYMENTS}/mine"), 404)
    with pytest.raises(errors.NotFound):
        await find(ACCOUNT, "mine")


async def test_an_adapter_is_deployed_by_its_id_or_its_full_name(
    api: httpx.AsyncClient, place: Place
):
    await place.world.store.register([builders.package()])
    for id, name in (("a", "walk"), ("b", "accounts/default/models/walk")):
        made = await deploy(api, name, id)
        assert made.json()["baseModel"] == "accounts/default/models/walk"


@pytest.mark.parametrize(
    ("model", "status", "said"),
    [
        ("huge", 404, "Model 'huge' not found"),
        ("accounts/other/models/tiny", 404, "Model 'accounts/other/models/tiny' not found"),
        ("", 400, "base_model: '' is not a name"),
        ("a/b", 400, "base_model: 'a/b' is not a name"),
        (7, 400, "base_model: 7 is not text"),
    ],
)
async def test_what_is_no_model_is_not_deployed(
    api: httpx.AsyncClient, model: Any, status: int, said: str
):
    assert said in message_of(await deploy(api, model), status)
    assert (await api.get(DEPLOYMENTS)).json()["deployments"] == []


async def test_an_id_is_taken_once_and_a_reading_key_takes_none(
    api: httpx.AsyncClient, place: Place
):
    await deploy(api)
    assert "Deployment 'mine' already exists" in message_of(await deploy(api), 409)
    async with place.client(await place.key(actions=[Action.READ])) as reader:
        message_of(await deploy(reader, id="theirs"), 403)
        message_of(await reader.delete(f"{DEPLOYMENTS}/mine"), 403)
    assert len((await api.get(DEPLOYMENTS)).json()["deployments"]) == 1
