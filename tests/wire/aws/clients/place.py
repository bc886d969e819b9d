"""What jobs of the shared server are made of: a base model, rows in a bucket, an agent, a role."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.wire.aws.clients.answering import Json
from tests.wire.aws.clients.playing import Player
from tests.wire.aws.clients.service import Server, client, until

#: The base model's name. All jobs train this one, so that they share an engine.
BASE = "tiny"
#: What a trainer or an evaluator of it offers: AWS's ranges begin where a test takes minutes.
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
        "learning_rate": {"default": 1e-3, "min": 1e-12},
        "rollout_timeout": {"default": 600, "min": 1},
        "max_steps_off_policy": {"default": 0},
    },
    "evaluation": {"max_tokens": {"default": 8, "min": 1, "max": 64}},
}
DONE = ("Completed", "Failed", "Stopped")
_ROWS = 4


class Place:
    """The account's things by name, its boto3 client, and jobs of them."""

    def __init__(
        self, server: Server, env: Mapping[str, str], player: Player, agents: Json, folder: Path
    ) -> None:
        self.server = server
        self.env = env
        self.player = player
        self.sagemaker = client("sagemaker", env)
        self.account: str = client("sts", env).get_caller_identity()["Account"]
        self.region = env["AWS_DEFAULT_REGION"]
        self.role = f"arn:aws:iam::{self.account}:role/trainer"
        bucket = f"jobs-of-{self.account}"
        s3 = client("s3", env)
        s3.create_bucket(
            Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": self.region}
        )
        rows = "".join(json.dumps({"prompt": f"row {n}"}) + "\n" for n in range(_ROWS)).encode()
        s3.put_object(Bucket=bucket, Key="rows.jsonl", Body=rows)
        self.rows = f"s3://{bucket}/rows.jsonl"
        self.output = f"s3://{bucket}/output"
        (folder / "rows.jsonl").write_bytes(rows)
        self.local_rows = (folder / "rows.jsonl").as_uri()
        for name, url in agents.items():
            server.call("POST", "/agents", {"name": name, "url": url, "as": "http"})

    def agent(self, name: str = "player") -> str:
        """The ARN of a registered agent."""
        return f"arn:aws:lambda:{self.region}:{self.account}:function:{name}"

    def mlflow_app(self) -> str:
        """The ARN of the account's own app."""
        found: str = self.sagemaker.list_mlflow_apps()["Summaries"][0]["Arn"]
        return found

    def group(self, name: str) -> str:
        """The ARN of a model package group, which is made."""
        made = self.sagemaker.create_model_package_group(ModelPackageGroupName=name)
        return str(made["ModelPackageGroupArn"])

    # ── jobs by boto3 ─────────────────────────────────────────────────────────────────────────

    def document(self, agent: str = "player", **hyperparameters: object) -> Json:
        """The document of a training job."""
        hub = f"arn:aws:sagemaker:{self.region}:aws:hub-content/SageMakerPublicHub"
        source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": self.local_rows}}
        return {
            "AgentConfig": {"CustomAgentLambdaConfig": {"LambdaArn": self.agent(agent)}},
            "InputDataConfig": [{"ChannelName": "train", "DataSource": source}],
            "TrainingConfig": {
                "BaseModelArn": f"{hub}/Model/{BASE}/1.0.0",
                "AcceptEula": True,
                "HyperParameters": hyperparameters,
            },
        }

    def create(self, name: str, document: Json) -> str:
        """CreateJob; the job's ARN."""
        made = self.sagemaker.create_job(
            JobName=name,
            RoleArn=self.role,
            JobCategory="AgentRFT",
            JobConfigSchemaVersion="1.0.0",
            JobConfigDocument=json.dumps(document),
        )
        return str(made["JobArn"])

    def describe(self, name: str, category: str = "AgentRFT") -> Json:
        """DescribeJob."""
        found: Json = self.sagemaker.describe_job(JobName=name, JobCategory=category)
        return found

    def output_of(self, name: str, category: str = "AgentRFT") -> Json:
        """What DescribeJob tells beside the document."""
        document = json.loads(self.describe(name, category)["JobConfigDocument"])
        output: Json = document["ServiceOutput"]
        return output

    def ended(self, name: str) -> Json:
        """DescribeJob, once the job is over."""

        def over() -> Json | None:
            found = self.describe(name)
            return found if found["JobStatus"] in DONE else None

        return until(over)

    @contextmanager
    def job(self, name: str, document: Json) -> Iterator[Any]:
        """A job as `AgentRFTJob`, stopped in the end if it still runs."""
        from sagemaker.train.agent_rft_job import AgentRFTJob

        self.create(name, document)
        try:
            yield AgentRFTJob.get(name)
        finally:
            running = self.sagemaker.list_jobs(JobCategory="AgentRFT", StatusEquals="InProgress")
            if name in [job["JobName"] for job in running["JobSummaries"]]:
                self.sagemaker.stop_job(JobName=name, JobCategory="AgentRFT")
                self.ended(name)

    # ── jobs by the SDK ───────────────────────────────────────────────────────────────────────

    def trainer(self, model: str = BASE, **given: Any) -> Any:
        """A trainer over the rows in the bucket, of which nothing is known yet but its role."""
        from sagemaker.train.multi_turn_rl_trainer import MultiTurnRLTrainer

        settings = {
            "agent_env": self.agent(),
            "training_dataset": self.rows,
            "s3_output_path": self.output,
            "role": self.role,
            "accept_eula": True,
        }
        return MultiTurnRLTrainer(model=model, **settings | given)

    def evaluator(self, model: str = BASE, **given: Any) -> Any:
        """An evaluator over the rows in the bucket."""
        from sagemaker.train.evaluate import MultiTurnRLEvaluator

        settings = {
            "dataset": self.rows,
            "s3_output_path": self.output,
            "agent_config": self.agent(),
            "role": self.role,
        }
        return MultiTurnRLEvaluator(model=model, **settings | given)
