"""`make wire-demo`: the demo task by the sagemaker SDK, as an engineer comes to it from AWS.

Runs in an environment with AWS's clients. It starts the server and the agent in the server's own
environment, and from then on does all by boto3 and the SDK: rows into S3, a training job, and an
evaluation of base and tuned model on the same held-out tasks with the same seed. A paired test over
the two files of rows in S3 says whether the tuned model is better; if it does not, the exit status
is 1. Data and base model are `make demo`'s, made if they are not there.

    python -m examples.aircraft_inspection.sagemaker_demo [--steps 36] [--rows 128] [--demo demo]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from turnwise.rl.comparison import SIGNIFICANT, compare

BASE = "aircraft-inspector"
BUCKET = "aircraft"
RECIPE = Path(__file__).with_name("turnwise-recipe.json")
#: The server and the agent run in Turnwise's own environment.
SERVER_PYTHON = os.environ.get("TURNWISE_PYTHON", ".venv/bin/python")

Json = dict[str, Any]


def run(*command: str) -> str:
    """A command in the server's environment; what it printed."""
    done = subprocess.run(
        [SERVER_PYTHON, "-m", *command], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


@contextlib.contextmanager
def process(log: Path, *command: str) -> Iterator[str]:
    """A process in the server's environment; yields the line that it prints when it is ready."""
    with log.open("w") as stderr:
        child = subprocess.Popen(
            [SERVER_PYTHON, "-m", *command], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            if not line:
                raise SystemExit(f"{command[0]} did not start; see {log}")
            yield line
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(10)


def make_task(demo: Path) -> None:
    """The task's data and the base model, where `make demo` leaves them; kept if they are there."""
    if not (demo / "data" / "train.jsonl").exists():
        run("examples.aircraft_inspection.data", "--out", str(demo / "data"))
    if not (demo / "base" / "model.safetensors").exists():
        folders = ("--data", str(demo / "data"), "--out", str(demo / "base"))
        run("examples.aircraft_inspection.base", *folders, "--threads", str(os.cpu_count() or 1))


def train(agent: str, role: str, steps: int) -> Any:
    """Train by the SDK; the trainer, whose job has ended well."""
    from sagemaker.train.multi_turn_rl_trainer import MultiTurnRLTrainer

    trainer = MultiTurnRLTrainer(
        model=BASE,
        agent_env=agent,
        training_dataset=f"s3://{BUCKET}/train.jsonl",
        validation_dataset=f"s3://{BUCKET}/validation.jsonl",
        s3_output_path=f"s3://{BUCKET}/output",
        role=role,
        accept_eula=True,
    )
    trainer.hyperparameters.max_steps = steps
    job = trainer.train(wait=True)
    job.refresh()
    if job.job_status != "Completed":
        raise SystemExit(f"{job.job_name}: {job.job_status}: {job.failure_reason}")
    return trainer


def evaluate(trainer: Any, agent: str, role: str) -> Any:
    """Base and tuned model side by side, greedily, on the held-out tasks."""
    from sagemaker.train.evaluate import MultiTurnRLEvaluator

    evaluator = MultiTurnRLEvaluator(
        model=trainer,
        evaluate_base_model=True,
        agent_config=agent,
        dataset=f"s3://{BUCKET}/held-out.jsonl",
        s3_output_path=f"s3://{BUCKET}/evaluation",
        role=role,
    )
    execution = evaluator.evaluate()
    execution.wait(poll=5)
    return execution


def rewards(execution: Any) -> list[dict[int, float]]:
    """Of base and tuned model: the reward of each row that was scored, from the files in S3."""
    import boto3

    sagemaker, s3 = boto3.client("sagemaker"), boto3.client("s3")
    steps = sagemaker.list_pipeline_execution_steps(
        PipelineExecutionArn=execution.arn, SortOrder="Ascending"
    )["PipelineExecutionSteps"]
    jobs = [step["Metadata"]["Job"]["Arn"].split("/")[-1] for step in steps if "Metadata" in step]
    found = []
    for job in jobs:
        key = f"evaluation/{job}/output/results.json"
        table = json.load(s3.get_object(Bucket=BUCKET, Key=key)["Body"])["table"]
        scored = [(row["row"], *row["models"].values()) for row in table]
        found.append({row: one["reward"] for row, [one] in scored if one["reward"] is not None})
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.aircraft_inspection.sagemaker_demo")
    parser.add_argument("--steps", type=int, default=36)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="of `make demo`")
    parser.add_argument("--out", type=Path, default=Path("demo/sagemaker"))
    args = parser.parse_args()
    make_task(args.demo)
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    shutil.copytree(args.demo / "base", args.out / "base")
    shutil.copy(RECIPE, args.out / "base")

    cli = ("turnwise.cli", "--data-dir", str(args.out / "server"))
    data = args.demo / "data"
    agent = ("examples.aircraft_inspection.agent", "--data", str(data), "--port", "0")
    with (
        process(args.out / "server.log", *cli, "serve", "--port", "0", "--json"),
        process(args.out / "agent.log", *agent) as said,
    ):
        os.environ |= json.loads(run(*cli, "env", "--json"))  # eval "$(turnwise env)"
        run(*cli, "models", "add-base", str(args.out / "base"), "--name", BASE)
        register = ("agents", "register", "inspector", said.split()[-1], "--as", "http", "--json")
        arn = json.loads(run(*cli, *register))["arn"]
        summary = by_the_sdk(data, arn, args)
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    if not (summary["difference"] > 0 and summary["p_value"] < SIGNIFICANT):
        sys.exit("the tuned model is not better")


def by_the_sdk(data: Path, agent: str, args: argparse.Namespace) -> Json:
    """The part that is the same on AWS; what came out."""
    import boto3

    s3 = boto3.client("s3")
    location = {"LocationConstraint": s3.meta.region_name}
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=location)
    for split in ("train", "validation"):
        s3.upload_file(str(data / f"{split}.jsonl"), BUCKET, f"{split}.jsonl")
    held_out = (data / "test.jsonl").read_text().splitlines(keepends=True)[: args.rows]
    s3.put_object(Bucket=BUCKET, Key="held-out.jsonl", Body="".join(held_out).encode())
    account = boto3.client("sts").get_caller_identity()["Account"]
    role = f"arn:aws:iam::{account}:role/trainer"

    start = time.monotonic()
    trainer = train(agent, role, args.steps)
    trained = time.monotonic()
    base, tuned = rewards(evaluate(trainer, agent, role))
    ids = sorted(base.keys() | tuned.keys())
    found = compare([tuned.get(i) for i in ids], [base.get(i) for i in ids], seed=0)
    assert found is not None
    return {
        "steps": args.steps,
        "rows": found.rows,
        "base": _measured(base),
        "tuned": _measured(tuned),
        "difference": found.difference,
        "p_value": found.p_value,
        "finding": found.sentence("tuned", "base", "in reward"),
        "seconds": {
            "train": round(trained - start, 1),
            "evaluate": round(time.monotonic() - trained, 1),
        },
    }


def _measured(rewards: dict[int, float]) -> Json:
    values = list(rewards.values())
    return {
        "mean_reward": sum(values) / len(values),
        "success": sum(value >= 1 for value in values) / len(values),
    }


if __name__ == "__main__":
    main()
