"""JSON documents inside JSON: job configurations, pipelines, hub contents, selectors, filters."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.wire.aws.job_kit import ROLE, evaluation, training
from tests.wire.fuzz.building import NUMBER, REGION, Building
from tests.wire.fuzz.checks import Checked, fuzzing
from tests.wire.fuzz.test_aws import is_json_error
from tests.wire.fuzz.values import NASTY_TEXTS, as_json, json_bodies, nasty, spoilt
from turnwise.wire.aws.service import load_model

PACKAGE = f"arn:aws:sagemaker:{REGION}:{NUMBER}:model-package"


def ask(checked: Checked, service: str, operation: str, given: dict[str, Any]) -> None:
    sent = checked.building.json_call(service, operation, as_json(given))
    checked.ask(sent, load_model(service).operation_model(operation), is_json_error)


def bent(base: Any) -> st.SearchStrategy[str]:
    """A document's text, spoilt."""
    values = st.builds(copy.deepcopy, st.just(base))
    return json_bodies(values).map(lambda body: body.decode("utf-8", "replace"))


def job_document(building: Building, kind: str) -> dict[str, Any]:
    rows = f"file://{building.rows}"
    agent = f"arn:aws:lambda:{REGION}:{NUMBER}:function:fn"
    config = {"AgentConfig": {"CustomAgentLambdaConfig": {"LambdaArn": agent}}}
    if kind == "AgentRFTEvaluation":
        return evaluation(rows, **config)
    hyperparameters = {
        "global_batch_size": "1",
        "group_size": "2",
        "learning_rate": "0.001",
        "max_epochs": "1",
        "lora_rank": "1",
        "temperature": 0.5,
    }
    packages = {"OutputModelPackageGroupArn": f"{PACKAGE}-group/walk"}
    more = {
        "ModelPackageConfig": packages,
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        "OutputDataConfig": {
            "S3OutputPath": "s3://stuff/out",
            "MlflowConfig": {
                "MlflowResourceArn": f"arn:aws:sagemaker:{REGION}:{NUMBER}:mlflow-app/app-default",
                "MlflowExperimentName": "tries",
            },
        },
    }
    return training(rows, hyperparameters=hyperparameters, **config) | more


@fuzzing(21)
@given(data=st.data())
def test_a_jobs_document_is_refused_whole_or_taken_whole(checked: Checked, data: st.DataObject):
    kind = data.draw(st.sampled_from(["AgentRFT", "AgentRFT", "AgentRFTEvaluation"]))
    document = data.draw(bent(job_document(checked.building, kind)), label="document")
    given = {
        "JobName": data.draw(st.sampled_from(["new-a", "walk", "new-b"])),
        "RoleArn": ROLE,
        "JobCategory": kind,
        "JobConfigSchemaVersion": "1.0.0",
        "JobConfigDocument": document,
    }
    ask(checked, "sagemaker", "CreateJob", given)
    if data.draw(st.integers(0, 3)) == 0:
        its = {"JobName": given["JobName"], "JobCategory": kind}
        ask(checked, "sagemaker", "DescribeJob", its)
        ask(checked, "sagemaker", "StopJob", its)
        ask(checked, "sagemaker", "DeleteJob", its)


DEFINITION = {
    "Version": "2020-12-01",
    "Metadata": {"a": 1},
    "Parameters": [
        {"Name": "Rows", "Type": "String", "DefaultValue": "a", "EnumValues": ["a", "b"]},
        {"Name": "Count", "Type": "Integer", "DefaultValue": 1},
        {"Name": "Rate", "Type": "Float", "DefaultValue": 0.5},
        {"Name": "On", "Type": "Boolean", "DefaultValue": True},
    ],
    "Steps": [
        {
            "Name": "note",
            "Type": "Lineage",
            "DisplayName": "a note",
            "Arguments": {
                "Actions": [{"ActionName": "a", "ActionType": "b", "Source": {"SourceUri": "c"}}],
                "Artifacts": [],
            },
        },
        {
            "Name": "judge",
            "Type": "Job",
            "DependsOn": ["note"],
            "Arguments": {
                "JobCategory": "AgentRFTEvaluation",
                "RoleArn": ROLE,
                "JobConfigSchemaVersion": "1.0.0",
                "JobConfigDocument": {
                    "Std:Join": {"On": "", "Values": ["{", {"Get": "Parameters.Rows"}]}
                },
            },
        },
    ],
}


