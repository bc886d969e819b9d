"""One server, one project and one job that the real command line made, for all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.wire.aws.clients.service import Server, save_model

#: The base model's name.
BASE = "accounts/fireworks/models/tiny"

TEST = """\
from eval_protocol.models import EvaluateResult, EvaluationRow
from eval_protocol.pytest import SingleTurnRolloutProcessor, evaluation_test


@evaluation_test(
    input_dataset=["data.jsonl"],
    completion_params=[{"model": "openai/tiny", "temperature": 0.7}],
    rollout_processor=SingleTurnRolloutProcessor(),
    mode="pointwise",
)
def test_math(row: EvaluationRow) -> EvaluationRow:
    said = str(row.messages[-1].content or "")
    row.evaluation_result = EvaluateResult(score=0.1 + len(said) % 7 / 10, reason="length")
    return row
"""
ROWS = [
    {"messages": [{"role": "user", "content": "2+2?"}], "ground_truth": "4"},
    {"messages": [{"role": "user", "content": "3+3?"}], "ground_truth": "6"},
]


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
        "FIREWORKS_BASE_URL": server.url,
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
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
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
        timeout=280,
    )


@dataclass(frozen=True)
class Created:
    """What `eval-protocol create rft` made, and what it printed."""

    printed: str
    job: str = "my-job"
    evaluator: str = "test-math-test-math"


@pytest.fixture(scope="session")
def created(env: dict[str, str], project: Path) -> Created:
    """A job of two steps, by the command with all that it can say."""
    done = eval_protocol(
        env,
        project,
        *("create", "rft", "--yes", "--skip-validation", "--base-model", BASE),
        *("--output-model", "my-rft", "--epochs", "2", "--learning-rate", "5e-5"),
        *("--lora-rank", "16", "--batch-size", "32768", "--max-context-length", "8192"),
        *("--temperature", "0.9", "--top-p", "0.95", "--top-k", "40"),
        *("--max-output-tokens", "16", "--response-candidates-count", "4"),
        *("--extra-body", '{"stop":["\\n"]}', "--chunk-size", "100"),
        *("--max-concurrent-rollouts", "16", "--max-concurrent-evaluations", "8"),
        *("--rl-kl-beta", "0.01", "--job-id", "my-job"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Created(done.stdout)


@pytest.fixture(scope="session")
def sdk(env: dict[str, str], server: Server) -> Iterator[Any]:
    """The SDK's client, as one makes it from the environment."""
    from fireworks import Fireworks

    with Fireworks(api_key=server.key, base_url=server.url, account_id="default") as client:
        yield client
