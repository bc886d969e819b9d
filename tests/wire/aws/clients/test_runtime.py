"""The job runtime and its callers, by boto3, the openai client and the sagemaker SDK."""

from __future__ import annotations

import base64
import datetime
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.session
import openai
import pytest
import requests
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError
from botocore.httpsession import URLLib3Session
from sagemaker.core.helper.iam_role_resolver import resolve_and_validate_role
from sagemaker.core.token_generator import generate_token
from sagemaker.train.rft import RolloutFeedbackClient

from tests.wire.aws.clients.place import Place
from tests.wire.aws.clients.running import Lent, RunningJob
from tests.wire.aws.clients.service import Server, client

CHAT = {"model": "default", "messages": [{"role": "user", "content": "hi"}]}
BODY = json.dumps(CHAT).encode()


@pytest.fixture
def boto(env: dict[str, str]) -> Any:
    """boto3's client of the job runtime."""
    return client("sagemakerjobruntime", env)


@pytest.fixture
def lent(running: RunningJob) -> Lent:
    """An open rollout."""
    return running.lend()


def by_openai(env: dict[str, str], lent: Lent, token: str = "") -> openai.OpenAI:
    """The openai client as an agent makes it; without retries, so that refusals show at once."""
    return openai.OpenAI(
        base_url=env["AWS_ENDPOINT_URL"] + "/v1",
        api_key=token or generate_token(),
        default_headers=lent.headers,
        max_retries=0,
    )


def by_sdk(lent: Lent) -> RolloutFeedbackClient:
    """The SDK's client with its token: the endpoint in the payload would need none."""
    metadata = lent.metadata
    del metadata["endpoint"]
    return RolloutFeedbackClient(metadata)


def refused(error: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    """Status and name of an AWS error."""
    said = error.value.response
    return said["ResponseMetadata"]["HTTPStatusCode"], said["Error"]["Code"]


def test_boto3_sample_and_chat_completions_with_the_same_trajectory_record_consecutive_turns(
    shell: dict[str, str], boto: Any, running: RunningJob, lent: Lent
):
    """Contract check 20."""
    sent: list[dict[str, str]] = []
    boto.meta.events.register(
        "before-send.sagemakerjobruntime.Sample",
        lambda request, **_: sent.append(dict(request.headers)),
    )
    sampled = boto.sample(JobArn=lent.job_arn, TrajectoryId=lent.trajectory_id, Body=BODY)
    assert "Content-Type" not in sent[0]
    first = json.loads(sampled["Body"].read())["choices"][0]["message"]
    messages = [*CHAT["messages"], first, {"role": "user", "content": "more"}]
    by_openai(shell, lent).chat.completions.create(model="default", messages=messages)
    rollout = running.rollout(lent)
    turns, nodes = rollout["turns"], {node["node_id"]: node for node in rollout["nodes"]}
    assert [turn["index"] for turn in turns] == [0, 1]
    above = set()
    at = turns[1]["leaf"]
    while at is not None:
        above.add(at)
        at = nodes[at]["parent"]
    assert turns[0]["leaf"] in above
    assert [node["fork_cause"] for node in nodes.values()] == [None] * len(nodes)


def test_sample_with_response_stream_yields_openai_server_sent_events_ending_done(
    boto: Any, lent: Lent
):
    """Contract check 21."""
    answer = boto.sample_with_response_stream(
        JobArn=lent.job_arn, TrajectoryId=lent.trajectory_id, Body=BODY
    )
    assert answer["ContentType"] == "text/event-stream"
    events = answer["Body"].read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_a_strands_request_is_answered_with_valid_chunks_including_usage(
    shell: dict[str, str], lent: Lent
):
    """Contract check 22: stream, stream_options, tools=[], content as blocks."""
    stream = by_openai(shell, lent).chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"tools": []},
    )
    chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason]


