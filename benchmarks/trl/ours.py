"""Our side: server, engine and learner as processes; the agent over HTTP or as a callable."""

from __future__ import annotations

import contextlib
import sys
import time
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The end of one batch: seconds since training began, and CPU seconds used by then."""

    seconds: float
    cpu_s: Counter[str]


@dataclass(slots=True, kw_only=True)
class Trained:
    """One training run: its batches, and the adapter after each."""

    batches: list[Batch] = field(default_factory=list)
    adapters: list[Path] = field(default_factory=list)


def train(folder: Path, made: Path, *, seed: int, batches: int, agent: str, k: int = 0) -> Trained:
    """Train the demo's job for some batches. `made` holds data/ and base/; `agent` is its kind."""
    env = {"AIRCRAFT_DATA": str(made / "data")}
    with contextlib.ExitStack() as opened:
        server = opened.enter_context(serving(folder, env=env))
        agent_pid = 0
        spec: dict[str, Any] = {"kind": "python", "target": CALLABLE}
        if agent == "http":
            agent_pid, url = opened.enter_context(_agent(folder, made / "data"))
            spec = {"kind": "http", "url": url}
        client = opened.enter_context(server.client())
        client.create_job(_job(made, spec, seed=seed, k=k))
        return _follow(client, server, agent_pid, batches)


@contextlib.contextmanager
def _agent(folder: Path, data: Path) -> Iterator[tuple[int, str]]:
    command = ["examples.aircraft_inspection.agent", "--data", str(data), "--port", "0"]
    with process(command, folder / "agent.log", {}) as (pid, line):
        yield pid, line.split()[-1]


def _job(made: Path, agent: dict[str, Any], *, seed: int, k: int) -> dict[str, Any]:
    """The demo's own job; its held-out success is measured afterwards, off the clock."""
    job: dict[str, Any] = yaml.safe_load(demo.JOB_FILE.read_text())
    job |= {
        "name": "aircraft",
        "model": str(made / "base"),
        "dataset": str(made / "data" / "train.jsonl"),
        "validation_dataset": "",
        "seed": seed,
        "agent": agent,
        "async_config": {"max_steps_off_policy": k},
    }
    job["schedule"]["val_every"] = 0
    return job


def _follow(client: Client, server: Server, agent_pid: int, batches: int) -> Trained:
    """Watch the job until it has trained so many batches, then stop it."""
    trained, start, after = Trained(), 0.0, 0
    used = Counter[str]()

    def cpu() -> Counter[str]:
        now = server.cpu_s()
        if agent_pid:
            now["agent"] = cpu_s(agent_pid)
        return now

    while len(trained.batches) < batches:
        page = client.events("aircraft", after=after, kinds=("status", "step"), wait_s=20.0)
        for event in page:
            after = event["seq"]
            body = event["body"]
            if body.get("status") in ("FAILED", "STOPPED", "COMPLETED"):
                raise RuntimeError(f"the job ended early: {body}")
            if body.get("secondary") == "Training" and not start:
                start, used = event["at"], cpu()
            if event["kind"] == "step":
                spent = cpu()
                spent.subtract(used)
                trained.batches.append(Batch(seconds=event["at"] - start, cpu_s=spent))
                print(len(trained.batches), trained.batches[-1], flush=True)
    client.stop("aircraft")
    client.wait("aircraft", poll_s=0.05)
    return trained


if __name__ == "__main__":
    _, folder, made, seed, batches, agent, *k = sys.argv
    began = time.monotonic()
    done = train(
        Path(folder),
        Path(made),
        seed=int(seed),
        batches=int(batches),
        agent=agent,
        k=int(k[0]) if k else 0,
    )
    last = Counter[str]()
    for number, batch in enumerate(done.batches):
        step = batch.cpu_s.copy()
        step.subtract(last)
        last = batch.cpu_s
        print(number, f"{batch.seconds:.2f}", {n: round(v, 2) for n, v in step.items()})
    print("whole run", time.monotonic() - began)
