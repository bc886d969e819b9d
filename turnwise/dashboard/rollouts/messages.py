"""Chat messages as a person reads them. Pure; holds for whatever an agent or a model has said."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turnwise.domain.rollout import Message

_SHOWN_APART = (
    "role",
    "content",
    "reasoning_content",
    "reasoning",
    "tool_calls",
    "tool_call_id",
    "name",
)

#: Controls but for tab and line feed, what turns the direction of writing, what shows nothing, and
#: halves of surrogate pairs, which no answer could hold.
_UNREADABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    "\ufff9-\ufffb\ud800-\udfff]"
)


def readable(text: str) -> str:
    r"""A text with its invisible and its misleading characters written out.

    >>> readable("a\x1b[31m\u202eb\r\n\ttab")
    'a␛[31m\\u202eb\n\ttab'
    """
    return _UNREADABLE.sub(_written_out, text.replace("\r\n", "\n"))


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\u{code:04x}"


@dataclass(frozen=True, slots=True)
class CallView:
    """A call of a tool: its name, its id and its arguments, JSON of two spaces where it is JSON."""

    name: str
    call_id: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolView:
    """A tool as a request offers it; `definition` is all of it, JSON."""

    name: str
    description: str
    definition: str


@dataclass(frozen=True, slots=True)
class MessageView:
    """A message in parts; `rest` is what else it holds, as JSON, "" for nothing.

    `answers` is the id of the call that a tool's message is the result of.
    """

    role: str
    name: str
    answers: str
    text: str
    reasoning: str
    calls: tuple[CallView, ...]
    rest: str

    @property
    def written(self) -> str:
        """All of it as one text, to compare."""
        parts = [self.role + (f" {self.name}" if self.name else "")]
        if self.reasoning:
            parts.append(f"(reasoning)\n{self.reasoning}")
        if self.text:
            parts.append(self.text)
        parts += [f"(calls {call.name})\n{call.arguments}" for call in self.calls]
        return "\n".join([*parts, *([self.rest] if self.rest else [])])


def view(message: Message) -> MessageView:
    """A message in OpenAI's shape, or in any other."""
    rest = {key: value for key, value in message.items() if key not in _SHOWN_APART}
    calls = message.get("tool_calls")
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    return MessageView(
        role=_text(message.get("role")) or "unknown",
        name=_text(message.get("name")),
        answers=_text(message.get("tool_call_id")),
        text=_content(message.get("content")),
        reasoning=_text(reasoning).strip("\n"),
        calls=tuple(map(_call, calls)) if isinstance(calls, Sequence) else (),
        rest=pretty(rest) if any(value is not None for value in rest.values()) else "",
    )


def tool_view(tool: Mapping[str, Any]) -> ToolView:
    """A tool in OpenAI's shape, or in any other."""
    function = tool.get("function")
    named = function if isinstance(function, Mapping) else tool
    return ToolView(
        name=_text(named.get("name")) or "unnamed",
        description=_text(named.get("description")),
        definition=pretty(tool),
    )


def pretty(value: Any) -> str:
    """JSON of two spaces, whatever characters it holds."""
    return readable(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _call(call: Any) -> CallView:
    of = call if isinstance(call, Mapping) else {}
    function = of.get("function")
    named = function if isinstance(function, Mapping) else {}
    return CallView(
        name=_text(named.get("name")) or "unnamed",
        call_id=_text(of.get("id")),
        arguments=_arguments(named.get("arguments") if named else call),
    )


def _arguments(value: Any) -> str:
    """Arguments come as JSON in a string, and from a model as anything."""
    if not isinstance(value, str):
        return pretty(value)
    try:
        return pretty(json.loads(value))
    except (ValueError, RecursionError):
        return readable(value)


def _content(content: Any) -> str:
    """Text as such or in parts; parts that are no text as JSON."""
    if content is None or isinstance(content, str):
        return readable(content or "")
    if not isinstance(content, Sequence):
        return pretty(content)
    return "\n".join(map(_part, content))


def _part(part: Any) -> str:
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return readable(part["text"])
    return pretty(part)


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return readable(value or "")
    return pretty(value)
