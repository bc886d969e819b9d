"""Unmodified evaluators of eval-protocol drive and score the rollouts of real jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.wire.fireworks.clients.evaluating import GROUPWISE, REMOTE, SINGLE_TURN, run_job
from tests.wire.fireworks.clients.remote_server import a_remote_server


def of_row(told: Any, row: int) -> list[Any]:
    """The rollouts of a row."""
    return [rollout for rollout in told["rollouts"] if rollout["row"] == row]


def test_a_single_turn_evaluator_scores_each_rollout_by_what_it_said(tmp_path: Path) -> None:
    """And what does not count is a fault with its reason; all of one job."""
    rows: list[dict[str, Any]] = [
        {
            "prompt": "3+3?",
            "messages": [{"role": "user", "content": "3+3?"}],
            "ground_truth": "6",
            # as the CLI uploads rows: with the ids of its own validation run
            "execution_metadata": {"rollout_id": "old", "invocation_id": "old"},
            "rollout_status": {"code": 101, "message": "Rollout is running", "details": []},
        },
        {"prompt": "2+2?", "ground_truth": "none"},
        {"prompt": "4+4?", "ground_truth": "8", "is_broken": True},
    ]
    told = run_job(tmp_path, SINGLE_TURN, rows)
    assert told["builds"] == [["ACTIVE", "Evaluator built successfully"]]
    assert len(told["rollouts"]) >= 9
    assert of_row(told, 0)
    for rollout in of_row(told, 0):
        (said,) = rollout["said"]
        assert rollout["status"] == "REWARD_RECEIVED"
        assert rollout["rewards"] == [len(said) % 2]
        assert rollout["metrics"] == {"length": len(said)}
        assert rollout["reason"] == f"{len(said)} characters; the truth is 6\nstep 0: 0.5"
    for rollout in of_row(told, 1):
        code, message = rollout["fault"]
        assert code == "score_invalid"
        assert message.endswith("; the truth is none")
    broken = ["score_invalid", "Error during evaluation: ValueError: no answer in it"]
    assert of_row(told, 2)
    assert all(rollout["fault"] == broken for rollout in of_row(told, 2))
    assert "dropped_failed" in told["ledger"]["0"]  # the tokens of those are accounted for
    assert "sk-very-secret" not in json.dumps(told)


def test_rollouts_that_a_server_of_the_users_makes_are_traced_scored_and_failed(
    tmp_path: Path,
) -> None:
    rows = [{"prompt": "2+2?"}, {"prompt": "this fails"}, {"prompt": "this is silent"}]
    with a_remote_server(tmp_path / "data" / "admin.key") as url:
        test = REMOTE.replace("SERVER", url).replace("TIMEOUT_S", "15")
        told = run_job(tmp_path, test, rows, TURNWISE_EVALUATOR_NETWORK="host")
    assert told["builds"] == [["ACTIVE", "Evaluator built successfully"]]
    assert of_row(told, 0)
    for rollout in of_row(told, 0):
        assert rollout["fault"] is None
        assert (rollout["turns"], len(rollout["said"])) == (2, 2)
        assert rollout["rewards"] == [len("".join(rollout["said"]))]
        assert rollout["reason"] == "4 messages"
    failed = ["rollout_error", "the browser crashed"]
    assert of_row(told, 1)
    assert all(rollout["fault"] == failed for rollout in of_row(told, 1))
    assert of_row(told, 2)
    for rollout in of_row(told, 2):
        code, message = rollout["fault"]
        assert code == "rollout_error"
        assert message.startswith("DEADLINE_EXCEEDED: Rollout ")
        assert message.endswith(" timed out after 15 seconds")


@pytest.mark.long
def test_a_groupwise_evaluator_sees_the_rollouts_of_a_row_together(tmp_path: Path) -> None:
    """And one whose entry point is not there fails to build with pytest's words."""
    entry_points = ["test_math.py::test_math", "test_math.py::test_maths"]
    told = run_job(tmp_path, GROUPWISE, [{"prompt": "2+2?"}], entry_points=entry_points)
    assert told["status"] == "COMPLETED"
    assert sorted(rollout["reason"] for rollout in told["rollouts"]) == ["of 3"] * 3
    longest = max(len(rollout["said"][0]) for rollout in told["rollouts"])
    for rollout in told["rollouts"]:
        assert rollout["rewards"] == [len(rollout["said"][0]) / longest]
    _, (state, message) = told["builds"]
    assert state == "BUILD_FAILED"
    assert "test_maths" in message
    assert "not found" in message


@pytest.mark.long
def test_remote_rollouts_without_network_end_the_job_with_the_setting(tmp_path: Path) -> None:
    test = REMOTE.replace("SERVER", "http://127.0.0.1:9").replace("TIMEOUT_S", "1")
    told = run_job(tmp_path, test, [{"prompt": "2+2?"}])
    assert told["status"] == "FAILED"
    assert "set TURNWISE_EVALUATOR_NETWORK=host" in told["message"]
