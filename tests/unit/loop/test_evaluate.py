"""An evaluation job against a gateway and processes of air."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.loop.fakes import write_adapter_files
from tests.unit.loop.world import World, make_job, resume
from turnwise.agents.scripted import Behaviour
from turnwise.domain import metrics
from turnwise.domain.data import Row
from turnwise.domain.evaluation import Finished, Score, results_key, table_key
from turnwise.domain.event import EventKind, Level
from turnwise.domain.job import (
    EvaluationSpec,
    Job,
    JobKind,
    JobStatus,
    RolloutSpec,
    ScheduleSpec,
    ScorerSpec,
)
from turnwise.domain.rollout import Policy, Purpose, Rollout
from turnwise.modeling.fingerprint import fingerprint

Json = dict[str, Any]


@pytest.fixture
def tuned(tmp_path: Path) -> str:
    folder = tmp_path / "tuned"
    write_adapter_files(folder)
    return str(folder)


def rows(count: int) -> list[Row]:
    """Prompts of two turns, every third labelled hard."""
    return [
        Row(
            index=index,
            prompt=f"task {index}",
            fields={"prompt": f"task {index}", "script": ["go on"]},
            label="easy" if index % 3 else "hard",
        )
        for index in range(count)
    ]


class Judge:
    """Gives what the world's table says; None is a problem."""

    name = "truth"

    def __init__(self, scores: dict[int, float | None]) -> None:
        self.scores = scores
        self.seen: list[Finished] = []

    async def score(self, finished: Finished) -> Score:
        self.seen.append(finished)
        value = self.scores.get(finished.row_index, 1.0)
        problem = "" if value is not None else "raised KeyError('answer')"
        return Score(scorer=self.name, rollout_id=finished.rollout_id, value=value, problem=problem)

    async def close(self) -> None:
        pass


async def evaluate(world: World, *, count: int = 6, limits: Json | None = None, **spec: Any) -> Job:
    evaluation = EvaluationSpec(**({"pass_k_values": (1,)} | spec))
    job = make_job(
        kind=JobKind.EVALUATION,
        evaluation=evaluation,
        rollout=RolloutSpec(rollout_timeout=10.0, rollout_max_retries=0),
        **(limits or {}),
    )
    await world.store.create_job(job)
    await world.loop(job, rows(count)).run()
    return await world.job()


def results(world: World) -> Json:
    found: Json = json.loads(world.blobs.path(results_key("job_walk")).read_text())
    return found


def table(world: World) -> list[dict[str, str]]:
    text = world.blobs.path(table_key("job_walk")).read_text()
    return list(csv.DictReader(io.StringIO(text, newline="")))


async def values(world: World) -> dict[str, float]:
    [event] = await world.events(EventKind.EVALUATION)
    found: dict[str, float] = event.body["values"]
    metrics.check(found)
    return found


async def told(world: World, level: Level) -> list[str]:
    log = await world.events(EventKind.LOG)
    return [event.body["message"] for event in log if event.level is level]


def pinned(rollout: Rollout) -> str | None:
    assert rollout.policy is not None
    return rollout.policy.adapter_id


async def test_two_models_see_the_same_rows_with_the_same_seeds_and_are_told_apart(
    world: World, tuned: str
) -> None:
    world.reward = lambda rollout: 1.0 if pinned(rollout) else float(rollout.row_index == 0)
    job = await evaluate(world, models=(tuned, "base"))

    assert job.status is JobStatus.COMPLETED
    made = [t.rollout for t in await world.trajectories()]
    places = {
        adapter_id: sorted(
            (r.seed, r.purpose, r.step, r.row_index, r.slot, r.attempt)
            for r in made
            if pinned(r) == adapter_id
        )
        for adapter_id in (None, fingerprint(tuned))
    }
    wanted = [(0, Purpose.EVALUATION, 0, row, 0, 0) for row in range(6)]
    assert places == {None: wanted, fingerprint(tuned): wanted}
    assert {r.sampling.temperature for r in made} == {0.0}
    found = await values(world)
    names = ("eval", "eval/model/tuned", "eval/model/base", "eval/label/easy")
    assert [found[f"{name}/reward/mean"] for name in names] == [1.0, 1.0, pytest.approx(1 / 6), 1.0]
    assert found["eval/compare/base/reward/difference"] == pytest.approx(5 / 6)
    assert found["eval/compare/base/reward/p_value"] == 2 / 2**5
    assert [m["adapter_id"] for m in results(world)["models"]] == [fingerprint(tuned), None]


async def test_the_findings_are_said_in_the_log_and_kept_with_every_row(
    world: World, tuned: str
) -> None:
    judge = Judge({1: 0.0, 2: None})
    world.scorers = [judge]
    world.reward = lambda rollout: 1.0 if pinned(rollout) else 0.0
    await evaluate(world, models=(tuned, "base"), scorers=(ScorerSpec(name="truth", target="a:b"),))

    assert len(judge.seen) == 12
    first = next(each for each in judge.seen if each.row_index == 1 and each.model == "tuned")
    assert [message["content"] for message in first.messages] == [
        *("question 0", "answer 0", "question 1", "answer 1"),
    ]
    sentence = "tuned is better than base by 1 (95 % interval 1 to 1, p = 0.031, 6 paired rows)"
    assert sentence in await told(world, Level.INFO)
    assert await told(world, Level.WARNING) == [
        "scorer truth: 2 scores are missing; most often: raised KeyError('answer')"
    ]
    document = results(world)
    assert [each["measure"] for each in document["comparisons"]] == [
        *("reward", "success", "scorer/truth"),
    ]
    assert document["comparisons"][0]["sentence"] == sentence
    assert document["labels"] == [
        {"key": "hard", "label": "hard", "rows": 2},
        {"key": "easy", "label": "easy", "rows": 4},
    ]
    second = table(world)[1]
    ids = {each.model: each.rollout_id for each in judge.seen if each.row_index == 1}
    assert second == {
        "row": "1",
        "slot": "0",
        "label": "easy",
        "prompt": "task 1",
        "tuned: reward": "1.0",
        "tuned: success": "1",
        "tuned: score truth": "0.0",
        "tuned: turns": "2",
        "tuned: tokens": "4",
        "tuned: status": "REWARD_RECEIVED",
        "tuned: fault": "",
        "tuned: rollout_id": ids["tuned"],
        "base: reward": "0.0",
        "base: success": "0",
        "base: score truth": "0.0",
        "base: turns": "2",
        "base: tokens": "4",
        "base: status": "REWARD_RECEIVED",
        "base: fault": "",
        "base: rollout_id": ids["base"],
    }
    assert [row["tuned: score truth"] for row in table(world)] == [
        *("1.0", "0.0", "", "1.0", "1.0", "1.0"),
    ]


