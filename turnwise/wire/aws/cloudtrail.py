"""CloudTrail: trails over the audit trail, their selectors, and the event history of 90 days."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from turnwise import errors
from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.selectors import DEFAULT, InvalidSelectors
from turnwise.control.audit.trails import (
    InvalidBucketName,
    InvalidPrefix,
    InvalidTrailName,
    NoBucket,
    TooManyTrails,
    Trail,
    TrailExists,
    Trails,
)
from turnwise.domain.audit import AuditQuery, AuditRecord, Category
from turnwise.ports import Clock
from turnwise.wire.aws.service import AwsError, AwsService, Call, Handler, Json

#: What the event history shows, seconds.
HISTORY_S = 90 * 24 * 3600.0

_MAX_RESULTS = 50

CODES: dict[type[Exception], str] = {
    NoBucket: "S3BucketDoesNotExistException",
    errors.NotFound: "TrailNotFoundException",
    TrailExists: "TrailAlreadyExistsException",
    TooManyTrails: "MaximumNumberOfTrailsExceededException",
    InvalidTrailName: "InvalidTrailNameException",
    InvalidBucketName: "InvalidS3BucketNameException",
    InvalidPrefix: "InvalidS3PrefixException",
    InvalidSelectors: "InvalidEventSelectorsException",
    errors.InvalidInput: "InvalidParameterException",
    errors.Conflict: "ConflictException",
}

#: Options that are kept and shown as they were given, with what they are by default.
_OPTIONS: Mapping[str, Any] = {
    "IncludeGlobalServiceEvents": True,
    "IsMultiRegionTrail": False,
    "EnableLogFileValidation": False,
}
#: Those that would have to do something here.
_UNSUPPORTED = ("SnsTopicName", "CloudWatchLogsLogGroupArn", "KmsKeyId")


def cloudtrail(audit: AuditTrail, trails: Trails, clock: Clock) -> AwsService:
    """The service."""
    handlers = _trail_handlers(trails) | _selector_handlers(trails)
    history = _History(audit, clock)
    return AwsService(
        name="cloudtrail", handlers=handlers | {"LookupEvents": history.lookup}, codes=CODES
    )


# ── trails ────────────────────────────────────────────────────────────────────────────────────


def _trail_handlers(trails: Trails) -> dict[str, Handler]:
    async def create(call: Call, given: Json) -> Json:
        """Delivers to a bucket of this server. No SNS topic, log group or KMS key."""
        _check_supported(given)
        options = {name: given.get(name, default) for name, default in _OPTIONS.items()}
        made = await trails.create(
            call.principal,
            call.account,
            given["Name"],
            bucket=given["S3BucketName"],
            prefix=given.get("S3KeyPrefix", ""),
            options=options,
        )
        return _shown(call, made)

    async def update(call: Call, given: Json) -> Json:
        """Its bucket, prefix and options."""
        _check_supported(given)
        changes: Json = {"options": {key: given[key] for key in _OPTIONS if key in given}}
        places = {"bucket": "S3BucketName", "prefix": "S3KeyPrefix"}
        changes |= {key: given[name] for key, name in places.items() if name in given}
        return _shown(call, await trails.update(call.principal, _named(call, given), changes))

    async def delete(call: Call, given: Json) -> Json:
        """The trail; the files that it has delivered stay."""
        await trails.delete(call.principal, _named(call, given))
        return {}

    async def get(call: Call, given: Json) -> Json:
        """A trail by name or ARN."""
        trail = trails.trail(call.principal, _named(call, given))
        return {"Trail": _described(call, trail)}

    async def describe(call: Call, given: Json) -> Json:
        """Trails by their names, or all."""
        wanted = {_name(call, each) for each in given.get("trailNameList", ())}
        found = [
            each for each in trails.trails(call.principal) if not wanted or each.name in wanted
        ]
        return {"trailList": [_described(call, each) for each in found]}

    async def list_(call: Call, given: Json) -> Json:
        """All, each with its ARN."""
        return {
            "Trails": [
                {"TrailARN": _arn(call, each), "Name": each.name, "HomeRegion": call.region}
                for each in trails.trails(call.principal)
            ]
        }

    async def status(call: Call, given: Json) -> Json:
        """Whether it logs, and what keeps it from delivering."""
        return _status(trails.trail(call.principal, _named(call, given)))

    async def start(call: Call, given: Json) -> Json:
        """Delivers what happens from now on."""
        await trails.start_logging(call.principal, _named(call, given))
        return {}

    async def stop(call: Call, given: Json) -> Json:
        """Delivers nothing that happens after."""
        await trails.stop_logging(call.principal, _named(call, given))
        return {}

    return {
        "CreateTrail": create,
        "UpdateTrail": update,
        "DeleteTrail": delete,
        "GetTrail": get,
        "DescribeTrails": describe,
        "ListTrails": list_,
        "GetTrailStatus": status,
        "StartLogging": start,
        "StopLogging": stop,
    }


def _check_supported(given: Json) -> None:
    for name in _UNSUPPORTED:
        if given.get(name):
            raise AwsError("UnsupportedOperationException", f"{name} has no meaning on this server")
    if given.get("IsOrganizationTrail"):
        raise AwsError("OrganizationsNotInUseException", "this server has no organizations")


def _named(call: Call, given: Json) -> str:
    return _name(call, given.get("Name") or given.get("TrailName") or "")


def _name(call: Call, name_or_arn: str) -> str:
    """A trail's name; an ARN must be of the caller's account and region."""
    if not name_or_arn.startswith("arn:"):
        return name_or_arn
    beginning = call.arn("cloudtrail", "trail/")
    if ":trail/" not in name_or_arn:
        raise AwsError("CloudTrailARNInvalidException", f"{name_or_arn[:200]!r} is no trail's ARN")
    if not name_or_arn.startswith(beginning):
        raise errors.NotFound("trail", name_or_arn)
    return name_or_arn[len(beginning) :]


def _arn(call: Call, trail: Trail) -> str:
    return call.arn("cloudtrail", f"trail/{trail.name}")


def _shown(call: Call, trail: Trail) -> Json:
    options = {**_OPTIONS, **trail.options}
    return {
        "Name": trail.name,
        "S3BucketName": trail.bucket or None,
        "S3KeyPrefix": trail.prefix or None,
        "IncludeGlobalServiceEvents": options["IncludeGlobalServiceEvents"],
        "IsMultiRegionTrail": options["IsMultiRegionTrail"],
        "TrailARN": _arn(call, trail),
        "LogFileValidationEnabled": options["EnableLogFileValidation"],
        "IsOrganizationTrail": False,
    }


def _described(call: Call, trail: Trail) -> Json:
    is_custom = bool(trail.advanced) or list(trail.classic) != DEFAULT
    return _shown(call, trail) | {
        "HomeRegion": call.region,
        "HasCustomEventSelectors": is_custom,
        "HasInsightSelectors": False,
    }


def _status(trail: Trail) -> Json:
    iso = {
        "LatestDeliveryAttemptTime": trail.attempted_at,
        "LatestDeliveryAttemptSucceeded": trail.delivered_at,
        "TimeLoggingStarted": trail.started_at,
        "TimeLoggingStopped": trail.stopped_at,
    }
    return {
        "IsLogging": trail.is_logging,
        "LatestDeliveryError": trail.error or None,
        "LatestDeliveryTime": trail.delivered_at,
        "StartLoggingTime": trail.started_at,
        "StopLoggingTime": trail.stopped_at,
        **{name: "" if at is None else _iso(at) for name, at in iso.items()},
    }


def _iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


# ── selectors ─────────────────────────────────────────────────────────────────────────────────


def _selector_handlers(trails: Trails) -> dict[str, Handler]:
    async def put(call: Call, given: Json) -> Json:
        """Classic or advanced; data events are off until they are selected."""
        trail = await trails.put_selectors(
            call.principal,
            _named(call, given),
            classic=given.get("EventSelectors", ()),
            advanced=given.get("AdvancedEventSelectors", ()),
        )
        return _selectors(call, trail)

    async def get(call: Call, given: Json) -> Json:
        """A trail's selectors."""
        return _selectors(call, trails.trail(call.principal, _named(call, given)))

    return {"PutEventSelectors": put, "GetEventSelectors": get}


