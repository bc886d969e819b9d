"""The data folder: one server's database, blobs, sockets and admin key, and the lock on it.

<root>/lock           held while a server runs; its process id
       admin.key      see `turnwise.access.keys`
       master.key     see `turnwise.access.vault`
       database/      turnwise.db with its write-ahead log
       blobs/         checkpoints, adapters, uploads
       run/           sockets of the engine and learner processes
       logs/          their output
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from turnwise import errors

_FOLDERS = ("database", "blobs", "run", "logs")


class DataFolder:
    """A locked data folder. The lock ends with `close`, or with the process."""

    def __init__(self, root: Path, lock: int) -> None:
        self.root = root
        self._lock = lock

    @classmethod
    def open(cls, root: Path) -> DataFolder:
        """Make what is missing, for the owner only, and lock it. Raises `FolderLocked`."""
        root = root.expanduser().absolute()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _lock(root)
        for name in _FOLDERS:
            (root / name).mkdir(mode=0o700, exist_ok=True)
        return cls(root, lock)

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.root / "database" / "turnwise.db"

    @property
    def blobs(self) -> Path:
        """The root for `FolderBlobs`."""
        return self.root / "blobs"

    @property
    def run(self) -> Path:
        """Where child processes listen."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        """Where child processes write what they print."""
        return self.root / "logs"

    @property
    def admin_key(self) -> Path:
        """The file with the admin key."""
        return self.root / "admin.key"

    @property
    def master_key(self) -> Path:
        """The file with the key that seals secrets, unless the settings name another."""
        return self.root / "master.key"

    def close(self) -> None:
        """Let another server have it; a second close does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _lock(root: Path) -> int:
    """An open file that holds the lock, with our process id in it."""
    lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode().strip() or "unknown"
        os.close(lock)
        raise errors.FolderLocked(
            f"the data folder {root} is in use by the server with process id {holder}; "
            "stop that server, or start this one with another data folder"
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock
