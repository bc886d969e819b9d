"""OpenAI's chat messages -> the messages that a chat family's template is written for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from turnwise.domain.rollout import Message
from turnwise.errors import InvalidInput

_ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Text parts joined, tool-call arguments as objects, absent content as "".

    Raises `InvalidInput` naming `messages[i]...` for what a text model cannot be shown.
    """
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Message, field: str) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidInput(
            f"{field}.role", role, "is not a known role", remedy=f"use one of {', '.join(_ROLES)}"
        )
    out: dict[str, Any] = {
        "role": _ROLES[role],
        "content": _content(message.get("content"), f"{field}.content", role),
    }
    reasoning = message.get("reasoning_content")
    if isinstance(reasoning, str):
        out["reasoning_content"] = reasoning
    if message.get("tool_calls"):
        out["tool_calls"] = _tool_calls(message["tool_calls"], f"{field}.tool_calls")
    for key in ("name", "tool_call_id"):
        if isinstance(message.get(key), str):
            out[key] = message[key]
    return out


def _content(content: Any, field: str, role: str) -> str:
    if isinstance(content, str):
        return content
    if content is None and role in ("assistant", "tool"):
        return ""
    if not isinstance(content, list):
        raise InvalidInput(field, content, "is not text", remedy="send a string or text parts")
    return "".join(_part(part, f"{field}[{j}]") for j, part in enumerate(content))


def _part(part: Any, field: str) -> str:
    kind = part
    if isinstance(part, Mapping):
        kind, text = part.get("type"), part.get("text")
        if kind == "text" and isinstance(text, str):
            return text
    raise InvalidInput(
        field, kind, "cannot be shown to this model", remedy='send parts of type "text" only'
    )


def _tool_calls(calls: Any, field: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise InvalidInput(field, calls, "is not a list")
    return [_tool_call(call, f"{field}[{j}]") for j, call in enumerate(calls)]


def _tool_call(call: Any, field: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise InvalidInput(field, call, "is not a function call with a name")
    arguments = _arguments(function.get("arguments"))
    return {
        "id": str(call.get("id") or ""),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _arguments(arguments: Any) -> Any:
    """As an object where they are one: templates written for Hugging Face expect that."""
    if not isinstance(arguments, str):
        return arguments or {}
    try:
        read = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return read if isinstance(read, dict) else arguments
