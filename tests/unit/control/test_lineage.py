"""What a job may start from, and what is refused with what differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders import ACCOUNT
from tests.unit.control.kit import ADMIN, World
from tests.unit.loop.fakes import names, write_adapter_files
from turnwise import errors
from turnwise.control.job_data import JobData
from turnwise.control.lineage import adapter_folder, read_inputs
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.models.served import ServedModels
from turnwise.domain.job import (
    AgentKind,
    AgentSpec,
    BatchSpec,
    CheckpointSpec,
    Inputs,
    Job,
    JobSpec,
    JobStatus,
    RolloutSpec,
    ScheduleSpec,
    TruncatedTurns,
)
from turnwise.domain.rollout import Policy
from turnwise.domain.training import Adapter, Checkpoint, LoraSpec, OptimizerSpec
from turnwise.loop.packages import packages_of
from turnwise.modeling.fingerprint import base_sha256, file_sha256, fingerprint, folder_sha256
from turnwise.ports import FinishedStep, NewId
from turnwise.storage.sql import SqlStore

LORA = LoraSpec(rank=1, alpha=2.0, target_modules=("q_proj",))
BATCH = BatchSpec(global_batch_size=1, group_size=2)
SCHEDULE = ScheduleSpec(max_epochs=9, max_steps=3)


def spec(world: World, name: str, **changes: Any) -> JobSpec:
    return world.spec(name, **({"lora": LORA, "batch": BATCH, "schedule": SCHEDULE} | changes))


@pytest.fixture
async def trained(world: World) -> Job:
    """The job "walk" after its first step, with walk/1 and walk-checkpoints/1 registered."""
    job = await world.jobs.create(ADMIN, spec(world, "walk"))
    await world.running("walk")
    return await finish_first_step(world, job)


async def finish_step(
    world: World, job: Job, step: int, ids: NewId, values: Mapping[str, float] | None = None
) -> None:
    """One step as the loop finishes it, with the version it expects to be the next."""
    folder = world.folder / f"{job.name}-{step}"
    write_adapter_files(folder / "adapter")
    (folder / "state.safetensors").write_text(f"{job.name} {step}")
    adapter = Adapter(adapter_id=fingerprint(folder / "adapter"), path=str(folder / "adapter"))
    sha256 = folder_sha256(folder)
    checkpoint = Checkpoint(step=step, path=str(folder), sha256=sha256, adapter=adapter)
    packages = packages_of(job, checkpoint, values or {}, version=step + 1, new_id=ids, now=7.0)
    done = FinishedStep(
        step=step,
        policy=Policy(),
        groups=(),
        bins={},
        checkpoint=checkpoint,
        packages=packages,
        events=(),
    )
    await world.store.finish_step(ACCOUNT, job.job_id, done)


async def finish_first_step(world: World, job: Job) -> Job:
    """Have it trained and registered; then the job "walk" fails."""
    job = await world.store.job(ACCOUNT, job.job_id)
    await finish_step(world, job, 0, names(), {"rollout/reward/mean": 0.5})
    world.loops["walk"].end(JobStatus.FAILED)
    await world.until("walk", JobStatus.FAILED)
    return job


async def refusal(world: World, **changes: Any) -> str:
    """What is said to whoever asks for the job "on"; nothing of it is stored."""
    with pytest.raises(errors.TurnwiseError) as refused:
        await world.jobs.create(ADMIN, spec(world, "on", **changes))
    assert set(await world.statuses()) == {"walk"}
    return str(refused.value)


async def inputs_of(spec: JobSpec) -> Inputs:
    return read_inputs(spec, await JobData().files(ACCOUNT, spec))


def short(sha256: str) -> str:
    return sha256[:12] + "..."


# ── lineage ───────────────────────────────────────────────────────────────────────────────────


async def test_a_package_tells_where_it_comes_from(world: World, trained: Job):
    package = await world.store.package(ACCOUNT, "walk")

    config = package.metadata.pop("config")
    assert package.metadata == {
        "job": {"id": "job_a", "name": "walk", "incarnation": 0},
        "policy_step": 1,
        "parent": "",
        "groups": {"adapter": "walk", "checkpoint": "walk-checkpoints"},
        "base_model": {
            "path": trained.spec.model,
            "sha256": base_sha256(trained.spec.model),
        },
        "dataset": {
            "path": trained.spec.dataset,
            "sha256": file_sha256(trained.spec.dataset),
        },
        "validation_dataset": {"path": "", "sha256": ""},
        "code": "turnwise 0.1.0",
        "metrics": {"rollout/reward/mean": 0.5},
    }
    assert (config["name"], config["lora"]["rank"], config["schedule"]["max_steps"]) == (
        *("walk", 1, 3),
    )
    assert (package.name, package.twin) == ("walk/1", "walk-checkpoints/1")
    assert (await world.store.package(ACCOUNT, package.twin)).twin == package.name


async def test_a_job_that_ends_leaves_its_newest_adapter_as_output(world: World, trained: Job):
    job = await world.jobs.describe(ADMIN, "walk")

    assert job.output == "walk/1"
    kinds = [(e.kind.value, e.body.get("model")) for e in await events(world, "walk")]
    assert kinds[-2:] == [("promotion", "walk/1"), ("status", None)]


async def events(world: World, name: str):
    job = await world.store.job(ACCOUNT, name)
    return await world.store.events(ACCOUNT, job.job_id)


# ── jobs resume ───────────────────────────────────────────────────────────────────────────────


async def test_what_a_job_reads_is_recorded_at_its_first_start(world: World, trained: Job):
    assert trained.inputs == await inputs_of(trained.spec)
    assert trained.inputs == Inputs(
        base_sha256=base_sha256(trained.spec.model),
        dataset_sha256=file_sha256(trained.spec.dataset),
    )


async def test_a_resume_is_refused_when_base_or_rows_have_changed(world: World, trained: Job):
    was = trained.inputs
    Path(trained.spec.model, "model.safetensors").write_text("other weights")
    Path(trained.spec.dataset).write_text(json.dumps({"prompt": "other"}) + "\n")

    with pytest.raises(errors.Conflict) as refused:
        await world.jobs.resume(ADMIN, "walk")

    now = await inputs_of(trained.spec)
    assert str(refused.value) == (
        f"job 'walk' cannot go on: "
        f"model {trained.spec.model} has sha256 {short(now.base_sha256)}, "
        f"it was {short(was.base_sha256)}; "
        f"dataset {trained.spec.dataset} has sha256 {short(now.dataset_sha256)}, "
        f"it was {short(was.dataset_sha256)}; "
        "put back what it was started with, or start a new job"
    )
    assert (await world.jobs.describe(ADMIN, "walk")).status is JobStatus.FAILED


async def test_a_restarted_server_fails_a_job_whose_rows_have_changed(
    tmp_path: Path, store: SqlStore
):
    before = World(tmp_path, store)
    await before.create("walk")
    await before.running("walk")
    await before.jobs.close()

    after = World(tmp_path, store)
    Path(before.spec("walk").dataset).write_text(json.dumps({"prompt": "other"}) + "\n")
    await after.jobs.recover()
    failed = await after.until("walk", JobStatus.FAILED)
    await after.jobs.close()

    assert failed.message.startswith("job 'walk' cannot go on: dataset ")
    assert after.loops == {}


# ── resume_from ───────────────────────────────────────────────────────────────────────────────


async def test_a_new_job_continues_a_checkpoint_after_its_step(world: World, trained: Job):
    moved = world.folder / "moved.jsonl"
    moved.write_bytes(Path(trained.spec.dataset).read_bytes())
    job = await world.jobs.create(
        ADMIN,
        spec(
            world,
            "on",
            resume_from="walk-checkpoints",
            dataset=str(moved),
            agent=AgentSpec(kind=AgentKind.HTTP, url="http://elsewhere"),
            schedule=replace(SCHEDULE, max_steps=5, val_every=0),
            rollout=RolloutSpec(rollout_max_retries=0),
            checkpoints=CheckpointSpec(keep_last=2),
        ),
    )

    assert (job.spec.resume_from, job.parent, job.step) == (
        *("walk-checkpoints/1", "walk-checkpoints/1", 1),
    )
    assert job.inputs == trained.inputs  # which its first start must find


async def test_more_epochs_may_follow_a_last_step_of_less_than_a_batch(world: World):
    large = {"batch": replace(BATCH, global_batch_size=8), "lora": LORA}
    one = replace(SCHEDULE, max_epochs=1)
    job = await world.jobs.create(ADMIN, world.spec("walk", schedule=one, **large))
    await world.running("walk")
    await finish_first_step(world, job)
    two = replace(SCHEDULE, max_epochs=2)
    on = world.spec("on", resume_from="walk-checkpoints/1", schedule=two, **large)
    assert (await world.jobs.create(ADMIN, on)).step == 1


async def test_a_checkpoint_is_not_continued_otherwise_than_it_was_trained(
    world: World, trained: Job
):
    said = await refusal(
        world,
        resume_from="walk-checkpoints/1",
        seed=5,
        batch=replace(BATCH, group_size=4),
        lora=replace(LORA, target_modules=("k_proj", "q_proj")),
        optimizer=OptimizerSpec(learning_rate=0.5),
        schedule=replace(SCHEDULE, warmup_steps=2),
        rollout=RolloutSpec(turn_timeout=5.0, truncated_turns=TruncatedTurns.MASK),
    )

    assert said == (
        "resume_from: 'walk-checkpoints/1' was trained otherwise: seed is 5, it was 0; "
        "batch.group_size is 4, it was 2; schedule.warmup_steps is 2, it was 0; "
        "lora.target_modules is ['k_proj', 'q_proj'], it was ['q_proj']; "
        "optimizer.learning_rate is 0.5, it was 4e-05; "
        "rollout.truncated_turns is 'mask', it was 'keep'; "
        "set it as it was, or start anew from its adapter with input_adapter: walk/1"
    )


async def test_a_checkpoint_is_not_continued_on_another_base_or_other_rows(
    world: World, trained: Job
):
    other = world.folder / "other"
    other.mkdir()
    (other / "config.json").write_text('{"other": true}')
    rows = world.folder / "other.jsonl"
    rows.write_text('{"prompt": "other"}\n')

    said = await refusal(
        world, resume_from="walk-checkpoints/1", model=str(other), dataset=str(rows)
    )

    was = trained.inputs
    assert said == (
        "resume_from: 'walk-checkpoints/1' was trained otherwise: "
        f"model {other} has sha256 {short(base_sha256(other))}, it was {short(was.base_sha256)}; "
        f"dataset {rows} has sha256 {short(file_sha256(rows))}, "
        f"it was {short(was.dataset_sha256)}; "
        "set it as it was, or start anew from its adapter with input_adapter: walk/1"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"resume_from": "walk/1"},
            "resume_from: 'walk/1' is an adapter, which holds no optimizer state to go on with; "
            "give its checkpoint, walk-checkpoints/1, or start anew from it with "
            "input_adapter: walk/1",
        ),
        (
            {"input_adapter": "walk-checkpoints"},
            "input_adapter: 'walk-checkpoints/1' is a resumable checkpoint; give its adapter, "
            "walk/1, or continue it with resume_from: walk-checkpoints/1",
        ),
        (
            {"resume_from": "walk-checkpoints/9"},
            "resume_from: 'walk-checkpoints/9' is no registered checkpoint; "
            "`turnwise models list` shows what is registered",
        ),
        (
            {"resume_from": "walk-checkpoints/1", "schedule": replace(SCHEDULE, max_steps=1)},
            "schedule.max_steps: 1 leaves nothing to train after step 0 of walk-checkpoints/1; "
            "raise it; it counts from the first step of the job before",
        ),
        (
            {"resume_from": "walk-checkpoints/1", "schedule": replace(SCHEDULE, max_epochs=1)},
            "schedule.max_epochs: 1 leaves nothing to train after step 0 of walk-checkpoints/1; "
            "raise it; it counts from the first step of the job before",
        ),
        (
            {"input_adapter": "walk/1", "lora": replace(LORA, rank=8)},
            "lora: 'rank 8, alpha 2, q_proj' is not the shape of the input adapter: "
            "rank 1, alpha 2, q_proj; set lora to what the adapter has",
        ),
    ],
)
async def test_what_cannot_be_started_from_is_refused_with_the_remedy(
    world: World, trained: Job, changes: dict[str, Any], message: str
):
    assert await refusal(world, **changes) == message


async def test_files_that_are_not_as_registered_are_never_started_from(world: World, trained: Job):
    folder = world.folder / "walk-0"
    (folder / "state.safetensors").write_text("momentS")
    assert "has sha256" in await refusal(world, resume_from="walk-checkpoints/1")

    (folder / "adapter" / "adapter_config.json").write_text(
        json.dumps({"r": 1, "lora_alpha": 4.0, "target_modules": ["q_proj"]})
    )
    assert await refusal(world, input_adapter="walk/1") == (
        f"model walk/1: the files in {folder}/adapter are not as they were registered; "
        "choose another version"
    )


async def test_a_pruned_model_says_so_wherever_it_is_used(world: World, trained: Job):
    world.clock.at = 1000.0
    await world.store.prune(ACCOUNT, trained.job_id, [], adapters=True)

    for field, name in (("resume_from", "walk-checkpoints/1"), ("input_adapter", "walk/1")):
        said = await refusal(world, **{field: name})
        assert said.startswith(f"the files of model {name} were pruned at ")
        assert f"`turnwise models list --group {name[:-2]}` shows which are kept" in said
    with pytest.raises(errors.Conflict, match="the files of model walk/1 were pruned"):
        adapter_folder(await world.store.package(ACCOUNT, "walk/1"))
    served = ServedModels(world.store, Catalogue(Path("/no/base/models")))
    assert await served.names(ADMIN) == []


# ── input_adapter ─────────────────────────────────────────────────────────────────────────────


async def test_a_new_job_starts_at_step_0_from_an_adapter(world: World, trained: Job):
    job = await world.jobs.create(
        ADMIN, spec(world, "on", input_adapter="walk", optimizer=OptimizerSpec(beta1=0.5))
    )

    assert (job.spec.input_adapter, job.parent, job.step) == (
        *(str(world.folder / "walk-0" / "adapter"), "walk/1", 0),
    )


async def test_an_adapter_is_refused_on_another_base(world: World, trained: Job):
    was = base_sha256(trained.spec.model)
    other = world.folder / "other"
    other.mkdir()
    (other / "config.json").write_text('{"other": true}')

    assert await refusal(world, input_adapter="walk/1", model=str(other)) == (
        f"model: {str(other)!r} is not the base that walk/1 was trained on: "
        f"its sha256 is {short(base_sha256(other))}, that of {trained.spec.model} was "
        f"{short(was)}; give that base model"
    )
