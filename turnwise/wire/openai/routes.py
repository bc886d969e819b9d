"""OpenAI's routes: decode, ask for a reply, encode."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from turnwise import errors
from turnwise.gateway.chat import ChatRequest, Reply
from turnwise.gateway.exchange import Exchange
from turnwise.wire.asgi import HttpCall
from turnwise.wire.openai import codec, faults

#: Starts the call that a request with this body asks for.
Ask = Callable[[ChatRequest, bytes], Awaitable[Exchange]]

#: Is told of a reply.
Seen = Callable[[Reply], None]


async def chat(
    ask: Ask, http: HttpCall, *, stream: bool | None = None, seen: Seen | None = None
) -> None:
    """POST /v1/chat/completions; `stream`, where given, overrides the body's.

    `seen`, where given, is told of the reply before its client can be.
    """
    body = await http.body()
    request = codec.decode_chat(body)
    if stream is not None:
        request = replace(request, stream=stream)
    async with http.while_connected():
        exchange = await ask(request, body)
        if request.stream:
            await _stream(http, exchange, request, seen)
        else:
            reply = await exchange.reply()
            if seen is not None:
                seen(reply)
            await http.answer(200, codec.encode_reply(reply))


def retry_count(http: HttpCall) -> int:
    """How often the openai client has sent this request before."""
    text = http.header("x-stainless-retry-count")
    if text and not (text.isdecimal() and len(text) <= 4):
        raise errors.InvalidInput("x-stainless-retry-count", text, "must be a small whole number")
    return int(text or 0)


async def models(names: Sequence[str], http: HttpCall) -> None:
    """GET /v1/models."""
    await http.answer(200, codec.encode_models(names))


async def fail(http: HttpCall, error: Exception) -> None:
    """Answer with an error; in a stream that has begun, as its last event."""
    body = faults.body_of(error)
    if http.has_started:
        await http.piece(codec.server_sent(body), last=True)
        return
    await http.answer(faults.fault_of(error).status, body, more=faults.headers_of(error))


async def _stream(
    http: HttpCall, exchange: Exchange, request: ChatRequest, seen: Seen | None
) -> None:
    encoder = codec.ChunkEncoder(exchange.turn_id, request.model, exchange.created_at)
    async with contextlib.aclosing(exchange.events()) as events:
        async for event in events:
            # The head goes out with the first event, so that a refusal has its own status.
            if not http.has_started:
                await http.begin_stream("text/event-stream")
            if isinstance(event, Reply):
                if seen is not None:
                    seen(event)
                end = encoder.end(event, include_usage=request.include_usage)
                await http.piece(end, last=True)
            else:
                await http.piece(encoder.delta(event))
