"""Wall time of the demo's task to 80 % held-out success, and seconds per batch: TRL beside us.

For each seed: ours with the agent over HTTP, ours with the agent as a Python callable, then TRL,
which is stopped at goal x our time. All train with one compute thread per process. The clock runs
from the first batch's beginning; start-up, and judging what came out, are off it. Adapters of
both sides are judged alike, after every third batch, by our own evaluation job: 256 tasks that no
training saw, at temperature 1, exact match. Time to a level is interpolated between those.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import ONE_THREAD
from benchmarks.trl import ours, task
from examples.aircraft_inspection.data import user_prompt
from examples.aircraft_inspection.task import opening_messages
from turnwise.domain.job import History
from turnwise.rendering.family import load_renderer

GOALS = {"http": 2.0, "python": 4.0}
SEEDS = (0, 1, 2)
LEVEL = 0.8
BATCHES = 24
REPOSITORY = Path(__file__).parents[2]
PEER = REPOSITORY / ".venv-trl"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")

Curve = list[tuple[float, float]]  # (seconds, held-out success)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One side's training for one seed."""

    curve: Curve
    batch_s: float  # median, without the first
    cpu_s: Mapping[str, float]  # per batch and process, likewise
    limit_s: float = 0.0  # where it would have been stopped

    @property
    def reached_s(self) -> float | None:
        """When it had reached the level; None where it had not."""
        return crossing(self.curve, LEVEL)


def run(seeds: Sequence[int] = SEEDS, batches: int = BATCHES) -> list[dict[str, Any]]:
    """Records: time to the level and time per batch, for both ways to reach the agent."""
    make_environment()
    rounds = [_round(seed, batches) for seed in seeds]
    return [
        record
        for agent in GOALS
        for record in (_to_level(agent, rounds), _per_batch(agent, rounds))
    ]


def _round(seed: int, batches: int) -> dict[str, Run]:
    made = make_base(seed)
    with tempfile.TemporaryDirectory() as folder:
        done = {
            agent: _ours(Path(folder) / agent, made, seed=seed, batches=batches, agent=agent)
            for agent in GOALS
        }
        reached = {agent: run.reached_s or run.curve[-1][0] for agent, run in done.items()}
        limit_s = max(goal * reached[agent] for agent, goal in GOALS.items())
        return done | {"trl": _trl(Path(folder) / "trl", made, seed=seed, limit_s=limit_s)}


# ── the runs ──────────────────────────────────────────────────────────────────────────────────


def _ours(folder: Path, made: Path, *, seed: int, batches: int, agent: str) -> Run:
    with ours.service(folder, made) as service:
        trained = service.train(seed=seed, batches=batches, agent=agent)
        judged = range(task.JUDGE_EVERY, batches + 1, task.JUDGE_EVERY)
        curve = [(0.0, service.judge("base", ""))]
        for batch in judged:
            adapter = trained.adapters[batch - 1]
            success = service.judge(f"after-{batch}", adapter)
            curve.append((trained.batches[batch - 1].seconds, success))
            _say(agent, curve)
            if success >= LEVEL:
                break
    seconds = [batch.seconds for batch in trained.batches]
    cpu = {
        name: (trained.batches[-1].cpu_s[name] - trained.batches[0].cpu_s[name]) / (batches - 1)
        for name in trained.batches[-1].cpu_s
    }
    return Run(curve=curve, batch_s=_median_step(seconds), cpu_s=cpu)


