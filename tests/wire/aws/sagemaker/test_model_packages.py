from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders import ACCOUNT
from tests.unit.control.kit import a_registry
from tests.unit.control.models.kit import FolderObjects, finish_steps, save_adapter, save_base
from tests.wire.aws.kit import Caller, Refused, a_call
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.models.model_files import ModelFiles
from turnwise.domain.access import Action
from turnwise.storage.sql import SqlStore
from turnwise.system import SYSTEM_CLOCK
from turnwise.wire.aws.sagemaker.model_packages import (
    ModelPackageRooms,
    model_package_handlers,
    unlisted_name,
)
from turnwise.wire.aws.sagemaker.tags import Tags, tag_handlers

GROUP_ARN = "arn:aws:sagemaker:us-west-2:000000000001:model-package-group/"
ARN = "arn:aws:sagemaker:us-west-2:000000000001:model-package/"
BUCKET = "turnwise-models-us-west-2"


@pytest.fixture
async def store() -> AsyncIterator[SqlStore]:
    opened = SqlStore.in_memory()
    yield opened
    await opened.close()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "models" / "tiny")


@pytest.fixture
def ask(tmp_path: Path, store: SqlStore, base: Path) -> Caller:
    tags = Tags(store, SYSTEM_CLOCK)
    rooms = ModelPackageRooms(
        registry=a_registry(store, tmp_path, FolderObjects(tmp_path / "s3")),
        catalogue=Catalogue(tmp_path / "models"),
        files=ModelFiles(store, BUCKET),
        tags=tags,
    )
    return Caller(model_package_handlers(rooms) | tag_handlers(tags))


@pytest.fixture
async def walked(store: SqlStore, tmp_path: Path, base: Path) -> None:
    """A completed job of two steps."""
    await finish_steps(store, tmp_path / "blobs", base)


async def test_a_group_is_given_back_as_it_was_made(ask: Caller):
    restricted = {"ManagedStorageType": "Restricted"}
    made = await ask(
        "CreateModelPackageGroup",
        ModelPackageGroupName="nova-mtrl-mpg",
        ManagedConfiguration=restricted,
        Tags=[{"Key": "team", "Value": "a"}],
    )
    assert made == {"ModelPackageGroupArn": f"{GROUP_ARN}nova-mtrl-mpg"}
    for name in ("nova-mtrl-mpg", made["ModelPackageGroupArn"]):
        found = await ask("DescribeModelPackageGroup", ModelPackageGroupName=name)
        assert found["ModelPackageGroupArn"] == made["ModelPackageGroupArn"]
        assert found["ManagedConfiguration"] == restricted
        assert found["ModelPackageGroupStatus"] == "Completed"
    tags = await ask("ListTags", ResourceArn=made["ModelPackageGroupArn"])
    assert tags == {"Tags": [{"Key": "team", "Value": "a"}]}


@pytest.mark.usefixtures("walked")
async def test_groups_are_refused_in_the_codes_that_aws_has(ask: Caller):
    async def code(operation: str, name: str) -> str:
        with pytest.raises(Refused) as refused:
            await ask(operation, ModelPackageGroupName=name)
        return refused.value.code

    other = GROUP_ARN.replace("000000000001", "000000000002")
    assert await code("DescribeModelPackageGroup", "none") == "ResourceNotFound"
    assert await code("DescribeModelPackageGroup", f"{other}walk") == "ResourceNotFound"
    assert await code("CreateModelPackageGroup", "walk") == "ValidationException"
    assert await code("CreateModelPackageGroup", "a_b") == "ValidationException"
    assert await code("DeleteModelPackageGroup", "walk") == "ConflictException"
    assert await code("DeleteModelPackageGroup", "none") == "ResourceNotFound"
    assert await code("ListModelPackages", "none") == "ResourceNotFound"


