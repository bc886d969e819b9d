"""Our side: server, engine and learner as processes; the agent over HTTP or as a callable."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.processes import Server, cpu_s, process, serving
from examples.aircraft_inspection import demo
from turnwise.client import Client

CALLABLE = "examples.aircraft_inspection.callable:rollout"
#: Synchronous, as TRL is. With 1 the learner trains while the next batch is sampled, but it is a
#: fifth of the work, and 80 % takes a third more batches (measured: 8 instead of 6).
MAX_STEPS_OFF_POLICY = 0
HELD_OUT = 256

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The end of one batch: seconds since training began, and CPU seconds used by then."""

    seconds: float
    cpu_s: Counter[str]


@dataclass(slots=True, kw_only=True)
class Trained:
    """One training run: its batches, and the adapter after each."""

    batches: list[Batch] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A server with the demo's agent beside it and inside it. `made` holds data/ and base/."""

    made: Path
    server: Server
    client: Client
    agent_pid: int
    agent_url: str

    def train(self, *, seed: int, batches: int, agent: str) -> Trained:
        """Train the demo's job for so many batches; `agent` is "http" or "python"."""
        job = self._job("aircraft", "train", agent)
        job |= {"seed": seed, "async_config": {"max_steps_off_policy": MAX_STEPS_OFF_POLICY}}
        job["schedule"]["val_every"] = 0
        self.client.create_job(job)
        trained = self._follow(batches)
        self.client.stop("aircraft")
        self.client.wait("aircraft", poll_s=0.05)
        trained.adapters = [model["path"] for model in self.client.models(group="aircraft")]
        return trained

    def judge(self, name: str, adapter: str) -> float:
        """The share of held-out tasks that an adapter gets exactly right at temperature 1."""
        job = self._job(name, "test", "python")
        evaluation = {"models": [adapter or "base"], "max_rows": HELD_OUT}
        job |= {"kind": "evaluation", "evaluation": evaluation}
        job["eval_sampling_params"] = job["sampling_params"]
        self.client.create_job(job)
        ended = self.client.wait(name, poll_s=0.1)
        if ended["status"] != "COMPLETED":
            raise RuntimeError(f"{name} ended {ended['status']}: {ended['message']}")
        rollouts = self.client.rollouts(name, limit=1000)["rollouts"]
        # A retry replaces its forerunner; one that failed for good has no match.
        newest = {(r["row_index"], r["slot"]): r for r in rollouts}
        exact = [r["metrics"].get("exact_match", 0.0) for r in newest.values()]
        return float(sum(exact)) / HELD_OUT

    def _job(self, name: str, split: str, agent: str) -> Json:
        """The demo's own job, on this base and data."""
        job: Json = yaml.safe_load(demo.JOB_FILE.read_text())
        agents = {
            "http": {"kind": "http", "url": self.agent_url},
            "python": {"kind": "python", "target": CALLABLE},
        }
        return job | {
            "name": name,
            "model": str(self.made / "base"),
            "dataset": str(self.made / "data" / f"{split}.jsonl"),
            "validation_dataset": "",
            "agent": agents[agent],
        }

    def _follow(self, batches: int) -> Trained:
        """Watch the job until it has trained so many batches."""
        trained, began, after = Trained(), 0.0, 0
        used = Counter[str]()
        while len(trained.batches) < batches:
            page = self.client.events(
                "aircraft", after=after, kinds=("status", "step"), wait_s=20.0
            )
            for event in page:
                after, at, body = event["seq"], event["at"], event["body"]
                if body.get("status") in ("FAILED", "STOPPED", "COMPLETED"):
                    raise RuntimeError(f"the job ended early: {body}")
                if body.get("secondary") == "Training" and not began:
                    began, used = at, self._cpu_s()
                if event["kind"] == "step":
                    spent = self._cpu_s()
                    spent.subtract(used)
                    trained.batches.append(Batch(seconds=at - began, cpu_s=spent))
        return trained

    def _cpu_s(self) -> Counter[str]:
        return self.server.cpu_s() + Counter({"agent": cpu_s(self.agent_pid)})


@contextlib.contextmanager
def service(folder: Path, made: Path) -> Iterator[Service]:
    """Server and agent, ended at the end."""
    data = made / "data"
    with contextlib.ExitStack() as opened:
        server = opened.enter_context(serving(folder, env={"AIRCRAFT_DATA": str(data)}))
        command = ["examples.aircraft_inspection.agent", "--data", str(data), "--port", "0"]
        agent_pid, line = opened.enter_context(process(command, folder / "agent.log", {}))
        client = opened.enter_context(server.client())
        yield Service(
            made=made,
            server=server,
            client=client,
            agent_pid=agent_pid,
            agent_url=line.split()[-1],
        )
