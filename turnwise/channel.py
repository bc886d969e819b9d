"""Calls between the server and its engine or learner process, over one stream socket.

Messages are length-prefixed msgpack: a 4-byte big-endian length, then one map. Arrays travel as
raw bytes with dtype and shape, nouns as their fields, errors by name; nothing is pickled.

    client -> {id: 7, kind: "call", method: "generate", body: <args>}
    server -> {id: 7, kind: "item", body: ...}       any number of times, from a stream
    server -> {id: 7, kind: "done", body: ...}   or   {id: 7, kind: "error", body: {name, ...}}
    client -> {id: 7, kind: "cancel"}                the caller has left

A process that serves a channel ends when its parent's end closes (`serve` returns).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np

from turnwise import errors

T = TypeVar("T")

#: How long `Connection.open` waits for the other process: it imports torch and loads a model.
OPEN_TIMEOUT_S = 120.0
_LENGTH = struct.Struct(">I")
#: A writer waits for the socket only past this many unsent bytes; most messages never wait.
_HIGH_WATER = 1 << 22


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "shape": value.shape, "data": value.tobytes()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot cross a channel")


def _unpack(_: type, value: Any) -> Any:
    flat = np.frombuffer(value["data"], dtype=value["dtype"])
    return flat.reshape(value["shape"]).copy()  # frombuffer is read-only, torch wants writable


_encoder = msgspec.msgpack.Encoder(enc_hook=_pack)


def decode(data: bytes, type_: type[T]) -> T:
    """Read msgpack bytes as a noun."""
    return msgspec.msgpack.decode(data, type=type_, dec_hook=_unpack)


class _Error(msgspec.Struct):
    name: str
    text: str
    fields: dict[str, Any] = {}


_Kind = Literal["call", "item", "done", "error", "cancel"]
_NIL = msgspec.Raw(b"\xc0")


class _Message(msgspec.Struct):
    id: int
    kind: _Kind
    body: msgspec.Raw = _NIL
    method: str = ""

    def read(self, type_: type[T]) -> T:
        return decode(bytes(self.body), type_)


_decoder = msgspec.msgpack.Decoder(_Message)


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(value))


#: Constructor arguments that an error keeps as attributes, per class.
_FIELDS: dict[type[errors.TurnwiseError], tuple[str, ...]] = {
    errors.InvalidInput: ("field", "value", "reason", "remedy"),
    errors.NotFound: ("kind", "id"),
    errors.LimitExceeded: ("retry_after_s",),
    errors.Unavailable: ("retry_after_s",),
}


def _describe(error: BaseException) -> _Error:
    kept = _FIELDS.get(type(error), ())  # type: ignore[arg-type]
    fields = {name: getattr(error, name) for name in kept}
    if "value" in fields:
        fields["value"] = repr(fields["value"])[:200]
    return _Error(name=type(error).__name__, text=str(error), fields=fields)


def _revive(error: _Error) -> errors.TurnwiseError:
    fields = error.fields
    if error.name == "InvalidInput":
        known = errors.InvalidInput(
            fields["field"], fields["value"], fields["reason"], remedy=fields["remedy"]
        )
        known.args = (error.text,)  # which shows the value as the far side knew it
        return known
    if error.name == "NotFound":
        return errors.NotFound(fields["kind"], fields["id"])
    if error.name in ("LimitExceeded", "Unavailable"):
        cls = errors.LimitExceeded if error.name == "LimitExceeded" else errors.Unavailable
        return cls(error.text, retry_after_s=fields.get("retry_after_s"))
    if error.name in errors.BY_NAME:
        return errors.BY_NAME[error.name](error.text)
    return errors.TurnwiseError(f"{error.name}: {error.text}")


async def _read(reader: asyncio.StreamReader) -> _Message | None:
    """The next message, or None at the end of the stream."""
    try:
        head = await reader.readexactly(_LENGTH.size)
        return _decoder.decode(await reader.readexactly(_LENGTH.unpack(head)[0]))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class _Writer:
    def __init__(self, stream: asyncio.StreamWriter) -> None:
        self._stream = stream

    async def send(self, message: _Message) -> None:
        data = _encoder.encode(message)
        self._stream.write(_LENGTH.pack(len(data)) + data)
        if self._stream.transport.get_write_buffer_size() > _HIGH_WATER:
            await self._stream.drain()

    async def close(self) -> None:
        self._stream.close()
        try:
            await self._stream.wait_closed()
        except ConnectionError:
            return


class Connection:
    """The calling end. One connection carries any number of calls at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = _Writer(writer)
        self._waiting: dict[int, asyncio.Queue[_Message | None]] = {}
        self._next_id = 0
        self._lost = asyncio.Event()
        self._reading = asyncio.create_task(self._read_all(reader), name="channel.read")

    @classmethod
    async def open(
        cls,
        path: str,
        *,
        timeout_s: float = OPEN_TIMEOUT_S,
        alive: Callable[[], bool] = lambda: True,
    ) -> Connection:
        """Connect to the process that listens at a Unix socket path, waiting until it does.

        Raises `ProcessDied` when `alive` says that it ended, or after `timeout_s`.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        while alive() and asyncio.get_running_loop().time() < deadline:
            if Path(path).exists():
                try:
                    return cls(*await asyncio.open_unix_connection(path))
                except (ConnectionRefusedError, FileNotFoundError):
                    pass
            await asyncio.sleep(0.02)
        raise errors.ProcessDied(f"no process answers at {Path(path).name}")

    @classmethod
    async def over(cls, connected: socket.socket) -> Connection:
        """A connection over one end of a socket pair; the child process has the other."""
        return cls(*await asyncio.open_unix_connection(sock=connected))

    async def call(self, method: str, args: object, result: type[T]) -> T:
        """Call a method and wait for its result. Raises the far side's error."""
        request_id, replies = await self._send(method, args)
        try:
            message = await self._next(replies, method)
            return message.read(result)
        except asyncio.CancelledError:
            await self._cancel(request_id)
            raise
        finally:
            self._waiting.pop(request_id, None)

    async def stream(self, method: str, args: object, item: type[T]) -> AsyncIterator[T]:
        """Call a streaming method. Closing the iterator cancels it at the far end."""
        request_id, replies = await self._send(method, args)
        ended = False
        try:
            while True:
                try:
                    message = await self._next(replies, method)
                except errors.TurnwiseError:
                    ended = True
                    raise
                if message.kind == "done":
                    ended = True
                    return
                yield message.read(item)
        finally:
            self._waiting.pop(request_id, None)
            if not ended:
                await self._cancel(request_id)

    async def lost(self) -> None:
        """Wait until the other end has closed."""
        await self._lost.wait()

    async def close(self) -> None:
        """Close the socket; the process at the far end then ends itself."""
        self._reading.cancel()
        await self._writer.close()
        self._lose()

    async def _send(self, method: str, args: object) -> tuple[int, asyncio.Queue[_Message | None]]:
        if self._lost.is_set():
            raise errors.ProcessDied(f"the process that serves {method!r} has ended")
        self._next_id += 1
        replies: asyncio.Queue[_Message | None] = asyncio.Queue()
        self._waiting[self._next_id] = replies
        request_id = self._next_id
        await self._writer.send(
            _Message(id=request_id, kind="call", method=method, body=_raw(args))
        )
        return request_id, replies

    async def _cancel(self, request_id: int) -> None:
        if not self._lost.is_set():
            await self._writer.send(_Message(id=request_id, kind="cancel"))

    @staticmethod
    async def _next(replies: asyncio.Queue[_Message | None], method: str) -> _Message:
        message = await replies.get()
        if message is None:
            raise errors.ProcessDied(f"the process ended before it answered {method!r}")
        if message.kind == "error":
            raise _revive(message.read(_Error))
        return message

    async def _read_all(self, reader: asyncio.StreamReader) -> None:
        try:
            while (message := await _read(reader)) is not None:
                replies = self._waiting.get(message.id)
                if replies is not None:
                    replies.put_nowait(message)
        finally:
            self._lose()

    def _lose(self) -> None:
        self._lost.set()
        for replies in self._waiting.values():
            replies.put_nowait(None)