def test_complete_rollout_and_update_reward_by_boto3_and_by_the_sdk_change_the_same_state(
    shell: dict[str, str], boto: Any, running: RunningJob
):
    """Contract check 23."""
    lents = [running.lend(), running.lend()]
    states = []
    for lent, (complete, reward) in zip(lents, (_by_boto3(boto), _by_feedback()), strict=True):
        seen = [running.rollout(lent)["status"]]
        complete(lent)
        seen.append(running.rollout(lent)["status"])
        reward(lent)
        rollout = running.rollout(lent)
        states.append([*seen, rollout["status"], rollout["rewards"]])
    assert states[0] == states[1] == ["PENDING", "READY", "REWARD_RECEIVED", [0.5]]


def _by_boto3(boto: Any) -> tuple[Any, Any]:
    def complete(lent: Lent) -> None:
        boto.complete_rollout(JobArn=lent.job_arn, TrajectoryId=lent.trajectory_id, Status="ready")

    def reward(lent: Lent) -> None:
        boto.update_reward(JobArn=lent.job_arn, TrajectoryId=lent.trajectory_id, Rewards=[0.5])

    return complete, reward


def _by_feedback() -> tuple[Any, Any]:
    return lambda lent: by_sdk(lent).complete_rollout(), lambda lent: by_sdk(lent).update_reward(
        0.5
    )


class _Nothing:
    """The body of an answer that is lost."""

    def stream(self) -> Iterator[bytes]:
        yield b""


def test_a_boto3_retry_with_the_same_client_token_after_a_500_is_applied_once(
    env: dict[str, str], running: RunningJob, lent: Lent
):
    """Contract check 24: the first call is applied, but its answer is lost on the way."""
    boto = client("sagemakerjobruntime", env)
    wire = URLLib3Session()
    tokens: list[str] = []

    def lose_the_first_answer(request: Any, **_: Any) -> AWSResponse | None:
        tokens.append(json.loads(request.body)["ClientToken"])
        if tokens[-1] in tokens[:-1]:
            return None
        assert wire.send(request).status_code == 200
        return AWSResponse(request.url, 500, {}, _Nothing())

    for operation in ("CompleteRollout", "UpdateReward"):
        boto.meta.events.register(
            f"before-send.sagemakerjobruntime.{operation}", lose_the_first_answer
        )
    boto.complete_rollout(JobArn=lent.job_arn, TrajectoryId=lent.trajectory_id)
    completed = running.rollout(lent)
    scored = {"JobArn": lent.job_arn, "TrajectoryId": lent.trajectory_id, "Rewards": [0.25]}
    boto.update_reward(**scored)
    rewarded = running.rollout(lent)
    assert (completed["status"], rewarded["status"]) == ("READY", "REWARD_RECEIVED")
    assert len(tokens) == 4
    assert (tokens[0], tokens[2]) == (tokens[1], tokens[3])
    boto.update_reward(**scored, ClientToken=tokens[2])  # much later, answered as before
    boto.complete_rollout(
        JobArn=lent.job_arn, TrajectoryId=lent.trajectory_id, ClientToken=tokens[0]
    )
    assert running.rollout(lent) == rewarded
    with pytest.raises(boto.exceptions.ConflictException):  # the same token for something else
        boto.update_reward(**scored | {"Rewards": [0.75]}, ClientToken=tokens[2])
    assert running.rollout(lent) == rewarded


def test_a_repeated_report_complete_by_the_sdk_never_raises(
    shell: dict[str, str], running: RunningJob, lent: Lent
):
    """Contract check 25."""
    for _ in range(3):
        by_sdk(lent).report_complete(1.0)
    assert running.rollout(lent)["rewards"] == [1.0]


