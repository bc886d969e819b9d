"""The files that hold objects' content: written whole, named by random ids, swept if nobody's.

A file is synced before the store hears of it, and removed after the store has let it go. So a
crash leaves at most a file that no row names, which `sweep` removes when the server starts.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import hashlib
import os
import shutil
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from turnwise import errors
from turnwise.ports import Blobs, NewId

_ROOT = "objects"
_FOLDERS = "downloads"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A file that has been written: its name, its size, its MD5 in hex, its CRC32 in base64."""

    blob: str
    size: int
    md5: str
    crc32: str


class Content:
    """Files under blobs/objects, and folders of them for readers that want names."""

    def __init__(self, blobs: Blobs, new_id: NewId) -> None:
        self._blobs = blobs
        self._new_id = new_id
        self._synced: set[Path] = set()

    def path(self, blob: str) -> Path:
        """Where a blob lies."""
        # Spread over folders: a folder of 100,000 files is slow to walk.
        return self._blobs.path(f"{_ROOT}/{blob[-2:]}/{blob}")

    async def write(self, pieces: Iterable[bytes]) -> Written:
        """Keep these bytes as a new file, synced. Raises `StorageFull`."""
        return await asyncio.to_thread(self._write, pieces)

    async def join(self, blobs: Sequence[str]) -> Written:
        """Keep the content of several files, one after the other, as a new one."""
        return await self.write(piece for blob in blobs for piece in read_pieces(self.path(blob)))

    async def adopt(self, file: Path) -> Written:
        """Keep the content of a file of somewhere else, which may change afterwards."""
        return await self.write(read_pieces(file))

    @contextlib.asynccontextmanager
    async def unless_kept(self, written: Written) -> AsyncIterator[None]:
        """Remove a new file if the block, which tells the store of it, raises our errors."""
        try:
            yield
        except errors.TurnwiseError:
            await self.remove([written.blob])
            raise

    async def remove(self, blobs: Collection[str]) -> None:
        """Remove files; one that is gone is fine."""
        if blobs:
            await asyncio.to_thread(self._remove, blobs)

    async def sweep(self, in_use: Collection[str]) -> int:
        """Remove files that nobody names, and readers' folders; how many there were of the former.

        Only while nothing is being written.
        """
        return await asyncio.to_thread(self._sweep, in_use)

    async def folder(self, name: str, fill: Callable[[Path], None]) -> Path:
        """The folder of that name for readers; the first who asks for it has it filled.

        It is good until the server is started again.
        """
        return await asyncio.to_thread(self._folder, name, fill)

    def _write(self, pieces: Iterable[bytes]) -> Written:
        blob = self._new_id("obj")
        path = self.path(blob)
        md5, crc32, size = hashlib.md5(usedforsecurity=False), 0, 0
        with _room():
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with _room(), open(made, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                    md5.update(piece)
                    crc32 = zlib.crc32(piece, crc32)
                    size += len(piece)
                file.flush()
                os.fsync(file.fileno())
            self._sync_names(path.parent)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        checksum = base64.b64encode(crc32.to_bytes(4, "big")).decode()
        return Written(blob=blob, size=size, md5=md5.hexdigest(), crc32=checksum)

    def _sync_names(self, folder: Path) -> None:
        """Make the names in a folder outlive a crash, and its own name once."""
        _sync_folder(folder)
        if folder not in self._synced:
            _sync_folder(folder.parent)
            self._synced.add(folder)

    def _remove(self, blobs: Collection[str]) -> None:
        for blob in blobs:
            self.path(blob).unlink(missing_ok=True)

    def _sweep(self, in_use: Collection[str]) -> int:
        shutil.rmtree(self._blobs.path(_FOLDERS), ignore_errors=True)
        root = self._blobs.path(_ROOT)
        strays = [file for file in root.glob("*/*") if file.name not in in_use]
        for file in strays:
            file.unlink()
        return len(strays)

    def _folder(self, name: str, fill: Callable[[Path], None]) -> Path:
        folder = self._blobs.path(f"{_FOLDERS}/{name}")
        if folder.is_dir():
            return folder
        draft = self._blobs.path(f"{_FOLDERS}/{self._new_id('draft')}")
        try:
            with _room():
                draft.mkdir(mode=0o700)
                fill(draft)
            with contextlib.suppress(OSError):  # somebody else has just put it there
                draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return folder


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """Name a full device."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise errors.StorageFull(
            "the device of the blobs is full; nothing of this object was kept; make room"
        ) from error


def read_pieces(file: Path) -> Iterator[bytes]:
    """A file's content, a megabyte at a time."""
    with file.open("rb") as opened:
        yield from opened_pieces(opened)


def opened_pieces(opened: BinaryIO) -> Iterator[bytes]:
    """What is left of an open file, a megabyte at a time."""
    while piece := opened.read(_PIECE):
        yield piece


def link_or_copy(file: Path, to: Path) -> None:
    """Give a file another name, by a link where the file system has them."""
    to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.link(file, to)
    except OSError:  # another device, or a file system without links
        shutil.copyfile(file, to)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
