"""Pipelines with boto3, and the sagemaker SDK's evaluator, which runs by them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.wire.aws.clients.playing import Player, playing
from tests.wire.aws.clients.running import save_model
from tests.wire.aws.clients.service import Server, client

ROLE = "arn:aws:iam::000000000001:role/evaluator"
BASE = "tiny-evaluated"
BUCKET = "evaluations"
PIPELINE = "SagemakerEvaluation-MTRLEvaluation"


@pytest.fixture(autouse=True)
def _the_env(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The sagemaker SDK makes clients while it is imported, from the environment."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def sagemaker(env: dict[str, str]) -> Any:
    return client("sagemaker", env)


@dataclass(frozen=True)
class Place:
    """A base model, an agent that plays by itself, and rows in a bucket."""

    agent: str  # its ARN
    player: Player
    rows: str
    output: str = f"s3://{BUCKET}/output/"


@pytest.fixture(scope="module")
def place(server: Server, env: dict[str, str]) -> Iterator[Place]:
    folder = server.data_dir / "models" / BASE
    folder.parent.mkdir(exist_ok=True)
    save_model(folder)
    recipe = {
        "training": {
            "global_batch_size": {"default": 1, "choices": [1]},
            "group_size": {"default": 2, "min": 2},
            "max_steps": {"default": 1, "min": 1},
            "sampling_max_tokens": {"default": 8, "min": 1},
        },
        "evaluation": {"max_tokens": {"default": 8, "min": 1}},
    }
    (folder / "turnwise-recipe.json").write_text(json.dumps(recipe))
    s3 = client("s3", env)
    s3.create_bucket(
        Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": env["AWS_DEFAULT_REGION"]}
    )
    rows = "".join(json.dumps({"prompt": f"row {number}"}) + "\n" for number in range(2))
    s3.put_object(Bucket=BUCKET, Key="rows.jsonl", Body=rows.encode())
    with playing() as player:
        made = server.cli("agents", "register", "evaluated", player.url, "--as", "http", "--json")
        agent = json.loads(made.stdout)
        yield Place(agent=agent["arn"], player=player, rows=f"s3://{BUCKET}/rows.jsonl")


def evaluator(place: Place, model: str, **given: Any) -> Any:
    from sagemaker.train.evaluate import MultiTurnRLEvaluator

    return MultiTurnRLEvaluator(
        model=model,
        dataset=place.rows,
        s3_output_path=place.output,
        agent_config=place.agent,
        role=ROLE,
        **given,
    )


def finished(execution: Any) -> dict[str, str]:
    """Wait for its end; its steps by name with their status."""
    execution.wait(poll=1, timeout=120)
    execution.refresh()
    return {step.name: step.status for step in execution.status.step_details}


def until(holds: Any, timeout_s: float = 120.0) -> Any:
    """The first true value of a look that is taken again and again."""
    end = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def tuned(place: Place, sagemaker: Any) -> str:
    """The ARN of a model that one step of training has made of the base."""
    name = f"tuned-{uuid.uuid4().hex[:8]}"
    hub = sagemaker.describe_hub_content(
        HubName="SageMakerPublicHub", HubContentType="Model", HubContentName=BASE
    )
    groups = [
        sagemaker.create_model_package_group(ModelPackageGroupName=name + end)[
            "ModelPackageGroupArn"
        ]
        for end in ("-out", "-between")
    ]
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": place.rows}}
    document = {
        "AgentConfig": {"CustomAgentLambdaConfig": {"LambdaArn": place.agent}},
        "InputDataConfig": [{"ChannelName": "train", "DataSource": source}],
        "OutputDataConfig": {"S3OutputPath": place.output},
        "ModelPackageConfig": {
            "OutputModelPackageGroupArn": groups[0],
            "IntermediateCheckpointModelPackageGroupArn": groups[1],
        },
        "TrainingConfig": {
            "BaseModelArn": hub["HubContentArn"],
            "AcceptEula": True,
        },
    }
    sagemaker.create_job(
        JobName=name,
        RoleArn=ROLE,
        JobCategory="AgentRFT",
        JobConfigSchemaVersion="1.0.0",
        JobConfigDocument=json.dumps(document),
    )

    def ended() -> Any:
        job = sagemaker.describe_job(JobName=name, JobCategory="AgentRFT")
        return job["JobStatus"] != "InProgress" and job

    job = until(ended)
    assert job["JobStatus"] == "Completed", job.get("FailureReason")
    arn: str = json.loads(job["JobConfigDocument"])["ServiceOutput"]["OutputModelPackageArn"]
    return arn


def test_an_evaluation_of_a_base_model_has_3_steps_and_succeeds(place: Place, sagemaker: Any):
    """Contract check 38, its first part."""
    execution = evaluator(place, BASE).evaluate()
    steps = finished(execution)
    assert execution.status.overall_status == "Succeeded"
    assert steps == {
        "CreateEvaluationAction": "Succeeded",
        "EvaluateBaseModel": "Succeeded",
        "AssociateLineage": "Succeeded",
    }


def test_an_evaluation_of_a_fine_tuned_model_has_3_steps_and_succeeds(place: Place, tuned: str):
    """Contract check 38, its second part."""
    execution = evaluator(place, tuned).evaluate()
    steps = finished(execution)
    assert execution.status.overall_status == "Succeeded"
    assert steps == {
        "CreateEvaluationAction": "Succeeded",
        "EvaluateFineTunedModel": "Succeeded",
        "AssociateLineage": "Succeeded",
    }


@pytest.fixture(scope="module")
def comparison(place: Place, tuned: str, env: dict[str, str]) -> Any:
    """An evaluation of the base and of what was made of it, ended."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        execution = evaluator(place, tuned, evaluate_base_model=True).evaluate()
        finished(execution)
    return execution


