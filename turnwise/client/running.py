"""Runs an agent's own command on this machine, and sends what it prints to the agent's log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO

from turnwise import errors
from turnwise.client.client import Client

#: Lines travel together, so often.
SHIP_EVERY_S = 0.3

#: Lines of one request, and lines that wait while the server is away; older ones are dropped.
_BATCH = 1000
_MAX_WAITING = 10_000

#: How long the pipes of an agent that has ended may stay open, held by what it left behind.
_LAST_WORDS_S = 1.0

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


#: Shows a line that came from "stdout" or "stderr".
Show = Callable[[str, bytes], None]


def pass_through(stream: str, line: bytes) -> None:
    """Print a line as it came."""
    sink = sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer
    sink.write(line)
    sink.flush()


def run_agent(
    client: Client,
    name: str,
    command: Sequence[str],
    warn: Callable[[str], None],
    show: Show = pass_through,
) -> int:
    """Run a command until it ends; its exit status, 128 + n after signal n.

    What it prints is shown here and sent to the log of the registered agent `name`. SIGINT,
    SIGTERM and SIGHUP are passed on to it and whatever it has started; the second one kills. A
    server that is away is told about with `warn` and does not disturb the agent.

    Raises `NotFound` for a name that is not registered, `InvalidInput` for a command that cannot
    be run; nothing is started then.
    """
    client.agent(name)
    lines: deque[str] = deque(maxlen=_MAX_WAITING)
    # What Python prints into a pipe would come in blocks, long after it happened.
    env = {"PYTHONUNBUFFERED": "1"} | dict(os.environ)
    try:
        # A session of its own: a terminal's Ctrl-C comes to us alone, and is passed on once.
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        reason = f"cannot be run: {error.strerror}"
        raise errors.InvalidInput("command", command[0], reason) from None
    readers = [
        _reader("stdout", child.stdout, show, lines),
        _reader("stderr", child.stderr, show, lines),
    ]
    shipper = _Shipper(client, name, lines, warn)
    with _signals_go_to(child):
        while child.poll() is None:
            shipper.ship()
            _wait(child)
        for reader in readers:
            reader.join(_LAST_WORDS_S)
        shipper.ship()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


class _Shipper:
    def __init__(
        self, client: Client, name: str, lines: deque[str], warn: Callable[[str], None]
    ) -> None:
        self._client = client
        self._name = name
        self._lines = lines
        self._warn = warn
        self._is_away = False

    def ship(self) -> None:
        """Send what waits. While the server is away, it stays."""
        while self._lines:
            batch = [self._lines.popleft() for _ in range(min(_BATCH, len(self._lines)))]
            try:
                self._client.print_agent_lines(self._name, batch)
            except errors.TurnwiseError as error:
                self._lines.extendleft(reversed(batch))
                if not self._is_away:
                    self._warn(f"the agent's output is not kept for now: {error}")
                self._is_away = True
                return
            self._is_away = False


def _wait(child: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        child.wait(SHIP_EVERY_S)


def _reader(
    stream: str, source: IO[bytes] | None, show: Show, lines: deque[str]
) -> threading.Thread:
    def read() -> None:
        assert source is not None
        with source:
            for line in source:
                show(stream, line)
                lines.append(line.decode(errors="replace").rstrip("\r\n"))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


@contextmanager
def _signals_go_to(child: subprocess.Popen[bytes]) -> Iterator[None]:
    received: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        with_force = len(received) > 1
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(child.pid, signal.SIGKILL if with_force else number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
