"""The one record that status, logs, metrics and pages are read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class EventKind(StrEnum):
    """What happened. The body's keys are listed beside each kind."""

    STATUS = "status"  # status, secondary, message, rollouts? [ids that show why]
    LOG = "log"  # message, rollout_id?, step?, completed?, total?, steps?, rollouts? (plan)
    METRICS = "metrics"  # step, values {name: number}; every metric name is in domain.metrics
    ROLLOUT = "rollout"  # rollout_id, group_id, status, reward?, fault?, turns, tokens
    STEP = "step"  # step, policy_step, adapter_id, groups [ids], trained_tokens, tallies
    CHECKPOINT = "checkpoint"  # step, path, sha256, adapter_id
    EVALUATION = "evaluation"  # step, purpose, values
    PROMOTION = "promotion"  # step, model: the adapter that the job's end leaves as its output


class Level(StrEnum):
    """How loud an event is in the log."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDraft:
    """An event before the store has numbered it."""

    kind: EventKind
    body: Mapping[str, Any] = field(default_factory=dict)
    level: Level = Level.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One appended fact about a job. Numbers and references, never tokens or messages.

    `seq` counts from 1 per job without gaps, given in the transaction that appends; it is the
    cursor of every reader. `at` is seconds since the epoch.
    """

    seq: int
    job_id: str
    at: float
    kind: EventKind
    level: Level
    body: Mapping[str, Any]
