"""Groups that jobs name for their models, and share."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.builders import ACCOUNT
from tests.unit.control.kit import ADMIN, World
from tests.unit.control.test_lineage import finish_first_step, spec
from tests.unit.loop.fakes import names, write_adapter_files
from turnwise import errors
from turnwise.domain.job import Job, JobStatus
from turnwise.domain.rollout import Policy
from turnwise.domain.training import Adapter, Checkpoint
from turnwise.loop.packages import packages_of
from turnwise.modeling.fingerprint import fingerprint, folder_sha256
from turnwise.ports import FinishedStep

GROUPS = {"output_group": "shared", "checkpoint_group": "shared-state"}


async def finish_step(world: World, job: Job, step: int, ids: Any) -> None:
    """One step as the loop finishes it, with the version it expects to be the next."""
    folder = world.folder / f"{job.name}-{step}"
    write_adapter_files(folder / "adapter")
    (folder / "state.safetensors").write_text(f"{job.name} {step}")
    adapter = Adapter(adapter_id=fingerprint(folder / "adapter"), path=str(folder / "adapter"))
    sha256 = folder_sha256(folder)
    checkpoint = Checkpoint(step=step, path=str(folder), sha256=sha256, adapter=adapter)
    packages = packages_of(job, checkpoint, {}, version=step + 1, new_id=ids, now=7.0)
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


@pytest.fixture
async def pair(world: World) -> list[Job]:
    """Two jobs under way that share their groups."""
    created = [await world.jobs.create(ADMIN, spec(world, n, **GROUPS)) for n in ("walk", "run")]
    return [await world.store.job(ACCOUNT, job.job_id) for job in created]


async def test_jobs_that_share_groups_at_once_number_on_in_them(
    world: World, pair: list[Job]
) -> None:
    ids = names()
    for step in range(3):
        await asyncio.gather(*(finish_step(world, job, step, ids) for job in pair))
    for group in GROUPS.values():
        found = await world.store.packages(ACCOUNT, group=group)
        assert [package.version for package in found] == [1, 2, 3, 4, 5, 6]
        for package in found:
            twin = await world.store.package(ACCOUNT, package.twin)
            assert (twin.job_id, twin.step, twin.twin) == (
                package.job_id,
                package.step,
                package.name,
            )
    for job in pair:
        newest = {p.kind: p for p in await world.store.newest_packages(ACCOUNT, job.job_id)}
        assert {p.step for p in newest.values()} == {2}
        assert newest["adapter"].twin == newest["checkpoint"].name


async def test_pruning_a_job_leaves_the_groups_other_models_alone(
    world: World, pair: list[Job]
) -> None:
    ids = names()
    for step in range(3):
        for job in pair:
            await finish_step(world, job, step, ids)
    await world.store.prune(ACCOUNT, pair[0].job_id, {2}, adapters=True)
    found = await world.store.packages(ACCOUNT, group="shared")
    pruned = [(p.job_id == pair[0].job_id, p.step) for p in found if p.pruned_at is not None]
    assert pruned == [(True, 0), (True, 1)]


async def test_a_job_that_ends_leaves_its_own_newest_adapter(world: World, pair: list[Job]) -> None:
    ids = names()
    for job in (pair[0], pair[1], pair[1]):
        step = (await world.store.job(ACCOUNT, job.job_id)).step
        await finish_step(world, job, step, ids)
    (await world.running("walk")).end(JobStatus.STOPPED)
    assert (await world.until("walk", JobStatus.STOPPED)).output == "shared/1"


async def test_a_checkpoint_of_a_named_group_is_continued_elsewhere(world: World) -> None:
    job = await world.jobs.create(ADMIN, spec(world, "walk", **GROUPS))
    await world.running("walk")
    await finish_first_step(world, job)
    on = await world.jobs.create(ADMIN, spec(world, "on", resume_from="shared-state/1"))
    assert (on.step, on.parent) == (1, "shared-state/1")
    with pytest.raises(
        errors.InvalidInput, match=r"is an adapter.*give its checkpoint, shared-sta"
    ):
        await world.jobs.create(ADMIN, spec(world, "wrong", resume_from="shared/1"))


async def test_a_group_holds_models_of_one_kind(world: World) -> None:
    job = await world.jobs.create(ADMIN, spec(world, "walk"))
    await world.running("walk")
    await finish_first_step(world, job)
    for field, group, holds in (
        ("output_group", "walk-checkpoints", "checkpoints, as walk-checkpoints/1"),
        ("checkpoint_group", "walk", "adapters, as walk/1"),
    ):
        with pytest.raises(errors.InvalidInput, match=f"{field}: '{group}' holds {holds}"):
            await world.jobs.create(ADMIN, spec(world, "mixed", **{field: group}))


async def test_what_was_registered_before_groups_had_names_has_its_twin(world: World) -> None:
    job = await world.jobs.create(ADMIN, spec(world, "walk"))
    await world.running("walk")
    await finish_first_step(world, job)
    package = await world.store.package(ACCOUNT, "walk/1")
    metadata = {key: value for key, value in package.metadata.items() if key != "groups"}
    assert replace(package, metadata=metadata).twin == "walk-checkpoints/1"
