"""What an evaluation is about, apart from its settings: named models, scores, and its files."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

#: The scorer that is the agent's own reward.
AGENT = "agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a scorer said of a rollout: a number, or the problem that kept it from one."""

    scorer: str
    rollout_id: str
    value: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A scored rollout, as a scorer sees it. `messages` lead to the last delivered reply."""

    rollout_id: str
    model: str
    row_index: int
    row: Mapping[str, Any]
    prompt: str
    label: str | None
    messages: Sequence[Mapping[str, Any]]
    reward: float
    rewards: Sequence[float]
    metrics: Mapping[str, float] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """As plain values of its own, which may be changed, or sent as JSON."""
        shared = {
            "rollout_id": self.rollout_id,
            "model": self.model,
            "row_index": self.row_index,
            "row": dict(self.row),
            "prompt": self.prompt,
            "label": self.label,
            "messages": [dict(message) for message in self.messages],
            "reward": self.reward,
            "rewards": list(self.rewards),
            "metrics": dict(self.metrics),
        }
        return copy.deepcopy(shared)


def results_folder(job_id: str) -> str:
    """The blobs that an evaluation leaves behind."""
    return f"jobs/{job_id}/evaluation"


def results_key(job_id: str) -> str:
    """Its results, JSON."""
    return f"{results_folder(job_id)}/results.json"


def table_key(job_id: str) -> str:
    """Its table of rows, CSV."""
    return f"{results_folder(job_id)}/rows.csv"


def display_names(models: Sequence[str]) -> list[str]:
    """Short names to tell models apart: a folder by its last part, where that is enough.

    >>> display_names(["base", "walk/3", "/data/tuned", "/data/steps/step-00003/adapter"])
    ['base', 'walk/3', 'tuned', 'step-00003/adapter']
    >>> display_names(["/data/a/tuned", "/data/b/tuned"])
    ['/data/a/tuned', '/data/b/tuned']
    """
    short = [_short(name) for name in models]
    return [name if short.count(name) == 1 else models[at] for at, name in enumerate(short)]


def _short(name: str) -> str:
    path = PurePosixPath(name)
    if not path.is_absolute():
        return name
    parts = path.parts[-2:] if path.name == "adapter" else path.parts[-1:]
    return "/".join(parts)


def metric_word(text: str) -> str:
    """Text as one part of a metric's name: at most 60 letters, digits, dots, hyphens, underscores.

    >>> metric_word("walk/3"), metric_word("hard cases")
    ('walk_3', 'hard_cases')
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:60] or "_"


def metric_words(texts: Sequence[str]) -> list[str]:
    """Such words for several texts, all different.

    >>> metric_words(["walk/3", "walk_3"])
    ['walk_3', 'walk_3-2']
    """
    words: list[str] = []
    for text in texts:
        word, count = metric_word(text), 1
        while (numbered := word if count == 1 else f"{word}-{count}") in words:
            count += 1
        words.append(numbered)
    return words
