"""What the AWS door saw of a call -> what the audit trail keeps of it.

Names of members begin with a small letter, as in CloudTrail's records; names in maps are the user's
own and stay.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from typing import Any

from botocore.exceptions import UnknownServiceError
from botocore.model import ListShape, MapShape, OperationNotFoundError, Shape, StructureShape

from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.record import Identity, Resource, Witnessed
from turnwise.domain.audit import Category
from turnwise.ports import Clock
from turnwise.wire.aws.door import Outcome
from turnwise.wire.aws.service import Call, Json, load_model

#: Calls about what is in a thing rather than about the thing: data events, as AWS counts them.
_DATA: Mapping[str, re.Pattern[str]] = {
    "s3": re.compile(
        r"(Get|Put|Head|Delete|Copy|Restore|Select)Objects?(Attributes|Tagging|Acl|Content)?"
        r"|ListObjects(V2)?|ListObjectVersions|ListParts|UploadPart(Copy)?"
        r"|(Create|Complete|Abort)MultipartUpload|PostObject"
    ),
    "lambda": re.compile(r"Invoke(Async|WithResponseStream)?"),
    "bedrock-agentcore": re.compile(r"InvokeAgentRuntime|StopRuntimeSession"),
    "logs": re.compile(r"(Get|Put|Filter)LogEvents"),
}

_VENDORS: Mapping[str, str] = {
    "sagemaker": "SageMaker",
    "s3": "S3",
    "lambda": "Lambda",
    "logs": "Logs",
    "cloudtrail": "CloudTrail",
    "iam": "IAM",
    "bedrock-agentcore": "BedrockAgentCore",
}

#: Member that names a thing -> its service and its ARN's last part.
_NAMED: Mapping[str, tuple[str, str]] = {
    "JobName": ("sagemaker", "job/{JobCategory}/{JobName}"),
    "ModelPackageGroupName": ("sagemaker", "model-package-group/{ModelPackageGroupName}"),
    "PipelineName": ("sagemaker", "pipeline/{PipelineName}"),
    "FunctionName": ("lambda", "function:{FunctionName}"),
    "logGroupName": ("logs", "log-group:{logGroupName}"),
    "TrailName": ("cloudtrail", "trail/{TrailName}"),
}

#: A few members deep: ARNs of what a call is about are at the top of its parameters and result.
_DEPTH = 2
_MAX_RESOURCES = 10


def is_data(service: str, operation: str) -> bool:
    """Whether a call is a data event, which is recorded only where a trail selects it."""
    pattern = _DATA.get(service)
    return pattern is not None and pattern.fullmatch(operation) is not None


class Auditor:
    """Tells the audit trail of the AWS door's calls."""

    def __init__(self, trail: AuditTrail, clock: Clock) -> None:
        self._trail = trail
        self._clock = clock

    async def observe(self, call: Call, outcome: Outcome) -> None:
        """Record a call; one that is no data event is committed on return."""
        is_event = is_data(outcome.service, outcome.operation)
        if is_event and not self._trail.selects_data:
            return
        seen = await asyncio.to_thread(witness, call, outcome, self._clock.now())
        if is_event:
            self._trail.record_soon(seen)
        else:
            await self._trail.record(seen)


def witness(call: Call, outcome: Outcome, at: float) -> Witnessed:
    """A call with its outcome. Blocks where the service's model is not loaded yet."""
    service, operation = outcome.service, outcome.operation
    parameters, result = outcome.parameters, outcome.result or {}
    given, gave = _shapes(service, operation)
    return Witnessed(
        account_id=call.account.account_id,
        identity=Identity.of(call.principal, call.account.number),
        at=at,
        region=call.region,
        source=f"{service}.amazonaws.com",
        name=operation or "Unknown",
        read_only=outcome.is_read_only,
        request_id=call.request_id,
        category=Category.DATA if is_data(service, operation) else Category.MANAGEMENT,
        source_ip=call.source_ip,
        user_agent=call.user_agent,
        parameters=_small(given, parameters) if parameters else None,
        result=_small(gave, result) if result else None,
        error_code=outcome.error,
        error_message=outcome.message,
        resources=resources(call, service, parameters, result),
    )


def resources(call: Call, service: str, parameters: Json, result: Json) -> list[Resource]:
    """What a call is about: things it names, and ARNs in its parameters and its result."""
    found: dict[str, Resource] = {}
    for arn in _arns(call, service, parameters, result):
        kind = kind_of(arn)
        if kind and len(found) < _MAX_RESOURCES:
            found.setdefault(arn, Resource(kind=kind, arn=arn))
    return list(found.values())


def _arns(call: Call, service: str, parameters: Json, result: Json) -> Iterator[str]:
    if service == "s3":
        bucket = parameters.get("Bucket")
        if bucket and parameters.get("Key"):
            yield f"arn:aws:s3:::{bucket}/{parameters['Key']}"
        if bucket:
            yield f"arn:aws:s3:::{bucket}"
        return
    if service == "cloudtrail" and isinstance(parameters.get("Name"), str):
        name = parameters["Name"]
        yield name if name.startswith("arn:") else call.arn("cloudtrail", f"trail/{name}")
    for member, (owner, form) in _NAMED.items():
        value = parameters.get(member)
        if isinstance(value, str) and value.startswith("arn:"):
            yield value
        elif isinstance(value, str):
            named = {"JobCategory": "AgentRFT"} | parameters
            yield call.arn(owner, form.format_map(named))
    yield from _given_arns(parameters, _DEPTH)
    yield from _given_arns(result, _DEPTH)


def _given_arns(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str) and value.startswith("arn:aws"):
        yield value
    elif isinstance(value, Mapping) and depth > 0:
        for item in value.values():
            yield from _given_arns(item, depth - 1)


def kind_of(arn: str) -> str:
    """The type of the thing that an ARN names; "" for what has none here.

    >>> kind_of("arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/walk")
    'AWS::SageMaker::Job'
    >>> kind_of("arn:aws:s3:::data/rows.jsonl")
    'AWS::S3::Object'
    """
    parts = arn.split(":", 5)
    if len(parts) < 6 or parts[2] not in _VENDORS:
        return ""
    vendor, name = _VENDORS[parts[2]], parts[5]
    if parts[2] == "s3":
        return "AWS::S3::Object" if "/" in name else "AWS::S3::Bucket"
    kind = re.split(r"[:/]", name, maxsplit=1)[0]
    camel = "".join(word[:1].upper() + word[1:] for word in kind.split("-"))
    return f"AWS::{vendor}::{camel}" if camel else ""


def _shapes(service: str, operation: str) -> tuple[Shape | None, Shape | None]:
    """The shapes of what an operation takes and gives; None where no model says."""
    for name in (service, f"{service}-control"):
        try:
            model = load_model(name).operation_model(operation)
        except (UnknownServiceError, OperationNotFoundError):
            continue
        return model.input_shape, model.output_shape
    return None, None


def _small(shape: Shape | None, value: Any) -> Any:
    """A value with the names of its structures' members beginning with a small letter."""
    if isinstance(shape, StructureShape) and isinstance(value, Mapping):
        return {_lower(k): _small(shape.members.get(k), item) for k, item in value.items()}
    if isinstance(shape, ListShape) and isinstance(value, list):
        return [_small(shape.member, item) for item in value]
    if isinstance(shape, MapShape) and isinstance(value, Mapping):
        return {k: _small(shape.value, item) for k, item in value.items()}
    if shape is None and isinstance(value, Mapping):
        return {_lower(str(k)): item for k, item in value.items()}
    return value


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]
