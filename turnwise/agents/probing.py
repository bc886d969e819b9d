"""Calls of agents for somebody who tries them out, rather than for a job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from turnwise import errors
from turnwise.agents.calling import Caller
from turnwise.agents.contracts import Answer, payload, without_endpoint
from turnwise.domain.agent import AgentLogKind
from turnwise.domain.job import AgentSpec
from turnwise.domain.rollout import SamplingParams
from turnwise.ports import AgentLog, AgentRequest

#: How long an agent may take for a call that belongs to no job: as long as AWS's own limits.
INVOKE_TIMEOUT_S = 900.0

#: How long a test waits: the agent's call of a rollout that does not exist fails soon.
PROBE_TIMEOUT_S = 60.0

#: What of an answer a test shows.
_SHOWN = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a test of an agent found. `problem` is "" if it is healthy and was reached.

    An agent that was reached may well answer with an error: the rollout of a test does not exist,
    so what it asks of the service is refused.
    """

    is_healthy: bool
    is_reached: bool
    status: int = 0  # of the invocation's answer
    answer: str = ""
    seconds: float = 0.0
    problem: str = ""


class AgentCalls:
    """Invokes agents outside of jobs; `close` it after use."""

    def __init__(self) -> None:
        self._caller = Caller()
        self._running: dict[asyncio.Task[Answer], tuple[AgentSpec, str]] = {}  # with its session

    async def invoke(
        self,
        spec: AgentSpec,
        body: bytes,
        log: AgentLog,
        *,
        session: str,
        timeout_s: float = INVOKE_TIMEOUT_S,
        content_type: str = "application/json",
    ) -> Answer:
        """Post one payload; the agent's log tells of it.

        Raises `TooSlow`, `Unavailable`, and `Conflict` when the session was stopped meanwhile.
        """
        task = asyncio.create_task(
            self._invoke(spec, body, log, session, timeout_s, content_type), name="invoke agent"
        )
        self._running[task] = (spec, session)
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            del self._running[task]
        if task.cancelled():
            raise errors.Conflict(f"session {session} was stopped")
        return task.result()

    def invoke_soon(self, spec: AgentSpec, body: bytes, log: AgentLog, *, session: str) -> None:
        """Post one payload and do not wait for the answer, which only the log tells of."""
        work = self._invoke(spec, body, log, session, INVOKE_TIMEOUT_S, "application/json")
        task = asyncio.create_task(work, name="invoke agent")
        self._running[task] = (spec, session)
        task.add_done_callback(self._forget)

    def stop(self, spec: AgentSpec, session: str) -> None:
        """End the calls of a session that are under way."""
        for task, running in self._running.items():
            if running == (spec, session):
                task.cancel()

    def _forget(self, task: asyncio.Task[Answer]) -> None:
        self._running.pop(task, None)
        if not task.cancelled():
            task.exception()  # the log has it

    async def _invoke(
        self,
        spec: AgentSpec,
        body: bytes,
        log: AgentLog,
        session: str,
        timeout_s: float,
        content_type: str,
    ) -> Answer:
        log.note(AgentLogKind.RECEIVED, _shown(body))
        try:
            answer = await self._caller.invoke(
                spec,
                body,
                session=session,
                timeout_s=timeout_s,
                headers={"Content-Type": content_type},
            )
        except errors.Unavailable as error:
            log.note(AgentLogKind.FAILED, str(error))
            raise
        for line in answer.printed.splitlines():
            log.note(AgentLogKind.PRINTED, line)
        log.note(AgentLogKind.ANSWERED, f"{answer.status} {answer.text}")
        return answer

    async def probe(self, spec: AgentSpec, log: AgentLog, *, endpoint: str, job_arn: str) -> Probe:
        """Ask for its health, then send it a rollout that does not exist."""
        problem = ""
        try:
            await self._caller.check(spec)
        except errors.Unavailable as error:
            problem = str(error)
        clock = asyncio.get_running_loop().time
        begun = clock()
        body = json.dumps(payload(_dummy(endpoint, job_arn))).encode()
        try:
            answer = await self.invoke(
                spec, body, log, session="rollout_test", timeout_s=PROBE_TIMEOUT_S
            )
        except errors.Unavailable as error:
            return Probe(
                is_healthy=not problem,
                is_reached=False,
                seconds=clock() - begun,
                problem=problem or str(error),
            )
        return Probe(
            is_healthy=not problem,
            is_reached=True,
            status=answer.status,
            answer=answer.text[:_SHOWN],
            seconds=clock() - begun,
            problem=problem,
        )

    async def close(self) -> None:
        """End what runs, and close the connections."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._caller.close()


def _dummy(endpoint: str, job_arn: str) -> AgentRequest:
    return AgentRequest(
        rollout_id="rollout_test",
        job_id="",
        job_arn=job_arn,
        endpoint=endpoint,
        prompt="test",
        fields={},
        sampling=SamplingParams(max_tokens=16),
        timeout_s=PROBE_TIMEOUT_S,
    )


def _shown(body: bytes) -> str:
    """A payload as its agent's log keeps it."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace")
    if isinstance(value, Mapping):
        return json.dumps(without_endpoint(value), ensure_ascii=False)
    return body.decode(errors="replace")
