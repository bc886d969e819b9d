"""Agents of all three contracts, driven by jobs and by AWS's own clients."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.wire.aws.clients.answering import Json, answering, report, turn
from tests.wire.aws.clients.place import Place
from tests.wire.aws.clients.service import Server, aws, client, until

EMULATOR = "/2015-03-31/functions/function/invocations"
AGENTCORE = Path(__file__).with_name("agentcore_agent.py")

pytestmark = pytest.mark.usefixtures("shell")


class Api:
    """Agents, and evaluations (or training jobs) of the tiny model with them."""

    def __init__(self, server: Server, model: Path, folder: Path) -> None:
        self.server = server
        self._folder = folder
        self._model = model

    def register(self, name: str, url: str, contract: str) -> Json:
        return self.server.call("POST", "/agents", {"name": name, "url": url, "as": contract})

    def job(self, name: str, agent: Json, prompts: list[str], **changes: Any) -> Json:
        """An evaluation (or what `changes` say) over these prompts, once it has ended."""
        rows = self._folder / f"{name}.jsonl"
        rows.write_text("".join(json.dumps({"prompt": p, "place": "AC01"}) + "\n" for p in prompts))
        given = {
            "name": name,
            "kind": "evaluation",
            "model": str(self._model),
            "dataset": str(rows),
            "agent": agent,
            "eval_sampling_params": {"max_tokens": 8, "temperature": 0.5},
            "rollout": {"rollout_max_retries": 0},
        }
        self.server.call("POST", "/jobs", given | changes)
        return self.server.ended(name)

    def attempts(self, job: str) -> list[Json]:
        """Its rollouts, by row and attempt."""
        found = self.server.call("GET", f"/jobs/{job}/rollouts?limit=1000")["rollouts"]
        whole = [self.server.call("GET", f"/rollouts/{each['rollout_id']}") for each in found]
        return sorted(whole, key=lambda each: (each["row_index"], each["attempt"]))

    def log(self, agent: str) -> list[tuple[str, str]]:
        entries = self.server.call("GET", f"/agents/{agent}/logs")["entries"]
        return [(entry["kind"], entry["text"]) for entry in entries]


@pytest.fixture(scope="module")
def api(server: Server, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(server, tiny_model, tmp_path_factory.mktemp("agents"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


# ── what agents get ───────────────────────────────────────────────────────────────────────────


def test_the_agent_payload_has_both_spellings_and_validates_against_the_sdks_rollout_request(
    api: Api,
) -> None:
    """Contract check 32."""
    from sagemaker.train.rft import RolloutRequest

    seen: list[Json] = []

    def behave(path: str, payload: Json) -> tuple[int, object]:
        seen.append(payload)
        turn(payload)
        report(payload, 1.0)
        return 200, {}

    with answering(behave) as url:
        job = api.job("payload", {"kind": "http", "url": url}, ['{"truth": 42}'])

    assert job["status"] == "COMPLETED", job["message"]
    [payload] = seen
    request = RolloutRequest.model_validate(payload)
    assert request.instance == {"prompt": '{"truth": 42}', "place": "AC01"}
    assert payload["prompt"] == '{"truth": 42}'  # the column's text, unparsed
    metadata = payload["metadata"]
    assert metadata["jobArn"] == metadata["job_arn"] == request.metadata.job_arn
    assert metadata["jobArn"].endswith(":job/AgentRFTEvaluation/payload")
    assert metadata["rolloutId"] == metadata["trajectory_id"] == request.metadata.trajectory_id
    assert request.metadata.endpoint.startswith(api.server.url)
    assert request.metadata.region == "us-west-2"
    assert payload["inferenceParams"] == {"temperature": 0.5, "topP": 1.0, "maxTokens": 8}
    assert request.inference_params is not None
    assert request.inference_params.model_dump() == {
        "temperature": 0.5,
        "max_tokens": 8,
        "top_p": 1.0,
    }


# ── Bedrock AgentCore ─────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def agentcore(api: Api, env: Mapping[str, str]) -> Iterator[Json]:
    """The registered agent of `agentcore_agent.py`, run by `turnwise agents run`."""
    port = free_port()
    named = ("core-agent", f"http://127.0.0.1:{port}", "--as", "agentcore")
    agent = json.loads(api.server.cli("agents", "register", *named, "--json").stdout)
    command = [sys.executable, str(AGENTCORE), str(port)]
    running = api.server.start_cli("agents", "run", "core-agent", "--", *command, **env)
    try:

        def is_up() -> bool:
            assert running.poll() is None, running.communicate()
            try:
                with urllib.request.urlopen(f"{agent['url']}/ping", timeout=5) as answer:
                    return json.load(answer)["status"] in ("Healthy", "HealthyBusy")
            except OSError:
                return False

        until(is_up)
        yield agent
    finally:
        running.terminate()
        assert running.wait(20) == 143, running.communicate()
        running.communicate()


def test_a_bedrock_agentcore_app_is_driven_through_invocations_and_its_health_is_ping(
    api: Api, agentcore: Json
) -> None:
    """Contract check 34: a Strands agent with the SDK's handler trains, by its registered name."""
    job = api.job(
        "agentcore",
        {"name": "core-agent"},
        ["walk", "run"],
        kind="train",
        batch={"global_batch_size": 1, "group_size": 2},
        schedule={"max_steps": 1, "max_epochs": 1, "val_every": 0},
        sampling_params={"max_tokens": 8},
        lora={"rank": 4, "alpha": 8},
        async_config={"max_steps_off_policy": 0},
    )
    assert (job["status"], job["step"]) == ("COMPLETED", 1), job["message"]
    attempts = api.attempts("agentcore")
    assert [each["status"] for each in attempts] == ["REWARD_RECEIVED"] * 2
    assert all(each["metrics"]["characters"] >= 0 for each in attempts)

    kinds = [kind for kind, _ in api.log("core-agent")]
    assert (kinds.count("received"), kinds.count("answered")) == (2, 2)
    text = json.dumps(api.log("core-agent"))
    assert "/r/rollout_" not in text.replace(".***", "")
    until(lambda: ("printed", "asked walk") in api.log("core-agent"), 10)


