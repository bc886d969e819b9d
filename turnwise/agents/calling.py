"""One HTTP session for calls of agents, whatever their contract."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import urlsplit

import aiohttp

from turnwise import errors
from turnwise.agents.contracts import (
    Answer,
    complaint,
    health_url,
    invoke_url,
    session_headers,
)
from turnwise.agents.outside import NotAllowed, check_host, open_session, read_answer
from turnwise.domain.job import AgentSpec

#: Long enough for an agent that is still importing its framework, short enough to wait for.
HEALTH_TIMEOUT_S = 10.0

_JSON = {"Content-Type": "application/json"}


class Caller:
    """Calls agents; its session is made at the first call, which is inside a running event loop.

    Whoever uses it limits how many calls run at once, so connections are not limited here.
    """

    def __init__(self) -> None:
        self._opened: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            self._opened = open_session()
        return self._opened

    async def check(self, spec: AgentSpec) -> None:
        """Raise `Unavailable` with the remedy unless the agent says that it is up."""
        url = health_url(spec)
        if not url:
            await _connect(spec)
            return
        timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_S)
        try:
            async with self._session.get(url, timeout=timeout) as response:
                answer = await _answer(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _out_of_reach(spec, f"GET {url}", error) from error
        if wrong := complaint(spec, answer):
            raise errors.Unavailable(f"the agent is not healthy: GET {url} {wrong}")

    async def invoke(
        self,
        spec: AgentSpec,
        body: bytes,
        *,
        session: str,
        timeout_s: float,
        headers: Mapping[str, str] = _JSON,
    ) -> Answer:
        """Post one payload. Raises `TooSlow` and `Unavailable`; any answer is an answer."""
        url = invoke_url(spec)
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        sent = {**headers, **session_headers(spec, session)}
        try:
            async with self._session.post(
                url, data=body, headers=sent, timeout=timeout
            ) as response:
                return await _answer(response)
        except TimeoutError as error:
            raise errors.TooSlow(f"POST {url} did not answer in {timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            raise errors.Unavailable(f"POST {url}: {_reason(error)}") from error

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            await self._opened.close()


async def _answer(response: aiohttp.ClientResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(status=response.status, body=await read_answer(response), headers=headers)


async def _connect(spec: AgentSpec) -> None:
    parts = urlsplit(spec.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            _, writer = await asyncio.open_connection(parts.hostname, port)
        check_host(writer.get_extra_info("peername")[0])
    except (OSError, TimeoutError, NotAllowed) as error:
        raise _out_of_reach(spec, f"connecting to {spec.url}", error) from error
    writer.close()


def _out_of_reach(spec: AgentSpec, what: str, error: BaseException) -> errors.Unavailable:
    remedy = "start it, or correct agent.url"
    if spec.name:
        remedy = f"start it, or register agent {spec.name} with the URL where it is now"
    return errors.Unavailable(f"the agent cannot be reached: {what}: {_reason(error)}; {remedy}")


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
