"""Eight jobs of mixed LoRA rank on one engine, beside the same jobs one after another.

Each job has at most 4 rollouts in flight, of an agent that waits before each turn (log-normal,
median 0.3 s). Steps per hour are counted twice: in total, from the first job's creation to the
last one's end, learners' start included (each imports torch: seconds of CPU); and at work, which
adds up each job's own rate from its first rollout to its last step.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import scripted
from benchmarks.processes import Server, serving
from turnwise.client import Client

GOAL = 2.5
RANKS = (4, 8, 16, 32, 4, 8, 16, 32)
IN_FLIGHT = 4
BATCH = {"global_batch_size": 2, "group_size": 4}
STEPS = 4
REPEATS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The eight jobs, run one way."""

    total_s: float
    working_s: float  # start-up left out
    cpu_s: Counter[str]
    memory_mib: Counter[str]  # at most


def run(repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Records of steps per hour, in total and at work."""
    with tempfile.TemporaryDirectory() as folder:
        made = scripted.prepare(Path(folder))
        settings = {"max_running_jobs": len(RANKS)}
        with serving(Path(folder) / "data", **settings) as server, server.client() as client:
            client.create_job(_job("warm", made, RANKS[0]))  # starts the engine
            scripted.ran(client, "warm")
            rounds = [
                (_together(server, client, made, f"t{n}"), _in_turn(server, client, made, f"s{n}"))
                for n in range(repeats)
            ]
    ours, peer = [r[0] for r in rounds], [r[1] for r in rounds]
    return [
        _record("in total", GOAL, ours, peer, [[r.total_s for r in way] for way in (ours, peer)]),
        _record("at work", None, ours, peer, [[r.working_s for r in way] for way in (ours, peer)]),
    ]


def _job(name: str, made: tuple[Path, Path], rank: int) -> dict[str, Any]:
    return scripted.job(
        name,
        made,
        batch=BATCH,
        schedule={"max_steps": STEPS, "max_epochs": 99, "val_every": 0},
        lora={"rank": rank, "alpha": 2 * rank},
        rollout={"rollout_max_concurrency": IN_FLIGHT, "rollout_timeout": 120},
    )


def _together(server: Server, client: Client, made: tuple[Path, Path], prefix: str) -> Round:
    before, began = server.cpu_s(), time.time()
    names = [f"{prefix}-{i}" for i in range(len(RANKS))]
    for name, rank in zip(names, RANKS, strict=True):
        client.create_job(_job(name, made, rank))
    most = Counter[str]()
    while any(client.job(name)["status"] in ("PENDING", "RUNNING") for name in names):
        most |= server.resident_mib()
        time.sleep(0.5)
    ran = [scripted.ran(client, name) for name in names]
    ended = max(each.ended_at for each in ran)
    return Round(
        total_s=ended - began,
        # Its jobs start one by one, as their learners do: what all would take at their own rates.
        working_s=statistics.harmonic_mean([each.seconds for each in ran]),
        cpu_s=scripted.spent(server, before),
        memory_mib=most,
    )


def _in_turn(server: Server, client: Client, made: tuple[Path, Path], prefix: str) -> Round:
    before, began = server.cpu_s(), time.time()
    ran, most = [], Counter[str]()
    for i, rank in enumerate(RANKS):
        client.create_job(_job(f"{prefix}-{i}", made, rank))
        ran.append(scripted.ran(client, f"{prefix}-{i}"))
        most |= server.resident_mib()
    return Round(
        total_s=ran[-1].ended_at - began,
        working_s=sum(each.seconds for each in ran),
        cpu_s=scripted.spent(server, before),
        memory_mib=most,
    )


def _record(
    what: str,
    goal: float | None,
    ours: list[Round],
    peer: list[Round],
    seconds: list[list[float]],
) -> dict[str, Any]:
    ours_s, peer_s = seconds
    ratios = [b / a for a, b in zip(ours_s, peer_s, strict=True)]
    cpu, memory = scripted.table(ours[-1].cpu_s), scripted.table(ours[-1].memory_mib, "MiB")
    return {
        "name": f"{len(RANKS)} jobs on one engine / one after another, {what}",
        "ours": _per_hour(ours_s),
        "peer": _per_hour(peer_s),
        "ratio": statistics.median(ratios),
        "goal": goal,
        "unit": "steps/h",
        "spread": (
            f"ratio {min(ratios):.2f}-{max(ratios):.2f} in {len(ratios)} repeats; together: "
            f"CPU {cpu}; memory {memory}; one after another: CPU {scripted.table(peer[-1].cpu_s)}"
        ),
    }


def _per_hour(seconds: list[float]) -> float:
    return len(RANKS) * STEPS / statistics.median(seconds) * 3600
