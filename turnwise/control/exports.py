"""A job's metrics and rollouts as tables: CSV, JSON or Parquet, in pieces as they are made."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any

from turnwise import errors
from turnwise.control.browse import Browse, Point
from turnwise.domain.access import Principal
from turnwise.domain.rollout import Message, NodeKind, RolloutStatus, Trajectory
from turnwise.ports import RolloutQuery, RolloutSummary

Record = dict[str, Any]

#: Rollouts that are read at once.
BATCH = 100
_PIECE = 1 << 16

#: A spreadsheet takes a text that begins like this for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Format(StrEnum):
    """How a table is written."""

    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"

    @property
    def media_type(self) -> str:
        """Of the HTTP answer that carries it."""
        return {
            Format.CSV: "text/csv; charset=utf-8",
            Format.JSON: "application/json",
            Format.PARQUET: "application/vnd.apache.parquet",
        }[self]


#: Columns of a table of rollouts, with the type that Parquet gives them.
ROLLOUT_COLUMNS: Mapping[str, str] = {
    "epoch": "int64",
    "step": "int64",
    "purpose": "string",
    "row_id": "int64",
    "group_id": "string",
    "rollout_id": "string",
    "run_index": "int64",
    "attempt": "int64",
    "status": "string",
    "score": "float64",
    "is_score_valid": "bool",
    "status_code": "string",
    "reason": "string",
    "prompt": "string",
    "response": "string",
    "turns": "int64",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "duration_s": "float64",
    "temperature": "float64",
}


class Exports:
    """Tables of jobs. Every call requires a principal that may read the job."""

    def __init__(self, browse: Browse) -> None:
        self._browse = browse

    async def metrics(
        self, principal: Principal, id_or_name: str, format: Format, names: Sequence[str] = ()
    ) -> AsyncIterator[bytes]:
        """A row per step, a column per metric whose name begins with one of `names` (none: all).

        Raises `NotFound`, `InvalidInput` for names that no metric has, and `Unavailable` without
        the `parquet` extra.
        """
        _check_format(format)
        curves = await self._browse.metrics(principal, id_or_name, names=names)
        if names and not curves:
            known = sorted(await self._browse.metrics(principal, id_or_name))
            remedy = "leave it out, or use the beginning of " + (
                ", ".join(known[:8]) if known else "one that the job has recorded (none so far)"
            )
            given = ", ".join(names)
            raise errors.InvalidInput("metric", given, "is no metric of this job", remedy=remedy)
        columns = {"step": "int64"} | dict.fromkeys(curves, "float64")
        return _written(_once(metric_records(curves)), columns, format)

    async def rollouts(
        self, principal: Principal, query: RolloutQuery, format: Format
    ) -> AsyncIterator[bytes]:
        """A row per rollout that the query's filters let through, in its order.

        JSON has each rollout's messages, rewards and metrics besides. Raises as `metrics` does.
        """
        _check_format(format)
        epochs = await self._browse.epochs(principal, query.job_id)
        records = self._rollout_records(
            principal, query, epochs, with_messages=format is Format.JSON
        )
        return _written(records, ROLLOUT_COLUMNS, format)

    async def _rollout_records(
        self,
        principal: Principal,
        query: RolloutQuery,
        epochs: Mapping[str, int],
        *,
        with_messages: bool,
    ) -> AsyncIterator[list[Record]]:
        place = replace(query, after=None, limit=BATCH)
        while found := await self._browse.rollouts(principal, place):
            records = await asyncio.gather(
                *(self._rollout_record(principal, each, epochs, with_messages) for each in found)
            )
            yield list(records)
            if len(found) < BATCH:
                return
            place = replace(place, after=found[-1].cursor(query.sort))

    async def _rollout_record(
        self,
        principal: Principal,
        summary: RolloutSummary,
        epochs: Mapping[str, int],
        with_messages: bool,
    ) -> Record:
        trajectory = await self._browse.trajectory(principal, summary.rollout.rollout_id)
        record = rollout_record(summary, trajectory, epochs.get(summary.rollout.group_id))
        if with_messages:
            rollout = trajectory.rollout
            record |= {
                "messages": [dict(message) for message in messages_of(trajectory)],
                "rewards": None if rollout.rewards is None else list(rollout.rewards),
                "metrics": dict(rollout.metrics),
            }
        return record


# ── records: pure ─────────────────────────────────────────────────────────────────────────────


def metric_records(curves: Mapping[str, Sequence[Point]]) -> list[Record]:
    """One record per step that has any value, oldest first; a metric without one is None."""
    by_step: dict[int, Record] = {}
    for name, points in curves.items():
        for point in points:
            by_step.setdefault(point.step, {})[name] = point.value
    empty = dict.fromkeys(curves)
    return [{"step": step, **empty, **by_step[step]} for step in sorted(by_step)]


def rollout_record(summary: RolloutSummary, trajectory: Trajectory, epoch: int | None) -> Record:
    """A rollout in the columns of `ROLLOUT_COLUMNS`. Tokens are those of its delivered turns."""
    rollout = trajectory.rollout
    delivered = trajectory.delivered
    prompt, response = _prompt_and_response(trajectory)
    fault = rollout.fault
    is_over = rollout.ended_at is not None
    is_rewarded = rollout.status is RolloutStatus.REWARDED
    return {
        "epoch": epoch,
        "step": rollout.step,
        "purpose": rollout.purpose.value,
        "row_id": rollout.row_index,
        "group_id": rollout.group_id,
        "rollout_id": rollout.rollout_id,
        "run_index": rollout.slot,
        "attempt": rollout.attempt,
        "status": rollout.status.value,
        "score": rollout.reward,
        "is_score_valid": rollout.is_scored,
        "status_code": fault.code if fault else "OK" if is_rewarded else "",
        "reason": rollout.why,
        "prompt": prompt,
        "response": response,
        "turns": summary.turns,
        "prompt_tokens": sum(turn.prompt_tokens for turn in delivered),
        "completion_tokens": sum(turn.completion_tokens for turn in delivered),
        "duration_s": (rollout.ended_at or 0.0) - rollout.created_at if is_over else None,
        "temperature": rollout.sampling.temperature,
    }


def messages_of(trajectory: Trajectory) -> tuple[Message, ...]:
    """The conversation of the newest delivered turn, from its first message to its reply."""
    turns = trajectory.delivered or trajectory.turns
    if not turns:
        return ()
    return tuple(chain.from_iterable(node.messages for node in trajectory.path(turns[-1].leaf)))


def _prompt_and_response(trajectory: Trajectory) -> tuple[str, str]:
    """What was asked first, a line per message, and what was replied last."""
    if not trajectory.nodes:
        return "", ""
    first = trajectory.nodes[0].messages
    replies = [node for node in trajectory.nodes if node.kind is NodeKind.COMPLETION]
    last = messages_of(trajectory)[-1:] if replies else ()
    return "\n".join(_content(message) for message in first), "".join(map(_content, last))


def _content(message: Message) -> str:
    """A message's text, its tool calls as JSON behind it."""
    text = message.get("content") or ""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return str(text) + (json.dumps(calls, ensure_ascii=False) if calls else "")


