"""One job through real processes: server, engine, learner and an agent over HTTP."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.service import Server, agent, chatty, save_chat_model, save_rows, serving
from turnwise.client import Client

Json = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return save_rows(tmp_path / "rows.jsonl", 32)


def job_file(model: Path, rows: Path, url: str, **changes: Any) -> Json:
    """A job of small steps that learns fast."""
    return {
        "name": "flow",
        "model": str(model),
        "dataset": str(rows),
        "agent": {"url": url},
        "batch": {"global_batch_size": 4, "group_size": 4},
        "schedule": {"max_steps": 4, "max_epochs": 9, "val_every": 0},
        "sampling_params": {"max_tokens": 12},
        "lora": {"rank": 8, "alpha": 16},
        "optimizer": {"learning_rate": 0.02},
        "async_config": {"max_steps_off_policy": 0},
    } | changes


def curve(client: Client, name: str = "flow") -> list[Json]:
    """What a run learned, step by step: rewards and losses, to the bit."""
    metrics = client.metrics(name)
    names = ("rollout/reward/mean", "training/loss", "training/grad_norm")
    return [
        {key: metrics[key][step]["value"] for key in names}
        for step in range(len(metrics["training/loss"]))
    ]


def adapters(client: Client) -> list[str]:
    return [event["body"]["adapter_id"] for event in client.events("flow", kinds=("step",))]


def wait_for_step(client: Client, step: int) -> None:
    deadline = time.monotonic() + 60
    while client.job("flow")["step"] < step:
        assert time.monotonic() < deadline, client.job("flow")
        time.sleep(0.02)


def test_a_job_trains_to_its_end_and_every_token_is_accounted_for(model, rows, tmp_path):
    with agent(chatty) as url, serving(tmp_path / "data") as server, server.client() as client:
        client.create_job(job_file(model, rows, url))
        job = client.wait("flow")
        assert (job["status"], job["step"]) == ("COMPLETED", 4), job["message"]
        page = client.rollouts("flow", limit=1000)["rollouts"]
        sampled = sum(rollout["tokens"] for rollout in page)
        assert sum(sum(step["bins"].values()) for step in client.ledger("flow")) == sampled
        mismatch = client.metrics("flow", names=("mismatch/age_0/mean",))["mismatch/age_0/mean"]
        assert max(point["value"] for point in mismatch) <= 1e-5
        assert client.model("flow")["version"] == 4


def test_reward_rises_on_a_task_that_is_easy_to_learn(model, rows, tmp_path):
    with agent(chatty) as url, serving(tmp_path / "data") as server, server.client() as client:
        client.create_job(
            job_file(
                model,
                rows,
                url,
                batch={"global_batch_size": 8, "group_size": 8, "updates_per_step": 4},
                schedule={"max_steps": 8, "max_epochs": 9, "val_every": 0},
            )
        )
        assert client.wait("flow")["status"] == "COMPLETED"
        rewards = [step["rollout/reward/mean"] for step in curve(client)]
        assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.05, rewards


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory) -> tuple[list[Json], list[str]]:
    """The curve and the adapters of the deterministic job when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    rows = save_rows(folder / "rows.jsonl", 32)
    with (
        agent(chatty) as url,
        serving(folder / "data") as server,
        server.client() as client,
    ):
        client.create_job(job_file(model, rows, url, deterministic=True))
        assert client.wait("flow")["status"] == "COMPLETED"
        return curve(client), adapters(client)


def test_a_server_killed_mid_run_continues_bit_for_bit_and_leaves_no_process(
    model, rows, tmp_path, undisturbed
):
    with agent(chatty) as url:
        first = Server(tmp_path / "killed")
        with first.client() as client:
            client.create_job(job_file(model, rows, url, deterministic=True))
            wait_for_step(client, 2)
        children = first.children()
        first.kill()
        assert len(children) == 2
        assert_gone(children)
        with serving(tmp_path / "killed") as second, second.client() as client:
            job = client.wait("flow")
            assert (job["status"], job["incarnation"]) == ("COMPLETED", 2), job["message"]
            assert (curve(client), adapters(client)) == undisturbed
            seen = [g for e in client.events("flow", kinds=("step",)) for g in e["body"]["groups"]]
            assert len(seen) == len(set(seen)) == 16


def test_a_job_survives_a_stop_and_the_death_of_its_engine_and_of_its_learner(
    model, rows, tmp_path, undisturbed
):
    with agent(chatty) as url, serving(tmp_path / "data") as server, server.client() as client:
        client.create_job(job_file(model, rows, url, deterministic=True))
        wait_for_step(client, 1)
        client.stop("flow")
        assert client.wait("flow")["status"] == "STOPPED"
        assert_all_tokens_are_in_the_ledger(client)
        for incarnation, victim in ((2, "engine"), (3, "learner")):
            client.resume("flow")
            wait_for_training(client, incarnation)
            os.kill(child(server, victim), signal.SIGKILL)
            job = client.wait("flow")
            assert job["status"] == "FAILED"
            assert "process" in job["message"], job["message"]
            assert_all_tokens_are_in_the_ledger(client)
        client.resume("flow")
        assert client.wait("flow")["status"] == "COMPLETED"
        assert (curve(client), adapters(client)) == undisturbed
        assert_all_tokens_are_in_the_ledger(client)


def assert_all_tokens_are_in_the_ledger(client: Client) -> None:
    """Of a job that has ended, however it did."""
    bins = sum((Counter(step["bins"]) for step in client.ledger("flow")), Counter())
    usage = client.usage("flow")
    assert (usage["train_tokens"], usage["sample_tokens"]) == (bins["trained"], bins.total())


def wait_for_training(client: Client, incarnation: int) -> None:
    """Wait until that start of the job's loop has rollouts under way."""
    deadline = time.monotonic() + 60
    while True:
        job = client.job("flow")
        if job["incarnation"] == incarnation and job["secondary_status"] == "Training":
            return
        assert time.monotonic() < deadline, job
        time.sleep(0.01)


def child(server: Server, kind: str) -> int:
    """The process id of the engine or the learner."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in server.children()}
    return next(pid for pid, command in commands.items() if kind.encode() in command.split(b"\0"))


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/stat").exists() and not is_zombie(pid) for pid in pids):
        assert time.monotonic() < deadline, "an orphan process stays"
        time.sleep(0.05)


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
