"""Datasets: a file of records -> Rows, or an error with the line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from turnwise import errors
from turnwise.domain.data import Row


def load_rows(path: str, *, prompt_column: str = "prompt", label_column: str = "") -> list[Row]:
    """Read a .jsonl, .json (a list) or .csv file.

    The prompt is `prompt_column`; it is passed on as a string, unparsed (a value that is not a
    string is written as JSON). Raises `InvalidInput` with the file's line.
    """
    file = Path(path)
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}
    if file.suffix not in readers:
        raise errors.InvalidInput(
            "dataset", path, "has an unknown format", remedy="use " + ", ".join(readers)
        )
    if not file.is_file():
        raise errors.InvalidInput("dataset", path, "does not exist", remedy="check the path")
    rows = [
        _row(index, record, line, prompt_column, label_column)
        for index, (line, record) in enumerate(readers[file.suffix](file))
    ]
    if not rows:
        raise errors.InvalidInput("dataset", path, "holds no rows")
    return rows


def _row(index: int, record: object, line: int, prompt: str, label: str) -> Row:
    where = f"dataset line {line}"
    if not isinstance(record, Mapping):
        raise errors.InvalidInput(where, record, "is not a record of named fields")
    for column in filter(None, (prompt, label)):
        if record.get(column) in (None, ""):
            raise errors.InvalidInput(
                where,
                sorted(record),
                f"has no {column!r} column, or it is empty",
                remedy="set prompt_column (or label_column) in the job file to one of the columns",
            )
    return Row(
        index=index,
        prompt=_text(record[prompt]),
        fields=dict(record),
        label=_text(record[label]) if label else None,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _jsonl(file: Path) -> Iterator[tuple[int, object]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _parse(line, number)


def _parse(line: str, number: int) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise errors.InvalidInput(
            f"dataset line {number}",
            line.strip(),
            f"is not JSON ({error.msg}, column {error.colno})",
        ) from None


def _json(file: Path) -> Iterator[tuple[int, object]]:
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise errors.InvalidInput(
            f"dataset line {error.lineno}", file.name, f"is not JSON ({error.msg})"
        ) from None
    if not isinstance(records, list):
        raise errors.InvalidInput("dataset", file.name, "is not a JSON list of records")
    yield from enumerate(records, 1)


def _csv(file: Path) -> Iterator[tuple[int, object]]:
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        for record in reader:
            if None in record:
                raise errors.InvalidInput(
                    f"dataset line {reader.line_num}",
                    record[None],  # DictReader's key for surplus cells
                    "are more cells than the header has columns",
                )
            yield reader.line_num, record