def test_agents_test_says_that_the_agent_was_reached_and_what_it_answered(
    api: Api, agentcore: Json
) -> None:
    found = json.loads(api.server.cli("agents", "test", "core-agent", "--json").stdout)
    assert (found["is_healthy"], found["is_reached"], found["problem"]) == (True, True, "")
    assert found["status"] == 500  # the rollout of a test does not exist, and the agent says so
    assert "error" in json.loads(found["answer"])


def test_agentcores_clients_and_the_sdk_find_and_invoke_a_registered_runtime(
    place: Place, agentcore: Json, env: Mapping[str, str]
) -> None:
    from botocore.exceptions import ClientError

    control, data = client("bedrock-agentcore-control", env), client("bedrock-agentcore", env)
    [runtime] = control.list_agent_runtimes()["agentRuntimes"]
    assert runtime["agentRuntimeArn"] == agentcore["arn"]
    assert runtime["agentRuntimeName"] == "core_agent"
    found = control.get_agent_runtime(agentRuntimeId=runtime["agentRuntimeId"])
    assert (found["agentRuntimeArn"], found["status"]) == (agentcore["arn"], "READY")
    with pytest.raises(control.exceptions.ResourceNotFoundException, match="agents register"):
        control.get_agent_runtime(agentRuntimeId="gone-abcdefghij")
    from sagemaker.train.multi_turn_rl_trainer import MultiTurnRLTrainer

    assert MultiTurnRLTrainer.list_bedrock_agentcore_runtimes() == [
        {
            "name": "core_agent",
            "runtime_id": runtime["agentRuntimeId"],
            "arn": agentcore["arn"],
            "status": "READY",
        }
    ]
    by_id = place.trainer(agent_env=runtime["agentRuntimeId"])
    assert by_id.agent_env == agentcore["arn"]

    session = "session-of-more-than-33-characters"
    at = {"agentRuntimeArn": agentcore["arn"], "runtimeSessionId": session}
    with pytest.raises(ClientError) as raised:  # no rollout, so the agent fails, and is heard
        data.invoke_agent_runtime(**at, payload=b'{"prompt": "hello"}')
    assert raised.value.response["Error"]["Code"] == "RuntimeClientError"
    assert "the agent answered 500" in raised.value.response["Error"]["Message"]
    assert data.stop_runtime_session(**at)["statusCode"] == 200
    with pytest.raises(data.exceptions.ResourceNotFoundException, match="DEFAULT"):
        data.invoke_agent_runtime(**at, qualifier="OTHER", payload=b"{}")


