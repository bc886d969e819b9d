"""One turn's making: the prompt it sees, the completion as it comes, the nodes it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from turnwise import errors
from turnwise.domain.rollout import (
    FinishReason,
    Floats,
    ForkCause,
    Message,
    Policy,
    SamplingParams,
    Tokens,
)
from turnwise.gateway.chat import ChatRequest, Delta, RawOutput, TokenLogprob, Tool, joined
from turnwise.gateway.graph import Graph, tools_sha256
from turnwise.ports import Chunk, Renderer

#: Completions above this are read in a thread, unless they were read as they came: measured at
#: 2 us per token, this is 4 ms.
READ_INLINE_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model is shown: `tokens` in all, of which this turn adds `added` to `parent`."""

    parent: int | None  # the completion it extends; None for a root
    messages: tuple[Message, ...]
    added: Tokens
    tokens: Tokens
    tools_sha256: str = ""  # on roots
    tools: tuple[Tool, ...] = ()  # on roots
    cause: ForkCause | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A turn, ready to be sampled."""

    turn_id: str
    request: ChatRequest
    request_sha256: str
    prompt: Prompt
    policy: Policy
    sampling: SamplingParams
    seed: int
    started_at: float


def build_prompt(graph: Graph, renderer: Renderer, request: ChatRequest) -> Prompt:
    """Extend the earlier turn that the request continues, or render it as a new root."""
    tools_id = tools_sha256(request.tools)
    match = graph.match(request.messages, tools_id)
    if match.prompt is not None:
        node = graph.nodes[match.prompt]
        return Prompt(
            parent=node.parent,
            messages=match.new,
            added=node.tokens,
            tokens=graph.path_tokens(match.prompt),
            tools_sha256=node.tools_sha256,
            tools=node.tools,
            cause=node.fork_cause,
        )
    if match.completion is not None:
        said = graph.nodes[match.completion]
        before = graph.path_tokens(said.parent)
        added = renderer.bridge(before, said.tokens, match.new, request.tools)
        if added is not None:
            return Prompt(
                parent=match.completion,
                messages=match.new,
                added=added,
                tokens=np.concatenate([before, said.tokens, added]),
                cause=match.cause,
            )
    tokens = renderer.render(request.messages, request.tools)
    refused = ForkCause.TEMPLATE if match.completion is not None else None
    return Prompt(
        parent=None,
        messages=request.messages,
        added=tokens,
        tokens=tokens,
        tools_sha256=tools_id,
        tools=request.tools,
        cause=match.cause or refused,
    )


def room(prompt: Prompt, max_length: int) -> int:
    """How many tokens the reply may have. Raises `PromptTooLong`."""
    used = len(prompt.tokens)
    if used >= max_length:
        raise errors.PromptTooLong(
            "messages",
            used,
            f"tokens do not fit this model's context of {max_length} tokens",
            remedy="shorten the conversation",
        )
    return max_length - used


class Completion:
    """What the model has said so far, read as it comes.

    Read piece by piece where the client streams or a stop string may end it; otherwise the
    tokens are read once, at the end.
    """

    def __init__(self, renderer: Renderer, call: Call) -> None:
        asked = call.request
        self._renderer = renderer
        self._call = call
        self._tokens: list[Tokens] = []
        self._logprobs: list[Floats] = []
        self._deltas: list[Delta] = []
        self.finish_reason: FinishReason | None = None
        self.cached_tokens = 0
        self.past_stop_tokens = 0
        self.is_stopped = False  # by a stop string; nothing after it counts
        self.is_streamed = asked.stream or bool(asked.stop)
        self._stops = renderer.stops(asked.stop) if asked.stop else None
        self._stream = (
            renderer.stream(call.prompt.tokens, asked.tools) if self.is_streamed else None
        )

    @property
    def tokens(self) -> Tokens:
        """[C] sampled so far."""
        return np.concatenate(self._tokens) if self._tokens else np.empty(0, np.int32)

    @property
    def logprobs(self) -> Floats:
        """[C] of the sampled tokens."""
        return np.concatenate(self._logprobs) if self._logprobs else np.empty(0, np.float32)

    def feed(self, chunk: Chunk) -> Sequence[Delta]:
        """Take the next tokens; what may be sent by now. `finish_reason` is set at the end."""
        self.cached_tokens = max(self.cached_tokens, chunk.cached_tokens)
        if self.is_stopped:
            self.past_stop_tokens += len(chunk.tokens)
            return ()
        if chunk.finish_reason is not None:
            self.finish_reason = FinishReason(chunk.finish_reason)
        kept, readable = len(chunk.tokens), chunk.tokens
        if self._stops is not None:
            scan = self._stops.feed(chunk.tokens)
            readable = scan.readable
            if scan.kept is not None:
                kept = scan.kept - sum(map(len, self._tokens))
                self.is_stopped = True
                self.past_stop_tokens = len(chunk.tokens) - kept
                self.finish_reason = FinishReason.STOP
        self._tokens.append(chunk.tokens[:kept])
        self._logprobs.append(chunk.logprobs[:kept])
        return self._read(readable)

    def close(self) -> tuple[Message, Sequence[Delta]]:
        """The whole message, and what of it was still held back."""
        rest: list[Delta] = []
        if self._stream is None:
            call = self._call
            parsed = self._renderer.parse(call.prompt.tokens, self.tokens, call.request.tools)
            message = parsed.message
        else:
            if self._stops is not None and not self.is_stopped:
                rest.extend(self._stream.feed(self._stops.finish()))
            rest.extend(self._stream.finish())
            message = joined([*self._deltas, *rest])
        if message.get("tool_calls") and self.finish_reason is FinishReason.STOP:
            self.finish_reason = FinishReason.TOOL_CALLS
        return message, rest

    def unread(self) -> Message:
        """What was sampled as its bare text: for a reply that is not, or cannot be, read."""
        return {"role": "assistant", "content": self._renderer.decode(self.tokens)}

    def token_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Each token's text and logprob."""
        tokens = self.tokens
        return tuple(
            TokenLogprob(text=self._renderer.decode(tokens[i : i + 1]), logprob=float(value))
            for i, value in enumerate(self.logprobs)
        )

    def raw_output(self) -> RawOutput:
        """The turn's tokens, and their text with all that reading takes out."""
        prompt, completion = self._call.prompt.tokens, self.tokens
        return RawOutput(
            turn_id=self._call.turn_id,
            prompt=self._renderer.decode(prompt),
            prompt_tokens=tuple(prompt.tolist()),
            completion=self._renderer.decode(completion),
            completion_tokens=tuple(completion.tolist()),
        )

    def _read(self, readable: Tokens) -> Sequence[Delta]:
        if self._stream is None:
            return ()
        deltas = self._stream.feed(readable)
        self._deltas.extend(deltas)
        return deltas


async def read(said: Completion) -> tuple[Message, Sequence[Delta]]:
    """The whole message and what of it was still held back; a long one is read in a thread."""
    if said.is_streamed or len(said.tokens) <= READ_INLINE_TOKENS:
        return said.close()
    return await asyncio.to_thread(said.close)
