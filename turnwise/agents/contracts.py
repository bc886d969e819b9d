"""How an agent of each contract is called, and what its answers say. Pure (contract §4).

http       POST {url}/rollout        GET {url}/health -> 200
agentcore  POST {url}/invocations    GET {url}/ping   -> {"status": "Healthy" | "HealthyBusy"}
lambda     POST {url}/2015-03-31/functions/function/invocations, the path of the Lambda runtime
           interface emulator; a URL with a path of its own is called as it is. It has no path
           for its health: it is up when it takes connections.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from turnwise.domain.job import AgentKind, AgentSpec
from turnwise.ports import AgentRequest

EMULATOR = "/2015-03-31/functions/function/invocations"
SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"

_INVOKE = {AgentKind.HTTP: "/rollout", AgentKind.AGENTCORE: "/invocations"}
_HEALTH = {AgentKind.HTTP: "/health", AgentKind.AGENTCORE: "/ping"}
_UP = ("healthy", "healthybusy")

#: AgentCore takes session ids of 33 to 256 characters.
_SHORTEST_SESSION = 33


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An agent's answer over HTTP; header names in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")

    @property
    def value(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def function_error(self) -> str:
        """What kind of error a Lambda function ended with: "" for none.

        The emulator sets no header for an exception; its body has the traceback then.
        """
        header = self.headers.get("x-amz-function-error", "")
        value = self.value
        is_raised = isinstance(value, Mapping) and {"errorType", "stackTrace"} <= value.keys()
        return header or ("Unhandled" if is_raised else "")

    @property
    def printed(self) -> str:
        """The end of what a Lambda function printed, where it was sent along."""
        try:
            tail = base64.b64decode(self.headers.get("x-amz-log-result", ""))
        except (binascii.Error, ValueError):
            return ""
        return tail.decode(errors="replace")


def invoke_url(spec: AgentSpec) -> str:
    """Where a rollout is posted to.

    >>> invoke_url(AgentSpec(kind=AgentKind.LAMBDA, url="http://127.0.0.1:9000"))
    'http://127.0.0.1:9000/2015-03-31/functions/function/invocations'
    >>> invoke_url(AgentSpec(kind=AgentKind.LAMBDA, url="http://127.0.0.1:9000/handler"))
    'http://127.0.0.1:9000/handler'
    """
    url = spec.url.rstrip("/")
    if spec.kind is AgentKind.LAMBDA:
        return url if urlsplit(url).path else url + EMULATOR
    return url + _INVOKE[spec.kind]


def health_url(spec: AgentSpec) -> str:
    """What is asked for the agent's health; "" where there is no such path."""
    path = _HEALTH.get(spec.kind)
    return spec.url.rstrip("/") + path if path else ""


def complaint(spec: AgentSpec, answer: Answer) -> str:
    """What is wrong with an answer to the question for its health; "" if it is healthy."""
    if answer.status != 200:
        return f"answered {answer.status}; it must answer 200"
    value = answer.value
    status = value.get("status") if isinstance(value, Mapping) else None
    if spec.kind is AgentKind.AGENTCORE and str(status).lower() not in _UP:
        return f"answered status {status!r}; it must be Healthy or HealthyBusy"
    return ""


def session_headers(spec: AgentSpec, session: str) -> dict[str, str]:
    """The headers of an invocation; a session id that is too short is lengthened."""
    if spec.kind is not AgentKind.AGENTCORE:
        return {}
    return {SESSION: session.ljust(_SHORTEST_SESSION, "-")}


def payload(request: AgentRequest) -> dict[str, Any]:
    """The body of a dispatch: the union of both spellings in use."""
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
            "region": request.job_arn.split(":")[3],
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


def without_endpoint(body: Any) -> Any:
    """A payload as it may be kept: the endpoint holds the rollout's secret."""
    if not isinstance(body, Mapping) or not isinstance(body.get("metadata"), Mapping):
        return body
    metadata = {name: value for name, value in body["metadata"].items() if name != "endpoint"}
    return {**body, "metadata": metadata}
