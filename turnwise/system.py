"""The system's own clock and randomness: what `ports.Clock` and `ports.NewId` are in production."""

from __future__ import annotations

import asyncio
import secrets
import string
import time


def random_letters(count: int) -> str:
    """Letters a-z from the system's randomness, 4.7 bits each."""
    return "".join(secrets.choice(string.ascii_lowercase) for _ in range(count))


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
