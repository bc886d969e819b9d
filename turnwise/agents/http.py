"""An agent behind HTTP: `POST {url}/rollout` starts a rollout, `GET {url}/health` says it is up."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp

from turnwise import errors
from turnwise.agents.outcomes import answered, as_they_finish, excerpt, failed
from turnwise.ports import AgentOutcome, AgentRequest

#: Long enough for an agent that is still importing its framework, short enough to wait for.
HEALTH_TIMEOUT_S = 10.0

#: Statuses below 500 that a later attempt may get past.
_TRANSIENT = frozenset({408, 425, 429})


class HttpAgent:
    """Reaches one agent over HTTP. Made inside a running event loop, for it holds a session.

    The loop limits how many rollouts run at once, so connections are not limited here.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def check(self) -> None:
        """Raise `Unavailable` unless `GET {url}/health` answers 200."""
        url = f"{self._url}/health"
        timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_S)
        try:
            async with self._session.get(url, timeout=timeout) as response:
                if response.status != 200:
                    raise errors.Unavailable(
                        f"the agent is not healthy: GET {url} answered {response.status}; "
                        "it must answer 200"
                    )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise errors.Unavailable(
                f"the agent cannot be reached: GET {url}: {_reason(error)}; "
                "start it, or correct agent.url"
            ) from error

    def run(self, requests: Sequence[AgentRequest]) -> AsyncIterator[AgentOutcome]:
        """Post every request and yield each outcome as its response comes."""
        return as_they_finish(requests, self._post)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _post(self, request: AgentRequest) -> AgentOutcome:
        url = f"{self._url}/rollout"
        timeout = aiohttp.ClientTimeout(total=request.timeout_s)
        try:
            async with self._session.post(url, json=payload(request), timeout=timeout) as response:
                return read_response(request, url, response.status, await response.read())
        except TimeoutError:
            return failed(
                request, "deadline", f"POST {url} did not answer in {request.timeout_s:g} s"
            )
        except aiohttp.ClientError as error:
            return failed(request, "unreachable", f"POST {url}: {_reason(error)}")


def payload(request: AgentRequest) -> dict[str, Any]:
    """The body of a dispatch: the union of both spellings in use (contract §4)."""
    sampling = request.sampling
    return {
        "prompt": request.prompt,
        "instance": {**request.fields, "prompt": request.prompt},
        "metadata": {
            "jobArn": request.job_arn,
            "job_arn": request.job_arn,
            "rolloutId": request.rollout_id,
            "rollout_id": request.rollout_id,
            "trajectoryId": request.rollout_id,
            "trajectory_id": request.rollout_id,
            "endpoint": request.endpoint,
            "region": "us-west-2",
        },
        "inferenceParams": {
            "temperature": sampling.temperature,
            "topP": sampling.top_p,
            "maxTokens": sampling.max_tokens,
        },
        "inference_params": {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        },
    }


def read_response(request: AgentRequest, url: str, status: int, body: bytes) -> AgentOutcome:
    """The outcome that a response says. A body that is no JSON is a plain acceptance."""
    text = body.decode(errors="replace")
    if status >= 400:
        return failed(
            request,
            "http_error",
            f"POST {url} answered {status}: {excerpt(text)}",
            retryable=status >= 500 or status in _TRANSIENT,
        )
    try:
        return answered(request, json.loads(text))
    except (ValueError, RecursionError):
        return answered(request, None)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
