"""What a user sees when something is wrong, on one real server; and that nothing else is harmed.

All bad input meets one server. The job "mixed" has a row per misbehaviour: the first rollout of
the row misbehaves, its two siblings do as they should. The job "healthy" runs beside everything
here: it trains its first step before, and its last step after all the rest.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import HTTPException
from openai import AsyncOpenAI

from tests.service import Server, agent, listening_addresses, save_chat_model, serving
from turnwise import errors
from turnwise.client import Client
from turnwise.modeling.fingerprint import folder_sha256
from turnwise.rft import (
    FeedbackError,
    RolloutFeedbackClient,
    make_inference_headers,
    rft_handler,
)

Json = dict[str, Any]

CONTEXT = 256  # tokens that the model can read
ROLLOUT_S = 8.0
GROUP = 3


# ── the agent ─────────────────────────────────────────────────────────────────────────────────


class Scene:
    """A rollout as the agent has it."""

    def __init__(self, model: AsyncOpenAI, metadata: Json, siblings: list[Json]) -> None:
        self.model = model
        self.metadata = metadata
        self.siblings = siblings  # the metadata of the row's rollouts so far
        self.feedback = RolloutFeedbackClient(metadata)
        self.server, _, name = metadata["endpoint"].rpartition("/r/")
        self.rollout_id, _, self.secret = name.partition(".")
        self.refusals: list[Any] = []

    async def say(self, content: str | list[Json] = "hi", **more: Any) -> None:
        """One turn."""
        await say(self.model, content, **more)

    async def tell(self, report: Callable[..., None], *args: Any) -> None:
        """Report, by a client that blocks."""
        await asyncio.to_thread(report, *args)

    async def refused(self, asking: Awaitable[None]) -> None:
        """Keep the error that a call is answered with."""
        with pytest.raises((openai.APIStatusError, FeedbackError)) as refusal:
            await asking
        self.refusals.append(shown(refusal.value))


async def say(
    client: AsyncOpenAI, content: str | list[Json], *, model: str = "default", **more: Any
) -> None:
    """One turn, with any openai client."""
    messages: list[Any] = [{"role": "user", "content": content}]
    await client.chat.completions.create(model=model, messages=messages, **more)


def shown(error: Exception) -> tuple[Any, ...]:
    """What an agent's openai or feedback client shows of an error."""
    if isinstance(error, openai.APIStatusError):
        body: Any = error.body
        return type(error).__name__, error.status_code, error.code, error.param, body["message"]
    assert isinstance(error, FeedbackError)
    return error.status, json.loads(str(error).removeprefix(f"{error.status}: "))["message"]


Reward = float | list[float] | None
#: What the first rollout of a row does, by the row's prompt.
MISBEHAVIOURS: dict[str, Callable[[Scene], Awaitable[Reward]]] = {}


def in_row(prompt: str) -> Callable[[Callable[[Scene], Awaitable[Reward]]], None]:
    return lambda act: MISBEHAVIOURS.__setitem__(prompt, act)


class Crowd:
    """One agent for every job of this file."""

    def __init__(self) -> None:
        self.refusals: dict[str, list[Any]] = {}  # what the misbehaving got to see, by row
        self.doors = {"healthy": threading.Event(), "disk": threading.Event()}
        self._arrived: dict[str, list[Json]] = defaultdict(list)

    async def __call__(self, model: AsyncOpenAI, payload: Json) -> Reward:
        row, arrived = payload["prompt"], self._arrived[payload["prompt"]]
        arrived.append(payload["metadata"])
        nth = len(arrived)
        scene = Scene(model, payload["metadata"], arrived)
        if row in MISBEHAVIOURS and nth == 1:
            self.refusals[row] = scene.refusals
            return await MISBEHAVIOURS[row](scene)
        await scene.say(row)
        if row in self.doors:
            await self._wait_at(self.doors[row], nth)
            await scene.say("again")
        return nth % 2

    async def _wait_at(self, door: threading.Event, nth: int) -> None:
        """The first step's two rollouts pass; those of the second wait."""
        while nth > 2 and not door.is_set():
            await asyncio.sleep(0.02)


# ── rollouts that fail ────────────────────────────────────────────────────────────────────────


@in_row("answers 500")
async def _(scene: Scene) -> Reward:
    raise HTTPException(500, "the simulator broke")


@in_row("hangs")
async def _(scene: Scene) -> Reward:
    await asyncio.Event().wait()
    raise AssertionError


