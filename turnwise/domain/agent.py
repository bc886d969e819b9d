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
    belongs to no rollout has "" for both ids. `stream` is "" but for what the agent itself has put
    in a log stream of that name.
    """

    account_id: str
    agent: str
    at: float
    kind: AgentLogKind
    text: str
    rollout_id: str = ""
    job_id: str = ""
    stream: str = ""  # of the agent's own making; "" for what the service notes
    seq: int = 0
