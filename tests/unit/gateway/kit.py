"""A small world for the gateway's tests: characters as tokens, a scripted sampler, a real store."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from tests import builders
from turnwise.domain.access import Principal
from turnwise.domain.job import Job
from turnwise.domain.rollout import Message, Rollout, Tokens
from turnwise.gateway.chat import ChatRequest, joined
from turnwise.gateway.gateway import Gateway
from turnwise.ports import Parsed, SampleRequest, StopScan
from turnwise.sampling.scripted import Completion, ScriptedSampler
from turnwise.storage.sql import SqlStore
from turnwise.system import new_id

END = 0  # the token that ends an assistant's turn
SECRET = "rolloutsecret"
SECRET_SHA256 = hashlib.sha256(SECRET.encode()).hexdigest()
KEY = "tw_key"


def ids(text: str, *, end: bool = False) -> Tokens:
    return np.array([ord(c) for c in text] + [END] * end, np.int32)


def text_of(tokens: Tokens) -> str:
    return "".join("¶" if t == END else chr(t) for t in tokens.tolist())


class PlainRenderer:
    """A chat family of characters: `<user>hi¶<assistant>`, `[reasoning]` first, calls as `@{...}`.

    With `drops_reasoning`, earlier reasoning is gone once a user speaks again.
    """

    stop_ids = (END,)

    def __init__(self, *, drops_reasoning: bool = False) -> None:
        self.drops_reasoning = drops_reasoning

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Tokens:
        offered = f"<tools>{json.dumps(list(tools))}¶" if tools else ""
        asked = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
        said = [
            _spelled(m, keeps_reasoning=not self.drops_reasoning or i > asked)
            for i, m in enumerate(messages)
        ]
        return ids((offered + "".join(said)).replace("¶", chr(END)) + "<assistant>")

    def bridge(
        self,
        prompt: Tokens,
        completion: Tokens,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
    ) -> Tokens | None:
        roles = {m["role"] for m in messages}
        if "assistant" in roles:
            return None
        if self.drops_reasoning and "user" in roles and ord("[") in completion:
            return None
        close = "" if len(completion) and completion[-1] == END else chr(END)
        new = "".join(_spelled(m, keeps_reasoning=True) for m in messages)
        return ids(close + new.replace("¶", chr(END)) + "<assistant>")

    def parse(
        self, prompt: Tokens, completion: Tokens, tools: Sequence[Mapping[str, Any]]
    ) -> Parsed:
        stream = self.stream(prompt, tools)
        message = joined([*stream.feed(completion), *stream.finish()])
        return Parsed(message=message, has_tool_calls="tool_calls" in message)

    def stream(self, prompt: Tokens, tools: Sequence[Mapping[str, Any]]) -> _Reading:
        return _Reading(len(prompt))

    def stops(self, strings: Sequence[str]) -> _Stops:
        return _Stops(strings)

    def decode(self, tokens: Tokens) -> str:
        return text_of(tokens)


def _spelled(message: Message, *, keeps_reasoning: bool) -> str:
    reasoning = message.get("reasoning_content") if keeps_reasoning else ""
    calls = [
        {"name": c["function"]["name"], "arguments": json.loads(c["function"]["arguments"])}
        for c in message.get("tool_calls") or ()
    ]
    return (
        f"<{message['role']}>"
        + (f"[{reasoning}]" if reasoning else "")
        + (message.get("content") or "")
        + "".join("@" + json.dumps(call) for call in calls)
        + "¶"
    )


class _Reading:
    """`ports.ReplyStream`: a character at a time, calls at the end."""

    def __init__(self, place: int) -> None:
        self._place = place
        self._field = "content"
        self._calls = ""
        self._is_calling = False

    def feed(self, tokens: Tokens) -> list[dict[str, Any]]:
        deltas = []
        for token in tokens.tolist():
            character = chr(token)
            if token == END:
                continue
            self._is_calling |= character == "@"
            if self._is_calling:
                self._calls += character
            elif character in "[]":
                self._field = "reasoning_content" if character == "[" else "content"
            else:
                deltas.append({self._field: character})
        return deltas

    def finish(self) -> list[dict[str, Any]]:
        read = [json.loads(text) for text in self._calls.split("@") if text]
        return [
            {
                "tool_calls": [
                    {
                        "index": i,
                        "id": f"call_{self._place}_{i}",
                        "type": "function",
                        "function": {
                            "name": call["name"],
                            "arguments": json.dumps(call["arguments"]),
                        },
                    }
                ]
            }
            for i, call in enumerate(read)
        ]


class _Stops:
    """`ports.StopStrings` where each character is a token."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._text = ""
        self._released = 0

    def feed(self, tokens: Tokens) -> StopScan:
        for token in tokens.tolist():
            self._text += chr(token)
            found = [self._text.find(s) for s in self._strings if s in self._text]
            if found:
                return StopScan(readable=self._release(min(found)), kept=len(self._text))
        longest = max(map(len, self._strings))
        return StopScan(readable=self._release(len(self._text) - longest + 1), kept=None)

    def finish(self) -> Tokens:
        return self._release(len(self._text))

    def _release(self, upto: int) -> Tokens:
        upto = max(upto, self._released)
        released = ids(self._text[self._released : upto])
        self._released = upto
        return released


