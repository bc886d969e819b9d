"""CloudWatch Logs as real clients read it: boto3, the aws command, the sagemaker SDK."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.wire.aws.clients.running import RunningJob
from tests.wire.aws.clients.service import Server, aws, client, code_of

GROUP = "/aws/sagemaker/Job/AgentRFT"
EVALUATIONS = "/aws/sagemaker/Job/AgentRFTEvaluation"

pytestmark = pytest.mark.usefixtures("shell")


@pytest.fixture(scope="module")
def logs(env: dict[str, str]) -> Any:
    return client("logs", env)


def a_job(running: RunningJob, name: str, **changes: Any) -> dict[str, Any]:
    """A job of a scripted agent on the running job's model, whose engine it shares."""
    job = {
        "name": name,
        "model": str(running.model),
        "dataset": running.job["spec"]["dataset"],
        "agent": {"kind": "scripted"},
        "batch": {"global_batch_size": 2, "group_size": 2},
        "sampling_params": {"max_tokens": 4},
    }
    return running.server.call("POST", "/jobs", job | changes)


@pytest.fixture(scope="module")
def walk(running: RunningJob) -> str:
    """The name of a training job that was stopped."""
    a_job(running, "log-walk")
    running.server.call("POST", "/jobs/log-walk/stop")
    running.server.ended("log-walk")
    return "log-walk"


@pytest.fixture(scope="module")
def judged(running: RunningJob) -> str:
    """The name of an evaluation of four rollouts that has ended."""
    evaluation = {"models": ["base"], "max_rows": 4, "group_size": 1}
    a_job(running, "log-judged", kind="evaluation", evaluation=evaluation)
    assert running.server.ended("log-judged")["status"] == "COMPLETED"
    return "log-judged"


def refused(call: Any, **given: Any) -> str:
    with pytest.raises(ClientError) as error:
        call(**given)
    return code_of(error)


