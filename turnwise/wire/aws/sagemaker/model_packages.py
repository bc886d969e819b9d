"""Model package groups and model packages: SageMaker's operations over `Registry`."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from turnwise import errors
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.models.model_files import ModelFiles
from turnwise.control.models.registry import PackageGroup, Registry
from turnwise.domain.access import Action
from turnwise.ports import ModelPackage
from turnwise.wire.aws.arns import ModelPackageArn, ModelPackageGroupArn
from turnwise.wire.aws.paging import page
from turnwise.wire.aws.sagemaker.tags import Tags
from turnwise.wire.aws.service import AwsError, Call, Handler, Json

_GROUP_FIELDS = ("ModelPackageGroupDescription", "ManagedConfiguration")
#: What UpdateModelPackage may say of a package, kept and given back as it is.
_NOTES = (
    "ModelApprovalStatus",
    "ApprovalDescription",
    "ModelPackageRegistrationType",
    "ModelLifeCycle",
    "ModelCard",
    "SourceUri",
)
#: What CreateModelPackage may say beside the files.
_SAID_AT_CREATION = (
    *_NOTES,
    *("ModelPackageDescription", "Domain", "Task", "SamplePayloadUrl", "ManagedStorageType"),
    *("MetadataProperties", "ModelMetrics", "DriftCheckBaselines"),
)
#: What a package would need a container for, which there is none of.
_REFUSED = ("AdditionalInferenceSpecificationsToAdd", "InferenceSpecification")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPackageRooms:
    """What the handlers call."""

    registry: Registry
    catalogue: Catalogue
    files: ModelFiles
    tags: Tags


def model_package_handlers(rooms: ModelPackageRooms) -> dict[str, Handler]:
    """Groups and packages: create, describe, list, update, delete."""
    served = _ModelPackages(rooms)
    return {
        "CreateModelPackageGroup": _existing(served.create_group),
        "DescribeModelPackageGroup": served.describe_group,
        "ListModelPackageGroups": served.list_groups,
        "DeleteModelPackageGroup": _conflicting(served.delete_group),
        "CreateModelPackage": served.create,
        "DescribeModelPackage": served.describe,
        "BatchDescribeModelPackage": served.batch_describe,
        "ListModelPackages": served.list,
        "UpdateModelPackage": _conflicting(served.update),
        "DeleteModelPackage": _conflicting(served.delete),
    }


def _conflicting(handler: Handler) -> Handler:
    """With the code that AWS has for conflicts of these operations."""
    return _coded(handler, "ConflictException")


def _existing(handler: Handler) -> Handler:
    """With the code that AWS has for a group that exists."""
    return _coded(handler, "ValidationException")


def _coded(handler: Handler, code: str) -> Handler:
    @wraps(handler)
    async def handle(call: Call, given: Json) -> Json:
        try:
            return await handler(call, given)
        except errors.Conflict as error:
            raise AwsError(code, str(error)) from error

    return handle


class _ModelPackages:
    def __init__(self, rooms: ModelPackageRooms) -> None:
        self._registry = rooms.registry
        self._catalogue = rooms.catalogue
        self._files = rooms.files
        self._tags = rooms.tags

    # ── groups ────────────────────────────────────────────────────────────────────────────────

    async def create_group(self, call: Call, given: Json) -> Json:
        """A group of versions."""
        fields = {name: given[name] for name in _GROUP_FIELDS if name in given}
        group = await self._registry.create_group(
            call.principal, given["ModelPackageGroupName"], fields
        )
        arn = _group_arn(call, group.name)
        await self._tags.put(call, arn, given.get("Tags", []))
        return {"ModelPackageGroupArn": arn}

    async def describe_group(self, call: Call, given: Json) -> Json:
        """By name or ARN."""
        group = await self._registry.group(call.principal, _group_name(call, given))
        return _group_summary(call, group) | {"CreatedBy": {}}

    async def list_groups(self, call: Call, given: Json) -> Json:
        """The account's groups."""
        found = [
            _group_summary(call, group)
            for group in await self._registry.groups(call.principal)
            if given.get("NameContains", "").lower() in group.name.lower()
            and _in_time(given, group.created_at)
        ]
        shown, token = page(_sorted(found, given, "ModelPackageGroupName"), given)
        return {"ModelPackageGroupSummaryList": shown, "NextToken": token}

    async def delete_group(self, call: Call, given: Json) -> Json:
        """An empty group."""
        name = _group_name(call, given)
        await self._registry.delete_group(call.principal, name)
        await self._tags.drop(call, _group_arn(call, name))
        return {}

    # ── packages ──────────────────────────────────────────────────────────────────────────────

    async def create(self, call: Call, given: Json) -> Json:
        """A PEFT folder in S3 becomes the next version of a group. No containers."""
        if "ModelPackageGroupName" not in given:
            raise errors.InvalidInput(
                "ModelPackageGroupName",
                None,
                "is required: a model package here is a version of a group",
                remedy="CreateModelPackageGroup makes one",
            )
        uri, base = _source(given)
        package = await self._registry.register(
            call.principal, _group_name(call, given), uri, base=base
        )
        said = {name: given[name] for name in _SAID_AT_CREATION if name in given}
        properties = given.get("CustomerMetadataProperties", {})
        if said or properties:
            await self._registry.annotate(
                call.principal, package.package_id, said, properties=properties
            )
        arn = _arn(call, package)
        await self._tags.put(call, arn, given.get("Tags", []))
        return {"ModelPackageArn": arn}

    async def describe(self, call: Call, given: Json) -> Json:
        """One version. CustomerMetadataProperties say where it comes from."""
        package = await self._named(call, given["ModelPackageName"])
        notes = await self._registry.notes_of(package)
        return await self._described(call, package, notes)

    async def batch_describe(self, call: Call, given: Json) -> Json:
        """Several at once, each with its own error."""
        call.principal.require(Action.READ)  # not only of each: there may be none
        summaries, faults = {}, {}
        for arn in given["ModelPackageArnList"]:
            try:
                described = await self.describe(call, {"ModelPackageName": arn})
            except errors.TurnwiseError as error:
                faults[arn] = {"ErrorCode": "ValidationException", "ErrorResponse": str(error)}
            else:
                summaries[arn] = {
                    name: described[name] for name in _BATCH_MEMBERS if name in described
                }
        return {"ModelPackageSummaries": summaries, "BatchDescribeModelPackageErrorMap": faults}

    async def list(self, call: Call, given: Json) -> Json:
        """Versions; all are versioned."""
        group = _group_name(call, given) if "ModelPackageGroupName" in given else None
        if group is not None:
            await self._registry.group(call.principal, group)
        if given.get("ModelPackageType") == "Unversioned":
            return {"ModelPackageSummaryList": []}
        notes = await self._registry.notes(call.account.account_id)
        found = [
            _summary(call, package, notes.get(package.package_id, {}))
            for package in await self._registry.packages(call.principal, group=group)
            if given.get("NameContains", "").lower() in package.group.lower()
            and _in_time(given, package.created_at)
        ]
        wanted = given.get("ModelApprovalStatus")
        found = [each for each in found if wanted in (None, each["ModelApprovalStatus"])]
        shown, token = page(_sorted(found, given, "ModelPackageGroupName"), given)
        return {"ModelPackageSummaryList": shown, "NextToken": token}

    async def update(self, call: Call, given: Json) -> Json:
        """What is said of a version; what is registered stays as it is."""
        for name in _REFUSED:
            if name in given:
                raise errors.InvalidInput(
                    name, given[name], "cannot be changed: what is registered stays as it is"
                )
        package = await self._named(call, given["ModelPackageArn"])
        await self._registry.annotate(
            call.principal,
            package.package_id,
            {name: given[name] for name in _NOTES if name in given},
            properties=given.get("CustomerMetadataProperties", {}),
            without=tuple(given.get("CustomerMetadataPropertiesToRemove", ())),
        )
        return {"ModelPackageArn": _arn(call, package)}

    async def delete(self, call: Call, given: Json) -> Json:
        """A version and its files, unless a job that has not ended needs it."""
        name = _package_name(call, given["ModelPackageName"])
        package = await self._registry.delete(call.principal, name)
        await self._tags.drop(call, _arn(call, package))
        return {}

    # ── a package as AWS shows it ─────────────────────────────────────────────────────────────

    async def _named(self, call: Call, name: str) -> ModelPackage:
        return await self._registry.package(call.principal, _package_name(call, name))

    async def _described(self, call: Call, package: ModelPackage, notes: Mapping[str, Any]) -> Json:
        base = await asyncio.to_thread(self._base, package)
        properties = notes.get("properties", {}) | _properties(package)
        return _summary(call, package, notes) | {
            # With its version, so that the SDK's own refresh and delete find this version again.
            "ModelPackageName": package.name,
            "InferenceSpecification": {
                "Containers": [
                    {
                        "ModelDataSource": {
                            "S3DataSource": {
                                "S3Uri": self._files.uri(package),
                                "S3DataType": "S3Prefix",
                                "CompressionType": "None",
                            }
                        },
                        "IsCheckpoint": package.kind == "checkpoint",
                        "BaseModel": base,
                    }
                ],
                "SupportedContentTypes": ["application/json"],
                "SupportedResponseMIMETypes": ["application/json"],
            },
            "ModelPackageStatusDetails": {
                "ValidationStatuses": _validations(package),
                "ImageScanStatuses": [],
            },
            "CertifyForMarketplace": False,
            "CreatedBy": {},
            "LastModifiedTime": package.created_at,
            "CustomerMetadataProperties": properties,
            **{name: notes[name] for name in _SAID_AT_CREATION if name in notes},
        }

    def _base(self, package: ModelPackage) -> Json:
        """The hub's name of a package's base model. Blocks."""
        if found := self._catalogue.of_folder(package.base_model):
            recipe = f"{found.name}-mtrl-lora"
            return {
                "HubContentName": found.name,
                "HubContentVersion": found.version,
                "RecipeName": recipe,
            }
        # A base that nobody has named: `turnwise models add-base` gives it a name in the hub.
        return {"HubContentName": unlisted_name(package.base_model), "HubContentVersion": "1.0.0"}


