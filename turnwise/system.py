"""The system's own clock, randomness and private files."""

from __future__ import annotations

import asyncio
import os
import secrets
import string
import time
from pathlib import Path


def random_letters(count: int) -> str:
    """Letters a-z from the system's randomness, 4.7 bits each."""
    # The spare bits make the remainder's bias negligible (2^-64).
    number = secrets.randbits(5 * count + 64)
    letters = []
    for _ in range(count):
        number, letter = divmod(number, 26)
        letters.append(string.ascii_lowercase[letter])
    return "".join(letters)


def new_id(prefix: str) -> str:
    """A new id, "<prefix>_<26 letters>": 122 bits, and never a digit (see `ports.NewId`)."""
    return f"{prefix}_{random_letters(26)}"


def write_private_file(path: Path, text: str) -> None:
    """Write a file for the owner only, whole or not at all: a crash leaves no half of a key."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


class SystemClock:
    """Real time."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait that long."""
        await asyncio.sleep(seconds)


SYSTEM_CLOCK = SystemClock()
