"""What a job starts from: its files by content, and the registered model that it builds on.

jobs resume     the same job goes on          base and datasets as at its first start
resume_from     a new job goes on after the   base, rows and every setting that decides what
                step of a checkpoint          is learned as they were: `_MAY_DIFFER` may not be
input_adapter   a new job at step 0 with a    base as it was; the adapter's shape is the job's
                fresh optimizer
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from turnwise import errors
from turnwise.control.job_data import JobData, JobFiles, files_sha256
from turnwise.control.job_file import as_mapping, flattened
from turnwise.control.job_settings import leaves
from turnwise.domain.job import Inputs, Job, JobKind, JobSpec
from turnwise.domain.times import in_words
from turnwise.domain.training import ADAPTER_FOLDER
from turnwise.modeling.fingerprint import base_sha256, fingerprint, verify
from turnwise.ports import ModelPackage, Store

#: Settings, or blocks of them, that may change where a new job continues a checkpoint: who it is,
#: where things are (files count by content), how rollouts are run and measured, and for how long.
#: The rest decides what is learned from which rows in which order.
_MAY_DIFFER = (
    *("name", "description", "priority", "agent", "model", "dataset", "validation_dataset"),
    *("input_adapter", "resume_from", "checkpoints", "parity", "tracking"),
    *("output_group", "checkpoint_group", "output_path", "max_runtime_s"),
    *("validation", "val_sampling_params", "evaluation", "eval_sampling_params"),
    *("batch.tokens_per_micro_batch", "batch.share_prefixes"),
    *("schedule.max_epochs", "schedule.max_steps", "schedule.val_every", "schedule.stop_early"),
    *("rollout.rollout_max_concurrency", "rollout.rollout_max_retries"),
    *("rollout.rollout_timeout", "rollout.turn_timeout", "rollout.group_timeout"),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Where a new job starts: its spec with what it names found, and the steps it inherits."""

    spec: JobSpec
    parent: str = ""  # the registered model, "group/version"
    step: int = 0
    inputs: Inputs | None = None  # that the first start must find; None: whatever it finds


class Lineage:
    """Checks what jobs start from."""

    def __init__(self, store: Store, data: JobData) -> None:
        self._store = store
        self._data = data

    async def beginning(
        self, account_id: str, spec: JobSpec, files: JobFiles, num_rows: int
    ) -> Beginning:
        """Find the model that a new job starts from.

        Raises `InvalidInput` for one that is not there or does not fit, naming each setting that
        differs, and `Corrupted` if its files are not as they were registered.
        """
        if spec.resume_from:
            package = await self._package(account_id, "resume_from", spec.resume_from)
            inputs = await asyncio.to_thread(check_continues, package, spec, files, num_rows)
            spec = dataclasses.replace(spec, resume_from=package.name)
            return Beginning(spec=spec, parent=package.name, step=package.step + 1, inputs=inputs)
        if not spec.input_adapter:
            return Beginning(spec=spec)
        return await self._from_adapter(account_id, spec)

    async def with_inputs(self, job: Job) -> Job:
        """The job with what it reads by content, recorded at its first start.

        Raises `Conflict` when a later start finds something else.
        """
        files = await self._data.files(job.account_id, job.spec)
        found = await asyncio.to_thread(read_inputs, job.spec, files)
        if job.inputs is None:
            await self._store.record_inputs(job.account_id, job.job_id, found)
        elif changed := list(_changed_inputs(job.spec, job.inputs, found)):
            raise errors.Conflict(
                f"job {job.name!r} cannot go on: {'; '.join(changed)}; put back what it was "
                "started with, or start a new job"
            )
        return dataclasses.replace(job, inputs=found)

    async def _from_adapter(self, account_id: str, spec: JobSpec) -> Beginning:
        folder, parent = spec.input_adapter, ""
        if not Path(folder).is_absolute():
            package = await self._package(account_id, "input_adapter", folder)
            await asyncio.to_thread(check_starts, package, spec)
            folder, parent = adapter_folder(package), package.name
        if not (Path(folder) / "adapter_config.json").is_file():
            raise _no_adapter(folder)
        if spec.kind is JobKind.TRAIN:
            check_shape(folder, spec)
        spec = dataclasses.replace(spec, input_adapter=folder)
        return Beginning(spec=spec, parent=parent)

    async def _package(self, account_id: str, field: str, name: str) -> ModelPackage:
        try:
            return await self._store.package(account_id, name)
        except errors.NotFound:
            if field == "input_adapter":
                raise _no_adapter(name) from None
            raise errors.InvalidInput(
                field,
                name,
                "is no registered checkpoint",
                remedy="`turnwise models list` shows what is registered",
            ) from None


