"""Which server the commands talk to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnwise.client import Client, connect

Json = dict[str, Any]


@dataclass
class Server:
    """Which server this call's command talks to."""

    url: str = ""
    key: str = ""
    data_dir: Path | None = None

    def client(self) -> Client:
        """A client of it; by default the server whose data folder is on this machine."""
        return connect(self.url, self.key, data_dir=self.data_dir)


server = Server()


def pages(read: Callable[[int], list[Json]], after: int) -> Iterable[Json]:
    """Everything past the number `after`, read a page at a time."""
    while page := read(after):
        yield from page
        after = page[-1]["seq"]
