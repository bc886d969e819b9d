"""Datasets: a file of records -> Rows, or an error with the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from turnwise import errors
from turnwise.domain.data import Row

Records = Iterator[tuple[str, object]]  # (where it stands, the record)


def load_rows(
    path: str, *, prompt_column: str = "prompt", label_column: str = "", field: str = "dataset"
) -> list[Row]:
    """Read a .jsonl, .json (a list) or .csv file.

    The prompt is `prompt_column`; it is passed on as a string, unparsed (a value that is not a
    string is written as JSON). Raises `InvalidInput` for `field`, with the line.
    """
    file = Path(path)
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise errors.InvalidInput(
            field, path, "has an unknown format", remedy="use " + ", ".join(readers)
        )
    text = _read(file, field)
    rows = [
        _row(index, record, f"{field} {where}", prompt_column, label_column)
        for index, (where, record) in enumerate(reader(text, field))
    ]
    if not rows:
        raise errors.InvalidInput(field, path, "holds no rows")
    return rows


def _read(file: Path, field: str) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise errors.InvalidInput(
            field, str(file), f"cannot be read: {error.strerror}", remedy="check the path"
        ) from None
    try:
        return data.decode("utf-8-sig")  # spreadsheet programs write a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise errors.InvalidInput(
            f"{field} line {line}",
            data[error.start : error.end],
            "is not UTF-8",
            remedy="save the file as UTF-8",
        ) from None


def _row(index: int, record: object, where: str, prompt: str, label: str) -> Row:
    if not isinstance(record, Mapping):
        raise errors.InvalidInput(where, record, "is not a record of named fields")
    for setting, column in (("prompt_column", prompt), ("label_column", label)):
        if column and record.get(column) in (None, ""):
            raise errors.InvalidInput(
                where,
                sorted(record),
                f"has no {column!r} column, or it is empty",
                remedy=f"set {setting} in the job file to one of the columns",
            )
    return Row(
        index=index,
        prompt=_text(record[prompt]),
        fields=dict(record),
        label=_text(record[label]) if label else None,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _jsonl(text: str, field: str) -> Records:
    # Not splitlines(): JSON strings may hold the other line ends that Unicode knows.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _parse(line, field, number)


def _parse(text: str, field: str, line: int = 1) -> Any:
    """JSON that starts on `line`."""
    try:
        return json.loads(text, parse_constant=_not_json)
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        shown = text.split("\n")[error.lineno - 1].strip()
        reason = f"is not JSON ({error.msg}, column {error.colno})"
    except (ValueError, RecursionError) as error:
        shown, reason = text.strip(), f"is not JSON ({error})"
    raise errors.InvalidInput(f"{field} line {line}", shown, reason)


def _not_json(name: str) -> NoReturn:
    """`json` would read NaN and Infinity, which other readers refuse."""
    raise ValueError(f"{name} is not a JSON number")


def _json(text: str, field: str) -> Records:
    records = _parse(text, field)
    if not isinstance(records, list):
        raise errors.InvalidInput(field, records, "is not a JSON list of records")
    for number, record in enumerate(records, 1):
        yield f"record {number}", record


def _csv(text: str, field: str) -> Records:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for record in reader:
            if None in record:
                raise errors.InvalidInput(
                    f"{field} line {reader.line_num}",
                    record[None],  # DictReader's key for surplus cells
                    "are more cells than the header has columns",
                )
            yield f"line {reader.line_num}", record
    except csv.Error as error:
        raise errors.InvalidInput(
            f"{field} line {reader.reader.line_num}", str(error), "is why this is not CSV"
        ) from None
