"""What of the server's own machine an account may name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.builders import ACCOUNT
from tests.unit.control.kit import ADMIN, World
from turnwise import errors
from turnwise.control.job_data import JobData
from turnwise.control.jobs import Jobs
from turnwise.control.objects.buckets import Buckets
from turnwise.control.queue import Limits
from turnwise.domain.access import Account, Principal
from turnwise.domain.job import AgentKind, AgentSpec, EvaluationSpec, JobKind, ScorerSpec
from turnwise.domain.objects import StoredObject
from turnwise.system import new_id

OTHER = Account(account_id="acc_other", slug="other", number="000000000002")
STRANGER = Principal(account_id=OTHER.account_id)
ROWS = b'{"prompt": "one"}\n'


@pytest.fixture
async def shared(world: World) -> World:
    """With another account, which has rows in a bucket of its own."""
    await world.store.create_account(OTHER)
    for account_id in (ACCOUNT, OTHER.account_id):
        await world.buckets.create(account_id, "data")
        await world.buckets.put(account_id, "data", "rows.jsonl", ROWS)
    (world.folder / "adapter").mkdir()
    (world.folder / "adapter" / "adapter_config.json").write_text("{}")
    return world


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("dataset", {"dataset": "{folder}/train.jsonl"}),
        ("dataset", {"dataset": "file://{folder}/train.jsonl"}),
        ("validation_dataset", {"validation_dataset": "{folder}/train.jsonl"}),
        ("output_path", {"output_path": "file://{folder}/out"}),
        ("input_adapter", {"input_adapter": "{folder}/adapter"}),
        ("agent.target", {"agent": AgentSpec(kind=AgentKind.PYTHON, target="os:system")}),
        (
            "evaluation.models[0]",
            {
                "kind": JobKind.EVALUATION,
                "evaluation": EvaluationSpec(models=("{folder}/adapter",)),
            },
        ),
        (
            "evaluation.scorers[0].target",
            {
                "kind": JobKind.EVALUATION,
                "evaluation": EvaluationSpec(scorers=(ScorerSpec(name="s", target="os:system"),)),
            },
        ),
    ],
)
async def test_only_the_operators_account_names_what_is_on_the_servers_machine(
    shared: World, field: str, changes: dict[str, Any]
):
    given: dict[str, Any] = {"dataset": "s3://data/rows.jsonl"} | changes
    for name, value in given.items():
        if isinstance(value, str):
            given[name] = value.replace("{folder}", str(shared.folder))
    if evaluation := given.get("evaluation"):
        models = tuple(m.replace("{folder}", str(shared.folder)) for m in evaluation.models)
        given["evaluation"] = EvaluationSpec(models=models, scorers=evaluation.scorers)
    spec = shared.spec("walk", **given)
    with pytest.raises(
        errors.Denied, match="which only the operator's account may name"
    ) as refusal:
        await shared.jobs.create(STRANGER, spec)
    assert str(refusal.value).startswith(f"{field}: ")
    assert await shared.store.jobs(OTHER.account_id) == []


async def test_another_account_trains_on_rows_in_its_own_bucket(shared: World):
    spec = shared.spec("walk", dataset="s3://data/rows.jsonl", output_path="s3://data/out")
    assert (await shared.jobs.create(STRANGER, spec)).account_id == OTHER.account_id


async def test_another_account_trains_only_the_base_models_that_were_added(shared: World):
    jobs = Jobs(
        store=shared.store,
        agents=shared.agents,
        clock=shared.clock,
        new_id=new_id,
        start=shared._start,
        limits=Limits(running=4),
        data=JobData(shared.buckets),
        is_base=lambda folder: Path(folder).name == "added",
    )
    changes = {"dataset": "s3://data/rows.jsonl"}
    with pytest.raises(errors.Denied, match=r"^model: .* use the folder of a base model"):
        await jobs.create(STRANGER, shared.spec("walk", **changes))
    await jobs.create(ADMIN, shared.spec("walk", **changes))
    (shared.folder / "added").symlink_to(shared.folder / "model")
    await jobs.create(STRANGER, shared.spec("walk", model=str(shared.folder / "added"), **changes))


async def test_the_servers_own_files_are_no_rows_and_no_adapter_by_their_path_either(
    shared: World,
):
    _, rows = await shared.buckets.get(OTHER.account_id, "data", "rows.jsonl")
    for changes in ({"dataset": str(rows)}, {"input_adapter": str(rows.parent)}):
        with pytest.raises(errors.InvalidInput, match="leads into the server's own data"):
            await shared.jobs.create(ADMIN, shared.spec("walk", **changes))


class OneObject:
    """A real S3 with a file in each bucket, that the server's credentials open."""

    def list(self, bucket: str, prefix: str, limit: int) -> list[StoredObject]:
        return [StoredObject(bucket=bucket, key=prefix, size=1, etag="e", modified=0.0)]

    def download(self, stored: StoredObject, to: Path) -> None:
        to.write_bytes(ROWS)

    def upload(self, file: Path, bucket: str, key: str) -> None:
        raise AssertionError("nothing is written here")

    def check(self, bucket: str) -> None:
        """It is there."""


async def test_the_servers_credentials_for_a_real_s3_are_the_operators(shared: World):
    buckets = Buckets(shared.store, shared.blobs, shared.clock, new_id, remote=OneObject())
    data = JobData(buckets)
    spec = builders.spec("walk", dataset="s3://real/rows.jsonl", output_path="s3://real/out")
    await data.check_output(ACCOUNT, spec)
    assert len((await data.files(ACCOUNT, spec)).dataset) == 1
    with pytest.raises(errors.InvalidInput, match="does not exist here"):
        await data.check_output(OTHER.account_id, spec)
    with pytest.raises(errors.InvalidInput, match="does not exist here"):
        await data.files(OTHER.account_id, spec)
