"""An agent that is a Python function, run in the server's own process."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from turnwise import errors
from turnwise.agents.outcomes import answered, as_they_finish, excerpt, failed, rewards_of
from turnwise.ports import AgentDoor, AgentOutcome, AgentRequest

#: An upper bound for threads of synchronous agents; the job's concurrency limit is what counts.
MAX_THREADS = 256


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PythonRollout(AgentRequest):
    """The rollout that a function works on, and its model without HTTP in between."""

    door: AgentDoor = dataclasses.field(repr=False, compare=False)

    @classmethod
    def of(cls, request: AgentRequest, door: AgentDoor) -> PythonRollout:
        """A request with a door."""
        fields = {name: getattr(request, name) for name in _FIELDS}
        return cls(**fields, door=door)

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], *, model: str = "default", **params: Any
    ) -> Mapping[str, Any]:
        """One model call: OpenAI's parameters in (`tools`, `temperature` ...), its reply out.

            reply = await rollout.chat(messages, tools=TOOLS)
            message = reply["choices"][0]["message"]

        The reply is whole: it cannot be streamed. Raises `InvalidInput` naming the parameter that
        is wrong, `PromptTooLong`, `NotInValidStatus` once the rollout is over, and what else a
        call over HTTP would be answered with.
        """
        if params.get("stream"):
            raise errors.InvalidInput(
                "stream", True, "is not possible in process", remedy="call request.endpoint"
            )
        body = {"model": model, "messages": messages, **params}
        return await self.door.chat(self.rollout_id, body)


_FIELDS = tuple(field.name for field in dataclasses.fields(AgentRequest))


class PythonAgent:
    """Calls `target` ("package.module:function") once per rollout.

        async def rollout(request: PythonRollout) -> Mapping | None:
            reply = await request.chat([{"role": "user", "content": request.prompt}])
            return {"reward": grade(reply), "metrics": {"words": 3}}

    `reward` (a number, or one per turn) completes the rollout. Without one the function reports
    for itself at `request.endpoint`, as an agent outside would; the rest of what it returns is
    read like the body of an HTTP agent's response. A plain `def` runs in a thread, from where it
    can call `request.endpoint` only, and which cannot be interrupted: after the deadline its
    result is ignored.
    """

    def __init__(self, target: str, door: AgentDoor) -> None:
        self._function = load(target)
        self._door = door
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="agent")

    async def check(self) -> None:
        """A function that could be imported can be reached."""

    def run(self, requests: Sequence[AgentRequest]) -> AsyncIterator[AgentOutcome]:
        """Call the function for every request and yield each outcome as it returns."""
        return as_they_finish(requests, self._call)

    async def close(self) -> None:
        """Start no more threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _call(self, request: AgentRequest) -> AgentOutcome:
        try:
            async with asyncio.timeout(request.timeout_s) as limit:
                answer = await self._result(PythonRollout.of(request, self._door))
                return await self._reported(request, answer)
        except Exception as error:  # user code may raise anything; it becomes the rollout's fault
            if isinstance(error, TimeoutError) and limit.expired():
                return failed(
                    request, "deadline", f"the agent did not return in {request.timeout_s:g} s"
                )
            return failed(request, "agent_error", excerpt(f"{type(error).__name__}: {error}"))

    async def _result(self, request: PythonRollout) -> Any:
        if inspect.iscoroutinefunction(self._function):
            return await self._function(request)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._function, request)

    async def _reported(self, request: AgentRequest, answer: Any) -> AgentOutcome:
        """Pass on the reward in an answer, with its metrics; the outcome."""
        outcome = answered(request, answer)
        rewards = rewards_of(answer)
        if outcome.fault is not None or rewards is None:
            return outcome
        await self._door.report(request.rollout_id, rewards, outcome.metrics)
        return AgentOutcome(rollout_id=request.rollout_id)


def load(target: str, *, field: str = "agent.target") -> Callable[[Any], Any]:
    """Import "package.module:function". Raises `InvalidInput` for `field`, with what is missing."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise errors.InvalidInput(
            field, target, "names no function", remedy='use "package.module:function"'
        )
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # the user's module may raise anything as it is imported
        is_missing = isinstance(error, ImportError | AttributeError)
        reason = f"{error}" if is_missing else f"{type(error).__name__}: {error}"
        raise errors.InvalidInput(
            field,
            target,
            f"cannot be imported ({reason})",
            remedy="install it where the server runs",
        ) from error
    if not callable(function):
        raise errors.InvalidInput(field, target, "is not a function")
    return function  # type: ignore[no-any-return]  # narrowed by callable() only