@pytest.mark.usefixtures("walked")
async def test_groups_are_filtered_sorted_and_paged(ask: Caller):
    for name in ("b-group", "a-group"):
        await ask("CreateModelPackageGroup", ModelPackageGroupName=name)

    async def names(**given: Any) -> list[str]:
        found = await ask("ListModelPackageGroups", **given)
        return [each["ModelPackageGroupName"] for each in found["ModelPackageGroupSummaryList"]]

    assert await names(SortBy="Name") == ["a-group", "b-group", "walk", "walk-checkpoints"]
    assert await names(SortBy="Name", SortOrder="Descending", NameContains="GROUP") == [
        *("b-group", "a-group")
    ]
    assert await names(CreationTimeBefore=11.0) == ["walk", "walk-checkpoints"]
    assert await names(CreationTimeAfter=11.0, SortBy="Name") == ["a-group", "b-group"]
    first = await ask("ListModelPackageGroups", SortBy="Name", MaxResults=3)
    rest = await ask(
        "ListModelPackageGroups", SortBy="Name", MaxResults=3, NextToken=first["NextToken"]
    )
    assert [g["ModelPackageGroupName"] for g in rest["ModelPackageGroupSummaryList"]] == [
        "walk-checkpoints"
    ]
    assert "NextToken" not in rest


@pytest.mark.usefixtures("walked")
async def test_a_package_is_described_with_its_base_and_its_files(ask: Caller):
    output = await ask("DescribeModelPackage", ModelPackageName=f"{ARN}walk/2")
    assert (output["ModelPackageGroupName"], output["ModelPackageVersion"]) == ("walk", 2)
    assert output["ModelPackageArn"] == f"{ARN}walk/2"
    assert output["ModelPackageStatus"] == "Completed"
    assert output["ModelPackageStatusDetails"]["ValidationStatuses"] == []
    [container] = output["InferenceSpecification"]["Containers"]
    assert container == {
        "ModelDataSource": {
            "S3DataSource": {
                "S3Uri": f"s3://{BUCKET}/walk/2/",
                "S3DataType": "S3Prefix",
                "CompressionType": "None",
            }
        },
        "IsCheckpoint": False,
        "BaseModel": {
            "HubContentName": "tiny",
            "HubContentVersion": "1.0.0",
            "RecipeName": "tiny-mtrl-lora",
        },
    }
    again = await ask("DescribeModelPackage", ModelPackageName=output["ModelPackageName"])
    assert again == output
    resumable = await ask("DescribeModelPackage", ModelPackageName="walk-checkpoints/1")
    assert resumable["InferenceSpecification"]["Containers"][0]["IsCheckpoint"] is True


async def test_a_base_that_nobody_has_named_keeps_one_name(
    ask: Caller, store: SqlStore, tmp_path: Path
):
    elsewhere = save_base(tmp_path / "hf" / "Qwen3_0.6B")
    await finish_steps(store, tmp_path / "blobs", elsewhere)
    for version in (1, 2):
        found = await ask("DescribeModelPackage", ModelPackageName=f"walk/{version}")
        base = found["InferenceSpecification"]["Containers"][0]["BaseModel"]
        assert base["HubContentName"] == unlisted_name(str(elsewhere))
    Catalogue(tmp_path / "models").add(elsewhere, "qwen")
    found = await ask("DescribeModelPackage", ModelPackageName="walk/1")
    base = found["InferenceSpecification"]["Containers"][0]["BaseModel"]
    assert base["HubContentName"] == "qwen"


async def test_a_pruned_package_says_so(ask: Caller, store: SqlStore, tmp_path: Path, base: Path):
    package, *_ = await finish_steps(store, tmp_path / "blobs", base)
    pruned = replace(package, package_id="p", version=9, pruned_at=0.0)
    await store.register([pruned])
    found = await ask("DescribeModelPackage", ModelPackageName="walk/9")
    assert found["ModelPackageStatus"] == "Failed"
    [why] = found["ModelPackageStatusDetails"]["ValidationStatuses"]
    assert why["FailureReason"].startswith("the files were pruned at 1970-01-01 00:00 UTC")


@pytest.mark.usefixtures("walked")
async def test_packages_are_filtered_sorted_and_paged(ask: Caller):
    await ask("UpdateModelPackage", ModelPackageArn=f"{ARN}walk/1", ModelApprovalStatus="Approved")

    async def arns(**given: Any) -> list[str]:
        found = await ask("ListModelPackages", **given)
        return [
            each["ModelPackageArn"].removeprefix(ARN) for each in found["ModelPackageSummaryList"]
        ]

    assert await arns(ModelPackageGroupName="walk") == ["walk/1", "walk/2"]
    assert await arns(ModelPackageGroupName=f"{GROUP_ARN}walk", SortOrder="Descending") == [
        *("walk/2", "walk/1")
    ]
    assert await arns(ModelApprovalStatus="Approved") == ["walk/1"]
    assert await arns(NameContains="check") == ["walk-checkpoints/1", "walk-checkpoints/2"]
    assert await arns(ModelPackageType="Unversioned") == []
    assert await arns(CreationTimeAfter=10.0) == []
    first = await ask("ListModelPackages", MaxResults=3)
    rest = await ask("ListModelPackages", MaxResults=3, NextToken=first["NextToken"])
    assert len(first["ModelPackageSummaryList"] + rest["ModelPackageSummaryList"]) == 4
    with pytest.raises(Refused, match="is no token of this operation") as refused:
        await ask("ListModelPackages", NextToken="x")
    assert refused.value.code == "ValidationException"


