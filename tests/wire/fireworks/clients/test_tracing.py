"""eval-protocol's remote rollouts against a real server: its processor, its handler, its adapter.

The remote server is one as its users write it: POST /init answers at once, and a thread plays.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eval_protocol.adapters.fireworks_tracing import FireworksTracingAdapter
from eval_protocol.exceptions import InternalError
from eval_protocol.log_utils.fireworks_tracing_http_handler import FireworksTracingHttpHandler
from eval_protocol.log_utils.rollout_id_filter import RolloutIdFilter
from eval_protocol.models import (
    EvaluationRow,
    ExecutionMetadata,
    InputMetadata,
    Message,
    Status,
)
from eval_protocol.pytest.remote_rollout_processor import RemoteRolloutProcessor
from eval_protocol.pytest.types import RolloutProcessorConfig
from eval_protocol.types.remote_rollout_processor import InitRequest
from openai import BadRequestError, OpenAI

from tests.wire.aws.clients.answering import Json, answering
from tests.wire.aws.clients.service import ROOT, Server, until

MODEL = "accounts/fireworks/models/tiny"
PAGE = ROOT / "docs" / "fireworks-tracing.md"

#: Plays a rollout: (what /init got, the model, the rollout's logger).
Play = Callable[[InitRequest, OpenAI, logging.Logger], None]


@pytest.fixture(scope="module", autouse=True)
def key(server: Server) -> Iterator[None]:
    """The server's key is where eval-protocol looks for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIREWORKS_API_KEY", server.key)
        for name in ("EP_REMOTE_API_KEY", "EP_MODEL_BASE_URL", "FW_TRACING_GATEWAY_BASE_URL"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(params=["http://localhost:{port}", "http://127.0.0.1:{port}/litellm-gateway"])
def gateway(server: Server, request: pytest.FixtureRequest) -> str:
    """The two kinds of base URL to which eval-protocol adds a rollout's ids."""
    return str(request.param).format(port=server.url.rpartition(":")[2])


def a_row(rollout_id: str, **given: Any) -> EvaluationRow:
    ids = {name: f"{name}-of-{rollout_id}" for name in ("invocation_id", "experiment_id", "run_id")}
    return EvaluationRow(
        messages=[Message(role="user", content="2+2?")],
        input_metadata=InputMetadata(row_id=f"math/{rollout_id}"),
        execution_metadata=ExecutionMetadata(rollout_id=rollout_id, **ids),
        **given,
    )


def rolled_out(
    play: Play, gateway: str, *rows: EvaluationRow, params: Json | None = None, **options: Any
) -> list[EvaluationRow]:
    """The rows after the processor has rolled them out; raises what it raises."""

    async def run(url: str) -> list[EvaluationRow]:
        processor = RemoteRolloutProcessor(
            remote_base_url=url, model_base_url=gateway, poll_interval=0.1, **options
        )
        config = RolloutProcessorConfig(
            completion_params={"model": MODEL, "temperature": 0.5} | (params or {}),
            mcp_config_path="",
            semaphore=asyncio.Semaphore(8),
        )
        try:
            return await asyncio.gather(*processor(list(rows), config))
        finally:
            await processor.acleanup()

    with remote(play, gateway) as url:
        return asyncio.run(run(url))


def remote(play: Play, gateway: str) -> Any:
    """A remote server; its URL."""

    def init(path: str, payload: Json) -> tuple[int, object]:
        assert path == "/init"
        threading.Thread(target=rollout, args=[InitRequest.model_validate(payload)]).start()
        return 200, {}

    def rollout(request: InitRequest) -> None:
        rollout_id = request.metadata.rollout_id
        logger = logging.getLogger(f"remote.{rollout_id}")
        logger.setLevel(logging.INFO)
        handler = FireworksTracingHttpHandler(gateway_base_url=gateway)
        logger.handlers = [handler]
        logger.filters = [RolloutIdFilter(rollout_id)]
        with OpenAI(
            base_url=request.model_base_url, api_key=request.api_key, max_retries=0
        ) as model:
            play(request, model, logger)
        handler._session.close()

    return answering(init)


def two_turns(request: InitRequest, model: OpenAI, logger: logging.Logger) -> None:
    logger.info("begins")
    logger.info("runs", extra={"status": Status.rollout_running()})
    messages: list[Any] = list(request.messages)
    for say in ("Are you sure?", "Really?"):
        asked = request.completion_params | {"max_tokens": 6}
        said = model.chat.completions.create(messages=messages, **asked).choices[0].message
        messages += [{"role": "assistant", "content": said.content}]
        messages += [{"role": "user", "content": say}]
    extra = {"status": Status.rollout_finished(), "extras": {"judge": {"calls": 2}}}
    logger.info("done", extra=extra)


def test_a_remote_rollout_finishes_with_the_messages_that_its_agent_exchanged(gateway: str):
    """Contract check 26."""
    name = f"calm-{gateway.count('/')}"
    (row,) = rolled_out(two_turns, gateway, a_row(name))
    assert row.rollout_status.code == Status.Code.FINISHED, row.rollout_status
    assert row.rollout_status.message == "Rollout finished"
    assert [message.role for message in row.messages] == ["user", "assistant", "user", "assistant"]
    assert [row.messages[i].content for i in (0, 2)] == ["2+2?", "Are you sure?"]
    ids = row.execution_metadata
    assert (ids.rollout_id, ids.invocation_id) == (name, f"invocation_id-of-{name}")
    assert (ids.experiment_id, ids.run_id) == (f"experiment_id-of-{name}", f"run_id-of-{name}")
    assert row.execution_metadata.extra == {"judge": {"calls": 2}}

    logged = FireworksTracingAdapter(base_url=gateway).search_logs(tags=[f"rollout_id:{name}"])
    assert [entry["message"] for entry in logged] == ["done", "runs", "begins"]
    assert {entry["severity"] for entry in logged} == {"INFO"}


def test_payloads_carry_the_tokens_of_each_turn(server: Server):
    gateway = f"{server.url}/litellm-gateway"
    (row,) = rolled_out(two_turns, gateway, a_row("with-payloads"), include_payloads=True)
    extra = row.execution_metadata.extra or {}
    assert extra["logprobs_metadata"]["all_token_ids_valid"] is True
    assert 0 < len(extra["completion_token_ids"]) == len(extra["completion_logprobs"]) <= 6
    assert all(logprob <= 0 for logprob in extra["completion_logprobs"])
    first, second = extra["assistant_turn_payloads"]
    assert second["prompt_token_ids"] == extra["prompt_token_ids"]
    assert len(first["prompt_token_ids"]) < len(second["prompt_token_ids"])
    replies = [message for message in row.messages if message.role == "assistant"]
    assert all((reply.logprobs or {})["content"] for reply in replies)


def test_an_error_that_the_agent_reports_is_raised_with_its_message(gateway: str):
    """Contract check 27."""

    def fails(request: InitRequest, model: OpenAI, logger: logging.Logger) -> None:
        logger.error("oh", extra={"status": Status.rollout_error("the tool was not there")})

    with pytest.raises(InternalError, match="the tool was not there"):
        rolled_out(fails, gateway, a_row(f"failing-{gateway.count('/')}"))


def test_a_rollout_that_ends_without_a_status_is_past_its_deadline(gateway: str):
    """Contract check 27."""

    def answers_and_leaves(request: InitRequest, model: OpenAI, logger: logging.Logger) -> None:
        asked = request.completion_params | {"max_tokens": 2}
        model.chat.completions.create(messages=list(request.messages), **asked)

    slow = a_row(f"slow-{gateway.count('/')}")
    (row,) = rolled_out(answers_and_leaves, gateway, slow, timeout_seconds=2)
    assert row.rollout_status.code == Status.Code.DEADLINE_EXCEEDED
    assert "timed out after 2 seconds" in row.rollout_status.message
    assert [message.role for message in row.messages] == ["user", "assistant"]


def test_a_rollout_without_any_call_is_not_found(server: Server):
    def stays_silent(request: InitRequest, model: OpenAI, logger: logging.Logger) -> None:
        logger.info("done", extra={"status": Status.rollout_finished()})

    (row,) = rolled_out(stays_silent, f"{server.url}/litellm-gateway", a_row("silent"))
    assert row.rollout_status.code == Status.Code.NOT_FOUND
    assert row.rollout_status.message == "No remote data found for rollout"


def test_a_rollouts_traces_are_its_own(server: Server):
    """Contract check 28."""
    names = ("twin", "twin-1", "twin-10")

    def says_its_name(request: InitRequest, model: OpenAI, logger: logging.Logger) -> None:
        said = {"role": "user", "content": f"I am {request.metadata.rollout_id}"}
        asked = request.completion_params | {"max_tokens": 2}
        model.chat.completions.create(messages=[*request.messages, said], **asked)
        logger.info("done", extra={"status": Status.rollout_finished()})

    gateway = f"{server.url}/litellm-gateway"
    rows = rolled_out(says_its_name, gateway, *map(a_row, names))
    assert [row.messages[1].content for row in rows] == [f"I am {name}" for name in names]

    adapter = FireworksTracingAdapter(base_url=gateway)
    both = ["rollout_id:twin-1", "run_id:run_id-of-twin-1"]
    assert len(adapter.get_evaluation_rows(tags=both)) == 1
    crossed = ["rollout_id:twin-1", "run_id:run_id-of-twin"]
    assert adapter.get_evaluation_rows(tags=crossed) == []
    assert adapter.get_evaluation_rows(tags=["rollout_id:twi"]) == []

    server.call("POST", "/accounts", {"slug": "others"})
    key = server.call("POST", "/keys", {"name": "theirs", "account": "others"})["secret"]
    theirs = FireworksTracingAdapter(base_url=gateway, api_key=key)
    assert theirs.get_evaluation_rows(tags=["rollout_id:twin"]) == []
    assert theirs.search_logs(tags=["rollout_id:twin"]) == []


def test_a_call_to_somebody_elses_server_is_refused(server: Server):
    refused: list[str] = []

    def asks(request: InitRequest, model: OpenAI, logger: logging.Logger) -> None:
        with pytest.raises(BadRequestError) as error:
            model.chat.completions.create(messages=list(request.messages), model=MODEL)
        refused.append(error.value.message)
        logger.info("gone", extra={"status": Status.rollout_error("refused")})

    with pytest.raises(InternalError, match="refused"):
        rolled_out(
            asks,
            f"{server.url}/litellm-gateway",
            a_row("elsewhere"),
            params={"base_url": "https://models.example/v1"},
        )
    assert len(refused) == 1
    assert "'https://models.example/v1' is a server that this one does not call" in refused[0]


def test_litellm_finds_the_model_at_the_root_and_openai_below_inference(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    """Contract check 23."""
    import litellm

    ask: Any = {"messages": [{"role": "user", "content": "2+2?"}], "max_tokens": 4}
    monkeypatch.setenv("FIREWORKS_API_BASE", server.url)
    by_litellm = litellm.completion(model=f"fireworks_ai/{MODEL}", **ask)
    assert by_litellm.usage.completion_tokens > 0
    with OpenAI(base_url=f"{server.url}/inference/v1", api_key=server.key) as client:
        reply = client.chat.completions.create(model=MODEL, **ask)
        assert "tiny" in [model.id for model in client.models.list()]
    assert reply.usage is not None
    assert reply.usage.completion_tokens > 0


def test_the_page_about_remote_rollouts_runs_as_it_is_written(server: Server, tmp_path: Path):
    port = free_port()
    evaluator, agent = (
        block.replace("http://127.0.0.1:8420", server.url)
        .replace("localhost:3000", f"localhost:{port}")
        .replace("models/qwen3-0p6b", "models/tiny")
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    )
    (tmp_path / "test_math.py").write_text(evaluator)
    (tmp_path / "agent.py").write_text(agent)
    row = {"messages": [{"role": "user", "content": "2+2?"}], "ground_truth": "4"}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    env = os.environ | {"HOME": str(tmp_path)}
    uvicorn = [sys.executable, "-m", "uvicorn", "agent:app", "--port", str(port)]
    with subprocess.Popen([*uvicorn, "--log-level", "warning"], cwd=tmp_path, env=env) as served:
        try:
            until(lambda: is_listening(port))
            results = tmp_path / "results"
            pytest_ = [sys.executable, "-m", "pytest", "test_math.py", "--ep-no-upload"]
            done = subprocess.run(
                [*pytest_, "--ep-output-dir", str(results)],
                cwd=tmp_path,
                env=env,
                capture_output=True,
                text=True,
                timeout=120,
            )
        finally:
            served.terminate()
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = results.rglob("*.jsonl")
    (scored,) = map(json.loads, file.read_text().splitlines())
    assert scored["rollout_status"]["code"] == 100
    assert [message["role"] for message in scored["messages"]] == ["user", "assistant"]
    assert scored["evaluation_result"]["score"] in (0.0, 1.0)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        found: int = listening.getsockname()[1]
    return found


def is_listening(port: int) -> bool:
    with socket.socket() as trying:
        return trying.connect_ex(("127.0.0.1", port)) == 0
