"""A request over HTTP as the audit trail records it: when, where from, and by whom."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from turnwise.control.audit.record import Identity, Resource, Witnessed
from turnwise.domain.access import Principal
from turnwise.domain.audit import Category
from turnwise.ports import Clock


class Witness:
    """Describes the requests of one server's doors."""

    def __init__(
        self,
        clock: Clock,
        *,
        region: str,
        account_number: Callable[[str], Awaitable[str]],
        job_arn: Callable[[str, str], Awaitable[str]],
    ) -> None:
        """`job_arn` gives the ARN of an account's job by its id or name."""
        self._clock = clock
        self._region = region
        self._account_number = account_number
        self._job_arn = job_arn

    async def of(
        self,
        scope: Mapping[str, Any],
        principal: Principal,
        *,
        source: str,
        name: str,
        read_only: bool,
        category: Category = Category.MANAGEMENT,
        parameters: Mapping[str, Any],
        error: tuple[str, str] = ("", ""),
        resources: Sequence[Resource] = (),
    ) -> Witnessed:
        """A request with that ASGI scope; `error` is its code and message, if it was refused."""
        client = scope.get("client")
        code, message = error
        return Witnessed(
            account_id=principal.account_id,
            identity=Identity.of(principal, await self._account_number(principal.account_id)),
            at=self._clock.now(),
            region=self._region,
            source=source,
            name=name,
            read_only=read_only,
            request_id=str(uuid.uuid4()),
            category=category,
            source_ip=str(client[0]) if client else "",
            user_agent=dict(scope["headers"]).get(b"user-agent", b"").decode("latin-1"),
            parameters=parameters or None,
            error_code=code,
            error_message=message,
            resources=resources,
        )

    async def job(self, principal: Principal, id_or_name: str) -> Resource:
        """The job that a request is about."""
        arn = await self._job_arn(principal.account_id, id_or_name)
        return Resource(kind="AWS::SageMaker::Job", arn=arn)
