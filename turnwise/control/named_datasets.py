"""Datasets by name: made empty, then filled with files, which lie in a bucket of the account.

    s3://turnwise-datasets/<id>/<file>.jsonl      what was uploaded
    s3://turnwise-datasets/<id>@carved/...        its two parts, where a job validates on one

A job names one by its `uri`, so that the bucket's own rules hold for who may read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from turnwise import errors
from turnwise.control.objects.buckets import Buckets
from turnwise.control.objects.content import read_pieces
from turnwise.domain.access import Action, Principal
from turnwise.domain.resource import Resource
from turnwise.ports import Clock, Resources

KIND = "dataset"  # of the records
BUCKET = "turnwise-datasets"

#: Of a dataset's rows, those held back to validate on: a tenth, at most so many.
MAX_CARVED_ROWS = 200
#: Largest dataset that is taken apart: its rows are all in memory then.
MAX_CARVED_BYTES = 1 << 30

_PARTS = ("train.jsonl", "held-back.jsonl")
_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class DatasetState(StrEnum):
    """Whether a dataset has its rows."""

    UPLOADING = "UPLOADING"
    READY = "READY"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedDataset:
    """One dataset of an account. `given` is what its maker said of it.

    `files` maps the names of its files to their numbers of rows; `expected` names those that are
    to come. Times are seconds since the epoch.
    """

    account_id: str
    dataset_id: str
    given: Mapping[str, Any] = field(default_factory=dict)
    state: DatasetState = DatasetState.UPLOADING
    files: Mapping[str, int] = field(default_factory=dict)
    expected: tuple[str, ...] = ()
    created_by: str = ""
    created_at: float = 0.0
    updated_at: float = 0.0

    @property
    def uri(self) -> str:
        """Where its files lie."""
        return f"s3://{BUCKET}/{self.dataset_id}/"

    @property
    def rows(self) -> int:
        """How many rows it has: lines that are not blank."""
        return sum(self.files.values())


class NamedDatasets:
    """The datasets of all accounts. Every call requires a principal with the right."""

    def __init__(self, resources: Resources, buckets: Buckets, clock: Clock) -> None:
        self._resources = resources
        self._buckets = buckets
        self._clock = clock
        self._changing = asyncio.Lock()  # held from a look at a record to its change

    async def create(
        self, principal: Principal, dataset_id: str, given: Mapping[str, Any]
    ) -> NamedDataset:
        """A dataset without rows. Raises `InvalidInput`, and `Conflict` if the id is taken."""
        principal.require_all(Action.MANAGE, "datasets")
        if not _ID.fullmatch(dataset_id):
            raise errors.InvalidInput(
                "dataset_id",
                dataset_id,
                "is not an id",
                remedy="use 1 to 63 of a-z, 0-9 and hyphens, a letter first and no hyphen last",
            )
        made = NamedDataset(
            account_id=principal.account_id,
            dataset_id=dataset_id,
            given=given,
            created_by=principal.name,
            created_at=self._clock.now(),
        )
        return _dataset(await self._resources.create_resource(_record(made)))

    async def get(self, principal: Principal, dataset_id: str) -> NamedDataset:
        """Raises `NotFound`."""
        principal.require_all(Action.READ, "datasets")
        return _dataset(await self._resources.resource(principal.account_id, KIND, dataset_id))

    async def list(self, principal: Principal) -> list[NamedDataset]:
        """Oldest first."""
        principal.require_all(Action.READ, "datasets")
        found = await self._resources.resources(principal.account_id, KIND)
        return [_dataset(each) for each in found]

    async def change(
        self, principal: Principal, dataset_id: str, given: Mapping[str, Any]
    ) -> NamedDataset:
        """Replace some of what its maker said of it."""
        principal.require_all(Action.MANAGE, "datasets")
        async with self._changing:
            known = await self.get(principal, dataset_id)
            return await self._change(dataclasses.replace(known, given={**known.given, **given}))

    async def put(
        self, principal: Principal, dataset_id: str, name: str, content: Path, *, is_whole: bool
    ) -> NamedDataset:
        """Keep a file of rows; with `is_whole`, it is all of the dataset, which is then READY."""
        principal.require_all(Action.MANAGE, "datasets")
        name = file_name(name)
        async with self._changing:
            known = await self.get(principal, dataset_id)
            await self._make_bucket(principal.account_id)
            rows = await asyncio.to_thread(_count_rows, content)
            key = f"{dataset_id}/{name}"
            await self._buckets.put_pieces(principal.account_id, BUCKET, key, read_pieces(content))
            others = [other for other in known.files if other != name] if is_whole else []
            await self._remove(principal.account_id, dataset_id, others)
            files = {key: known.files[key] for key in known.files if key not in others}
            state = DatasetState.READY if is_whole else known.state
            return await self._change(
                dataclasses.replace(known, files=files | {name: rows}, state=state)
            )

    async def expect(
        self, principal: Principal, dataset_id: str, names: Iterable[str]
    ) -> NamedDataset:
        """Say which files are all of the dataset, in place of those that it had."""
        principal.require_all(Action.MANAGE, "datasets")
        expected = tuple(file_name(name) for name in names)
        async with self._changing:
            known = await self.get(principal, dataset_id)
            others = [name for name in known.files if name not in expected]
            await self._remove(principal.account_id, dataset_id, others)
            files = {name: rows for name, rows in known.files.items() if name in expected}
            return await self._change(
                dataclasses.replace(
                    known, expected=expected, files=files, state=DatasetState.UPLOADING
                )
            )

    async def finish(self, principal: Principal, dataset_id: str) -> NamedDataset:
        """Say that all files are there. Raises `Conflict` where one is missing."""
        principal.require_all(Action.MANAGE, "datasets")
        async with self._changing:
            known = await self.get(principal, dataset_id)
            missing = [name for name in known.expected if name not in known.files]
            if missing or not known.files:
                what = f"lacks {', '.join(missing)}" if missing else "has no files"
                raise errors.Conflict(
                    f"dataset {dataset_id!r} {what}; upload it before it is validated"
                )
            return await self._change(dataclasses.replace(known, state=DatasetState.READY))

    async def delete(self, principal: Principal, dataset_id: str) -> None:
        """Remove a dataset and its files. A job that has read them goes on. Raises `NotFound`."""
        principal.require_all(Action.MANAGE, "datasets")
        async with self._changing:
            known = await self.get(principal, dataset_id)
            await self._remove(principal.account_id, dataset_id, known.files)
            await self._remove(principal.account_id, f"{dataset_id}@carved", _PARTS)
            await self._resources.delete_resource(principal.account_id, KIND, dataset_id)

    async def file(self, principal: Principal, dataset_id: str, name: str) -> Path:
        """One of its files. Raises `NotFound`."""
        principal.require_all(Action.READ, "datasets")
        _, path = await self._buckets.get(principal.account_id, BUCKET, f"{dataset_id}/{name}")
        return path

    async def carved(self, principal: Principal, dataset_id: str) -> tuple[str, int, str]:
        """A dataset in two parts: URI and number of the rows to train on, URI of those held back.

        Held back are the last tenth, at most `MAX_CARVED_ROWS`. Raises `Conflict` for fewer than
        two rows, and for more than `MAX_CARVED_BYTES`.
        """
        known = await self.get(principal, dataset_id)
        held_back = min(MAX_CARVED_ROWS, max(1, known.rows // 10))
        if known.rows <= held_back:
            raise errors.Conflict(
                f"dataset {dataset_id!r} has {known.rows} rows, of which none can be held back; "
                "use one of at least 2 rows"
            )
        files = [await self.file(principal, dataset_id, name) for name in known.files]
        if (size := sum(each.stat().st_size for each in files)) > MAX_CARVED_BYTES:
            raise errors.Conflict(
                f"dataset {dataset_id!r} has {size} bytes, of which none can be held back; upload "
                "the rows to validate on as a dataset of their own, and name it"
            )
        lines = await asyncio.to_thread(_lines, files)
        parts = (lines[:-held_back], lines[-held_back:])
        for part, its in zip(_PARTS, parts, strict=True):
            key = f"{dataset_id}@carved/{part}"
            await self._buckets.put_pieces(principal.account_id, BUCKET, key, its)
        folder = f"s3://{BUCKET}/{dataset_id}@carved"
        return f"{folder}/{_PARTS[0]}", len(parts[0]), f"{folder}/{_PARTS[1]}"

    async def _make_bucket(self, account_id: str) -> None:
        if not await self._buckets.exists(account_id, BUCKET):
            with contextlib.suppress(errors.Conflict):
                await self._buckets.create(account_id, BUCKET)

    async def _remove(self, account_id: str, dataset_id: str, names: Iterable[str]) -> None:
        keys = [f"{dataset_id}/{name}" for name in names]
        if keys and await self._buckets.exists(account_id, BUCKET):
            await self._buckets.delete(account_id, BUCKET, *keys)

    async def _change(self, dataset: NamedDataset) -> NamedDataset:
        return _dataset(await self._resources.change_resource(_record(dataset)))


def file_name(name: str) -> str:
    """A file's name as it is kept: that of JSON lines, whatever the sender called it.

    >>> file_name("rows.jsonl"), file_name("rows")
    ('rows.jsonl', 'rows.jsonl')
    """
    if not _FILE.fullmatch(name):
        raise errors.InvalidInput(
            "filename",
            name,
            "is not the name of a file here",
            remedy="use letters, digits, hyphens, underscores and dots, as in rows.jsonl",
        )
    return name if name.endswith(".jsonl") else f"{name}.jsonl"


def _count_rows(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _lines(files: Iterable[Path]) -> list[bytes]:
    """All rows of several files, each with its line's end."""
    found = []
    for file in files:
        with file.open("rb") as lines:
            found += [line.rstrip(b"\r\n") + b"\n" for line in lines if line.strip()]
    return found


def _record(dataset: NamedDataset) -> Resource:
    body = {
        "given": dict(dataset.given),
        "state": dataset.state.value,
        "files": dict(dataset.files),
        "expected": list(dataset.expected),
        "created_by": dataset.created_by,
    }
    return Resource(
        account_id=dataset.account_id,
        kind=KIND,
        name=dataset.dataset_id,
        body=body,
        created_at=dataset.created_at,
    )


def _dataset(record: Resource) -> NamedDataset:
    return NamedDataset(
        account_id=record.account_id,
        dataset_id=record.name,
        given=record.body["given"],
        state=DatasetState(record.body["state"]),
        files=record.body["files"],
        expected=tuple(record.body["expected"]),
        created_by=record.body["created_by"],
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
