"""Tar archives made while they are read: neither the disk nor the memory holds one."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

#: A file is read in pieces of this many bytes.
PIECE_BYTES = 1 << 20
_MODE = 0o644


class Member(Protocol):
    """One file of an archive, whose size is known before its content."""

    @property
    def name(self) -> str:
        """Its name in the archive."""
        ...

    @property
    def size(self) -> int:
        """Its length in bytes."""
        ...

    def pieces(self) -> Iterator[bytes]:
        """Its content, `size` bytes in all."""
        ...


class FileMember:
    """A file of the disk, under its own name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = path.name
        self.size = path.stat().st_size

    def pieces(self) -> Iterator[bytes]:
        """The file's content."""
        with self._path.open("rb") as opened:
            while piece := opened.read(PIECE_BYTES):
                yield piece


def folder_members(folder: Path) -> list[FileMember]:
    """The files of a folder, without those of folders in it."""
    return [FileMember(file) for file in sorted(folder.iterdir()) if file.is_file()]


def tar_size(members: Sequence[Member]) -> int:
    """How long the archive of these files is, in bytes."""
    heads = sum(len(_head(member)) + _padding(member.size) for member in members)
    return heads + sum(member.size for member in members) + len(_END)


def tar_pieces(members: Sequence[Member]) -> Iterator[bytes]:
    """The archive of these files; no piece is empty."""
    for member in members:
        yield _head(member)
        yield from member.pieces()
        if padding := _padding(member.size):
            yield bytes(padding)
    yield _END


_END = bytes(2 * tarfile.BLOCKSIZE)


def _head(member: Member) -> bytes:
    info = tarfile.TarInfo(member.name)
    info.size = member.size
    info.mode = _MODE
    return info.tobuf(tarfile.PAX_FORMAT)  # which has no limit on sizes


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
