"""Evaluators of the real eval-protocol in real jobs. Runs in the clients' own environment."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[4]
#: The server runs in its own environment; evaluators in this one.
SERVER_PYTHON = os.environ.get("TURNWISE_PYTHON", str(ROOT / ".venv/bin/python"))

#: Longest that a build and a job may take on a slow machine.
TIMEOUT_S = 600

SINGLE_TURN = """
import os
from eval_protocol.models import EvaluateResult, EvaluationRow, MetricResult, StepOutput
from eval_protocol.pytest import SingleTurnRolloutProcessor, evaluation_test

@evaluation_test(
    input_dataset=["data.jsonl"],
    completion_params=[{"model": "accounts/fireworks/models/qwen3-0p6b", "temperature": 0.5}],
    rollout_processor=SingleTurnRolloutProcessor(),
    mode="pointwise",
)
def test_math(row: EvaluationRow) -> EvaluationRow:
    said = row.messages[-1].content or ""
    assert os.environ["JUDGE_KEY"] == "sk-very-secret"
    if row.model_extra.get("is_broken"):
        raise ValueError("no answer in it")
    row.evaluation_result = EvaluateResult(
        score=len(said) % 2,
        is_score_valid=row.ground_truth != "none",
        reason=f"{len(said)} characters; the truth is {row.ground_truth}",
        metrics={"length": MetricResult(score=len(said), reason="its length")},
        step_outputs=[StepOutput(step_index=0, base_reward=0.5)],
    )
    return row
"""

GROUPWISE = """
from eval_protocol.models import EvaluateResult, EvaluationRow
from eval_protocol.pytest import SingleTurnRolloutProcessor, evaluation_test

@evaluation_test(
    input_dataset=["data.jsonl"],
    completion_params=[{"model": "openai/x"}, {"model": "openai/y"}],
    rollout_processor=SingleTurnRolloutProcessor(),
    mode="groupwise",
)
def test_math(rows: list[EvaluationRow]) -> list[EvaluationRow]:
    longest = max(len(row.messages[-1].content or "") for row in rows)
    for row in rows:
        said = len(row.messages[-1].content or "")
        row.evaluation_result = EvaluateResult(score=said / longest, reason=f"of {len(rows)}")
    return rows
"""


REMOTE = """
from eval_protocol.models import EvaluateResult, EvaluationRow
from eval_protocol.pytest import RemoteRolloutProcessor, evaluation_test

@evaluation_test(
    input_dataset=["data.jsonl"],
    completion_params=[{"model": "fireworks_ai/accounts/fireworks/models/qwen3-0p6b"}],
    rollout_processor=RemoteRolloutProcessor(
        remote_base_url="SERVER", timeout_seconds=TIMEOUT_S, poll_interval=0.3
    ),
    mode="pointwise",
)
def test_math(row: EvaluationRow) -> EvaluationRow:
    said = "".join(m.content or "" for m in row.messages if m.role == "assistant")
    row.evaluation_result = EvaluateResult(score=len(said), reason=f"{len(row.messages)} messages")
    return row
"""


def run_job(
    folder: Path,
    test: str,
    rows: Sequence[Mapping[str, Any]] = (),
    *,
    entry_points: Sequence[str] = ("test_math.py::test_math",),
    requirements: str = "eval-protocol>=0.3\n",
    **env: str,
) -> Any:
    """Upload a project of one test file, build it for each entry point, and run a job of these
    rows, if any, with the first.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, text in {"test_math.py": test, "requirements.txt": requirements}.items():
            member = tarfile.TarInfo(f"proj/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    archive = folder / "proj.tar.gz"
    archive.write_bytes(out.getvalue())
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TURNWISE_")}
    done = subprocess.run(
        [
            *(SERVER_PYTHON, "-m", "tests.wire.fireworks.clients.evaluator_job"),
            *(str(folder), str(archive), json.dumps(entry_points), json.dumps(rows)),
        ],
        env=kept | {"PYTHONPATH": str(ROOT), "TURNWISE_EVALUATOR_PYTHON": sys.executable} | env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
