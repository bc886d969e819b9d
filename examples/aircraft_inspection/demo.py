"""`make demo`: from nothing to a measurably better model, on this machine.

Makes the task's tables, builds the base model, starts the real server (which starts the engine
and the learner) and the agent, each as a process of its own, evaluates the base, trains, and
evaluates what came out on tasks that no training saw. Everything is left in `demo/`.

    python -m examples.aircraft_inspection.demo [--seed 7] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from examples.aircraft_inspection import data, task
from examples.aircraft_inspection.progress import Progress
from examples.aircraft_inspection.report import Measured, results_table, seconds_table
from turnwise.client import Client, connect

OUT = Path("demo")
JOB_FILE = Path(__file__).with_name("job.yaml")
#: Held-out tasks of the generated data; a real folder is only tried, on fewer.
HELD_OUT, HELD_OUT_REAL = 256, 16
#: Training on a real folder shows that the pipeline holds; a tiny model learns nothing there.
STEPS_REAL = 2
MAX_LENGTH = 16384

Json = dict[str, Any]


@dataclasses.dataclass
class Demo:
    """One run: its folder, its seed, and how long each phase took."""

    seed: int
    source: Path | None
    progress: Progress
    out: Path = OUT
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase, and show that it runs."""
        self.progress.phase(name)
        start = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    @property
    def rows(self) -> int:
        """How many held-out tasks are evaluated."""
        return HELD_OUT_REAL if self.source else HELD_OUT

    def make_data(self) -> data.Task:
        """The tables and datasets in demo/data."""
        source = ["--data", str(self.source)] if self.source else []
        args = ["--seed", str(self.seed), "--out", str(self.out / "data"), *source]
        self._run("data", args)
        return data.load(self.out / "data")

    def build_base(self) -> None:
        """The base model in demo/base."""
        folders = ["--data", str(self.out / "data"), "--out", str(self.out / "base")]
        # Nothing else runs yet, so both cores are the base's; 1 to 2 threads gains a quarter here.
        threads = str(min(2, os.cpu_count() or 1))
        self._run("base", [*folders, "--seed", str(self.seed), "--threads", threads])

    def _run(self, module: str, args: list[str]) -> None:
        command = [sys.executable, "-m", f"examples.aircraft_inspection.{module}", *args]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Spinning OpenMP threads collapse when something else wants a core.
            env=os.environ | {"OMP_WAIT_POLICY": "passive"},
        )
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            self.progress.note(line.rstrip())
        if process.wait():
            raise SystemExit(f"{module} failed:\n" + "".join(said[-20:]))

    @contextlib.contextmanager
    def process(self, name: str, command: list[str], env: Mapping[str, str]) -> Iterator[str]:
        """A process of the demo; yields the line that it prints when it is ready."""
        log = (self.out / f"{name}.log").open("w")
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | env
        )
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            if not line:
                raise SystemExit(f"the {name} did not start; see {log.name}")
            yield line
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
            log.close()

    def job_file(self, name: str, agent_url: str, **changes: Any) -> Json:
        """The job of job.yaml, on this run's model, data, agent and seed."""
        job: Json = yaml.safe_load(JOB_FILE.read_text())
        folder = self.out.resolve()
        job |= {
            "name": name,
            "model": str(folder / "base"),
            "dataset": str(folder / "data" / "train.jsonl"),
            "validation_dataset": str(folder / "data" / "validation.jsonl"),
            "seed": self.seed,
        }
        job["agent"]["url"] = agent_url
        if self.source:
            job["batch"] |= {"global_batch_size": 2, "group_size": 4}
            job["schedule"] |= {"max_steps": STEPS_REAL, "val_every": 0}
        return job | changes

    def train(self, client: Client, agent_url: str) -> str:
        """Train; the name of the adapter that came out."""
        job = client.create_job(self.job_file("aircraft", agent_url))
        self._save(job["spec"])
        self._follow(client, job)
        return str(client.model(job["name"])["name"])

    def _save(self, job_file: Json) -> None:
        (self.out / "job.yaml").write_text(yaml.safe_dump(job_file, sort_keys=False))

    def evaluate(self, client: Client, agent_url: str, model: str, name: str) -> Measured:
        """A model on the held-out tasks: sampled and greedy, as two jobs at once."""
        jobs = [
            client.create_job(self._evaluation(f"{name}-{way}", agent_url, model, temperature))
            for way, temperature in (("sampled", 1.0), ("greedy", 0.0))
        ]
        for job in jobs:
            self._follow(client, job)
        sampled, greedy = (self._judge(client, job["name"]) for job in jobs)
        return Measured.of(
            [exact for exact, _ in sampled],
            [exact for exact, _ in greedy],
            [reward for _, reward in sampled],
        )

    def _evaluation(self, name: str, agent_url: str, model: str, temperature: float) -> Json:
        job = self.job_file(name, agent_url, kind="evaluation", input_adapter=model)
        job["dataset"] = str((self.out / "data" / "test.jsonl").resolve())
        job["validation_dataset"] = ""
        job["evaluation"] = {"max_rows": self.rows}
        job["eval_sampling_params"] = job["sampling_params"] | {"temperature": temperature}
        return job

    def _follow(self, client: Client, job: Json) -> None:
        self.progress.job(job)
        for event in client.follow(job["name"]):
            self.progress.event(event)
        ended = client.job(job["name"])
        if ended["status"] != "COMPLETED":
            raise SystemExit(f"job {job['name']} ended {ended['status']}: {ended['message']}")

    def _judge(self, client: Client, job: str) -> list[tuple[bool, float]]:
        """(exact match, reward) per task, read from the service's record by the strict parser.

        A rollout that failed has no answer and no reward: a miss.
        """
        loaded = data.load(self.out / "data")
        rows = loaded.splits["test"]
        wanted = task.AnswerFormat.of(loaded)
        page = client.rollouts(job, limit=1000)["rollouts"]
        newest = {(r["row_index"], r["slot"]): r for r in page}  # a retry replaces its forerunner

        def judge(rollout: Json) -> tuple[bool, float]:
            said = last_words(client.rollout(rollout["rollout_id"]))
            expected = task.expected_outputs(loaded, rows[rollout["row_index"]])
            return task.is_exact_match(said, expected, wanted), rollout["reward"] or 0.0

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(judge, newest.values()))


