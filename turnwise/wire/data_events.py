"""What the data plane tells the audit trail: model calls and reports of rollouts, once selected.

A record names the job and the rollout; of a model call it holds no parameters.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping

from turnwise import errors
from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.record import Identity, Resource, Witnessed
from turnwise.domain.access import Principal
from turnwise.domain.audit import Category
from turnwise.domain.rollout import Rollout
from turnwise.ports import Clock
from turnwise.wire.aws.runtime import PATHS

#: A path of the data plane -> the operation that it is recorded as.
NAMES: Mapping[str, str] = {
    "/v1/chat/completions": "Sample",  # in a rollout; of a registered model it is no event
    **PATHS,
}


class DataEvents:
    """Records the data plane's calls. Ask `is_on` first: it costs nothing."""

    def __init__(
        self,
        trail: AuditTrail,
        clock: Clock,
        *,
        region: str,
        account_number: Callable[[str], Awaitable[str]],
        job_arn: Callable[[Rollout], Awaitable[str]],
        error_name: Callable[[Exception], str],
    ) -> None:
        """`job_arn` gives the ARN of a rollout's job, `error_name` what AWS calls an error."""
        self._trail = trail
        self._clock = clock
        self._region = region
        self._account_number = account_number
        self._job_arn = job_arn
        self._error_name = error_name

    @property
    def is_on(self) -> bool:
        """Whether some trail selects data events."""
        return self._trail.selects_data

    async def saw(
        self,
        name: str,
        principal: Principal,
        rollout: Rollout | None,
        error: Exception | None,
        *,
        named_arn: str = "",
        source_ip: str = "",
        user_agent: str = "",
    ) -> None:
        """A call that has ended. `named_arn` is the job that the caller named, if any."""
        number = await self._account_number(principal.account_id)
        arn = named_arn
        if rollout is not None and rollout.account_id == principal.account_id:
            arn = await self._arn(rollout) or named_arn
        is_report = not name.startswith("Sample")
        parameters = {"jobArn": arn, "trajectoryId": rollout.rollout_id if rollout else ""}
        self._trail.record_soon(
            Witnessed(
                account_id=principal.account_id,
                identity=Identity.of(principal, number),
                at=self._clock.now(),
                region=self._region,
                source="sagemaker.amazonaws.com",
                name=name,
                read_only=False,
                request_id=str(uuid.uuid4()),
                category=Category.DATA,
                source_ip=source_ip,
                user_agent=user_agent,
                parameters=parameters if is_report else None,
                error_code="" if error is None else self._error_name(error),
                error_message="" if error is None else _text_of(error),
                resources=[Resource(kind="AWS::SageMaker::Job", arn=arn)] if arn else [],
            )
        )

    async def _arn(self, rollout: Rollout) -> str:
        try:
            return await self._job_arn(rollout)
        except errors.NotFound:  # deleted meanwhile
            return ""


def _text_of(error: Exception) -> str:
    return str(error) if isinstance(error, errors.TurnwiseError) else "internal error"