@fuzzing(45)
@given(data=st.data())
def test_a_pipelines_definition_is_refused_whole_or_taken_whole(
    checked: Checked, data: st.DataObject
):
    definition = data.draw(bent(DEFINITION), label="definition")
    name = data.draw(st.sampled_from(["line-a", "line-b"]))
    given = {"PipelineName": name, "PipelineDefinition": definition, "RoleArn": ROLE}
    more = {"ClientRequestToken": data.draw(st.sampled_from(["t" * 32, "u" * 32]))}
    operation = data.draw(st.sampled_from(["CreatePipeline", "UpdatePipeline"]))
    ask(checked, "sagemaker", operation, given | (more if operation == "CreatePipeline" else {}))
    if data.draw(st.integers(0, 3)) == 0:
        value = data.draw(st.sampled_from(NASTY_TEXTS))
        parameters = [
            {"Name": data.draw(st.sampled_from(["Rows", "Count", "Rate", "x"])), "Value": value}
        ]
        ask(
            checked,
            "sagemaker",
            "StartPipelineExecution",
            {
                "PipelineName": name,
                "ClientRequestToken": "v" * 32,
                "PipelineParameters": parameters,
            },
        )
        for operation in ("DescribePipeline", "ListPipelineExecutions"):
            ask(checked, "sagemaker", operation, {"PipelineName": name})
        ask(
            checked,
            "sagemaker",
            "DeletePipeline",
            {"PipelineName": name, "ClientRequestToken": "w" * 32},
        )


CONTENT = {
    "DatasetS3Bucket": "stuff",
    "DatasetS3Prefix": "a/b.txt",
    "DatasetContextS3Uri": "s3://stuff/a/b.txt",
    "HubAccessConfig": None,
}


@fuzzing(22)
@given(data=st.data())
def test_a_hubs_content_is_refused_whole_or_taken_whole(checked: Checked, data: st.DataObject):
    given = {
        "HubName": "mine",
        "HubContentName": data.draw(st.sampled_from(["rows", "more-rows"])),
        "HubContentType": data.draw(st.sampled_from(["DataSet", "JsonDoc", "Model"])),
        "DocumentSchemaVersion": "1.0.0",
        "HubContentDocument": data.draw(bent(CONTENT)),
    }
    if data.draw(st.booleans()):
        given["HubContentVersion"] = data.draw(
            st.sampled_from(["1.0.0", "9999.9999.9999", "0.0.0", "01.1.1", "99999.0.0"])
        )
    ask(checked, "sagemaker", "ImportHubContent", given)
    named = {k: given[k] for k in ("HubName", "HubContentName", "HubContentType")}
    ask(checked, "sagemaker", "DescribeHubContent", named)


SELECTORS = {
    "EventSelectors": [
        {
            "ReadWriteType": "All",
            "IncludeManagementEvents": True,
            "DataResources": [{"Type": "AWS::S3::Object", "Values": ["arn:aws:s3:::stuff/"]}],
        }
    ]
}
ADVANCED = {
    "AdvancedEventSelectors": [
        {
            "Name": "a",
            "FieldSelectors": [
                {"Field": "eventCategory", "Equals": ["Data"]},
                {"Field": "resources.type", "Equals": ["AWS::SageMaker::Job"]},
                {"Field": "eventName", "StartsWith": ["a"]},
            ],
        }
    ]
}


@fuzzing(20)
@given(data=st.data())
def test_selectors_are_refused_whole_or_taken_whole(checked: Checked, data: st.DataObject):
    base = data.draw(st.sampled_from([SELECTORS, ADVANCED, SELECTORS | ADVANCED]))
    given = data.draw(spoilt(st.builds(copy.deepcopy, st.just(base))), label="selectors")
    ask(checked, "cloudtrail", "PutEventSelectors", {"TrailName": "trail-a"} | given)
    ask(checked, "cloudtrail", "GetEventSelectors", {"TrailName": "trail-a"})


PATTERNS = st.text(alphabet='ab{}()[]"%?-$.=<>&|!*1 ,é\\', max_size=40)


@fuzzing(60)
@given(pattern=PATTERNS, times=st.lists(nasty, max_size=2))
def test_a_logs_filter_is_read_or_refused(checked: Checked, pattern: str, times: list[Any]):
    given: dict[str, Any] = {"logGroupName": "/aws/lambda/fn", "filterPattern": pattern}
    given |= dict(zip(("startTime", "endTime"), times, strict=False))
    ask(checked, "logs", "FilterLogEvents", given)
    events = [
        {"timestamp": 1, "message": pattern or "x"},
        *({"timestamp": t, "message": "y"} for t in times),
    ]
    ask(
        checked,
        "logs",
        "PutLogEvents",
        {"logGroupName": "/aws/lambda/fn", "logStreamName": "one", "logEvents": events},
    )
    ask(checked, "logs", "GetLogEvents", {"logGroupName": "/aws/lambda/fn", "logStreamName": "one"})


def test_documents_that_are_right_are_taken(checked: Checked):
    """Else the tests above would see refusals alone."""
    given = {
        "JobName": "right",
        "RoleArn": ROLE,
        "JobCategory": "AgentRFT",
        "JobConfigSchemaVersion": "1.0.0",
        "JobConfigDocument": json.dumps(job_document(checked.building, "AgentRFT")),
    }
    sent = checked.building.json_call("sagemaker", "CreateJob", as_json(given))
    answer = checked.building.ask(sent)
    assert answer.status == 200, answer
    given = {"PipelineName": "right", "PipelineDefinition": json.dumps(DEFINITION)}
    body = as_json(given | {"RoleArn": ROLE, "ClientRequestToken": "t" * 32})
    answer = checked.building.ask(checked.building.json_call("sagemaker", "CreatePipeline", body))
    assert answer.status == 200, answer
