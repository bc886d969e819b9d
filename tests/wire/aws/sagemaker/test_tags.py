from __future__ import annotations

import asyncio

import pytest

from tests.wire.aws.kit import Caller, Refused, a_call
from turnwise.domain.access import Action
from turnwise.storage.sql import SqlStore
from turnwise.system import SYSTEM_CLOCK
from turnwise.wire.aws.sagemaker.tags import Tags, checking, tag_handlers
from turnwise.wire.aws.service import Call, Json

ARN = "arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/walk"


@pytest.fixture
async def tags():
    store = SqlStore.in_memory()
    yield Tags(store, SYSTEM_CLOCK)
    await store.close()


@pytest.fixture
def ask(tags: Tags) -> Caller:
    return Caller(tag_handlers(tags))


def tag(key: str, value: str = "") -> dict[str, str]:
    return {"Key": key, "Value": value}


async def test_a_tag_stands_until_it_is_given_another_value_or_taken_off(ask: Caller):
    await ask("AddTags", ResourceArn=ARN, Tags=[tag("team", "a"), tag("stage", "dev")])
    added = await ask("AddTags", ResourceArn=ARN, Tags=[tag("team", "b")])
    await ask("DeleteTags", ResourceArn=ARN, TagKeys=["stage", "never there"])
    assert added == {"Tags": [tag("team", "b"), tag("stage", "dev")]}
    assert await ask("ListTags", ResourceArn=ARN) == {"Tags": [tag("team", "b")]}


async def test_what_was_never_tagged_has_no_tags(ask: Caller):
    assert await ask("ListTags", ResourceArn=ARN) == {"Tags": []}


async def test_the_tags_of_what_is_deleted_go_with_it(ask: Caller, tags: Tags):
    await tags.put(a_call(), ARN, [tag("team")])
    await tags.drop(a_call(), ARN)
    await tags.drop(a_call(), ARN)
    assert await tags.of(a_call(), ARN) == []


async def test_fifty_tags_are_the_most_and_none_of_too_many_is_kept(ask: Caller):
    await ask("AddTags", ResourceArn=ARN, Tags=[tag(f"k{n}") for n in range(49)])
    with pytest.raises(Refused, match="would have 51 tags; 50 is the most") as refused:
        await ask("AddTags", ResourceArn=ARN, Tags=[tag("k49"), tag("k50")])
    assert refused.value.code == "ResourceLimitExceeded"
    assert len((await ask("ListTags", ResourceArn=ARN))["Tags"]) == 49


async def test_tags_added_at_once_are_all_kept(ask: Caller):
    await asyncio.gather(*(ask("AddTags", ResourceArn=ARN, Tags=[tag(f"k{n}")]) for n in range(10)))
    assert len((await ask("ListTags", ResourceArn=ARN))["Tags"]) == 10


async def test_the_prefix_of_aws_is_refused(ask: Caller):
    with pytest.raises(Refused, match='may not begin with "aws:"') as refused:
        await ask("AddTags", ResourceArn=ARN, Tags=[tag("AWS:x")])
    assert refused.value.code == "ValidationException"


@pytest.mark.parametrize(
    "arn", [ARN.replace("000000000001", "000000000002"), ARN.replace("us-west-2", "eu-west-1")]
)
async def test_another_accounts_or_regions_resource_does_not_exist(ask: Caller, arn: str):
    for operation, more in (
        ("AddTags", {"Tags": [tag("team")]}),
        ("ListTags", {}),
        ("DeleteTags", {"TagKeys": ["team"]}),
    ):
        with pytest.raises(Refused, match="does not exist") as refused:
            await ask(operation, ResourceArn=arn, **more)
        assert refused.value.code == "ResourceNotFound"


async def test_one_account_does_not_see_anothers_tags_of_the_same_name(ask: Caller):
    await ask("AddTags", ResourceArn=ARN, Tags=[tag("team")])
    assert await ask("ListTags", ResourceArn=ARN, by=a_call("acc_other")) == {"Tags": []}


async def test_tags_need_the_right_of_the_whole_account(ask: Caller):
    for who in ({"actions": frozenset({Action.SAMPLE})}, {"job_ids": frozenset({"job_a"})}):
        with pytest.raises(Refused) as refused:
            await ask("ListTags", ResourceArn=ARN, by=a_call(**who))
        assert refused.value.code == "AccessDeniedException"


async def test_nothing_is_made_with_tags_that_are_refused(tags: Tags):
    made = []

    async def create(call: Call, given: Json) -> Json:
        made.append(given)
        return {"PipelineArn": ARN}

    ask = Caller(checking({"CreatePipeline": create}))
    role = "arn:aws:iam::000000000001:role/trainer"
    asked = {"PipelineName": "p", "ClientRequestToken": "t" * 32, "RoleArn": role}
    for wrong in ([tag("aws:mine")], [tag(f"k{n}") for n in range(51)]):
        with pytest.raises(Refused):
            await ask("CreatePipeline", **asked, Tags=wrong)
    assert made == []
    await ask("CreatePipeline", **asked, Tags=[tag("mine")])
    assert len(made) == 1
