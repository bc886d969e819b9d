"""Data of URIs as files, and files to URIs: own buckets, a real S3 beside them, this machine.

A prefix is a folder: `s3://bucket/rows` means the object of that key, else all below `rows/`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from turnwise import errors
from turnwise.control.datasets import DataFile
from turnwise.control.objects.content import link_or_copy, read_pieces
from turnwise.control.objects.locations import Location
from turnwise.control.reach import denied
from turnwise.domain.access import OPERATORS
from turnwise.domain.objects import StoredObject

if TYPE_CHECKING:
    from turnwise.control.objects.buckets import Buckets

#: More files than anyone means to read as one thing.
MAX_FILES = 100_000


class Remote(Protocol):
    """A real S3. All calls block and raise `InvalidInput` or `Unavailable`."""

    def list(self, bucket: str, prefix: str, limit: int) -> list[StoredObject]:
        """Objects whose keys begin with the prefix, in order."""
        ...

    def download(self, stored: StoredObject, to: Path) -> None:
        """Write an object's content to a new file."""
        ...

    def upload(self, file: Path, bucket: str, key: str) -> None:
        """Keep a file's content as an object."""
        ...

    def check(self, bucket: str) -> None:
        """Raise unless the bucket is there and may be used."""
        ...


class Transfer:
    """Between URIs and files."""

    def __init__(self, buckets: Buckets, remote: Remote | None, private: Path | None) -> None:
        self._buckets = buckets
        self._remote = remote
        self._private = private

    async def files(
        self, account_id: str, location: Location, field: str = "uri"
    ) -> Sequence[DataFile]:
        """The file there, or all files below in the order of their names.

        Raises `InvalidInput` for `field` if there is none.
        """
        if location.path is not None:
            found = await asyncio.to_thread(self._local, account_id, location, field)
        elif await self._buckets.exists(account_id, location.bucket):
            found = await self._own(account_id, location)
        elif remote := self._remote_of(account_id):
            found = await self._fetched(remote, location)
        else:
            raise self._no_bucket(location, field)
        if not found:
            raise errors.InvalidInput(
                field,
                str(location),
                "is neither a file nor a folder of files",
                remedy="check the name; a prefix ends at a whole name",
            )
        return found

    async def download(self, account_id: str, location: Location) -> Path:
        """The path of the file there, or of a folder of those below."""
        if location.path is not None:
            self.check_open(account_id, location.path, "uri")
            if not location.path.exists():
                raise errors.InvalidInput("uri", str(location), "is not there")
            return location.path
        files = await self.files(account_id, location)
        check_names(files, str(location))

        def fill(folder: Path) -> None:
            for file in files:
                link_or_copy(file.path, folder / file.relative)

        listed = "\0".join(f"{file.relative}\0{file.path}" for file in files)
        name = hashlib.sha256(f"{account_id}\0{listed}".encode()).hexdigest()[:32]
        folder = await self._buckets.content.folder(name, fill)
        is_file = len(files) == 1 and files[0].name == str(location)
        return folder / files[0].relative if is_file else folder

    async def upload(self, account_id: str, folder: Path, to: Location) -> None:
        """Keep every file of a folder below a location."""
        for file in await asyncio.to_thread(_files_in, folder):
            await self.write(account_id, file, to.below(file.relative_to(folder).as_posix()))

    async def write(self, account_id: str, file: Path, to: Location) -> None:
        """Keep a file at a location."""
        if to.path is not None:
            self.check_open(account_id, to.path, "uri")
            await asyncio.to_thread(_copy, file, to.path)
        elif await self._buckets.exists(account_id, to.bucket):
            await self._buckets.put_pieces(account_id, to.bucket, to.key, read_pieces(file))
        elif remote := self._remote_of(account_id):
            await asyncio.to_thread(remote.upload, file, to.bucket, to.key)
        else:
            raise self._no_bucket(to, "uri")

    async def check_writable(self, account_id: str, to: Location, field: str) -> None:
        """Raise unless files could be kept below a location, as far as can be seen by now."""
        if to.path is not None:
            self.check_open(account_id, to.path, field)
        elif await self._buckets.exists(account_id, to.bucket):
            self._buckets.check_writable(to.bucket)
        elif remote := self._remote_of(account_id):
            await asyncio.to_thread(remote.check, to.bucket)
        else:
            raise self._no_bucket(to, field)

    # ── where it lies ─────────────────────────────────────────────────────────────────────────

    def _local(self, account_id: str, location: Location, field: str) -> list[DataFile]:
        path = location.path or Path()
        self.check_open(account_id, path, field)
        if path.is_dir():
            return [
                DataFile(name=f"{location.below(relative)}", relative=relative, path=file)
                for file in _files_in(path)
                if (relative := file.relative_to(path).as_posix())
            ]
        if not path.exists():
            return []
        return [DataFile(name=str(location), relative=path.name, path=path)]

    async def _own(self, account_id: str, location: Location) -> list[DataFile]:
        bucket = location.bucket
        found, prefix = [], _folder(location.key)
        if location.key and not location.key.endswith("/"):
            page = await self._buckets.list(account_id, bucket, location.key, limit=1)
            found = [each for each in page.objects if each.key == location.key]
        if not found:
            found = _readable(await self._buckets.all_below(account_id, bucket, prefix))
        return [
            DataFile(
                name=str(Location(bucket=bucket, key=each.key)),
                relative=_relative(each.key, prefix),
                path=(await self._buckets.get(account_id, bucket, each.key))[1],
            )
            for each in found
        ]

    async def _fetched(self, remote: Remote, location: Location) -> list[DataFile]:
        """Files of a real S3, copied here; those that are here already are not copied again."""
        prefix = _folder(location.key)
        listed = await asyncio.to_thread(remote.list, location.bucket, location.key, MAX_FILES)
        found = [each for each in listed if each.key == location.key and each.key[-1:] != "/"]
        found = found or _readable([each for each in listed if each.key.startswith(prefix)])
        return [await self._copied(remote, each, prefix) for each in found]

    async def _copied(self, remote: Remote, stored: StoredObject, prefix: str) -> DataFile:
        known = f"remote\0{stored.bucket}\0{stored.key}\0{stored.etag}\0{stored.size}"
        folder = await self._buckets.content.folder(
            hashlib.sha256(known.encode()).hexdigest()[:32],
            lambda folder: remote.download(stored, folder / "content"),
        )
        return DataFile(
            name=str(Location(bucket=stored.bucket, key=stored.key)),
            relative=_relative(stored.key, prefix),
            path=folder / "content",
        )

    def check_open(self, account_id: str, path: Path, field: str) -> None:
        """Raise unless the account may name this place of the server's machine."""
        if account_id != OPERATORS:
            raise denied(field, str(path), "use s3://bucket/key")
        if self._private is not None and path.resolve().is_relative_to(self._private):
            raise errors.InvalidInput(
                field,
                str(path),
                "leads into the server's own data",
                remedy="keep files elsewhere",
            )

    def _remote_of(self, account_id: str) -> Remote | None:
        """The real S3, which opens to the server's own credentials: the operator's."""
        return self._remote if account_id == OPERATORS else None

    def _no_bucket(self, location: Location, field: str) -> errors.InvalidInput:
        return errors.InvalidInput(
            field,
            str(location),
            f"is in bucket {location.bucket!r}, which does not exist here",
            remedy="create it, or set s3_endpoint_url so that the server asks a real S3",
        )


