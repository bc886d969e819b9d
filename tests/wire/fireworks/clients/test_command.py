"""`eval-protocol create rft` against a server of ours, with nothing but two variables set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.wire.aws.clients.service import Server, until
from tests.wire.fireworks.clients.conftest import BASE, Created, eval_protocol


def test_a_wrong_key_ends_the_command(env: dict[str, str], project: Path):
    done = eval_protocol(
        env | {"FIREWORKS_API_KEY": "tw_wrong"},
        project,
        *("create", "rft", "--yes", "--skip-validation", "--base-model", BASE),
    )
    assert done.returncode == 1
    assert "Could not resolve Fireworks account id" in done.stdout + done.stderr


def test_one_command_uploads_rows_secrets_and_evaluator_and_makes_the_job(
    server: Server, created: Created, sdk: Any
):
    name = f"accounts/default/reinforcementFineTuningJobs/{created.job}"
    assert f"Created Reinforcement Fine-tuning Job: {name}" in created.printed
    for kept in ("openai-api-key", "my-token", "fireworks-api-key"):
        assert sdk.secrets.get(kept).name == f"accounts/default/secrets/{kept}"
    evaluator = sdk.evaluators.get(created.evaluator)
    assert (evaluator.state, evaluator.entry_point) == ("ACTIVE", "test_math.py::test_math")
    job = sdk.reinforcement_fine_tuning_jobs.get(created.job)
    assert job.evaluator == evaluator.name
    assert sdk.datasets.get(job.dataset.rpartition("/")[2]).state == "READY"
    for link in (f"evaluators/{created.evaluator}", f"fine-tuning/reinforcement/{created.job}"):
        assert f"{server.url}/dashboard/{link}" in created.printed


def test_the_job_trains_with_the_evaluators_scores(created: Created, sdk: Any):
    jobs = sdk.reinforcement_fine_tuning_jobs
    ended = ("JOB_STATE_COMPLETED", "JOB_STATE_FAILED")
    job = until(lambda: (j := jobs.get(created.job)).state in ended and j, 240.0)
    assert job.state == "JOB_STATE_COMPLETED", job.status
    assert job.job_progress.percent == 100
    model = sdk.models.get("my-rft")
    assert (model.kind, model.fine_tuning_job) == ("HF_PEFT_ADDON", job.name)
    path = f"/v1/{job.name}/metrics"
    found = sdk.get(path, cast_to=object)
    assert [step["step"] for step in found["steps"]] == [0, 1]
    assert all(0 < step["reward_mean"] < 1 for step in found["steps"])


def test_an_evaluator_of_that_id_is_made_anew_with_force(
    env: dict[str, str], project: Path, created: Created, sdk: Any
):
    former = sdk.evaluators.get(created.evaluator).create_time
    done = eval_protocol(
        env, project, "upload", "--yes", "--force", "--entry", "test_math.py::test_math"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = until(lambda: (e := sdk.evaluators.get(created.evaluator)).state != "BUILDING" and e)
    assert built.create_time > former
    assert built.state == "ACTIVE", built.status


def test_what_is_wrong_is_what_the_command_prints(
    env: dict[str, str], project: Path, created: Created
):
    done = eval_protocol(
        env,
        project,
        *("create", "rft", "--yes", "--skip-validation", "--base-model", BASE),
        *("--dataset", "nothing", "--evaluator", created.evaluator, "--learning-rate", "0.01"),
    )
    assert done.returncode == 1
    said = "Learning rate 1e-2 outside valid range [1e-5, 5e-4]"
    assert said in done.stdout + done.stderr
