"""A training job that goes on and on, and lends its open rollouts to tests.

The job's agent is in the test's own process: it accepts each rollout at once and keeps the payload,
until a test takes it and plays the agent with whichever client it is about.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

from tests.wire.aws.clients.service import Server, run_python

_ROWS = 512


def save_model(folder: Path) -> Path:
    """A tiny random Qwen3 model with its tokenizer, made in the server's environment."""
    run_python(
        "from pathlib import Path; from tests.service import save_chat_model; "
        f"save_chat_model(Path({str(folder)!r}))"
    )
    return folder


@dataclass(frozen=True)
class Lent:
    """An open rollout, and the payload that its agent was called with."""

    payload: Mapping[str, Any]

    @property
    def metadata(self) -> dict[str, Any]:
        """What RolloutFeedbackClient is made with."""
        return dict(self.payload["metadata"])

    @property
    def job_arn(self) -> str:
        """Its job's ARN."""
        return str(self.payload["metadata"]["job_arn"])

    @property
    def trajectory_id(self) -> str:
        """Its id."""
        return str(self.payload["metadata"]["trajectory_id"])

    @property
    def headers(self) -> dict[str, str]:
        """The headers that address it."""
        return {
            "X-Amzn-SageMaker-Job-Arn": self.job_arn,
            "X-Amzn-SageMaker-Trajectory-Id": self.trajectory_id,
        }


class RunningJob:
    """A job of the server; `lend()` gives an open rollout of it, each to one test.

    With the defaults, 64 rollouts are open at once, so that no test waits for a training step.
    """

    def __init__(
        self,
        server: Server,
        folder: Path,
        *,
        model: Path | None = None,
        name: str = "lending",
        group_size: int = 8,
        batch: int = 8,
        **changes: Any,
    ) -> None:
        self.server = server
        self.name = name
        self._payloads: queue.Queue[dict[str, Any]] = queue.Queue()
        self._agent = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._agent.serve_forever, daemon=True).start()
        folder.mkdir(parents=True, exist_ok=True)
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps({"prompt": f"row {n}"}) + "\n" for n in range(_ROWS)))
        self.model = model or save_model(folder / "tiny")
        self.job = self.call(
            "POST",
            "/api/v1/jobs",
            {
                "name": name,
                "model": str(self.model),
                "dataset": str(rows),
                "agent": {"url": f"http://127.0.0.1:{self._agent.server_port}"},
                "batch": {"global_batch_size": batch, "group_size": group_size},
                "schedule": {"max_epochs": 1000, "max_steps": 10_000, "val_every": 0},
                "sampling_params": {"max_tokens": 8},
                "lora": {"rank": 4, "alpha": 8},
                "rollout": {"rollout_timeout": 7200.0},
            }
            | changes,
        )

    def lend(self, timeout_s: float = 120.0) -> Lent:
        """An open rollout that nobody else has."""
        try:
            return Lent(self._payloads.get(timeout=timeout_s))
        except queue.Empty:
            raise AssertionError(self.call("GET", f"/api/v1/jobs/{self.name}")) from None

    def rollout(self, lent: Lent) -> dict[str, Any]:
        """What the server has recorded of it: status, rewards, nodes, turns."""
        return self.call("GET", f"/api/v1/rollouts/{quote(lent.trajectory_id)}")

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """A call of the native API, as the operator."""
        request = Request(
            self.server.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
            method=method,
        )
        try:
            with urlopen(request, timeout=60) as answer:
                said: dict[str, Any] = json.load(answer)
        except HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        return said

    def close(self) -> None:
        """Stop the job, and the agent."""
        self.call("POST", f"/api/v1/jobs/{self.name}/stop")
        self._agent.shutdown()
        self._agent.server_close()

    @cached_property
    def _key(self) -> str:
        return (self.server.data_dir / "admin.key").read_text().strip()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        payloads = self._payloads

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({"status": "healthy"})

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                payloads.put(json.loads(self.rfile.read(length)))
                self._answer({"status": "accepted"})

            def _answer(self, body: object) -> None:
                sent = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        return Handler
