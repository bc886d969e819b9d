"""Files by key in a folder."""

from pathlib import Path

import pytest

from turnwise import errors
from turnwise.storage.blobs import FolderBlobs


def test_a_key_is_a_path_whose_parents_exist(tmp_path: Path) -> None:
    path = FolderBlobs(tmp_path / "blobs").path("job_a/steps/one.bin")
    assert path == tmp_path / "blobs/job_a/steps/one.bin"
    assert path.parent.is_dir()
    assert not path.exists()


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../a", "a/../b", "a//b", "a/", "./a", ".", "..", "a\0b"]
)
async def test_a_key_that_is_not_a_plain_relative_path_is_refused(tmp_path: Path, key: str) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    with pytest.raises(errors.InvalidInput, match=r"key: .* is not a relative path of plain names"):
        blobs.path(key)
    with pytest.raises(errors.InvalidInput, match="is not a relative path"):
        await blobs.delete(key)


async def test_a_link_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").touch()
    blobs = FolderBlobs(tmp_path / "blobs")
    blobs.path("link").symlink_to(tmp_path / "outside")
    with pytest.raises(errors.InvalidInput, match="leads out of the blob folder"):
        blobs.path("link/a")
    await blobs.delete("link")
    assert (tmp_path / "outside" / "kept").exists()


async def test_delete_removes_the_prefix_and_nothing_beside_it(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    for key in ("job_a/x/one", "job_a/two", "job_ab/one", "single"):
        blobs.path(key).write_text(key)
    for prefix in ("job_a", "single", "absent", "absent/too"):
        await blobs.delete(prefix)
    left = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    assert left == ["job_ab/one"]