def unlisted_name(folder: str) -> str:
    """A name for a base model that the hub does not have: the same for the same folder.

    >>> unlisted_name("/data/hf/Qwen3_0.6B")
    'Qwen3-0-6B-unlisted-270e559e'
    """
    stem = re.sub(r"[^a-zA-Z0-9]+", "-", Path(folder).name).strip("-")[:24].strip("-") or "model"
    return f"{stem}-unlisted-{hashlib.sha256(folder.encode()).hexdigest()[:8]}"


_BATCH_MEMBERS = (
    "ModelPackageGroupName",
    "ModelPackageVersion",
    "ModelPackageArn",
    "ModelPackageDescription",
    "CreationTime",
    "InferenceSpecification",
    "ModelPackageStatus",
    "ModelApprovalStatus",
    "ModelPackageRegistrationType",
)


def _summary(call: Call, package: ModelPackage, notes: Mapping[str, Any]) -> Json:
    about = f"{package.kind} of step {package.step}" if package.job_id else "imported adapter"
    return {
        "ModelPackageGroupName": package.group,
        "ModelPackageVersion": package.version,
        "ModelPackageArn": _arn(call, package),
        "ModelPackageDescription": notes.get("ModelPackageDescription", about),
        "CreationTime": package.created_at,
        "ModelPackageStatus": "Completed" if package.pruned_at is None else "Failed",
        "ModelApprovalStatus": notes.get("ModelApprovalStatus", "PendingManualApproval"),
        "ModelPackageRegistrationType": notes.get("ModelPackageRegistrationType", "Registered"),
    } | ({"ModelLifeCycle": notes["ModelLifeCycle"]} if "ModelLifeCycle" in notes else {})


