"""A call that a door has seen -> a record in CloudTrail's shape. Pure.

https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-event-reference-record-contents.html

Secrets are masked, by the names of members and by their look, and large values are cut with a mark,
so that a record is at most about `MAX_BYTES` long.
"""

from __future__ import annotations

import json
import math
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turnwise.domain.access import Principal
from turnwise.domain.audit import AuditDraft, Category, fields_of

Json = dict[str, Any]

VERSION = "1.11"  # of CloudTrail's record
MAX_TEXT = 4096  # characters of one value
MAX_MEMBERS = 100  # of one list or object
MAX_DEPTH = 10
MAX_BYTES = 64 * 1024

MASK = "****"

#: Fixed for ever: the id of a record follows from that of its request.
_EVENTS = uuid.UUID("6f0c2f0a-7d0c-4b1e-9a5c-0a1d5b6f3c21")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who called: a key of an account, or an agent with the secret of its rollout."""

    number: str  # the account's, 12 digits
    user_name: str = ""
    access_key_id: str = ""
    rollout_id: str = ""

    @classmethod
    def of(cls, principal: Principal, number: str) -> Identity:
        """A verified caller; `number` is its account's."""
        return cls(
            number=number,
            user_name="" if principal.rollout_id else principal.user_name,
            access_key_id=principal.access_key_id,
            rollout_id=principal.rollout_id or "",
        )

    @property
    def arn(self) -> str:
        """A key is shown as an IAM user, a rollout's secret as temporary credentials."""
        if self.rollout_id:
            return f"arn:aws:sts::{self.number}:assumed-role/rollout/{self.rollout_id}"
        return f"arn:aws:iam::{self.number}:user/{self.user_name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What a call was about: `kind` as in "AWS::SageMaker::Job"."""

    kind: str
    arn: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Witnessed:
    """One call as a door saw it. `parameters` None: they are not recorded."""

    account_id: str
    identity: Identity
    at: float  # seconds since the epoch
    region: str
    source: str  # "sagemaker.amazonaws.com"
    name: str  # "CreateJob"
    read_only: bool
    request_id: str
    category: Category = Category.MANAGEMENT
    source_ip: str = ""
    user_agent: str = ""
    parameters: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    error_code: str = ""
    error_message: str = ""
    resources: Sequence[Resource] = ()


def draft(seen: Witnessed) -> AuditDraft:
    """The record of a call, to be appended."""
    record = _record(seen)
    body = canonical(record)
    if len(body) > MAX_BYTES:
        for part in ("requestParameters", "responseElements"):
            if record[part] is not None:
                record[part] = {"omitted": f"{len(canonical(record[part]))} characters"}
        body = canonical(record)
    return AuditDraft(at=seen.at, body=body, **fields_of(record))


def canonical(value: Any) -> str:
    """JSON that is the same for equal values: sorted names, no spaces."""
    return json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    )


def iso(at: float) -> str:
    """Seconds since the epoch as CloudTrail writes them.

    >>> iso(0.9)
    '1970-01-01T00:00:00Z'
    """
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(math.floor(at)))


def _record(seen: Witnessed) -> Json:
    number = seen.identity.number
    record: Json = {
        "eventVersion": VERSION,
        "userIdentity": _identity(seen.identity),
        "eventTime": iso(seen.at),
        "eventSource": seen.source,
        "eventName": seen.name,
        "awsRegion": seen.region,
        "sourceIPAddress": seen.source_ip,
        "userAgent": _text(seen.user_agent)[:256],
        "requestParameters": None if seen.parameters is None else safe(seen.parameters),
        "responseElements": None if not seen.result or seen.read_only else safe(seen.result),
        "requestID": seen.request_id,
        "eventID": str(uuid.uuid5(_EVENTS, seen.request_id)),
        "readOnly": seen.read_only,
        "resources": [
            {"type": each.kind, "ARN": _text(each.arn)[:512], "accountId": number}
            for each in seen.resources
        ],
        "eventType": "AwsApiCall",
        "managementEvent": seen.category is Category.MANAGEMENT,
        "recipientAccountId": number,
        "eventCategory": seen.category.value,
    }
    if seen.error_code:
        record["errorCode"] = seen.error_code
        record["errorMessage"] = safe(seen.error_message)
    return record


