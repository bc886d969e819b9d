"""A scorer as a user would write it, imported by the server."""

from typing import Any


def brevity(rollout: dict[str, Any]) -> dict[str, float]:
    """1 for a last reply without capitals; a reply to row 3 is more than it can bear."""
    if rollout["row_index"] == 3:
        raise KeyError("no answer to row 3")
    said = rollout["messages"][-1]["content"] or ""
    return {"score": float(said == said.lower())}
