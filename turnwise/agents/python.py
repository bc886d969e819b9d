"""An agent that is a Python function, run in the server's own process."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from turnwise import errors
from turnwise.agents.outcomes import answered, as_they_finish, excerpt, failed
from turnwise.ports import AgentOutcome, AgentRequest

#: An upper bound for threads of synchronous agents; the job's concurrency limit is what counts.
MAX_THREADS = 256


class PythonAgent:
    """Calls `target` ("package.module:function") once per rollout.

        async def rollout(request: AgentRequest) -> Mapping | None

    The function talks to `request.endpoint` itself, as an agent outside would; what it returns is
    read like the body of an HTTP agent's response. A plain `def` runs in a thread, which cannot
    be interrupted: after the deadline its result is ignored.
    """

    def __init__(self, target: str) -> None:
        self._function = load(target)
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
                return answered(request, await self._result(request))
        except Exception as error:  # user code may raise anything; it becomes the rollout's fault
            if isinstance(error, TimeoutError) and limit.expired():
                return failed(
                    request, "deadline", f"the agent did not return in {request.timeout_s:g} s"
                )
            return failed(request, "agent_error", excerpt(f"{type(error).__name__}: {error}"))

    async def _result(self, request: AgentRequest) -> Any:
        if inspect.iscoroutinefunction(self._function):
            return await self._function(request)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._function, request)


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
