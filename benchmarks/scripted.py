"""Jobs of a slow agent (slow_agent.py) on a tiny model, and what became of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import Server
from tests.service import save_chat_model
from turnwise.client import Client

MAX_TOKENS = 16

Json = dict[str, Any]


def prepare(folder: Path, rows: int = 4096) -> tuple[Path, Path]:
    """A tiny chat model and a dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    model, dataset = save_chat_model(folder / "model"), folder / "rows.jsonl"
    dataset.write_text("".join(json.dumps({"prompt": f"row {n}"}) + "\n" for n in range(rows)))
    return model, dataset


def job(name: str, made: tuple[Path, Path], **changes: Any) -> Json:
    """A job for the scripted agent."""
    model, dataset = made
    return {
        "name": name,
        "model": str(model),
        "dataset": str(dataset),
        "agent": {"kind": "python", "target": "benchmarks.slow_agent:rollout"},
        "sampling_params": {"max_tokens": MAX_TOKENS},
        "lora": {"rank": 8, "alpha": 16},
        "optimizer": {"learning_rate": 1e-3},
        "rollout": {"rollout_timeout": 120},
    } | changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What one job did. Times are seconds since the epoch."""

    started_at: float  # its first rollouts
    ended_at: float  # its last step
    steps: int

    @property
    def seconds(self) -> float:
        """How long it was at work."""
        return self.ended_at - self.started_at


def ran(client: Client, name: str) -> Ran:
    """Wait for a job's end. Raises where it did not complete."""
    ended = client.wait(name, poll_s=0.1)
    if ended["status"] != "COMPLETED":
        raise RuntimeError(f"{name} ended {ended['status']}: {ended['message']}")
    said = client.events(name, kinds=("status",))
    steps = client.events(name, kinds=("step",))
    return Ran(
        started_at=next(e["at"] for e in said if e["body"]["secondary"] == "Training"),
        ended_at=steps[-1]["at"],
        steps=len(steps),
    )


def spent(server: Server, before: Counter[str]) -> Counter[str]:
    """CPU seconds per kind of process since `before`."""
    now = server.cpu_s()
    now.subtract(before)
    return now


def table(used: Mapping[str, float], unit: str = "s") -> str:
    """Figures per kind of process on one line."""
    return ", ".join(f"{kind} {value:.1f} {unit}" for kind, value in sorted(used.items()))