def check_names(files: Sequence[DataFile], uri: str) -> None:
    """Raise `InvalidInput` where keys cannot be the names of files in one folder."""
    names = {file.relative for file in files}
    for name in sorted(names):
        parts = name.split("/")
        is_plain = all(
            part not in ("", ".", "..") and "\0" not in part and len(part.encode()) <= 255
            for part in parts
        )
        above = ("/".join(parts[:count]) for count in range(1, len(parts)))
        if not is_plain or any(each in names for each in above):
            raise errors.InvalidInput(
                "uri",
                uri,
                f"cannot be a folder of files: {name!r} is no name of a file in it",
                remedy="name the objects otherwise, or give one of them",
            )


def _folder(key: str) -> str:
    return key if not key or key.endswith("/") else key + "/"


def _relative(key: str, prefix: str) -> str:
    return key[len(prefix) :] if key.startswith(prefix) else key.rpartition("/")[2]


def _readable(found: Sequence[StoredObject]) -> list[StoredObject]:
    """Without the empty objects that stand for folders."""
    return [each for each in found if not each.key.endswith("/")]


def _files_in(folder: Path) -> list[Path]:
    """All files below a folder, by their relative names."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: os.fsencode(path.relative_to(folder)))


def _copy(file: Path, to: Path) -> None:
    """Write a copy, whole or not at all."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        draft = to.with_name(f".{to.name}.new")
        try:
            shutil.copyfile(file, draft)
            draft.replace(to)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise errors.InvalidInput(
            "uri", f"file://{to}", f"cannot be written: {error.strerror}", remedy="check the folder"
        ) from None
