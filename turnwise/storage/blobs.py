"""`ports.Blobs` in a folder."""

from __future__ import annotations

import asyncio
import errno
import shutil
from pathlib import Path, PurePosixPath

from turnwise import errors


class FolderBlobs:
    """Files under one folder; a key is a relative path with forward slashes."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def path(self, key: str) -> Path:
        """The file or folder of a key; its parents exist. Raises `InvalidInput`, `StorageFull`."""
        path = self._checked(key)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise errors.StorageFull(f"no room for {key}: {error.strerror}") from error
        return path

    async def delete(self, prefix: str) -> None:
        """Remove the file or folder of that key and all below it. Nothing there is fine.

        A prefix ends at a whole name: "job_a" does not touch "job_ab".
        """
        await asyncio.to_thread(_remove, self._checked(prefix))

    def _checked(self, key: str) -> Path:
        parts = PurePosixPath(key).parts
        plain = "/".join(parts) == key and ".." not in parts and "\0" not in key
        if not parts or not plain:
            raise errors.InvalidInput(
                "key", key, "is not a relative path of plain names", remedy='use "folder/name"'
            )
        path = self._root.joinpath(*parts)
        if not path.parent.resolve().is_relative_to(self._root):
            raise errors.InvalidInput("key", key, "leads out of the blob folder by a link")
        return path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
