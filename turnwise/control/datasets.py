"""Datasets: files of records -> Rows, or an error with the line."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NoReturn

from turnwise import errors
from turnwise.domain.data import Row

Records = Iterator[tuple[str, object]]  # (where it stands, the record)

#: The column that is taken where a job names none and the first record has it.
PROMPT = "prompt"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A file to read: what its user calls it (its ending says the format), and where it lies.

    `relative` is its name below the folder or prefix that was asked for.
    """

    name: str
    path: Path
    relative: str = ""


def load_files(
    files: Sequence[DataFile],
    *,
    prompt_column: str = "",
    label_column: str = "",
    field: str = "dataset",
) -> list[Row]:
    """Read .jsonl, .json (a list), .csv or .parquet files, one after the other.

    The prompt is `prompt_column`, else the column `prompt` where the first record has one, else
    its first column; it is passed on as a string, unparsed (a value that is not a string is
    written as JSON). Raises `InvalidInput` for `field`, with the line.
    """
    rows: list[Row] = []
    for file in files:
        # Of several files, an error has to say which.
        place = field if len(files) == 1 else f"{field} {file.name}"
        for where, record in _records(file, place):
            prompt_column = prompt_column or _default_column(record)
            row = _row(len(rows), record, f"{place} {where}", prompt_column, label_column)
            rows.append(row)
    if not rows:
        raise errors.InvalidInput(field, files[0].name if files else "", "holds no rows")
    return rows


def prompt_column_of(rows: Sequence[Row], prompt_column: str) -> str:
    """The column that `load_files` has taken the prompts from."""
    return prompt_column or _default_column(rows[0].fields)


def _default_column(record: object) -> str:
    if not isinstance(record, Mapping) or not record or PROMPT in record:
        return PROMPT
    return str(next(iter(record)))


def _records(file: DataFile, field: str) -> Records:
    ending = PurePath(file.name).suffix.lower()
    if ending == ".parquet":
        return _parquet(file, field)
    reader = _READERS.get(ending)
    if reader is None:
        known = ", ".join([*_READERS, ".parquet"])
        raise errors.InvalidInput(field, file.name, "has an unknown format", remedy=f"use {known}")
    return reader(_read(file, field), field)


def _read(file: DataFile, field: str) -> str:
    try:
        data = file.path.read_bytes()
    except OSError as error:
        raise errors.InvalidInput(
            field, file.name, f"cannot be read: {error.strerror}", remedy="check the path"
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


_READERS: Mapping[str, Callable[[str, str], Records]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
}


# ── parquet ───────────────────────────────────────────────────────────────────────────────────


def _parquet(file: DataFile, field: str) -> Records:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise errors.InvalidInput(
            field,
            file.name,
            "is Parquet, which this server cannot read",
            remedy="install the extra: pip install 'turnwise[parquet]'",
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(file.path) as opened:
            batches = [batch.to_pylist() for batch in opened.iter_batches()]
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise errors.InvalidInput(field, file.name, f"cannot be read: {reason}") from None
    for number, record in enumerate((record for batch in batches for record in batch), 1):
        yield f"row {number}", {str(key): _jsonable(value) for key, value in record.items()}


def _jsonable(value: Any) -> Any:
    """A value as JSON has it: what JSON lacks becomes text, and a missing number nothing."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
