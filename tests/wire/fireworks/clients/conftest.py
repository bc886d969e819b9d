"""One server, one project and one job that the real command line made, for all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.wire.aws.clients.service import Server, save_model

#: The base model's name.
BASE = "accounts/fireworks/models/tiny"
#: Longest that a job or a build may take on a slow machine.
LONG_S = 280.0

#: Scores differ by what is said; those of a row whose truth is "same" never do.
TEST = f"""\
from eval_protocol.models import EvaluateResult, EvaluationRow
from eval_protocol.pytest import SingleTurnRolloutProcessor, evaluation_test


@evaluation_test(
    input_dataset=["data.jsonl"],
    completion_params=[{{"model": "{BASE}", "temperature": 0.7, "max_tokens": 8}}],
    rollout_processor=SingleTurnRolloutProcessor(),
    mode="pointwise",
)
def test_math(row: EvaluationRow) -> EvaluationRow:
    said = str(row.messages[-1].content or "")
    score = 0.5 if row.ground_truth == "same" else 0.1 + len(said) % 7 / 10
    row.evaluation_result = EvaluateResult(score=score, reason="length")
    return row
"""
ROWS = [
    {"messages": [{"role": "user", "content": "2+2?"}], "ground_truth": "4"},
    {"messages": [{"role": "user", "content": "3+3?"}], "ground_truth": "6"},
]


def jsonl(rows: list[dict[str, Any]]) -> str:
    """Rows as a file has them."""
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with a tiny model, whose evaluators run in the clients' environment."""
    folder = tmp_path_factory.mktemp("server") / "data"
    started = Server(folder, TURNWISE_EVALUATOR_PYTHON=sys.executable)
    model = folder / "models" / "tiny"
    model.parent.mkdir()
    save_model(model)
    yield started
    started.stop()
    print(started.log.read_text())


@pytest.fixture(scope="session")
def env(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a user's shell has: the server as the address, and a key of it."""
    return {
        "FIREWORKS_API_BASE": server.url,
        "FIREWORKS_API_KEY": server.key,
        "EP_DISABLE_AUTO_BROWSER": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else its prices are asked for on the internet
        "HOME": str(tmp_path_factory.mktemp("home")),  # eval-protocol keeps a database there
    }


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an evaluation test and its rows, as a user has it."""
    folder = tmp_path_factory.mktemp("user") / "proj"
    folder.mkdir()
    (folder / "test_math.py").write_text(TEST)
    (folder / "data.jsonl").write_text(jsonl(ROWS))
    (folder / "requirements.txt").write_text("eval-protocol\n")
    (folder / ".env").write_text("OPENAI_API_KEY=sk-zzz\nMY_TOKEN=abc\n")
    return folder


def eval_protocol(
    env: Mapping[str, str], folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FIREWORKS_")}
    return subprocess.run(
        [sys.executable, "-m", "eval_protocol.cli", *arguments],
        cwd=folder,
        env=kept | dict(env),
        capture_output=True,
        text=True,
        timeout=LONG_S,
    )


class Watched:
    """A job whose states are looked at until it has ended, while other tests go on.

    With `cancel_after` it is cancelled once it has made that many steps.
    """

    def __init__(self, sdk: Any, id: str, *, cancel_after: int = 0) -> None:
        self.id = id
        self.states: list[str] = []
        self._jobs = sdk.reinforcement_fine_tuning_jobs
        self._cancel_after = cancel_after
        self._job: Any = None
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while self._job is None:
            job = self._jobs.get(self.id)
            if 0 < self._cancel_after <= len(json.loads(job.output_metrics)["steps"]):
                self._jobs.cancel(self.id, body={})
                self._cancel_after = 0
            if job.state not in self.states[-1:]:
                self.states.append(job.state)
            if job.completed_time is not None:
                self._job = job
            time.sleep(0.2)

    def ended(self) -> Any:
        """The job once it is over."""
        self._thread.join(LONG_S)
        assert self._job is not None, self.states
        return self._job


@dataclass(frozen=True)
class Created:
    """What `eval-protocol create rft` made, what it printed, and the calls that it came with."""

    printed: str
    calls: list[str]
    watched: Watched
    job: str = "my-job"
    evaluator: str = "test-math-test-math"


def calls_in_trail(server: Server, **query: str) -> list[str]:
    """The first hundred calls of Fireworks' clients in the audit trail, with their errors."""
    asked = urlencode({"source": "fireworks", "oldest_first": "true", **query})
    found = [each["record"] for each in server.call("GET", f"/audit/records?{asked}")["records"]]
    return [f"{each['eventName']} {each.get('errorCode', '')}".strip() for each in found]


@pytest.fixture(scope="session")
def created(env: dict[str, str], project: Path, server: Server, sdk: Any) -> Created:
    """A job of two steps, by the command with all that it can say."""
    done = eval_protocol(
        env,
        project,
        *("create", "rft", "--yes", "--base-model", BASE),
        *("--output-model", "my-rft", "--epochs", "2", "--learning-rate", "5e-5"),
        *("--lora-rank", "16", "--batch-size", "32768", "--max-context-length", "8192"),
        *("--temperature", "0.9", "--top-p", "0.95", "--top-k", "40"),
        *("--max-output-tokens", "16", "--response-candidates-count", "4"),
        *("--extra-body", '{"stop":["\\n"]}', "--chunk-size", "100"),
        *("--max-concurrent-rollouts", "16", "--max-concurrent-evaluations", "8"),
        *("--rl-kl-beta", "0.01", "--job-id", "my-job"),
    )
    watched = Watched(sdk, "my-job")
    assert done.returncode == 0, done.stdout + done.stderr
    return Created(done.stdout, calls_in_trail(server), watched)


@pytest.fixture(scope="session")
def sdk(server: Server) -> Iterator[Any]:
    """The SDK's client, as one makes it from the environment."""
    from fireworks import Fireworks

    with Fireworks(api_key=server.key, base_url=server.url, account_id="default") as client:
        yield client


def upload(sdk: Any, id: str, rows: list[dict[str, Any]], file: Path) -> str:
    """A dataset's name, made as the notebook makes one."""
    file.write_text(jsonl(rows))
    sdk.datasets.create(dataset_id=id, dataset={"format": "CHAT", "example_count": len(rows)})
    with file.open("rb") as content:
        sent = sdk.datasets.upload(id, file=content)
    assert sent.bytes == file.stat().st_size
    return str(sdk.datasets.get(id).name)


@pytest.fixture(scope="session")
def dataset(sdk: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset that the SDK has made."""
    return upload(sdk, "rows", ROWS, tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture(scope="session")
def long_job(sdk: Any, created: Created, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A job of a thousand steps that is cancelled after its second."""
    dataset = upload(sdk, "many", ROWS * 50, tmp_path_factory.mktemp("many") / "many.jsonl")
    sdk.reinforcement_fine_tuning_jobs.create(
        reinforcement_fine_tuning_job_id="long",
        dataset=dataset,
        evaluator=f"accounts/default/evaluators/{created.evaluator}",
        chunk_size=1,
        training_config={"base_model": BASE, "epochs": 10, "lora_rank": 4},
        inference_parameters={"max_output_tokens": 16, "response_candidates_count": 2},
    )
    return Watched(sdk, "long", cancel_after=2)
