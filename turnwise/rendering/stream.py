"""Sampled tokens -> an assistant's message, token by token.

One reader serves both the streamed and the whole reply: `ChatRenderer.parse` feeds it everything
at once. What it does with a token depends on where in the reply it is:

    START ──────── <think> ────────▶ REASONING ── </think> ──▶ CONTENT ◀──┐ calls, or their text
      │ anything but white space        │ <tool_call>            │ <tool_call>
      ├────────▶ CONTENT                ▼                        ▼
      └─ "{" ──▶ CALL (bare calls)     DRAFT ── </think>: it was reasoning
                                         └── end of reply: reasoning ended where the call began

A tool call that the model drafts while thinking is therefore never executed. Everything sampled
is shown: a call that cannot be read stays in the content as its text.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from turnwise.domain.rollout import Message, Tokens
from turnwise.rendering.tokenizer import Tokenizer

Delta = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """How a chat family marks the parts of a reply.

    `call_open` and `call_close` are single tokens in every family. Reasoning markers are tokens
    where the vocabulary holds them, and otherwise plain text. `bare_calls`: a reply that is one
    JSON object is a call, without any marker.
    """

    think_open: str | None = "<think>"
    think_close: str | None = "</think>"
    call_open: str | None = "<tool_call>"
    call_close: str | None = "</tool_call>"
    bare_calls: bool = False


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that could be read; `arguments` is a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CallBlock:
    """A tool block, read: its calls, and as text whatever is not a call."""

    calls: tuple[ToolCall, ...]
    rest: str


class _Mark(Enum):
    THINK_OPEN = auto()
    THINK_CLOSE = auto()
    CALL_OPEN = auto()
    CALL_CLOSE = auto()


class _At(Enum):
    START = auto()
    REASONING = auto()
    DRAFT = auto()
    CONTENT = auto()
    CALL = auto()
    END = auto()


class _Trimmed:
    """One channel's text without white space at its ends."""

    def __init__(self) -> None:
        self._held: list[str] = []
        self._started = False

    def add(self, text: str) -> str:
        """What may be sent now: trailing white space waits for what follows."""
        body = text.rstrip()
        if not body:
            if self._started:
                self._held.append(text)
            return ""
        sent = "".join(self._held) + (body if self._started else body.lstrip())
        self._started = True
        self._held = [text[len(body) :]]
        return sent


