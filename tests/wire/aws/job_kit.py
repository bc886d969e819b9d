"""SageMaker's job handlers over the control plane in memory, and the documents they are sent."""

from __future__ import annotations

import json
from typing import Any

from tests.unit.control.kit import World
from tests.wire.aws.kit import NUMBER, REGION, Caller
from turnwise import errors
from turnwise.control.agents import Agents
from turnwise.control.browse import Browse
from turnwise.control.models.catalogue import Catalogue
from turnwise.domain.access import Principal
from turnwise.domain.job import AgentKind, Job
from turnwise.wire.aws.arns import JobArn
from turnwise.wire.aws.sagemaker.jobs import JobRooms, job_handlers
from turnwise.wire.aws.sagemaker.tags import Tags

ROLE = f"arn:aws:iam::{NUMBER}:role/trainer"
AGENT = f"arn:aws:lambda:{REGION}:{NUMBER}:function:inspector"
BASE = f"arn:aws:sagemaker:{REGION}:aws:hub-content/SageMakerPublicHub/Model/tiny/1.0.0"
MLFLOW = f"arn:aws:sagemaker:{REGION}:{NUMBER}:mlflow-app/app-a"
DATA_SET = f"arn:aws:sagemaker:{REGION}:{NUMBER}:hub-content/mine/DataSet/rows/1.0.0"

#: What fits the fake learner's tiny adapters and one row.
RECIPE = {
    "training": {
        "global_batch_size": {"default": 1, "min": 1, "max": 64},
        "group_size": {"default": 2},
        "max_steps": {"default": 3},
        "max_epochs": {"default": 9},
        "lora_rank": {"default": 1, "min": 1, "max": 64},
        "lora_alpha": {"default": 2, "min": 1, "max": 128},
        "targets": {"leaf": "lora.target_modules", "default": ["q_proj"]},
    }
}


def group_arn(name: str, *, number: str = NUMBER) -> str:
    return f"arn:aws:sagemaker:{REGION}:{number}:model-package-group/{name}"


def package_arn(name: str) -> str:
    return f"arn:aws:sagemaker:{REGION}:{NUMBER}:model-package/{name}"


def source(uri: str) -> dict[str, Any]:
    return {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}}


def training(rows: str, **changes: Any) -> dict[str, Any]:
    """A document as the sagemaker SDK builds it; `hyperparameters` are its HyperParameters."""
    hyperparameters = changes.pop("hyperparameters", None)
    configuration: dict[str, Any] = {"BaseModelArn": BASE, "AcceptEula": True}
    if hyperparameters is not None:
        configuration["HyperParameters"] = hyperparameters
    return {
        "AgentConfig": {"CustomAgentLambdaConfig": {"LambdaArn": AGENT}},
        "InputDataConfig": [{"ChannelName": "train", "DataSource": source(rows)}],
        "TrainingConfig": configuration,
    } | changes


def evaluation(rows: str, **changes: Any) -> dict[str, Any]:
    """The same of the evaluator."""
    return {
        "AgentConfig": {"CustomAgentLambdaConfig": {"LambdaArn": AGENT}},
        "InputDataConfig": [{"ChannelName": "evaluation", "DataSource": source(rows)}],
        "EvaluationConfig": {"BaseModelArn": BASE, "AcceptEula": True},
    } | changes


class JobDoor:
    """A World whose jobs are asked for as SageMaker's clients do."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rows = f"file://{world.folder / 'train.jsonl'}"
        models = world.folder / "models"
        models.mkdir()
        (models / "tiny").symlink_to(world.folder / "model")
        recipe = world.folder / "model" / "turnwise-recipe.json"
        recipe.write_text(json.dumps(RECIPE))
        self.agents = Agents(world.store, self._number, world.clock, region=REGION)
        self.handlers = job_handlers(
            JobRooms(
                jobs=world.jobs,
                browse=Browse(world.store),
                resources=world.store,
                catalogue=Catalogue(models),
                agents=self.agents,
                tags=Tags(world.store, world.clock),
                clock=world.clock,
                job_arn=self._job_arn,
                dataset_uri=self._dataset,
                check_group=self._group,
            )
        )
        self.ask = Caller(self.handlers)

    async def register_agent(self) -> None:
        principal = Principal(account_id="acc_default")
        await self.agents.register(principal, "inspector", "http://127.0.0.1:9", AgentKind.HTTP)

    async def create(self, name: str, document: dict[str, Any], **given: Any) -> dict[str, Any]:
        """CreateJob."""
        category = "AgentRFT" if "TrainingConfig" in document else "AgentRFTEvaluation"
        request = {
            "JobName": name,
            "RoleArn": ROLE,
            "JobCategory": category,
            "JobConfigSchemaVersion": "1.0.0",
            "JobConfigDocument": json.dumps(document),
        }
        return await self.ask("CreateJob", **(request | given))

    async def describe(self, name: str, category: str = "AgentRFT") -> dict[str, Any]:
        """DescribeJob, its document parsed."""
        found = await self.ask("DescribeJob", JobName=name, JobCategory=category)
        return found | {"JobConfigDocument": json.loads(found["JobConfigDocument"])}

    async def _number(self, account_id: str) -> str:
        return NUMBER

    async def _job_arn(self, job: Job) -> str:
        return str(JobArn.of(job, REGION, NUMBER))

    async def _dataset(self, principal: Principal, arn: str) -> str:
        if arn != DATA_SET:
            raise errors.NotFound("data set", arn)
        return self.rows

    async def _group(self, principal: Principal, name: str) -> None:
        if name == "gone":
            raise errors.NotFound("model package group", name)
