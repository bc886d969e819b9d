import csv
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow.parquet
import pytest

from tests import builders
from tests.builders import ACCOUNT
from tests.dashboard.kit import record_rollout, record_steps
from tests.unit.control.kit import ADMIN, World
from turnwise import errors
from turnwise.control.browse import Browse
from turnwise.control.exports import ROLLOUT_COLUMNS, Exports, Format
from turnwise.domain.access import Principal
from turnwise.domain.event import EventDraft, EventKind
from turnwise.domain.rollout import Blame, Fault, RolloutStatus
from turnwise.ports import RolloutQuery


async def written(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


@pytest.fixture
async def exports(world: World) -> Exports:
    await world.create("walk")
    return Exports(Browse(world.store))


async def test_metrics_are_a_row_per_step_in_every_format(
    world: World, exports: Exports, tmp_path: Path
):
    await record_steps(world, 0.25, 0.5)
    wanted = [
        {"step": 0, "rollout/reward/mean": 0.25, "training/loss": 0.5},
        {"step": 1, "rollout/reward/mean": 0.5, "training/loss": 0.5},
    ]
    as_json = await written(await exports.metrics(ADMIN, "walk", Format.JSON))
    assert json.loads(as_json) == wanted
    as_csv = (await written(await exports.metrics(ADMIN, "walk", Format.CSV))).decode()
    rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(as_csv))]
    assert rows == wanted
    file = tmp_path / "m.parquet"
    file.write_bytes(await written(await exports.metrics(ADMIN, "walk", Format.PARQUET)))
    assert pyarrow.parquet.read_table(file).to_pylist() == wanted


async def test_only_the_metrics_that_were_asked_for_are_written(world: World, exports: Exports):
    await record_steps(world, 0.25)
    text = await written(await exports.metrics(ADMIN, "walk", Format.CSV, ["training/"]))
    assert text == b"step,training/loss\n0,0.5\n"
    with pytest.raises(errors.InvalidInput, match="metric: 'nope' is no metric of this job"):
        await exports.metrics(ADMIN, "walk", Format.CSV, ["nope"])


async def test_rollouts_are_written_with_what_was_asked_and_replied(
    world: World, exports: Exports, tmp_path: Path
):
    await world.store.open_group(builders.group("grp_rol_a", job_id="job_a", epoch=2))
    await record_rollout(world)
    query = RolloutQuery(job_id="walk")
    [record] = json.loads(await written(await exports.rollouts(ADMIN, query, Format.JSON)))
    assert record["epoch"] == 2
    assert record["score"] == 0.5
    assert record["is_score_valid"] is True
    assert (record["prompt"], record["response"]) == ("question 0", "answer 0")
    assert (record["prompt_tokens"], record["completion_tokens"]) == (3, 2)
    assert record["duration_s"] == 2.5
    assert [message["role"] for message in record["messages"]] == ["user", "assistant"]
    file = tmp_path / "r.parquet"
    file.write_bytes(await written(await exports.rollouts(ADMIN, query, Format.PARQUET)))
    assert pyarrow.parquet.read_table(file).to_pylist() == [
        {name: record[name] for name in ROLLOUT_COLUMNS}
    ]


async def test_a_failed_rollout_says_why_and_has_no_score(world: World, exports: Exports):
    await world.store.open_rollouts([builders.rollout("rol_b", job_id="job_a")])
    fault = Fault(blame=Blame.AGENT, code="deadline", message="not completed within 600 s")
    await world.store.move_rollout(
        ACCOUNT,
        "rol_b",
        expected=[RolloutStatus.PENDING],
        status=RolloutStatus.FAILED,
        fault=fault,
        ended_at=1600.0,
    )
    pieces = await exports.rollouts(ADMIN, RolloutQuery(job_id="walk"), Format.CSV)
    [row] = csv.DictReader(io.StringIO((await written(pieces)).decode()))
    assert (row["status_code"], row["reason"]) == ("deadline", "not completed within 600 s")
    assert (row["score"], row["is_score_valid"], row["response"]) == ("", "False", "")


async def test_a_score_comes_with_what_its_evaluator_said(world: World, exports: Exports):
    await world.store.open_rollouts([builders.rollout("rol_b", job_id="job_a")])
    await world.store.move_rollout(
        ACCOUNT,
        "rol_b",
        expected=[RolloutStatus.PENDING],
        status=RolloutStatus.REWARDED,
        rewards=(0.5,),
        reason="half of it",
    )
    pieces = await exports.rollouts(ADMIN, RolloutQuery(job_id="walk"), Format.CSV)
    [row] = csv.DictReader(io.StringIO((await written(pieces)).decode()))
    assert (row["status_code"], row["reason"]) == ("OK", "half of it")


async def test_more_rollouts_than_are_read_at_once_are_all_written_in_order(
    world: World, exports: Exports
):
    ids = [f"rol_{n:03d}" for n in range(250)]
    await world.store.open_rollouts(
        [builders.rollout(each, job_id="job_a", slot=n) for n, each in enumerate(ids)]
    )
    pieces = await exports.rollouts(ADMIN, RolloutQuery(job_id="walk"), Format.JSON)
    assert [each["rollout_id"] for each in json.loads(await written(pieces))] == ids


async def test_a_spreadsheet_takes_no_text_for_a_formula(world: World, exports: Exports):
    await world.store.open_rollouts([builders.rollout("rol_b", job_id="job_a")])
    fault = Fault(blame=Blame.AGENT, code="agent_failed", message="=HYPERLINK(A1)")
    await world.store.move_rollout(
        ACCOUNT, "rol_b", expected=[RolloutStatus.PENDING], status=RolloutStatus.FAILED, fault=fault
    )
    pieces = await exports.rollouts(ADMIN, RolloutQuery(job_id="walk"), Format.CSV)
    [row] = csv.DictReader(io.StringIO((await written(pieces)).decode()))
    assert row["reason"] == "'=HYPERLINK(A1)"


async def test_nor_the_name_of_a_metric(world: World, exports: Exports):
    body = {"step": 0, "values": {"=HYPERLINK(A1)": 1.0}}
    await world.store.append(ACCOUNT, "job_a", [EventDraft(kind=EventKind.METRICS, body=body)])
    pieces = await exports.metrics(ADMIN, "walk", Format.CSV)
    assert (await written(pieces)).decode().splitlines()[0] == "step,'=HYPERLINK(A1)"


async def test_a_job_without_anything_gives_empty_tables(exports: Exports):
    assert await written(await exports.metrics(ADMIN, "walk", Format.CSV)) == b"step\n"
    pieces = await exports.rollouts(ADMIN, RolloutQuery(job_id="walk"), Format.JSON)
    assert json.loads(await written(pieces)) == []


async def test_another_accounts_job_is_not_exported(exports: Exports):
    other = Principal(account_id="acc_other")
    with pytest.raises(errors.NotFound):
        await exports.metrics(other, "walk", Format.CSV)
    with pytest.raises(errors.NotFound):
        await exports.rollouts(other, RolloutQuery(job_id="walk"), Format.CSV)
