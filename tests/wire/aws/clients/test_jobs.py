"""SageMaker's Job API with boto3, the aws command line and the sagemaker SDK."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.wire.aws.clients.playing import Player, playing
from tests.wire.aws.clients.running import save_model
from tests.wire.aws.clients.service import Server, client

RECIPE = {
    "training": {
        "global_batch_size": {"default": 2, "choices": [1, 2, 4]},
        "group_size": {"default": 2},
        "max_steps": {"default": 2},
        "max_epochs": {"max": 1000},
        "val_every": {"default": 0},
        "sampling_max_tokens": {"default": 8, "min": 1, "max": 64},
        "val_sampling_max_tokens": {"default": 8, "min": 1, "max": 64},
        "lora_rank": {"default": 4, "min": 1},
        "lora_alpha": {"default": 8, "min": 1},
        "rollout_timeout": {"default": 600, "min": 1},
        "max_steps_off_policy": {"default": 0},
    },
    "evaluation": {"max_tokens": {"default": 8, "min": 1, "max": 64}},
}
BASE = "tiny-jobs"
DONE = ("Completed", "Failed", "Stopped")


class Work:
    """A base model, rows and agents by name, and boto3's client."""

    def __init__(self, server: Server, env: Mapping[str, str], folder: Path, url: str) -> None:
        self.env = env
        self.sagemaker = client("sagemaker", env)
        self.number = client("sts", env).get_caller_identity()["Account"]
        self.region = env["AWS_DEFAULT_REGION"]
        model = save_model(folder / "tiny")
        (model / "turnwise-recipe.json").write_text(json.dumps(RECIPE))
        server.cli("models", "add-base", str(model), "--name", BASE)
        server.cli("agents", "register", "job-player", url, "--as", "http")
        server.cli("agents", "register", "nobody", "http://127.0.0.1:9", "--as", "http")
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps({"prompt": f"row {n}"}) + "\n" for n in range(16)))
        self.rows = rows.as_uri()
        [app] = self.sagemaker.list_mlflow_apps()["Summaries"]
        self.mlflow = app["Arn"]
        self.role = f"arn:aws:iam::{self.number}:role/trainer"

    def agent(self, name: str = "job-player") -> str:
        return f"arn:aws:lambda:{self.region}:{self.number}:function:{name}"

    def group(self, name: str) -> str:
        """The ARN of a model package group, which is made."""
        made = self.sagemaker.create_model_package_group(ModelPackageGroupName=name)
        return str(made["ModelPackageGroupArn"])

    def document(self, agent: str = "job-player", **hyperparameters: str) -> dict[str, Any]:
        """As the SDK builds it."""
        hub = f"arn:aws:sagemaker:{self.region}:aws:hub-content/SageMakerPublicHub"
        source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": self.rows}}
        return {
            "AgentConfig": {"CustomAgentLambdaConfig": {"LambdaArn": self.agent(agent)}},
            "InputDataConfig": [{"ChannelName": "train", "DataSource": source}],
            "TrainingConfig": {
                "BaseModelArn": f"{hub}/Model/{BASE}/1.0.0",
                "AcceptEula": True,
                "HyperParameters": hyperparameters,
            },
        }

    def create(self, name: str, document: dict[str, Any]) -> dict[str, Any]:
        """CreateJob."""
        made: dict[str, Any] = self.sagemaker.create_job(
            JobName=name,
            RoleArn=self.role,
            JobCategory="AgentRFT",
            JobConfigSchemaVersion="1.0.0",
            JobConfigDocument=json.dumps(document),
        )
        return made

    def describe(self, name: str) -> dict[str, Any]:
        """DescribeJob."""
        found: dict[str, Any] = self.sagemaker.describe_job(JobName=name, JobCategory="AgentRFT")
        return found

    def output(self, name: str) -> dict[str, Any]:
        """What DescribeJob tells beside the document."""
        output: dict[str, Any] = json.loads(self.describe(name)["JobConfigDocument"])[
            "ServiceOutput"
        ]
        return output

    def aws(self, *arguments: str) -> dict[str, Any]:
        """A call of the aws command line; its answer."""
        command = [str(Path(sys.executable).with_name("aws")), *arguments]
        path = {"PATH": str(Path(sys.executable).parent)}
        done = subprocess.run(
            command, env={**self.env, **path}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout or "{}")
        return said


def until(is_so: Callable[[], object], timeout_s: float = 120.0) -> None:
    """Wait until something is so."""
    limit = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    with playing() as found:
        yield found


@pytest.fixture(scope="module")
def work(
    server: Server,
    env: dict[str, str],
    player: Player,
    tmp_path_factory: pytest.TempPathFactory,
) -> Work:
    return Work(server, env, tmp_path_factory.mktemp("jobs"), player.url)


