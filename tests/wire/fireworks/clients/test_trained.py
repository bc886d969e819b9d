"""Jobs that train with an uploaded evaluator: to their end, cancelled, from another's adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import fireworks
import pytest
from fireworks.types.reinforcement_fine_tuning_job import ReinforcementFineTuningJob

from tests.wire.aws.clients.service import Server, until
from tests.wire.fireworks.clients.conftest import (
    ROWS,
    Created,
    Watched,
    eval_protocol,
    upload,
)

#: All states that the SDK knows.
STATES = set(get_args(get_args(ReinforcementFineTuningJob.model_fields["state"].annotation)[0]))


@pytest.fixture(scope="module")
def warm(sdk: Any, long_job: Watched, created: Created, tmp_path_factory: Any) -> Watched:
    """A job that goes on from the cancelled one's adapter, with nothing to learn from."""
    long_job.ended()
    rows = [row | {"ground_truth": "same"} for row in ROWS]
    dataset = upload(sdk, "same", rows, tmp_path_factory.mktemp("same") / "same.jsonl")
    sdk.reinforcement_fine_tuning_jobs.create(
        reinforcement_fine_tuning_job_id="warm",
        dataset=dataset,
        evaluator=created.evaluator,
        training_config={"warm_start_from": "accounts/default/models/long", "epochs": 5},
        inference_parameters={"max_output_tokens": 16, "response_candidates_count": 2},
    )
    return Watched(sdk, "warm")


def test_a_cancelled_job_is_not_resumed_and_another_starts_from_its_adapter(
    sdk: Any, long_job: Watched, warm: Watched
):
    """Contract check 18."""
    assert long_job.ended().state == "JOB_STATE_CANCELLED"
    jobs = sdk.reinforcement_fine_tuning_jobs
    with pytest.raises(fireworks.BadRequestError, match="cannot be resumed"):
        jobs.resume(long_job.id, body={})
    model = sdk.models.get("long")
    assert (model.kind, model.peft_details.r) == ("HF_PEFT_ADDON", 4)
    assert jobs.get(warm.id).state in STATES


def test_the_job_trains_with_the_evaluators_scores(server: Server, created: Created, sdk: Any):
    """Contract checks 2, 24."""
    job = created.watched.ended()
    assert job.state == "JOB_STATE_COMPLETED", job.status
    assert job.job_progress.percent == 100
    model = sdk.models.get("my-rft")
    assert (model.kind, model.fine_tuning_job) == ("HF_PEFT_ADDON", job.name)
    found = sdk.get(f"/v1/{job.name}/metrics", cast_to=object)
    assert [step["step"] for step in found["steps"]] == [0, 1]
    rollouts = server.call("GET", f"/jobs/{created.job}/rollouts")["rollouts"]
    assert len(rollouts) == 16  # 2 rows, 4 times each, 2 epochs
    for rollout in rollouts[:4]:
        nodes = server.call("GET", f"/rollouts/{rollout['rollout_id']}")["nodes"]
        (said,) = [m["content"] for n in nodes for m in n["messages"] if m["role"] == "assistant"]
        assert rollout["rewards"] == [0.1 + len(said) % 7 / 10]


def test_states_are_the_sdks_from_validating_to_an_early_end(
    created: Created, long_job: Watched, warm: Watched
):
    """Contract check 19."""
    job = warm.ended()
    assert job.state == "JOB_STATE_EARLY_STOPPED", job.status
    assert "nothing to learn from" in job.status.message
    for watched in (created.watched, long_job, warm):
        assert STATES.issuperset(watched.states)
        seen = [state for state in watched.states if state != "JOB_STATE_PENDING"]
        assert seen[:2] == ["JOB_STATE_VALIDATING", "JOB_STATE_RUNNING"]


def test_an_evaluator_of_that_id_is_made_anew_with_force(
    env: dict[str, str], project: Path, created: Created, warm: Watched, sdk: Any
):
    """Contract check 12."""
    warm.ended()
    former = sdk.evaluators.get(created.evaluator).create_time
    done = eval_protocol(
        env, project, "upload", "--yes", "--force", "--entry", "test_math.py::test_math"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = until(lambda: (e := sdk.evaluators.get(created.evaluator)).state != "BUILDING" and e)
    assert built.create_time > former
    assert built.state == "ACTIVE", built.status
