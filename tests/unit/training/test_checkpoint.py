from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "sub" / "a.txt").write_text("onE"), "changed or lost"),
        (lambda folder: (folder / "sub" / "a.txt").write_text("on"), "changed or lost"),
        (lambda folder: (folder / "b.txt").unlink(), "a file was changed or lost; resume from an"),
        (lambda folder: (folder / "c.txt").write_text(""), "changed or lost"),
        (lambda folder: (folder / "b.txt").rename(folder / "d.txt"), "changed or lost"),
        (shutil.rmtree, "step_1 is missing"),
    ],
    ids=["a flipped byte", "cut short", "lost", "one more", "renamed", "no folder"],
)
def test_a_folder_that_is_not_as_it_was_written_is_corruption(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "step_1"
    sha256 = write_atomically(folder, content("one"))
    verify(folder, sha256)
    damage(folder)
    with pytest.raises(errors.Corrupted, match=message):
        verify(folder, sha256)


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
