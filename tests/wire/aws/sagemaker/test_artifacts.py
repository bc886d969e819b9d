from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.builders import SetClock
from tests.wire.aws.kit import Caller, Refused, a_call
from turnwise.domain.access import Action
from turnwise.storage.sql import SqlStore
from turnwise.wire.aws.sagemaker.artifacts import artifact_handlers
from turnwise.wire.aws.sagemaker.tags import Tags, tag_handlers
from turnwise.wire.aws.service import Json

MODEL = "arn:aws:sagemaker:us-west-2:aws:hub-content/SageMakerPublicHub/Model/tiny/1.0.0"


@pytest.fixture
async def ask() -> AsyncIterator[Caller]:
    store, clock = SqlStore.in_memory(), SetClock()
    tags = Tags(store, clock)
    yield Caller(artifact_handlers(store, tags, clock) | tag_handlers(tags))
    await store.close()


async def create(ask: Caller, uri: str = MODEL, **more: Any) -> str:
    types = [{"SourceIdType": "Custom", "Value": "2026-11-26"}]
    given: Json = {
        "Source": {"SourceUri": uri, "SourceTypes": types},
        "ArtifactType": "Model",
        "Properties": {"made by": "a test"},
    }
    return str((await ask("CreateArtifact", **(given | more)))["ArtifactArn"])


async def test_an_artifact_is_created_found_by_its_source_described_and_deleted(ask: Caller):
    arn = await create(ask, ArtifactName="tiny", Tags=[{"Key": "a", "Value": "b"}])
    await create(ask, "s3://a/b", ArtifactType="DataSet")

    (found,) = (await ask("ListArtifacts", SourceUri=MODEL))["ArtifactSummaries"]
    assert (found["ArtifactArn"], found["ArtifactName"]) == (arn, "tiny")
    (other,) = (await ask("ListArtifacts", ArtifactType="DataSet"))["ArtifactSummaries"]
    assert other["Source"]["SourceUri"] == "s3://a/b"
    described = await ask("DescribeArtifact", ArtifactArn=arn)
    assert described["Properties"] == {"made by": "a test"}
    assert described["CreationTime"] == 1000.0
    assert (await ask("ListTags", ResourceArn=arn))["Tags"] == [{"Key": "a", "Value": "b"}]

    assert await ask("DeleteArtifact", ArtifactArn=arn) == {"ArtifactArn": arn}
    assert (await ask("ListTags", ResourceArn=arn))["Tags"] == []
    with pytest.raises(Refused, match=r"^ResourceNotFound"):
        await ask("DescribeArtifact", ArtifactArn=arn)


async def test_the_same_source_is_the_same_artifact(ask: Caller):
    assert await create(ask) == await create(ask)
    assert await create(ask, "s3://a/b") != await create(ask)
    listed = await ask("ListArtifacts", MaxResults=1)
    assert listed["ArtifactSummaries"][0]["Source"]["SourceUri"] == "s3://a/b"  # newest first
    assert "NextToken" in listed


async def test_an_artifact_is_deleted_by_its_source_too_but_not_by_neither_or_both(ask: Caller):
    arn = await create(ask, "s3://a/b", Source={"SourceUri": "s3://a/b"})
    for given in ({}, {"ArtifactArn": arn, "Source": {"SourceUri": "s3://a/b"}}):
        with pytest.raises(Refused, match=r"^ValidationException"):
            await ask("DeleteArtifact", **given)
    assert await ask("DeleteArtifact", Source={"SourceUri": "s3://a/b"}) == {"ArtifactArn": arn}


async def test_artifacts_are_an_accounts_own_and_need_the_right(ask: Caller):
    arn = await create(ask)
    stranger = a_call("acc_other", number="000000000002")
    assert (await ask("ListArtifacts", by=stranger))["ArtifactSummaries"] == []
    with pytest.raises(Refused, match=r"^ResourceNotFound"):
        await ask("DescribeArtifact", by=stranger, ArtifactArn=arn)
    for by in (a_call(actions=frozenset({Action.SAMPLE})), a_call(job_ids=frozenset({"job_a"}))):
        with pytest.raises(Refused, match=r"^AccessDeniedException"):
            await ask("ListArtifacts", by=by)
