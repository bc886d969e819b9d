"""An ASGI app on a real HTTP server in this process, on a free loopback port."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn


@contextlib.asynccontextmanager
async def listening(app: Any, **options: Any) -> AsyncIterator[str]:
    """Its base URL; `options` are uvicorn's."""
    # With the protocol named: asyncio sets TCP_NODELAY only then, and head and body of an answer
    # are two writes, between which the client would wait 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    given: dict[str, Any] = {"lifespan": "off", "ws": "none", "log_config": None} | options
    config = uvicorn.Config(app, timeout_graceful_shutdown=1, **given)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # Not `serve()`: its loop looks for the end ten times a second, which every test would wait.
    await server.startup(sockets=[listener])
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await server.shutdown(sockets=[listener])