Handler = Callable[[Any], Awaitable[Any]] | Callable[[Any], AsyncIterator[Any]]


@dataclass(frozen=True, slots=True)
class Method:
    """One thing that a process can be asked. `args` is the type its argument is decoded as.

    With `streaming` the handler is an async generator; its items are sent as they come.
    """

    args: Any
    handler: Handler
    streaming: bool = False


class _Session:
    """The serving end of one connection."""

    def __init__(self, writer: asyncio.StreamWriter, methods: Mapping[str, Method]) -> None:
        self._writer = _Writer(writer)
        self._methods = methods
        self._running: dict[int, asyncio.Task[None]] = {}

    async def run(self, reader: asyncio.StreamReader) -> None:
        while (message := await _read(reader)) is not None:
            if message.kind == "cancel":
                task = self._running.get(message.id)
                if task is not None:
                    task.cancel()
            else:
                self._start(message)
        for task in list(self._running.values()):
            task.cancel()

    def _start(self, message: _Message) -> None:
        task = asyncio.create_task(self._answer(message), name=f"call.{message.method}")
        self._running[message.id] = task
        task.add_done_callback(lambda _: self._running.pop(message.id, None))

    async def _answer(self, message: _Message) -> None:
        try:
            method = self._methods[message.method]
            done = await self._run(message.id, method, message.read(method.args))
            reply = _Message(id=message.id, kind="done", body=_raw(done))
        except Exception as error:  # the edge of the process: every error becomes an answer
            reply = _Message(id=message.id, kind="error", body=_raw(_describe(error)))
        await self._writer.send(reply)

    async def _run(self, request_id: int, method: Method, args: Any) -> Any:
        if not method.streaming:
            return await method.handler(args)  # type: ignore[misc]
        items: Any = method.handler(args)
        try:
            async for item in items:
                await self._writer.send(_Message(id=request_id, kind="item", body=_raw(item)))
        finally:
            await items.aclose()
        return None


async def serve(at: str | socket.socket, methods: Mapping[str, Method]) -> None:
    """Answer the one parent until it leaves: at a Unix socket path, or over a connected socket.

    A connected socket (one end of a pair that the parent made) leaves no moment in which a
    parent that dies would be missed.
    """
    if isinstance(at, socket.socket):
        await _serve_connected(*await asyncio.open_unix_connection(sock=at), methods)
        return
    parent: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
    parent = asyncio.get_running_loop().create_future()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        Path(at).unlink(missing_ok=True)  # nobody else may connect
        if not parent.done():
            parent.set_result((reader, writer))

    Path(at).parent.mkdir(parents=True, exist_ok=True)
    server = await asyncio.start_unix_server(connected, at)
    Path(at).chmod(0o600)
    try:
        await _serve_connected(*await parent, methods)
    finally:
        server.close()


async def _serve_connected(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, methods: Mapping[str, Method]
) -> None:
    try:
        await _Session(writer, methods).run(reader)
    finally:
        writer.close()
