"""OpenAI's chat completions to nouns and back. Pure.

Every request field is listed here: read, accepted without effect, or accepted only at the value
that has no effect. Anything else is refused by name, never ignored.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from turnwise import errors
from turnwise.domain.rollout import Message
from turnwise.gateway.chat import ChatRequest, Delta, RawOutput, Reply

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_STOPS = 4
MAX_TOP_K = 2**31 - 1  # the engine's integers; no vocabulary is as large

#: Sent by clients and frameworks; they do not change what the model says.
_WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

#: Accepted only at the value that changes nothing, because the sampler cannot do the rest.
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "tool_choice": ("auto", "none"),
}

_READ = frozenset(
    {
        "model",
        "messages",
        "tools",
        "temperature",
        "top_p",
        "top_k",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "seed",
        "stream",
        "stream_options",
        "logprobs",
        "raw_output",
    }
)


def decode_chat(body: bytes) -> ChatRequest:
    """Read a request body. Raises `InvalidInput` naming the field, the value and the remedy."""
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.InvalidInput("body", _beginning(body), f"is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise errors.InvalidInput("body", _beginning(body), "must be a JSON object")
    given = {name: value for name, value in fields.items() if value is not None}
    _check_names(given)
    tools = _tools(given.get("tools", []))
    options = _typed(given, "stream_options", dict, "an object") or {}
    return ChatRequest(
        model=_model(given),
        messages=_messages(given.get("messages")),
        tools=() if given.get("tool_choice") == "none" else tools,
        temperature=_number(given, "temperature", lambda x: 0 <= x <= 2, "from 0 to 2"),
        top_p=_number(given, "top_p", lambda x: 0 < x <= 1, "above 0 and at most 1"),
        top_k=_integer(given, "top_k", 0, MAX_TOP_K),
        max_tokens=_max_tokens(given),
        stop=_stop(given.get("stop", ())),
        seed=_integer(given, "seed", None),
        stream=bool(_typed(given, "stream", bool, "true or false")),
        include_usage=bool(_typed(options, "include_usage", bool, "true or false")),
        logprobs=bool(_typed(given, "logprobs", bool, "true or false")),
        raw_output=bool(_typed(given, "raw_output", bool, "true or false")),
    )


def encode_reply(reply: Reply) -> bytes:
    """The whole reply as JSON."""
    return _encode(reply_body(reply))


def reply_body(reply: Reply) -> dict[str, Any]:
    """The whole reply, as `chat.completion`."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {**reply.message, "refusal": None},
        "logprobs": _logprobs(reply),
        "finish_reason": reply.finish_reason.value,
    }
    if reply.raw_output is not None:
        choice["raw_output"] = _raw_output(reply.raw_output)
    return _head(reply, "chat.completion") | {"choices": [choice], "usage": _usage(reply)}


class ChunkEncoder:
    """A reply's deltas as server-sent `chat.completion.chunk` events."""

    def __init__(self, turn_id: str, model: str, created_at: float) -> None:
        self._head = {
            "id": f"chatcmpl-{turn_id}",
            "object": "chat.completion.chunk",
            "created": int(created_at),
            "model": model,
        }
        self._is_first = True

    def delta(self, delta: Delta) -> bytes:
        """The next piece of the message; the first one says whose it is."""
        if self._is_first:
            delta = {"role": "assistant", **delta}
            self._is_first = False
        return self._choice({"delta": delta, "logprobs": None, "finish_reason": None})

    def end(self, reply: Reply, *, include_usage: bool) -> bytes:
        """Finish reason, usage if asked for, and the end mark."""
        first = self.delta({"content": ""}) if self._is_first else b""
        finish = {"logprobs": _logprobs(reply), "finish_reason": reply.finish_reason.value}
        last = self._choice({"delta": {}, **finish})
        usage = b""
        if include_usage:
            usage = server_sent(_encode(self._head | {"choices": [], "usage": _usage(reply)}))
        return first + last + usage + server_sent(b"[DONE]")

    def _choice(self, choice: Mapping[str, Any]) -> bytes:
        return server_sent(_encode(self._head | {"choices": [{"index": 0, **choice}]}))


def server_sent(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"


def encode_models(names: Sequence[str]) -> bytes:
    """The list of models."""
    models = [
        {"id": name, "object": "model", "created": 0, "owned_by": "turnwise"} for name in names
    ]
    return _encode({"object": "list", "data": models})


# ── replies ───────────────────────────────────────────────────────────────────────────────────


def _head(reply: Reply, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{reply.turn_id}",
        "object": kind,
        "created": int(reply.created_at),
        "model": reply.model,
    }


def _usage(reply: Reply) -> dict[str, Any]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
    }


def _raw_output(raw: RawOutput) -> dict[str, Any]:
    """As Fireworks has it, and whose it is: eval-protocol keeps it with the scored row."""
    return {
        "turn_id": raw.turn_id,
        "prompt_fragments": [raw.prompt],
        "prompt_token_ids": raw.prompt_tokens,
        "completion": raw.completion,
        "completion_token_ids": raw.completion_tokens,
    }


