"""The tracing gateway's requests to nouns and back. Pure.

eval-protocol's RemoteRolloutProcessor has an agent call the model at a URL that carries tags, and
finds the calls, and what the agent has logged, by these tags. The source of all shapes is
eval-protocol 0.3.33: `pytest.tracing_utils`, `adapters.fireworks_tracing`, `log_utils`, `tracing`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import numpy as np

from turnwise import errors
from turnwise.control.json_text import read_json
from turnwise.domain.traced import TracedCall, TracedLog, TraceQuery
from turnwise.wire.fireworks import zstd

_encode = msgspec.json.Encoder().encode

#: What a path may carry before the operation, in this order.
TAG_NAMES = ("rollout_id", "invocation_id", "experiment_id", "run_id", "row_id")
_PREFIXES = frozenset({"litellm-gateway", "v1", "inference"})

CHAT = "/chat/completions"
MODELS = "/models"
LOGS = "/logs"
STATUS = "/status"
TRACES = "/traces/pointwise"
_OPERATIONS = (CHAT, MODELS, LOGS, STATUS, TRACES)

PROGRAM = "eval_protocol"
_MAX_CODE = 2**31 - 1

_LOGS_QUERY = frozenset({"tags", "limit", "hours_back", "program"})
_TRACES_QUERY = frozenset(
    {"tags", "limit", "hours_back", "from_timestamp", "to_timestamp", "include_payloads"}
)
#: Of a gateway with a store behind it that has to be asked again, or one with projects.
_TRACES_WITHOUT_EFFECT = frozenset({"sleep_between_gets", "max_retries", "fields", "project_id"})


# ── paths and names ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class GatewayPath:
    """What a path of the gateway says: the operation, and the tags of a call."""

    operation: str
    tags: tuple[str, ...] = ()
    encoded_base_url: str = ""  # of somebody else's server, to which the call should go
    project_id: str = ""

    @classmethod
    def of(cls, path: str) -> GatewayPath | None:
        """Split a path; None for one that is not of the gateway.

        A value may hold slashes: clients put ids into the path as they are.

        >>> GatewayPath.of("/litellm-gateway/rollout_id/calm-1/row_id/math/7/chat/completions").tags
        ('rollout_id:calm-1', 'row_id:math/7')
        >>> GatewayPath.of("/inference/v1/models").operation
        '/models'
        """
        operation = next((each for each in _OPERATIONS if path.endswith(each)), None)
        if operation is None:
            return None
        parts = path[: -len(operation)].split("/")[1:]
        while parts and parts[0] in _PREFIXES:
            parts = parts[1:]
        project_id = ""
        if len(parts) >= 2 and parts[0] == "project_id":
            project_id, parts = parts[1], parts[2:]
        if parts and parts[-1] == "v1":
            parts = parts[:-1]
        if not parts:
            return cls(operation, project_id=project_id)
        values = _named_values(parts) if operation == CHAT else None
        if values is None:
            return None
        base_url = values.pop("encoded_base_url", "")
        tags = tuple(f"{name}:{value}" for name, value in values.items())
        return cls(operation, tags, base_url, project_id)

    @property
    def is_plain(self) -> bool:
        """Whether it carries nothing for a call to be recorded with."""
        return not self.tags and not self.encoded_base_url

    def check(self) -> None:
        """Raise `InvalidInput` for a call that somebody else's server should answer."""
        if self.encoded_base_url:
            raise errors.InvalidInput(
                "encoded_base_url",
                _decoded(self.encoded_base_url),
                "is a server that this one does not call",
                remedy="leave base_url out of completion_params; this server's models answer",
            )


def _named_values(parts: Sequence[str]) -> dict[str, str] | None:
    """The values by name, in the order of the names; None unless it begins with one."""
    left = [*TAG_NAMES, "encoded_base_url"]
    values: dict[str, list[str]] = {}
    name = ""
    for part in parts:
        if part in left:
            name, left = part, left[left.index(part) + 1 :]
            values[name] = []
        elif name:
            values[name].append(part)
        else:
            return None
    found = {name: "/".join(value) for name, value in values.items()}
    return found if all(found.values()) else None


def _decoded(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text).decode()
    except (binascii.Error, ValueError):
        return text


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model's full name; account "fireworks" has the base models."""

    account: str
    name: str

    @classmethod
    def of(cls, text: str) -> ModelName | None:
        """Read a full name, with litellm's prefix or without; None for any other.

        >>> ModelName.of("fireworks_ai/accounts/fireworks/models/qwen3-0p6b")
        ModelName(account='fireworks', name='qwen3-0p6b')
        """
        match text.removeprefix("fireworks_ai/").split("/", 3):
            case ["accounts", account, "models", name] if account and name:
                return cls(account, name)
        return None

    @property
    def is_base(self) -> bool:
        """Whether it names a base model."""
        return self.account == "fireworks"