# ── inputs ────────────────────────────────────────────────────────────────────────────────────


def read_inputs(spec: JobSpec, files: JobFiles) -> Inputs:
    """The hashes of what a job reads, from the files. Blocks: a base of 16 GB takes seconds."""
    return Inputs(
        base_sha256=base_sha256(spec.model),
        dataset_sha256=files_sha256("dataset", files.dataset),
        validation_sha256=files_sha256("validation_dataset", files.validation),
    )


def _changed_inputs(spec: JobSpec, before: Inputs, now: Inputs) -> Iterator[str]:
    for field, path, old, new in (
        ("model", spec.model, before.base_sha256, now.base_sha256),
        ("dataset", spec.dataset, before.dataset_sha256, now.dataset_sha256),
        (
            "validation_dataset",
            spec.validation_dataset,
            before.validation_sha256,
            now.validation_sha256,
        ),
    ):
        if old != new:
            yield _changed(field, path, old, new)


def _changed(field: str, path: str, old: str, new: str) -> str:
    return f"{field} {path} has sha256 {new[:12]}..., it was {old[:12]}..."


# ── a checkpoint to continue from ─────────────────────────────────────────────────────────────


def check_continues(package: ModelPackage, spec: JobSpec, files: JobFiles, num_rows: int) -> Inputs:
    """Raise unless a new job with this spec can go on after this checkpoint's step. Blocks.

    Returns what the job reads, by content.
    """
    if package.kind != "checkpoint":
        raise errors.InvalidInput(
            "resume_from",
            package.name,
            "is an adapter, which holds no optimizer state to go on with",
            remedy=f"give its checkpoint, {package.twin}, or start anew from it with "
            f"input_adapter: {package.name}",
        )
    check_kept(package)
    if "config" not in package.metadata:
        raise errors.InvalidInput(
            "resume_from",
            package.name,
            "was registered by a version of Turnwise that left out what it was trained with",
            remedy=f"start anew from its adapter with input_adapter: {package.twin}",
        )
    inputs = read_inputs(spec, files)
    if differing := list(_differences(package, spec, inputs)):
        raise errors.InvalidInput(
            "resume_from",
            package.name,
            "was trained otherwise: " + "; ".join(differing),
            remedy="set it as it was, or start anew from its adapter with input_adapter: "
            + package.twin,
        )
    _check_rest(package, spec, num_rows)
    verify(Path(package.path), package.sha256)
    return inputs


def _differences(package: ModelPackage, spec: JobSpec, inputs: Inputs) -> Iterator[str]:
    lineage = package.metadata
    for field, path, old, new in (
        ("model", spec.model, lineage["base_model"]["sha256"], inputs.base_sha256),
        ("dataset", spec.dataset, lineage["dataset"]["sha256"], inputs.dataset_sha256),
    ):
        if old != new:
            yield _changed(field, path, old, new)
    before = dict(flattened(lineage["config"]))
    now = dict(flattened(as_mapping(spec)))
    for leaf in leaves():
        if not _may_differ(leaf.path):
            # What the earlier version did not know yet was as its default says.
            old, new = before.get(leaf.path, leaf.default), now[leaf.path]
            if old != new:
                yield f"{leaf.path} is {new!r}, it was {old!r}"


