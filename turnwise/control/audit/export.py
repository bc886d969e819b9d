"""Audit records in files that other tools read: CloudTrail's JSON, or Parquet for SQL over it."""

from __future__ import annotations

import calendar
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from turnwise import errors

Json = dict[str, Any]

FORMATS = ("json", "parquet")

_ROWS = 10_000  # of a row group


def export(entries: Iterable[Mapping[str, Any]], format: str, file: Path) -> int:
    """Write entries, `{seq, digest, record}`, oldest first, to a new file; how many.

    Raises `InvalidInput` for a file that exists, `Unavailable` without the `parquet` extra.
    """
    if format not in FORMATS:
        raise errors.InvalidInput("format", format, f"must be one of {', '.join(FORMATS)}")
    if file.exists():
        raise errors.InvalidInput("file", str(file), "exists", remedy="name a new file")
    write = _write_json if format == "json" else _write_parquet
    # Beside it, so that a file of that name is there whole or not at all.
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        count = write(entries, partial)
        partial.replace(file)
    except OSError as error:
        raise errors.Unavailable(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def _write_json(entries: Iterable[Mapping[str, Any]], file: Path) -> int:
    """As CloudTrail's own files: {"Records": [...]}, a line each."""
    count = 0
    with file.open("w", encoding="utf-8") as out:
        out.write('{"Records":[')
        for entry in entries:
            out.write(",\n" if count else "\n")
            out.write(json.dumps(entry["record"], ensure_ascii=False, separators=(",", ":")))
            count += 1
        out.write("\n]}\n")
    return count


def _write_parquet(entries: Iterable[Mapping[str, Any]], file: Path) -> int:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise errors.Unavailable(
            "Parquet needs pyarrow: pip install 'turnwise[parquet]', or export as json"
        ) from None
    schema = _schema(pyarrow)
    count = 0
    rows = map(_row, entries)
    with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for page in _pages(rows):
            writer.write_table(pyarrow.Table.from_pylist(page, schema=schema))
            count += len(page)
    return count


def _pages(rows: Iterator[Json]) -> Iterator[list[Json]]:
    while page := list(islice(rows, _ROWS)):
        yield page


def _schema(pyarrow: Any) -> Any:
    text, flag = pyarrow.string(), pyarrow.bool_()
    resource = pyarrow.struct([("type", text), ("arn", text)])
    return pyarrow.schema(
        [
            ("seq", pyarrow.int64()),
            ("event_time", pyarrow.timestamp("s", tz="UTC")),
            ("event_source", text),
            ("event_name", text),
            ("event_category", text),
            ("read_only", flag),
            ("user_name", text),
            ("user_arn", text),
            ("access_key_id", text),
            ("account_id", text),
            ("region", text),
            ("source_ip", text),
            ("user_agent", text),
            ("error_code", text),
            ("error_message", text),
            ("resources", pyarrow.list_(resource)),
            ("request_parameters", text),  # JSON
            ("response_elements", text),  # JSON
            ("request_id", text),
            ("event_id", text),
            ("digest", text),
        ]
    )


def _row(entry: Mapping[str, Any]) -> Json:
    """A record flat, with what has no fixed shape as JSON."""
    record = entry["record"]
    who = record["userIdentity"]
    return {
        "seq": entry["seq"],
        "event_time": _seconds(record["eventTime"]),
        "event_source": record["eventSource"],
        "event_name": record["eventName"],
        "event_category": record["eventCategory"],
        "read_only": record["readOnly"],
        "user_name": who.get("userName"),
        "user_arn": who.get("arn"),
        "access_key_id": who.get("accessKeyId"),
        "account_id": record["recipientAccountId"],
        "region": record["awsRegion"],
        "source_ip": record["sourceIPAddress"],
        "user_agent": record["userAgent"],
        "error_code": record.get("errorCode"),
        "error_message": record.get("errorMessage"),
        "resources": [{"type": each["type"], "arn": each["ARN"]} for each in record["resources"]],
        "request_parameters": _dumped(record["requestParameters"]),
        "response_elements": _dumped(record["responseElements"]),
        "request_id": record["requestID"],
        "event_id": record["eventID"],
        "digest": entry["digest"],
    }


def _dumped(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _seconds(text: str) -> int:
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))
