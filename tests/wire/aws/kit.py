"""Calls of an AWS service's handlers as the door makes them: read and written by its model."""

from __future__ import annotations

import json
from typing import Any

from turnwise.domain.access import Account, Principal
from turnwise.wire.aws.door import Modelled, Outcome
from turnwise.wire.aws.protocols import Request
from turnwise.wire.aws.service import AwsService, Call, Handler, Json

NUMBER = "000000000001"
REGION = "us-west-2"
URL = "http://server"


def a_call(account_id: str = "acc_default", *, number: str = NUMBER, **who: Any) -> Call:
    """A verified call; `who` are fields of its principal."""
    return Call(
        principal=Principal(account_id=account_id, **who),
        account=Account(account_id=account_id, slug="default", number=number),
        region=REGION,
        request_id="req",
    )


class Refused(Exception):
    """An error reply: its code and message."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(f"{code}: {message}")


class Caller:
    """Asks a service's handlers, through the validation and encoding of its model."""

    def __init__(self, handlers: dict[str, Handler], name: str = "sagemaker") -> None:
        self._service = Modelled(AwsService(name=name, handlers=handlers))

    async def __call__(self, operation: str, *, by: Call | None = None, **given: Any) -> Json:
        """The result as JSON; raises `Refused`."""
        request = Request(
            method="POST",
            path="/",
            query="",
            headers={"x-amz-target": f"{self._service.target_prefix}.{operation}"},
            body=json.dumps(given).encode(),
        )
        outcome = Outcome(service="sagemaker")
        reply = await self._service.answer(by or a_call(), request, outcome)
        if reply.status != 200:
            raise Refused(outcome.error, outcome.message)
        return json.loads(reply.body) if reply.body else {}
