"""Pipelines with boto3, and the sagemaker SDK's evaluator, which runs by them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.wire.aws.clients.conftest import Trained
from tests.wire.aws.clients.place import Place
from tests.wire.aws.clients.service import client, until

PIPELINE = "SagemakerEvaluation-MTRLEvaluation"

pytestmark = pytest.mark.usefixtures("shell")


@pytest.fixture(scope="module")
def sagemaker(env: dict[str, str]) -> Any:
    return client("sagemaker", env)


def finished(execution: Any) -> dict[str, str]:
    """Wait for its end; its steps by name with their status."""
    execution.wait(poll=1, timeout=120)
    execution.refresh()
    return {step.name: step.status for step in execution.status.step_details}


def test_an_evaluation_of_a_base_model_has_3_steps_and_succeeds(place: Place):
    """Contract check 38, base model alone."""
    execution = place.evaluator().evaluate()
    steps = finished(execution)
    assert execution.status.overall_status == "Succeeded"
    assert steps == {
        "CreateEvaluationAction": "Succeeded",
        "EvaluateBaseModel": "Succeeded",
        "AssociateLineage": "Succeeded",
    }


def test_an_evaluation_of_a_fine_tuned_model_has_3_steps_and_succeeds(
    place: Place, trained: Trained
):
    """Contract check 38, fine-tuned model alone, given by its trainer."""
    execution = place.evaluator(trained.trainer).evaluate()
    steps = finished(execution)
    assert execution.status.overall_status == "Succeeded"
    assert steps == {
        "CreateEvaluationAction": "Succeeded",
        "EvaluateFineTunedModel": "Succeeded",
        "AssociateLineage": "Succeeded",
    }


@pytest.fixture(scope="module")
def comparison(place: Place, trained: Trained) -> Any:
    """An evaluation of the base and of what was made of it, ended."""
    tuned = trained.job.output_model_package_arn
    execution = place.evaluator(tuned, evaluate_base_model=True).evaluate()
    finished(execution)
    return execution


def test_a_comparison_has_4_steps_succeeds_and_its_two_runs_are_in_one_mlflow_experiment(
    comparison: Any, sagemaker: Any
):
    """Contract check 38, both models."""
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


def mlflow_details(sagemaker: Any, job_arn: str) -> dict[str, str] | None:
    """Where a job is shown, once MLflow has been told of it."""
    category, name = job_arn.split("/")[1:]

    def details() -> dict[str, str] | None:
        job = sagemaker.describe_job(JobName=name, JobCategory=category)
        output = json.loads(job["JobConfigDocument"])["ServiceOutput"]
        found: dict[str, str] | None = output.get("MlflowDetails")
        return found

    return until(details)


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

    with place.player.held():
        execution = place.evaluator().evaluate()
        until(lambda: job_arns(sagemaker, execution.arn))
        listed = {one.arn: one for one in MultiTurnRLEvaluator.get_all()}
        assert listed[execution.arn].status.overall_status == "Executing"
        before = sagemaker.describe_pipeline(PipelineName=PIPELINE)["PipelineDefinition"]
        definition = json.loads(before)
        definition["Steps"] = definition["Steps"][:1]
        sagemaker.update_pipeline(
            PipelineName=PIPELINE, PipelineDefinition=json.dumps(definition), RoleArn=place.role
        )

    steps = finished(execution)
    assert list(steps) == ["CreateEvaluationAction", "EvaluateBaseModel", "AssociateLineage"]
    assert execution.status.overall_status == "Succeeded"
    kept = sagemaker.describe_pipeline_definition_for_execution(PipelineExecutionArn=execution.arn)
    assert kept["PipelineDefinition"] == before


def test_a_stopped_execution_stops_its_job(place: Place, sagemaker: Any):
    with place.player.held():
        execution = place.evaluator().evaluate()
        (arn,) = until(lambda: job_arns(sagemaker, execution.arn))
        # The SDK's own `stop()` fails before it calls: it asks a session it does not have.
        sagemaker.stop_pipeline_execution(PipelineExecutionArn=execution.arn)

        def is_stopped() -> bool:
            execution.refresh()
            return bool(execution.status.overall_status == "Stopped")

        until(is_stopped)
    category, name = arn.split("/")[1:]
    job = sagemaker.describe_job(JobName=name, JobCategory=category)
    assert job["JobStatus"] == "Stopped"


def test_a_definition_that_cannot_be_run_is_refused_by_the_name_of_its_step(
    place: Place, sagemaker: Any
):
    steps = [{"Name": "Train", "Type": "Training", "Arguments": {}}]
    with pytest.raises(sagemaker.exceptions.ClientError, match="step 'Train': Type") as refused:
        sagemaker.create_pipeline(
            PipelineName="other",
            PipelineDefinition=json.dumps({"Version": "2020-12-01", "Steps": steps}),
            RoleArn=place.role,
        )
    assert refused.value.response["Error"]["Code"] == "ValidationException"
