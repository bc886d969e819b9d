"""One thread that writes. Calls that wait together are committed together, without a timer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine

from turnwise import errors
from turnwise.storage.database import WRITES, translated_errors

log = logging.getLogger(__name__)

# Work that can wait is done once no call has come for so long, or has been due for so long; then
# in between two calls, never in the place of one.
_IDLE_S = 0.05
_OVERDUE_S = 1.0

# Measured: beyond 64 rows per commit the gain ends, while the first one's wait goes on growing.
_MAX_CALLS_PER_COMMIT = 64


class Call:
    """A write that waits for its commit: a function that may run more than once."""

    def __init__(
        self, function: Callable[[Connection], Any], after_commit: Callable[[], None] | None
    ) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._function = function
        self._after_commit = after_commit
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self, connection: Connection) -> None:
        """Run it inside the open transaction; its error is raised."""
        with translated_errors():
            self._result = self._function(connection)
        self._error = None

    def fail(self, error: BaseException) -> None:
        """Nothing of it was kept."""
        self._error = error

    def deliver(self) -> None:
        """Tell the caller, on the event loop."""
        if self._error is None and self._after_commit is not None:
            self._after_commit()
        if self.future.done():  # the caller was cancelled; what it wrote stays
            return
        if self._error is None:
            self.future.set_result(self._result)
        else:
            self.future.set_exception(self._error)


class Writer:
    """The only thread that writes to the database. Used from one event loop.

    Each call runs in its own savepoint, so that one that fails leaves its neighbours in the same
    transaction alone. Where the transaction as a whole fails, each call is tried by itself.
    `committed` is told, on this thread, how many calls each transaction held.

    `work` is what can wait: a small piece of it, run while there are no calls; it says whether
    there may be more. It is run when the writer starts, and after each `work_later`.
    """

    def __init__(
        self,
        engine: Engine,
        committed: Callable[[int], None] | None = None,
        work: Callable[[Connection], bool] | None = None,
    ) -> None:
        with translated_errors():
            self._connection = engine.connect().execution_options(**{WRITES: True})
        self._committed = committed
        self._work = work
        self._due_at = time.monotonic() if work is not None else None  # of work, if there is any
        self._is_at_work = False
        self._waiting: deque[Call] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(
        self,
        function: Callable[[Connection], Any],
        after_commit: Callable[[], None] | None = None,
    ) -> asyncio.Future[Any]:
        """Queue a write; the future is done once it is synced. Raises `Unavailable` when closed.

        Cancelling the future does not take the write back.
        """
        call = Call(function, after_commit)
        with self._changed:
            if self._closing:
                raise errors.Unavailable("the store is closed")
            self._waiting.append(call)
            self._changed.notify()
        return call.future

    def work_later(self) -> None:
        """There is something to do that can wait."""
        with self._changed:
            if self._due_at is None and self._work is not None:
                self._due_at = time.monotonic()
                self._changed.notify()

    def close(self) -> None:
        """Commit what waits, then end the thread; blocks until it has. Work is left where it is."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._is_at_work = not batch
            if not batch:
                self._do_work()
                continue
            _commit(self._connection, batch)
            # The loop may have gone without closing the store: then nobody waits.
            with contextlib.suppress(RuntimeError):
                batch[0].future.get_loop().call_soon_threadsafe(_deliver, batch)
            if self._committed is not None:
                self._committed(len(batch))
        self._connection.close()

    def _next_batch(self) -> list[Call] | None:
        """The calls that wait by now; none of them when it is time to work, None at the end."""
        with self._changed:
            while not self._waiting and not self._closing:
                patience = self._patience()
                if patience == 0 or not self._changed.wait(patience):
                    return []
            if not self._waiting:
                return None
            count = min(len(self._waiting), _MAX_CALLS_PER_COMMIT)
            return [self._waiting.popleft() for _ in range(count)]

    def _patience(self) -> float | None:
        """Seconds to wait for calls before work; None: there is none."""
        if self._due_at is None:
            return None
        is_overdue = time.monotonic() - self._due_at >= _OVERDUE_S
        return 0 if self._is_at_work or is_overdue else _IDLE_S

    def _do_work(self) -> None:
        """One piece. What fails is tried again at the next `work_later`."""
        assert self._work is not None
        due_at, self._due_at = self._due_at, None
        try:
            with translated_errors(), self._connection.begin():
                is_more = self._work(self._connection)
        except Exception as error:  # supervised: no call of anybody depends on it
            log.warning("what can wait was put off: %s", error)
            is_more = False
        if is_more:
            self._due_at = due_at


def _deliver(batch: Sequence[Call]) -> None:
    for call in batch:
        call.deliver()


def _commit(connection: Connection, batch: Sequence[Call]) -> None:
    if len(batch) == 1:
        _commit_alone(connection, batch[0])
        return
    try:
        with translated_errors(), connection.begin():
            for call in batch:
                _run_in_savepoint(connection, call)
    except Exception:  # supervised: each call is told by itself what is wrong
        for call in batch:
            _commit_alone(connection, call)


def _commit_alone(connection: Connection, call: Call) -> None:
    try:
        with translated_errors(), connection.begin():
            call.run(connection)
    except Exception as error:  # supervised: it goes to whoever awaits the call
        call.fail(error)


def _run_in_savepoint(connection: Connection, call: Call) -> None:
    # Past SQLAlchemy, whose work per statement would be half of a short call's.
    cursor = connection.connection.cursor()
    cursor.execute("SAVEPOINT call")
    try:
        call.run(connection)
    except Exception as error:  # supervised: it goes to whoever awaits the call
        call.fail(error)
        cursor.execute("ROLLBACK TO SAVEPOINT call")
    else:
        cursor.execute("RELEASE SAVEPOINT call")
    finally:
        cursor.close()