class _Lexer:
    """Tokens to text and marks, holding back half a character and half a textual mark."""

    def __init__(self, tokenizer: Tokenizer, grammar: Grammar) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._spellings = {
            mark: text
            for mark, text in (
                (_Mark.THINK_OPEN, grammar.think_open),
                (_Mark.THINK_CLOSE, grammar.think_close),
                (_Mark.CALL_OPEN, grammar.call_open),
                (_Mark.CALL_CLOSE, grammar.call_close),
            )
            if text is not None
        }
        self._atoms: dict[int, _Mark] = {}
        self._spelled: dict[str, _Mark] = {}
        for mark, text in self._spellings.items():
            id = tokenizer.token_id(text)
            if id is not None:
                self._atoms[id] = mark
            else:
                self._spelled[text] = mark

    def mark(self, token: int) -> _Mark | None:
        """The mark that this token alone is."""
        return self._atoms.get(token)

    def spelling(self, mark: _Mark) -> str:
        """A mark as text."""
        return self._spellings[mark]

    def feed(self, token: int) -> list[str | _Mark]:
        """Text and marks certain by now."""
        mark = self.mark(token)
        if mark is not None:
            return [*self.flush(), mark]
        return self._split(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def flush(self) -> list[str | _Mark]:
        """What was held back, as text; an unfinished character becomes U+FFFD."""
        text = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        return [text] if text else []

    def _split(self, text: str) -> list[str | _Mark]:
        if not self._spelled:
            return [text] if text else []
        text = self._held + text
        out: list[str | _Mark] = []
        while found := _first(text, self._spelled):
            at, spelled = found
            out += [text[:at], self._spelled[spelled]] if at else [self._spelled[spelled]]
            text = text[at + len(spelled) :]
        kept = len(text) - _unfinished(text, self._spelled)
        self._held = text[kept:]
        return [*out, text[:kept]] if kept else out


class ReplyReader:
    """`ports.ReplyStream`. Its cost is linear in the tokens, however they are cut."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        grammar: Grammar,
        *,
        stop_ids: Iterable[int],
        in_reasoning: bool,
        read_block: Callable[[list[int]], CallBlock],
        call_id: Callable[[int, list[int]], str],
    ) -> None:
        self._tokenizer = tokenizer
        self._grammar = grammar
        self._stop_ids = frozenset(stop_ids)
        self._read_block = read_block
        self._call_id = call_id
        self._lexer = _Lexer(tokenizer, grammar)
        self._at = _At.REASONING if in_reasoning else _At.START
        self._channels = {"content": _Trimmed(), "reasoning_content": _Trimmed()}
        self._block: list[int] = []  # tokens of the call or draft being read
        self._draft: list[str] = []  # text of the draft
        self._calls = 0
        self._spoken: list[str] = []  # pieces of the latest text delta
        self._out: list[dict[str, list[Any]]] = []

    def feed(self, tokens: Tokens) -> Sequence[Delta]:
        """Deltas certain by now."""
        for token in tokens.tolist():
            self._take(token)
        return self._drain()

    def finish(self) -> Sequence[Delta]:
        """The rest: what was held back turned out to be nothing special."""
        self._end()
        return self._drain()

    def _take(self, token: int) -> None:
        if self._at is _At.END:
            return
        if token in self._stop_ids:
            self._end()
        elif self._at is _At.CALL:
            self._block.append(token)
            if self._lexer.mark(token) is _Mark.CALL_CLOSE:
                self._close_call()
        else:
            if self._at is _At.DRAFT:
                self._block.append(token)
            for lexeme in self._lexer.feed(token):
                self._lexeme(lexeme, token)

    def _end(self) -> None:
        self._flush()
        if self._at is _At.DRAFT:
            draft, self._at = self._block, _At.CONTENT
            for token in draft:
                self._take(token)
            self._flush()
        if self._at is _At.CALL and self._grammar.bare_calls:
            self._close_call()
        elif self._at is _At.CALL:
            self._say("content", self._tokenizer.decode(self._block))
        self._at = _At.END

    def _flush(self) -> None:
        for lexeme in self._lexer.flush():
            self._lexeme(lexeme, None)

    def _lexeme(self, lexeme: str | _Mark, token: int | None) -> None:
        if isinstance(lexeme, _Mark):
            self._mark(lexeme, token)
        else:
            self._text(lexeme, token)

    def _text(self, text: str, token: int | None) -> None:
        if self._at is _At.START and not text.isspace():
            self._at = _At.CONTENT
            if self._grammar.bare_calls and token is not None and text.lstrip()[0] == "{":
                self._at, self._block = _At.CALL, [token]
        if self._at is _At.CONTENT:
            self._say("content", text)
        elif self._at is _At.REASONING:
            self._say("reasoning_content", text)
        elif self._at is _At.DRAFT:
            self._draft.append(text)

    def _mark(self, mark: _Mark, token: int | None) -> None:
        match self._at, mark:
            case (_At.START, _Mark.THINK_OPEN):
                self._at = _At.REASONING
            case (_At.REASONING, _Mark.THINK_OPEN):
                pass  # open already: models repeat the marker that their prompt ends with
            case (_At.REASONING, _Mark.THINK_CLOSE):
                self._at = _At.CONTENT
            case (_At.DRAFT, _Mark.THINK_CLOSE):
                self._say("reasoning_content", "".join(self._draft))
                self._at = _At.CONTENT
            case (_At.REASONING, _Mark.CALL_OPEN) if token is not None:
                self._at, self._block = _At.DRAFT, [token]
                self._draft = [self._lexer.spelling(mark)]
            case (_At.START | _At.CONTENT, _Mark.CALL_OPEN) if token is not None:
                self._at, self._block = _At.CALL, [token]
            case _:
                self._text(self._lexer.spelling(mark), None)

    def _close_call(self) -> None:
        block = self._read_block(self._block)
        self._at = _At.CONTENT
        self._say("content", block.rest)
        for call in block.calls:
            self._out.append({"tool_calls": [self._openai_call(call)]})

    def _openai_call(self, call: ToolCall) -> dict[str, Any]:
        index = self._calls
        self._calls += 1
        return {
            "index": index,
            "id": self._call_id(index, self._block),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }

    def _say(self, channel: str, text: str) -> None:
        text = self._channels[channel].add(text)
        if not text:
            return
        if self._out and channel in self._out[-1]:
            self._spoken.append(text)
        else:
            self._spoken = [text]
            self._out.append({channel: self._spoken})

    def _drain(self) -> Sequence[Delta]:
        drained, self._out = self._out, []
        return [
            {kind: "".join(value) if kind in self._channels else value}
            for delta in drained
            for kind, value in delta.items()
        ]


def join(deltas: Iterable[Delta]) -> Message:
    """The assistant's message that deltas add up to, in OpenAI's shape.

    `content` is None only beside tool calls, as OpenAI has it.
    """
    deltas = list(deltas)
    calls = [
        {key: value for key, value in call.items() if key != "index"}
        for delta in deltas
        for call in delta.get("tool_calls", ())
    ]
    content = "".join(delta.get("content", "") for delta in deltas)
    reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _first(text: str, marks: Iterable[str]) -> tuple[int, str] | None:
    found = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
    return min(found, default=None)


def _unfinished(text: str, marks: Collection[str]) -> int:
    """How many characters at the end of the text may be the beginning of a mark."""
    longest = max(map(len, marks)) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return size
    return 0
