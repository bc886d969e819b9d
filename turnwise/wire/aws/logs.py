"""CloudWatch Logs over the logs of jobs and of registered agents.

Times are milliseconds since the epoch. A forward token says after which line to go on; the last one
again gives no events and the same token, which is how clients know the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from turnwise import errors
from turnwise.control.log_lines import parse_filter
from turnwise.control.logs import Line, Logs, Span, Stream, filtered, page_of
from turnwise.wire.aws.paging import page
from turnwise.wire.aws.service import AwsError, AwsService, Call, Handler, Json

CODES: dict[type[Exception], str] = {
    errors.NotFound: "ResourceNotFoundException",
    errors.Conflict: "ResourceAlreadyExistsException",
    errors.InvalidInput: "InvalidParameterException",
    errors.LimitExceeded: "LimitExceededException",
}

_MAX_EVENTS = 10_000
_PAGE = 50

_TOKEN = re.compile(r"(?P<way>[fb])/(?P<seq>[0-9]{1,18})")
_PLACE = re.compile(r"(?P<ms>[0-9]{1,18})/(?P<seq>[0-9]{1,18})/(?P<stream>.+)", re.DOTALL)


def logs(room: Logs) -> AwsService:
    """The service."""
    handlers = _listing(room) | _reading(room) | _writing(room)
    return AwsService(name="logs", handlers=handlers, codes=CODES)


def _group(call: Call, given: Json) -> str:
    """The group's name, given as such or as an ARN."""
    named, identified = given.get("logGroupName"), given.get("logGroupIdentifier")
    if bool(named) == bool(identified):
        raise AwsError(
            "InvalidParameterException", "give one of logGroupName and logGroupIdentifier"
        )
    beginning = call.arn("logs", "log-group:")
    name = str(named or identified)
    return name.removeprefix(beginning).removesuffix(":*")


def _span(given: Json) -> Span:
    return Span(since=given.get("startTime", 0), until=given.get("endTime"))


# ── groups and streams ────────────────────────────────────────────────────────────────────────


def _listing(room: Logs) -> dict[str, Handler]:
    async def groups(call: Call, given: Json) -> Json:
        """Those of jobs and of registered agents."""
        prefix, part = given.get("logGroupNamePrefix", ""), given.get("logGroupNamePattern", "")
        if prefix and part:
            raise AwsError(
                "InvalidParameterException", "logGroupNamePrefix and ...Pattern exclude each other"
            )
        found = {
            group.name: group
            for group in await room.groups(call.principal)
            if group.name.startswith(prefix) and part in group.name
        }
        names, token = page(
            list(found), given, "nextToken", default=_PAGE, maximum=_PAGE, size="limit"
        )
        body = {"logGroups": [_shown_group(call, name, found[name].created_at) for name in names]}
        return body | ({"nextToken": token} if token else {})

    async def streams(call: Call, given: Json) -> Json:
        """A job's stream is NAME/events."""
        group, prefix = _group(call, given), given.get("logStreamNamePrefix", "")
        by_time = given.get("orderBy") == "LastEventTime"
        if by_time and prefix:
            raise AwsError(
                "InvalidParameterException",
                "orderBy LastEventTime and logStreamNamePrefix exclude each other",
            )
        found = {each.name: each for each in await room.streams(call.principal, group, prefix)}
        ends = {name: await _last_ms(each) for name, each in found.items()} if by_time else {}
        ordered = sorted(found, key=lambda name: (ends.get(name, 0), name))
        if given.get("descending"):
            ordered.reverse()
        names, token = page(ordered, given, "nextToken", default=_PAGE, maximum=_PAGE, size="limit")
        body = {"logStreams": [await _shown_stream(call, group, found[name]) for name in names]}
        return body | ({"nextToken": token} if token else {})

    return {"DescribeLogGroups": groups, "DescribeLogStreams": streams}


def _shown_group(call: Call, name: str, created_at: float) -> Json:
    arn = call.arn("logs", f"log-group:{name}")
    return {
        "logGroupName": name,
        "creationTime": int(created_at * 1000),
        "metricFilterCount": 0,
        "arn": f"{arn}:*",
        "logGroupArn": arn,
        "storedBytes": 0,
        "logGroupClass": "STANDARD",
    }


async def _last_ms(stream: Stream) -> int:
    last = await stream.last(1, None, Span())
    return last[-1].at_ms if last else 0


async def _shown_stream(call: Call, group: str, stream: Stream) -> Json:
    first = await page_of(stream.lines(0, Span()), 1)
    last = await stream.last(1, None, Span()) if first else []
    body: Json = {
        "logStreamName": stream.name,
        "creationTime": int(stream.created_at * 1000),
        "arn": call.arn("logs", f"log-group:{group}:log-stream:{stream.name}"),
        "storedBytes": 0,
    }
    if first:
        body["firstEventTimestamp"] = first[0].at_ms
    if last:
        body |= {"lastEventTimestamp": last[-1].at_ms, "lastIngestionTime": last[-1].at_ms}
    return body


