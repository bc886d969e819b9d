"""Stopped, continued, damaged: what a job leaves, on real processes, and that nothing of it shows
in what is learned. Both jobs are one deterministic job under two names.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.service import agent, chatty, save_chat_model, save_rows, serving
from turnwise.client import Client

Json = dict[str, Any]
ROLLOUTS_PER_STEP = 8


class Door:
    """An agent that lets two steps pass, and the rest once it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self._rollouts = itertools.count()

    async def behave(self, model: AsyncOpenAI, payload: Json) -> float:
        if next(self._rollouts) >= 2 * ROLLOUTS_PER_STEP:
            await asyncio.to_thread(self.opened.wait)
        return await chatty(model, payload)


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

    def stop_at_the_door(self, name: str) -> Json:
        """Stop a job that has made its two steps, and can do no more."""
        steps = self.client.follow(name, kinds=("step",))
        next(steps)
        next(steps)
        self.client.stop(name)
        return self.client.wait(name)

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
        assert client.wait("straight")["status"] == "COMPLETED"
        yield made


@pytest.fixture(scope="module")
def stopped(world: World) -> Iterator[Json]:
    """The job "on", which continues straight's first step, stopped two steps later."""
    door = Door()
    with agent(door.behave) as url:
        world.start("on", resume_from="straight-checkpoints/1", agent={"url": url})
        job = world.stop_at_the_door("on")
        door.opened.set()
        yield job


def test_a_new_job_from_a_checkpoint_learns_what_the_unbroken_one_did_bit_for_bit(
    world: World, stopped: Json
):
    straight = world.adapters("straight")
    assert (stopped["status"], stopped["step"]) == ("STOPPED", 3)
    assert world.adapters("on") == {step: straight[step] for step in (1, 2)}
    assert (stopped["parent"], stopped["output"]) == ("straight-checkpoints/1", "on/2")
    output = world.client.model(stopped["output"])
    assert output["sha256"] == straight[2]
    assert output["metadata"]["base_model"]["sha256"] == stopped["inputs"]["base_sha256"]


def test_a_torn_checkpoint_is_passed_over_with_a_warning_and_nothing_is_lost(
    world: World, stopped: Json
):
    newest = world.client.model("on-checkpoints")
    state = Path(newest["path"]) / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    world.client.resume("on")
    ended = world.client.wait("on")

    assert (ended["status"], ended["step"]) == ("COMPLETED", 4), ended["message"]
    log = world.client.events("on", kinds=("log",))
    [warning] = [event["body"]["message"] for event in log if event["level"] == "warning"]
    assert warning.startswith("the checkpoint of step 2 is damaged: ")
    assert warning.endswith("; continuing from that of step 1 instead")
    straight = world.adapters("straight")
    assert world.adapters("on") == {step: straight[step] for step in (1, 2, 3)}
    assert world.client.model(newest["name"])["path"] == newest["path"]
    assert ended["output"] == "on/4"
