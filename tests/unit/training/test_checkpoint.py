from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from turnwise import errors
from turnwise.modeling.fingerprint import folder_sha256, verify
from turnwise.training.checkpoint import write_atomically


def content(text: str):
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text(text)
        (folder / "b.txt").write_text("b")

    return write


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_folder_appears_whole_and_replaces_an_older_one(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "step_1"
    first = write_atomically(folder, content("one"))
    second = write_atomically(folder, content("two"))
    assert files(tmp_path / "deep") == {"step_1/sub/a.txt": "two", "step_1/b.txt": "b"}
    assert first != second == folder_sha256(folder)
    verify(folder, second)


def test_a_changed_an_added_and_a_missing_file_are_corruption(tmp_path: Path) -> None:
    folder = tmp_path / "step_1"
    sha256 = write_atomically(folder, content("one"))
    (folder / "sub" / "a.txt").write_text("onE")
    with pytest.raises(errors.Corrupted, match=r"a file was changed or lost; resume from an older"):
        verify(folder, sha256)
    (folder / "sub" / "a.txt").write_text("one")
    verify(folder, sha256)
    (folder / "c.txt").write_text("")
    with pytest.raises(errors.Corrupted):
        verify(folder, sha256)
    with pytest.raises(errors.Corrupted, match="is missing"):
        verify(tmp_path / "step_2", sha256)


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (errno.ENOSPC, errors.StorageFull, "no room for checkpoint .*/step_1 .No space left"),
        (errno.EFBIG, errors.StorageFull, "free space and resume the job"),
        (errno.EROFS, errors.Unavailable, "cannot be written: Read-only file system"),
    ],
)
def test_a_write_that_fails_leaves_the_older_folder_and_nothing_else(
    tmp_path: Path, number: int, error: type[errors.TurnwiseError], message: str
) -> None:
    folder = tmp_path / "step_1"
    sha256 = write_atomically(folder, content("one"))

    def half(temporary: Path) -> None:
        content("two")(temporary)
        raise OSError(number, os.strerror(number))

    with pytest.raises(error, match=message):
        write_atomically(folder, half)
    verify(folder, sha256)
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