def test_an_unknown_trajectory_is_a_404_that_the_sdk_swallows_and_boto3_raises_by_name(
    shell: dict[str, str], boto: Any, lent: Lent
):
    """Contract check 26."""
    unknown = "rol_" + "x" * 26
    for call in (
        lambda: boto.sample(JobArn=lent.job_arn, TrajectoryId=unknown, Body=BODY),
        lambda: boto.complete_rollout(JobArn=lent.job_arn, TrajectoryId=unknown),
        lambda: boto.update_reward(JobArn=lent.job_arn, TrajectoryId=unknown, Rewards=[1.0]),
    ):
        with pytest.raises(boto.exceptions.ResourceNotFoundException) as error:
            call()
        assert refused(error) == (404, "ResourceNotFoundException")
    metadata = {"job_arn": lent.job_arn, "trajectory_id": unknown}
    RolloutFeedbackClient(metadata).report_complete(1.0)


def test_complete_rollout_with_a_different_status_on_a_terminal_trajectory_is_a_409(
    boto: Any, running: RunningJob, lent: Lent
):
    """Contract check 28."""
    subject = {"JobArn": lent.job_arn, "TrajectoryId": lent.trajectory_id}
    boto.complete_rollout(**subject, Status="ready")
    boto.update_reward(**subject, Rewards=[1.0])
    with pytest.raises(boto.exceptions.ConflictException, match="Cannot transition trajectory") as (
        error
    ):
        boto.complete_rollout(**subject, Status="failed")
    assert refused(error) == (409, "ConflictException")
    assert running.rollout(lent)["status"] == "REWARD_RECEIVED"


def test_report_error_is_accepted_and_the_failed_trajectory_is_excluded_from_training(
    shell: dict[str, str], running: RunningJob, lent: Lent
):
    """Contract check 29: the rollout's place in its group is another attempt's."""
    by_sdk(lent).report_error("broken")
    rollout = running.rollout(lent)
    assert (rollout["status"], rollout["rewards"]) == ("FAILED", [0.0])
    assert rollout["fault"]["code"] == "agent_failed"
    deadline = time.monotonic() + 30
    while not _is_replaced(running, rollout):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _is_replaced(running: RunningJob, rollout: dict[str, Any]) -> bool:
    page = running.server.call("GET", f"/jobs/{running.name}/rollouts?limit=1000")
    place = ("group_id", "slot")
    return any(
        [each[key] for key in place] == [rollout[key] for key in place]
        and each["attempt"] == rollout["attempt"] + 1
        for each in page["rollouts"]
    )


@pytest.mark.parametrize("rewards", [[1.0, 1.0, 1.0], [], [math.nan], [math.inf], [-math.inf]])
def test_per_turn_rewards_of_a_wrong_length_and_numbers_that_are_not_finite_are_refused(
    boto: Any, running: RunningJob, rewards: list[float]
):
    """Contract check 30. One reward, or one per turn, is taken."""
    lent = running.lend()
    subject = {"JobArn": lent.job_arn, "TrajectoryId": lent.trajectory_id}
    for _ in range(2):
        boto.sample(JobArn=lent.job_arn, TrajectoryId=lent.trajectory_id, Body=BODY)
    boto.complete_rollout(**subject)
    with pytest.raises(boto.exceptions.ValidationException) as error:
        boto.update_reward(**subject, Rewards=rewards)
    assert refused(error) == (400, "ValidationException")
    assert running.rollout(lent)["status"] == "READY"
    boto.update_reward(**subject, Rewards=[0.25, 0.75])
    assert running.rollout(lent)["rewards"] == [0.25, 0.75]


# ── who is calling ────────────────────────────────────────────────────────────────────────────


def test_a_token_by_generate_token_is_accepted_and_so_is_a_signature(
    shell: dict[str, str], boto: Any, running: RunningJob, lent: Lent
):
    """Contract check 31, what is accepted."""
    token = generate_token(region=shell["AWS_REGION"])
    for _ in range(2):  # verified, and remembered
        by_openai(shell, lent, token).chat.completions.create(**CHAT)
    boto.sample(JobArn=lent.job_arn, TrajectoryId=lent.trajectory_id, Body=BODY)
    assert len(running.rollout(lent)["turns"]) == 3


