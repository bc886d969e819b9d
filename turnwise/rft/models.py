"""What `POST /rollout` brings. Fields beyond these are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict


class RolloutMetadata(BaseModel):
    """Which rollout this is, and where its model calls and its reward go."""

    job_arn: str
    trajectory_id: str
    endpoint: str
    region: str = "us-west-2"


class InferenceParams(BaseModel):
    """How the trainer wants the model sampled; None leaves it to the service."""

    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None


class RolloutRequest(BaseModel):
    """The body of `POST /rollout`. `instance` is the dataset's row."""

    model_config = ConfigDict(protected_namespaces=())  # `model_name` is part of the contract

    instance: dict[str, Any]
    metadata: RolloutMetadata
    inference_params: InferenceParams | None = None
    model_name: str | None = None
    model_endpoint: str | None = None


Metadata: TypeAlias = Mapping[str, Any] | RolloutMetadata


def as_mapping(value: Mapping[str, Any] | BaseModel) -> Mapping[str, Any]:
    """A model as a dict, without what is None; a mapping as it is."""
    return value.model_dump(exclude_none=True) if isinstance(value, BaseModel) else value


def job_arn_of(metadata: Metadata) -> str:
    """The job, in either spelling; "" if there is none.

    >>> job_arn_of({"jobArn": "arn:aws:sagemaker:us-west-2:000000000000:job/walk"})
    'arn:aws:sagemaker:us-west-2:000000000000:job/walk'
    """
    return _first(metadata, "job_arn", "jobArn")


def trajectory_id_of(metadata: Metadata) -> str:
    """The rollout, in any of its three spellings; "" if there is none."""
    return _first(metadata, "trajectory_id", "trajectoryId", "rolloutId")


def _first(metadata: Metadata, *names: str) -> str:
    values = as_mapping(metadata)
    return str(next((values[name] for name in names if values.get(name)), ""))
