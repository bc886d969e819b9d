"""Stopped, continued, damaged: what a job leaves, on real processes, and that nothing of it shows
in what is learned. All jobs are one deterministic job under several names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service import agent, chatty, save_chat_model, save_rows, serving
from turnwise.client import Client

Json = dict[str, Any]


class World:
    """One server, and the job "straight" that ran without a break."""

    def __init__(self, client: Client, model: Path, rows: Path, url: str) -> None:
        self.client = client
        self._file: Json = {
            "model": str(model),
            "dataset": str(rows),
            "agent": {"url": url},
            "batch": {"global_batch_size": 2, "group_size": 4},
            "schedule": {"max_steps": 4, "max_epochs": 9, "val_every": 0},
            "sampling_params": {"max_tokens": 8},
            "lora": {"rank": 4, "alpha": 8},
            "optimizer": {"learning_rate": 0.02},
            "async_config": {"max_steps_off_policy": 0},
            "deterministic": True,
        }

    def start(self, name: str, **changes: Any) -> None:
        self.client.create_job({"name": name, **self._file, **changes})

    def stop_after(self, name: str, step: int) -> Json:
        deadline = time.monotonic() + 60
        while self.client.job(name)["step"] < step:
            assert time.monotonic() < deadline, self.client.job(name)
            time.sleep(0.02)
        self.client.stop(name)
        return self.client.wait(name)

    def tear(self, checkpoint: Json) -> None:
        """Cut a file of a checkpoint short; `torn` is its step."""
        state = Path(checkpoint["path"]) / "state.safetensors"
        state.write_bytes(state.read_bytes()[:-100])
        self.torn: int = checkpoint["step"]

    def adapters(self, name: str) -> dict[int, str]:
        """Each step's adapter; of a step trained again, the later one."""
        events = self.client.events(name, kinds=("step",))
        return {event["body"]["step"]: event["body"]["adapter_id"] for event in events}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("packages")
    model = save_chat_model(folder / "model")
    rows = save_rows(folder / "rows.jsonl", 8)
    with (
        agent(chatty) as url,
        serving(folder / "data") as server,
        server.client() as client,
    ):
        made = World(client, model, rows, url)
        made.start("straight")
        made.start("half")
        stopped = made.stop_after("half", 2)
        assert (stopped["status"], stopped["output"]) == ("STOPPED", f"half/{stopped['step']}")
        assert client.wait("straight")["status"] == "COMPLETED"
        made.tear(client.model("half-checkpoints"))
        made.start("on", resume_from="half-checkpoints/1")
        client.resume("half")  # both at once, on one engine
        yield made


def test_a_new_job_from_a_checkpoint_learns_what_the_unbroken_one_did_bit_for_bit(world: World):
    ended = world.client.wait("on")

    assert (ended["status"], ended["step"]) == ("COMPLETED", 4), ended["message"]
    straight = world.adapters("straight")
    assert world.adapters("on") == {step: straight[step] for step in (1, 2, 3)}
    assert (ended["parent"], ended["output"]) == ("half-checkpoints/1", "on/3")
    lineage = world.client.model("on")["metadata"]
    assert lineage["base_model"]["sha256"] == ended["inputs"]["base_sha256"]
    assert world.client.model("on")["sha256"] == straight[3]


def test_a_torn_checkpoint_is_passed_over_with_a_warning_and_nothing_is_lost(world: World):
    ended = world.client.wait("half")

    assert (ended["status"], ended["step"]) == ("COMPLETED", 4), ended["message"]
    log = world.client.events("half", kinds=("log",))
    [warning] = [event["body"]["message"] for event in log if event["level"] == "warning"]
    assert warning.startswith(f"the checkpoint of step {world.torn} is damaged: ")
    assert warning.endswith(f"; continuing from that of step {world.torn - 1} instead")
    assert world.adapters("half") == world.adapters("straight")
