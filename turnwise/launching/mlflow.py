"""MLflow servers as child processes: one per account, started when somebody first needs it."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from turnwise import errors

log = logging.getLogger(__name__)

#: A new database is migrated before the server answers, which takes minutes on a busy machine.
START_TIMEOUT_S = 300.0
#: Wait before another start after one that failed, doubled each time.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0
#: Longest path of a Unix socket, bytes (sun_path without its end).
_MAX_ADDRESS = 107
_EXIT_TIMEOUT_S = 10.0
#: What the process inherits; not the server's settings, and nobody's credentials.
_INHERITED = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "SYSTEMROOT")


@dataclass(slots=True)
class _Child:
    process: asyncio.subprocess.Process
    pipe: int  # our end; closing it ends the process
    watching: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        return self.process.returncode is None


@dataclass(slots=True)
class _Place:
    """An account's server, or the place for one."""

    address: Path
    child: _Child | None = None
    starting: asyncio.Task[None] | None = None
    failures: int = 0
    not_before: float = 0.0  # on the loop's clock
    folders: list[tempfile.TemporaryDirectory[str]] = field(default_factory=list)


class MlflowServers:
    """Hands out the socket of an account's MLflow, which is started first where it is not running.

    Nobody but this process's user can reach the sockets; who may use them is for a door to say.
    """

    def __init__(self, root: Path, *, run: Path, logs: Path, is_on: bool = True) -> None:
        """`root` holds a folder per account, `run` the sockets, `logs` what the servers print."""
        self._root = root
        self._run = run
        self._logs = logs
        self._is_on = is_on
        self._places: dict[str, _Place] = {}

    @property
    def missing(self) -> str:
        """Why there is no MLflow here, in words; "" where there is."""
        if not self._is_on:
            return "MLflow is switched off on this server; set TURNWISE_MLFLOW=auto for it"
        if importlib.util.find_spec("mlflow") is None:
            return "MLflow is not installed on this server; `pip install turnwise[mlflow]` adds it"
        return ""

    async def address(self, account_id: str) -> str:
        """The socket of an account's running server.

        Raises `Unavailable` where there is none, or it has just failed to start.
        """
        if self.missing:
            raise errors.Unavailable(self.missing)
        place = self._place(account_id)
        if place.child is None or not place.child.is_running:
            if place.starting is None:
                place.starting = self._begin(account_id, place)
            await asyncio.shield(place.starting)
        return str(place.address)

    def start(self, account_id: str) -> None:
        """Start an account's server unless it runs; who needs it waits in `address`."""
        place = self._place(account_id)
        if not self.missing and place.starting is None and place.child is None:
            place.starting = self._begin(account_id, place)
            place.starting.add_done_callback(_seen)

    @property
    def pids(self) -> list[int]:
        """The processes that are running now."""
        children = (place.child for place in self._places.values())
        return [child.process.pid for child in children if child and child.is_running]

    async def close(self) -> None:
        """End them all."""
        places, self._places, self._is_on = list(self._places.values()), {}, False
        starts = [place.starting for place in places if place.starting is not None]
        for start in starts:
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)
        await asyncio.gather(*(_end(place) for place in places))

    def _place(self, account_id: str) -> _Place:
        if account_id not in self._places:
            place = _Place(self._run / f"mlflow-{account_id}.sock")
            if len(os.fsencode(place.address)) > _MAX_ADDRESS:
                folder = tempfile.TemporaryDirectory(prefix="turnwise-")  # mode 0700
                place.folders.append(folder)
                place.address = Path(folder.name) / "mlflow.sock"
            self._places[account_id] = place
        return self._places[account_id]

    def _begin(self, account_id: str, place: _Place) -> asyncio.Task[None]:
        return asyncio.create_task(self._start(account_id, place), name=f"mlflow {account_id}")

    async def _start(self, account_id: str, place: _Place) -> None:
        now = asyncio.get_running_loop().time
        try:
            if (pause := place.not_before - now()) > 0:
                raise errors.Unavailable(
                    f"MLflow could not be started; see {self._log(account_id).name} in the data "
                    "folder's logs",
                    retry_after_s=pause,
                )
            try:
                await self._spawn(account_id, place)
            except (OSError, errors.Unavailable) as error:
                place.failures += 1
                pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (place.failures - 1))
                place.not_before = now() + pause
                log.warning("MLflow of account %s did not start: %s", account_id, error)
                raise errors.Unavailable(str(error), retry_after_s=pause) from error
            place.failures = 0
        finally:
            place.starting = None

    async def _spawn(self, account_id: str, place: _Place) -> None:
        """Start the process and wait until it answers."""
        folder = self._root / account_id
        for each in (self._root, folder):
            each.mkdir(mode=0o700, exist_ok=True)
        place.address.unlink(missing_ok=True)
        theirs, ours = os.pipe()
        try:
            with open(self._log(account_id), "ab", opener=_private) as output:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "turnwise.launching.mlflow_child", str(theirs)),
                    *(str(place.address), str(folder)),
                    pass_fds=(theirs,),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={name: os.environ[name] for name in _INHERITED if name in os.environ},
                )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        place.child = _Child(process, ours)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await _answers(process, place.address)
        except BaseException as error:
            await _end(place)
            if isinstance(error, TimeoutError):
                raise errors.Unavailable("MLflow did not answer in time") from None
            raise
        place.child.watching = asyncio.create_task(_reap(place, place.child))

    def _log(self, account_id: str) -> Path:
        return self._logs / f"mlflow-{account_id}.log"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _seen(task: asyncio.Task[None]) -> None:
    """Whoever needs the server is told why it failed; this start was on suspicion."""
    if not task.cancelled():
        task.exception()


async def _answers(process: asyncio.subprocess.Process, address: Path) -> None:
    """Until something listens at the address. Raises `Unavailable` if the process ends first."""
    while True:
        if process.returncode is not None:
            raise errors.Unavailable(f"the MLflow process ended with status {process.returncode}")
        try:
            _, writer = await asyncio.open_unix_connection(str(address))
        except (FileNotFoundError, ConnectionRefusedError):
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return


async def _reap(place: _Place, child: _Child) -> None:
    """Note a server's end, so that the next who needs it starts another."""
    await child.process.wait()
    if place.child is child:
        log.warning("an MLflow server ended with status %s", child.process.returncode)
        place.child = None
        os.close(child.pipe)


async def _end(place: _Place) -> None:
    child, place.child = place.child, None
    if child is not None:
        os.close(child.pipe)
        try:
            await asyncio.wait_for(child.process.wait(), _EXIT_TIMEOUT_S)
        except TimeoutError:
            child.process.kill()
            await child.process.wait()
        place.address.unlink(missing_ok=True)
    for folder in place.folders:
        folder.cleanup()
    place.folders.clear()
