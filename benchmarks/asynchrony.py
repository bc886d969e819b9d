"""The same job synchronously and with `max_steps_off_policy` 2, its agent slow and uneven.

Each turn of the agent waits, log-normal with median 0.3 s and sigma 1. What is timed is from the
first rollout to the last step's end, the two ways alternating. Beside it stands what asynchrony
must not cost: the oldest token trained, every sampled token in a bin of the ledger, and slow
rollouts trained as often as they were admitted.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import scripted
from benchmarks.processes import Server, serving
from turnwise.client import Client

GOAL = 2.0
K = 2
STEPS = 8
REPEATS = 3
BATCH = {"global_batch_size": 8, "group_size": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One run."""

    seconds: float
    cpu_s: Counter[str]
    oldest: float  # steps
    unaccounted: int  # tokens
    admitted_s: list[float]  # what the agent waited, per admitted rollout
    trained_s: list[float]  # the same, of those whose group was trained


def run(repeats: int = REPEATS, steps: int = STEPS) -> list[dict[str, Any]]:
    """The records: wall time of both, and the checks."""
    with tempfile.TemporaryDirectory() as folder:
        made = scripted.prepare(Path(folder))
        with serving(Path(folder) / "data") as server, server.client() as client:
            _round(server, client, made, "warm", k=0, steps=1)  # starts the engine
            rounds = [
                [_round(server, client, made, f"k{k}-{repeat}", k=k, steps=steps) for k in (K, 0)]
                for repeat in range(repeats)
            ]
    ours, peer = ([pair[i] for pair in rounds] for i in (0, 1))
    return [_speed(ours, peer), *_checks(ours)]


def _round(
    server: Server, client: Client, made: tuple[Path, Path], name: str, *, k: int, steps: int
) -> Round:
    before = server.cpu_s()
    client.create_job(
        scripted.job(
            name,
            made,
            batch=BATCH,
            schedule={"max_steps": steps, "max_epochs": 99, "val_every": 0},
            async_config={"max_steps_off_policy": k},
            rollout={"rollout_max_concurrency": 512, "rollout_timeout": 120},
        )
    )
    ran = scripted.ran(client, name)
    cpu = scripted.spent(server, before)
    rollouts = _rollouts(client, name)
    trained = {g for e in client.events(name, kinds=("step",)) for g in e["body"]["groups"]}
    binned = sum(sum(step["bins"].values()) for step in client.ledger(name))
    ages = client.metrics(name, names=("staleness/max",))["staleness/max"]
    return Round(
        seconds=ran.seconds,
        cpu_s=cpu,
        oldest=max(point["value"] for point in ages),
        unaccounted=sum(rollout["tokens"] for rollout in rollouts) - binned,
        admitted_s=[_waited(rollout) for rollout in rollouts],
        trained_s=[_waited(r) for r in rollouts if r["group_id"] in trained],
    )


def _rollouts(client: Client, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = 0
    while page := client.rollouts(name, limit=1000, after=after)["rollouts"]:
        found += page
        after = page[-1]["seq"]
    return found


def _waited(rollout: dict[str, Any]) -> float:
    return float(rollout["metrics"].get("waited_s", 0.0))


def _speed(ours: list[Round], peer: list[Round]) -> dict[str, Any]:
    ratios = [b.seconds / a.seconds for a, b in zip(ours, peer, strict=True)]
    cpu = "; ".join(
        f"{name}: {scripted.table(rounds[-1].cpu_s)}"
        for name, rounds in ((f"k = {K}", ours), ("k = 0", peer))
    )
    return {
        "name": f"asynchronous (k = {K}) / synchronous, slow uneven agent",
        "ours": statistics.median(r.seconds for r in ours),
        "peer": statistics.median(r.seconds for r in peer),
        "ratio": statistics.median(ratios),
        "goal": GOAL,
        "unit": f"s for {STEPS} steps",
        "spread": f"ratio {min(ratios):.2f}-{max(ratios):.2f} in {len(ratios)} repeats; CPU {cpu}",
    }


def _checks(ours: list[Round]) -> list[dict[str, Any]]:
    """Each meets its goal at ratio 1."""
    oldest = max(r.oldest for r in ours)
    unaccounted = sum(r.unaccounted for r in ours)
    admitted = [waited for r in ours for waited in r.admitted_s]
    trained = [waited for r in ours for waited in r.trained_s]
    distance = _largest_gap(admitted, trained)
    return [
        _check(f"oldest trained token, k = {K}", oldest, "steps", oldest <= K, ""),
        _check("sampled tokens in no bin", unaccounted, "tokens", not unaccounted, ""),
        _check(
            "waits of trained and of admitted rollouts, largest gap of distributions",
            distance,
            "share",
            distance <= 0.01,
            f"means {statistics.mean(trained):.3f} and {statistics.mean(admitted):.3f} s",
        ),
    ]


def _check(name: str, value: float, unit: str, is_met: bool, spread: str) -> dict[str, Any]:
    return {
        "name": name,
        "ours": float(value),
        "peer": None,
        "ratio": float(is_met),
        "goal": 1.0,
        "unit": unit,
        "spread": spread,
    }


def _largest_gap(one: list[float], other: list[float]) -> float:
    """The Kolmogorov-Smirnov distance of two samples."""
    places = sorted({*one, *other})
    a, b = sorted(one), sorted(other)
    i = j = 0
    gap = 0.0
    for place in places:
        while i < len(a) and a[i] <= place:
            i += 1
        while j < len(b) and b[j] <= place:
            j += 1
        gap = max(gap, abs(i / len(a) - j / len(b)))
    return gap
