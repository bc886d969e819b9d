"""CreateJob and its sisters, through botocore's model of them, over jobs in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders import ACCOUNT
from tests.unit.control.kit import ADMIN, World
from tests.unit.control.test_lineage import finish_first_step
from tests.wire.aws.job_kit import (
    AGENT,
    BASE,
    DATA_SET,
    MLFLOW,
    ROLE,
    JobDoor,
    evaluation,
    group_arn,
    package_arn,
    source,
    training,
)
from tests.wire.aws.kit import NUMBER, REGION, Refused, a_call
from turnwise.control.browse import Browse
from turnwise.control.queue import Limits
from turnwise.domain.access import Action
from turnwise.domain.event import EventDraft, EventKind
from turnwise.domain.job import JobKind, JobStatus, Secondary
from turnwise.domain.ledger import TokenUsage
from turnwise.storage.sql import SqlStore
from turnwise.tracking.details import RunState, save_run_state


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[JobDoor]:
    store = SqlStore.in_memory()
    world = World(tmp_path, store, max_running=4)
    found = JobDoor(world)
    await found.register_agent()
    yield found
    await world.jobs.close()
    await store.close()


async def tell(door: JobDoor, name: str, kind: EventKind, **body: Any) -> None:
    job = await door.world.store.job(ACCOUNT, name)
    await door.world.store.append(ACCOUNT, job.job_id, [EventDraft(kind=kind, body=body)])


async def phase(door: JobDoor, name: str, secondary: Secondary) -> None:
    await tell(door, name, EventKind.STATUS, status="RUNNING", secondary=secondary.value)


async def test_a_created_job_is_in_progress_and_has_the_arn_of_its_category(door: JobDoor) -> None:
    """Contract check 5."""
    made = await door.create("walk", training(door.rows))
    assert made["JobArn"] == f"arn:aws:sagemaker:{REGION}:{NUMBER}:job/AgentRFT/walk"
    found = await door.describe("walk")
    assert found["JobStatus"] == "InProgress"
    assert found["JobArn"] == made["JobArn"]
    assert found["RoleArn"] == ROLE
    assert found["JobConfigSchemaVersion"] == "1.0.0"
    assert "EndTime" not in found
    assert "FailureReason" not in found


async def test_the_document_is_given_back_with_a_service_output(door: JobDoor) -> None:
    """Contract check 6."""
    document = training(
        door.rows,
        hyperparameters={"max_steps": "2", "pass_k_values": "[1, 2]"},
        ModelPackageConfig={
            "OutputModelPackageGroupArn": group_arn("tiny-mtrl-mpg"),
            "IntermediateCheckpointModelPackageGroupArn": group_arn("tiny-mtrl-checkpoint-mpg"),
        },
        VpcConfig={"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]},
    )
    await door.create("walk", document, Tags=[{"Key": "team", "Value": "a"}])
    found = await door.describe("walk")
    output = found["JobConfigDocument"].pop("ServiceOutput")
    assert found["JobConfigDocument"] == document
    assert found["Tags"] == [{"Key": "team", "Value": "a"}]
    assert output["ProgressInfo"] == {"MaxSteps": 2, "CurrentStep": 1, "BatchSize": 1}
    assert output["BillableTokenUsage"] == {
        "TrainTokenCount": 0,
        "PrefillTokenCount": 0,
        "SampleTokenCount": 0,
    }
    spec = (await door.world.jobs.describe(ADMIN, "walk")).spec
    assert (spec.adapters_in, spec.checkpoints_in) == ("tiny-mtrl-mpg", "tiny-mtrl-checkpoint-mpg")
    assert spec.validation.pass_k_values == (1, 2)
    assert spec.agent.name == "inspector"


async def test_nested_hyperparameters_and_flat_ones_give_the_same_job(door: JobDoor) -> None:
    """Contract check 8."""
    flat = {"group_size": "4", "max_epochs": "2", "clip_high_threshold": "1.5"}
    nested = {
        "batch": {"group_size": 4},
        "schedule": {"max_epochs": 2},
        "rl": {"clip_high_threshold": 1.5},
    }
    await door.create("flat", training(door.rows, hyperparameters=flat))
    await door.create("nested", training(door.rows, hyperparameters=nested))
    one, other = [(await door.world.jobs.describe(ADMIN, name)).spec for name in ("flat", "nested")]
    assert dataclasses.replace(other, name="flat") == one
    assert one.batch.group_size == 4


@pytest.mark.parametrize("place", ["OutputDataConfig", "TrainingConfig"])
async def test_an_mlflow_config_counts_in_either_place_and_is_shown_where_the_sdk_looks(
    door: JobDoor, place: str
) -> None:
    """Contract check 9."""
    config = {
        "MlflowResourceArn": MLFLOW,
        "MlflowExperimentName": "walks",
        "MlflowRunName": "first",
    }
    document = training(door.rows, OutputDataConfig={"S3OutputPath": f"file://{door.world.folder}"})
    document[place] |= {"MlflowConfig": config}
    await door.create("walk", document)
    found = await door.describe("walk")
    assert found["JobConfigDocument"]["TrainingConfig"]["MlflowConfig"] == config
    tracking = (await door.world.jobs.describe(ADMIN, "walk")).spec.tracking
    assert (tracking.mlflow, tracking.experiment, tracking.run_name) == (True, "walks", "first")


async def test_a_failed_job_ends_with_the_reason_cut_to_what_aws_allows(door: JobDoor) -> None:
    """Contract check 11."""
    await door.create("walk", training(door.rows))
    (await door.world.running("walk")).break_down(ValueError("no " * 1000))
    await door.world.until("walk", JobStatus.FAILED)
    found = await door.describe("walk")
    assert (found["JobStatus"], found["SecondaryStatus"]) == ("Failed", "Failed")
    assert found["FailureReason"].startswith("ValueError: no no no")
    assert len(found["FailureReason"]) == 1024
    last = found["SecondaryStatusTransitions"][-1]
    assert last["Status"] == "Failed"
    assert last["EndTime"] == found["EndTime"]


async def test_every_phase_is_a_transition_with_its_times(door: JobDoor) -> None:
    await door.create("walk", training(door.rows))
    loop = await door.world.running("walk")
    await phase(door, "walk", Secondary.DOWNLOADING)
    await phase(door, "walk", Secondary.TRAINING)
    await phase(door, "walk", Secondary.EVALUATING)
    assert (await door.describe("walk"))["SecondaryStatus"] == "Training"
    await phase(door, "walk", Secondary.TRAINING)
    await phase(door, "walk", Secondary.UPLOADING)
    loop.end()
    await door.world.until("walk", JobStatus.COMPLETED)
    transitions = (await door.describe("walk"))["SecondaryStatusTransitions"]
    assert [each["Status"] for each in transitions] == [
        "Pending",
        "Starting",
        "Downloading",
        "Training",
        "Uploading",
        "Completed",
    ]
    assert all(each["EndTime"] >= each["StartTime"] for each in transitions)
    assert all(each["StatusMessage"] for each in transitions)


async def test_a_job_that_stops_early_is_completed_with_the_reason(door: JobDoor) -> None:
    await door.create("walk", training(door.rows))
    await door.world.running("walk")
    reason = "epoch 0 had 4 groups and none with differing rewards"
    await tell(
        *(door, "walk", EventKind.STATUS),
        status=JobStatus.COMPLETED.value,
        secondary=Secondary.EARLY_STOPPED.value,
        message=reason,
        rollouts=["rol_a"],
    )
    found = await door.describe("walk")
    assert (found["JobStatus"], found["SecondaryStatus"]) == ("Completed", "Completed")
    last = found["SecondaryStatusTransitions"][-1]
    assert (last["Status"], last["StatusMessage"]) == ("Completed", reason)
    assert "FailureReason" not in found


async def test_progress_is_that_of_the_plan_and_of_the_step_under_way(door: JobDoor) -> None:
    await door.create("walk", training(door.rows, hyperparameters={"group_size": "4"}))
    await door.world.running("walk")
    await tell(door, "walk", EventKind.LOG, message="2 steps in all, on 1 rows", steps=2)
    for reward in (0.0, 1.0, None):
        await tell(door, "walk", EventKind.ROLLOUT, rollout_id="r", reward=reward)
    output = (await door.describe("walk"))["JobConfigDocument"]["ServiceOutput"]
    assert output["ProgressInfo"] == {"MaxSteps": 2, "CurrentStep": 1, "BatchSize": 1}
    assert output["RolloutInfo"] == {"Completed": 2, "Total": 4}
    await tell(door, "walk", EventKind.STEP, step=0)
    output = (await door.describe("walk"))["JobConfigDocument"]["ServiceOutput"]
    assert output["RolloutInfo"] == {"Completed": 0, "Total": 4}


async def test_a_job_that_waits_says_for_what(tmp_path: Path) -> None:
    store = SqlStore.in_memory()
    world = World(tmp_path, store, limits=Limits(running=1, training_quota=2))
    door = JobDoor(world)
    await door.register_agent()
    await door.create("first", training(door.rows))
    await door.create("second", training(door.rows))
    found = await door.describe("second")
    assert (found["JobStatus"], found["SecondaryStatus"]) == ("InProgress", "Pending")
    message = found["SecondaryStatusTransitions"][-1]["StatusMessage"]
    assert message == "waiting for a place: 0 ahead of it, 1 running"
    with pytest.raises(Refused, match=r"ResourceLimitExceeded: .*quota_training_jobs.*first"):
        await door.create("third", training(door.rows))
    with pytest.raises(Refused, match="ResourceInUse"):
        await door.create("first", training(door.rows))
    await world.jobs.close()
    await store.close()


async def test_a_stopped_job_names_the_adapter_it_leaves(door: JobDoor) -> None:
    """Contract check 12."""
    document = training(
        door.rows,
        ModelPackageConfig={
            "OutputModelPackageGroupArn": group_arn("mine"),
            "IntermediateCheckpointModelPackageGroupArn": group_arn("mine-state"),
        },
    )
    await door.create("walk", document)
    await door.world.running("walk")
    await finish_first_step(door.world, await door.world.store.job(ACCOUNT, "walk"))
    output = (await door.describe("walk"))["JobConfigDocument"]["ServiceOutput"]
    assert output["OutputModelPackageArn"] == package_arn("mine/1")
    assert output["ModelCheckpoint"] == {"ModelPackageArn": package_arn("mine/1"), "Step": 1}
    assert output["ResumableCheckpoint"] == {
        "ModelPackageArn": package_arn("mine-state/1"),
        "Step": 1,
    }


async def test_stopping_goes_by_way_of_stopping_and_may_be_repeated(door: JobDoor) -> None:
    await door.create("walk", training(door.rows))
    await door.world.running("walk")
    assert await door.ask("StopJob", JobName="walk", JobCategory="AgentRFT") == {}
    await door.world.until("walk", JobStatus.STOPPED)
    assert await door.ask("StopJob", JobName="walk", JobCategory="AgentRFT") == {}
    found = await door.describe("walk")
    assert found["JobStatus"] == "Stopped"
    assert [each["Status"] for each in found["SecondaryStatusTransitions"]][-2:] == [
        "Stopping",
        "Stopped",
    ]


async def test_a_completed_job_cannot_be_stopped(door: JobDoor) -> None:
    await door.create("walk", training(door.rows))
    (await door.world.running("walk")).end()
    await door.world.until("walk", JobStatus.COMPLETED)
    with pytest.raises(Refused, match="ValidationException: job walk is Completed"):
        await door.ask("StopJob", JobName="walk", JobCategory="AgentRFT")


async def test_delete_on_a_running_job_is_in_use_and_afterwards_it_is_not_found(
    door: JobDoor,
) -> None:
    """Contract check 13."""
    await door.create("walk", training(door.rows), Tags=[{"Key": "a", "Value": "b"}])
    await door.world.running("walk")
    with pytest.raises(Refused, match="ResourceInUse: job 'walk' is RUNNING"):
        await door.ask("DeleteJob", JobName="walk", JobCategory="AgentRFT")
    await door.ask("StopJob", JobName="walk", JobCategory="AgentRFT")
    await door.world.until("walk", JobStatus.STOPPED)
    assert await door.ask("DeleteJob", JobName="walk", JobCategory="AgentRFT") == {}
    for operation in ("DescribeJob", "StopJob", "DeleteJob"):
        with pytest.raises(Refused, match="ResourceNotFound: job 'walk' does not exist"):
            await door.ask(operation, JobName="walk", JobCategory="AgentRFT")
    await door.create("walk", training(door.rows))
    assert "Tags" not in (found := await door.describe("walk")) or found["Tags"] == []


async def test_a_duplicate_job_name_is_in_use(door: JobDoor) -> None:
    """Contract check 14."""
    made = await asyncio.gather(
        *(door.create("walk", training(door.rows)) for _ in range(3)), return_exceptions=True
    )
    refused = [each for each in made if isinstance(each, Refused)]
    assert [each.code for each in refused] == ["ResourceInUse"] * 2


async def test_jobs_are_listed_by_filters_in_pages(door: JobDoor) -> None:
    """Contract check 15."""
    for name in ("walk-b", "walk-a", "run-a"):
        await door.create(name, training(door.rows))
        await door.world.clock.sleep(10)
    (await door.world.running("walk-b")).end()
    await door.world.until("walk-b", JobStatus.COMPLETED)

    async def names(**given: Any) -> list[str]:
        found = await door.ask("ListJobs", JobCategory="AgentRFT", **given)
        return [each["JobName"] for each in found["JobSummaries"]]

    assert await names() == ["run-a", "walk-a", "walk-b"]
    assert await names(SortOrder="Ascending") == ["walk-b", "walk-a", "run-a"]
    assert await names(NameContains="WALK", SortBy="Name") == ["walk-b", "walk-a"]
    assert await names(StatusEquals="Completed") == ["walk-b"]
    assert await names(StatusEquals="InProgress", SortBy="Name", SortOrder="Ascending") == [
        "run-a",
        "walk-a",
    ]
    by_status = await names(SortBy="Status", SortOrder="Ascending")
    assert by_status == ["walk-b", "run-a", "walk-a"]
    created = (await door.describe("walk-a"))["CreationTime"]
    assert await names(CreationTimeAfter=created) == ["run-a"]
    assert await names(CreationTimeBefore=created) == ["walk-b"]
    ended = (await door.describe("walk-b"))["LastModifiedTime"]
    assert "walk-b" in await names(LastModifiedTimeAfter=ended - 1)
    assert await names(LastModifiedTimeAfter=ended) == []
    first = await door.ask("ListJobs", JobCategory="AgentRFT", MaxResults=2)
    assert [each["JobName"] for each in first["JobSummaries"]] == ["run-a", "walk-a"]
    rest = await door.ask(
        "ListJobs", JobCategory="AgentRFT", MaxResults=2, NextToken=first["NextToken"]
    )
    assert [each["JobName"] for each in rest["JobSummaries"]] == ["walk-b"]
    assert "NextToken" not in rest
    assert (await door.ask("ListJobs", JobCategory="AgentRFTEvaluation"))["JobSummaries"] == []


async def test_an_evaluation_is_a_job_of_its_own_category(door: JobDoor) -> None:
    document = evaluation(
        door.rows,
        StoppingCondition={"MaxRuntimeInSeconds": 86400},
        OutputDataConfig={
            "S3OutputPath": f"file://{door.world.folder}/out",
            "MlflowConfig": {
                "MlflowResourceArn": MLFLOW,
                "MlflowExperimentName": "mtrl-eval-tiny",
                "MlflowRunName": "base-model-eval",
            },
        },
    )
    document["EvaluationConfig"]["HyperParameters"] = {
        "eval_group_size": "2",
        "sampling_temperature": "0.5",
        "success_threshold": "0.5",
    }
    made = await door.create("judge", document)
    assert made["JobArn"].endswith(":job/AgentRFTEvaluation/judge")
    with pytest.raises(Refused, match="ResourceNotFound: job of category AgentRFT 'judge'"):
        await door.describe("judge")
    spec = (await door.world.jobs.describe(ADMIN, "judge")).spec
    assert spec.kind is JobKind.EVALUATION
    assert (spec.evaluation.group_size, spec.eval_sampling_params.temperature) == (2, 0.5)
    assert spec.max_runtime_s == 86400
    await door.world.running("judge")
    await tell(door, "judge", EventKind.LOG, message="2 rollouts in all", rollouts=2)
    await tell(door, "judge", EventKind.ROLLOUT, rollout_id="r", reward=1.0)
    found = await door.describe("judge", "AgentRFTEvaluation")
    output = found["JobConfigDocument"].pop("ServiceOutput")
    assert found["JobConfigDocument"] == document
    assert output["RolloutInfo"] == {"Completed": 1, "Total": 2}
    assert "ProgressInfo" not in output


async def test_a_job_of_another_door_is_described_too(door: JobDoor) -> None:
    await door.world.jobs.create(ADMIN, door.world.spec("native"))
    found = await door.describe("native")
    document = found["JobConfigDocument"]
    assert found["RoleArn"] == f"arn:aws:iam::{NUMBER}:role/turnwise"
    assert document["TrainingConfig"]["BaseModelArn"] == BASE
    assert document["InputDataConfig"][0]["DataSource"] == source(door.rows)
    assert document["ModelPackageConfig"] == {
        "OutputModelPackageGroupArn": group_arn("native"),
        "IntermediateCheckpointModelPackageGroupArn": group_arn("native-checkpoints"),
    }
    names = [each["JobName"] for each in await listed(door)]
    assert names == ["native"]


async def listed(door: JobDoor) -> list[dict[str, Any]]:
    summaries: list[dict[str, Any]] = (await door.ask("ListJobs", JobCategory="AgentRFT"))[
        "JobSummaries"
    ]
    return summaries


async def test_what_was_said_of_a_deleted_job_is_not_said_of_its_namesake(door: JobDoor) -> None:
    await door.create("walk", training(door.rows))
    (await door.world.running("walk")).end()
    await door.world.until("walk", JobStatus.COMPLETED)
    await door.world.jobs.delete(ADMIN, "walk")
    await door.world.jobs.create(ADMIN, door.world.spec("walk"))
    assert (await door.describe("walk"))["RoleArn"] == f"arn:aws:iam::{NUMBER}:role/turnwise"


async def test_a_data_set_of_a_hub_is_read_where_it_is(door: JobDoor) -> None:
    channel = {"ChannelName": "train", "DataSource": {"DatasetSource": {"DatasetArn": DATA_SET}}}
    await door.create("walk", training(door.rows, InputDataConfig=[channel]))
    spec = (await door.world.jobs.describe(ADMIN, "walk")).spec
    assert spec.dataset == str(door.world.folder / "train.jsonl")


# ── starting from a registered model ──────────────────────────────────────────────────────────


async def trained(door: JobDoor, **changes: Any) -> None:
    """The job "walk", failed after its first step, with walk/1 and walk-checkpoints/1."""
    await door.create("walk", training(door.rows, **changes))
    await door.world.running("walk")
    await finish_first_step(door.world, await door.world.store.job(ACCOUNT, "walk"))


def from_package(door: JobDoor, name: str, **changes: Any) -> dict[str, Any]:
    config = {"InputModelPackageArn": package_arn(name)}
    return training(door.rows, ModelPackageConfig=config, **changes)


async def test_a_checkpoint_is_continued_and_changed_hyperparameters_are_rejected(
    door: JobDoor,
) -> None:
    """Contract check 37."""
    await trained(door)
    changed = from_package(door, "walk-checkpoints/1", hyperparameters={"learning_rate": "0.001"})
    with pytest.raises(Refused, match=r"ValidationException: .*optimizer.learning_rate is 0\.001"):
        await door.create("on", changed)
    await door.create("on", from_package(door, "walk-checkpoints/1"))
    job = await door.world.jobs.describe(ADMIN, "on")
    assert (job.parent, job.step) == ("walk-checkpoints/1", 1)
    output = (await door.describe("on"))["JobConfigDocument"]["ServiceOutput"]
    assert output["ProgressInfo"]["CurrentStep"] == 2


async def test_an_adapter_is_started_from_at_step_0_in_its_own_shape(door: JobDoor) -> None:
    """Contract check 37."""
    await trained(door, hyperparameters={"learning_rate": "0.001"})
    await door.create("anew", from_package(door, "walk/1"))
    job = await door.world.jobs.describe(ADMIN, "anew")
    assert (job.parent, job.step, job.spec.resume_from) == ("walk/1", 0, "")
    assert job.spec.lora.rank == 1
    with pytest.raises(Refused, match=r"ValidationException: lora: .*not the shape of the input"):
        await door.create("wider", from_package(door, "walk/1", hyperparameters={"lora_rank": 2}))


async def test_a_registered_model_is_evaluated(door: JobDoor) -> None:
    await trained(door)
    config = {"InputModelPackageArn": package_arn("walk/1")}
    await door.create("judge", evaluation(door.rows, ModelPackageConfig=config))
    spec = (await door.world.jobs.describe(ADMIN, "judge")).spec
    assert spec.evaluation.models == ("walk/1",)


async def test_a_group_holds_one_kind_of_models(door: JobDoor) -> None:
    await trained(door)
    config = {"OutputModelPackageGroupArn": group_arn("walk-checkpoints")}
    with pytest.raises(Refused, match="output_group: 'walk-checkpoints' holds checkpoints, as"):
        await door.create("mixed", training(door.rows, ModelPackageConfig=config))


# ── what is refused ───────────────────────────────────────────────────────────────────────────

_OTHER = "999999999999"


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"AgentConfig": {}}, "ValidationException", "must hold exactly one of BedrockAgentCoreC"),
        (
            {"AgentConfig": {"CustomAgentLambdaConfig": {"LambdaArn": AGENT + "x"}}},
            "ResourceNotFound",
            "agent 'inspectorx' does not exist",
        ),
        (
            {"TrainingConfig": {"BaseModelArn": BASE.replace("tiny", "huge")}},
            "ResourceNotFound",
            "base model 'huge' does not exist",
        ),
        (
            {"TrainingConfig": {"BaseModelArn": BASE.replace("1.0.0", "2.0.0")}},
            "ResourceNotFound",
            "base model 'tiny/2.0.0' does not exist; its version is 1.0.0",
        ),
        ({"hyperparameters": {"group_sise": "8"}}, "ValidationException", "did you mean group_siz"),
        ({"hyperparameters": {"group_size": "99"}}, "ValidationException", "number from 2 to 32"),
        (
            {
                "InputDataConfig": [
                    {"ChannelName": "train", "DataSource": source("file:///no.jsonl")}
                ]
            },
            "ValidationException",
            "no.jsonl",
        ),
        (
            {"InputDataConfig": [{"ChannelName": "train", "DataSource": source("https://a/b")}]},
            "ValidationException",
            r"JobConfigDocument.InputDataConfig\[0\].DataSource.S3DataSource.S3Uri: 'https://a/b'",
        ),
        (
            {"ModelPackageConfig": {"OutputModelPackageGroupArn": group_arn("gone")}},
            "ResourceNotFound",
            "model package group 'gone'",
        ),
        (
            {"ModelPackageConfig": {"OutputModelPackageGroupArn": group_arn("a", number=_OTHER)}},
            "ResourceNotFound",
            "model package group",
        ),
        (
            {"ModelPackageConfig": {"InputModelPackageArn": package_arn("walk/9")}},
            "ResourceNotFound",
            "model 'walk/9' does not exist",
        ),
        (
            {"OutputDataConfig": {"S3OutputPath": "s3://a/b", "KmsKeyArn": "arn:aws:kms:::key/a"}},
            "ValidationException",
            "KmsKeyArn: 'arn:aws:kms:::key/a' cannot be used",
        ),
        (
            {"TrainingConfg": {}},
            "ValidationException",
            "JobConfigDocument.TrainingConfg: {} is set, .* did you mean TrainingConfig?",
        ),
    ],
)
async def test_a_bad_document_is_refused_and_leaves_nothing(
    door: JobDoor, changes: dict[str, Any], code: str, said: str
) -> None:
    with pytest.raises(Refused, match=said) as refused:
        await door.create("walk", training(door.rows, **changes))
    assert refused.value.code == code
    assert await listed(door) == []


async def test_other_versions_and_categories_are_refused(door: JobDoor) -> None:
    with pytest.raises(Refused, match=r"JobConfigSchemaVersion: '2.0.0' is not known; use 1.0.0"):
        await door.create("walk", training(door.rows), JobConfigSchemaVersion="2.0.0")
    with pytest.raises(Refused, match="JobCategory: 'DataTransformation' is not one that this"):
        await door.create("walk", training(door.rows), JobCategory="DataTransformation")
    with pytest.raises(Refused, match=r"JobConfigDocument: '{' is not JSON"):
        await door.create("walk", training(door.rows), JobConfigDocument="{")


async def test_a_key_of_a_job_sees_that_job_alone(door: JobDoor) -> None:
    await door.create("walk", training(door.rows))
    await door.create("other", training(door.rows))
    job = await door.world.store.job(ACCOUNT, "walk")
    by = a_call(job_ids=frozenset({job.job_id}), actions=frozenset({Action.READ}))
    found = await door.ask("ListJobs", by=by, JobCategory="AgentRFT")
    assert [each["JobName"] for each in found["JobSummaries"]] == ["walk"]
    for operation in ("StopJob", "DeleteJob"):
        with pytest.raises(Refused, match="AccessDenied"):
            await door.ask(operation, by=by, JobName="walk", JobCategory="AgentRFT")


async def test_another_account_sees_nothing(door: JobDoor) -> None:
    await door.create("walk", training(door.rows))
    by = a_call("acc_b", number="000000000002")
    for operation in ("DescribeJob", "StopJob", "DeleteJob"):
        with pytest.raises(Refused, match="ResourceNotFound"):
            await door.ask(operation, by=by, JobName="walk", JobCategory="AgentRFT")
    assert (await door.ask("ListJobs", by=by, JobCategory="AgentRFT"))["JobSummaries"] == []


# ── schemas ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("category", ["AgentRFT", "AgentRFTEvaluation"])
async def test_each_category_has_one_schema(door: JobDoor, category: str) -> None:
    versions = await door.ask("ListJobSchemaVersions", JobCategory=category)
    assert versions["JobConfigSchemas"] == [{"JobConfigSchemaVersion": "1.0.0"}]
    found = await door.ask("DescribeJobSchemaVersion", JobCategory=category)
    schema = json.loads(found["JobConfigSchema"])
    assert "AgentConfig" in schema["required"]
    assert found["JobConfigSchemaVersion"] == "1.0.0"


async def test_unknown_schemas_are_not_found(door: JobDoor) -> None:
    with pytest.raises(Refused, match=r"ResourceNotFound: job schema version '2.0.0'"):
        await door.ask(
            "DescribeJobSchemaVersion", JobCategory="AgentRFT", JobConfigSchemaVersion="2.0.0"
        )
    with pytest.raises(Refused, match="ResourceNotFound: job schema of category"):
        await door.ask("ListJobSchemaVersions", JobCategory="DataTransformation")


async def test_a_job_that_is_deleted_by_another_door_leaves_no_tags_and_no_records(
    door: JobDoor,
) -> None:
    await door.create("walk", training(door.rows), Tags=[{"Key": "team", "Value": "a"}])
    job = await door.world.store.job(ACCOUNT, "walk")
    run = RunState(experiment="e", experiment_id="1", run_name="walk", run_id="r")
    await save_run_state(door.world.store, ACCOUNT, job.job_id, run)
    (await door.world.running("walk")).end()
    await door.world.until("walk", JobStatus.COMPLETED)
    await door.world.jobs.delete(ADMIN, "walk")

    for kind in ("sagemaker-job", "tags", "mlflow-run"):
        assert await door.world.store.resources(ACCOUNT, kind) == []
    await door.create("walk", training(door.rows))
    assert (await door.describe("walk")).get("Tags", []) == []


async def test_a_server_that_is_killed_just_after_a_job_was_stored_knows_what_it_was_given(
    door: JobDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*given: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(door.world.jobs, "_fill_places", killed)
    document = training(door.rows, VpcConfig={"SecurityGroupIds": ["sg-1"], "Subnets": ["s-1"]})
    with pytest.raises(Refused):
        await door.create("walk", document, Tags=[{"Key": "team", "Value": "a"}])

    found = await door.describe("walk")
    assert found["JobConfigDocument"]["VpcConfig"] == document["VpcConfig"]
    assert (found["RoleArn"], found["Tags"]) == (ROLE, [{"Key": "team", "Value": "a"}])


async def test_no_job_is_made_with_tags_that_are_refused(door: JobDoor) -> None:
    with pytest.raises(Refused, match='may not begin with "aws:"'):
        await door.create("walk", training(door.rows), Tags=[{"Key": "aws:a", "Value": ""}])
    assert await door.world.jobs.list(ADMIN) == []


async def test_what_a_resumed_job_cost_counts_though_nobody_asked_while_it_ran(
    door: JobDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = iter([TokenUsage(train=1), TokenUsage(train=2)])

    async def usage(*given: Any) -> TokenUsage:
        return next(costs)

    monkeypatch.setattr(Browse, "usage", usage)
    await door.create("walk", training(door.rows))
    (await door.world.running("walk")).end(JobStatus.FAILED)
    await door.world.until("walk", JobStatus.FAILED)
    assert await counted(door) == [1, 1]

    await door.world.jobs.resume(ADMIN, "walk")
    (await door.world.running("walk")).end()
    await door.world.until("walk", JobStatus.COMPLETED)
    assert await counted(door) == [2, 2]


async def counted(door: JobDoor) -> list[int]:
    """Tokens trained, as two calls tell."""
    found = [await door.describe("walk") for _ in range(2)]
    outputs = [each["JobConfigDocument"]["ServiceOutput"] for each in found]
    return [output["BillableTokenUsage"]["TrainTokenCount"] for output in outputs]
