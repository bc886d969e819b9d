"""Runs an evaluator's test, again and again, in processes that have imported what is slow.

    python host.py CONTROL_FD MODULE ...

Importing eval_protocol takes 6 s of a slow core, a fork of a process that has imported it 20 ms. So
this process imports the modules once and forks for each run. A fork carries over only the thread
that forks: where an import has started others, a run is a fresh process instead.

Lines of JSON over the socket CONTROL_FD:

    in   {"run": id, "args": [...], "env": {...}, "cwd": folder, "out": file}
         {"kill": id}
    out  {"ready": seconds of import, "forks": bool, "missing": [modules]}
         {"ended": id, "code": exit code}

The end of the socket ends it, and it ends what it has started.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import random
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36


class Host:
    """The runs under way, by process id."""

    def __init__(self, control: socket.socket, *, forks: bool) -> None:
        self._control = control
        self._forks = forks
        self._runs: dict[int, str] = {}
        self._buffer = b""

    def serve(self) -> None:
        """Until the other end is closed."""
        woken, wakes = os.pipe()
        for fd in (woken, wakes):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._control, selectors.EVENT_READ)
            waiting.register(woken, selectors.EVENT_READ)
            while True:
                for key, _ in waiting.select():
                    if key.fd == woken:
                        with contextlib.suppress(BlockingIOError):
                            os.read(woken, 4096)
                    elif not self._read():
                        return
                self._reap()

    def tell(self, **event: Any) -> None:
        """Send one line."""
        with contextlib.suppress(OSError):  # the reader's end is noticed by reading
            self._control.sendall(json.dumps(event).encode() + b"\n")

    def end(self) -> None:
        """Kill what is left."""
        while children := _children():
            for pid in children:
                _kill(pid)
            for pid in children:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _read(self) -> bool:
        received = self._control.recv(65536)
        *lines, self._buffer = (self._buffer + received).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "run" in told:
                self._start(told)
            else:
                self._kill(told["kill"])
        return bool(received)

    def _start(self, told: dict[str, Any]) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_run(told)
        self._runs[pid] = told["run"]

    def _become_run(self, told: dict[str, Any]) -> None:
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            self._control.close()
            output = os.open(told["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            os.chdir(told["cwd"])
            os.environ.update(told["env"])
            code = self._run(told["args"])
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _run(self, args: list[str]) -> int:
        if not self._forks:
            os.execv(sys.executable, [sys.executable, "-m", "pytest", *args])
        import pytest

        random.seed(os.urandom(16))  # siblings must not draw the ids that this process would
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed()
        sys.path.insert(0, os.getcwd())  # as `python -m pytest` does
        sys.argv = ["pytest", *args]
        return int(pytest.main(args))

    def _kill(self, run: str) -> None:
        for pid in [pid for pid, name in self._runs.items() if name == run]:
            _kill(pid)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            run = self._runs.pop(pid, None)
            if run is not None:
                # What it left behind has come to this process; a run that goes on is no orphan.
                for orphan in _children():
                    if orphan not in self._runs:
                        _kill(orphan)
                self.tell(ended=run, code=os.waitstatus_to_exitcode(status))


def _kill(pid: int) -> None:
    """Kill a process and all below it; stopped first, so that none is started meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        for child in _children(pid):
            _kill(child)
        os.kill(pid, signal.SIGKILL)


def _children(pid: int | str = "self") -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


def _import(names: list[str]) -> list[str]:
    """Import what is there; what is not."""
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    return missing


def main() -> None:
    """Import, then serve."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    began = time.monotonic()
    missing = _import(sys.argv[2:])
    forks = len(os.listdir("/proc/self/task")) == 1
    host = Host(control, forks=forks)
    host.tell(ready=time.monotonic() - began, forks=forks, missing=missing)
    try:
        host.serve()
    finally:
        host.end()


if __name__ == "__main__":
    main()
