"""Engines, learners and merges as child processes on this machine."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from typing import Literal

import msgspec

from turnwise.channel import Connection
from turnwise.domain.training import LearnerSpec
from turnwise.ports import Archive, EngineSpec, Learner, MergeSpec, Sampler

#: A child ends by itself when its socket closes; one that does not is killed after this long.
EXIT_TIMEOUT_S = 10.0


class LocalLauncher:
    """Starts `python -m turnwise.worker` and connects to it over a socket pair.

    The child holds one end: whatever ends this process, SIGKILL included, closes the other end,
    and the child leaves. The handles are given by `turnwise.app`, which knows the rooms.
    """

    def __init__(
        self,
        *,
        sampler: Callable[[Connection], Sampler],
        learner: Callable[[Connection], Learner],
        archive: Callable[[Connection], Archive],
    ) -> None:
        self._sampler = sampler
        self._learner = learner
        self._archive = archive
        self._children: list[tuple[asyncio.subprocess.Process, Connection]] = []

    async def engine(self, spec: EngineSpec) -> Sampler:
        """Start an engine. Returns at once; its `info()` waits until the model is loaded."""
        return self._sampler(await self._start("engine", spec, spec.threads))

    async def learner(self, spec: LearnerSpec) -> Learner:
        """Start a learner."""
        return self._learner(await self._start("learner", spec, spec.threads))

    async def merge(self, spec: MergeSpec) -> Archive:
        """Start merging; closing the archive ends the process."""
        return self._archive(await self._start("merge", spec, spec.threads))

    async def close(self) -> None:
        """Close every socket and wait for the children; kill those that stay."""
        children, self._children = self._children, []
        await asyncio.gather(*(_end(process, link) for process, link in children))

    @property
    def pids(self) -> list[int]:
        """The processes that are running now."""
        return [process.pid for process, _ in self._children if process.returncode is None]

    async def _start(
        self,
        kind: Literal["engine", "learner", "merge"],
        spec: EngineSpec | LearnerSpec | MergeSpec,
        threads: int,
    ) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "turnwise.worker", kind, str(theirs.fileno())),
                msgspec.json.encode(spec).decode(),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env=_environment(threads),
            )
        ours.setblocking(False)
        link = await Connection.over(ours)
        self._children = [(p, c) for p, c in self._children if p.returncode is None]
        self._children.append((process, link))
        return link


def _environment(threads: int) -> dict[str, str]:
    # Spinning OpenMP threads on shared cores run several times slower than one thread; passive
    # waiting has to be asked for before torch is imported.
    return os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}


async def _end(process: asyncio.subprocess.Process, link: Connection) -> None:
    await link.close()
    try:
        await asyncio.wait_for(process.wait(), EXIT_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
