"""Tells the service that a rollout is complete, and its reward."""

from __future__ import annotations

import atexit
import http.client
import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from turnwise.rft.models import Metadata, as_mapping, job_arn_of, trajectory_id_of

_log = logging.getLogger(__name__)

TIMEOUT_S = 120.0

#: The service's words for a rollout that is over; nothing is left to report then.
OVER_MARKERS = ("not in valid status", "Cannot transition trajectory")

#: Its words for a reward that comes before the completion: a mistake to show, not a late report.
_TOO_EARLY = "has not been completed"


class FeedbackError(Exception):
    """The service refused a report (`status`, its text), or could not be reached (status 0)."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(f"{status}: {message}" if status else message)

    @property
    def means_over(self) -> bool:
        """Whether the rollout is unknown or over, so that there is nothing left to report."""
        return self.status == 404 or (is_over(self) and _TOO_EARLY not in str(self))


def is_over(error: BaseException) -> bool:
    """Whether an error, of any client, says that the rollout takes no more calls."""
    return any(marker in str(error) for marker in OVER_MARKERS)


class RolloutFeedbackClient:
    """Reports on one rollout.

        RolloutFeedbackClient(request.metadata).report_complete(reward=0.95)

    The service is `metadata.endpoint`, else the environment's RFT_RUNTIME_ENDPOINT. A rollout's own
    endpoint needs no key; for a shared one the environment's TURNWISE_API_KEY is sent as bearer.
    A report on a rollout that is unknown or over is logged and dropped, as is one without a
    trajectory id; any other refusal raises FeedbackError. Nothing is retried but a kept-alive
    connection that the service had closed.

    Calls block. In an asyncio agent: `await asyncio.to_thread(client.report_complete, reward)`.
    """

    def __init__(self, metadata: Metadata) -> None:
        """Raises ValueError if neither metadata nor environment name the service."""
        endpoint = as_mapping(metadata).get("endpoint") or os.environ.get("RFT_RUNTIME_ENDPOINT")
        if not endpoint:
            raise ValueError("metadata has no endpoint, and RFT_RUNTIME_ENDPOINT is not set")
        self._endpoint = str(endpoint).rstrip("/")
        self._job_arn = job_arn_of(metadata)
        self._trajectory_id = trajectory_id_of(metadata)

    def complete_rollout(self, status: str = "ready") -> None:
        """Say that no more model calls will come: "ready", or "failed" for an error."""
        self._post("complete-rollout", {"Status": status})

    def update_reward(
        self, reward: float | Sequence[float], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Report one reward for the rollout, or one per turn.

        `metrics` (an addition): named numbers, stored with the rollout and averaged per step.
        """
        rewards = [reward] if isinstance(reward, int | float) else reward
        members: dict[str, Any] = {"Rewards": [float(value) for value in rewards]}
        if metrics:
            members["Metrics"] = {name: float(value) for name, value in metrics.items()}
        self._post("update-reward", members)

    def report_complete(
        self, reward: float | Sequence[float], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Complete the rollout and report its reward(s)."""
        self.complete_rollout("ready")
        self.update_reward(reward, metrics)

    def report_error(self, error: str = "", reward: float | None = None) -> None:
        """Say that the rollout failed. `error` goes to the agent's own log, for nobody else."""
        if error:
            _log.error("rollout %s failed: %s", self._trajectory_id, error)
        self.complete_rollout("failed")
        self.update_reward(0.0 if reward is None else reward)

    def _post(self, operation: str, members: Mapping[str, Any]) -> None:
        if not self._trajectory_id:
            _log.warning("metadata has no trajectory id: %s not sent", operation)
            return
        body = {"JobArn": self._job_arn, "TrajectoryId": self._trajectory_id, **members}
        try:
            _post_json(f"{self._endpoint}/{operation}", body)
        except FeedbackError as error:
            if not error.means_over:
                raise
            _log.info("%s of %s dropped: %s", operation, self._trajectory_id, error)


# ── HTTP ──────────────────────────────────────────────────────────────────────────────────────
# http.client with kept-alive connections: an agent reports thousands of times, and httpx or
# requests cost several times the CPU of the report itself.

_Service = tuple[str, str]  # scheme, host:port

#: Open connections that nobody uses now. A list's append and pop are atomic between threads.
_idle: defaultdict[_Service, list[http.client.HTTPConnection]] = defaultdict(list)


@atexit.register
def _close_idle() -> None:
    for connections in _idle.values():
        for connection in connections:
            connection.close()


def _post_json(url: str, body: Mapping[str, Any]) -> None:
    """Raises FeedbackError unless the answer is below 400."""
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("TURNWISE_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    try:
        status, text = _exchange((parts.scheme, parts.netloc), path, json.dumps(body), headers)
    except (OSError, http.client.HTTPException) as error:
        raise FeedbackError(0, f"{url}: {type(error).__name__}: {error}") from error
    if status >= 400:
        raise FeedbackError(status, text[:1000])
    if status != 200:
        _log.info("%s answered %s", url, status)


def _exchange(service: _Service, path: str, body: str, headers: dict[str, str]) -> tuple[int, str]:
    """POST over an idle connection, and again over another while the service had closed it.

    Sending twice is safe: to the service a repeated report is the same report.
    """
    try:
        connection, is_kept = _idle[service].pop(), True
    except IndexError:
        connection, is_kept = _connect(service), False
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
    except ConnectionError:  # RemoteDisconnected is one
        connection.close()
        if not is_kept:
            raise
        return _exchange(service, path, body, headers)
    except BaseException:
        connection.close()
        raise
    if not response.will_close:
        _idle[service].append(connection)
    return response.status, text


def _connect(service: _Service) -> http.client.HTTPConnection:
    scheme, netloc = service
    if scheme == "https":
        return http.client.HTTPSConnection(netloc, timeout=TIMEOUT_S)
    return http.client.HTTPConnection(netloc, timeout=TIMEOUT_S)