def last_words(rollout: Json) -> str:
    """The text of a rollout's last assistant message; empty if there is none."""
    said = [
        message.get("content") or ""
        for node in rollout["nodes"]
        for message in node["messages"]
        if message["role"] == "assistant"
    ]
    return said[-1] if said else ""


def run(demo: Demo) -> Json:
    """The whole demo; its summary."""
    shutil.rmtree(demo.out, ignore_errors=True)
    demo.out.mkdir()
    with demo.phase("data"):
        loaded = demo.make_data()
    with demo.phase("base model"):
        demo.build_base()
    server = [sys.executable, "-m", "turnwise.cli", "--data-dir", str(demo.out / "server")]
    agent = [sys.executable, "-m", "examples.aircraft_inspection.agent"]
    with contextlib.ExitStack() as stack:
        with demo.phase("start"):
            env = {"TURNWISE_ENGINE_MAX_LENGTH": str(MAX_LENGTH)} if demo.source else {}
            command = [*server, "serve", "--port", "0", "--json"]
            server_url = json.loads(stack.enter_context(demo.process("server", command, env)))[
                "url"
            ]
            command = [*agent, "--data", str(demo.out / "data"), "--port", "0"]
            agent_url = stack.enter_context(demo.process("agent", command, {})).split()[-1]
            client = stack.enter_context(connect(server_url, data_dir=demo.out / "server"))
        with demo.phase("evaluate base"):
            base = demo.evaluate(client, agent_url, "", "base")
        with demo.phase("train"):
            adapter = demo.train(client, agent_url)
        with demo.phase("evaluate tuned"):
            tuned = demo.evaluate(client, agent_url, adapter, "tuned")
        path = client.model(adapter)["path"]
    return _summary(demo, loaded, base, tuned, path)


def _summary(demo: Demo, loaded: data.Task, base: Measured, tuned: Measured, adapter: str) -> Json:
    summary = {
        "task": loaded.name,
        "seed": demo.seed,
        "base": base.as_json(),
        "tuned": tuned.as_json(),
        "seconds": demo.seconds,
        "adapter": adapter,
    }
    (demo.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    console = Console()
    console.print(results_table(base, tuned), seconds_table(demo.seconds))
    if demo.source:
        console.print(
            "A model this tiny cannot do these tasks: about 0 is what it should score. The run "
            "shows that the folder goes through the whole pipeline."
        )
    console.print(f"adapter: {adapter}", soft_wrap=True)
    console.print(
        f"look at the job: start `{_turnwise(demo)} serve` and open the pages that it names; or "
        f"`{_turnwise(demo)} jobs logs aircraft`, `... jobs metrics aircraft`, `... rollouts list "
        f"aircraft`",
        soft_wrap=True,
    )
    return summary


def _turnwise(demo: Demo) -> str:
    return f".venv/bin/turnwise --data-dir {demo.out / 'server'}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.aircraft_inspection.demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="a SOP-Bench folder instead of generated tasks")
    args = parser.parse_args()
    with Progress() as progress:
        demo = Demo(seed=args.seed, source=args.data, progress=progress)
        run(demo)


if __name__ == "__main__":
    main()