def test_stream_logs_prints_each_line_once_and_exits_at_the_terminal_state(
    env: dict[str, str],
    logs: Any,
    walk: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Contract check 16."""
    from sagemaker.train.agent_rft_job import AgentRFTJob

    AgentRFTJob.get(walk).stream_logs(poll=1)
    printed = capfd.readouterr().out
    stream = f"{walk}/events"
    events = logs.get_log_events(logGroupName=GROUP, logStreamName=stream, startFromHead=True)
    lines = [event["message"] for event in events["events"]]
    assert lines[0].startswith("status PENDING")
    assert lines[-1].startswith("status STOPPED")
    assert [printed.count(line) for line in lines] == [lines.count(line) for line in lines]


def test_get_log_events_with_the_last_token_returns_empty_and_the_same_token(
    logs: Any, judged: str
) -> None:
    """Contract check 16."""
    stream = {"logGroupName": EVALUATIONS, "logStreamName": f"{judged}/events"}
    whole = logs.get_log_events(**stream, startFromHead=True)
    last = logs.get_log_events(**stream, startFromHead=True, nextToken=whole["nextForwardToken"])
    assert last["events"] == []
    assert last["nextForwardToken"] == whole["nextForwardToken"]

    read, token = [], None
    for _ in range(100):
        more = {"nextToken": token} if token else {}
        page = logs.get_log_events(**stream, startFromHead=True, limit=2, **more)
        if not page["events"]:
            break
        read += page["events"]
        token = page["nextForwardToken"]
    assert read == whole["events"]

    newest = logs.get_log_events(**stream, limit=3)
    assert newest["events"] == whole["events"][-3:]
    before = logs.get_log_events(**stream, limit=3, nextToken=newest["nextBackwardToken"])
    assert before["events"] == whole["events"][-6:-3]
    assert logs.get_log_events(**stream, nextToken=newest["nextForwardToken"])["events"] == []
    assert refused(logs.get_log_events, **stream, nextToken="nonsense") == (
        "InvalidParameterException"
    )


def test_a_span_of_time_holds_its_beginning_and_not_its_end(logs: Any, judged: str) -> None:
    stream = {
        "logGroupName": EVALUATIONS,
        "logStreamName": f"{judged}/events",
        "startFromHead": True,
    }
    events = logs.get_log_events(**stream)["events"]
    start, end = events[1]["timestamp"], events[-1]["timestamp"]
    found = logs.get_log_events(**stream, startTime=start, endTime=end)["events"]
    assert found == [event for event in events if start <= event["timestamp"] < end]
    later = logs.get_log_events(**stream, startTime=end + 1)
    assert later["events"] == []
    again = logs.get_log_events(**stream, startTime=end + 1, nextToken=later["nextForwardToken"])
    assert again["nextForwardToken"] == later["nextForwardToken"]


def test_groups_and_streams_are_there_as_soon_as_the_job_is(
    logs: Any, walk: str, running: RunningJob
) -> None:
    names = [group["logGroupName"] for group in logs.describe_log_groups()["logGroups"]]
    assert {GROUP, EVALUATIONS} <= set(names)
    pages = logs.get_paginator("describe_log_streams").paginate(
        logGroupName=GROUP, logStreamNamePrefix=running.name
    )
    found = [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
    assert found == [f"{running.name}/events"]
    by_time = logs.describe_log_streams(
        logGroupName=GROUP, orderBy="LastEventTime", descending=True, limit=1
    )
    assert by_time["logStreams"][0]["lastEventTimestamp"] > 0
    assert by_time["nextToken"]
    nowhere = {"logGroupName": GROUP, "logStreamName": "nowhere/events"}
    assert refused(logs.get_log_events, **nowhere) == "ResourceNotFoundException"
    assert refused(logs.describe_log_streams, logGroupName="/aws/other") == (
        "ResourceNotFoundException"
    )
    # A training job has no stream among the evaluations.
    other = {"logGroupName": EVALUATIONS, "logStreamName": f"{walk}/events"}
    assert refused(logs.get_log_events, **other) == "ResourceNotFoundException"


def test_lines_are_filtered_by_terms_and_phrases_over_streams(logs: Any, judged: str) -> None:
    only = {"logGroupName": EVALUATIONS, "logStreamNamePrefix": f"{judged}/"}
    rollouts = logs.filter_log_events(**only, filterPattern="rollout turns")["events"]
    assert len(rollouts) == 4
    assert {event["logStreamName"] for event in rollouts} == {f"{judged}/events"}
    status = logs.filter_log_events(**only, filterPattern='"status COMPLETED"')["events"]
    assert len(status) == 1
    either = logs.filter_log_events(**only, filterPattern="?COMPLETED ?turns")["events"]
    assert len(either) == 5
    pages = logs.get_paginator("filter_log_events").paginate(
        **only, PaginationConfig={"PageSize": 2}
    )
    paged = [event for page in pages for event in page["events"]]
    # The same event is the same line with the same id, whenever it is read.
    assert paged == logs.filter_log_events(**only)["events"]
    assert len({event["eventId"] for event in paged}) == len(paged)
    assert refused(logs.filter_log_events, **only, filterPattern="{ $.a = 1 }") == (
        "InvalidParameterException"
    )


def test_the_aws_command_reads_a_job_and_follows_a_group(env: dict[str, str], judged: str) -> None:
    """`aws logs tail`, which the second version of the command has, is FilterLogEvents too."""
    names = ("--log-group-name", EVALUATIONS, "--log-stream-name-prefix", f"{judged}/")
    said = json.loads(aws(env, "logs", "filter-log-events", *names))
    messages = [event["message"] for event in said["events"]]
    assert any(line.startswith("status COMPLETED") for line in messages)
    assert sum("turns=" in line for line in messages) == 4
    assert f"{judged}/events" in aws(env, "logs", "describe-log-streams", *names)


@pytest.fixture(scope="module")
def agent(server: Server) -> Iterator[str]:
    """The log group of a registered agent."""
    agent = {"name": "printer", "url": "http://127.0.0.1:9", "as": "lambda"}
    server.call("POST", "/agents", agent)
    yield "/aws/lambda/printer"
    server.call("DELETE", "/agents/printer")


def test_an_agents_own_handler_writes_to_its_group(
    logs: Any, agent: str, env: dict[str, str]
) -> None:
    with pytest.raises(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_group(logGroupName=agent)
    logs.create_log_stream(logGroupName=agent, logStreamName="2026/worker-1")
    now = int(time.time() * 1000)
    logs.put_log_events(
        logGroupName=agent,
        logStreamName="2026/worker-1",
        logEvents=[
            {"timestamp": now, "message": "tool called"},
            {"timestamp": now + 1, "message": "ERROR tool failed"},
        ],
    )
    found = logs.get_log_events(
        logGroupName=agent, logStreamName="2026/worker-1", startFromHead=True
    )
    assert [(e["timestamp"], e["message"]) for e in found["events"]] == [
        (now, "tool called"),
        (now + 1, "ERROR tool failed"),
    ]
    bad = logs.filter_log_events(logGroupName=agent, filterPattern="ERROR")["events"]
    assert [event["logStreamName"] for event in bad] == ["2026/worker-1"]
    said = aws(env, "logs", "filter-log-events", "--log-group-name", agent)
    assert "ERROR tool failed" in said

    nowhere = {"logEvents": [{"timestamp": now, "message": "x"}], "logStreamName": "none"}
    assert refused(logs.put_log_events, logGroupName=agent, **nowhere) == (
        "ResourceNotFoundException"
    )
    assert refused(logs.create_log_stream, logGroupName=GROUP, logStreamName="x") == (
        "AccessDeniedException"
    )
    assert refused(logs.create_log_group, logGroupName="/my/own") == "InvalidParameterException"


def test_a_key_for_one_job_reads_its_log_alone(
    server: Server, env: dict[str, str], walk: str, running: RunningJob
) -> None:
    key = server.call("POST", "/keys", {"name": "one-job", "jobs": [walk]})
    limited = client(
        "logs",
        env | {"AWS_ACCESS_KEY_ID": key["access_key_id"], "AWS_SECRET_ACCESS_KEY": key["secret"]},
    )
    streams = limited.describe_log_streams(logGroupName=GROUP)["logStreams"]
    assert [stream["logStreamName"] for stream in streams] == [f"{walk}/events"]
    other = {"logGroupName": GROUP, "logStreamName": f"{running.name}/events"}
    assert refused(limited.get_log_events, **other) == "AccessDeniedException"