def _selectors(call: Call, trail: Trail) -> Json:
    kept: dict[str, Sequence[Json]] = {
        "EventSelectors": trail.classic,
        "AdvancedEventSelectors": trail.advanced,
    }
    return {"TrailARN": _arn(call, trail)} | {key: list(v) for key, v in kept.items() if v}


# ── the event history ─────────────────────────────────────────────────────────────────────────

_ATTRIBUTES: Mapping[str, str] = {
    "EventId": "event_id",
    "EventName": "name",
    "Username": "user_name",
    "ResourceType": "resource_type",
    "ResourceName": "resource",
    "EventSource": "source",
    "AccessKeyId": "access_key_id",
}


class _History:
    def __init__(self, audit: AuditTrail, clock: Clock) -> None:
        self._audit = audit
        self._clock = clock

    async def lookup(self, call: Call, given: Json) -> Json:
        """Management events, newest first; several attributes must all hold."""
        if given.get("EventCategory") == "insight":
            return {"Events": []}
        since, until = given.get("StartTime"), given.get("EndTime")
        if since is not None and until is not None and since > until:
            raise AwsError("InvalidTimeRangeException", "StartTime is after EndTime")
        limit = given.get("MaxResults", _MAX_RESULTS)
        query = AuditQuery(
            category=Category.MANAGEMENT,
            since=max(since or 0.0, self._clock.now() - HISTORY_S),
            until=None if until is None else until + 0.999,  # EndTime's whole second
            before=_cursor(given.get("NextToken", "")),
            limit=limit + 1,
            **_wanted(given.get("LookupAttributes", ())),
        )
        found = await self._audit.search(call.principal, query)
        body: Json = {"Events": [_event(each) for each in found[:limit]]}
        if len(found) > limit:
            body["NextToken"] = _token(found[limit - 1].seq)
        return body


