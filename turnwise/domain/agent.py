"""What happened between the service and an agent: AgentLogEntry."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class AgentLogKind(StrEnum):
    """Which side of a call a line is of."""

    RECEIVED = "received"  # what the service sent it
    ANSWERED = "answered"  # what it gave back
    FAILED = "failed"  # why a call came to nothing
    PRINTED = "printed"  # its own output


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLogEntry:
    """One entry of a registered agent's log.

    `at` is in seconds since the epoch; `seq` counts over all agents, given by the store. What
    belongs to no rollout has "" for both ids.
    """

    account_id: str
    agent: str
    at: float
    kind: AgentLogKind
    text: str
    rollout_id: str = ""
    job_id: str = ""
    seq: int = 0
