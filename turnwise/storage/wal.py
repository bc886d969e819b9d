"""Moves SQLite's write-ahead log into the database file, beside the writer, not inside a commit."""

from __future__ import annotations

import contextlib
import sqlite3
import threading

from sqlalchemy import Engine

# A turn changes about six pages; SQLite's own habit is to checkpoint at 1,000 pages.
_WRITES_BETWEEN_CHECKPOINTS = 200


class WalKeeper:
    """A thread with a connection of its own that checkpoints the log now and then.

    Inside a commit it takes 5 to 9 ms on a fast disk, and is the slowest reply's whole delay. A
    passive checkpoint, from here, blocks neither the writer nor readers.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writes = 0
        self._due = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="store-wal", daemon=True)
        self._thread.start()

    def count(self, writes: int) -> None:
        """So many more were committed; called by the writer."""
        self._writes += writes
        if self._writes >= _WRITES_BETWEEN_CHECKPOINTS:
            self._writes = 0
            self._due.set()

    def close(self) -> None:
        """End the thread; blocks until it has."""
        self._closing = True
        self._due.set()
        self._thread.join()

    def _run(self) -> None:
        while self._due.wait() and not self._closing:
            self._due.clear()
            self._checkpoint()

    def _checkpoint(self) -> None:
        # Outside any transaction, where SQLite requires it. Should it fail (a full disk), the log
        # still holds everything and the next write says what is wrong.
        raw = self._engine.raw_connection()
        with contextlib.closing(raw), contextlib.suppress(sqlite3.OperationalError):
            cursor = raw.cursor()
            # The log starts over only when nothing of it is left to move: the second pass takes
            # what was written during the first.
            for _ in range(2):
                cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
                cursor.fetchall()
