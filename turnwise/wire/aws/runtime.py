"""The job runtime's operations: decode, call the gateway, encode.

The job's ARN and the trajectory come by headers (boto3) or in the body (the SageMaker SDK). Both
reports are idempotent by content, so a repeated ClientToken needs no book of its own: the same
report again is answered as before, a different one is a conflict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from turnwise.domain.access import Principal
from turnwise.gateway.gateway import Gateway
from turnwise.wire.asgi import HttpCall
from turnwise.wire.aws import faults
from turnwise.wire.aws.codec import Completed, Rewarded

#: The operations by their paths. The first SDK had other paths for two of them.
PATHS: Mapping[str, str] = {
    "/sample": "Sample",
    "/sample-with-response-stream": "SampleWithResponseStream",
    "/complete-rollout": "CompleteRollout",
    "/CompleteTrajectory": "CompleteRollout",
    "/update-reward": "UpdateReward",
    "/UpdateReward": "UpdateReward",
}


async def complete_rollout(
    gateway: Gateway, principal: Principal, report: Completed, http: HttpCall
) -> None:
    """POST /complete-rollout."""
    await gateway.complete_rollout(principal, report.trajectory_id, report.status)
    await http.answer(200, b"{}")


async def update_reward(
    gateway: Gateway, principal: Principal, report: Rewarded, http: HttpCall
) -> None:
    """POST /update-reward."""
    await gateway.update_reward(
        principal, report.trajectory_id, report.rewards, metrics=report.metrics
    )
    await http.answer(200, b"{}")


def retry_count(http: HttpCall) -> int:
    """How often botocore has sent this request before: `amz-sdk-request: attempt=2; max=3`."""
    found = re.search(r"attempt=(\d{1,4})", http.header("amz-sdk-request"))
    return max(0, int(found[1]) - 1) if found else 0


async def fail(http: HttpCall, error: Exception) -> None:
    """Answer with an error; in a stream that has begun, as its last event."""
    body = faults.body_of(error)
    if http.has_started:
        await http.piece(b"data: " + body + b"\n\n", last=True)
        return
    status, name = faults.status_and_name(error)
    more = [("x-amzn-errortype", name)]
    if (wait := getattr(error, "retry_after_s", None)) is not None:
        more.append(("retry-after", str(max(1, round(wait)))))
    await http.answer(status, body, more=more)
