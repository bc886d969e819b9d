"""What an agent asks for and what it gets, apart from any wire format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from turnwise.domain.rollout import FinishReason, Message, SamplingParams

Delta = Mapping[str, Any]  # the next piece of a message, in OpenAI's shape
Tool = Mapping[str, Any]  # one tool, in OpenAI's shape

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A model call, its values checked. None means: as the rollout says.

    >>> ask = ChatRequest(model="default", messages=({"role": "user", "content": "hi"},))
    >>> ask.params(SamplingParams(temperature=0.7, max_tokens=64), room=1000)
    SamplingParams(temperature=0.7, top_p=1.0, top_k=0, max_tokens=64)
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None  # mixed into the turn's own seed
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    raw_output: bool = False  # the reply is to hold its tokens too

    def params(self, defaults: SamplingParams, *, room: int) -> SamplingParams:
        """The request's values over the rollout's; `max_tokens` is the smaller of both.

        `room` is how many tokens the context has left.
        """
        return SamplingParams(
            temperature=_or(self.temperature, defaults.temperature),
            top_p=_or(self.top_p, defaults.top_p),
            top_k=_or(self.top_k, defaults.top_k),
            max_tokens=min(defaults.max_tokens, self.max_tokens or defaults.max_tokens, room),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """One sampled token, as `logprobs: true` shows it."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RawOutput:
    """A turn before it was read, as `raw_output: true` shows it."""

    turn_id: str
    prompt: str
    prompt_tokens: tuple[int, ...]
    completion: str
    completion_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A committed turn, as its agent gets it."""

    turn_id: str
    model: str
    created_at: float
    message: Message
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    raw_output: RawOutput | None = None


def joined(deltas: Sequence[Delta]) -> Message:
    """The message that streamed deltas add up to.

    >>> joined([{"content": "a"}, {"content": "b"}])
    {'role': 'assistant', 'content': 'ab'}
    """
    text = {
        field: "".join(delta.get(field) or "" for delta in deltas)
        for field in ("content", "reasoning_content")
    }
    calls = [
        {key: value for key, value in call.items() if key != "index"}
        for delta in deltas
        for call in delta.get("tool_calls", ())
    ]
    # As OpenAI has it: no content only beside tool calls.
    content = text["content"] or (None if calls else "")
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if text["reasoning_content"]:
        message["reasoning_content"] = text["reasoning_content"]
    if calls:
        message["tool_calls"] = calls
    return message


def as_deltas(message: Message) -> list[Delta]:
    """A whole message as deltas, for a retry of a stream that is no longer at hand."""
    deltas: list[Delta] = [
        {field: message[field]} for field in ("reasoning_content", "content") if message.get(field)
    ]
    calls = message.get("tool_calls") or ()
    return deltas + [{"tool_calls": [{"index": index, **call}]} for index, call in enumerate(calls)]


def _or(given: T | None, default: T) -> T:
    return default if given is None else given
