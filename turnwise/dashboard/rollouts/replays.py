"""A turn's request as a command that asks this server again. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from turnwise.domain.rollout import Message, Turn


def request_body(
    model: str,
    messages: Sequence[Message],
    turn: Turn,
    tools: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The request, with the sampling that the turn had; its randomness is not repeated."""
    sampling = turn.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": [dict(message) for message in messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    return body | ({"tools": [dict(tool) for tool in tools]} if tools else {})


def curl(url: str, body: Mapping[str, Any]) -> str:
    r"""For a POSIX shell; the key is what $TURNWISE_KEY holds.

    >>> print(curl("http://localhost:1", {"model": "it's"}))
    curl -sS http://localhost:1/v1/chat/completions \
      -H "Authorization: Bearer $TURNWISE_KEY" \
      -H 'Content-Type: application/json' \
      -d '{"model": "it'"'"'s"}'
    """
    lines = [
        f"curl -sS {shlex.quote(url + '/v1/chat/completions')}",
        '-H "Authorization: Bearer $TURNWISE_KEY"',
        "-H 'Content-Type: application/json'",
        f"-d {shlex.quote(json.dumps(body))}",
    ]
    return " \\\n  ".join(lines)