@dataclass(frozen=True, slots=True)
class DeploymentName:
    """The full name that a model was deployed under."""

    account: str
    id: str

    @classmethod
    def of(cls, text: str) -> DeploymentName | None:
        """Read a full name, with litellm's prefix or without; None for any other.

        >>> DeploymentName.of("fireworks_ai/accounts/default/deployments/mine")
        DeploymentName(account='default', id='mine')
        """
        match text.removeprefix("fireworks_ai/").split("/"):
            case ["accounts", account, "deployments", id] if account and id:
                return cls(account, id)
        return None


def plain_name(text: str) -> str:
    """A name that is not a full one, without litellm's prefix."""
    return text.removeprefix("fireworks_ai/")


# ── requests ──────────────────────────────────────────────────────────────────────────────────


def decode_log(body: bytes) -> TracedLog:
    """The entry in a POST /logs; account and time are the gateway's to say. `InvalidInput`."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise errors.InvalidInput("body", body[:60], "is not UTF-8") from None
    fields = read_json("body", text)
    if not isinstance(fields, dict):
        raise errors.InvalidInput("body", text, "must be a JSON object")
    status, extras = _object(fields, "status"), _object(fields, "extras")
    code = _code(status)
    return TracedLog(
        account_id="",
        at=0.0,
        tags=_tags(fields.get("tags")),
        program=_text(fields, "program") or PROGRAM,
        message=_text(fields, "message"),
        severity=_severity(fields, extras or {}),
        status_code=code,
        status=None if code is None else status,
        extras=extras,
    )


def decode_logs_query(query: str, now: float) -> TraceQuery:
    """The query of GET /logs; `now` is where `hours_back` counts from. `InvalidInput`."""
    given = _given(query, _LOGS_QUERY)
    return TraceQuery(
        tags=tuple(given.get("tags", ())),
        since=_hours_back(given, now),
        limit=_whole(given, "limit", 100),
        program=_one(given, "program"),
    )


def decode_traces_query(query: str, now: float) -> tuple[TraceQuery, bool]:
    """The query of GET /traces/pointwise, and whether payloads are wanted. `InvalidInput`.

    Filters that this gateway does not know are refused: their answer would be wrong.
    """
    given = _given(query, _TRACES_QUERY | _TRACES_WITHOUT_EFFECT)
    since = _timestamp(given, "from_timestamp")
    asked = TraceQuery(
        tags=tuple(given.get("tags", ())),
        since=_hours_back(given, now) if since is None else since,
        until=_timestamp(given, "to_timestamp"),
        limit=_whole(given, "limit", 100),
    )
    return asked, _one(given, "include_payloads").lower() in ("true", "1")


def decode_status_query(query: str) -> str:
    """The rollout that GET /status asks for. `InvalidInput`."""
    rollout_id = _one(_given(query, frozenset({"rollout_id"})), "rollout_id")
    if not rollout_id:
        raise errors.InvalidInput("rollout_id", "", "is required", remedy="?rollout_id=ID")
    return rollout_id


def _object(fields: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, dict):
        raise errors.InvalidInput(name, value, "must be an object or null")
    return value


def _code(status: Mapping[str, Any] | None) -> int | None:
    """A status without a code is none, as eval-protocol's own handler may send it."""
    code = (status or {}).get("code")
    if code is None:
        return None
    if type(code) is not int or not 0 <= code <= _MAX_CODE:
        raise errors.InvalidInput(
            "status.code", code, "is not a status code", remedy="use 0 to 16, or 100 to 103"
        )
    return code