def test_the_sources_debugging_commands_of_agents_answer(
    api: Api, agentcore: Json, env: Mapping[str, str], tmp_path: Path
) -> None:
    listed = json.loads(aws(env, "bedrock-agentcore-control", "list-agent-runtimes"))
    runtime_id = listed["agentRuntimes"][0]["agentRuntimeId"]
    control = "bedrock-agentcore-control"
    got = json.loads(aws(env, control, "get-agent-runtime", "--agent-runtime-id", runtime_id))
    assert got["agentRuntimeArn"] == agentcore["arn"]

    def refuses(path: str, payload: Json) -> tuple[int, object]:
        return 500, {"error": f"no job {payload['metadata']['jobArn']}"}

    with answering(refuses) as url:
        api.register("rft-agent-forwarder", url, "http")
        given = {"prompt": "test", "metadata": {"jobArn": "test", "rolloutId": "test-1"}}
        out = tmp_path / "response.json"
        said = aws(
            env,
            *("lambda", "invoke", "--function-name", "rft-agent-forwarder"),
            *("--payload", json.dumps(given), str(out)),
        )
    assert json.loads(said)["StatusCode"] == 200
    answer = json.loads(out.read_text())
    assert answer["errorType"] == "InternalServerError"
    assert "no job test" in answer["errorMessage"]


# ── Lambda ────────────────────────────────────────────────────────────────────────────────────


