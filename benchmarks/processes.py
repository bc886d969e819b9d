"""A real server, with its engine and learners, and the CPU seconds that each process has used."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from turnwise.client import Client, connect

#: One compute thread each, and no spinning: what every measurement here is made with.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


@contextlib.contextmanager
def process(command: list[str], log: Path, env: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """A process that is ended at the end: its id, and the line that it says when it is ready."""
    with log.open("w") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | ONE_THREAD | env,
        )
        assert child.stdout is not None
        try:
            line = child.stdout.readline()
            if not line:
                raise RuntimeError(f"{command[0]} did not start; see {log}")
            yield child.pid, line
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            child.stdout.close()


class Server:
    """`turnwise serve` and the processes that it starts."""

    def __init__(self, pid: int, url: str, data_dir: Path) -> None:
        self.pid = pid
        self.url = url
        self.data_dir = data_dir

    def client(self) -> Client:
        """A client with the admin key."""
        return connect(self.url, data_dir=self.data_dir)

    def cpu_s(self) -> Counter[str]:
        """CPU seconds so far of "server", "engine" and "learner"; of a kind all together.

        Those of children that have ended are the learners': an engine lives as long as its server.
        """
        own, ended = _cpu_s(self.pid)
        used = Counter({"server": own, "learner": ended})
        for pid in children(self.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                used[_kind(pid)] += cpu_s(pid)
        return used

    def resident_mib(self) -> Counter[str]:
        """Resident memory now, MiB, by kind of process."""
        used = Counter({"server": resident_mib(self.pid)})
        for pid in children(self.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                used[_kind(pid)] += resident_mib(pid)
        return used


@contextlib.contextmanager
def serving(
    folder: Path, *, env: Mapping[str, str] | None = None, **settings: object
) -> Iterator[Server]:
    """A server on a free port, its data in `folder`; `settings` as in docs/settings.md."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["turnwise.cli", "--data-dir", str(folder / "server")]
    variables = {f"TURNWISE_{name.upper()}": str(value) for name, value in settings.items()}
    command += ["serve", "--port", "0", "--json"]
    start = process(command, folder / "server.log", variables | dict(env or {}))
    with start as (pid, line):
        yield Server(pid, json.loads(line)["url"], folder / "server")


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    tasks = Path(f"/proc/{pid}/task")
    return [
        int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()
    ]


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, all threads together."""
    return _cpu_s(pid)[0]


def _cpu_s(pid: int) -> tuple[float, float]:
    """CPU seconds of a process, and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    own, ended = (int(fields[i]) + int(fields[i + 1]) for i in (11, 13))
    ticks = os.sysconf("SC_CLK_TCK")
    return own / ticks, ended / ticks


def resident_mib(pid: int) -> float:
    """Resident memory of a process, MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _kind(pid: int) -> str:
    """A child is an engine or a learner; one that is just ending has no command line any more."""
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return "engine" if "engine" in arguments else "learner"
