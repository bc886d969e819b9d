"""JobConfigDocuments as they are read, and as they are written. Pure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.wire.aws.job_kit import AGENT, BASE, MLFLOW, evaluation, group_arn, training
from tests.wire.aws.kit import NUMBER, REGION
from turnwise import errors
from turnwise.control.job_file import parse_job
from turnwise.control.models.catalogue import BaseModel
from turnwise.domain.job import AgentKind, AgentSpec, JobKind, JobSpec
from turnwise.wire.aws.sagemaker import job_document as documents

ROWS = "s3://data/rows.jsonl"
TINY = BaseModel(name="tiny", folder=Path("/models/tiny"))
FOUND = documents.Found(
    base=TINY,
    agent=AgentSpec(kind=AgentKind.HTTP, url="http://here", name="inspector"),
    sources={"train": "/rows.jsonl", "evaluation": "/rows.jsonl"},
    groups={},
)


def read(document: dict[str, Any], kind: JobKind = JobKind.TRAIN) -> documents.Asked:
    return documents.read(kind, json.dumps(document))


def spec_of(document: dict[str, Any], kind: JobKind = JobKind.TRAIN) -> JobSpec:
    return parse_job(documents.job_file("walk", read(document, kind), FOUND))


def test_a_document_without_hyperparameters_gives_the_recipes_defaults() -> None:
    spec = spec_of(training(ROWS))
    assert spec.batch.global_batch_size == 128
    assert spec.sampling_params.max_tokens == 4096
    assert spec.model == "/models/tiny"
    assert spec.agent.name == "inspector"
    assert spec.tracking.mlflow


def test_an_evaluation_reads_its_own_hyperparameters() -> None:
    document = evaluation(ROWS)
    document["EvaluationConfig"]["HyperParameters"] = {
        "batch": {"eval_group_size": 4},
        "eval_metrics_config": {"pass_k_values": [1, 2], "success_threshold": 1},
    }
    spec = spec_of(document, JobKind.EVALUATION)
    assert (spec.evaluation.group_size, spec.evaluation.pass_k_values) == (4, (1, 2))
    assert spec.eval_sampling_params.temperature == 0


def test_the_model_may_be_named_among_the_hyperparameters_as_amazons_samples_do() -> None:
    for name in ("tiny", BASE):
        document = training(ROWS, hyperparameters={"model_name_or_path": name, "max_steps": 2})
        assert spec_of(document).schedule.max_steps == 2
    with pytest.raises(errors.InvalidInput, match="'other' is not the model of BaseModelArn"):
        read(training(ROWS, hyperparameters={"model_name_or_path": "other"}))


def test_a_loss_without_bounds_needs_none_of_the_recipes() -> None:
    wide = TINY.training.with_overrides({"clip_high_threshold": {"default": 1.28}})
    base = BaseModel(name="tiny", folder=Path("/models/tiny"), training=wide)
    found = documents.Found(base=base, agent=FOUND.agent, sources=FOUND.sources, groups={})
    asked = read(training(ROWS, hyperparameters={"loss_fn": "importance_sampling"}))
    spec = parse_job(documents.job_file("walk", asked, found))
    assert spec.algorithm.loss_fn == "importance_sampling"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"AgentConfig": None}, "JobConfigDocument.AgentConfig: None"),
        ({"InputDataConfig": []}, "JobConfigDocument.InputDataConfig: "),
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": 0}},
            "StoppingCondition.MaxRuntimeInSeconds",
        ),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": "9"}}, "must|should be a valid integer"),
        ({"VpcConfig": {"Subnets": []}}, "VpcConfig.SecurityGroupIds: None is required"),
        ({"OutputDataConfig": {"S3OutputPath": "/tmp"}}, "OutputDataConfig.S3OutputPath: '/tmp'"),
        ({"TrainingConfig": {"BaseModelArn": "arn:aws:s3:::a"}}, "'arn:aws:s3:::a' is no base mod"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(change: dict[str, Any], path: str) -> None:
    with pytest.raises(errors.InvalidInput, match=path):
        read(training(ROWS) | change)


def test_a_channel_has_one_source_and_there_is_one_to_train_on() -> None:
    channels = training(ROWS)["InputDataConfig"]
    with pytest.raises(errors.InvalidInput, match=r"InputDataConfig\[1\].*there twice"):
        read(training(ROWS, InputDataConfig=channels * 2))
    only = [channels[0] | {"ChannelName": "validation"}]
    with pytest.raises(errors.InvalidInput, match="has no channel named train"):
        read(training(ROWS, InputDataConfig=only))
    with pytest.raises(errors.InvalidInput, match="ChannelName: 'train' is not allowed"):
        read(evaluation(ROWS, InputDataConfig=channels), JobKind.EVALUATION)


@pytest.mark.parametrize("text", ["", "[]", "null", "{" * 100_000, '"a"'])
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidInput, match="JobConfigDocument"):
        documents.read(JobKind.TRAIN, text)


def test_the_document_of_a_described_job_may_be_sent_again() -> None:
    assert read(training(ROWS) | {"ServiceOutput": {"MlflowDetails": {}}}) == read(training(ROWS))


def test_a_job_of_another_door_gives_a_document_that_gives_the_job() -> None:
    spec = builders.spec(
        "walk",
        model="/models/tiny",
        dataset="/rows.jsonl",
        agent=FOUND.agent,
        output_group="mine",
        checkpoint_group="state",
        output_path="s3://out/walk",
    )
    document = documents.document_of(
        spec, TINY, agent_arn=AGENT, mlflow_arn=MLFLOW, region=REGION, number=NUMBER
    )
    assert document["ModelPackageConfig"] == {
        "OutputModelPackageGroupArn": group_arn("mine"),
        "IntermediateCheckpointModelPackageGroupArn": group_arn("state"),
    }
    assert document["OutputDataConfig"] == {"S3OutputPath": "s3://out/walk"}
    given = document["TrainingConfig"].pop("HyperParameters")
    assert given["group_size"] == str(spec.batch.group_size)
    assert read(document).agent_arn == AGENT