def forwarder(agent_endpoint: str) -> Callable[[Json, object], Json]:
    """A Lambda handler that forwards rollouts to an agent of its own, as the guide describes it."""

    def handler(event: Json, context: object) -> Json:
        metadata = event.get("metadata") or {}
        for value in (event.get("prompt"), metadata.get("jobArn"), metadata.get("rolloutId")):
            if not isinstance(value, str) or not value:
                return {"errorType": "ValidationError", "errorMessage": "a field is missing"}
        request = Request(
            f"{agent_endpoint}/rollout",
            json.dumps(event).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            urlopen(request, timeout=120).close()
        except HTTPError as error:
            kind = "AccessDenied" if error.code == 403 else "InternalServerError"
            return {"errorType": kind, "errorMessage": f"the agent answered {error.code}"}
        return {}

    return handler


@contextmanager
def as_lambda(handler: Callable[[Json, object], object]) -> Iterator[str]:
    """A handler behind the path of the Lambda runtime interface emulator."""

    def behave(path: str, payload: Json) -> tuple[int, object]:
        assert path == EMULATOR
        return 200, handler(payload, None)

    with answering(behave) as url:
        yield url


def test_a_lambda_forwarder_reaches_rollout_and_its_error_type_is_a_failure_that_is_retried(
    api: Api, env: Mapping[str, str]
) -> None:
    """Contract check 33."""
    paths: list[str] = []

    def agent(path: str, payload: Json) -> tuple[int, object]:
        paths.append(path)
        if payload["prompt"] == "breaks":
            return 500, {"error": "the simulator broke"}
        turn(payload)
        report(payload, 0.5)
        return 200, {"status": "accepted"}

    with answering(agent) as endpoint, as_lambda(forwarder(endpoint)) as url:
        made = api.register("forwarder", url, "lambda")
        job = api.job(
            *("lambda", {"name": "forwarder"}, ["works", "breaks"]),
            rollout={"rollout_max_retries": 1, "rollout_timeout": 30},
        )
        assert (job["status"], job["spec"]["agent"]["kind"]) == ("COMPLETED", "lambda")
        invalid = client("lambda", env).invoke(FunctionName=made["arn"], Payload=b'{"prompt": ""}')
        assert json.load(invalid["Payload"])["errorType"] == "ValidationError"

    works, *broken = api.attempts("lambda")
    assert (works["status"], works["rewards"]) == ("REWARD_RECEIVED", [0.5])
    assert [(each["attempt"], each["status"]) for each in broken] == [(0, "FAILED"), (1, "FAILED")]
    assert {each["fault"]["message"] for each in broken} == {
        "InternalServerError: the agent answered 500"
    }
    assert paths == ["/rollout"] * 3
    assert ("failed", "InternalServerError: the agent answered 500") in api.log("forwarder")


def test_an_agent_that_denies_access_ends_its_job_at_once(api: Api) -> None:
    """Contract §10: it must not be retried for ever."""

    def agent(path: str, payload: Json) -> tuple[int, object]:
        return 403, {"error": "no"}

    with answering(agent) as endpoint, as_lambda(forwarder(endpoint)) as url:
        api.register("denier", url, "lambda")
        job = api.job(
            *("denied", {"name": "denier"}, ["a", "b"]), rollout={"rollout_max_retries": 3}
        )
    assert job["status"] == "FAILED"
    assert job["message"].startswith("the agent refuses to be called: AccessDenied: ")
    assert {each["attempt"] for each in api.attempts("denied")} == {0}


def test_boto3_lists_reads_and_invokes_functions(api: Api, env: Mapping[str, str]) -> None:
    from botocore.exceptions import ClientError
    from sagemaker.train.custom_agent_lambda import CustomAgentLambda

    def handler(event: Json, context: object) -> object:
        invoked.append(event)
        arrived.set()
        return {"echo": event["prompt"]}

    invoked: list[Json] = []
    arrived = threading.Event()
    lambdas = client("lambda", env)
    with as_lambda(handler) as url:
        made = api.register("echo", url, "lambda")
        names = [f["FunctionName"] for f in lambdas.list_functions()["Functions"]]
        assert "echo" in names
        assert "core-agent" not in names  # which is a runtime
        pages = lambdas.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 1})
        assert [f["FunctionName"] for page in pages for f in page["Functions"]] == names
        found = lambdas.get_function(FunctionName="echo")["Configuration"]
        assert (found["FunctionArn"], found["State"]) == (made["arn"], "Active")
        assert found["LoggingConfig"]["LogGroup"] == "/aws/lambda/echo"

        payload = json.dumps({"prompt": "hi"})
        for name in ("echo", "echo:live", made["arn"], made["arn"] + ":$LATEST"):
            said = lambdas.invoke(FunctionName=name, Payload=payload, LogType="Tail")
            assert json.load(said["Payload"]) == {"echo": "hi"}
            assert "FunctionError" not in said
        assert b"REPORT RequestId: " in base64.b64decode(said["LogResult"])

        arrived.clear()
        later = lambdas.invoke(FunctionName="echo", InvocationType="Event", Payload=payload)
        assert later["StatusCode"] == 202
        assert arrived.wait(10)
        dry = lambdas.invoke(FunctionName="echo", InvocationType="DryRun", Payload=payload)
        assert (dry["StatusCode"], len(invoked)) == (204, 5)
        with pytest.raises(ClientError, match="Could not parse request body into json"):
            lambdas.invoke(FunctionName="echo", Payload=b"not json")

    down = lambdas.invoke(FunctionName="echo", Payload=payload)
    assert down["FunctionError"] == "Unhandled"
    assert "the agent cannot be reached" in json.load(down["Payload"])["errorMessage"]
    with pytest.raises(lambdas.exceptions.ResourceNotFoundException, match="agents register"):
        lambdas.get_function(FunctionName="gone")
    with pytest.raises(lambdas.exceptions.InvalidParameterValueException, match="runs no code"):
        lambdas.create_function(
            FunctionName="mine",
            Role="arn:aws:iam::000000000001:role/any",
            Code={"ZipFile": b"zip"},
            Runtime="python3.12",
            Handler="lambda_function.handler",
        )
    assert CustomAgentLambda.get(made["arn"]).lambda_arn == made["arn"]


# ── agents that fail ──────────────────────────────────────────────────────────────────────────