# ── lines ─────────────────────────────────────────────────────────────────────────────────────


def _reading(room: Logs) -> dict[str, Handler]:
    async def get(call: Call, given: Json) -> Json:
        """One stream, from its head or its end; the last token again when there is no more."""
        stream = await room.stream(call.principal, _group(call, given), given["logStreamName"])
        limit = given.get("limit", _MAX_EVENTS)
        way, seq = _position(given)
        if way == "f":
            found = await page_of(stream.lines(seq, _span(given)), limit)
        else:
            found = await stream.last(limit, seq or None, _span(given))
            found = _newest(found)
        first, last = _edges(found, way, seq)
        return {
            "events": [_event(each) for each in found],
            "nextForwardToken": f"f/{last}",
            "nextBackwardToken": f"b/{first}",
        }

    async def filter_(call: Call, given: Json) -> Json:
        """Streams of a group by time and terms, `"a phrase"`, `?either`, `-without`."""
        group = _group(call, given)
        wanted = parse_filter(given.get("filterPattern", ""))
        found = await room.streams(call.principal, group, given.get("logStreamNamePrefix", ""))
        if names := given.get("logStreamNames"):
            if given.get("logStreamNamePrefix"):
                raise AwsError(
                    "InvalidParameterException",
                    "logStreamNames and logStreamNamePrefix exclude each other",
                )
            found = [await room.stream(call.principal, group, name) for name in sorted(set(names))]
        past = _place(given.get("nextToken", ""))
        limit = given.get("limit", _MAX_EVENTS)
        lines, place = await filtered(found, wanted, _span(given), past, limit)
        body: Json = {
            "events": [
                _event(each) | {"logStreamName": each.stream, "eventId": each.event_id}
                for each in lines
            ],
            "searchedLogStreams": [],
        }
        if place is not None:
            ms, stream, seq = place
            body["nextToken"] = f"{ms}/{seq}/{stream}"
        return body

    return {"GetLogEvents": get, "FilterLogEvents": filter_}


def _position(given: Json) -> tuple[str, int]:
    """Which way to read, and from which line on."""
    token = given.get("nextToken")
    if not token:
        return ("f" if given.get("startFromHead") else "b"), 0
    found = _TOKEN.fullmatch(token)
    if found is None:
        raise AwsError("InvalidParameterException", "the token is not one of this operation")
    return found["way"], int(found["seq"])


def _edges(found: Sequence[Line], way: str, seq: int) -> tuple[int, int]:
    """The lines to go on before and after; where nothing was found, as before."""
    if found:
        return found[0].seq, found[-1].seq
    # Before the first line there is nothing, not even by the token "b/1"; "b/0" would be no bound.
    return (seq + 1, seq) if way == "f" else (max(seq, 1), max(seq - 1, 0))


def _newest(found: Sequence[Line]) -> list[Line]:
    """The last of these lines that fit into a page."""
    kept, size = len(found), 0
    while kept and size < 1_000_000:
        kept -= 1
        size += len(found[kept].text)
    return list(found[kept:])


def _place(token: str) -> tuple[int, str, int] | None:
    if not token:
        return None
    found = _PLACE.fullmatch(token)
    if found is None:
        raise AwsError("InvalidParameterException", "the token is not one of this operation")
    return int(found["ms"]), found["stream"], int(found["seq"])


def _event(each: Line) -> Json:
    return {"timestamp": each.at_ms, "message": each.text, "ingestionTime": each.at_ms}


# ── what agents write ─────────────────────────────────────────────────────────────────────────


def _writing(room: Logs) -> dict[str, Handler]:
    async def create_group(call: Call, given: Json) -> Json:
        """Groups come with jobs and agents: it exists already, or is refused."""
        await room.create_group(call.principal, given["logGroupName"])
        return {}

    async def create_stream(call: Call, given: Json) -> Json:
        """In the group of a registered agent."""
        await room.create_stream(call.principal, given["logGroupName"], given["logStreamName"])
        return {}

    async def put(call: Call, given: Json) -> Json:
        """Into a stream that was made in an agent's group."""
        lines = [(each["timestamp"], each["message"]) for each in given["logEvents"]]
        await room.put(call.principal, given["logGroupName"], given["logStreamName"], lines)
        return {"nextSequenceToken": "0"}

    return {
        "CreateLogGroup": create_group,
        "CreateLogStream": create_stream,
        "PutLogEvents": put,
    }
