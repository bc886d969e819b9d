"""The server process: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from turnwise.app.doors import open_doors
from turnwise.app.rooms import open_rooms
from turnwise.settings import Settings


def run_server(settings: Settings, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. `ready` is called with the URL once requests are answered."""
    uvloop.run(_serve(settings, ready))


async def _serve(settings: Settings, ready: Callable[[str], None]) -> None:
    listening = _listen(settings.host, settings.port)
    url = f"http://{settings.host}:{listening.getsockname()[1]}"
    async with open_rooms(settings, url) as rooms, open_doors(rooms) as asgi:
        (rooms.base.folder.root / "server.url").write_text(url + "\n")
        config = uvicorn.Config(
            asgi,
            lifespan="off",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
            # An agent's client keeps hundreds of connections; the default of 5 s would close
            # them between two steps.
            timeout_keep_alive=75,
        )
        server = _Server(config, lambda: ready(url))
        # What was imported and opened by now stays: looking through it for garbage would stop
        # every request for 50 to 150 ms, again and again.
        gc.collect()
        gc.freeze()
        await server.serve([listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket on that port; 0 takes a free one without "404" in it (see `ports.NewId`)."""
    listening = socket.create_server((host, port), backlog=1024)
    if port or "404" not in str(listening.getsockname()[1]):
        return listening
    with listening:  # kept until there is another, which so cannot be the same
        return _listen(host, port)


class _Server(uvicorn.Server):
    """uvicorn that says when it answers, and leaves the end of the process to us."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again, which ends the process before it is closed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
