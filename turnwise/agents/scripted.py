"""A fake agent, shipped for tests and benches: it plays a script that stands in the row."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

import aiohttp

from turnwise import errors
from turnwise.agents.outcomes import as_they_finish, denied, excerpt, failed
from turnwise.ports import AgentOutcome, AgentRequest


class Behaviour(StrEnum):
    """What the agent does with one rollout."""

    PLAY = "play"
    ANSWER_500 = "answer_500"  # fails at once, as a crashing server does
    DENY = "deny"  # refuses to be called
    HANG = "hang"  # never answers
    NO_REWARD = "no_reward"  # plays and completes, but never reports a reward
    ABORT = "abort"  # plays, then says that the rollout failed


class Call(Protocol):
    """Sends one request of the agent: `path` below the rollout's endpoint, a JSON body."""

    def __call__(
        self, request: AgentRequest, path: str, body: Mapping[str, Any]
    ) -> Awaitable[Mapping[str, Any]]:
        """The JSON reply."""
        ...

    async def close(self) -> None:
        """Free what it holds."""
        ...


class HttpCall:
    """Calls over HTTP, as an agent outside does."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def __call__(
        self, request: AgentRequest, path: str, body: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """POST `{endpoint}{path}`. Raises `Unavailable` for any answer but 200."""
        async with self._session.post(f"{request.endpoint}{path}", json=body) as response:
            if response.status != 200:
                said = excerpt(await response.text())
                raise errors.Unavailable(f"{path} answered {response.status}: {said}")
            reply: Mapping[str, Any] = await response.json(content_type=None)
            return reply

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


def always(behaviour: Behaviour) -> Callable[[AgentRequest], Behaviour]:
    """The same behaviour for every rollout."""
    return lambda request: behaviour


plays = always(Behaviour.PLAY)


def at_once(request: AgentRequest) -> float:
    """No latency."""
    return 0.0


def log_normal(median_s: float, sigma: float, *, seed: int = 0) -> Callable[[AgentRequest], float]:
    """Latencies with that median and log-standard-deviation, fixed per rollout id."""

    def latency(request: AgentRequest) -> float:
        draw = random.Random(f"{seed}/{request.rollout_id}")
        return draw.lognormvariate(math.log(median_s), sigma)

    return latency


class ScriptedAgent:
    """Says the row's prompt, then each message of the row's `script`, then reports its `reward`.

        {"prompt": "Count", "script": ["Again", "Once more"], "reward": 0.5}

    gives three turns and the reward 0.5 (1.0 where the row has none). `latency` in seconds is
    waited before each turn, by `sleep`; `behaviour` may fail or hang chosen rollouts.
    """

    def __init__(
        self,
        call: Call,
        *,
        behaviour: Callable[[AgentRequest], Behaviour] = plays,
        reward: Callable[[AgentRequest, Sequence[str]], float] | None = None,
        latency: Callable[[AgentRequest], float] = at_once,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._call = call
        self._behaviour = behaviour
        self._reward = reward or (lambda request, replies: float(request.fields.get("reward", 1)))
        self._latency = latency
        self._sleep = sleep

    async def check(self) -> None:
        """A script is always there."""

    def run(self, requests: Sequence[AgentRequest]) -> AsyncIterator[AgentOutcome]:
        """Play every request's script."""
        return as_they_finish(requests, self._play)

    async def close(self) -> None:
        """Close what it calls through."""
        await self._call.close()

    async def _play(self, request: AgentRequest) -> AgentOutcome:
        behaviour = self._behaviour(request)
        if behaviour is Behaviour.ANSWER_500:
            return failed(request, "http_error", "the agent answered 500: scripted")
        if behaviour is Behaviour.DENY:
            return denied(request, "the agent answered 403: scripted")
        if behaviour is Behaviour.HANG:
            await asyncio.get_running_loop().create_future()
        try:
            replies = await self._talk(request)
            await self._report(request, behaviour, replies)
        except (errors.TurnwiseError, aiohttp.ClientError) as error:
            return failed(request, "agent_error", excerpt(str(error)))
        return AgentOutcome(rollout_id=request.rollout_id, metrics={"replies": float(len(replies))})

    async def _talk(self, request: AgentRequest) -> list[str]:
        messages: list[dict[str, Any]] = []
        replies: list[str] = []
        for text in (request.prompt, *request.fields.get("script", ())):
            if delay := self._latency(request):
                await self._sleep(delay)
            messages.append({"role": "user", "content": text})
            body = {"model": "default", "messages": messages}
            reply = await self._call(request, "/v1/chat/completions", body)
            message = reply["choices"][0]["message"]
            messages.append(message)
            replies.append(message.get("content") or "")
        return replies

    async def _report(
        self, request: AgentRequest, behaviour: Behaviour, replies: Sequence[str]
    ) -> None:
        subject = {"JobArn": request.job_arn, "TrajectoryId": request.rollout_id}
        status = "failed" if behaviour is Behaviour.ABORT else "ready"
        await self._call(request, "/complete-rollout", {**subject, "Status": status})
        if behaviour is Behaviour.PLAY:
            rewards = [self._reward(request, replies)]
            await self._call(request, "/update-reward", {**subject, "Rewards": rewards})
