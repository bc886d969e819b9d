"""The AWS door over a few operations of its own, called by hand-made and by botocore's requests."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from turnwise.access import sigv4
from turnwise.access.keys import Keyring
from turnwise.access.vault import Vault
from turnwise.domain.access import Account, Key
from turnwise.storage.sql import SqlStore
from turnwise.wire.aws.door import AwsDoor, Modelled, Outcome
from turnwise.wire.aws.service import AwsService, Call, Handler

REGION = "us-west-2"
URL = "http://server"


@dataclass
class Door:
    """A door, one account's key for it, and what it told of its calls."""

    app: AwsDoor
    key: Key
    secret: str
    told: list[tuple[Call, Outcome]] = field(default_factory=list)

    def signed(
        self,
        service: str,
        body: bytes | str = b"{}",
        *,
        target: str = "",
        method: str = "POST",
        path: str = "/",
        headers: Mapping[str, str] | None = None,
        region: str = REGION,
        secret: str = "",
        access_key_id: str = "",
    ) -> httpx.Request:
        """A signed request, not yet sent."""
        more = dict(headers or {}) | ({"X-Amz-Target": target} if target else {})
        request = AWSRequest(method, URL + path, more, body)
        credentials = Credentials(access_key_id or self.key.access_key_id, secret or self.secret)
        SigV4Auth(credentials, service, region).add_auth(request)
        sent = request.prepare()
        return httpx.Request(method, sent.url, headers=dict(sent.headers), content=body)

    async def send(self, request: httpx.Request) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.send(request)

    async def json(self, operation: str, parameters: object = None) -> httpx.Response:
        """A SageMaker operation."""
        body = json.dumps({} if parameters is None else parameters)
        return await self.send(self.signed("sagemaker", body, target=f"SageMaker.{operation}"))


@contextlib.asynccontextmanager
async def a_door(
    sagemaker: Mapping[str, Handler] | None = None, *more: AwsService
) -> AsyncIterator[Door]:
    """A door with these handlers of SageMaker, and other services."""
    store = SqlStore.in_memory()
    keyring = Keyring(store, Vault(bytes(32)))
    account = Account(account_id="acc_lab", slug="lab", number="000000000007")
    await store.create_account(account)
    secret, key = await keyring.create(account.account_id, "tester")
    told: list[tuple[Call, Outcome]] = []

    async def observe(call: Call, outcome: Outcome) -> None:
        told.append((call, outcome))

    services = [AwsService(name="sagemaker", handlers=sagemaker or {}), *more]
    app = AwsDoor(
        [Modelled(service) for service in services],
        verify=lambda request, signature: keyring.verify(
            request, signature, max_expires_s=sigv4.MAX_EXPIRES_S
        ),
        account=store.account,
        region=REGION,
        observe=observe,
    )
    yield Door(app, key, secret, told)
    await store.close()


async def echo(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """A handler of DescribeJob: enough of an answer, with the name that was asked for."""
    return {
        "JobArn": call.arn("sagemaker", f"job/AgentRFT/{given['JobName']}"),
        "JobName": given["JobName"],
        "JobStatus": "InProgress",
        "CreationTime": 1700000000.25,
    }
