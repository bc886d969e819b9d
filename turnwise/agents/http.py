"""An agent behind HTTP, in one of the three contracts of `contracts`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence

from turnwise import errors
from turnwise.agents.calling import Caller
from turnwise.agents.contracts import Answer, invoke_url, payload, without_endpoint
from turnwise.agents.outcomes import answered, as_they_finish, denied, excerpt, failed
from turnwise.domain.agent import AgentLogKind
from turnwise.domain.job import AgentSpec
from turnwise.ports import AgentLog, AgentOutcome, AgentRequest

#: Statuses below 500 that a later attempt may get past.
_TRANSIENT = frozenset({408, 425, 429})

_DENIED = frozenset({401, 403})


class HttpAgent:
    """Reaches one agent over HTTP. `close` it after use.

    `log`, where given, is told what the agent gets and answers.
    """

    def __init__(self, spec: AgentSpec, log: AgentLog | None = None) -> None:
        self._spec = spec
        self._log = log
        self._caller = Caller()

    async def check(self) -> None:
        """Raise `Unavailable` unless the agent says that it is up."""
        await self._caller.check(self._spec)

    def run(self, requests: Sequence[AgentRequest]) -> AsyncIterator[AgentOutcome]:
        """Post every request and yield each outcome as its response comes."""
        return as_they_finish(requests, self._post)

    async def close(self) -> None:
        """Close the connections."""
        await self._caller.close()

    async def _post(self, request: AgentRequest) -> AgentOutcome:
        body = payload(request)
        self._note_received(request, body)
        try:
            answer = await self._caller.invoke(
                self._spec,
                json.dumps(body).encode(),
                session=request.rollout_id,
                timeout_s=request.timeout_s,
            )
        except errors.TooSlow as error:
            outcome = failed(request, "deadline", str(error))
        except errors.Unavailable as error:
            outcome = failed(request, "unreachable", str(error))
        else:
            outcome = read_answer(request, self._spec, answer)
            self._note_answered(request, answer)
        if outcome.fault is not None:
            self._note(AgentLogKind.FAILED, outcome.fault.message, request)
        return outcome

    def _note_received(self, request: AgentRequest, body: object) -> None:
        if self._log is not None:
            text = json.dumps(without_endpoint(body), ensure_ascii=False)
            self._note(AgentLogKind.RECEIVED, text, request)

    def _note_answered(self, request: AgentRequest, answer: Answer) -> None:
        for line in answer.printed.splitlines():
            self._note(AgentLogKind.PRINTED, line, request)
        self._note(AgentLogKind.ANSWERED, f"{answer.status} {answer.text}", request)

    def _note(self, kind: AgentLogKind, text: str, request: AgentRequest) -> None:
        if self._log is not None:
            self._log.note(kind, text, rollout_id=request.rollout_id, job_id=request.job_id)


def read_answer(request: AgentRequest, spec: AgentSpec, answer: Answer) -> AgentOutcome:
    """The outcome that an answer says. A body that is no JSON is a plain acceptance."""
    said = f"POST {invoke_url(spec)} answered {answer.status}: {excerpt(answer.text)}"
    if answer.status in _DENIED:
        return denied(request, said)
    if answer.status >= 400:
        is_passing = answer.status >= 500 or answer.status in _TRANSIENT
        return failed(request, "http_error", said, retryable=is_passing)
    outcome = answered(request, answer.value)
    if outcome.fault is None and answer.function_error:
        return failed(request, "agent_error", f"{answer.function_error} error: {said}")
    return outcome
