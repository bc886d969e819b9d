"""Data of jobs by URI: found at creation, read at each start, and the same at every start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders import ACCOUNT
from tests.unit.control.kit import ADMIN, World
from turnwise import errors
from turnwise.control.job_data import JobData, load_job_rows
from turnwise.control.job_file import parse_job
from turnwise.domain.data import Row
from turnwise.domain.job import JobSpec, JobStatus
from turnwise.modeling.fingerprint import file_sha256

ROWS = b'{"prompt": "one"}\n{"prompt": "two"}\n'


@pytest.fixture
async def stocked(world: World) -> World:
    """With rows in a bucket."""
    await world.buckets.create(ACCOUNT, "data")
    for key, data in {
        "train.jsonl": ROWS,
        "many/1.jsonl": b'{"prompt": "one"}\n',
        "many/2.csv": b"prompt,id\ntwo,7\n",
        "many/_SUCCESS": b"",
        "many/in/.part.crc": b"\0",
        "many/in/3.json": b'[{"prompt": "three"}]',
        "many/": b"",
        "many-more/4.jsonl": b'{"prompt": "four"}\n',
        "bad.jsonl": b'{"prompt": "fine"}\n{"prompt"\n',
        "odd.txt": b"go",
        "none/_SUCCESS": b"",
    }.items():
        await world.buckets.put(ACCOUNT, "data", key, data)
    return world


async def rows_of(world: World, spec: JobSpec) -> tuple[list[Row], list[Row]]:
    return load_job_rows(spec, await JobData(world.buckets).files(ACCOUNT, spec))


async def test_a_job_reads_its_rows_from_a_bucket(stocked: World):
    spec = stocked.spec("walk", dataset="s3://data/train.jsonl")
    job = await stocked.jobs.create(ADMIN, spec)
    await stocked.running("walk")

    rows, validation = await rows_of(stocked, job.spec)
    assert ([row.prompt for row in rows], validation) == (["one", "two"], [])
    assert job.spec.dataset == "s3://data/train.jsonl"
    _, path = await stocked.buckets.get(ACCOUNT, "data", "train.jsonl")
    job = await stocked.store.job(ACCOUNT, "walk")
    assert job.inputs is not None
    assert job.inputs.dataset_sha256 == file_sha256(path)


async def test_a_prefix_means_all_files_below_it_in_the_order_of_their_names(stocked: World):
    for uri in ("s3://data/many", "s3://data/many/"):
        rows, _ = await rows_of(stocked, stocked.spec("walk", dataset=uri))
        assert [(row.index, row.prompt) for row in rows] == [(0, "one"), (1, "two"), (2, "three")]


async def test_a_file_uri_means_a_file_or_a_folder_of_the_server(stocked: World):
    folder = stocked.folder / "rows"
    folder.mkdir()
    (folder / "b.jsonl").write_bytes(b'{"prompt": "b"}\n')
    (folder / "a ä.jsonl").write_bytes(b'{"prompt": "a"}\n')
    for uri, prompts in (
        (f"file://{folder}", ["a", "b"]),
        (f"file://{folder}/a%20%C3%A4.jsonl", ["a"]),
    ):
        spec = stocked.spec("walk", dataset=uri, validation_dataset=f"file://{folder}/b.jsonl")
        rows, validation = await rows_of(stocked, spec)
        assert ([r.prompt for r in rows], [r.prompt for r in validation]) == (prompts, ["b"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset": "s3://elsewhere/x.jsonl"},
            "dataset: 's3://elsewhere/x.jsonl' is in bucket 'elsewhere', which does not exist here",
        ),
        (
            {"dataset": "s3://data/missing"},
            "dataset: 's3://data/missing' is neither a file nor a folder of files",
        ),
        (
            {"validation_dataset": "s3://data/bad.jsonl"},
            "validation_dataset line 2: '{\"prompt\"' is not JSON",
        ),
        ({"dataset": "s3://data/odd.txt"}, "dataset: 's3://data/odd.txt' has an unknown format"),
        ({"dataset": "s3://data/none"}, "dataset: 's3://data/none' holds no files but hidden ones"),
        ({"dataset": "file:///nowhere.csv"}, "dataset: 'file:///nowhere.csv' is neither a file"),
        (
            {"output_path": "s3://elsewhere/out"},
            "output_path: 's3://elsewhere/out' is in bucket 'elsewhere', which does not exist",
        ),
    ],
)
async def test_data_that_cannot_be_used_is_refused_at_creation(
    stocked: World, changes: dict[str, Any], message: str
):
    with pytest.raises(errors.InvalidInput) as refusal:
        await stocked.jobs.create(ADMIN, stocked.spec("walk", **changes))
    assert str(refusal.value).startswith(message)
    assert await stocked.statuses() == {}


async def test_another_accounts_bucket_does_not_exist(stocked: World):
    await stocked.buckets.create("acc_other", "theirs")
    await stocked.buckets.put("acc_other", "theirs", "rows.jsonl", ROWS)
    for changes in ({"dataset": "s3://theirs/rows.jsonl"}, {"output_path": "s3://theirs/out"}):
        with pytest.raises(errors.InvalidInput, match="'theirs', which does not exist here"):
            await stocked.jobs.create(ADMIN, stocked.spec("walk", **changes))


async def test_the_servers_own_files_are_no_data(stocked: World):
    uri = f"file://{stocked.blobs.path('objects')}"
    for changes in ({"dataset": uri}, {"output_path": uri}):
        with pytest.raises(errors.InvalidInput, match="leads into the server's own data"):
            await stocked.jobs.create(ADMIN, stocked.spec("walk", **changes))


async def test_a_job_does_not_go_on_with_an_object_that_has_changed(stocked: World):
    spec = stocked.spec("walk", dataset="s3://data/many")
    await stocked.jobs.create(ADMIN, spec)
    loop = await stocked.running("walk")
    loop.end(JobStatus.FAILED)
    await stocked.until("walk", JobStatus.FAILED)

    await stocked.buckets.put(ACCOUNT, "data", "many/2.csv", b"prompt,id\nother,7\n")
    with pytest.raises(errors.Conflict, match=r"dataset s3://data/many has sha256 .* it was"):
        await stocked.jobs.resume(ADMIN, "walk")

    await stocked.buckets.put(ACCOUNT, "data", "many/2.csv", b"prompt,id\ntwo,7\n")  # as it was
    del stocked.loops["walk"]
    await stocked.jobs.resume(ADMIN, "walk")
    await stocked.running("walk")


async def test_a_job_keeps_the_column_that_it_began_with(stocked: World):
    file = stocked.folder / "questions.jsonl"
    file.write_text(json.dumps({"question": "why?", "answer": "so"}) + "\n")
    job = await stocked.jobs.create(ADMIN, stocked.spec("walk", dataset=str(file)))
    named = await stocked.jobs.create(ADMIN, stocked.spec("run"))
    assert (job.spec.prompt_column, named.spec.prompt_column) == ("question", "prompt")
    with pytest.raises(errors.InvalidInput, match="has no 'id' column"):
        await stocked.jobs.create(
            ADMIN, stocked.spec("stroll", dataset=str(file), prompt_column="id")
        )


def test_a_job_file_may_hold_uris_and_they_are_checked(tmp_path: Path):
    base = {"name": "walk", "model": "/m", "agent": {"kind": "scripted"}}
    spec = parse_job(
        base | {"dataset": "s3://data/rows", "output_path": "file:///out"}, folder=tmp_path
    )
    assert (spec.dataset, spec.output_path) == ("s3://data/rows", "file:///out")
    for changes, field in (
        ({"dataset": "s3://No/rows"}, "dataset"),
        ({"dataset": "s3://data/r", "output_path": "/plain"}, "output_path"),
        ({"dataset": "/d.csv", "validation_dataset": "file://host/x"}, "validation_dataset"),
    ):
        with pytest.raises(errors.InvalidInput) as refusal:
            parse_job(base | changes, folder=tmp_path)
        assert refusal.value.field == field
