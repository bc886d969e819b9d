from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.control.models.kit import save_base
from tests.wire.aws.kit import Caller, Refused, a_call
from turnwise import errors
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.models.hubs import Hubs
from turnwise.control.models.recipe_files import RecipeFiles
from turnwise.domain.access import Action
from turnwise.storage.blobs import FolderBlobs
from turnwise.storage.sql import SqlStore
from turnwise.system import SYSTEM_CLOCK
from turnwise.wire.aws.sagemaker.hub import HubRooms, dataset_uri, hub_handlers
from turnwise.wire.aws.sagemaker.tags import Tags, tag_handlers

PUBLIC = "SageMakerPublicHub"
RECIPES = "s3://turnwise-recipes-us-west-2"


@pytest.fixture
async def store() -> AsyncIterator[SqlStore]:
    opened = SqlStore.in_memory()
    yield opened
    await opened.close()


@pytest.fixture
def hubs(store: SqlStore) -> Hubs:
    return Hubs(store, SYSTEM_CLOCK)


@pytest.fixture
def ask(tmp_path: Path, store: SqlStore, hubs: Hubs) -> Caller:
    catalogue = Catalogue(tmp_path / "models")
    blobs = FolderBlobs(tmp_path / "blobs")
    tags = Tags(store, SYSTEM_CLOCK)
    rooms = HubRooms(
        hubs=hubs,
        catalogue=catalogue,
        recipes=RecipeFiles(catalogue, blobs, RECIPES.removeprefix("s3://")),
        tags=tags,
    )
    return Caller(hub_handlers(rooms) | tag_handlers(tags))


def model(name: str, hub: str = PUBLIC) -> dict[str, str]:
    return {"HubName": hub, "HubContentType": "Model", "HubContentName": name}


# ── base models ───────────────────────────────────────────────────────────────────────────────


async def test_a_base_model_is_the_public_hubs_content(ask: Caller, tmp_path: Path):
    save_base(tmp_path / "models" / "tiny")
    found = await ask("DescribeHubContent", **model("tiny"))
    document = json.loads(found.pop("HubContentDocument"))
    created = found.pop("CreationTime")
    assert created == pytest.approx((tmp_path / "models" / "tiny").stat().st_mtime, abs=0.001)
    assert found == {
        "HubContentName": "tiny",
        "HubContentArn": f"arn:aws:sagemaker:us-west-2:aws:hub-content/{PUBLIC}/Model/tiny/1.0.0",
        "HubContentVersion": "1.0.0",
        "HubContentType": "Model",
        "DocumentSchemaVersion": "2.0.0",
        "HubName": PUBLIC,
        "HubArn": f"arn:aws:sagemaker:us-west-2:aws:hub/{PUBLIC}",
        "HubContentDisplayName": "tiny",
        "HubContentDescription": "Base model tiny",
        "HubContentSearchKeywords": [
            "@recipe:finetuning_mtrl_lora",
            "@recipe:evaluation_mtrlevaluation",
        ],
        "HubContentStatus": "Available",
        "SupportStatus": "Supported",
    }
    training, evaluation = document["RecipeCollection"]
    assert training == {
        "Name": "tiny-mtrl-lora",
        "DisplayName": "Multi-turn reinforcement learning of tiny with LoRA",
        "Type": "FineTuning",
        "CustomizationTechnique": "MTRL",
        "Peft": "LORA",
        "SmtjRecipeTemplateS3Uri": f"{RECIPES}/tiny/1.0.0/finetuning-mtrl-lora.yaml",
        "SmtjOverrideParamsS3Uri": f"{RECIPES}/tiny/1.0.0/finetuning-mtrl-lora.json",
        "IsSubscriptionModel": False,
        "SequenceLength": "2K",
    }
    assert (evaluation["Type"], evaluation["EvaluationType"]) == ("Evaluation", "MTRLEvaluation")


async def test_a_model_is_found_by_the_hubs_arn_and_its_version_too(ask: Caller, tmp_path: Path):
    save_base(tmp_path / "models" / "tiny")
    arn = f"arn:aws:sagemaker:us-west-2:aws:hub/{PUBLIC}"
    found = await ask("DescribeHubContent", **model("tiny", arn), HubContentVersion="1.0.0")
    assert found["HubContentName"] == "tiny"
    listed = await ask("ListHubContentVersions", **model("tiny"))
    assert [each["HubContentVersion"] for each in listed["HubContentSummaries"]] == ["1.0.0"]


@pytest.mark.parametrize(
    "given",
    [
        model("large"),
        model("tiny") | {"HubContentVersion": "2.0.0"},
        model("tiny") | {"HubContentType": "Notebook"},
        model("tiny", "Unknown"),
        model("tiny", f"arn:aws:sagemaker:eu-west-1:aws:hub/{PUBLIC}"),
    ],
)
async def test_an_unknown_model_is_not_found_in_the_code_that_the_sdk_looks_for(
    ask: Caller, tmp_path: Path, given: dict[str, str]
):
    save_base(tmp_path / "models" / "tiny")
    with pytest.raises(Refused, match="does not exist") as refused:
        await ask("DescribeHubContent", **given)
    assert refused.value.code == "ResourceNotFound"


