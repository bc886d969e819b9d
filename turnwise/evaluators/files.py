"""A folder that an untrusted program writes too: no link in it is followed, and no pipe waited for.

The program may replace anything below the folder at any time, by a link to the server's own files
too. So each name is opened in the folder that was opened before it, and what is no regular file is
not read. All calls block.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: Most that one call reads.
MAX_READ = 64 << 20


class SharedFolder:
    """Files below `root`, whose own place nobody else can change; names are relative to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """For the program's own use, never for ours."""
        return self.root / name

    def make_folder(self, name: str) -> None:
        """A new folder that the program may write in. Raises `OSError`."""
        above, last = os.path.split(name)
        with self._folder(above) as folder:
            os.mkdir(last, 0o700, dir_fd=folder)
            made = os.open(last, _FOLDER, dir_fd=folder)
            try:
                # The program may be another user; nobody else gets into the folder above.
                os.fchmod(made, 0o777)
            finally:
                os.close(made)

    def write(self, name: str, content: bytes) -> None:
        """A new file that the program may change. Raises `OSError`."""
        above, last = os.path.split(name)
        with self._folder(above) as folder:
            flags = _FILE | os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(last, flags, 0o600, dir_fd=folder), "wb") as file:
                os.fchmod(file.fileno(), 0o666)
                file.write(content)

    def read(self, name: str, offset: int = 0, most: int = MAX_READ) -> bytes:
        """From `offset` on; nothing of what is not there or no file."""
        above, last = os.path.split(name)
        with (
            contextlib.suppress(OSError),
            self._folder(above) as folder,
            os.fdopen(os.open(last, _FILE | os.O_RDONLY, dir_fd=folder), "rb") as file,
        ):
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                file.seek(offset)
                return file.read(most)
        return b""

    def end(self, name: str, most: int) -> bytes:
        """The last of a file; nothing of what is not there or no file."""
        above, last = os.path.split(name)
        with contextlib.suppress(OSError), self._folder(above) as folder:
            size = os.stat(last, dir_fd=folder, follow_symlinks=False).st_size
            return self.read(name, max(0, size - most), most)
        return b""

    def remove(self, name: str) -> None:
        """A folder with all that is in it, as far as it is one."""
        above, last = os.path.split(name)
        with contextlib.suppress(OSError), self._folder(above) as folder:
            shutil.rmtree(last, ignore_errors=True, dir_fd=folder)

    def names(self, name: str) -> list[str]:
        """What is in a folder, in order; nothing if it is none."""
        with contextlib.suppress(OSError), self._folder(name) as folder:
            return sorted(os.listdir(folder))
        return []

    @contextlib.contextmanager
    def _folder(self, name: str) -> Iterator[int]:
        opened = os.open(self.root, _FOLDER)
        try:
            for part in Path(name).parts:
                below = os.open(part, _FOLDER, dir_fd=opened)
                os.close(opened)
                opened = below
            yield opened
        finally:
            os.close(opened)