class HeldClock:
    """Time that a test moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


@dataclass
class Script:
    """What the sampler answers, over and over, and what it was asked."""

    replies: list[str]
    asked: list[SampleRequest] = field(default_factory=list)

    def __call__(self, ask: SampleRequest) -> Completion:
        reply = self.replies[len(self.asked) % len(self.replies)]
        self.asked.append(ask)
        return Completion(tokens=ids(reply, end=True).tolist())


class GatedSampler(ScriptedSampler):
    """A scripted sampler that gives `hold_at` tokens and then waits for its gate to open."""

    def __init__(self, script: Callable[[SampleRequest], Completion], **options: Any) -> None:
        super().__init__(script, **options)
        self.gate = asyncio.Event()
        self.gate.set()
        self.hold_at = 0
        self.aborted = 0
        self._endings: dict[str, asyncio.Event] = {}

    async def generate(self, request: SampleRequest) -> AsyncIterator[Any]:
        seen = 0
        ending = self._endings[request.request_id] = asyncio.Event()
        async for chunk in super().generate(request):
            if seen + len(chunk.tokens) > self.hold_at:
                await self._opens(ending)
                if ending.is_set():
                    left = max(self.hold_at - seen, 0)
                    yield replace(
                        chunk,
                        tokens=chunk.tokens[:left],
                        logprobs=chunk.logprobs[:left],
                        finish_reason="abort",
                    )
                    return
            seen += len(chunk.tokens)
            yield chunk

    async def abort(self, request_id: str) -> None:
        self.aborted += 1
        self._endings[request_id].set()
        await super().abort(request_id)

    async def _opens(self, ending: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self.gate, ending)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


@dataclass
class World:
    """A running job with one open rollout."""

    store: SqlStore
    gateway: Gateway
    sampler: GatedSampler
    script: Script
    clock: HeldClock
    principal: Principal
    job: Job
    _attempts: Iterator[int] = field(default_factory=itertools.count)

    async def open(self, rollout_id: str = "rol_a", **changes: Any) -> Rollout:
        fields = {"secret_sha256": SECRET_SHA256, "attempt": next(self._attempts)} | changes
        rollout = builders.rollout(rollout_id, **fields)
        await self.gateway.open([rollout])
        return rollout

    async def trajectory(self, rollout_id: str = "rol_a") -> Any:
        return await self.store.trajectory(builders.ACCOUNT, rollout_id)

    def restarted(self) -> Gateway:
        """A gateway of a new server process on the same store."""
        gateway = Gateway(self.store, self.clock, new_id)
        gateway.attach(self.job, self.sampler, PlainRenderer())
        return gateway


@contextlib.asynccontextmanager
async def a_world(
    *replies: str,
    renderer: PlainRenderer | None = None,
    grace_s: float = 5.0,
    max_length: int = 4096,
    max_slots: int = 1024,
    max_queue: int = 1024,
    opened: bool = True,
    sampler: type[GatedSampler] = GatedSampler,
    **job: Any,
) -> AsyncIterator[World]:
    clock, store = HeldClock(), SqlStore.in_memory()
    script = Script(list(replies) or ["hello"])
    made = sampler(script, max_length=max_length, max_slots=max_slots, max_queue=max_queue)
    gateway = Gateway(store, clock, new_id, retry_grace_s=grace_s)
    stored = await store.create_job(builders.job(**job))
    await store.open_group(builders.group())
    gateway.attach(stored, made, renderer or PlainRenderer())
    caller = Principal(account_id=builders.ACCOUNT)
    world = World(store, gateway, made, script, clock, caller, stored)
    if opened:
        await world.open()
    try:
        yield world
    finally:
        await gateway.close()
        await made.close()
        await store.close()


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def tool(text: str, call_id: str = "call") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "x", "type": "function", "function": {"name": name, "arguments": arguments}}


def ask(*messages: Message, **fields: Any) -> ChatRequest:
    return ChatRequest(model="default", messages=messages, **fields)


def body_of(request: ChatRequest) -> bytes:
    return msgspec.json.encode(request)


async def chat(world: World, *messages: Message, rollout_id: str = "rol_a", **fields: Any) -> Any:
    """One turn, whose body is the request itself."""
    retry_count = fields.pop("retry_count", 0)
    request = ask(*messages, **fields)
    return await world.gateway.chat(
        world.principal, rollout_id, request, body=body_of(request), retry_count=retry_count
    )