@pytest.mark.usefixtures("walked")
async def test_what_is_said_of_a_package_is_given_back(ask: Caller):
    await ask(
        "UpdateModelPackage",
        ModelPackageArn=f"{ARN}walk/1",
        ModelApprovalStatus="Approved",
        ApprovalDescription="good",
        CustomerMetadataProperties={"team": "a", "stage": "dev"},
    )
    await ask(
        "UpdateModelPackage",
        ModelPackageArn=f"{ARN}walk/1",
        CustomerMetadataPropertiesToRemove=["stage"],
    )
    found = await ask("DescribeModelPackage", ModelPackageName="walk/1")
    assert (found["ModelApprovalStatus"], found["ApprovalDescription"]) == ("Approved", "good")
    properties = found["CustomerMetadataProperties"]
    assert properties["team"] == "a"
    assert "stage" not in properties
    assert properties["turnwise:kind"] == "adapter"
    other = await ask("DescribeModelPackage", ModelPackageName="walk/2")
    assert other["ModelApprovalStatus"] == "PendingManualApproval"


@pytest.mark.usefixtures("walked")
async def test_files_of_a_registered_package_cannot_be_changed(ask: Caller):
    with pytest.raises(Refused, match="cannot be changed: what is registered stays as it is"):
        await ask(
            "UpdateModelPackage",
            ModelPackageArn=f"{ARN}walk/1",
            InferenceSpecification={"Containers": [{"ModelDataUrl": "s3://a/b"}]},
        )


@pytest.mark.usefixtures("walked")
async def test_a_deleted_package_is_gone_with_its_tags(ask: Caller, store: SqlStore):
    await ask("AddTags", ResourceArn=f"{ARN}walk/1", Tags=[{"Key": "a", "Value": "b"}])
    await ask("DeleteModelPackage", ModelPackageName=f"{ARN}walk/1")
    with pytest.raises(Refused, match="'walk/1' does not exist") as refused:
        await ask("DescribeModelPackage", ModelPackageName=f"{ARN}walk/1")
    assert refused.value.code == "ResourceNotFound"
    assert await ask("ListTags", ResourceArn=f"{ARN}walk/1") == {"Tags": []}
    await store.create_job(replace(await store.job(ACCOUNT, "walk"), **NEXT_JOB))
    with pytest.raises(Refused, match="needed by job 'next'") as refused:
        await ask("DeleteModelPackage", ModelPackageName="walk/2")
    assert refused.value.code == "ConflictException"


NEXT_JOB: dict[str, Any] = {
    "job_id": "job_next",
    "name": "next",
    "parent": "walk/2",
    "step": 0,
    "status": "PENDING",
}


def creation(**container: Any) -> dict[str, Any]:
    source = {"S3DataSource": {"S3Uri": "s3://data/tuned/", "S3DataType": "S3Prefix"}}
    source["S3DataSource"]["CompressionType"] = "None"
    both: dict[str, Any] = {"ModelDataSource": source} | container
    return {"ModelPackageGroupName": "mine", "InferenceSpecification": {"Containers": [both]}}


