"""What every runner does alike: many rollouts at once, and an agent's answer read as an outcome."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, SupportsFloat

from turnwise import errors
from turnwise.domain.rollout import ACCESS_DENIED, Blame, Fault
from turnwise.ports import AgentOutcome, AgentRequest

#: Error types of a Lambda-style answer that come back however often one asks.
_PERMANENT_ERRORS = frozenset({"ValidationError"})

#: Those that refuse the service itself.
_DENIALS = frozenset({"AccessDenied", "AccessDeniedException"})

#: How much of an agent's answer a fault quotes: enough for the last line of a traceback.
EXCERPT_CHARS = 200


async def as_they_finish(
    requests: Sequence[AgentRequest], run_one: Callable[[AgentRequest], Awaitable[AgentOutcome]]
) -> AsyncIterator[AgentOutcome]:
    """Run all requests at once and yield outcomes as they come. Closing it cancels the rest."""
    tasks = [asyncio.ensure_future(run_one(request)) for request in requests]
    try:
        for finished in asyncio.as_completed(tasks):
            yield await finished
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def failed(
    request: AgentRequest, code: str, message: str, *, retryable: bool = True
) -> AgentOutcome:
    """An outcome that blames the agent."""
    fault = Fault(blame=Blame.AGENT, code=code, message=message, retryable=retryable)
    return AgentOutcome(rollout_id=request.rollout_id, fault=fault)


def denied(request: AgentRequest, said: str) -> AgentOutcome:
    """An outcome that ends the job: the agent would refuse every other rollout too."""
    message = f"the agent refuses to be called: {said}; let it accept this service's calls"
    return failed(request, ACCESS_DENIED, message, retryable=False)


def answered(request: AgentRequest, answer: Any) -> AgentOutcome:
    """Read what the agent gave back: `errorType` is a failure, numbers in `metrics` are kept.

    Anything else is accepted, for an agent may answer at once and work on (contract: the reward
    comes by the data plane).
    """
    if not isinstance(answer, Mapping):
        return AgentOutcome(rollout_id=request.rollout_id)
    if kind := answer.get("errorType"):
        said = f"{kind}: {answer.get('errorMessage', '')}"
        if str(kind) in _DENIALS:
            return denied(request, excerpt(said))
        return failed(
            request, "agent_error", excerpt(said), retryable=str(kind) not in _PERMANENT_ERRORS
        )
    return AgentOutcome(rollout_id=request.rollout_id, metrics=_numbers(answer.get("metrics")))


def rewards_of(answer: Any) -> tuple[float, ...] | None:
    """The reward in an agent's answer: a number, or a list of one per turn; None without one.

    >>> rewards_of({"reward": 1}), rewards_of({"reward": [0.5, 1.0]}), rewards_of({})
    ((1.0,), (0.5, 1.0), None)

    Raises `InvalidInput` for anything else.
    """
    given = answer.get("reward") if isinstance(answer, Mapping) else None
    if given is None:
        return None
    values = given if isinstance(given, list | tuple) else [given]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, SupportsFloat):
            raise errors.InvalidInput(
                "reward", given, "is no number and no list of numbers", remedy="return one of them"
            )
    return tuple(float(value) for value in values)


def excerpt(text: str) -> str:
    """A piece of text short enough to quote, on one line."""
    line = " ".join(_storable(text).split())
    return line if len(line) <= EXCERPT_CHARS else line[: EXCERPT_CHARS - 3] + "..."


def _numbers(metrics: Any) -> dict[str, float]:
    if not isinstance(metrics, Mapping):
        return {}
    return {
        _storable(str(name)): float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and abs(value) <= sys.float_info.max
    }


def _storable(text: str) -> str:
    """JSON can spell half a character, which no UTF-8 can; it becomes a question mark."""
    return text.encode("utf-8", "replace").decode()