def test_an_agent_that_never_completes_is_retried_and_then_fails_in_the_documented_words(
    api: Api,
) -> None:
    """Contract check 35: the job goes on without it; with no other rollout, it fails so."""

    def agent(path: str, payload: Json) -> tuple[int, object]:
        if payload["prompt"] == "no reward":
            turn(payload)
            report(payload, None)
        if payload["prompt"] == "gives up":
            report(payload, 0.0, status="failed")
        if payload["prompt"] == "works":
            turn(payload)
            report(payload, 1.0)
        return 200, {"status": "accepted"}

    rollout = {"rollout_timeout": 2.0, "rollout_max_retries": 1, "group_timeout": 30.0}
    with answering(agent) as url:
        job = api.job(
            *("overdue", {"url": url}, ["silent", "no reward", "gives up", "works"]),
            rollout=rollout,
        )
        silent = api.job("silent", {"url": url}, ["silent"], rollout=rollout)

    assert job["status"] == "COMPLETED", job["message"]
    *failed, works = api.attempts("overdue")
    assert works["status"] == "REWARD_RECEIVED"
    assert [(each["row_index"], each["attempt"], each["fault"]["message"]) for each in failed] == [
        (0, 0, "No sampling requests were received for this rollout"),
        (0, 1, "No sampling requests were received for this rollout"),
        (1, 0, "The rollout completed but no reward was received in time"),
        (1, 1, "The rollout completed but no reward was received in time"),
        (2, 0, "The agent signaled that the trajectory failed"),
        (2, 1, "The agent signaled that the trajectory failed"),
    ]
    assert silent["status"] == "FAILED"
    assert "No sampling requests were received for this rollout" in silent["message"]


def test_a_chat_completion_on_a_ready_trajectory_is_a_400_and_the_decorated_agent_is_skipped(
    api: Api, env: Mapping[str, str]
) -> None:
    """Contract check 27, with a Strands agent behind the SDK's handler and model wrapper."""
    import openai
    from sagemaker.train.rft import RolloutFeedbackClient, sagemaker_rft_handler
    from sagemaker.train.rft.adapters.strands import wrap_model
    from strands import Agent
    from strands.models.openai import OpenAIModel

    results: list[object] = []
    refusals: list[openai.BadRequestError] = []

    @sagemaker_rft_handler
    async def strands_agent(payload: Json) -> Json:
        endpoint = payload["metadata"]["endpoint"]
        model = OpenAIModel(
            client_args={"base_url": f"{endpoint}/v1", "api_key": "unused"}, model_id="default"
        )
        try:
            await Agent(model=wrap_model(model), callback_handler=None).invoke_async("hello")
        except openai.BadRequestError as error:
            refusals.append(error)
            raise
        return {"reward": 1.0}

    def agent(path: str, payload: Json) -> tuple[int, object]:
        feedback = RolloutFeedbackClient(payload["metadata"])
        turn(payload)
        feedback.complete_rollout()
        results.append(asyncio.run(strands_agent(payload)))
        feedback.update_reward(0.25)
        return 200, {}

    with answering(agent) as url:
        job = api.job("ready", {"url": url}, ["hello"])

    assert job["status"] == "COMPLETED", job["message"]
    [refusal] = refusals
    assert refusal.status_code == 400
    assert "not in valid status" in refusal.body["message"]  # type: ignore[index]
    [result] = results
    assert isinstance(result, dict)
    assert result["status"] == "skipped"
    [attempt] = api.attempts("ready")
    assert (attempt["rewards"], len(attempt["turns"])) == ([0.25], 1)


# ── turnwise.rft ──────────────────────────────────────────────────────────────────────────────


def test_a_strands_model_wrapped_by_ours_serves_concurrent_rollouts_without_mixing_them(
    api: Api, env: Mapping[str, str]
) -> None:
    """One model for all rollouts, told only the shared endpoint (contract §3.3)."""
    from strands import Agent
    from strands.models.openai import OpenAIModel
    from strands.types.exceptions import MaxTokensReachedException

    from turnwise.rft import rft_handler
    from turnwise.rft.adapters.strands import wrap_model

    key = api.server.key
    shared = {"base_url": f"{api.server.url}/v1", "api_key": key}
    model = wrap_model(OpenAIModel(client_args=shared, model_id="default"))

    @rft_handler
    async def rollout(payload: Json) -> Json:
        with suppress(MaxTokensReachedException):  # a random model does not know when to end
            await Agent(model=model, callback_handler=None).invoke_async(payload["prompt"])
        return {"reward": 1.0}

    everyone = threading.Barrier(4)

    def agent(path: str, payload: Json) -> tuple[int, object]:
        everyone.wait(30)
        return 200, asyncio.run(rollout(payload))

    prompts = [f"row {n}" for n in range(4)]
    with answering(agent) as url:
        job = api.job("ours", {"url": url}, prompts)
    assert job["status"] == "COMPLETED", job["message"]
    for attempt in api.attempts("ours"):
        assert len(attempt["turns"]) == 1
        assert prompts[attempt["row_index"]] in json.dumps(attempt["nodes"][0]["messages"])