def _tags(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise errors.InvalidInput(
            "tags", value, "must be a list of texts", remedy="as ['rollout_id:ID']"
        )
    return tuple(value)


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise errors.InvalidInput(name, value, "must be a text")
    return value or ""


def _severity(fields: Mapping[str, Any], extras: Mapping[str, Any]) -> str:
    """The entry's own, or the level that Python's logging gave it."""
    value = fields.get("severity") or extras.get("level")
    return value if isinstance(value, str) and value else "INFO"


def _given(query: str, known: frozenset[str]) -> dict[str, list[str]]:
    """The parameters by name. Raises `InvalidInput` for one that is not known."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise errors.InvalidInput("query", query, f"cannot be read: {error}") from None
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if name not in known:
            raise errors.InvalidInput(
                name, value, "is not known here", remedy="use " + ", ".join(sorted(known))
            )
        given.setdefault(name, []).append(value)
    return given


def _one(given: Mapping[str, Sequence[str]], name: str) -> str:
    return given.get(name, ("",))[-1]


def _whole(given: Mapping[str, Sequence[str]], name: str, default: int) -> int:
    text = _one(given, name)
    if text and not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise errors.InvalidInput(name, text, "must be a whole number")
    return int(text or default)


def _hours_back(given: Mapping[str, Sequence[str]], now: float) -> float | None:
    hours = _whole(given, "hours_back", 0)
    return now - 3600.0 * hours if hours else None


def _timestamp(given: Mapping[str, Sequence[str]], name: str) -> float | None:
    """A moment; one without a zone is in UTC."""
    text = _one(given, name)
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise errors.InvalidInput(
            name, text, "is not a moment", remedy="as 2026-01-31T12:00:00Z"
        ) from None


# ── answers ───────────────────────────────────────────────────────────────────────────────────


def encode_traces(calls: Sequence[TracedCall], *, project_id: str, with_payloads: bool) -> bytes:
    """A page of calls. `output` is the reply's message, which is what the clients read."""
    traces = [_trace(call) | (_payloads(call) if with_payloads else {}) for call in calls]
    return _encode(
        {"project_id": project_id or "default", "total_traces": len(traces), "traces": traces}
    )


def encode_logs(entries: Sequence[TracedLog]) -> bytes:
    """A page of entries."""
    return _encode({"entries": [_entry(entry) for entry in entries]})


def encode_status(rollout_id: str, entry: TracedLog | None) -> bytes:
    """How a rollout has ended, if it has."""
    status, extras = (None, None) if entry is None else (entry.status, entry.extras)
    return _encode({"rollout_id": rollout_id, "status": status, "extras": extras})


def _trace(call: TracedCall) -> dict[str, Any]:
    tools = {"tools": call.tools} if call.tools else {}
    return {
        "id": call.call_id,
        "name": "chat.completions",
        "timestamp": _rfc3339(call.at),
        "tags": call.tags,
        "input": {"messages": call.messages} | tools,
        "output": call.reply,
        "observations": [],
        "metadata": {
            "model": call.model,
            "start_time": _rfc3339(call.started_at),
            "end_time": _rfc3339(call.at),
            "finish_reason": call.finish_reason.value,
            "usage": {
                "prompt_tokens": len(call.prompt),
                "completion_tokens": len(call.completion),
                "total_tokens": len(call.prompt) + len(call.completion),
            },
        },
    }


def _entry(entry: TracedLog) -> dict[str, Any]:
    return {
        "timestamp": _rfc3339(entry.at),
        "message": entry.message,
        "severity": entry.severity,
        "program": entry.program,
        "tags": entry.tags,
        "status": entry.status,
        "extras": entry.extras,
    }


def _rfc3339(at: float) -> str:
    text = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
    return text.replace("+00:00", "Z")


# ── tokens, as eval_protocol.tracing reads them ───────────────────────────────────────────────

#: magic, version, flags, 0, tokens, bytes that follow, 0; then a token's id and logprob each.
_HEADER = np.dtype(
    [
        ("magic", "S4"),
        ("version", "u1"),
        ("flags", "u1"),
        ("zero", "<u2"),
        ("tokens", "<u4"),
        ("bytes", "<u4"),
        ("end", "<u8"),
    ]
)
_TOKEN = np.dtype([("id", "<i4"), ("logprob", "<f4")])


def _payloads(call: TracedCall) -> dict[str, Any]:
    prompt = _payload("pti/v1", len(call.prompt), _encode(call.prompt.tolist()))
    found = {"prompt_token_ids": prompt}
    if len(call.completion):  # the format has no way to say none
        found["logprobs"] = _payload("lp/v1", len(call.completion), _logprobs(call))
    return {"payloads": found}


def _payload(layout: str, tokens: int, data: bytes) -> dict[str, Any]:
    return {
        "manifest": {"format": layout, "encoding": "zstd+base64", "token_count": tokens},
        "data": base64.b64encode(zstd.frame(data)).decode(),
    }


def _logprobs(call: TracedCall) -> bytes:
    tokens = np.empty(len(call.completion), _TOKEN)
    tokens["id"], tokens["logprob"] = call.completion, call.logprobs
    body = tokens.tobytes()
    head = np.array((b"LP01", 1, 0, 0, len(tokens), len(body), 0), _HEADER)
    return head.tobytes() + body


# ── errors ────────────────────────────────────────────────────────────────────────────────────

#: An error's HTTP status and google.rpc code; the most specific class wins.
_FAULTS: dict[type[Exception], tuple[int, int]] = {
    errors.InvalidInput: (400, 3),
    errors.NotFound: (404, 5),
    errors.Unauthenticated: (401, 16),
    errors.AccessError: (403, 7),
    errors.LimitExceeded: (429, 8),
    errors.StorageFull: (507, 8),
    errors.Unavailable: (503, 14),
    Exception: (500, 13),
}


def encode_fault(error: Exception) -> tuple[int, bytes]:
    """Status and body; FireworksTracingAdapter shows `detail` to its user."""
    status, code = next(_FAULTS[kind] for kind in type(error).__mro__ if kind in _FAULTS)
    message = str(error) if isinstance(error, errors.TurnwiseError) else "internal error"
    return status, _encode({"code": code, "message": message, "detail": message})
