"""Bodies of CompleteRollout and UpdateReward. Pure.

Early SDKs wrote the members with a small first letter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from turnwise import errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What both operations carry. The job's ARN is in a header or in the body."""

    trajectory_id: str
    job_arn: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(Report):
    """CompleteRollout."""

    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewarded(Report):
    """UpdateReward; `metrics` is an addition to AWS's shape."""

    rewards: tuple[float, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)


def decode_completed(body: bytes, job_arn: str, trajectory_id: str) -> Completed:
    """Read a body; header values, where given, stand in for its members."""
    fields = _members(body)
    return Completed(
        trajectory_id=_text(fields, "TrajectoryId", trajectory_id),
        job_arn=_text(fields, "JobArn", job_arn),
        status=_text(fields, "Status", "ready").lower(),
    )


def decode_rewarded(body: bytes, job_arn: str, trajectory_id: str) -> Rewarded:
    """Read a body; header values, where given, stand in for its members."""
    fields = _members(body)
    rewards = fields.get("Rewards", fields.get("rewards"))
    if not isinstance(rewards, list):
        raise errors.InvalidInput("Rewards", rewards, "must be a list of numbers")
    metrics = fields.get("Metrics") or {}
    if not isinstance(metrics, dict):
        raise errors.InvalidInput("Metrics", metrics, "must be an object of numbers")
    return Rewarded(
        trajectory_id=_text(fields, "TrajectoryId", trajectory_id),
        job_arn=_text(fields, "JobArn", job_arn),
        rewards=tuple(_number(value, f"Rewards[{i}]") for i, value in enumerate(rewards)),
        metrics={
            _unicode(name, "Metrics"): _number(value, f"Metrics.{name}")
            for name, value in metrics.items()
        },
    )


def _members(body: bytes) -> dict[str, Any]:
    # json rather than msgspec: Python's clients write NaN and Infinity, and the refusal should
    # say that the reward is not finite, not that the body cannot be read.
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        shown = body[:60].decode("utf-8", "replace")
        raise errors.InvalidInput("body", shown, f"is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise errors.InvalidInput("body", fields, "must be a JSON object")
    return fields


def _text(fields: Mapping[str, Any], name: str, otherwise: str) -> str:
    value = fields.get(name, fields.get(name[0].lower() + name[1:]))
    if value is None:
        value = otherwise
    if not isinstance(value, str):
        raise errors.InvalidInput(name, value, "must be text")
    return _unicode(value, name)


def _unicode(text: str, at: str) -> str:
    """The text, unless it holds half a surrogate pair, which JSON can spell and nothing stores."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise errors.InvalidInput(at, text, "is not text: half a character is missing") from None
    return text


def _number(value: Any, at: str) -> float:
    """A number; botocore writes those that JSON lacks as text."""
    if value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise errors.InvalidInput(at, value, "must be a number")
    try:
        return float(value)
    except OverflowError:  # a whole number of 309 digits or more
        return math.inf if value > 0 else -math.inf