async def test_models_are_filtered_sorted_and_paged(ask: Caller, tmp_path: Path):
    for name in ("b-tiny", "a-tiny", "small"):
        save_base(tmp_path / "models" / name)

    async def names(**given: Any) -> list[str]:
        found = await ask("ListHubContents", HubName=PUBLIC, HubContentType="Model", **given)
        return [each["HubContentName"] for each in found["HubContentSummaries"]]

    assert await names() == ["a-tiny", "b-tiny", "small"]
    assert await names(NameContains="TINY", SortOrder="Descending") == ["b-tiny", "a-tiny"]
    assert await names(CreationTimeBefore=1.0) == []
    both = {"HubName": PUBLIC, "HubContentType": "Model", "MaxResults": 2}
    first = await ask("ListHubContents", **both)
    rest = await ask("ListHubContents", **both, NextToken=first["NextToken"])
    assert [each["HubContentName"] for each in rest["HubContentSummaries"]] == ["small"]
    notebooks = await ask("ListHubContents", HubName=PUBLIC, HubContentType="Notebook")
    assert notebooks == {"HubContentSummaries": []}


async def test_a_model_too_short_for_the_unit_says_no_length(ask: Caller, tmp_path: Path):
    folder = save_base(tmp_path / "models" / "tiny")
    (folder / "config.json").write_text('{"max_position_embeddings": 512}')
    found = await ask("DescribeHubContent", **model("tiny"))
    recipes = json.loads(found["HubContentDocument"])["RecipeCollection"]
    assert all("SequenceLength" not in recipe for recipe in recipes)


async def test_the_public_hub_is_the_servers_own(ask: Caller):
    for operation, given in (
        ("CreateHub", {"HubName": PUBLIC, "HubDescription": "mine"}),
        ("UpdateHub", {"HubName": PUBLIC, "HubDescription": "mine"}),
        ("DeleteHub", {"HubName": PUBLIC}),
        ("DeleteHubContent", model("tiny") | {"HubContentVersion": "1.0.0"}),
        ("ImportHubContent", rows_of("walks", hub=PUBLIC)),
    ):
        with pytest.raises(Refused, match="models add-base") as refused:
            await ask(operation, **given)
        assert refused.value.code == "AccessDeniedException"
    hub = await ask("DescribeHub", HubName=PUBLIC)
    assert (hub["HubStatus"], hub["HubName"]) == ("InService", PUBLIC)


# ── data sets ─────────────────────────────────────────────────────────────────────────────────


def rows_of(name: str, *, hub: str = "Mine", **more: Any) -> dict[str, Any]:
    document = {"DatasetS3Bucket": "rows", "DatasetS3Prefix": f"{name}.jsonl"}
    return {
        "HubName": hub,
        "HubContentType": "DataSet",
        "HubContentName": name,
        "DocumentSchemaVersion": "2.0.0",
        "HubContentDocument": json.dumps(document),
    } | more


@pytest.fixture
async def hub(ask: Caller) -> str:
    await ask("CreateHub", HubName="Mine", HubDescription="of tests", HubDisplayName="my hub")
    return "Mine"


@pytest.mark.usefixtures("hub")
async def test_a_data_sets_newest_version_is_its_content(ask: Caller, hubs: Hubs):
    first = await ask("ImportHubContent", **rows_of("walks"), HubContentVersion="9.0.0")
    later = json.dumps({"DatasetS3Bucket": "rows", "DatasetS3Prefix": "later.jsonl"})
    await ask("ImportHubContent", **rows_of("walks", HubContentDocument=later))
    what = {"HubName": "Mine", "HubContentType": "DataSet", "HubContentName": "walks"}
    newest = await ask("DescribeHubContent", **what)
    assert (newest["HubContentVersion"], newest["HubContentDocument"]) == ("10.0.0", later)
    versions = await ask("ListHubContentVersions", **what)
    assert [v["HubContentVersion"] for v in versions["HubContentSummaries"]] == ["9.0.0", "10.0.0"]
    listed = await ask("ListHubContents", HubName="Mine", HubContentType="DataSet")
    assert [v["HubContentVersion"] for v in listed["HubContentSummaries"]] == ["10.0.0"]
    arn = first["HubContentArn"]
    assert arn.endswith(":000000000001:hub-content/Mine/DataSet/walks/9.0.0")
    assert await dataset_uri(hubs, a_call().principal, arn) == "s3://rows/walks.jsonl"
    assert (
        await dataset_uri(hubs, a_call().principal, arn.rpartition("/")[0])
        == "s3://rows/later.jsonl"
    )

    await ask("DeleteHubContent", **what, HubContentVersion="10.0.0")
    assert (await ask("DescribeHubContent", **what))["HubContentVersion"] == "9.0.0"
    with pytest.raises(Refused, match="holds 1 contents; delete them first") as refused:
        await ask("DeleteHub", HubName="Mine")
    assert refused.value.code == "ResourceInUse"
    await ask("DeleteHubContent", **what, HubContentVersion="9.0.0")
    for operation in ("DescribeHubContent", "ListHubContentVersions"):
        with pytest.raises(Refused) as refused:
            await ask(operation, **what)
        assert refused.value.code == "ResourceNotFound"
    await ask("DeleteHub", HubName="Mine")


