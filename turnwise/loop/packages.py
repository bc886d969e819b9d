"""What a step registers: a resumable checkpoint and a deployable adapter, with their lineage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

import turnwise
from turnwise.domain.job import Inputs, Job
from turnwise.domain.training import ADAPTER_FOLDER, Adapter, Checkpoint
from turnwise.loop.sockets import Sockets
from turnwise.modeling.fingerprint import fingerprint
from turnwise.ports import ModelPackage, NewId

#: `Checkpoint.step` of the state before any training.
BEFORE_TRAINING = -1

#: The metrics of a step that its packages carry.
HEADLINE = (
    "rollout/reward/mean",
    "training/loss",
    "training/kl_k3",
    "training/learning_rate",
)


def packages_of(
    job: Job,
    checkpoint: Checkpoint,
    values: Mapping[str, float],
    *,
    version: int,
    new_id: NewId,
    now: float,
) -> tuple[ModelPackage, ModelPackage]:
    """The adapter and the checkpoint of a step as packages of one version."""

    def package(group: str, kind: str, path: str, sha256: str) -> ModelPackage:
        return ModelPackage(
            package_id=new_id("package"),
            account_id=job.account_id,
            group=group,
            version=version,
            kind=kind,
            path=path,
            sha256=sha256,
            base_model=job.spec.model,
            job_id=job.job_id,
            step=checkpoint.step,
            created_at=now,
            metadata=lineage(job, checkpoint.step, values),
        )

    adapter = checkpoint.adapter
    return (
        package(job.spec.adapters_in, "adapter", adapter.path, adapter.adapter_id),
        package(job.spec.checkpoints_in, "checkpoint", checkpoint.path, checkpoint.sha256),
    )


def lineage(job: Job, step: int, values: Mapping[str, float]) -> dict[str, Any]:
    """Where a step's model comes from: plain values, kept for good.

    `parent` is the registered model that the job started from; `config` is the whole job file.
    Hashes are empty for a job that was started before they were recorded.
    """
    inputs = job.inputs or Inputs(base_sha256="", dataset_sha256="")
    spec = job.spec
    return {
        "job": {"id": job.job_id, "name": job.name, "incarnation": job.incarnation},
        "policy_step": step + 1,
        "parent": job.parent,
        "groups": {"adapter": spec.adapters_in, "checkpoint": spec.checkpoints_in},
        "base_model": {"path": spec.model, "sha256": inputs.base_sha256},
        "dataset": {"path": spec.dataset, "sha256": inputs.dataset_sha256},
        "validation_dataset": {
            "path": spec.validation_dataset,
            "sha256": inputs.validation_sha256,
        },
        "code": f"turnwise {turnwise.__version__}",
        "metrics": {name: float(values[name]) for name in HEADLINE if name in values},
        "config": msgspec.to_builtins(spec),
    }


def checkpoint_key(job: Job, step: int) -> str:
    """The blob folder of a checkpoint.

    Each incarnation has its own: one that trains a step again, after a fall-back, must not write
    over what an earlier one has registered.
    """
    name = "initial" if step == BEFORE_TRAINING else f"step-{step:05d}"
    return checkpoint_blob(job, f"{name}.{job.incarnation}")


def checkpoint_blob(job: Job, name: str) -> str:
    """The blob key of something under the job's checkpoints."""
    return f"jobs/{job.job_id}/checkpoints/{name}"


def checkpoint_of(package: ModelPackage) -> Checkpoint:
    """A registered checkpoint as the learner restores it. Blocks: its adapter is hashed."""
    folder = Path(package.path) / ADAPTER_FOLDER
    adapter = Adapter(adapter_id=fingerprint(folder), path=str(folder))
    return Checkpoint(step=package.step, path=package.path, sha256=package.sha256, adapter=adapter)


async def next_version(job: Job, sockets: Sockets) -> int:
    """The version that the job's next pair of packages gets, unless another job takes it first."""
    groups = (job.spec.adapters_in, job.spec.checkpoints_in)
    return await sockets.store.next_version(job.account_id, groups)
