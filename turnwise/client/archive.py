"""Writing a tar that comes over the network to disk, as it comes."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from turnwise import errors


class _Reader(io.RawIOBase):
    """Pieces as a file that is read once."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def read(self, count: int = -1) -> bytes:
        """The next `count` bytes; fewer only at the end, where a broken transfer raises."""
        parts: list[memoryview] = []
        while count > 0 and (self._rest or self._fill()):
            parts.append(self._rest[:count])
            self._rest = self._rest[count:]
            count -= len(parts[-1])
        return b"".join(parts)

    def _fill(self) -> bool:
        self._rest = memoryview(next(self._pieces, b""))
        return bool(self._rest)

    def drain(self) -> None:
        """To the end, where a transfer that broke off shows."""
        for _ in self._pieces:
            pass


def unpack(pieces: Iterator[bytes], folder: Path) -> None:
    """Write a tar's files to a new folder: all of them, or nothing.

    Raises `InvalidInput` for a folder that exists, `StorageFull` for a full disk, `Unavailable`
    for another refusal of the file system or a tar that is cut short.
    """
    # A sibling, so that the last step is one rename; its own for each process.
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    reader = _Reader(pieces)
    try:
        partial.mkdir(parents=True)
        with tarfile.open(fileobj=reader, mode="r|") as tar:
            tar.extractall(partial, filter="data")
        reader.drain()
        _move(partial, folder)
    except tarfile.TarError as error:
        raise errors.Unavailable(f"the server's archive cannot be read: {error}") from error
    except OSError as error:
        raise _named(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move(partial: Path, folder: Path) -> None:
    # A rename would replace an empty folder without a word.
    if folder.exists():
        raise errors.InvalidInput("folder", str(folder), "exists", remedy="name a new folder")
    partial.rename(folder)


def _named(error: OSError, folder: Path) -> errors.TurnwiseError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return errors.StorageFull(f"no room for {folder}; free space, or name another disk")
    return errors.Unavailable(f"{folder} cannot be written: {error.strerror or error}")
