"""The flow of Fireworks' own notebook about managed GRPO, on its clients, by its calls alone.

fw-ai/cookbook, training/case-studies/reasoning_rl/rft_grpo_math.ipynb: rows, an evaluator by
`create_evaluation`, the base model deployed and scored, the job, the tuned model deployed and
scored, the deployment deleted. Smaller rows and fewer steps are all that differs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fireworks
import pytest
from eval_protocol.evaluation import create_evaluation
from eval_protocol.models import EvaluateResult, EvaluationRow, Message
from eval_protocol.pytest import SingleTurnRolloutProcessor
from eval_protocol.pytest.execution import execute_pytest
from eval_protocol.pytest.types import RolloutProcessorConfig
from eval_protocol.rewards.math import math_reward
from fireworks import Fireworks, file_from_path

from tests.wire.aws.clients.service import Server, until
from tests.wire.fireworks.clients.conftest import BASE, LONG_S, jsonl

EVALUATOR = """\
from eval_protocol.models import EvaluateResult, EvaluationRow
from eval_protocol.pytest import evaluation_test, SingleTurnRolloutProcessor
from eval_protocol.rewards.math import math_reward


@evaluation_test(
    input_dataset=["train.jsonl"],
    completion_params=[{"max_tokens": 512, "temperature": 0.7}],
    rollout_processor=SingleTurnRolloutProcessor(),
    mode="pointwise",
)
def evaluate(row: EvaluationRow) -> EvaluationRow:
    result = math_reward(messages=row.messages, ground_truth=row.ground_truth)
    row.evaluation_result = EvaluateResult(score=result.score, reason=result.reason)
    return row
"""

SYSTEM = {"role": "system", "content": "Put the final answer in <answer></answer> tags."}
TRAINED = [
    {
        "messages": [SYSTEM, {"role": "user", "content": f"{n}+{n}?"}],
        "ground_truth": str(2 * n),
    }
    for n in range(1, 11)
]
HELD_OUT = TRAINED[-2:]


@pytest.fixture
def client(server: Server) -> Iterator[Fireworks]:
    """As the notebook makes it, from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIREWORKS_API_KEY", server.key)
        patch.setenv("FIREWORKS_ACCOUNT_ID", "default")
        patch.setenv("FIREWORKS_BASE_URL", server.url)
        patch.setenv("FIREWORKS_API_BASE", server.url)
        patch.setenv("EP_LLM_API_BASE", f"{server.url}/inference/v1")
        with Fireworks() as made:
            yield made


def wait_until(get: Callable[[], Any], good: str, bad: set[str]) -> Any:
    """The notebook's way to wait: on `state` alone."""
    found = until(lambda: (it := get()).state in {good, *bad} and it, LONG_S)
    assert found.state == good, found
    return found


def accuracy(model: str) -> float:
    """The mean score over the rows that were held out."""

    async def run() -> list[EvaluationRow]:
        config = RolloutProcessorConfig(
            completion_params={"model": model, "temperature": 0.0, "max_tokens": 16},
            mcp_config_path="",
            semaphore=asyncio.Semaphore(8),
        )
        rows = [
            EvaluationRow(
                messages=[Message(**message) for message in row["messages"]],
                ground_truth=row["ground_truth"],
            )
            for row in HELD_OUT
        ]
        rolled = await asyncio.gather(*SingleTurnRolloutProcessor()(rows, config))
        return [await execute_pytest(scored, processed_row=row) for row in rolled]

    async def scored(row: EvaluationRow) -> EvaluationRow:
        said = math_reward(messages=row.messages, ground_truth=row.ground_truth)
        row.evaluation_result = EvaluateResult(score=said.score, reason=said.reason)
        return row

    rows = asyncio.run(run())
    for row in rows:
        assert row.messages[-1].role == "assistant"
    return sum(row.evaluation_result.score for row in rows) / len(rows)


def deployed_accuracy(client: Fireworks, model: str, id: str) -> float:
    """The same of a model that is deployed for it."""
    made = client.deployments.create(
        base_model=model,
        deployment_id=id,
        accelerator_type="NVIDIA_H200_141GB",
        min_replica_count=1,
        max_replica_count=1,
    )
    wait_until(lambda: client.deployments.get(id), "READY", {"FAILED"})
    assert made.name == f"accounts/default/deployments/{id}"
    found = accuracy(made.name)
    client.deployments.delete(id, ignore_checks=True)
    return found


def test_the_notebook_about_managed_grpo_runs_with_only_addresses_changed(
    client: Fireworks, tmp_path: Path
):
    """Contract checks 5, 16, 30."""
    folder = tmp_path / "grpo_math_evaluator"
    folder.mkdir()
    (folder / "test_math.py").write_text(EVALUATOR)
    (folder / "requirements.txt").write_text("eval-protocol>=0.3.23\nopenai\n")
    former = Path.cwd()
    os.chdir(folder)
    try:
        made = create_evaluation(
            evaluator_id="grpo-math",
            display_name="grpo-math",
            description="verifiable reward",
            force=True,
            account_id="default",
            api_key=os.environ["FIREWORKS_API_KEY"],
            entry_point="test_math.py::evaluate",
        )
    finally:
        os.chdir(former)
    name = made.get("name") if isinstance(made, dict) else made.name
    assert name == "accounts/default/evaluators/grpo-math"
    wait_until(lambda: client.evaluators.get("grpo-math"), "ACTIVE", {"BUILD_FAILED"})

    (tmp_path / "train.jsonl").write_text(jsonl(TRAINED))
    client.datasets.create(dataset_id="train", dataset={"format": "CHAT", "example_count": 10})
    client.datasets.upload("train", file=file_from_path(tmp_path / "train.jsonl"))
    wait_until(lambda: client.datasets.get("train"), "READY", {"STATE_UNSPECIFIED"})
    job = client.reinforcement_fine_tuning_jobs.create(
        dataset="accounts/default/datasets/train",
        evaluator=name,
        training_config={
            "base_model": BASE,
            "output_model": "accounts/default/models/tiny-grpo-math",
            "epochs": 1,
            "learning_rate": 1e-4,
            "lora_rank": 8,
        },
        inference_parameters={
            "temperature": 0.7,
            "max_output_tokens": 16,
            "response_candidates_count": 2,
        },
        loss_config={"method": "GRPO"},
        eval_auto_carveout=True,
    )
    id = job.name.rpartition("/")[2]
    before = deployed_accuracy(client, BASE, "base")
    ended = until(
        lambda: (j := client.reinforcement_fine_tuning_jobs.get(id)).completed_time and j, LONG_S
    )
    # Random weights are never right, and so the one epoch has nothing to learn from.
    assert ended.state in ("JOB_STATE_COMPLETED", "JOB_STATE_EARLY_STOPPED"), ended.status

    tuned = "accounts/default/models/tiny-grpo-math"
    assert client.models.get("tiny-grpo-math").fine_tuning_job == job.name
    after = deployed_accuracy(client, tuned, "tuned")
    assert (before, after) == (0.0, 0.0)
    with pytest.raises(fireworks.NotFoundError):
        client.deployments.get("tuned")