def _wanted(attributes: Sequence[Json]) -> Json:
    wanted: Json = {}
    for attribute in attributes:
        key, value = attribute["AttributeKey"], attribute["AttributeValue"]
        if key == "ReadOnly":
            if value not in ("true", "false"):
                raise AwsError("InvalidLookupAttributesException", "ReadOnly must be true or false")
            wanted["read_only"] = value == "true"
        else:
            wanted[_ATTRIBUTES[key]] = value
    return wanted


def _token(seq: int) -> str:
    return base64.urlsafe_b64encode(f"before {seq}".encode()).decode()


def _cursor(token: str) -> int | None:
    if not token:
        return None
    try:
        word, _, digits = base64.b64decode(token, b"-_", validate=True).decode().partition(" ")
    except ValueError:
        word, digits = "", ""
    if word != "before" or not digits.isdecimal() or len(digits) > 18:
        raise AwsError("InvalidNextTokenException", "the token is not one of this operation")
    return int(digits)


def _event(record: AuditRecord) -> Json:
    body = json.loads(record.body)
    return {
        "EventId": record.event_id,
        "EventName": record.name,
        "ReadOnly": "true" if record.read_only else "false",
        "AccessKeyId": record.access_key_id or None,
        "EventTime": float(int(record.at)),
        "EventSource": record.source,
        "Username": record.user_name or None,
        "Resources": [
            {"ResourceType": each["type"], "ResourceName": each["ARN"]}
            for each in body["resources"]
        ],
        "CloudTrailEvent": record.body,
    }
