"""A real server process for clients that know nothing of our code, and what they need of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[4]
#: The server runs in its own environment.
SERVER_PYTHON = os.environ.get("TURNWISE_PYTHON", str(ROOT / ".venv/bin/python"))
REGION = "us-west-2"

T = TypeVar("T")


def server_env(**more: str) -> dict[str, str]:
    """The environment of the server's side: our code, and nothing of ours that is set outside."""
    users = ("TURNWISE_", "AWS_", "SAGEMAKER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(users)}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def run_python(code: str) -> str:
    """Run code in the server's environment; what it printed."""
    done = subprocess.run(
        [SERVER_PYTHON, "-c", code], env=server_env(), capture_output=True, text=True, check=True
    )
    return done.stdout


def save_model(folder: Path) -> Path:
    """A tiny random Qwen3 model with its tokenizer, made in the server's environment."""
    run_python(
        "from pathlib import Path; from tests.service import save_chat_model; "
        f"save_chat_model(Path({str(folder)!r}))"
    )
    return folder


class Server:
    """`turnwise serve` as a process of its own, on a free port."""

    def __init__(self, data_dir: Path, **env: str) -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_suffix(".log")
        command = [SERVER_PYTHON, "-m", "turnwise.cli", "--data-dir", str(data_dir)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "serve", "--port", "0", "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=server_env(**env),
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError(self.log.read_text())
        self.url: str = json.loads(line)["url"]

    @cached_property
    def key(self) -> str:
        """The operator's key."""
        return (self.data_dir / "admin.key").read_text().strip()

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """A call of the native API, as the operator: `call("GET", "/jobs/walk")`."""
        request = Request(
            f"{self.url}/api/v1{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
            method=method,
        )
        try:
            with urlopen(request, timeout=90) as answer:
                said: dict[str, Any] = json.load(answer)
        except HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        return said

    def ended(self, job: str) -> dict[str, Any]:
        """A job, once it is over."""

        def over() -> dict[str, Any] | None:
            found = self.call("GET", f"/jobs/{job}")
            return found if found["status"] in ("COMPLETED", "FAILED", "STOPPED") else None

        return until(over)

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of our own CLI against this server."""
        command = [SERVER_PYTHON, "-m", "turnwise.cli", "--data-dir", str(self.data_dir)]
        return subprocess.run(
            [*command, *arguments], env=server_env(), capture_output=True, text=True, check=check
        )

    def start_cli(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """A command of our own CLI that goes on; the caller ends it."""
        command = [SERVER_PYTHON, "-m", "turnwise.cli", "--data-dir", str(self.data_dir)]
        return subprocess.Popen(
            [*command, *arguments],
            env=server_env(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def env(self) -> dict[str, str]:
        """What `eval "$(turnwise env)"` sets: all that AWS's clients need to come here."""
        lines = self.cli("env").stdout.splitlines()
        pairs = (line.removeprefix("export ").partition("=") for line in lines if "=" in line)
        return {name: value.strip("'\"") for name, _, value in pairs}

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self._ended(10)

    def stop(self) -> None:
        """End it in an orderly way."""
        if self.process.poll() is None:
            self.process.terminate()
        self._ended(20)

    def _ended(self, timeout_s: float) -> None:
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()


def client(name: str, env: Mapping[str, str], **options: Any) -> Any:
    """A boto3 client of a service, by what `turnwise env` printed."""
    import boto3

    return boto3.client(
        name,
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region_name=env["AWS_DEFAULT_REGION"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        **options,
    )


def aws(env: Mapping[str, str], *arguments: str) -> str:
    """What the aws command prints; it succeeds."""
    command = [sys.executable, "-m", "awscli", *arguments]
    done = subprocess.run(
        command, env=os.environ | dict(env), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(look: Callable[[], T], timeout_s: float = 120.0, *, poll_s: float = 0.2) -> T:
    """The first look that finds something true."""
    end = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < end, f"it did not come to pass; last: {found!r}"
        time.sleep(poll_s)
    return found


def code_of(error: Any) -> str:
    """The code of an AWS error, as caught by boto3 or `pytest.raises`."""
    return str(getattr(error, "value", error).response["Error"]["Code"])