@pytest.mark.usefixtures("hub")
async def test_names_that_begin_alike_are_kept_apart(ask: Caller):
    for name in ("walks", "walks-2"):
        await ask("ImportHubContent", **rows_of(name))
    what = {"HubName": "Mine", "HubContentType": "DataSet"}
    versions = await ask("ListHubContentVersions", **what, HubContentName="walks")
    assert [v["HubContentName"] for v in versions["HubContentSummaries"]] == ["walks"]
    listed = await ask("ListHubContents", **what)
    assert len(listed["HubContentSummaries"]) == 2


REFUSED_ROWS = [
    (rows_of("walks", HubContentDocument="{"), "ValidationException", "is not JSON"),
    (rows_of("walks", HubContentDocument="[]"), "ValidationException", "must be a JSON object"),
    (
        rows_of("walks", HubContentDocument='{"DatasetS3Bucket": "rows"}'),
        "ValidationException",
        "HubContentDocument.DatasetS3Prefix: None must be text",
    ),
    (rows_of("walks", HubContentType="Model"), "ValidationException", "is not kept here"),
    (rows_of("walks", hub="None"), "ResourceNotFound", "hub 'None' does not exist"),
    (rows_of("taken", HubContentVersion="1.0.0"), "ResourceInUse", "exists already"),
]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("given", "code", "text"), REFUSED_ROWS)
async def test_what_is_no_data_set_is_refused(
    ask: Caller, given: dict[str, Any], code: str, text: str
):
    await ask("ImportHubContent", **rows_of("taken"))
    with pytest.raises(Refused) as refused:
        await ask("ImportHubContent", **given)
    assert refused.value.code == code
    assert text in str(refused.value)


@pytest.mark.usefixtures("hub")
async def test_hubs_are_described_listed_updated_and_tagged(ask: Caller):
    with pytest.raises(Refused) as refused:
        await ask("CreateHub", HubName="Mine", HubDescription="again")
    assert refused.value.code == "ResourceInUse"
    updated = await ask("UpdateHub", HubName="Mine", HubDescription="changed")
    hub = await ask("DescribeHub", HubName=updated["HubArn"])
    assert (hub["HubDescription"], hub["HubDisplayName"]) == ("changed", "my hub")
    tags = [{"Key": "a", "Value": "b"}]
    other = await ask("CreateHub", HubName="Other", HubDescription="of tests", Tags=tags)
    assert await ask("ListTags", ResourceArn=other["HubArn"]) == {"Tags": tags}
    listed = await ask("ListHubs")
    assert [each["HubName"] for each in listed["HubSummaries"]] == ["Mine", "Other", PUBLIC]


@pytest.mark.usefixtures("hub")
async def test_another_account_sees_no_hub_and_no_data_set(ask: Caller, hubs: Hubs):
    arn = (await ask("ImportHubContent", **rows_of("walks")))["HubContentArn"]
    stranger = a_call("acc_other", number="000000000002")
    what = {"HubName": "Mine", "HubContentType": "DataSet", "HubContentName": "walks"}
    for operation, given in (
        ("DescribeHub", {"HubName": "Mine"}),
        ("DescribeHubContent", what),
        ("DeleteHubContent", what | {"HubContentVersion": "1.0.0"}),
        ("DeleteHub", {"HubName": "Mine"}),
        ("ImportHubContent", rows_of("walks")),
    ):
        with pytest.raises(Refused) as refused:
            await ask(operation, by=stranger, **given)
        assert refused.value.code == "ResourceNotFound"
    await ask("CreateHub", by=stranger, HubName="Mine", HubDescription="theirs")
    await ask("ImportHubContent", by=stranger, **rows_of("walks"))
    with pytest.raises(errors.NotFound):
        await dataset_uri(hubs, stranger.principal, arn)
    for wrong in ("walks", arn.replace("DataSet", "JsonDoc")):
        with pytest.raises(errors.InvalidInput, match="DatasetArn"):
            await dataset_uri(hubs, a_call().principal, wrong)


async def test_a_key_that_may_only_sample_is_denied(ask: Caller):
    sampler = a_call(actions=frozenset({Action.SAMPLE}))
    for operation, given in (
        ("DescribeHub", {"HubName": PUBLIC}),
        ("DescribeHubContent", model("tiny")),
        ("ListHubContents", {"HubName": PUBLIC, "HubContentType": "Model"}),
        ("CreateHub", {"HubName": "Mine", "HubDescription": "mine"}),
    ):
        with pytest.raises(Refused) as refused:
            await ask(operation, by=sampler, **given)
        assert refused.value.code == "AccessDeniedException", operation
