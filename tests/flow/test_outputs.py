"""What a job leaves at its `output_path`, whichever way it ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders import ACCOUNT
from tests.unit.loop.world import World, make_job, rows, run
from turnwise import errors
from turnwise.control.objects.buckets import Buckets
from turnwise.control.outputs import Outputs
from turnwise.domain.event import EventKind
from turnwise.domain.job import EvaluationSpec, JobKind, JobStatus
from turnwise.storage.blobs import FolderBlobs
from turnwise.system import new_id

ADAPTER = ["adapter_config.json", "adapter_model.safetensors", "metrics.json"]


@pytest.fixture
async def buckets(world: World, tmp_path: Path) -> Buckets:
    """Into which the world's job delivers."""
    blobs = FolderBlobs(tmp_path / "own")
    made = Buckets(world.store, blobs, world.clock, new_id)
    await made.create(ACCOUNT, "out")
    world.deliver = Outputs(world.store, made, world.blobs).deliver
    return made


async def written(buckets: Buckets) -> list[str]:
    return [each.key for each in (await buckets.list(ACCOUNT, "out")).objects]


async def said(world: World) -> list[str]:
    """The log, and the states of the job, in order."""
    events = await world.store.events(ACCOUNT, "job_walk")
    words = {EventKind.STATUS: "status", EventKind.LOG: "message"}
    return [event.body[words[event.kind]] for event in events if event.kind in words]


async def test_a_completed_jobs_adapter_is_there_when_the_job_says_so(
    world: World, buckets: Buckets
):
    job = await run(world, make_job(output_path="s3://out/runs/"))

    assert job.status is JobStatus.COMPLETED
    assert await written(buckets) == [f"runs/walk/output/{name}" for name in ADAPTER]
    assert (await said(world))[-2:] == ["the output is at s3://out/runs/walk/output", "COMPLETED"]
    _, path = await buckets.get(ACCOUNT, "out", "runs/walk/output/metrics.json")
    summary = json.loads(path.read_text())
    assert (summary["model"], summary["step"]) == (job.output, 1)
    assert summary["metrics"]["training/loss"] == 0.0


async def test_a_file_uri_gets_the_output_too(world: World, buckets: Buckets, tmp_path: Path):
    await run(world, make_job(output_path=f"file://{tmp_path}/there"))
    folder = tmp_path / "there/walk/output"
    assert sorted(each.name for each in folder.iterdir()) == ADAPTER
    newest = (await world.store.packages(ACCOUNT, group="walk"))[-1]
    weights = "adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (Path(newest.path) / weights).read_bytes()


async def test_the_adapters_of_a_job_with_a_group_of_its_choice_are_written_too(
    world: World, buckets: Buckets
):
    job = await run(world, make_job(output_path="s3://out", output_group="shared"))
    assert job.output.startswith("shared/")
    assert await written(buckets) == [f"walk/output/{name}" for name in ADAPTER]


async def test_a_job_that_fails_after_a_step_leaves_what_it_has(world: World, buckets: Buckets):
    job = make_job(output_path="s3://out")
    await world.store.create_job(job)
    loop = world.loop(job, rows())
    world.learner.breaks[1] = errors.Unavailable("the disk is gone")
    await loop.run()

    assert (await world.job()).status is JobStatus.FAILED
    assert await written(buckets) == [f"walk/output/{name}" for name in ADAPTER]


async def test_a_job_that_has_not_finished_a_step_leaves_nothing(world: World, buckets: Buckets):
    job = make_job(output_path="s3://out")
    await world.store.create_job(job)
    loop = world.loop(job, rows())
    world.learner.breaks[0] = errors.Unavailable("the disk is gone")
    await loop.run()

    assert await written(buckets) == []
    assert await world.warnings() == []


async def test_an_output_that_cannot_be_written_fails_no_job(world: World, buckets: Buckets):
    await buckets.delete_bucket(ACCOUNT, "out")

    job = await run(world, make_job(output_path="s3://out/runs"))

    assert job.status is JobStatus.COMPLETED
    (warning,) = await world.warnings()
    assert warning == (
        "the output could not be written to s3://out/runs: uri: "
        "'s3://out/runs/walk/output/adapter_config.json' is in bucket 'out', which does not exist "
        "here; create it, or set s3_endpoint_url so that the server asks a real S3; the job keeps "
        "it: `turnwise models export` or `turnwise jobs results` gives it out"
    )


async def test_an_unforeseen_fault_fails_no_job_either(
    world: World, buckets: Buckets, monkeypatch: pytest.MonkeyPatch
):
    def broken(*given: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(buckets.transfer, "upload", broken)
    job = await run(world, make_job(output_path="s3://out/runs"))

    assert job.status is JobStatus.COMPLETED
    assert ["RuntimeError: broken" in each for each in await world.warnings()] == [True]


async def test_a_job_without_an_output_path_writes_nothing(world: World, buckets: Buckets):
    await run(world, make_job())
    assert await written(buckets) == []


async def test_an_evaluation_leaves_its_results(world: World, buckets: Buckets):
    job = make_job(output_path="s3://out/eval", kind=JobKind.EVALUATION)
    job = replace(job, spec=replace(job.spec, evaluation=EvaluationSpec(group_size=1)))

    ended = await run(world, job)

    assert ended.status is JobStatus.COMPLETED, ended.message
    assert await written(buckets) == ["eval/walk/output/results.json", "eval/walk/output/rows.csv"]