def _validations(package: ModelPackage) -> list[Json]:
    """What is wrong with a package's files: that they were pruned."""
    if package.pruned_at is None:
        return []
    at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(package.pruned_at))
    reason = f"the files were pruned at {at}, as the job's `checkpoints` settings say"
    return [{"Name": "files", "Status": "Failed", "FailureReason": reason}]


def _properties(package: ModelPackage) -> dict[str, str]:
    """Where a package comes from, as the texts that AWS has room for."""
    lineage = package.metadata
    found = {
        "turnwise:kind": package.kind,
        "turnwise:sha256": package.sha256,
        "turnwise:job": lineage.get("job", {}).get("name", ""),
        "turnwise:step": str(package.step) if package.job_id else "",
        "turnwise:parent": lineage.get("parent", ""),
        "turnwise:imported-from": lineage.get("imported_from", ""),
        "turnwise:base-model": package.base_model,
        "turnwise:base-sha256": lineage.get("base_model", {}).get("sha256", ""),
        "turnwise:dataset": lineage.get("dataset", {}).get("path", ""),
        "turnwise:dataset-sha256": lineage.get("dataset", {}).get("sha256", ""),
        "turnwise:code": lineage.get("code", ""),
    }
    metrics = lineage.get("metrics", {}).items()
    found |= {f"turnwise:{name}": f"{value:g}" for name, value in metrics}
    return {name: value[:256] for name, value in found.items() if value}


