"""The agent against a scripted service: model replies in turn, and what was reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from examples.aircraft_inspection.agent import InspectionAgent, create_app
from examples.aircraft_inspection.data import generate, make_task, user_prompt
from examples.aircraft_inspection.task import expected_outputs, opening_messages

TASK = make_task(0)
ROW = TASK.splits["train"][0]
PROMPT = user_prompt(ROW, TASK.input_columns)
ARN = "arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/walk"
ANSWER = f"<final_output>{json.dumps(expected_outputs(TASK, ROW))}</final_output>"
RIGHT = {"completion": 1.0, "field_acc": 1.0, "exact_match": 1.0}


def call(arguments: str, name: str = "VerifyElectricalSystems", id: str = "call_1") -> Any:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*tool_calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(tool_calls)}


def says(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


@dataclass
class Service:
    """Scripted: each model call takes the next of `replies`, a message or (status, body)."""

    replies: list[Any]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    reports: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    async def complete_chat(self, request: web.Request) -> web.Response:
        self.requests.append(await request.json())
        self.headers.append({name.lower(): text for name, text in request.headers.items()})
        reply = self.replies.pop(0)
        if isinstance(reply, tuple):
            return web.json_response(reply[1], status=reply[0])
        choice = {"index": 0, "message": reply, "finish_reason": "stop"}
        body = {"id": "turn_a", "object": "chat.completion", "created": 0, "model": "default"}
        return web.json_response({**body, "choices": [choice]})

    async def report(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert (body.pop("JobArn"), body.pop("TrajectoryId")) == (ARN, "rollout_a")
        self.reports.append((request.match_info["operation"], body))
        return web.json_response({})


@asynccontextmanager
async def serving(*replies: Any, **limits: Any) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """The scripted service, and a client for the agent that uses it."""
    service = Service(list(replies))
    scripted = web.Application()
    scripted.router.add_post("/r/x/v1/chat/completions", service.complete_chat)
    scripted.router.add_post("/r/x/{operation}", service.report)
    app = create_app(InspectionAgent(TASK, **limits))
    async with (
        TestServer(scripted) as server,
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://agent"
        ) as client,
    ):
        service.url = str(server.make_url("/r/x"))
        yield service, client


def rollout(service: Service, **changes: Any) -> dict[str, Any]:
    """The body of POST /rollout."""
    inputs = {column: ROW[column] for column in TASK.input_columns}
    return {
        "prompt": PROMPT,
        "instance": {**inputs, "prompt": PROMPT},
        "metadata": {
            "jobArn": ARN,
            "job_arn": ARN,
            "rolloutId": "rollout_a",
            "trajectory_id": "rollout_a",
            "endpoint": service.url,
            "region": "us-west-2",
        },
        "inferenceParams": {"temperature": 1.0, "topP": 0.9, "maxTokens": 64},
        "inference_params": {"temperature": 1.0, "top_p": 0.9, "max_tokens": 64},
        **changes,
    }


def done(reward: float, metrics: dict[str, float]) -> list[tuple[str, dict[str, Any]]]:
    update = {"Rewards": [pytest.approx(reward)], "Metrics": metrics}
    return [("complete-rollout", {"Status": "ready"}), ("update-reward", update)]


FAILED = [("complete-rollout", {"Status": "failed"}), ("update-reward", {"Rewards": [0.0]})]


async def test_the_agent_answers_tool_calls_until_the_model_answers() -> None:
    first = calls(
        call(json.dumps({"aircraft_id": ROW["aircraft_id"]}), id="call_1"),
        call("{}", name="ReportCrossCheck", id="call_2"),
    )
    async with serving(first, says(ANSWER)) as (service, agent):
        response = await agent.post("/rollout", json=rollout(service))
    assert response.json() == {"reward": 1.0, "metrics": RIGHT}
    assert service.reports == done(1.0, RIGHT)
    opening = opening_messages(TASK, PROMPT)
    electrical = {column: ROW[column] for column in ("battery_status", "circuit_continuity_check")}
    sent = {
        "model": "default",
        "tools": list(TASK.tools),
        "temperature": 1.0,
        "top_p": 0.9,
        "max_tokens": 64,
    }
    answered = [
        {"role": "tool", "tool_call_id": "call_1", "content": json.dumps(electrical)},
        {
            "role": "tool",
            "tool_call_id": "call_2",
            "content": '{"error": "missing argument aircraft_id"}',
        },
    ]
    assert service.requests == [
        {**sent, "messages": opening},
        {**sent, "messages": [*opening, first, *answered]},
    ]
    assert service.headers[0]["x-amzn-sagemaker-job-arn"] == ARN
    assert service.headers[0]["x-amzn-sagemaker-trajectory-id"] == "rollout_a"


async def test_arguments_that_are_not_json_are_answered_with_an_error() -> None:
    async with serving(calls(call('{"aircraft_id": ')), says("I give up.")) as (service, agent):
        response = await agent.post("/rollout", json=rollout(service))
    wrong = {"completion": 0.0, "field_acc": 0.0, "exact_match": 0.0}
    assert response.json() == {"reward": -0.1, "metrics": wrong}
    assert service.reports == done(-0.1, wrong)
    answer = service.requests[1]["messages"][-1]["content"]
    assert answer == '{"error": "arguments must be a JSON object"}'


async def test_a_model_that_never_answers_runs_out_of_turns() -> None:
    again = calls(call("{}"))
    async with serving(again, again, again, max_turns=2) as (service, agent):
        response = await agent.post("/rollout", json=rollout(service))
    assert response.json()["metrics"]["completion"] == 0.0
    assert len(service.requests) == 2


async def test_a_refused_model_call_fails_the_rollout_and_says_why() -> None:
    refusal = (400, {"error": {"message": "prompt of 9000 tokens is too long", "type": "x"}})
    async with serving(refusal) as (service, agent):
        response = await agent.post("/rollout", json=rollout(service))
    assert response.status_code == 502
    assert "prompt of 9000 tokens is too long" in response.json()["detail"]
    assert service.reports == FAILED


async def test_a_rollout_that_is_over_is_skipped() -> None:
    refusal = (400, {"error": {"message": "rollout_a is not in valid status: FAILED"}})
    async with serving(refusal) as (service, agent):
        response = await agent.post("/rollout", json=rollout(service))
    assert response.status_code == 200
    assert response.json()["status"] == "skipped"
    assert "not in valid status" in response.json()["error"]
    assert service.reports == []


@pytest.mark.parametrize(
    ("instance", "reason"),
    [
        ({"aircraft_id": "AC99-AX99", "component_serial_number": "CS00-CX00"}, "AC99-AX99"),
        ({"aircraft_id": "AC99-AX99"}, "component_serial_number"),
    ],
)
async def test_a_row_that_is_not_in_the_tables_is_refused(
    instance: dict[str, str], reason: str
) -> None:
    async with serving() as (service, agent):
        response = await agent.post("/rollout", json=rollout(service, instance=instance))
    assert response.status_code == 422
    assert "instance: no such row in the tables" in response.json()["detail"]
    assert reason in response.json()["detail"]
    assert service.reports == FAILED


async def test_the_agent_is_healthy() -> None:
    async with serving() as (_, agent):
        response = await agent.get("/health")
    assert response.json() == {"status": "healthy", "task": "aircraft_inspection_generated"}


def test_the_command_prints_where_it_listens(tmp_path: Path) -> None:
    generate(0, tmp_path)
    command = [sys.executable, "-m", "examples.aircraft_inspection.agent", "--data", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().removeprefix("agent listening on ").strip()
            assert httpx.get(f"{address}/health", timeout=10).status_code == 200
        finally:
            process.terminate()


def test_the_command_refuses_a_folder_that_holds_no_task(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.aircraft_inspection.agent", "--data", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "no metadata.json; is this a SOP-Bench folder?" in run.stderr