@in_row("raises")
async def _(scene: Scene) -> Reward:
    @rft_handler
    async def entry_point(payload: Json) -> None:
        await scene.say()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await entry_point({"metadata": scene.metadata})
    return None


@in_row("never completes")
async def _(scene: Scene) -> Reward:
    await scene.say()
    return None


@in_row("never reports a reward")
async def _(scene: Scene) -> Reward:
    await scene.say()
    await scene.tell(scene.feedback.complete_rollout)
    return None


# ── reports that are refused ──────────────────────────────────────────────────────────────────


@in_row("rewards NaN")
async def _(scene: Scene) -> Reward:
    await scene.say()
    await scene.refused(scene.tell(scene.feedback.report_complete, math.nan))
    return 0.5


@in_row("rewards too many")
async def _(scene: Scene) -> Reward:
    await scene.say()
    await scene.refused(scene.tell(scene.feedback.report_complete, [1.0, 0.0, 1.0]))
    return 0.5


@in_row("measures NaN")
async def _(scene: Scene) -> Reward:
    await scene.say()
    await scene.refused(scene.tell(scene.feedback.report_complete, 0.5, {"hops": math.nan}))
    return 0.5


@in_row("rewards early")
async def _(scene: Scene) -> Reward:
    await scene.say()
    await scene.refused(scene.tell(scene.feedback.update_reward, [0.5]))
    return 0.5


@in_row("repeats itself")
async def _(scene: Scene) -> Reward:
    await scene.say()
    await scene.tell(scene.feedback.complete_rollout)
    await scene.tell(scene.feedback.complete_rollout)
    await scene.tell(scene.feedback.update_reward, [0.5])
    await scene.tell(scene.feedback.report_complete, 0.5)
    await scene.refused(scene.tell(scene.feedback.update_reward, [0.75]))
    return None


@in_row("asks after its end")
async def _(scene: Scene) -> Reward:
    await scene.say()
    await scene.tell(scene.feedback.complete_rollout)
    await scene.refused(scene.say("one more"))
    await scene.tell(scene.feedback.update_reward, [0.5])
    await scene.refused(scene.say("another one"))
    return None


# ── requests that are refused ─────────────────────────────────────────────────────────────────


@in_row("sends an image")
async def _(scene: Scene) -> Reward:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    question = {"type": "text", "text": "What is this?"}
    await scene.refused(scene.say([question, picture]))
    await scene.say()
    return 0.5


@in_row("asks another model")
async def _(scene: Scene) -> Reward:
    await scene.refused(scene.say(model="gpt-4o"))
    await scene.say()
    return 0.5


@in_row("says too much")
async def _(scene: Scene) -> Reward:
    await scene.refused(scene.say("x" * 10_000))
    await scene.say()
    return 0.5


@in_row("asks for two")
async def _(scene: Scene) -> Reward:
    await scene.refused(scene.say(n=2))
    await scene.say()
    return 0.5


# ── callers without the right ─────────────────────────────────────────────────────────────────


@in_row("uses a sibling's secret")
async def _(scene: Scene) -> Reward:
    while len(scene.siblings) < GROUP:
        await asyncio.sleep(0.01)
    other, server = scene.siblings[1], scene.server
    swapped = f"{server}/r/{other['rollout_id']}.{scene.secret}"
    headed = scene.model.with_options(
        base_url=f"{server}/v1",
        api_key=scene.secret,
        default_headers=make_inference_headers(other),
    )
    feedback = RolloutFeedbackClient({**other, "endpoint": scene.metadata["endpoint"]})
    await scene.refused(say(scene.model.with_options(base_url=f"{swapped}/v1"), "hi"))
    await scene.refused(say(headed, "hi"))
    await scene.refused(scene.tell(feedback.report_complete, 1e6))
    await scene.say()
    return 0.5


@in_row("has no key")
async def _(scene: Scene) -> Reward:
    async def strip(request: httpx.Request) -> None:
        del request.headers["Authorization"]

    feedback = RolloutFeedbackClient({**scene.metadata, "endpoint": scene.server})
    async with httpx.AsyncClient(event_hooks={"request": [strip]}) as http:
        keyless = scene.model.with_options(
            base_url=f"{scene.server}/v1",
            default_headers=make_inference_headers(scene.metadata),
            http_client=http,
        )
        await scene.refused(say(keyless, "hi"))
    await scene.refused(scene.tell(feedback.complete_rollout))
    await scene.say()
    return 0.5


