"""SageMaker's Job API with boto3, the aws command line and the sagemaker SDK."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.wire.aws.clients.answering import Json
from tests.wire.aws.clients.conftest import QUOTA, Trained
from tests.wire.aws.clients.place import BASE, Place
from tests.wire.aws.clients.running import RunningJob
from tests.wire.aws.clients.service import Server, aws, until


@pytest.fixture
def rft(shell: dict[str, str]) -> type[Any]:
    """`AgentRFTJob`; the SDK reads the environment when it is imported."""
    from sagemaker.train.agent_rft_job import AgentRFTJob

    return AgentRFTJob


# ── what is asked and what is told ────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Asked:
    """A job that a trainer with two changed hyperparameters has started, and what was told then."""

    job: Any
    document: Json  # as the trainer built it
    status: str  # by the DescribeJob that the SDK makes at once
    described: Json
    took_s: float  # of that description, asked for when the trainer had returned
    spec: Json  # what the server made of it


@pytest.fixture(scope="module")
def asked(place: Place, server: Server) -> Asked:
    """It is stopped: its agent never answers."""
    trainer = place.trainer(agent_env=place.agent("silent"), base_job_name="asked")
    trainer.hyperparameters.max_steps = 12
    trainer.hyperparameters.pass_k_values = [1, 2]
    job = trainer.train(wait=False)
    status, began = job.job_status, time.monotonic()
    described = place.describe(job.job_name)
    took_s = time.monotonic() - began
    spec = server.call("GET", f"/jobs/{job.job_name}")["spec"]
    job.stop()
    place.ended(job.job_name)
    return Asked(job, trainer._build_job_config(), status, described, took_s, spec)


def test_train_without_wait_is_in_progress_within_a_second_and_its_arn_has_category_and_name(
    asked: Asked,
) -> None:
    """Contract check 5."""
    assert asked.status == asked.described["JobStatus"] == "InProgress"
    assert asked.took_s < 1
    assert asked.described["JobArn"] == asked.job.job_arn
    assert asked.job.job_arn.endswith(f"job/AgentRFT/{asked.job.job_name}")


def test_the_stored_document_is_returned_as_it_was_sent_plus_service_output(asked: Asked) -> None:
    """Contract check 6."""
    found = json.loads(asked.described["JobConfigDocument"])
    output = found.pop("ServiceOutput")
    assert found == asked.document
    assert (output["ProgressInfo"]["MaxSteps"], output["ProgressInfo"]["BatchSize"]) == (12, 2)


def test_only_changed_hyperparameters_are_sent_as_strings_and_merged_with_the_defaults(
    asked: Asked,
) -> None:
    """Contract check 7."""
    sent = json.loads(asked.described["JobConfigDocument"])["TrainingConfig"]["HyperParameters"]
    assert sent == {"max_steps": "12", "pass_k_values": "[1, 2]"}
    assert asked.spec["schedule"]["max_steps"] == 12
    assert asked.spec["validation"]["pass_k_values"] == [1, 2]
    assert (asked.spec["batch"]["group_size"], asked.spec["lora"]["rank"]) == (2, 4)


def test_train_with_wait_prints_the_metrics_table_and_sets_the_output_model_package_arn(
    trained: Trained,
) -> None:
    """Contract check 10."""
    table = trained.printed.partition("Training Metrics")[2]
    assert "Reward/Mean" in table
    assert "Turns/Mean" in table
    rows = [line.split() for line in table.splitlines() if re.match(r" +\d", line)]
    step, reward, turns, tokens, trajectories = zip(*rows, strict=True)
    assert step == ("0", "1")
    assert reward == ("0.5000", "0.5000")  # the agent's: 0 and 1 in each group
    assert (turns, trajectories) == (("2", "2"), ("4", "4"))
    assert all(int(count) > 0 for count in tokens)
    assert re.fullmatch(
        rf"arn:aws:sagemaker:us-west-2:\d{{12}}:model-package/{BASE}-mtrl-mpg/\d+",
        trained.job.output_model_package_arn,
    )
    assert trained.trainer.output_model_package_arn == trained.job.output_model_package_arn
    assert [each.status for each in trained.job.secondary_status_transitions] == [
        *("Pending", "Starting", "Downloading", "Training", "Uploading", "Completed"),
    ]


# ── jobs that fail ────────────────────────────────────────────────────────────────────────────

FLAT = {"group_size": "4", "max_epochs": "2", "pass_k_values": "[1, 4]"}
NESTED = {
    "batch": {"group_size": 4},
    "schedule": {"max_epochs": 2},
    "val_metrics_config": {"pass_k_values": [1, 4]},
}


@pytest.fixture(scope="module")
def failed(place: Place) -> dict[str, Json]:
    """Three jobs whose agent nobody reaches, as DescribeJob tells them in the end."""
    found = {}
    for name, hyperparameters in (("failed-a", FLAT), ("failed-b", NESTED), ("failed-c", {})):
        place.create(name, place.document("nobody", **hyperparameters))
        found[name] = place.ended(name)
    return found


def test_nested_typed_hyperparameters_give_the_same_effective_configuration(
    failed: dict[str, Json], server: Server
) -> None:
    """Contract check 8."""
    flat, nested = [server.call("GET", f"/jobs/{name}")["spec"] for name in list(failed)[:2]]
    assert flat | {"name": "failed-b"} == nested
    assert nested["batch"]["group_size"] == 4
    assert nested["validation"]["pass_k_values"] == [1, 4]


def test_a_failed_job_tells_its_reason_and_its_transitions_end_with_failed(
    failed: dict[str, Json], rft: type[Any]
) -> None:
    """Contract check 11."""
    found = failed["failed-a"]
    assert found["JobStatus"] == "Failed"
    assert "127.0.0.1:9" in found["FailureReason"]
    assert len(found["FailureReason"]) <= 1024
    assert found["SecondaryStatusTransitions"][-1]["Status"] == "Failed"
    assert rft.get("failed-a").failure_reason == found["FailureReason"]


def test_get_all_filters_by_status_and_name_sorts_and_reads_all_pages(
    failed: dict[str, Json], place: Place, rft: type[Any]
) -> None:
    """Contract check 15."""
    found = rft.get_all(
        status_equals="Failed", name_contains="failed-", sort_by="Name", sort_order="Descending"
    )
    assert [job.job_name for job in found] == ["failed-c", "failed-b", "failed-a"]
    assert list(rft.get_all(name_contains="failed-", status_equals="Completed")) == []
    asked = {"JobCategory": "AgentRFT", "NameContains": "failed-", "MaxResults": 2}
    page = place.sagemaker.list_jobs(**asked)
    rest = place.sagemaker.list_jobs(**asked, NextToken=page["NextToken"])
    assert [len(each["JobSummaries"]) for each in (page, rest)] == [2, 1]
    assert "NextToken" not in rest


# ── jobs that are stopped ─────────────────────────────────────────────────────────────────────


def test_stop_is_stopping_then_stopped_and_the_last_checkpoint_is_promoted(
    place: Place,
) -> None:
    """Contract check 12."""
    config = {
        "OutputModelPackageGroupArn": place.group("life-mpg"),
        "IntermediateCheckpointModelPackageGroupArn": place.group("life-checkpoint-mpg"),
    }
    document = place.document(max_steps="500", max_epochs="1000") | {"ModelPackageConfig": config}
    with place.job("life", document) as job:
        until(lambda: place.output_of("life")["BillableTokenUsage"]["TrainTokenCount"] > 0)
        until(lambda: "ModelCheckpoint" in place.output_of("life"))
        with place.player.held():
            job.refresh()
            assert job.secondary_status == "Training"
            assert job.progress_info["MaxSteps"] == 500
            assert job.billable_token_usage["SampleTokenCount"] > 0
            job.stop()
            assert place.describe("life")["JobStatus"] in ("Stopping", "Stopped")
        assert place.ended("life")["JobStatus"] == "Stopped"
    job.refresh()
    phases = [each.status for each in job.secondary_status_transitions]
    assert phases[-3:] == ["Training", "Stopping", "Stopped"]
    group = f"arn:aws:sagemaker:{place.region}:{place.account}:model-package/life-mpg/"
    assert job.output_model_package_arn.startswith(group)


@pytest.fixture(scope="module")
def silent(place: Place) -> Iterator[Any]:
    """A job whose agent never answers."""
    with place.job("silenced", place.document("silent")) as job:
        yield job


def test_a_duplicate_job_name_is_in_use_and_a_job_over_the_quota_exceeds_a_limit(
    place: Place, silent: Any, running: RunningJob
) -> None:
    """Contract check 14."""
    with pytest.raises(place.sagemaker.exceptions.ResourceInUse, match=silent.job_name):
        place.create(silent.job_name, place.document("silent"))
    with pytest.raises(place.sagemaker.exceptions.ResourceLimitExceeded) as refused:
        place.create("one-too-many", place.document("silent"))
    assert f"may have {QUOTA} unfinished training jobs" in str(refused.value)
    for name in (silent.job_name, running.name):
        assert name in str(refused.value)
    with pytest.raises(place.sagemaker.exceptions.ResourceNotFound):
        place.describe("one-too-many")


def test_delete_of_a_running_job_is_in_use_and_after_stop_it_is_not_found(
    place: Place, silent: Any
) -> None:
    """Contract check 13."""
    from botocore.exceptions import ClientError

    with pytest.raises(ClientError, match="ResourceInUse"):
        silent.delete()
    assert place.describe(silent.job_name)["JobStatus"] == "InProgress"
    silent.stop()
    place.ended(silent.job_name)
    silent.delete()
    silent.wait_for_delete()
    with pytest.raises(place.sagemaker.exceptions.ResourceNotFound):
        place.describe(silent.job_name)


# ── the command line ──────────────────────────────────────────────────────────────────────────


def test_the_aws_command_runs_the_job_api_and_the_job_runtime(
    place: Place, running: RunningJob, tmp_path: Path
) -> None:
    """Contract check 41."""
    job = ("--job-name", "by-cli", "--job-category", "AgentRFT")
    made = aws(
        place.env,
        *("sagemaker", "create-job", *job, "--role-arn", place.role),
        *("--job-config-schema-version", "1.0.0"),
        *("--job-config-document", json.dumps(place.document("nobody"))),
    )
    assert json.loads(made)["JobArn"].endswith("job/AgentRFT/by-cli")
    found = json.loads(aws(place.env, "sagemaker", "describe-job", *job))
    assert found["JobStatus"] in ("InProgress", "Failed")
    listed = json.loads(aws(place.env, "sagemaker", "list-jobs", "--job-category", "AgentRFT"))
    assert "by-cli" in [each["JobName"] for each in listed["JobSummaries"]]

    lent = running.lend()
    runtime = "sagemakerjobruntime"
    subject = ("--job-arn", lent.job_arn, "--trajectory-id", lent.trajectory_id)
    body = json.dumps({"model": "default", "messages": [{"role": "user", "content": "hi"}]})
    aws(place.env, runtime, "sample", *subject, "--body", body, str(tmp_path / "reply.json"))
    assert json.loads((tmp_path / "reply.json").read_text())["choices"]
    aws(place.env, runtime, "complete-rollout", *subject, "--status", "ready")
    aws(place.env, runtime, "update-reward", *subject, "--rewards", "0.5")
    rollout = running.rollout(lent)
    assert (rollout["status"], rollout["rewards"]) == ("REWARD_RECEIVED", [0.5])
    place.ended("by-cli")


# ── schemas ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("category", ["AgentRFT", "AgentRFTEvaluation"])
def test_the_job_schemas_validate_the_sdks_documents_of_both_categories(
    place: Place, category: str
) -> None:
    """Contract check 19."""
    versions = place.sagemaker.list_job_schema_versions(JobCategory=category)
    [version] = [each["JobConfigSchemaVersion"] for each in versions["JobConfigSchemas"]]
    found = place.sagemaker.describe_job_schema_version(
        JobCategory=category, JobConfigSchemaVersion=version
    )
    schema = json.loads(found["JobConfigSchema"])
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document = _training(place) if category == "AgentRFT" else _evaluation(place)
    validator.validate(document)
    for broken in (
        document | {"AgentConfig": {}},
        document | {"InputDataConfig": []},
        {name: part for name, part in document.items() if name != "AgentConfig"},
        document | {"Unknown": 1},
    ):
        assert not validator.is_valid(broken)


def _training(place: Place) -> Json:
    """What the trainer sends."""
    trainer = place.trainer()
    trainer.hyperparameters.group_size = 4
    trainer.train(dry_run=True)
    document: Json = trainer._build_job_config()
    assert document["TrainingConfig"]["HyperParameters"] == {"group_size": "4"}
    return document


def _evaluation(place: Place) -> Json:
    """What the evaluator's pipeline sends for a base model."""
    evaluator = place.evaluator(mlflow_resource_arn=place.mlflow_app())
    evaluator._resolve_agent_arn()
    context = {"region": place.region, "account_id": place.account, "role_arn": place.role}
    hub = f"arn:aws:sagemaker:{place.region}:aws:hub-content/SageMakerPublicHub/Model"
    artifacts = {"base_model_arn": f"{hub}/{BASE}/1.0.0"}
    built = evaluator._build_template_context(context, artifacts, None)
    document: Json = json.loads(built["job_config_document_str"])
    assert document["EvaluationConfig"]["HyperParameters"]["max_tokens"] == "8"
    return document
