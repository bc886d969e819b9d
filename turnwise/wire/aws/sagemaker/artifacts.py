"""Lineage artifacts: notes of where something is, which the SDK's evaluator keeps of its models."""

from __future__ import annotations

import contextlib
import hashlib

from turnwise import errors
from turnwise.domain.access import Action
from turnwise.domain.resource import Resource
from turnwise.ports import Clock, Resources
from turnwise.wire.aws.paging import page
from turnwise.wire.aws.sagemaker.tags import Tags
from turnwise.wire.aws.service import Call, Handler, Json

KIND = "artifact"

_MEMBERS = ("ArtifactName", "Source", "ArtifactType", "Properties", "MetadataProperties")
_SUMMARY = ("ArtifactName", "Source", "ArtifactType")


def artifact_handlers(resources: Resources, tags: Tags, clock: Clock) -> dict[str, Handler]:
    """CreateArtifact, DescribeArtifact, ListArtifacts, DeleteArtifact."""

    async def create(call: Call, given: Json) -> Json:
        """The same source is the same artifact."""
        _require(call, Action.MANAGE)
        name = artifact_id(given["Source"])
        arn = _arn(call, name)
        try:
            await resources.create_resource(
                Resource(
                    account_id=call.account.account_id,
                    kind=KIND,
                    name=name,
                    body={member: given[member] for member in _MEMBERS if member in given},
                    created_at=clock.now(),
                )
            )
        except errors.Conflict:
            return {"ArtifactArn": arn}  # the same source is the same artifact
        await tags.put(call, arn, given.get("Tags", []))
        return {"ArtifactArn": arn}

    async def describe(call: Call, given: Json) -> Json:
        """An artifact by its ARN."""
        _require(call, Action.READ)
        found = await _find(resources, call, given["ArtifactArn"])
        return dict(found.body) | _addressed(call, found)

    async def listed(call: Call, given: Json) -> Json:
        """By source, type and time."""
        _require(call, Action.READ)
        found = await resources.resources(call.account.account_id, KIND)
        by_name = {one.name: one for one in found if _matches(one, given)}
        names = list(by_name)
        if given.get("SortOrder") != "Ascending":
            names.reverse()
        shown, token = page(names, given)
        summaries = [_summary(call, by_name[name]) for name in shown]
        return {"ArtifactSummaries": summaries, "NextToken": token}

    async def delete(call: Call, given: Json) -> Json:
        """By ARN or source."""
        _require(call, Action.MANAGE)
        if ("ArtifactArn" in given) == ("Source" in given):
            raise errors.InvalidInput("ArtifactArn", given, "or Source is required, not both")
        arn = given.get("ArtifactArn") or _arn(call, artifact_id(given["Source"]))
        found = await _find(resources, call, arn)
        with contextlib.suppress(errors.NotFound):  # another call was first
            await resources.delete_resource(call.account.account_id, KIND, found.name)
        await tags.drop(call, arn)
        return {"ArtifactArn": arn}

    return {
        "CreateArtifact": create,
        "DescribeArtifact": describe,
        "ListArtifacts": listed,
        "DeleteArtifact": delete,
    }


def artifact_id(source: Json) -> str:
    """What a source's artifact is called: letters, the same for the same source.

    >>> artifact_id({"SourceUri": "s3://a/b"}) == artifact_id({"SourceUri": "s3://a/c"})
    False
    """
    kinds = [[one["SourceIdType"], one["Value"]] for one in source.get("SourceTypes", [])]
    digest = hashlib.sha256(repr([source["SourceUri"], sorted(kinds)]).encode()).hexdigest()
    number = int(digest, 16)
    return "".join(chr(ord("a") + number // 26**place % 26) for place in range(32))


def _matches(one: Resource, given: Json) -> bool:
    body = one.body
    return (
        given.get("SourceUri") in (None, body["Source"]["SourceUri"])
        and given.get("ArtifactType") in (None, body["ArtifactType"])
        and one.created_at > given.get("CreatedAfter", float("-inf"))
        and one.created_at < given.get("CreatedBefore", float("inf"))
    )


def _summary(call: Call, one: Resource) -> Json:
    return {name: one.body[name] for name in _SUMMARY if name in one.body} | _addressed(call, one)


def _addressed(call: Call, one: Resource) -> Json:
    return {
        "ArtifactArn": _arn(call, one.name),
        "CreationTime": one.created_at,
        "LastModifiedTime": one.updated_at,
    }


def _arn(call: Call, name: str) -> str:
    return call.arn("sagemaker", f"artifact/{name}")


async def _find(resources: Resources, call: Call, arn: str) -> Resource:
    prefix = call.arn("sagemaker", "artifact/")
    if not arn.startswith(prefix):
        raise errors.NotFound("artifact", arn)
    return await resources.resource(call.account.account_id, KIND, arn.removeprefix(prefix))


def _require(call: Call, action: Action) -> None:
    call.principal.require(action)
    if call.principal.job_ids is not None:
        raise errors.Denied("this key is for some jobs; artifacts need one of the whole account")
