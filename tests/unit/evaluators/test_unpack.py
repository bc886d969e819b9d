"""An archive unpacks into its folder, and whatever leads elsewhere is refused."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.evaluators.kit import packed
from turnwise import errors
from turnwise.evaluators.unpack import Bounds, unpack


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        good = tarfile.TarInfo("proj/a.py")
        good.size = 1
        tar.addfile(good, io.BytesIO(b"a"))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        tar.addfile(member)
    return out.getvalue()


def unpacked(folder: Path, archive: bytes, bounds: Bounds | None = None) -> Path:
    file = folder / "a.tar.gz"
    file.write_bytes(archive)
    return unpack(file, folder / "out", bounds or Bounds())


def test_the_project_is_the_archives_top_folder(tmp_path: Path) -> None:
    top = unpacked(tmp_path, packed({"test_a.py": "a = 1\n", "data/rows.jsonl": "{}\n"}))
    assert top == tmp_path / "out/proj"
    assert (top / "data/rows.jsonl").read_text() == "{}\n"


def test_an_archive_without_a_top_folder_is_the_project(tmp_path: Path) -> None:
    top = unpacked(tmp_path, packed({"test_a.py": "", "data/rows.jsonl": ""}, top="."))
    assert top == tmp_path / "out"
    assert (top / "test_a.py").exists()


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (lambda: _member("../evil.py"), "leads out of the archive's folder"),
        (lambda: _member("proj/../../evil.py"), "leads out of the archive's folder"),
        (lambda: _member("/etc/evil.py"), "leads out of the archive's folder"),
        (lambda: _member("proj/l", tarfile.SYMTYPE, "/etc/passwd"), "is a link"),
        (lambda: _member("proj/l", tarfile.SYMTYPE, "a.py"), "is a link"),
        (lambda: _member("proj/l", tarfile.LNKTYPE, "../../etc/passwd"), "is a link"),
        (lambda: _member("proj/d", tarfile.CHRTYPE), "is a device or a pipe"),
        (lambda: _member("proj/d", tarfile.BLKTYPE), "is a device or a pipe"),
        (lambda: _member("proj/d", tarfile.FIFOTYPE), "is a device or a pipe"),
        (lambda: b"not a tarball", "is not a tar.gz that can be read"),
        (lambda: packed({"a.py": "x" * 5000})[:60], "is not a tar.gz that can be read"),
        (lambda: packed({}), "holds no files"),
    ],
)
def test_an_archive_that_leads_elsewhere_or_is_broken_is_refused_by_name(
    tmp_path: Path, archive: Callable[[], bytes], reason: str
) -> None:
    with pytest.raises(errors.InvalidInput, match=reason):
        unpacked(tmp_path, archive())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", "out"]
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    bomb = packed({"zeros": b"\0" * 100_000})
    with pytest.raises(errors.InvalidInput, match="makes more than 1000 bytes"):
        unpacked(tmp_path, bomb, Bounds(bytes=1000))
    assert not (tmp_path / "out/proj/zeros").exists()


def test_an_archive_of_too_many_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidInput, match="is one of more than 2 files"):
        unpacked(tmp_path, packed({"a": "", "b": "", "c": ""}), Bounds(files=2))


def _with_head(size: int, kind: bytes) -> bytes:
    """An archive whose one member has a head of that many zeros, which compress to nothing."""
    head = tarfile.TarInfo("././@Head")
    head.type, head.size = kind, size
    out = io.BytesIO()
    with gzip.open(out, "wb") as packing:
        packing.write(head.tobuf(tarfile.GNU_FORMAT))
        for _ in range(size >> 20):
            packing.write(bytes(1 << 20))
        packing.write(tarfile.TarInfo("proj/a.py").tobuf() + bytes(1024))
    return out.getvalue()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_head_as_large_as_memory_is_not_read(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(errors.InvalidInput, match="has a head of more than 2097152 bytes"):
        unpacked(tmp_path, _with_head(8 << 20, kind))


def test_an_archive_of_folders_within_folders_is_refused(tmp_path: Path) -> None:
    deep = "/".join("d" * 65) + "/a.py"
    with pytest.raises(errors.InvalidInput, match="lies below more than 64 folders"):
        unpacked(tmp_path, packed({deep: ""}))


def test_no_more_is_inflated_than_the_bounds_allow(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        member = tarfile.TarInfo("proj/large")
        member.size = 3 << 20
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(errors.InvalidInput, match="more than 1000 bytes"):
        unpacked(tmp_path, out.getvalue(), Bounds(files=1, bytes=1000))