def test_an_altered_expired_or_foreign_token_and_another_accounts_key_are_refused_with_403(
    shell: dict[str, str], running: RunningJob, lent: Lent
):
    """Contract check 31, what is refused: in OpenAI's words and in AWS's, and nothing happens."""
    soon = generate_token(expiry=datetime.timedelta(seconds=1))
    other = running.server.call("POST", "/accounts", {"slug": f"other-{lent.trajectory_id[-26:]}"})
    key = running.server.call("POST", "/keys", {"name": "agent", "account": other["slug"]})
    foreign = shell | {
        "AWS_ACCESS_KEY_ID": key["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": key["secret"],
    }
    time.sleep(2.1)
    good = generate_token()
    tokens = {
        _altered(good): "Authentication failed: the request signature does not match",
        good[:-9]: "Authentication failed: the token",
        soon: "Authentication failed: the signature has expired",
        generate_token(region="us-east-1"): "Authentication failed: it is signed for sagemaker in "
        "us-east-1",
        _token(foreign): "this key is not of account",
    }
    for token, words in tokens.items():
        with pytest.raises(openai.PermissionDeniedError) as error:
            by_openai(shell, lent, token).chat.completions.create(**CHAT)
        assert isinstance(error.value.body, dict)
        assert words in error.value.body["message"]
        assert words in error.value.response.json()["message"]
        answer = requests.post(
            shell["RFT_RUNTIME_ENDPOINT"] + "/complete-rollout",
            json={"JobArn": lent.job_arn, "TrajectoryId": lent.trajectory_id},
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        )
        assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (
            403,
            "AccessDeniedException",
        )
        assert words in answer.json()["Message"]
    assert running.rollout(lent)["status"] == "PENDING"
    assert running.rollout(lent)["turns"] == []
    wrong = {
        "a secret": shell | {"AWS_SECRET_ACCESS_KEY": "tw_" + "x" * 40},
        "a region": shell | {"AWS_DEFAULT_REGION": "us-east-1"},
        "an id": shell | {"AWS_ACCESS_KEY_ID": "TWAK" + "X" * 16},
        "an account": foreign,
    }
    for env in wrong.values():
        boto = client("sagemakerjobruntime", env)
        with pytest.raises(boto.exceptions.AccessDeniedException) as denied:
            boto.complete_rollout(JobArn=lent.job_arn, TrajectoryId=lent.trajectory_id)
        assert refused(denied) == (403, "AccessDeniedException")
    assert running.rollout(lent)["status"] == "PENDING"


def _altered(token: str) -> str:
    """The token with another signature."""
    prefix = "sagemaker-api-key-"
    url = base64.b64decode(token.removeprefix(prefix)).decode()
    at = url.index("X-Amz-Signature=") + len("X-Amz-Signature=")
    other = "0" if url[at] != "0" else "1"
    return prefix + base64.b64encode((url[:at] + other + url[at + 1 :]).encode()).decode()


def _token(env: dict[str, str]) -> str:
    """A token of another key than the shell's."""

    class Provider(botocore.credentials.CredentialProvider):
        METHOD = "given"

        def load(self) -> Any:
            return botocore.credentials.Credentials(
                env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]
            )

    return str(generate_token(aws_credentials_provider=Provider()))


@pytest.fixture
def limited(running: RunningJob, env: dict[str, str]) -> Any:
    """Makes a key with limits; what a shell has with it."""

    def make(**limits: Any) -> tuple[dict[str, str], str]:
        key = running.server.call("POST", "/keys", {"name": "limited"} | limits)
        pair = {"AWS_ACCESS_KEY_ID": key["access_key_id"], "AWS_SECRET_ACCESS_KEY": key["secret"]}
        return env | pair, key["key_id"]

    return make


