"""The way out of a sandbox: connections to its loopback go on to the server, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from urllib.parse import urlsplit

_PIECE = 1 << 16

#: Connections that one sandbox may hold; each takes two descriptors of the server's.
MAX_CONNECTIONS = 256


async def open_relay(listener: socket.socket, url: str) -> asyncio.Server:
    """Accept on the sandbox's listener and pass everything on to the server at `url`."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    held = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal held
        if held >= MAX_CONNECTIONS:
            writer.close()
            return
        held += 1
        try:
            await onward(reader, writer)
        finally:
            held -= 1

    async def onward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward_reader, onward_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pass_on(reader, onward_writer))
                tasks.create_task(_pass_on(onward_reader, writer))
        finally:
            for end in (writer, onward_writer):
                end.close()

    return await asyncio.start_server(serve, sock=listener)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()  # the other direction may still have something to say
