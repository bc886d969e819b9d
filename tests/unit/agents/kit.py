"""What the tests of agents share."""

from __future__ import annotations

from turnwise.domain.agent import AgentLogKind


class Log:
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.entries: list[tuple[AgentLogKind, str]] = []
        self.about: set[tuple[str, str]] = set()  # rollouts and jobs

    def note(
        self, kind: AgentLogKind, text: str, *, rollout_id: str = "", job_id: str = ""
    ) -> None:
        self.entries.append((kind, text))
        self.about.add((rollout_id, job_id))
