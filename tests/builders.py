"""Valid nouns with sensible defaults; every field can be given by keyword."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from turnwise.domain.job import AgentKind, AgentSpec, Job, JobSpec
from turnwise.domain.rollout import (
    FinishReason,
    Floats,
    Group,
    Node,
    NodeKind,
    Policy,
    Purpose,
    Rollout,
    SamplingParams,
    Tokens,
    Turn,
)
from turnwise.domain.training import Adapter, Checkpoint
from turnwise.ports import ModelPackage

ACCOUNT = "acc_default"
ZERO_SHA256 = "0" * 64


def tokens(*ids: int) -> Tokens:
    return np.array(ids, dtype=np.int32)


def floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float32)


def spec(name: str = "walk", **changes: Any) -> JobSpec:
    """A job file's content for a scripted agent."""
    fields: dict[str, Any] = {
        "name": name,
        "model": "/models/tiny",
        "dataset": "/data/train.jsonl",
        "agent": AgentSpec(kind=AgentKind.SCRIPTED),
    }
    return JobSpec(**(fields | changes))


def job(name: str = "walk", **changes: Any) -> Job:
    """A pending job, `job_<name>` of the default account."""
    fields: dict[str, Any] = {
        "job_id": f"job_{name}",
        "account_id": ACCOUNT,
        "name": name,
        "spec": spec(name),
        "created_at": 1000.0,
    }
    return Job(**(fields | changes))


def group(group_id: str = "grp_a", **changes: Any) -> Group:
    """An open group of two rollouts of row 0, the first that job_walk admitted."""
    fields: dict[str, Any] = {
        "group_id": group_id,
        "account_id": ACCOUNT,
        "job_id": "job_walk",
        "incarnation": 1,
        "order": 0,
        "row_index": 0,
        "epoch": 0,
        "size": 2,
        "admitted_at_step": 0,
    }
    return Group(**(fields | changes))


def rollout(rollout_id: str = "rol_a", **changes: Any) -> Rollout:
    """A pending training rollout: slot 0, first attempt, of `grp_a` in job_walk."""
    fields: dict[str, Any] = {
        "rollout_id": rollout_id,
        "account_id": ACCOUNT,
        "job_id": "job_walk",
        "incarnation": 1,
        "group_id": "grp_a",
        "slot": 0,
        "attempt": 0,
        "purpose": Purpose.TRAIN,
        "row_index": 0,
        "step": 0,
        "seed": 7,
        "sampling": SamplingParams(max_tokens=64),
        "secret_sha256": ZERO_SHA256,
        "created_at": 1000.0,
        "deadline_at": 1600.0,
    }
    return Rollout(**(fields | changes))


def turn_with_nodes(
    index: int = 0,
    *,
    prompt: Sequence[int] = (1, 2, 3),
    completion: Sequence[int] = (7, 8),
    logprobs: Sequence[float] | None = None,
    parent: int | None = None,
    first_node: int | None = None,
    policy: Policy | None = None,
    **changes: Any,
) -> tuple[tuple[Node, Node], Turn]:
    """Turn `index` and the prompt and completion nodes that it adds.

    By default each turn extends the one before it: nodes 2 * index and 2 * index + 1, under the
    previous turn's completion. `prompt` is what this turn adds, not the whole prompt. Give
    `parent` and `first_node` for other shapes (`parent=-1` makes a new root).
    """
    start = 2 * index if first_node is None else first_node
    above = start - 1 if parent is None and start > 0 else parent
    above = None if above is None or above < 0 else above
    said = np.asarray(completion, dtype=np.int32)
    chosen = [-0.5] * len(said) if logprobs is None else logprobs
    nodes = (
        Node(
            node_id=start,
            parent=above,
            kind=NodeKind.PROMPT,
            messages=({"role": "user", "content": f"question {index}"},),
            tokens=np.asarray(prompt, dtype=np.int32),
            tools_sha256=ZERO_SHA256 if above is None else "",
        ),
        Node(
            node_id=start + 1,
            parent=start,
            kind=NodeKind.COMPLETION,
            messages=({"role": "assistant", "content": f"answer {index}"},),
            tokens=said,
            logprobs=np.asarray(chosen, dtype=np.float32),
        ),
    )
    fields: dict[str, Any] = {
        "turn_id": f"trn_{index}",
        "index": index,
        "leaf": start + 1,
        "policy": policy or Policy(),
        "sampling": SamplingParams(max_tokens=64),
        "seed": 11 + index,
        "finish_reason": FinishReason.STOP,
        "prompt_tokens": len(prompt),
        "completion_tokens": len(said),
        "request_sha256": ZERO_SHA256,
        "started_at": 1001.0 + index,
        "ended_at": 1001.5 + index,
    }
    return nodes, Turn(**(fields | changes))


def checkpoint(step: int = 0, **changes: Any) -> Checkpoint:
    """The state after `step`, with an adapter whose id is a sha256."""
    adapter_id = f"{step + 2:064x}"
    fields: dict[str, Any] = {
        "step": step,
        "path": f"/blobs/job_walk/step_{step}",
        "sha256": f"{step + 1001:064x}",
        "adapter": Adapter(adapter_id=adapter_id, path=f"/blobs/job_walk/step_{step}/adapter"),
    }
    return Checkpoint(**(fields | changes))


def package(version: int = 1, **changes: Any) -> ModelPackage:
    """What the step before `version` registered as "walk/{version}": an adapter of job_walk."""
    fields: dict[str, Any] = {
        "package_id": f"package_{version}",
        "account_id": ACCOUNT,
        "group": "walk",
        "version": version,
        "kind": "adapter",
        "path": f"/blobs/{version}",
        "sha256": f"{version:064x}",
        "base_model": "/models/tiny",
        "job_id": "job_walk",
        "step": version - 1,
        "created_at": 0.0,
    }
    return ModelPackage(**(fields | changes))


def plain(value: Any) -> Any:
    """A value that `==` compares whole: nouns as maps, arrays as (dtype, list)."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.tolist())
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class SetClock:
    """A clock that stands still until it is set; sleeping moves it."""

    def __init__(self, at: float = 1000.0) -> None:
        self.at = at

    def now(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds
