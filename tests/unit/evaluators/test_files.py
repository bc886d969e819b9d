"""Files in a folder that an untrusted program writes too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from turnwise.evaluators.files import SharedFolder


def test_what_is_written_is_read_from_an_offset_on(tmp_path: Path) -> None:
    shared = SharedFolder(tmp_path)
    shared.make_folder("run")
    shared.write("run/rows", b"one two")
    assert shared.read("run/rows", 4) == b"two"
    assert shared.read("run/rows", 0, 3) == b"one"
    assert shared.names("run") == ["rows"]


def test_no_link_is_followed_to_a_file_or_through_a_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").symlink_to(secret / "key")
    (root / "folder").symlink_to(secret)
    shared = SharedFolder(root)
    assert shared.read("file") == b""
    assert shared.read("folder/key") == b""
    assert shared.names("folder") == []
    for name in ("folder/new", "file"):
        with pytest.raises(OSError, match=name.split("/")[0]):
            shared.write(name, b"x")
    with pytest.raises(OSError, match="folder"):
        shared.make_folder("folder/new")
    assert sorted(path.name for path in secret.iterdir()) == ["key"]
    assert (secret / "key").read_text() == "secret"


def test_a_pipe_is_not_waited_for_and_what_is_missing_is_empty(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    shared = SharedFolder(tmp_path)
    assert shared.read("pipe") == b""
    assert shared.read("missing") == b""
    assert shared.names("missing") == []
