"""A real server process, a real agent, and a tiny model, for flow tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from openai import AsyncOpenAI

from tests.families import save_family
from tests.tiny import save_tiny_model
from turnwise.client import Client, connect
from turnwise.rft import RolloutFeedbackClient

Json = dict[str, Any]
#: What an agent does with one rollout: (its model, the payload) -> reward, or None to report none.
Behaviour = Callable[[AsyncOpenAI, Json], Awaitable[float | list[float] | None]]


def save_chat_model(folder: Path, *, seed: int = 0) -> Path:
    """A tiny random Qwen3 model with its tokenizer."""
    save_family(folder, "qwen3")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    size = len(vocabulary["model"]["vocab"]) + len(vocabulary["added_tokens"])
    return save_tiny_model(folder, seed=seed, vocab_size=size)


def save_rows(file: Path, count: int) -> Path:
    """A dataset of short prompts."""
    file.write_text("".join(json.dumps({"prompt": f"row {n}"}) + "\n" for n in range(count)))
    return file


class Server:
    """`turnwise serve` as a process of its own."""

    def __init__(self, data_dir: Path, **env: str) -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_suffix(".log")  # what the server says goes to a file
        command = [sys.executable, "-m", "turnwise.cli", "--data-dir", str(data_dir)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "serve", "--port", "0", "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | env,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError(self.log.read_text())
        self.url: str = json.loads(line)["url"]

    def client(self) -> Client:
        """A client with the admin key."""
        return connect(self.url, data_dir=self.data_dir)

    def children(self, kind: str = "") -> list[int]:
        """Process ids of engines and learners, or of one kind of them."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        found = [(task / "children").read_text().split() for task in tasks.iterdir()]
        pids = [int(pid) for pids in found for pid in pids]
        return [p for p in pids if not kind or kind in arguments(p)]

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self._close_pipe()

    def stop(self) -> None:
        """End it in an orderly way."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        self._close_pipe()

    def _close_pipe(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.close()


def arguments(pid: int) -> list[str]:
    """A process's command line; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except FileNotFoundError:
        return []


def listening_addresses(pid: int) -> set[str]:
    """The IP addresses that a process listens on, as the kernel writes them (hex)."""
    links = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()]
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    sockets = [line.split() for table in tables for line in table.splitlines()[1:]]
    return {
        local.partition(":")[0]
        for _, local, _, state, *rest in sockets
        if state == "0A" and f"socket:[{rest[5]}]" in links
    }


@contextlib.contextmanager
def serving(data_dir: Path, **env: str) -> Iterator[Server]:
    """A server that is ended at the end."""
    server = Server(data_dir, **env)
    try:
        yield server
    finally:
        server.stop()
        print(server.log.read_text())  # pytest shows it beside a failure


@contextlib.contextmanager
def agent(behave: Behaviour, *, health: int = 200) -> Iterator[str]:
    """An agent that answers POST /rollout by `behave`; its URL."""
    app = FastAPI()
    # One client for all rollouts: making one costs more than ten of these rollouts' turns.
    client = AsyncOpenAI(base_url="http://per-rollout", api_key="unused", max_retries=2)

    @app.get("/health")
    async def _health() -> Any:
        return JSONResponse({"status": "healthy"}, health)

    @app.post("/rollout")
    async def _rollout(payload: Json) -> Json:
        metadata = payload["metadata"]
        reward = await behave(client.with_options(base_url=metadata["endpoint"] + "/v1"), payload)
        if reward is not None:
            await asyncio.to_thread(RolloutFeedbackClient(metadata).report_complete, reward)
        return {"metrics": {"completion": 1.0}}

    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, log_level="critical", lifespan="off", loop="asyncio")
        server = uvicorn.Server(config)

        async def serve() -> None:
            async with client:  # its connections end with the loop that they were made in
                await server.serve(sockets=[listening])

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            server.force_exit = True
            thread.join(10)


async def chatty(model: AsyncOpenAI, payload: Json) -> float:
    """Two turns; the reward is the share of the replies' characters that are lower-case."""
    messages: list[Any] = [{"role": "user", "content": payload["prompt"]}]
    said = ""
    for _ in range(2):
        reply = await model.chat.completions.create(model="default", messages=messages)
        text = reply.choices[0].message.content or ""
        said += text
        messages += [reply.choices[0].message, {"role": "user", "content": "more"}]
    return sum(c.islower() for c in said) / max(1, len(said))