async def test_progress_is_told_ten_times_however_many_rows(world: World) -> None:
    await evaluate(world, count=25)

    log = [event.body for event in await world.events(EventKind.LOG)]
    assert log[0] == {"message": "25 rollouts in all, on 25 rows", "rollouts": 25}
    assert [(body["completed"], body["total"]) for body in log[1:]] == [
        (done, 25) for done in (3, 5, 8, 10, 13, 15, 18, 20, 23, 25)
    ]
    assert log[1]["message"] == "3 of 25 rows evaluated"


async def test_a_row_that_fails_under_one_model_is_left_out_of_the_pairs(
    world: World, tuned: str
) -> None:
    def behave(rollout: Rollout) -> Behaviour:
        is_broken = pinned(rollout) is None and rollout.row_index < 2
        return Behaviour.ANSWER_500 if is_broken else Behaviour.PLAY

    world.behave = behave
    job = await evaluate(world, models=(tuned, "base"))

    assert job.status is JobStatus.COMPLETED
    found = await values(world)
    compared = {
        name.rpartition("/")[2]: value
        for name, value in found.items()
        if name.startswith("eval/compare/base/reward/")
    }
    assert (compared["paired_rows"], compared["unpaired_rows"]) == (4, 2)
    assert found["eval/completion_rate"] == 1.0
    assert found["eval/model/base/completion_rate"] == pytest.approx(4 / 6)
    assert await told(world, Level.WARNING) == [
        "base: 2 of 6 rollouts were not scored; 2 failed so: agent/http_error: "
        "the agent answered 500: scripted"
    ]
    assert [row["base: fault"] for row in table(world)][:3] == [
        *("agent/http_error", "agent/http_error", ""),
    ]


async def test_an_evaluation_of_which_every_rollout_failed_fails_and_says_why(
    world: World,
) -> None:
    world.behave = lambda rollout: Behaviour.ANSWER_500
    job = await evaluate(world, group_size=2)

    assert job.status is JobStatus.FAILED
    assert job.message == (
        "nothing was evaluated: 12 of 12 rollouts were not scored; 12 failed so: "
        "agent/http_error: the agent answered 500: scripted"
    )
    assert (await values(world))["eval/completion_rate"] == 0.0
    assert len(table(world)) == 12


async def test_a_model_of_which_every_rollout_failed_is_a_warning_beside_one_that_works(
    world: World, tuned: str
) -> None:
    world.behave = lambda r: Behaviour.PLAY if pinned(r) is None else Behaviour.ABORT
    job = await evaluate(world, models=(tuned, "base"))

    assert job.status is JobStatus.COMPLETED
    [warning] = await told(world, Level.WARNING)
    assert warning.startswith("tuned: 6 of 6 rollouts were not scored; 6 failed so: ")
    assert results(world)["comparisons"] == []


async def test_attempts_per_row_give_pass_at_k_and_a_line_each(world: World) -> None:
    world.reward = lambda rollout: float(rollout.slot == 1)
    await evaluate(world, group_size=4, pass_k_values=(1, 2, 8), max_rows=3)

    assert await told(world, Level.WARNING) == [
        "at temperature 0 the 4 rollouts of a row are alike, unless the agent differs; "
        "for pass@k set eval_sampling_params.temperature"
    ]
    found = await values(world)
    assert [found[f"eval/reward/pass_at_{k}"] for k in (1, 2)] == [0.25, 0.5]
    assert "eval/reward/pass_at_8" not in found
    assert [row["slot"] for row in table(world)] == ["0", "1", "2", "3"] * 3


async def test_a_repeat_of_the_job_replaces_its_results(world: World) -> None:
    world.behave = lambda rollout: Behaviour.ANSWER_500
    job = await evaluate(world)
    world.behave = lambda rollout: Behaviour.PLAY

    assert (await resume(world, job)).status is JobStatus.COMPLETED
    assert results(world)["models"][0]["faults"] == []
    assert {t.rollout.policy for t in await world.trajectories()} == {Policy()}


async def test_validation_during_training_has_a_curve_for_each_label(world: World) -> None:
    world.reward = lambda rollout: float(rollout.row_index % 3 == 0)
    schedule = ScheduleSpec(max_epochs=1, max_steps=2, val_every=1)
    job = make_job(schedule=schedule)
    await world.store.create_job(job)
    await world.loop(job, rows(4), rows(4)).run()

    curves = [
        [event.body["values"][f"val/label/{label}/reward/mean"] for label in ("easy", "hard")]
        for event in await world.events(EventKind.EVALUATION)
    ]
    assert curves == [[0.0, 1.0]] * 3