def _logprobs(reply: Reply) -> dict[str, Any] | None:
    if reply.logprobs is None:
        return None
    content = [
        {
            "token": token.text,
            "logprob": token.logprob,
            "bytes": list(token.text.encode()),
            "top_logprobs": [],
        }
        for token in reply.logprobs
    ]
    return {"content": content, "refusal": None}


# ── requests ──────────────────────────────────────────────────────────────────────────────────


def _check_names(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _READ or name in _WITHOUT_EFFECT:
            continue
        if name not in _ONLY:
            near = difflib.get_close_matches(name, _READ | _ONLY.keys() | _WITHOUT_EFFECT, 1)
            hint = f"did you mean {near[0]!r}?" if near else "leave it out"
            raise errors.InvalidInput(name, value, "is not a known parameter", remedy=hint)
        # By type too, because Python takes True for 1.
        if not any(value == only and _like(value, only) for only in _ONLY[name]):
            allowed = " or ".join(json.dumps(only) for only in _ONLY[name])
            raise errors.InvalidInput(
                name, value, "is not supported here", remedy=f"leave it out or send {allowed}"
            )


def _like(value: Any, other: Any) -> bool:
    return isinstance(value, bool) == isinstance(other, bool)


def _model(given: Mapping[str, Any]) -> str:
    model = given.get("model")
    if not isinstance(model, str) or not model:
        raise errors.InvalidInput("model", model, "must be a name", remedy="send 'default'")
    return model


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise errors.InvalidInput("messages", value, "must be a list of at least one message")
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(value))


def _message(sent: Any, at: str) -> Message:
    """A message whose content is a string or None: text parts are joined."""
    if not isinstance(sent, dict):
        raise errors.InvalidInput(at, sent, "must be an object with a role")
    message: dict[str, Any] = sent
    role = message.get("role")
    if role not in ROLES:
        raise errors.InvalidInput(f"{at}.role", role, f"must be one of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, f"{at}.content[{i}]") for i, part in enumerate(content))
        message = {**message, "content": content}
    elif content is not None and not isinstance(content, str):
        raise errors.InvalidInput(f"{at}.content", content, "must be text or a list of text parts")
    if content is None and role not in ("assistant", "tool"):
        raise errors.InvalidInput(f"{at}.content", None, "is required for this role")
    _check_calls(message.get("tool_calls"), f"{at}.tool_calls")
    return message


def _part(part: Any, at: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise errors.InvalidInput(
            f"{at}.type", kind, "is not content that this model can read", remedy="send text"
        )
    return _string(part.get("text"), f"{at}.text")


def _check_calls(calls: Any, at: str) -> None:
    if calls is None:
        return
    if not isinstance(calls, list):
        raise errors.InvalidInput(at, calls, "must be a list")
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise errors.InvalidInput(f"{at}[{i}].function", function, "must be an object")
        _string(function.get("name"), f"{at}[{i}].function.name")
        _string(function.get("arguments"), f"{at}[{i}].function.arguments")


def _tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list):
        raise errors.InvalidInput("tools", value, "must be a list")
    for i, tool in enumerate(value):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise errors.InvalidInput(f"tools[{i}]", tool, "must be a tool of type 'function'")
        function = tool.get("function")
        if not isinstance(function, dict):
            raise errors.InvalidInput(f"tools[{i}].function", function, "must be an object")
        _string(function.get("name"), f"tools[{i}].function.name")
    return tuple(value)


def _stop(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else tuple(value) if _is_list(value) else None
    if stops is None or not all(isinstance(stop, str) and stop for stop in stops):
        raise errors.InvalidInput("stop", value, "must be text or a list of texts, none empty")
    if len(stops) > MAX_STOPS:
        raise errors.InvalidInput("stop", value, f"has more than {MAX_STOPS} texts")
    return stops


def _max_tokens(given: Mapping[str, Any]) -> int | None:
    names = ("max_tokens", "max_completion_tokens")
    limits = [v for name in names if (v := _integer(given, name, 1)) is not None]
    return min(limits) if limits else None


def _integer(
    given: Mapping[str, Any], name: str, least: int | None, most: int | None = None
) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise errors.InvalidInput(name, value, "must be a whole number")
    if least is not None and value < least:
        raise errors.InvalidInput(name, value, f"must be at least {least}")
    if most is not None and value > most:
        raise errors.InvalidInput(name, value, f"must be at most {most}")
    return value


def _number(
    given: Mapping[str, Any], name: str, is_allowed: Callable[[float], bool], allowed: str
) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise errors.InvalidInput(name, value, f"must be a number {allowed}")
    if not is_allowed(value):
        raise errors.InvalidInput(name, value, f"must be {allowed}")
    return float(value)


def _typed(given: Mapping[str, Any], name: str, kind: type, said: str) -> Any:
    value = given.get(name)
    if value is not None and not isinstance(value, kind):
        raise errors.InvalidInput(name, value, f"must be {said}")
    return value


def _string(value: Any, at: str) -> str:
    if not isinstance(value, str):
        raise errors.InvalidInput(at, value, "must be text")
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _beginning(body: bytes) -> str:
    return body[:60].decode("utf-8", "replace")
