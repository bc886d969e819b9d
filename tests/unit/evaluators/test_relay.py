"""The way out of a sandbox takes so many connections and no more."""

from __future__ import annotations

import asyncio
import socket

import pytest

from turnwise.evaluators import relay


async def test_a_sandbox_holds_so_many_connections_and_gets_a_new_one_for_each_that_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay, "MAX_CONNECTIONS", 2)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await reader.read()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    place = listener.getsockname()
    relayed = await relay.open_relay(
        listener, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    )

    async def said() -> tuple[bytes, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*place)
        writer.write(b"hello\n")
        try:
            return await reader.readline(), writer
        except ConnectionError:
            return b"", writer

    writers = []
    async with asyncio.timeout(30):
        answers = [await said() for _ in range(3)]
        writers += [writer for _, writer in answers]
        assert [answer for answer, _ in answers] == [b"hello\n", b"hello\n", b""]
        writers[0].close()
        answer = b""
        while not answer:  # until the relay has seen that the first is gone
            answer, writer = await said()
            writers.append(writer)
        for writer in writers:
            writer.close()
        await asyncio.gather(*(each.wait_closed() for each in writers), return_exceptions=True)
    relayed.close()
    server.close()
    await asyncio.sleep(0.05)  # for what is under way to end
