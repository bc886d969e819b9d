"""Bodies, headers and behaviour as `sagemaker.train.rft` has them, against a recording server."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from turnwise import rft

ARN = "arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/walk"


@dataclass
class Service:
    """What was posted, and what to answer: (status, text) in turn, then 200."""

    url: str = ""
    posts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answers: list[tuple[int, str]] = field(default_factory=list)
    connections: int = 0
    hangs_up: bool = False  # after each answer, without saying so

    def metadata(self, **changes: Any) -> dict[str, Any]:
        found = {"job_arn": ARN, "trajectory_id": "rollout_a", "endpoint": f"{self.url}/r/x"}
        return found | changes


@pytest.fixture
def service() -> Iterator[Service]:
    recorded = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            recorded.connections += 1
            super().setup()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            recorded.posts.append((self.path, json.loads(body)))
            recorded.headers.append({name.lower(): text for name, text in self.headers.items()})
            status, text = recorded.answers.pop(0) if recorded.answers else (200, "{}")
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())
            self.close_connection = recorded.hangs_up

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    recorded.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield recorded
    server.shutdown()
    server.server_close()
    thread.join()


def complete(status: str = "ready") -> tuple[str, dict[str, Any]]:
    body = {"JobArn": ARN, "TrajectoryId": "rollout_a", "Status": status}
    return "/r/x/complete-rollout", body


def reward(*rewards: float, **members: Any) -> tuple[str, dict[str, Any]]:
    body = {"JobArn": ARN, "TrajectoryId": "rollout_a", "Rewards": list(rewards), **members}
    return "/r/x/update-reward", body


# ── models and headers ────────────────────────────────────────────────────────────────────────


def test_a_request_is_read_from_the_union_of_both_payloads() -> None:
    payload = {
        "prompt": "go",
        "instance": {"aircraft_id": "AC01-AX02"},
        "metadata": {"jobArn": ARN, "job_arn": ARN, "trajectory_id": "t", "endpoint": "http://e"},
        "inferenceParams": {"topP": 0.9},
        "inference_params": {"temperature": 1.0, "max_tokens": 64},
    }
    assert rft.RolloutRequest.model_validate(payload) == rft.RolloutRequest(
        instance={"aircraft_id": "AC01-AX02"},
        metadata=rft.RolloutMetadata(job_arn=ARN, trajectory_id="t", endpoint="http://e"),
        inference_params=rft.InferenceParams(temperature=1.0, max_tokens=64),
    )


@pytest.mark.parametrize(
    "metadata",
    [
        {"job_arn": ARN, "trajectory_id": "rollout_a"},
        {"jobArn": ARN, "rolloutId": "rollout_a"},
        {"jobArn": ARN, "trajectoryId": "rollout_a"},
        rft.RolloutMetadata(job_arn=ARN, trajectory_id="rollout_a", endpoint="http://e"),
    ],
)
def test_headers_come_from_either_spelling(metadata: Any) -> None:
    assert rft.make_inference_headers(metadata) == {
        "X-Amzn-SageMaker-Job-Arn": ARN,
        "X-Amzn-SageMaker-Trajectory-Id": "rollout_a",
    }


def test_the_context_holds_headers_and_parameters_until_it_is_cleared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metadata = rft.RolloutMetadata(job_arn=ARN, trajectory_id="t", endpoint="http://e")
    rft.set_rollout_context(metadata, rft.InferenceParams(temperature=0.5))
    assert rft.get_inference_headers() == rft.make_inference_headers(metadata)
    assert rft.get_inference_params() == {"temperature": 0.5}
    assert rft.get_rollout_context() == metadata.model_dump()

    rft.clear_rollout_context()
    assert rft.get_inference_params() is None
    assert rft.get_inference_headers() == {}
    assert "no rollout context" in caplog.text


# ── feedback ──────────────────────────────────────────────────────────────────────────────────


def test_a_complete_report_is_two_posts_with_the_bodies_of_the_contract(service: Service) -> None:
    rft.RolloutFeedbackClient(service.metadata()).report_complete(0.95)
    assert service.posts == [complete(), reward(0.95)]
    assert service.headers[0]["content-type"] == "application/json"
    assert "authorization" not in service.headers[0]
    assert service.connections == 1


def test_rewards_per_turn_and_metrics_go_along(service: Service) -> None:
    client = rft.RolloutFeedbackClient(service.metadata())
    client.report_complete([0, 1], metrics={"field_acc": 1})
    assert service.posts == [complete(), reward(0.0, 1.0, Metrics={"field_acc": 1.0})]


def test_an_error_is_a_failed_rollout_with_reward_zero(service: Service) -> None:
    rft.RolloutFeedbackClient(service.metadata()).report_error()
    assert service.posts == [complete("failed"), reward(0.0)]


def test_the_key_in_the_environment_is_the_bearer(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNWISE_API_KEY", "key")
    rft.RolloutFeedbackClient(service.metadata()).complete_rollout()
    assert service.headers[0]["authorization"] == "Bearer key"


def test_the_environment_names_the_service_where_the_metadata_does_not(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RFT_RUNTIME_ENDPOINT", f"{service.url}/r/x/")
    rft.RolloutFeedbackClient({"jobArn": ARN, "rolloutId": "rollout_a"}).complete_rollout()
    assert service.posts == [complete()]


def test_without_a_service_the_client_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RFT_RUNTIME_ENDPOINT", raising=False)
    with pytest.raises(ValueError, match="no endpoint, and RFT_RUNTIME_ENDPOINT is not set"):
        rft.RolloutFeedbackClient({"rolloutId": "rollout_a"})


def test_without_a_trajectory_nothing_is_sent(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    rft.RolloutFeedbackClient(service.metadata(trajectory_id="")).report_complete(1.0)
    assert service.posts == []
    assert "no trajectory id" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        (404, "rollout 'rollout_a' does not exist"),
        (409, "Cannot transition trajectory from FAILED to READY"),
        (400, "trajectory is not in valid status"),
    ],
)
def test_a_report_on_a_rollout_that_is_over_is_dropped(
    service: Service, answer: tuple[int, str]
) -> None:
    service.answers = [answer]
    rft.RolloutFeedbackClient(service.metadata()).report_complete(1.0)
    assert service.posts == [complete(), reward(1.0)]


def test_another_refusal_is_raised_with_the_services_words(service: Service) -> None:
    service.answers = [(400, "Rewards: [1.0, 1.0] must be 1 or 3 numbers")]
    with pytest.raises(rft.FeedbackError, match=r"400: Rewards: .* must be 1 or 3 numbers"):
        rft.RolloutFeedbackClient(service.metadata()).update_reward([1.0, 1.0])


def test_a_service_that_is_down_is_named() -> None:
    metadata = {"rolloutId": "rollout_a", "endpoint": "http://127.0.0.1:1/r/x"}
    with pytest.raises(rft.FeedbackError, match=r"127\.0\.0\.1:1/r/x/complete-rollout: Connection"):
        rft.RolloutFeedbackClient(metadata).complete_rollout()


def test_a_kept_connection_that_the_service_closed_is_replaced(service: Service) -> None:
    service.hangs_up = True
    client = rft.RolloutFeedbackClient(service.metadata())
    client.complete_rollout()
    client.complete_rollout()
    assert service.posts == [complete(), complete()]
    assert service.connections == 2


# ── the decorator ─────────────────────────────────────────────────────────────────────────────


def payload(service: Service) -> dict[str, Any]:
    return {
        "instance": {},
        "metadata": service.metadata(),
        "inferenceParams": {"maxTokens": 8},
        "inference_params": {"max_tokens": 8},
    }


@pytest.mark.parametrize(
    ("result", "posts"),
    [
        ({"reward": 0.5}, [complete(), reward(0.5)]),
        ({"reward": [0.0, 1.0]}, [complete(), reward(0.0, 1.0)]),
        ({"reward": 1, "metrics": {"n": 2}}, [complete(), reward(1.0, Metrics={"n": 2.0})]),
        ({"answer": 42}, [complete()]),
        ({"status": "error"}, [complete("failed"), reward(0.0)]),
        ({"status": "skipped", "reward": 1.0}, []),
        ("no dict", []),
    ],
)
async def test_what_a_handler_returns_is_reported(
    service: Service, result: Any, posts: list[Any]
) -> None:
    @rft.sagemaker_rft_handler
    def sync_agent(payload: dict[str, Any]) -> Any:
        return result

    @rft.rft_handler
    async def async_agent(payload: dict[str, Any]) -> Any:
        return result

    assert sync_agent(payload(service)) == result
    assert await async_agent(payload(service)) == result
    assert service.posts == [*posts, *posts]


def test_a_handler_runs_in_the_rollouts_context(service: Service) -> None:
    seen: list[Any] = []

    @rft.rft_handler
    def agent(request: rft.RolloutRequest) -> None:
        seen.append((rft.get_inference_headers(), rft.get_inference_params()))

    request = rft.RolloutRequest.model_validate(payload(service))
    agent(request)
    agent(payload(service))
    headers = rft.make_inference_headers(request.metadata)
    assert seen == [(headers, {"max_tokens": 8}), (headers, {"maxTokens": 8, "max_tokens": 8})]
    assert rft.get_rollout_context() is None


async def test_an_exception_fails_the_rollout_and_is_raised_again(service: Service) -> None:
    @rft.rft_handler
    def sync_agent(payload: dict[str, Any]) -> None:
        raise RuntimeError("out of tools")

    @rft.rft_handler
    async def async_agent(payload: dict[str, Any]) -> None:
        raise RuntimeError("out of tools")

    with pytest.raises(RuntimeError, match="out of tools"):
        sync_agent(payload(service))
    with pytest.raises(RuntimeError, match="out of tools"):
        await async_agent(payload(service))
    assert service.posts == [complete("failed"), reward(0.0)] * 2
    assert rft.get_rollout_context() is None


async def test_an_exception_that_says_the_rollout_is_over_is_a_skip(service: Service) -> None:
    @rft.rft_handler
    def sync_agent(payload: dict[str, Any]) -> None:
        raise RuntimeError("400: the rollout is not in valid status for sampling: FAILED")

    @rft.rft_handler
    async def async_agent(payload: dict[str, Any]) -> None:
        raise RuntimeError("409: Cannot transition trajectory from FAILED")

    assert sync_agent(payload(service)) == {
        "status": "skipped",
        "error": "400: the rollout is not in valid status for sampling: FAILED",
    }
    assert (await async_agent(payload(service)))["status"] == "skipped"
    assert service.posts == []


def test_a_report_that_fails_does_not_cost_the_agent_its_result(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    @rft.rft_handler
    def agent(payload: dict[str, Any]) -> dict[str, float]:
        return {"reward": 1.0}

    service.answers = [(500, "disk full")]
    assert agent(payload(service)) == {"reward": 1.0}
    assert "not reported (non-fatal): 500: disk full" in caplog.text


def test_without_metadata_a_handler_just_runs(caplog: pytest.LogCaptureFixture) -> None:
    @rft.rft_handler
    def agent(payload: dict[str, Any]) -> dict[str, float]:
        return {"reward": 1.0}

    with caplog.at_level(logging.WARNING):
        assert agent({"prompt": "go"}) == {"reward": 1.0}
    assert "outside of a rollout" in caplog.text


def test_the_kit_needs_neither_torch_nor_a_server_nor_aws() -> None:
    unwanted = "{'torch', 'fastapi', 'sqlalchemy', 'boto3'}"
    code = f"import sys, turnwise.rft; print({unwanted} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
