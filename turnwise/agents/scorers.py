"""Scorers: a Python function in threads of the server, or an HTTP endpoint.

Whatever a scorer does wrong becomes the `problem` of one `Score`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import reprlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from numbers import Real
from typing import Any

import aiohttp

from turnwise.agents.outcomes import excerpt
from turnwise.agents.outside import open_session, read_answer
from turnwise.agents.python import load
from turnwise.domain.evaluation import Finished, Score
from turnwise.domain.job import ScorerSpec
from turnwise.ports import Scorer

#: Scores under way at once, per scorer.
AT_ONCE = 16

#: A function that hangs keeps its thread for good; after so many it is not called again.
MAX_HANGING = 16

#: Waits before a further attempt, where an endpoint could not answer.
RETRY_WAITS_S = (0.5, 2.0)

#: Statuses below 500 that a later attempt may get past.
_TRANSIENT = frozenset({408, 425, 429})

#: Unlike `repr`, this bears objects whose own `__repr__` raises.
_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = 160

Sleep = Callable[[float], Awaitable[None]]


class _Problem(Exception):
    """Why there is no score, in words for the user."""


class _Transient(_Problem):
    """One that a later attempt may get past."""


def open_scorers(specs: Sequence[ScorerSpec]) -> list[Scorer]:
    """The scorers that a job asks for. Call it inside a running event loop; `close` them after use.

    Raises `InvalidInput` for a function that cannot be imported.
    """
    loaded = {
        place: load(spec.target, field=f"evaluation.scorers[{place}].target")
        for place, spec in enumerate(specs)
        if spec.target
    }
    return [
        PythonScorer(spec, loaded[place]) if place in loaded else HttpScorer(spec)
        for place, spec in enumerate(specs)
    ]


class _Scorer(ABC):
    """What both kinds do alike: a limit on calls at once, and an answer read as a score."""

    def __init__(self, spec: ScorerSpec) -> None:
        self.name = spec.name
        self._timeout_s = spec.timeout
        self._permits = asyncio.Semaphore(AT_ONCE)

    async def score(self, finished: Finished) -> Score:
        """Ask for the score of one rollout."""
        value, problem = None, ""
        async with self._permits:
            try:
                value = read_score(await self._ask(finished))
            except _Problem as error:
                problem = excerpt(str(error))
        return Score(scorer=self.name, rollout_id=finished.rollout_id, value=value, problem=problem)

    @abstractmethod
    async def close(self) -> None:
        """Free what it holds."""

    @abstractmethod
    async def _ask(self, finished: Finished) -> Any:
        """The answer as it came. Raises `_Problem`."""

    def _too_slow(self) -> str:
        return f"no answer in {self._timeout_s:g} s"


class PythonScorer(_Scorer):
    """Calls a function with one mapping (`Finished.body`), each time in a thread of its own.

        def judge(rollout: dict) -> float | {"score": float}

    Also an `async def`, which gets an event loop in that thread. A thread cannot be interrupted:
    after the time limit its result is ignored. The threads are daemons, so that none of them can
    keep the server from ending.
    """

    def __init__(self, spec: ScorerSpec, function: Callable[[Any], Any]) -> None:
        super().__init__(spec)
        self._function = function
        self._hanging: set[asyncio.Future[Any]] = set()

    async def close(self) -> None:
        """Nothing: a thread that still runs ends with its call."""

    async def _ask(self, finished: Finished) -> Any:
        if len(self._hanging) >= MAX_HANGING:
            raise _Problem(f"not called: {MAX_HANGING} earlier calls have not returned")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        body = finished.body()

        def settle(result: Any, error: BaseException | None) -> None:
            self._hanging.discard(answer)
            if answer.cancelled():
                return  # too late
            if error is not None:
                answer.set_exception(_Problem(f"raised {_SHORT.repr(error)}"))
            else:
                answer.set_result(result)

        def call() -> None:
            result, error = None, None
            try:
                result = self._function(body)
                if inspect.isawaitable(result):
                    result = asyncio.run(_awaited(result))
            except BaseException as raised:  # user code may raise anything, SystemExit too
                error = raised
            with suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(settle, result, error)

        threading.Thread(target=call, name=f"scorer {self.name}", daemon=True).start()
        try:
            return await asyncio.wait_for(answer, self._timeout_s)
        except TimeoutError:
            self._hanging.add(answer)
            raise _Problem(self._too_slow()) from None


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


class HttpScorer(_Scorer):
    """Posts the same mapping to an address, as JSON; the answer is a number or {"score": number}.

    A connection that fails, 429 and 5xx are tried again; `timeout` bounds each attempt.
    """

    def __init__(self, spec: ScorerSpec, *, sleep: Sleep = asyncio.sleep) -> None:
        super().__init__(spec)
        self._url = spec.url
        self._sleep = sleep
        timeout = aiohttp.ClientTimeout(total=spec.timeout)
        self._session = open_session(timeout=timeout)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _ask(self, finished: Finished) -> Any:
        try:
            body = json.dumps(finished.body()).encode()
        except (TypeError, ValueError) as error:
            raise _Problem(f"the rollout cannot be written as JSON: {error}") from None
        for wait_s in RETRY_WAITS_S:
            with suppress(_Transient):
                return await self._post(body)
            await self._sleep(wait_s)
        return await self._post(body)

    async def _post(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(self._url, data=body, headers=headers) as response:
                return _answer(response.status, await read_answer(response))
        except TimeoutError:
            raise _Transient(self._too_slow()) from None
        except aiohttp.ClientError as error:
            raise _Transient(f"cannot be reached: {error or type(error).__name__}") from None


def _answer(status: int, body: bytes) -> Any:
    text = body.decode(errors="replace")
    if status != 200:
        kind = _Transient if status >= 500 or status in _TRANSIENT else _Problem
        raise kind(f"answered {status}: {text}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _Problem(f"answered no JSON: {text}") from None


def read_score(answer: Any) -> float:
    """The number in an answer: itself, or its `score`. True and False are 1 and 0."""
    value = answer.get("score") if isinstance(answer, Mapping) else answer
    if not isinstance(value, Real):
        raise _Problem(f"gave no number: {_SHORT.repr(answer)}")
    try:
        number = float(value)
    except (OverflowError, ValueError, TypeError):
        raise _Problem(f"gave no number: {_SHORT.repr(answer)}") from None
    if not math.isfinite(number):
        raise _Problem(f"gave {number}, which is not a finite number")
    return number