def test_a_key_does_what_its_actions_and_jobs_allow_until_it_is_revoked(
    shell: dict[str, str], running: RunningJob, lent: Lent, limited: Any
):
    subject = {"JobArn": lent.job_arn, "TrajectoryId": lent.trajectory_id}
    sampler, _ = limited(actions=["sample"], jobs=[running.name])
    boto = client("sagemakerjobruntime", sampler)
    boto.sample(**subject, Body=BODY)
    with pytest.raises(boto.exceptions.AccessDeniedException, match="this key may not report"):
        boto.complete_rollout(**subject)
    reporter, key_id = limited(actions=["report"])
    boto = client("sagemakerjobruntime", reporter)
    token = _token(reporter)
    with pytest.raises(boto.exceptions.AccessDeniedException, match="this key may not sample"):
        boto.sample(**subject, Body=BODY)
    with pytest.raises(openai.PermissionDeniedError):
        by_openai(shell, lent, token).chat.completions.create(**CHAT)
    boto.complete_rollout(**subject)
    running.server.call("DELETE", f"/keys/{key_id}")
    with pytest.raises(boto.exceptions.AccessDeniedException, match="has been revoked"):
        boto.update_reward(**subject, Rewards=[1.0])
    with pytest.raises(openai.PermissionDeniedError, match="has been revoked"):
        by_openai(shell, lent, token).chat.completions.create(**CHAT)
    assert running.rollout(lent)["status"] == "READY"


def test_the_first_sdks_paths_headers_and_members_are_answered(
    shell: dict[str, str], running: RunningJob, lent: Lent
):
    http = boto3.Session()  # signs as that SDK did
    headers = {
        "X-Rft-Job-Arn": lent.job_arn,
        "X-Trajectory-Id": lent.trajectory_id,
        "X-Span-Id": "span",
    }
    assert _signed(http, shell, "/sample", CHAT, headers).json()["choices"]
    done = _signed(http, shell, "/CompleteTrajectory", {"TrajectoryId": lent.trajectory_id})
    body = {"trajectoryId": lent.trajectory_id, "jobArn": lent.job_arn, "rewards": [0.5]}
    scored = _signed(http, shell, "/UpdateReward", body)
    assert (done.status_code, scored.status_code) == (200, 200)
    rollout = running.rollout(lent)
    assert (rollout["status"], rollout["rewards"], len(rollout["turns"])) == (
        "REWARD_RECEIVED",
        [0.5],
        1,
    )


def _signed(
    session: Any, env: dict[str, str], path: str, body: object, headers: Any = None
) -> requests.Response:
    request = botocore.awsrequest.AWSRequest(
        "POST", env["AWS_ENDPOINT_URL"] + path, headers or {}, json.dumps(body)
    )
    credentials = session.get_credentials().get_frozen_credentials()
    botocore.auth.SigV4Auth(credentials, "sagemaker", env["AWS_REGION"]).add_auth(request)
    return requests.post(
        request.url, data=request.body, headers=dict(request.headers.items()), timeout=30
    )


def test_it_works_with_sts_returning_an_iam_user_and_no_iam_service(
    place: Place, shell: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    """Contract check 42: with SAGEMAKER_VALIDATE_ROLE=false no call of IAM is made."""
    assert shell["SAGEMAKER_VALIDATE_ROLE"] == "false"
    who = boto3.client("sts").get_caller_identity()
    assert who["Arn"] == f"arn:aws:iam::{who['Account']}:user/admin"
    monkeypatch.setenv("AWS_ENDPOINT_URL_IAM", "http://127.0.0.1:1")  # nobody answers there
    assert place.trainer(agent_env=place.agent("silent")).train(dry_run=True) is None
    job = place.trainer(agent_env=place.agent("silent"), base_job_name="no-iam").train(wait=False)
    job.stop()
    place.ended(job.job_name)


def test_a_role_passes_the_sdks_validation(shell: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SAGEMAKER_VALIDATE_ROLE")
    number = boto3.client("sts").get_caller_identity()["Account"]
    role = f"arn:aws:iam::{number}:role/service-role/trainer"
    assert resolve_and_validate_role(role, role_type="training") == role


def test_the_servers_shell_is_the_clis(server: Server, env: dict[str, str]):
    said = json.loads(server.cli("env", "--json").stdout)
    assert said == env
