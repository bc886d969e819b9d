"""Opening a database and bringing it up to date. What is special to SQLite is here and in `wal`."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, StaticPool, create_engine, event
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError

from turnwise import errors
from turnwise.storage.tables import metadata

#: Execution option of the one connection that writes.
WRITES = "turnwise_writes"

# How long a statement waits for another process that holds the file (a backup, the sqlite3 shell).
_BUSY_TIMEOUT_MS = 30_000

# `wal.WalKeeper` moves the log into the file long before; this is where the writer does it by
# itself: 16,000 pages are 64 MB.
_AUTO_CHECKPOINT_PAGES = 16_000

_DISK_FULL_IN_POSTGRES = "53100"


def open_engine(url_or_path: str | Path) -> Engine:
    """An engine for a path (SQLite) or a database URL, migrated to the newest tables."""
    shown = str(url_or_path)
    url = make_url(shown if "://" in shown else f"sqlite:///{shown}")
    if url.get_backend_name() == "sqlite":
        _keep_to_owner(url.database)
        engine = create_engine(url, paramstyle="named")
        _prepare_sqlite(engine)
    else:
        engine = create_engine(url)
    with translated_errors():
        migrate(engine)
    return engine


def memory_engine() -> Engine:
    """An engine on one connection to an empty database in memory, for one thread at a time."""
    engine = create_engine(
        "sqlite://",
        paramstyle="named",
        poolclass=StaticPool,
        connect_args={"check_same_thread": False},
    )
    _prepare_sqlite(engine)
    metadata.create_all(engine)
    return engine


def migrate(engine: Engine, to: str = "head") -> None:
    """Run the migrations that the database lacks, up to that revision."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, to)


def is_sqlite_file(engine: Engine) -> bool:
    """Whether the database is a SQLite file, with its log beside it."""
    return engine.dialect.name == "sqlite" and engine.url.database not in (None, "", ":memory:")


def _keep_to_owner(path: str | None) -> None:
    """Make the file readable by its owner alone before SQLite makes it by the umask."""
    if path and not path.startswith((":", "file:")):
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


class _Compiler(SQLiteCompiler):
    """Statements for SQLite, with the hints that SQLAlchemy knows for other databases alone."""

    def get_from_hint_text(self, table: Any, text: str | None) -> str | None:
        """The hint behind a table: "INDEXED BY ..."."""
        return text


def _prepare_sqlite(engine: Engine) -> None:
    """Take transactions out of the driver's hands, which would begin them too late."""
    engine.dialect.statement_compiler = _Compiler

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_AUTO_CHECKPOINT_PAGES}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A reader that turned writer halfway could fail because its snapshot is old.
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise the driver's errors as ours, and what it cannot take as the fault of who gave it."""
    try:
        yield
    except DBAPIError as error:
        raise _translated(error) from error
    except (StatementError, OverflowError, UnicodeEncodeError) as error:
        cause = error.orig if isinstance(error, StatementError) else error
        if isinstance(cause, UnicodeEncodeError):
            reason = "is not text: half a character is missing"
            raise errors.InvalidInput("a text", cause.object[:60], reason) from error
        if isinstance(cause, OverflowError):
            raise errors.InvalidInput("a number", str(cause), "has more than 64 bits") from error
        raise


def _translated(error: DBAPIError) -> errors.TurnwiseError:
    if _is_disk_full(error.orig):
        return errors.StorageFull(
            "the device of the database is full; nothing of this call was kept; make room"
        )
    if isinstance(error, IntegrityError):
        return errors.Conflict(f"the database refused it: {error.orig}")
    return errors.Unavailable(f"the database failed: {error.orig}")


def _is_disk_full(error: object) -> bool:
    return (
        getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        or getattr(error, "sqlstate", None) == _DISK_FULL_IN_POSTGRES
        or getattr(error, "errno", None) == errno.ENOSPC
    )
