"""The headers that say which rollout a model call belongs to."""

from __future__ import annotations

from turnwise.rft.models import Metadata, job_arn_of, trajectory_id_of

JOB_ARN = "X-Amzn-SageMaker-Job-Arn"
TRAJECTORY_ID = "X-Amzn-SageMaker-Trajectory-Id"


def make_inference_headers(metadata: Metadata) -> dict[str, str]:
    """Headers for the model calls of a rollout.

    >>> make_inference_headers({"job_arn": "arn:job", "rolloutId": "rollout_a"})
    {'X-Amzn-SageMaker-Job-Arn': 'arn:job', 'X-Amzn-SageMaker-Trajectory-Id': 'rollout_a'}
    """
    return {JOB_ARN: job_arn_of(metadata), TRAJECTORY_ID: trajectory_id_of(metadata)}
