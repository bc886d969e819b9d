"""What a remote rollout leaves at the tracing gateway: calls and log entries, found by their tags.

A tag is a text, by convention "name:value" ("rollout_id:calm-river-12"); it matches as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from turnwise.domain.rollout import FinishReason, Floats, Message, Tokens

#: The one status code of eval-protocol that says: not ended yet.
RUNNING = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedCall:
    """A model call outside this server's own rollouts, token for token.

    Times are in seconds since the epoch; `seq` counts over all accounts, given by the store.
    """

    account_id: str
    call_id: str
    tags: tuple[str, ...]
    at: float  # its reply was complete
    started_at: float
    model: str  # as the caller named it
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    reply: Message
    finish_reason: FinishReason
    prompt: Tokens  # [P] given to the model
    completion: Tokens  # [C] that it chose
    logprobs: Floats  # [C] of each choice
    seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedLog:
    """A log entry of a remote rollout; one with a status says how the rollout is doing.

    `status` is eval-protocol's: {"code", "message", "details"}; its code is `status_code` too.
    """

    account_id: str
    tags: tuple[str, ...]
    at: float
    program: str
    message: str
    severity: str = "INFO"
    status_code: int | None = None
    status: Mapping[str, Any] | None = None
    extras: Mapping[str, Any] | None = None
    seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceQuery:
    """Which calls or entries: those with all of `tags`, the newest first.

    `since` and `until` bound the time (until itself excluded), `before` the `seq`. The last two
    are of entries alone: `program`, and `ended` for those whose status says that it is over.
    """

    tags: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None
    before: int | None = None
    limit: int = 100
    program: str = ""
    ended: bool = False