# ── formats ───────────────────────────────────────────────────────────────────────────────────


async def _once(records: list[Record]) -> AsyncIterator[list[Record]]:
    yield records


def _check_format(format: Format) -> None:
    if format is Format.PARQUET:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise errors.Unavailable(
                "Parquet needs pyarrow: pip install 'turnwise[parquet]', or export as csv or json"
            ) from None


def _written(
    records: AsyncIterator[list[Record]], columns: Mapping[str, str], format: Format
) -> AsyncIterator[bytes]:
    write = {Format.CSV: _as_csv, Format.JSON: _as_json, Format.PARQUET: _as_parquet}[format]
    return write(records, columns)


async def _as_csv(
    records: AsyncIterator[list[Record]], columns: Mapping[str, str]
) -> AsyncIterator[bytes]:
    yield _csv_lines([map(_cell, columns)])
    async for batch in records:
        rows = [[_cell(record[name]) for name in columns] for record in batch]
        yield await asyncio.to_thread(_csv_lines, rows)


def _csv_lines(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    """A value as a spreadsheet should take it: text stays text."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else value


async def _as_json(
    records: AsyncIterator[list[Record]], columns: Mapping[str, str]
) -> AsyncIterator[bytes]:
    """One array, a record per line."""
    yield b"["
    is_first = True
    async for batch in records:
        if batch:
            yield await asyncio.to_thread(_json_lines, batch, "\n" if is_first else ",\n")
            is_first = False
    yield b"\n]\n"


def _json_lines(batch: Sequence[Record], start: str) -> bytes:
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in batch)
    return (start + lines).encode("utf-8", "replace")


async def _as_parquet(
    records: AsyncIterator[list[Record]], columns: Mapping[str, str]
) -> AsyncIterator[bytes]:
    """Written to a file first: a Parquet file's index is at its end, and its size is unknown."""
    import pyarrow
    import pyarrow.parquet

    types = {
        "int64": pyarrow.int64(),
        "float64": pyarrow.float64(),
        "bool": pyarrow.bool_(),
        "string": pyarrow.string(),
    }
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    with tempfile.TemporaryDirectory(prefix="turnwise-export-") as folder:
        file = Path(folder) / "table.parquet"
        with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            async for batch in records:
                table = pyarrow.Table.from_pylist(batch, schema=schema)
                await asyncio.to_thread(writer.write_table, table)
        with file.open("rb") as written:
            while piece := await asyncio.to_thread(written.read, _PIECE):
                yield piece
