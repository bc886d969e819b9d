"""An uploaded tar.gz unpacked into a folder: files and folders alone, and none outside of it."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from turnwise import errors

_PIECE = 1 << 20
#: Folders above a file, and bytes that a file's head may take beside its content: the archives
#: that people make need little of either.
_DEEPEST, _HEAD = 64, 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much an archive may hold."""

    files: int = 10_000
    bytes: int = 1 << 30  # of all files, unpacked


def unpack(archive: Path, folder: Path, bounds: Bounds) -> Path:
    """Unpack into `folder`, which is new; the project's folder, the archive's only top one.

    Raises `InvalidInput` that names what of the archive is refused. Blocks.
    """
    folder.mkdir(mode=0o700, parents=True)
    try:
        most = bounds.bytes + bounds.files * _HEAD
        with _Inflated(archive, most) as inflated, tarfile.open(fileobj=inflated, mode="r:") as tar:
            tops = _unpack_members(tar, folder, bounds)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if isinstance(error, errors.TurnwiseError):
            raise
        raise _refused("", f"is not a tar.gz that can be read: {error}") from error
    if not tops:
        raise _refused("", "holds no files")
    return folder / tops.pop() if len(tops) == 1 else folder


class _Inflated(gzip.GzipFile):
    """The tar inside, of at most so many bytes: a head that claims more is not read into memory."""

    def __init__(self, archive: Path, most: int) -> None:
        self._most = most
        super().__init__(archive, "rb")

    def read(self, size: int | None = -1) -> bytes:
        """Raises `InvalidInput` past the limits."""
        if size is None or not 0 <= size <= 2 * _PIECE:
            raise _refused("", f"has a head of more than {2 * _PIECE} bytes")
        self._check(self.tell() + size - tarfile.RECORDSIZE)
        return super().read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Raises `InvalidInput` past the limits, before anything is inflated."""
        self._check(offset)
        return super().seek(offset, whence)

    def _check(self, place: int) -> None:
        if place > self._most:
            raise _refused("", f"unpacks to more than {self._most} bytes")


def _unpack_members(tar: tarfile.TarFile, folder: Path, bounds: Bounds) -> set[str]:
    """The names of the top folders; a file that lies beside them makes that the archive's own."""
    tops: set[str] = set()
    count = size = 0
    for member in tar:
        path = _checked(member)
        if path is None:
            continue
        count, size = count + 1, size + member.size
        if count > bounds.files:
            raise _refused(member.name, f"is one of more than {bounds.files} files")
        if size > bounds.bytes:
            raise _refused(member.name, f"makes more than {bounds.bytes} bytes")
        tops.add(path.parts[0] if len(path.parts) > 1 or member.isdir() else "")
        place = folder.joinpath(*path.parts)
        if member.isdir():
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            _write(tar, member, place)
    return {""} if "" in tops else tops


def _checked(member: tarfile.TarInfo) -> PurePosixPath | None:
    """The member's path; None for the archive's own root. Raises for what leads elsewhere."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name:
        raise _refused(member.name, "leads out of the archive's folder")
    if len(path.parts) > _DEEPEST:
        raise _refused(member.name[:200], f"lies below more than {_DEEPEST} folders")
    if not (member.isreg() or member.isdir()):
        what = "a link" if member.issym() or member.islnk() else "a device or a pipe"
        raise _refused(member.name, f"is {what}, and only files and folders are unpacked")
    return path if path.parts else None


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None  # it is a regular file
    with source, place.open("wb") as file:
        while piece := source.read(_PIECE):
            file.write(piece)
    if member.mode & 0o100:
        place.chmod(0o700)


def _refused(name: str, reason: str) -> errors.InvalidInput:
    field = f"archive: {name}" if name else "archive"
    remedy = "pack the project's folder with tar czf, without links"
    return errors.InvalidInput(field, name or "tar.gz", reason, remedy=remedy)