def _identity(who: Identity) -> Json:
    if who.rollout_id:
        return {
            "type": "AssumedRole",
            "principalId": who.rollout_id,
            "arn": who.arn,
            "accountId": who.number,
        }
    return {
        "type": "IAMUser",
        "principalId": who.access_key_id or who.user_name,
        "arn": who.arn,
        "accountId": who.number,
        "accessKeyId": who.access_key_id,
        "userName": who.user_name,
    }


# ── what may be kept of parameters ────────────────────────────────────────────────────────────

_SECRET = re.compile(
    r"secret|passw(or)?d|passphrase|authorization|credential|api[-_]?key|private[-_]?key|cookie"
    r"|authorizedurl|presigned|token$",
    re.IGNORECASE,
)
#: Names that end in "token" and hold none that opens a door.
_CURSORS = frozenset(
    {
        *("nexttoken", "clienttoken", "clientrequesttoken", "sequencetoken", "continuationtoken"),
        *("nextforwardtoken", "nextbackwardtoken", "nextsequencetoken", "uploadsequencetoken"),
        "nextcontinuationtoken",
    }
)
_LOOKS: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"\btw_[a-z]{40}\b"), f"tw_{MASK}"),  # an access key of this server
    (re.compile(r"(rollout_[a-z]+\.)[A-Za-z]{8,}"), rf"\1{MASK}"),  # a rollout's secret
    (re.compile(r"(sagemaker-api-key-)[A-Za-z0-9+/=_-]{16,}"), rf"\1{MASK}"),  # the SDK's token
    (re.compile(r"(X-Amz-(?:Signature|Security-Token)=)[^&\s\"]+"), rf"\1{MASK}"),
    (re.compile(r"(authToken=)[^&#\s\"]+"), rf"\1{MASK}"),
    (re.compile(r"(://)[^/@\s\"]+@"), rf"\1{MASK}@"),
    (re.compile(r"\b(Bearer|Basic) [A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*", re.DOTALL), rf"\1{MASK}"),
)


def safe(value: Any, depth: int = 0) -> Any:
    """A value as it may be recorded: JSON, without secrets, cut where it is large."""
    if depth > MAX_DEPTH:
        return "... (deeper)"
    if isinstance(value, str):
        return _cut(_masked(_text(value), depth))
    if isinstance(value, Mapping):
        return _safe_members(value, depth)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({len(value)} bytes)"
    if isinstance(value, list | tuple | set | frozenset):
        items = list(value)
        kept = [safe(item, depth + 1) for item in items[:MAX_MEMBERS]]
        return [*kept, f"... ({len(items)} members)"] if len(items) > MAX_MEMBERS else kept
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return _cut(_masked(_text(str(value)), depth))


def _safe_members(value: Mapping[Any, Any], depth: int) -> Json:
    kept: Json = {}
    for name, item in list(value.items())[:MAX_MEMBERS]:
        name = _text(str(name))[:256]
        kept[name] = MASK if _is_secret(name) and item else safe(item, depth + 1)
    if len(value) > MAX_MEMBERS:
        kept["..."] = f"({len(value)} members)"
    return kept


def _is_secret(name: str) -> bool:
    return _SECRET.search(name) is not None and name.lower() not in _CURSORS


def _masked(text: str, depth: int) -> str:
    """Text without secrets; one that is JSON is looked into, for job documents come as text."""
    if text[:1] in ("{", "[") and len(text) <= MAX_BYTES:
        try:
            inside = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            text = canonical(safe(inside, depth + 1))
    for look, mask in _LOOKS:
        text = look.sub(mask, text)
    return text


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text)} characters)"


def _text(text: str) -> str:
    """Text that can be stored: half a surrogate pair and NUL become question marks."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")
