"""Registered models, a base model and a bucket, as files that need no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests import builders
from tests.builders import ACCOUNT
from turnwise import errors
from turnwise.domain.event import EventDraft, EventKind
from turnwise.domain.job import JobStatus
from turnwise.domain.rollout import Policy
from turnwise.ports import FinishedStep, ModelPackage
from turnwise.storage.sql import SqlStore

MODULE = "model.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def save_base(folder: Path, rows: int = 4) -> Path:
    """A base model's folder, of one weight [rows, 8]."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    weight = np.zeros((rows, 8), dtype=np.float32)
    save_file({f"{MODULE}.weight": weight}, folder / "model.safetensors")
    return folder


def save_adapter(folder: Path, base: Path | str = "", value: float = 0.0, **config: Any) -> Path:
    """A PEFT folder of rank 2 for `save_base`'s weight; `value` makes it another one."""
    folder.mkdir(parents=True)
    said = CONFIG | {"base_model_name_or_path": str(base)} | config
    (folder / "adapter_config.json").write_text(json.dumps(said))
    tensors = {
        f"base_model.model.{MODULE}.lora_A.weight": np.full((2, 8), value, dtype=np.float32),
        f"base_model.model.{MODULE}.lora_B.weight": np.zeros((4, 2), dtype=np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@dataclass(frozen=True, slots=True)
class FolderObjects:
    """Buckets of one account that are folders below `root`."""

    root: Path
    account_id: str = ACCOUNT
    asked: list[str] = field(default_factory=list)

    async def get(self, account_id: str, bucket: str, key: str) -> tuple[Any, Path]:
        self.asked.append(f"{bucket}/{key}")
        path = self.root / bucket / key
        if account_id != self.account_id or not path.is_file():
            raise errors.NotFound("object", key)
        return None, path


async def finish_steps(
    store: SqlStore, blobs: Path, base: Path | str, *, job: str = "walk", steps: int = 2
) -> list[ModelPackage]:
    """A completed job with so many steps, each with an adapter and a checkpoint on disk."""
    made = builders.job(job, spec=builders.spec(job, model=str(base)))
    await store.create_job(made)
    await store.append(ACCOUNT, made.job_id, [_status(JobStatus.RUNNING)])
    for step in range(steps):
        folder = blobs / f"jobs/{made.job_id}/checkpoints/step-{step}"
        adapter = save_adapter(folder / "adapter", base, value=float(step))
        for name in ("state.safetensors", "meta.json"):
            (folder / name).write_text(name)
        both = {"base_model": str(base), "job_id": made.job_id, "step": step, "created_at": 10.0}
        checkpoint = builders.checkpoint(step, path=str(folder))
        done = FinishedStep(
            step=step,
            policy=Policy(adapter_id="a", policy_step=step + 1),
            groups=(),
            bins={},
            checkpoint=checkpoint,
            packages=(
                builders.package(
                    step + 1, package_id=f"a_{job}_{step}", group=job, path=str(adapter), **both
                ),
                builders.package(
                    step + 1,
                    package_id=f"c_{job}_{step}",
                    group=f"{job}-checkpoints",
                    kind="checkpoint",
                    path=str(folder),
                    **both,
                ),
            ),
            events=(),
        )
        await store.finish_step(ACCOUNT, made.job_id, done)
    await store.append(ACCOUNT, made.job_id, [_status(JobStatus.COMPLETED)])
    return await store.packages(ACCOUNT)


def _status(status: JobStatus) -> EventDraft:
    return EventDraft(kind=EventKind.STATUS, body={"status": status})
