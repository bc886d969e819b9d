"""A job's data: which files its settings name, found before anything reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from turnwise import errors
from turnwise.control.datasets import DataFile, load_files
from turnwise.control.objects.buckets import Buckets
from turnwise.control.objects.locations import is_uri, parse_location
from turnwise.domain.data import Row
from turnwise.domain.job import JobSpec
from turnwise.modeling.fingerprint import file_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFiles:
    """What `dataset` and `validation_dataset` (maybe nothing) are made of."""

    dataset: Sequence[DataFile]
    validation: Sequence[DataFile] = ()


class JobData:
    """Finds jobs' files. Without buckets, only those that are named by a path."""

    def __init__(self, buckets: Buckets | None = None) -> None:
        self._buckets = buckets

    async def files(self, account_id: str, spec: JobSpec) -> JobFiles:
        """What a job reads. Raises `InvalidInput` for what is not there."""
        return JobFiles(
            dataset=await self._found(account_id, "dataset", spec.dataset),
            validation=await self._found(account_id, "validation_dataset", spec.validation_dataset),
        )

    async def check_output(self, account_id: str, spec: JobSpec) -> None:
        """Raise `InvalidInput` or `Denied` for an output path that cannot be written to."""
        if not spec.output_path:
            return
        to = parse_location(spec.output_path, "output_path")
        buckets = self._with_buckets("output_path", spec.output_path)
        await buckets.transfer.check_writable(account_id, to, "output_path")

    def check_open(self, account_id: str, field: str, path: str) -> None:
        """Raise unless the account may name this path: not into what the server keeps itself."""
        if self._buckets is not None:
            self._buckets.transfer.check_open(account_id, Path(path), field)

    async def _found(self, account_id: str, field: str, name: str) -> Sequence[DataFile]:
        if not name:
            return ()
        if not is_uri(name):
            self.check_open(account_id, field, name)
            return (DataFile(name=name, path=Path(name)),)
        buckets = self._with_buckets(field, name)
        location = parse_location(name, field)
        found = await buckets.transfer.files(account_id, location, field)
        if found[0].name == str(location):  # asked for by its own name
            return found
        rows = [file for file in found if not _is_hidden(file.relative)]
        if not rows:
            raise errors.InvalidInput(field, name, "holds no files but hidden ones")
        return rows

    def _with_buckets(self, field: str, name: str) -> Buckets:
        if self._buckets is None:
            raise errors.InvalidInput(field, name, "is a URI, and this server has no buckets")
        return self._buckets


def load_job_rows(spec: JobSpec, files: JobFiles) -> tuple[list[Row], list[Row]]:
    """A job's rows for training (or evaluation) and for validation (maybe none). Blocks."""

    def load(field: str, found: Sequence[DataFile]) -> list[Row]:
        return load_files(
            found, prompt_column=spec.prompt_column, label_column=spec.label_column, field=field
        )

    rows = load("dataset", files.dataset)
    return rows, load("validation_dataset", files.validation) if files.validation else []


def files_sha256(field: str, files: Sequence[DataFile]) -> str:
    """Files by content, in their order; "" of none. Raises `InvalidInput`. Blocks."""
    found = [_sha256(field, file) for file in files]
    if len(found) <= 1:
        return "".join(found)
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def _sha256(field: str, file: DataFile) -> str:
    try:
        return file_sha256(file.path)
    except OSError as error:
        raise errors.InvalidInput(
            field, file.name, f"cannot be read: {error.strerror}", remedy="check the path"
        ) from None


def _is_hidden(relative: str) -> bool:
    """Whether a file is a mark that other tools leave beside data (`_SUCCESS`, `.crc`)."""
    return PurePosixPath(relative).name.startswith((".", "_"))
