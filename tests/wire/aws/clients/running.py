"""A training job that goes on and on, and lends its open rollouts to tests.

The job's agent is in the test's own process: it accepts each rollout at once and keeps the payload,
until a test takes it and plays the agent with whichever client it is about.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.wire.aws.clients.answering import Json, answering
from tests.wire.aws.clients.service import Server

_ROWS = 512


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

    64 rollouts are open at once, so that no test waits for a training step.
    """

    def __init__(self, server: Server, folder: Path, model: Path) -> None:
        self.server = server
        self.name = "lending"
        self._payloads: queue.Queue[Json] = queue.Queue()
        self._ending = ExitStack()
        url = self._ending.enter_context(answering(self._keep))
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps({"prompt": f"row {n}"}) + "\n" for n in range(_ROWS)))
        self.model = model
        self.job = server.call(
            "POST",
            "/jobs",
            {
                "name": self.name,
                "model": str(self.model),
                "dataset": str(rows),
                "agent": {"url": url},
                "batch": {"global_batch_size": 8, "group_size": 8},
                "schedule": {"max_epochs": 1000, "max_steps": 10_000, "val_every": 0},
                "sampling_params": {"max_tokens": 8},
                "lora": {"rank": 4, "alpha": 8},
                "rollout": {"rollout_timeout": 7200.0},
            },
        )

    def lend(self, timeout_s: float = 120.0) -> Lent:
        """An open rollout that nobody else has."""
        try:
            return Lent(self._payloads.get(timeout=timeout_s))
        except queue.Empty:
            raise AssertionError(self.server.call("GET", f"/jobs/{self.name}")) from None

    def rollout(self, lent: Lent) -> dict[str, Any]:
        """What the server has recorded of it: status, rewards, nodes, turns."""
        return self.server.call("GET", f"/rollouts/{quote(lent.trajectory_id)}")

    def close(self) -> None:
        """Stop the job, and the agent."""
        self.server.call("POST", f"/jobs/{self.name}/stop")
        self._ending.close()

    def _keep(self, path: str, payload: Json) -> tuple[int, object]:
        self._payloads.put(payload)
        return 200, {"status": "accepted"}
