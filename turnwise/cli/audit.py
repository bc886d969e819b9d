"""`turnwise audit`, and its trails."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from turnwise import errors
from turnwise.cli.screen import AsJson, show, table
from turnwise.cli.server import server
from turnwise.control.audit.export import export

Json = dict[str, Any]

app = typer.Typer(no_args_is_help=True, help="The audit trail: search, export, verify.")
trails = typer.Typer(no_args_is_help=True, help="Trails: create, start, stop, select ...")
app.add_typer(trails, name="trail")

_AUDIT_COLUMNS = ("seq", "time", "event", "user", "from", "error", "about")

EventName = Annotated[str, typer.Option("--event-name", help="Such as CreateJob.")]
Since = Annotated[str, typer.Option(help="Such as 90m, 24h, 7d, 2026-11-25 or 2026-11-25T08:00Z.")]
Until = Annotated[str, typer.Option(help="As --since.")]
User = Annotated[str, typer.Option(help="The name of the caller's key.")]
About = Annotated[str, typer.Option("--resource", help="An ARN, or its last part: a job's name.")]


def _filters(event_name: str, since: str, until: str, user: str, resource: str) -> Json:
    return {
        "name": event_name or None,
        "user": user or None,
        "resource": resource or None,
        "since": _moment("--since", since),
        "until": _moment("--until", until),
    }


_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _moment(option: str, text: str) -> float | None:
    """Seconds since the epoch: so long ago, or a date, of UTC if it says no zone."""
    if not text:
        return None
    if text[:-1].isdecimal() and text[-1] in _AGES:
        return time.time() - int(text[:-1]) * _AGES[text[-1]]
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        remedy = "use 90m, 24h, 7d, 2026-11-25 or 2026-11-25T08:00Z"
        raise errors.InvalidInput(option, text, "is no time", remedy=remedy) from None
    return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()


@app.command("search")
def audit_search(
    event_name: EventName = "",
    since: Since = "",
    until: Until = "",
    user: User = "",
    resource: About = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Who called what, newest first."""
    filters = _filters(event_name, since, until, user, resource)
    with server.client() as client:
        found = client.audit(**filters, limit=limit)["records"]
    rows = map(_audit_row, found)
    show([each["record"] for each in found], as_json, lambda: table(rows, _AUDIT_COLUMNS))


def _audit_row(entry: Json) -> Json:
    record = entry["record"]
    who = record["userIdentity"]
    return {
        "seq": entry["seq"],
        "time": record["eventTime"],
        "event": record["eventName"],
        "user": who.get("userName") or who["principalId"],
        "from": record["sourceIPAddress"],
        "error": record.get("errorCode", ""),
        "about": " ".join(each["ARN"].rpartition(":")[2] for each in record["resources"]),
    }


@app.command("export")
def audit_export(
    file: Annotated[Path, typer.Argument(help="A new file to write.")],
    format: Annotated[str, typer.Option("--format", help="json or parquet.")] = "json",
    event_name: EventName = "",
    since: Since = "",
    until: Until = "",
    user: User = "",
    resource: About = "",
    as_json: AsJson = False,
) -> None:
    """Write records, oldest first: CloudTrail's JSON, or Parquet for SQL over them."""
    filters = _filters(event_name, since, until, user, resource)
    with server.client() as client:
        count = export(client.audit_records(**filters), format, file)
    show({"file": str(file), "records": count}, as_json, lambda: f"wrote {count} records: {file}")


@app.command("verify")
def audit_verify(as_json: AsJson = False) -> None:
    """Read the whole trail and check that nothing was altered, removed or inserted."""
    with server.client() as client:
        verdict = client.verify_audit()
    show(verdict, as_json, lambda: _verdict_text(verdict))
    if not verdict["is_intact"]:
        raise typer.Exit(1)


def _verdict_text(verdict: Json) -> str:
    if verdict["is_intact"]:
        lines = [f"intact: {verdict['records']} records, from {verdict['first_seq']} on"]
    else:
        lines = [f"record {each['seq']}: {each['what']}" for each in verdict["flaws"]]
    return "\n".join([*lines, f"the chain ends at {verdict['last_seq']}: {verdict['digest']}"])


# ── trails ────────────────────────────────────────────────────────────────────────────────────

TrailName = Annotated[str, typer.Argument(help="The trail's name.")]
_TRAIL_COLUMNS = ("name", "bucket", "folder", "is_logging", "files", "error")


def _show_trail(trail: Json, as_json: bool) -> None:
    show(trail, as_json, lambda: table([trail], _TRAIL_COLUMNS))


@trails.command("create")
def trails_create(
    name: TrailName,
    folder: Annotated[str, typer.Option(help="Absolute path on the server's machine.")] = "",
    bucket: Annotated[str, typer.Option(help="A bucket of the account.")] = "",
    prefix: Annotated[str, typer.Option(help="Before AWSLogs/ in the names of its files.")] = "",
    data_events: Annotated[
        bool, typer.Option(help="Also what agents call: samples, completions, rewards.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Deliver the account's records as they come, as CloudTrail's files."""
    with server.client() as client:
        client.create_trail(name, folder=folder, bucket=bucket, prefix=prefix)
        if data_events:
            client.select_events(name, advanced=_ALL_EVENTS)
        trail = client.start_trail(name)
    _show_trail(trail, as_json)


_ALL_EVENTS: list[Json] = [
    {"FieldSelectors": [{"Field": "eventCategory", "Equals": ["Management"]}]},
    {
        "FieldSelectors": [
            {"Field": "eventCategory", "Equals": ["Data"]},
            {"Field": "resources.type", "Equals": ["AWS::SageMaker::Job"]},
        ]
    },
]


@trails.command("list")
def trails_list(as_json: AsJson = False) -> None:
    """Trails, and what keeps one from delivering."""
    with server.client() as client:
        found = client.trails()
    show(found, as_json, lambda: table(found, _TRAIL_COLUMNS))


@trails.command("select")
def trails_select(
    name: TrailName,
    selectors: Annotated[Path, typer.Argument(help="JSON: a list of advanced event selectors.")],
    as_json: AsJson = False,
) -> None:
    """Choose what a trail delivers, by the selectors that `aws cloudtrail` takes."""
    try:
        chosen = json.loads(selectors.read_text())
    except (OSError, ValueError) as error:
        raise errors.InvalidInput("selectors", str(selectors), f"is no JSON: {error}") from None
    with server.client() as client:
        trail = client.select_events(name, advanced=chosen)
    _show_trail(trail, as_json)


@trails.command("start")
def trails_start(name: TrailName, as_json: AsJson = False) -> None:
    """Deliver what happens from now on."""
    with server.client() as client:
        _show_trail(client.start_trail(name), as_json)


@trails.command("stop")
def trails_stop(name: TrailName, as_json: AsJson = False) -> None:
    """Deliver nothing that happens after."""
    with server.client() as client:
        _show_trail(client.stop_trail(name), as_json)


@trails.command("delete")
def trails_delete(name: TrailName, as_json: AsJson = False) -> None:
    """Forget a trail; the files that it has delivered stay."""
    with server.client() as client:
        trail = client.delete_trail(name)
    show(trail, as_json, lambda: f"deleted {trail['name']}")