def _trl(folder: Path, made: Path, *, seed: int, limit_s: float) -> Run:
    folder.mkdir()
    arguments = [made / "base", made / "data", seed, folder, limit_s, task.SCHEDULED_BATCHES]
    done = subprocess.run(
        [PEER / "bin" / "python", "-m", "benchmarks.trl.peer", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | ONE_THREAD | {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"TRL failed:\n{done.stderr[-3000:]}")
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    _check_prompt(made, said[0]["prompt"])
    batches = said[1:]
    curve: Curve = []
    with ours.service(folder / "judge", made) as service:
        curve.append((0.0, service.judge("base", "")))
        for batch in batches[task.JUDGE_EVERY - 1 :: task.JUDGE_EVERY]:
            adapter = folder / str(batch["batch"])
            curve.append((batch["seconds"], service.judge(adapter.name, str(adapter))))
            _say("TRL", curve)
            if curve[-1][1] >= LEVEL:
                break
    cpu = (batches[-1]["cpu_s"] - batches[0]["cpu_s"]) / (len(batches) - 1)
    return Run(
        curve=curve,
        batch_s=_median_step([batch["seconds"] for batch in batches]),
        cpu_s={"TRL": cpu},
        limit_s=limit_s,
    )


def _check_prompt(made: Path, seen: list[int]) -> None:
    """Both sides show the model the same tokens."""
    data = task.tables_in(made)
    messages = opening_messages(data, user_prompt(data.splits["train"][0], data.input_columns))
    renderer = load_renderer(made / "base", History.TEMPLATE)
    if [*renderer.render(tuple(messages), tuple(data.tools))] != seen:
        raise RuntimeError("TRL and the service do not show the model the same prompt")


def _say(who: str, curve: Curve) -> None:
    seconds, success = curve[-1]
    print(f"  {who}: {success:.3f} at {seconds:.1f} s", file=sys.stderr, flush=True)


def _median_step(seconds: Sequence[float]) -> float:
    return statistics.median(b - a for a, b in itertools.pairwise(seconds))


def crossing(curve: Curve, level: float) -> float | None:
    """When a curve first reaches a level, by linear interpolation.

    >>> crossing([(0.0, 0.2), (10.0, 0.6), (20.0, 1.0)], 0.8)
    15.0
    """
    for (before, low), (after, high) in itertools.pairwise(curve):
        if high >= level:
            return before + (after - before) * max(0.0, level - low) / (high - low)
    return None


# ── what is needed ────────────────────────────────────────────────────────────────────────────


def make_environment() -> None:
    """TRL in an environment of its own, made at the first run."""
    ready = PEER / ".ready"
    wanted = REQUIREMENTS.read_text()
    if ready.is_file() and ready.read_text() == wanted:
        return
    print("  making .venv-trl ...", file=sys.stderr, flush=True)
    venv.create(PEER, clear=True, with_pip=True)
    pip = [PEER / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torch first and alone, as in the Makefile: nothing else may choose another build of it.
    torch = next(line for line in wanted.splitlines() if line.startswith("torch=="))
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "--requirement", REQUIREMENTS], check=True)
    ready.write_text(wanted)


def make_base(seed: int) -> Path:
    """The folder with the demo's data/ and base/ for a seed, made once and kept."""
    folder = task.scratch() / str(seed)
    if (folder / "base" / "config.json").is_file():
        return folder
    print(f"  building the base of seed {seed} ...", file=sys.stderr, flush=True)
    unfinished = folder.with_name(f"{seed}.unfinished")
    for path in (folder, unfinished):
        shutil.rmtree(path, ignore_errors=True)
    for module, more in (
        ("data", ["--out", unfinished / "data"]),
        ("base", ["--data", unfinished / "data", "--out", unfinished / "base", "--threads", 2]),
    ):
        command = [sys.executable, "-m", f"examples.aircraft_inspection.{module}"]
        subprocess.run(
            [*command, *map(str, more), "--seed", str(seed)],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"OMP_WAIT_POLICY": "passive"},
        )
    unfinished.rename(folder)
    return folder


# ── the records ───────────────────────────────────────────────────────────────────────────────

_WORDS = {"http": "agent over HTTP", "python": "agent a Python callable"}


def _to_level(agent: str, rounds: Sequence[Mapping[str, Run]]) -> dict[str, Any]:
    """Where TRL did not get there, the time it was given stands in for it: the ratio is a bound."""
    known, told = [], []
    for each in rounds:
        mine, trl = each[agent].reached_s, each["trl"]
        told.append(f"{_seconds(mine)} / {_seconds(trl.reached_s, trl.limit_s)}")
        if mine is not None:
            known.append((mine, trl.reached_s or trl.limit_s))
    return {
        "name": f"s to {LEVEL:.0%} held out, {_WORDS[agent]} / TRL",
        "ours": statistics.median(mine for mine, _ in known) if known else None,
        "peer": statistics.median(peer for _, peer in known) if known else None,
        "ratio": statistics.median(peer / mine for mine, peer in known) if known else 0.0,
        "goal": GOALS[agent],
        "unit": "s",
        "spread": "per seed, ours / TRL: " + ", ".join(told),
    }


def _seconds(value: float | None, limit_s: float = 0.0) -> str:
    if value is not None:
        return f"{value:.1f}"
    return f"not reached in {limit_s:.0f}" if limit_s else "not reached"


def _per_batch(agent: str, rounds: Sequence[Mapping[str, Run]]) -> dict[str, Any]:
    ratios = [each["trl"].batch_s / each[agent].batch_s for each in rounds]
    mine, peer = rounds[-1][agent].cpu_s, rounds[-1]["trl"].cpu_s
    parts = ", ".join(f"{name} {value:.2f}" for name, value in sorted(mine.items()))
    return {
        "name": f"s per batch of 128 episodes, {_WORDS[agent]} / TRL",
        "ours": statistics.median(each[agent].batch_s for each in rounds),
        "peer": statistics.median(each["trl"].batch_s for each in rounds),
        "ratio": statistics.median(ratios),
        "goal": None,
        "unit": "s",
        "spread": (
            f"ratio {min(ratios):.2f}-{max(ratios):.2f} over {len(ratios)} seeds; CPU s per batch: "
            f"ours {sum(mine.values()):.2f} ({parts}), TRL {peer['TRL']:.2f}"
        ),
    }