@pytest.fixture
def sdk(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """`AgentRFTJob`; the SDK reads the environment when it is imported."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    from sagemaker.train.agent_rft_job import AgentRFTJob

    return AgentRFTJob


def test_a_job_is_described_at_once_and_its_document_is_given_back(
    work: Work, player: Player, sdk: type[Any]
) -> None:
    """Contract checks 5, 6, 12, 13: from creation to deletion, by AgentRFTJob."""
    document = work.document(max_steps="500", max_epochs="1000") | {
        "ModelPackageConfig": {
            "OutputModelPackageGroupArn": work.group("life-mpg"),
            "IntermediateCheckpointModelPackageGroupArn": work.group("life-checkpoint-mpg"),
        }
    }
    began = time.monotonic()
    made = work.create("life", document)
    job = sdk.get("life")
    assert job.job_status == "InProgress"
    assert time.monotonic() - began < 5
    assert made["JobArn"] == job.job_arn
    assert job.job_arn.endswith("job/AgentRFT/life")
    given_back = json.loads(work.describe("life")["JobConfigDocument"])
    given_back.pop("ServiceOutput")
    assert given_back == document

    until(lambda: "ModelCheckpoint" in work.output("life"))
    until(lambda: work.output("life")["BillableTokenUsage"]["TrainTokenCount"] > 0)
    player.gate.clear()
    try:
        job.refresh()
        assert job.secondary_status == "Training"
        assert job.progress_info["MaxSteps"] == 500
        assert job.progress_info["CurrentStep"] >= 2
        assert job.billable_token_usage["SampleTokenCount"] > 0
        with pytest.raises(work.sagemaker.exceptions.ResourceInUse):
            work.create("life", document)
        with pytest.raises(work.sagemaker.exceptions.ResourceInUse):
            work.sagemaker.delete_job(JobName="life", JobCategory="AgentRFT")
        job.stop()
        assert work.describe("life")["JobStatus"] in ("Stopping", "Stopped")
    finally:
        player.gate.set()
    until(lambda: work.describe("life")["JobStatus"] == "Stopped")
    job.refresh()
    phases = [each.status for each in job.secondary_status_transitions]
    assert phases[-3:] == ["Training", "Stopping", "Stopped"]
    group = f"arn:aws:sagemaker:{work.region}:{work.number}:model-package/life-mpg/"
    assert job.output_model_package_arn.startswith(group)

    job.delete()
    job.wait_for_delete()
    with pytest.raises(work.sagemaker.exceptions.ResourceNotFound):
        work.describe("life")


def test_a_failed_job_says_why(work: Work, sdk: type[Any]) -> None:
    """Contract check 11."""
    work.create("doomed", work.document(agent="nobody"))
    until(lambda: work.describe("doomed")["JobStatus"] in DONE)
    found = work.describe("doomed")
    assert found["JobStatus"] == "Failed"
    assert "127.0.0.1:9" in found["FailureReason"]
    assert len(found["FailureReason"]) <= 1024
    assert found["SecondaryStatusTransitions"][-1]["Status"] == "Failed"
    assert sdk.get("doomed").failure_reason == found["FailureReason"]


def test_the_command_line_creates_describes_and_lists_jobs(work: Work) -> None:
    """Contract check 41."""
    job = ("--job-name", "by-cli", "--job-category", "AgentRFT")
    made = work.aws(
        *("sagemaker", "create-job", *job, "--role-arn", work.role),
        *("--job-config-schema-version", "1.0.0"),
        *("--job-config-document", json.dumps(work.document(max_steps="1"))),
    )
    assert made["JobArn"].endswith("job/AgentRFT/by-cli")
    until(lambda: work.describe("by-cli")["JobStatus"] in DONE)
    found = work.aws("sagemaker", "describe-job", *job)
    assert (found["JobStatus"], found.get("FailureReason")) == ("Completed", None)
    assert [each["Status"] for each in found["SecondaryStatusTransitions"]] == [
        *("Pending", "Starting", "Downloading", "Training", "Uploading", "Completed"),
    ]
    output = json.loads(found["JobConfigDocument"])["ServiceOutput"]
    assert output["ProgressInfo"] == {"MaxSteps": 1, "CurrentStep": 1, "BatchSize": 2}
    assert output["OutputModelPackageArn"].endswith(":model-package/by-cli/1")
    names = work.aws("sagemaker", "list-jobs", "--job-category", "AgentRFT")["JobSummaries"]
    assert "by-cli" in [each["JobName"] for each in names]


def test_all_jobs_are_found_by_filters_and_pages(work: Work, sdk: type[Any]) -> None:
    """Contract check 15."""
    for name in ("page-a", "page-b", "page-c"):
        work.create(name, work.document(agent="nobody"))
        until(lambda name=name: work.describe(name)["JobStatus"] == "Failed")  # type: ignore[misc]
    found = sdk.get_all(
        status_equals="Failed", name_contains="page-", sort_by="Name", sort_order="Descending"
    )
    assert [job.job_name for job in found] == ["page-c", "page-b", "page-a"]
    paged = work.sagemaker.list_jobs(JobCategory="AgentRFT", NameContains="page-", MaxResults=2)
    assert len(paged["JobSummaries"]) == 2
    rest = work.sagemaker.list_jobs(
        JobCategory="AgentRFT", NameContains="page-", MaxResults=2, NextToken=paged["NextToken"]
    )
    assert len(rest["JobSummaries"]) == 1
    assert list(sdk.get_all(name_contains="page-", status_equals="Completed")) == []


@pytest.mark.parametrize("category", ["AgentRFT", "AgentRFTEvaluation"])
def test_the_schemas_validate_the_sdks_documents(work: Work, sdk: type[Any], category: str) -> None:
    """Contract check 19."""
    versions = work.sagemaker.list_job_schema_versions(JobCategory=category)
    [version] = [each["JobConfigSchemaVersion"] for each in versions["JobConfigSchemas"]]
    found = work.sagemaker.describe_job_schema_version(
        JobCategory=category, JobConfigSchemaVersion=version
    )
    schema = json.loads(found["JobConfigSchema"])
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document = _training(work) if category == "AgentRFT" else _evaluation(work)
    validator.validate(document)
    for broken in (
        document | {"AgentConfig": {}},
        document | {"InputDataConfig": []},
        {name: part for name, part in document.items() if name != "AgentConfig"},
        document | {"Unknown": 1},
    ):
        assert not validator.is_valid(broken)


def test_only_what_a_user_changed_is_sent_and_the_rest_is_the_recipes(
    work: Work, player: Player, sdk: type[Any]
) -> None:
    """Contract checks 5, 6, 7, with the trainer itself."""
    trainer = _trainer(work)
    trainer.hyperparameters.max_steps = 12
    trainer.hyperparameters.pass_k_values = [1, 2]
    player.gate.clear()
    job = trainer.train(wait=False)
    assert job.job_status == "InProgress"
    found = json.loads(work.describe(job.job_name)["JobConfigDocument"])
    output = found.pop("ServiceOutput")
    assert found == trainer._build_job_config()
    sent = {"max_steps": "12", "pass_k_values": "[1, 2]"}
    assert found["TrainingConfig"]["HyperParameters"] == sent
    assert output["ProgressInfo"]["MaxSteps"] == 12
    assert output["ProgressInfo"]["BatchSize"] == 2
    job.stop()
    player.gate.set()
    until(lambda: work.describe(job.job_name)["JobStatus"] == "Stopped")


def _trainer(work: Work) -> Any:
    from sagemaker.train.multi_turn_rl_trainer import MultiTurnRLTrainer

    return MultiTurnRLTrainer(
        model=BASE,
        agent_env=work.agent(),
        training_dataset=work.rows,
        s3_output_path=f"s3://{_bucket(work)}/out",
        mlflow_app_arn=work.mlflow,
        role=work.role,
        accept_eula=True,
    )


def _bucket(work: Work) -> str:
    return f"jobs-of-{work.number}"


def _training(work: Work) -> dict[str, Any]:
    """What the trainer sends."""
    trainer = _trainer(work)
    trainer.hyperparameters.group_size = 4
    trainer.train(dry_run=True)
    document: dict[str, Any] = trainer._build_job_config()
    assert document["TrainingConfig"]["HyperParameters"] == {"group_size": "4"}
    return document


def _evaluation(work: Work) -> dict[str, Any]:
    """What the evaluator's pipeline sends for a base model."""
    from sagemaker.train.evaluate import MultiTurnRLEvaluator

    evaluator = MultiTurnRLEvaluator(
        model=BASE,
        dataset=f"s3://{_bucket(work)}/rows.jsonl",
        agent_config=work.agent(),
        s3_output_path=f"s3://{_bucket(work)}/out",
        mlflow_resource_arn=work.mlflow,
        role=work.role,
    )
    evaluator._resolve_agent_arn()
    context = {"region": work.region, "account_id": work.number, "role_arn": work.role}
    hub = f"arn:aws:sagemaker:{work.region}:aws:hub-content/SageMakerPublicHub/Model"
    artifacts = {"base_model_arn": f"{hub}/{BASE}/1.0.0"}
    built = evaluator._build_template_context(context, artifacts, None)
    document: dict[str, Any] = json.loads(built["job_config_document_str"])
    assert document["EvaluationConfig"]["HyperParameters"]["max_tokens"] == "8"
    return document