def _may_differ(path: str) -> bool:
    return path.startswith(tuple(name + "." for name in _MAY_DIFFER)) or path in _MAY_DIFFER


def _check_rest(package: ModelPackage, spec: JobSpec, num_rows: int) -> None:
    """Refuse a schedule that ends before the step to go on with."""
    batch, schedule = spec.batch.global_batch_size, spec.schedule
    before = package.metadata["config"]["schedule"]["max_epochs"] * num_rows
    done = min((package.step + 1) * batch, before)  # the last step takes what is left
    for field, value, goes_on in (
        ("schedule.max_steps", schedule.max_steps, schedule.max_steps > package.step + 1),
        ("schedule.max_epochs", schedule.max_epochs, schedule.max_epochs * num_rows > done),
    ):
        if not goes_on:
            raise errors.InvalidInput(
                field,
                value,
                f"leaves nothing to train after step {package.step} of {package.name}",
                remedy="raise it; it counts from the first step of the job before",
            )


# ── an adapter to start from ──────────────────────────────────────────────────────────────────


def check_starts(package: ModelPackage, spec: JobSpec) -> None:
    """Raise unless a new job with this spec can start from (or evaluate) this package. Blocks."""
    if package.kind != "adapter" and spec.kind is JobKind.TRAIN:
        raise errors.InvalidInput(
            "input_adapter",
            package.name,
            "is a resumable checkpoint",
            remedy=f"give its adapter, {package.twin}, or continue it with "
            f"resume_from: {package.name}",
        )
    check_kept(package)
    was = package.metadata.get("base_model", {}).get("sha256", "")
    if was and was != (found := base_sha256(spec.model)):
        raise errors.InvalidInput(
            "model",
            spec.model,
            f"is not the base that {package.name} was trained on: its sha256 is {found[:12]}..., "
            f"that of {package.base_model} was {was[:12]}...",
            remedy="give that base model",
        )
    if package.kind == "adapter" and fingerprint(package.path) != package.sha256:
        raise errors.Corrupted(
            f"model {package.name}: the files in {package.path} are not as they were registered; "
            "choose another version"
        )


def check_shape(folder: str, spec: JobSpec) -> None:
    """Raise `InvalidInput` unless an adapter's rank, alpha and targets are the job's."""
    try:
        config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
        targets = sorted(config["target_modules"])
        theirs = f"rank {config['r']}, alpha {config['lora_alpha']:g}, {', '.join(targets)}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.InvalidInput(
            "input_adapter", folder, f"has no readable adapter_config.json: {error!r}"
        ) from None
    lora = spec.lora
    ours = f"rank {lora.rank}, alpha {lora.alpha:g}, {', '.join(sorted(lora.target_modules))}"
    if ours != theirs:
        raise errors.InvalidInput(
            "lora",
            ours,
            f"is not the shape of the input adapter: {theirs}",
            remedy="set lora to what the adapter has",
        )


def _no_adapter(name: str) -> errors.InvalidInput:
    return errors.InvalidInput(
        "input_adapter",
        name,
        "is neither a PEFT folder nor a registered model",
        remedy="give a folder's absolute path, or a name of `turnwise models list`",
    )


# ── packages ──────────────────────────────────────────────────────────────────────────────────


def check_kept(package: ModelPackage) -> None:
    """Raise `Conflict` for a package whose files are gone."""
    if package.pruned_at is not None:
        at = in_words(package.pruned_at)
        raise errors.Conflict(
            f"the files of model {package.name} were pruned at {at}, as its job's `checkpoints` "
            f"settings say; `turnwise models list --group {package.group}` shows which are kept"
        )


def adapter_folder(package: ModelPackage) -> str:
    """The PEFT folder inside a package of either kind. Raises `Conflict` if it was pruned."""
    check_kept(package)
    inner = Path(package.path) / ADAPTER_FOLDER
    return str(inner if inner.is_dir() else package.path)