def _source(given: Json) -> tuple[str, str]:
    """The folder in a bucket that a package is made from, and its base model's name or ""."""
    containers = given.get("InferenceSpecification", {}).get("Containers", [])
    field = "InferenceSpecification.Containers"
    if len(containers) != 1:
        raise errors.InvalidInput(
            field,
            containers or None,
            "must be one container",
            remedy="give ModelDataSource.S3DataSource.S3Uri, the folder of a PEFT adapter",
        )
    [container] = containers
    if container.get("IsCheckpoint"):
        raise errors.InvalidInput(
            f"{field}[0].IsCheckpoint", True, "is for what a job registers: only adapters can be"
        )
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    if "S3Uri" not in source:
        raise errors.InvalidInput(
            f"{field}[0].ModelDataSource.S3DataSource.S3Uri",
            container.get("ModelDataUrl"),
            "is required: the folder of a PEFT adapter, not packed",
        )
    if source.get("CompressionType", "None") != "None":
        raise errors.InvalidInput(
            "CompressionType",
            source["CompressionType"],
            "is not read",
            remedy="give a plain folder",
        )
    return source["S3Uri"], container.get("BaseModel", {}).get("HubContentName", "")


# ── names and lists ───────────────────────────────────────────────────────────────────────────


def _arn(call: Call, package: ModelPackage) -> str:
    return str(
        ModelPackageArn(
            region=call.region,
            number=call.account.number,
            group=package.group,
            version=package.version,
        )
    )


def _group_arn(call: Call, name: str) -> str:
    return str(ModelPackageGroupArn(region=call.region, number=call.account.number, name=name))


def _group_name(call: Call, given: Json) -> str:
    """A group's name, given as it is or as an ARN of this account."""
    text: str = given["ModelPackageGroupName"]
    if not text.startswith("arn:"):
        return text
    arn = ModelPackageGroupArn.parse(text)
    _check_own(call, arn.region, arn.number, "model package group", text)
    return arn.name


def _package_name(call: Call, text: str) -> str:
    """A package's name, "group/version", given as it is or as an ARN of this account."""
    if not text.startswith("arn:"):
        return text
    arn = ModelPackageArn.parse(text)
    _check_own(call, arn.region, arn.number, "model package", text)
    return f"{arn.group}/{arn.version}"


def _check_own(call: Call, region: str, number: str, kind: str, text: str) -> None:
    if (region, number) != (call.region, call.account.number):
        raise errors.NotFound(kind, text)


def _group_summary(call: Call, group: PackageGroup) -> Json:
    return {
        "ModelPackageGroupName": group.name,
        "ModelPackageGroupArn": _group_arn(call, group.name),
        "CreationTime": group.created_at,
        "ModelPackageGroupStatus": "Completed",
        **group.fields,
    }


def _in_time(given: Json, created_at: float) -> bool:
    after, before = given.get("CreationTimeAfter"), given.get("CreationTimeBefore")
    return (after is None or created_at > after) and (before is None or created_at < before)


def _sorted(found: Sequence[Json], given: Json, name: str) -> Sequence[Json]:
    """By the time of creation, the oldest first, unless asked otherwise."""
    by_name = given.get("SortBy") == "Name"

    def key(item: Json) -> tuple[Any, ...]:
        version = item.get("ModelPackageVersion", 0)
        return (item[name], version) if by_name else (item["CreationTime"], item[name], version)

    return sorted(found, key=key, reverse=given.get("SortOrder") == "Descending")