async def test_an_adapter_of_ones_own_is_registered(ask: Caller, tmp_path: Path):
    save_adapter(tmp_path / "s3/data/tuned", "elsewhere")
    await ask("CreateModelPackageGroup", ModelPackageGroupName="mine")
    made = await ask(
        "CreateModelPackage",
        **creation(BaseModel={"HubContentName": "tiny"}),
        ModelPackageDescription="tuned by hand",
        ModelApprovalStatus="Approved",
        CustomerMetadataProperties={"by": "me"},
        Tags=[{"Key": "a", "Value": "b"}],
    )
    assert made == {"ModelPackageArn": f"{ARN}mine/1"}
    found = await ask("DescribeModelPackage", ModelPackageName=made["ModelPackageArn"])
    assert found["ModelPackageDescription"] == "tuned by hand"
    assert found["ModelApprovalStatus"] == "Approved"
    assert found["CustomerMetadataProperties"]["by"] == "me"
    assert found["CustomerMetadataProperties"]["turnwise:imported-from"] == "s3://data/tuned/"
    [container] = found["InferenceSpecification"]["Containers"]
    assert container["BaseModel"]["HubContentName"] == "tiny"
    assert container["IsCheckpoint"] is False
    assert await ask("ListTags", ResourceArn=made["ModelPackageArn"]) == {
        "Tags": [{"Key": "a", "Value": "b"}]
    }


PACKED = {"S3Uri": "s3://data/tuned/", "S3DataType": "S3Prefix", "CompressionType": "Gzip"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"ModelPackageName": "single"}, "here is a version of a group"),
    (creation() | {"ModelPackageGroupName": "none"}, "model package group 'none' does not exist"),
    ({"ModelPackageGroupName": "mine"}, "must be one container"),
    (creation(IsCheckpoint=True), "only adapters can be"),
    (creation(ModelDataSource={}, ModelDataUrl="s3://a/model.tar.gz"), "is required: the folder"),
    (creation(ModelDataSource={"S3DataSource": PACKED}), "CompressionType: 'Gzip' is not read"),
    (creation(), "has no adapter_config.json below it; give the folder of a PEFT adapter"),
]


@pytest.mark.parametrize(("given", "text"), REFUSED)
async def test_what_is_no_adapter_is_refused_by_name(ask: Caller, given: dict[str, Any], text: str):
    await ask("CreateModelPackageGroup", ModelPackageGroupName="mine")
    with pytest.raises(Refused) as refused:
        await ask("CreateModelPackage", **given)
    assert text in str(refused.value)
    assert (await ask("ListModelPackages"))["ModelPackageSummaryList"] == []


@pytest.mark.usefixtures("walked")
async def test_several_packages_are_described_at_once(ask: Caller):
    found = await ask(
        "BatchDescribeModelPackage", ModelPackageArnList=[f"{ARN}walk/1", f"{ARN}walk/9"]
    )
    assert list(found["ModelPackageSummaries"]) == [f"{ARN}walk/1"]
    assert list(found["BatchDescribeModelPackageErrorMap"]) == [f"{ARN}walk/9"]


@pytest.mark.usefixtures("walked")
async def test_another_account_sees_and_changes_nothing(ask: Caller):
    stranger = a_call("acc_other", number="000000000002")
    theirs = ARN.replace("000000000001", "000000000002")
    for operation, given in (
        ("DescribeModelPackage", {"ModelPackageName": "walk/1"}),
        ("DescribeModelPackage", {"ModelPackageName": f"{ARN}walk/1"}),
        ("DescribeModelPackage", {"ModelPackageName": f"{theirs}walk/1"}),
        ("DeleteModelPackage", {"ModelPackageName": "walk/1"}),
        ("UpdateModelPackage", {"ModelPackageArn": f"{ARN}walk/1"}),
        ("DescribeModelPackageGroup", {"ModelPackageGroupName": "walk"}),
        ("DeleteModelPackageGroup", {"ModelPackageGroupName": "walk"}),
    ):
        with pytest.raises(Refused) as refused:
            await ask(operation, by=stranger, **given)
        assert refused.value.code == "ResourceNotFound", operation
    assert await ask("ListModelPackages", by=stranger) == {"ModelPackageSummaryList": []}
    assert await ask("ListModelPackageGroups", by=stranger) == {"ModelPackageGroupSummaryList": []}


async def test_a_key_that_may_only_sample_is_denied(ask: Caller):
    sampler = a_call(actions=frozenset({Action.SAMPLE}))
    for operation, given in (
        ("ListModelPackages", {}),
        ("ListModelPackageGroups", {}),
        ("CreateModelPackageGroup", {"ModelPackageGroupName": "mine"}),
        ("DescribeModelPackage", {"ModelPackageName": "walk/1"}),
    ):
        with pytest.raises(Refused) as refused:
            await ask(operation, by=sampler, **given)
        assert refused.value.code == "AccessDeniedException", operation