# ── a client that asks again by itself ────────────────────────────────────────────────────────


@in_row("loses replies")
async def _(scene: Scene) -> Reward:
    transport = LosesReplies(2)
    async with httpx.AsyncClient(transport=transport) as http:
        await say(scene.model.with_options(http_client=http), "hi")
    scene.refusals += transport.retries
    return 0.5


class LosesReplies(httpx.AsyncHTTPTransport):
    """Closes the connection while the server works on the reply, the first few times."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = count
        self.retries: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.retries.append(request.headers["x-stainless-retry-count"])
        if not self._left:
            return await super().handle_async_request(request)
        self._left -= 1
        try:
            async with asyncio.timeout(0.01):
                response = await super().handle_async_request(request)
            await response.aclose()
        except TimeoutError:
            pass  # which has closed the connection
        raise httpx.ReadError("connection reset")


# ── the server and its jobs ───────────────────────────────────────────────────────────────────


class Disk:
    """The folder of blobs on a disk of its own, which can be filled.

    Where none can be mounted, the learners' processes get a limit on file sizes instead.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True)
        self._folder = folder
        self._limited: list[int] = []
        options = ["-t", "tmpfs", "-o", "size=32m,mode=700", "tmpfs", str(folder)]
        self._is_mounted = sys.platform == "linux" and not _fails("mount", *options)

    def fill(self, server: Server) -> None:
        if not self._is_mounted:
            self._limited = server.children("learner")
            self._limit(1)
            return
        disk = os.statvfs(self._folder)
        with (self._folder / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, disk.f_bavail * disk.f_bsize)

    def make_room(self) -> None:
        self._limit(resource.RLIM_INFINITY)
        (self._folder / "filler").unlink(missing_ok=True)

    def unmount(self) -> None:
        if self._is_mounted:
            subprocess.run(["umount", str(self._folder)], check=True)

    def _limit(self, size: int) -> None:
        for pid in self._limited:
            if Path(f"/proc/{pid}").exists():
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _fails(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode != 0
    except FileNotFoundError:
        return True


class World:
    """The server, the agent and a client."""

    def __init__(self, folder: Path, server: Server, client: Client, url: str) -> None:
        self.folder = folder
        self.server = server
        self.client = client
        self.url = url

    def job_file(self, name: str, *prompts: str, **changes: Any) -> Json:
        """A job of two steps over these prompts."""
        rows = self.folder / f"{name}.jsonl"
        rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        return {
            "name": name,
            "model": str(self.folder / "model"),
            "dataset": str(rows),
            "agent": {"url": self.url},
            "batch": {"global_batch_size": 1, "group_size": 2},
            "schedule": {"max_steps": 2, "max_epochs": 9, "val_every": 0},
            "sampling_params": {"max_tokens": 8},
            "lora": {"rank": 4, "alpha": 8},
            "rollout": {"rollout_max_retries": 0},
            "async_config": {"max_steps_off_policy": 0},
        } | changes

    def finished(self, name: str) -> tuple[str, str]:
        """How a job ended."""
        job = self.client.wait(name, poll_s=0.1)
        return job["status"], job["message"]

    def rollouts(self, name: str) -> list[Json]:
        return self.client.rollouts(name, limit=1000)["rollouts"]

    def bins(self, name: str) -> Counter[str]:
        """Where a job's sampled tokens ended, over all steps."""
        return sum((Counter(step["bins"]) for step in self.client.ledger(name)), Counter())

    def wait_for_step(self, name: str, step: int) -> None:
        deadline = time.monotonic() + 60
        while (job := self.client.job(name))["step"] < step:
            assert job["status"] in ("PENDING", "RUNNING"), job["message"]
            assert time.monotonic() < deadline, job
            time.sleep(0.02)


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    return Crowd()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_chat_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def disk(folder: Path) -> Iterator[Disk]:
    disk = Disk(folder / "data" / "blobs")
    yield disk
    disk.unmount()


@pytest.fixture(scope="module")
def world(crowd: Crowd, disk: Disk, folder: Path) -> Iterator[World]:
    with (
        agent(crowd) as url,
        serving(folder / "data", TURNWISE_ENGINE_MAX_LENGTH=str(CONTEXT)) as server,
        server.client() as client,
    ):
        world = World(folder, server, client, url)
        client.create_job(world.job_file("healthy", "healthy"))
        yield world
        for door in crowd.doors.values():
            door.set()


@pytest.fixture(scope="module")
def mixed(world: World) -> dict[str, list[Json]]:
    """The rollouts of the mixed job by row, the misbehaving one first."""
    world.client.create_job(
        world.job_file(
            "mixed",
            *MISBEHAVIOURS,
            batch={"global_batch_size": len(MISBEHAVIOURS), "group_size": GROUP},
            schedule={"max_steps": 1, "val_every": 0},
            rollout={"rollout_max_retries": 0, "rollout_timeout": ROLLOUT_S},
        )
    )
    assert world.finished("mixed") == ("COMPLETED", "")
    rows = list(MISBEHAVIOURS)
    found = defaultdict(list)
    for rollout in world.rollouts("mixed"):
        found[rows[rollout["row_index"]]].append(rollout)
    # The siblings got 0 and 1.
    return {row: sorted(found[row], key=lambda r: r["reward"] in (0.0, 1.0)) for row in rows}


# ── what the owner of the job sees ────────────────────────────────────────────────────────────


def test_job_files_and_datasets_that_cannot_be_used_start_nothing(world):
    def refuses(**changes: Any) -> str:
        with pytest.raises(errors.InvalidInput) as refusal:
            world.client.create_job(world.job_file("never", "a prompt") | changes)
        return str(refusal.value)

    broken, other = world.folder / "broken.jsonl", world.folder / "other.jsonl"
    broken.write_text('{"prompt": "fine"}\n\n{"prompt": "half a li\n')
    other.write_text('{"prompt": "fine"}\n{"question": "why?"}\n')
    missing = str(world.folder / "missing.csv")
    assert {
        "a malformed row": refuses(dataset=str(broken)),
        "a row without the prompt column": refuses(dataset=str(other)),
        "no row with the prompt column": refuses(prompt_column="task"),
        "validation rows": refuses(validation_dataset=str(broken)),
        "no such file": refuses(dataset=missing),
        "no model": refuses(model=str(world.folder)),
        "an unknown key": refuses(batch={"group_sizes": 4}),
        "a bad value": refuses(batch={"group_size": 0}),
    } == {
        "a malformed row": 'dataset line 3: \'{"prompt": "half a li\' is not JSON '
        "(Unterminated string starting at, column 12)",
        "a row without the prompt column": "dataset line 2: ['question'] has no 'prompt' column, "
        "or it is empty; set prompt_column in the job file to one of the columns",
        "no row with the prompt column": "dataset line 1: ['prompt'] has no 'task' column, "
        "or it is empty; set prompt_column in the job file to one of the columns",
        "validation rows": 'validation_dataset line 3: \'{"prompt": "half a li\' is not JSON '
        "(Unterminated string starting at, column 12)",
        "no such file": f"dataset: {missing!r} cannot be read: No such file or directory; "
        "check the path",
        "no model": f"model: {str(world.folder)!r} is not a model folder; "
        "give a Hugging Face folder with config.json and a tokenizer",
        "an unknown key": "batch.group_sizes: 4 is set, but there is no such setting; "
        "did you mean batch.group_size?",
        "a bad value": "batch.group_size: 0 is out of range; must be at least 1",
    }
    with pytest.raises(errors.NotFound):
        world.client.job("never")


def test_a_job_whose_agent_is_down_fails_before_it_takes_any_row(world):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    world.client.create_job(world.job_file("down", "a prompt", agent={"url": url}))
    status, message = world.finished("down")
    assert status == "FAILED"
    assert message.startswith(f"the agent cannot be reached: GET {url}/health: Cannot connect to")
    assert message.endswith("; start it, or correct agent.url")
    assert world.rollouts("down") == []


def test_a_job_whose_agent_is_not_healthy_fails_before_it_takes_any_row(world):
    with agent(Crowd(), health=503) as url:
        world.client.create_job(world.job_file("ill", "a prompt", agent={"url": url}))
        assert world.finished("ill") == (
            "FAILED",
            f"the agent is not healthy: GET {url}/health answered 503; it must answer 200",
        )
    assert world.rollouts("ill") == []


def test_a_rollout_that_fails_says_why_and_harms_only_its_own_slot(world, mixed):
    faults = {
        row: (first["fault"]["blame"], first["fault"]["code"], first["fault"]["message"])
        for row, (first, *_) in mixed.items()
        if first["fault"]
    }
    said = f'POST {world.url}/rollout answered 500: {{"detail":"the simulator broke"}}'
    no_reward = "The rollout completed but no reward was received in time"
    no_turns = "No sampling requests were received for this rollout"
    assert faults == {
        "answers 500": ("agent", "http_error", said),
        "hangs": ("agent", "no_turns", no_turns),
        "raises": ("agent", "agent_failed", "The agent signaled that the trajectory failed"),
        "never completes": ("agent", "deadline", "not completed within 8 s"),
        "never reports a reward": ("reward", "no_reward", no_reward),
    }
    for row, (first, *siblings) in mixed.items():
        assert first["status"] == ("FAILED" if row in faults else "REWARD_RECEIVED"), row
        assert [s["status"] for s in siblings] == ["REWARD_RECEIVED"] * (GROUP - 1), row


def test_everything_but_the_failed_rollouts_is_trained_and_all_tokens_are_accounted_for(
    world, mixed
):
    rollouts = [rollout for group in mixed.values() for rollout in group]
    trained = sum(r["tokens"] for r in rollouts if r["status"] == "REWARD_RECEIVED")
    late = sum(
        mixed[row][0]["tokens"] for row in ("hangs", "never completes", "never reports a reward")
    )
    failed = sum(r["tokens"] for r in rollouts if r["status"] == "FAILED")
    assert late
    assert world.bins("mixed") == {
        "trained": trained,
        "dropped_deadline": late,
        "dropped_failed": failed - late,
    }
    usage = world.client.usage("mixed")
    assert (usage["train_tokens"], usage["sample_tokens"]) == (trained, trained + failed)
    assert 0 < usage["cached_prefill_tokens"] < usage["prefill_tokens"]


# ── what the agent sees ───────────────────────────────────────────────────────────────────────


def test_rewards_that_cannot_be_are_refused_and_right_ones_still_taken(crowd, mixed):
    rewards_early = mixed["rewards early"][0]["rollout_id"]
    repeats = mixed["repeats itself"][0]["rollout_id"]
    expected = {
        "rewards NaN": [(400, "Rewards: nan must be a finite number")],
        "rewards too many": [
            (
                400,
                "Rewards: [1.0, 0.0, 1.0] has 3 values, but the rollout has 1 delivered turns; "
                "send one value for the rollout or one per turn",
            )
        ],
        "measures NaN": [(400, "Metrics.hops: nan must be a finite number")],
        "rewards early": [
            (
                400,
                f"Trajectory {rewards_early} is not in valid status (PENDING): "
                "it has not been completed",
            )
        ],
        "repeats itself": [(409, f"trajectory {repeats} already has the rewards [0.5]")],
    }
    assert {row: crowd.refusals[row] for row in expected} == expected
    assert {mixed[row][0]["reward"] for row in expected} == {0.5}


def test_a_finished_rollout_takes_no_model_calls(crowd, mixed):
    rollout = mixed["asks after its end"][0]
    text = "Trajectory {} is not in valid status ({}): it is closed to model calls"
    assert crowd.refusals["asks after its end"] == [
        (
            *("BadRequestError", 400, "trajectory_not_in_valid_status", None),
            text.format(rollout["rollout_id"], status),
        )
        for status in ("READY", "REWARD_RECEIVED")
    ]
    assert (rollout["turns"], rollout["reward"]) == (1, 0.5)


def test_requests_that_no_model_here_can_answer_are_refused_by_name(crowd, mixed):
    image = "messages[0].content[1].type"
    assert crowd.refusals["sends an image"] == [
        (
            *("BadRequestError", 400, "invalid_value", image),
            f"{image}: 'image_url' is not content that this model can read; send text",
        )
    ]
    assert crowd.refusals["asks another model"] == [
        (
            *("NotFoundError", 404, "model_not_found", None),
            "model 'gpt-4o' does not exist; known models: default, mixed, model",
        )
    ]
    assert crowd.refusals["asks for two"] == [
        (
            *("BadRequestError", 400, "invalid_value", "n"),
            "n: 2 is not supported here; leave it out or send 1",
        )
    ]
    ((*kind, message),) = crowd.refusals["says too much"]
    assert kind == ["BadRequestError", 400, "context_length_exceeded", "messages"]
    assert re.fullmatch(
        r"messages: \d{4,5} tokens do not fit this model's context of 256 tokens; "
        "shorten the conversation",
        message,
    )
    for row in ("sends an image", "asks another model", "asks for two", "says too much"):
        assert (mixed[row][0]["turns"], mixed[row][0]["reward"]) == (1, 0.5)


def test_a_rollouts_secret_opens_no_other_rollout_and_no_key_opens_none(crowd, mixed):
    by_url, by_header, report = crowd.refusals["uses a sibling's secret"]
    assert by_url == (
        *("AuthenticationError", 401, "invalid_api_key", None),
        "the secret in the path is not this rollout's",
    )
    assert by_header[:3] == ("AuthenticationError", 401, "invalid_api_key")
    assert by_header[-1].startswith("this key does not exist or has been revoked; send a valid")
    assert report[0] == 403
    assert [s["reward"] for s in mixed["uses a sibling's secret"][1:]] in ([0.0, 1.0], [1.0, 0.0])
    needed = "no key: send 'Authorization: Bearer <key>' with an access key or the rollout's secret"
    assert crowd.refusals["has no key"] == [
        ("AuthenticationError", 401, "invalid_api_key", None, needed),
        (403, needed),
    ]


def test_a_client_that_lost_the_connection_and_asks_again_gets_one_turn(world, crowd, mixed):
    assert crowd.refusals["loses replies"] == ["0", "1", "2"]  # attempts
    rollout = world.client.rollout(mixed["loses replies"][0]["rollout_id"])
    assert [turn["delivery"] for turn in rollout["turns"]] == ["delivered"]
    assert len(rollout["nodes"]) == 2


# ── what the operator sees ────────────────────────────────────────────────────────────────────


def test_nobody_without_a_key_gets_in_and_nothing_listens_beyond_this_machine(world):
    reply = httpx.get(f"{world.server.url}/api/v1/jobs")
    message = "no key was sent; send 'Authorization: Bearer <key>'"
    assert reply.status_code == 401
    assert reply.json() == {"error": {"type": "Unauthenticated", "message": message}}
    pids = [world.server.process.pid, *world.server.children()]
    assert set().union(*map(listening_addresses, pids)) == {"0100007F"}  # 127.0.0.1


def test_a_second_server_on_the_data_folder_leaves_with_one_line(world):
    command = [sys.executable, "-m", "turnwise.cli", "--data-dir", str(world.server.data_dir)]
    second = subprocess.run([*command, "serve", "--port", "0"], capture_output=True, text=True)
    assert (second.returncode, second.stdout) == (1, "")
    server = f"the server with process id {world.server.process.pid}"
    assert second.stderr == (
        f"error: the data folder {world.server.data_dir} is in use by {server}; "
        "stop that server, or start this one with another data folder\n"
    )
    with world.server.client() as client:  # which reads the address and the key in the folder
        assert client.job("healthy")["status"] == "RUNNING"


def test_a_full_disk_fails_the_job_with_its_last_checkpoint_intact_and_it_can_be_resumed(
    world, crowd, disk
):
    client = world.client
    client.create_job(world.job_file("disk", "disk"))
    for job in ("disk", "healthy"):
        world.wait_for_step(job, 1)
    disk.fill(world.server)
    crowd.doors["disk"].set()
    status, message = world.finished("disk")
    folder = world.server.data_dir / "blobs" / "jobs" / client.job("disk")["job_id"] / "checkpoints"
    assert status == "FAILED"
    assert re.fullmatch(
        f"no room for checkpoint {folder}/step-00001.1 "
        r"\((No space left on device|File too large)\); free space and resume the job",
        message,
    )
    (kept,) = client.events("disk", kinds=("checkpoint",))
    assert kept["body"]["path"] == str(folder / "step-00000.1")
    assert kept["body"]["sha256"] == folder_sha256(folder / "step-00000.1")
    assert {path.name for path in folder.iterdir()} == {"initial.1", "step-00000.1"}

    disk.make_room()
    client.resume("disk")
    assert world.finished("disk") == ("COMPLETED", "")
    assert (client.job("disk")["step"], client.job("disk")["incarnation"]) == (2, 2)
    sampled = sum(rollout["tokens"] for rollout in world.rollouts("disk"))
    assert sum(world.bins("disk").values()) == sampled > 0


def test_the_job_beside_all_of_this_is_unharmed(world, crowd):
    world.wait_for_step("healthy", 1)
    crowd.doors["healthy"].set()
    assert world.finished("healthy") == ("COMPLETED", "")
    rollouts = world.rollouts("healthy")
    assert [(r["status"], r["turns"]) for r in rollouts] == [("REWARD_RECEIVED", 2)] * 4
    assert world.bins("healthy") == {"trained": sum(r["tokens"] for r in rollouts)}
