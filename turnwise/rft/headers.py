"""The headers that say which rollout a model call belongs to."""

from __future__ import annotations

import logging

from turnwise.rft.context import get_rollout_context
from turnwise.rft.models import Metadata, job_arn_of, trajectory_id_of

_log = logging.getLogger(__name__)

JOB_ARN = "X-Amzn-SageMaker-Job-Arn"
TRAJECTORY_ID = "X-Amzn-SageMaker-Trajectory-Id"


def make_inference_headers(metadata: Metadata) -> dict[str, str]:
    """Headers for the model calls of a rollout; what the metadata lack is left out.

    >>> make_inference_headers({"job_arn": "arn:job", "rolloutId": "rollout_a"})
    {'X-Amzn-SageMaker-Job-Arn': 'arn:job', 'X-Amzn-SageMaker-Trajectory-Id': 'rollout_a'}
    """
    headers = {JOB_ARN: job_arn_of(metadata), TRAJECTORY_ID: trajectory_id_of(metadata)}
    return {name: value for name, value in headers.items() if value}


def get_inference_headers() -> dict[str, str]:
    """Headers for this rollout's model calls; empty, with a warning, outside of one."""
    metadata = get_rollout_context()
    if metadata is None:
        _log.warning("no rollout context: call set_rollout_context() first; sending no headers")
        return {}
    return make_inference_headers(metadata)
