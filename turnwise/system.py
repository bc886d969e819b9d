"""The system's own clock and randomness: what `ports.Clock` and `ports.NewId` are in production."""

from __future__ import annotations

import asyncio
import secrets
import string
import time


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


class SystemClock:
    """Real time."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait that long."""
        await asyncio.sleep(seconds)


SYSTEM_CLOCK = SystemClock()
