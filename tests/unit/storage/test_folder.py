"""The data folder and its lock."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from turnwise import errors
from turnwise.storage.folder import DataFolder


def test_a_new_folder_is_the_owners_alone(tmp_path: Path) -> None:
    folder = DataFolder.open(tmp_path / "deep" / "data")
    made = [folder.root, folder.database.parent, folder.blobs, folder.run, folder.logs]
    assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o700] * 5
    assert folder.admin_key == tmp_path / "deep/data/admin.key"
    folder.close()
    folder.close()


def test_a_second_server_is_told_who_has_the_folder(tmp_path: Path) -> None:
    folder = DataFolder.open(tmp_path)
    with pytest.raises(errors.FolderLocked) as refused:
        DataFolder.open(tmp_path)
    assert str(refused.value) == (
        f"the data folder {tmp_path} is in use by the server with process id {os.getpid()}; "
        "stop that server, or start this one with another data folder"
    )
    folder.close()
    DataFolder.open(tmp_path).close()


_OPEN_AND_WAIT = """
import sys
from pathlib import Path
from turnwise.storage.folder import DataFolder
folder = DataFolder.open(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_the_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _OPEN_AND_WAIT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        with pytest.raises(errors.FolderLocked, match=f"process id {child.pid};"):
            DataFolder.open(tmp_path)
        child.kill()
        child.wait()
    DataFolder.open(tmp_path).close()