def test_a_comparison_has_4_steps_succeeds_and_its_two_runs_are_in_one_mlflow_experiment(
    comparison: Any, sagemaker: Any
):
    """Contract check 38, its third part."""
    assert comparison.status.overall_status == "Succeeded"
    assert finished(comparison) == {
        "CreateEvaluationAction": "Succeeded",
        "EvaluateBaseModel": "Succeeded",
        "EvaluateFineTunedModel": "Succeeded",
        "AssociateLineage": "Succeeded",
    }
    base, tuned = [mlflow_details(sagemaker, arn) for arn in job_arns(sagemaker, comparison.arn)]
    assert base["ExperimentId"] == tuned["ExperimentId"]
    assert base["RunId"] != tuned["RunId"]
    assert (base["RunName"], tuned["RunName"]) == ("base-model-eval", "fine-tuned-model-eval")


def job_arns(sagemaker: Any, execution: str) -> list[str]:
    """The jobs of an execution, oldest first."""
    steps = sagemaker.list_pipeline_execution_steps(
        PipelineExecutionArn=execution, SortOrder="Ascending"
    )["PipelineExecutionSteps"]
    return [step["Metadata"]["Job"]["Arn"] for step in steps if "Metadata" in step]


def mlflow_details(sagemaker: Any, job_arn: str) -> dict[str, str]:
    """Where a job is shown, once MLflow has been told of it."""
    category, name = job_arn.split("/")[1:]

    def details() -> Any:
        job = sagemaker.describe_job(JobName=name, JobCategory=category)
        return json.loads(job["JobConfigDocument"])["ServiceOutput"].get("MlflowDetails")

    found: dict[str, str] = until(details)
    return found


def test_the_executions_mlflow_details_are_known_and_its_url_leads_to_the_run(
    comparison: Any, sagemaker: Any
):
    """Contract check 39."""
    shown = [mlflow_details(sagemaker, arn) for arn in job_arns(sagemaker, comparison.arn)]
    comparison.refresh()
    details = comparison.get_mlflow_details()
    assert details in shown
    url = comparison.get_mlflow_url()
    assert f"#/experiments/{details['ExperimentId']}/runs/{details['RunId']}" in url


def test_get_all_lists_the_execution_and_a_later_update_of_the_pipeline_does_not_change_it(
    place: Place, sagemaker: Any
):
    """Contract check 40."""
    from sagemaker.train.evaluate import MultiTurnRLEvaluator

    place.player.gate.clear()
    try:
        execution = evaluator(place, BASE).evaluate()
        until(lambda: job_arns(sagemaker, execution.arn))
        listed = {one.arn: one for one in MultiTurnRLEvaluator.get_all()}
        assert listed[execution.arn].status.overall_status == "Executing"
        before = sagemaker.describe_pipeline(PipelineName=PIPELINE)["PipelineDefinition"]
        definition = json.loads(before)
        definition["Steps"] = definition["Steps"][:1]
        sagemaker.update_pipeline(
            PipelineName=PIPELINE, PipelineDefinition=json.dumps(definition), RoleArn=ROLE
        )
    finally:
        place.player.gate.set()

    steps = finished(execution)
    assert list(steps) == ["CreateEvaluationAction", "EvaluateBaseModel", "AssociateLineage"]
    assert execution.status.overall_status == "Succeeded"
    kept = sagemaker.describe_pipeline_definition_for_execution(PipelineExecutionArn=execution.arn)
    assert kept["PipelineDefinition"] == before


def test_a_stopped_execution_stops_its_job(place: Place, sagemaker: Any):
    place.player.gate.clear()
    try:
        execution = evaluator(place, BASE).evaluate()
        (arn,) = until(lambda: job_arns(sagemaker, execution.arn))
        # The SDK's own `stop()` fails before it calls: it asks a session it does not have.
        sagemaker.stop_pipeline_execution(PipelineExecutionArn=execution.arn)

        def is_stopped() -> bool:
            execution.refresh()
            return bool(execution.status.overall_status == "Stopped")

        until(is_stopped)
    finally:
        place.player.gate.set()
    category, name = arn.split("/")[1:]
    job = sagemaker.describe_job(JobName=name, JobCategory=category)
    assert job["JobStatus"] == "Stopped"


def test_a_definition_that_cannot_be_run_is_refused_by_the_name_of_its_step(sagemaker: Any):
    steps = [{"Name": "Train", "Type": "Training", "Arguments": {}}]
    with pytest.raises(sagemaker.exceptions.ClientError, match="step 'Train': Type") as refused:
        sagemaker.create_pipeline(
            PipelineName="other",
            PipelineDefinition=json.dumps({"Version": "2020-12-01", "Steps": steps}),
            RoleArn=ROLE,
        )
    assert refused.value.response["Error"]["Code"] == "ValidationException"
