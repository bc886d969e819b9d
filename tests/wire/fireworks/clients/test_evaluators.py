"""Unmodified evaluators of eval-protocol drive and score the rollouts of real jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.wire.fireworks.clients.evaluating import GROUPWISE, SINGLE_TURN, run_job


def test_a_single_turn_evaluator_scores_each_rollout_by_what_it_said(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "2+2?", "ground_truth": "4"},
        {
            "prompt": "3+3?",
            "messages": [{"role": "user", "content": "3+3?"}],
            "ground_truth": "6",
            # as the CLI uploads rows: with the ids of its own validation run
            "execution_metadata": {"rollout_id": "old", "invocation_id": "old"},
            "rollout_status": {"code": 101, "message": "Rollout is running", "details": []},
        },
    ]
    told = run_job(tmp_path, SINGLE_TURN, rows)
    assert (told["state"], told["message"]) == ("ACTIVE", "Evaluator built successfully")
    assert told["status"] == "COMPLETED"
    assert len(told["rollouts"]) == 6
    for rollout in told["rollouts"]:
        (said,) = rollout["said"]
        assert rollout["status"] == "REWARD_RECEIVED"
        assert rollout["rewards"] == [len(said) % 2]
        assert rollout["metrics"] == {"length": len(said)}
        (noted,) = map(json.loads, rollout["told"])
        assert noted["reason"].startswith(f"{len(said)} characters; the truth is ")


def test_rows_that_do_not_count_are_faults_with_their_reasons(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "2+2?", "ground_truth": "none"},
        {"prompt": "3+3?", "ground_truth": "6", "is_broken": True},
        {"prompt": "4+4?", "ground_truth": "8"},
    ]
    told = run_job(tmp_path, SINGLE_TURN, rows)
    faults = [rollout["fault"] for rollout in told["rollouts"]]
    assert faults.count(None) == 3
    assert {code for code, _ in filter(None, faults)} == {"score_invalid"}
    reasons = {message.partition("; ")[2] or message for _, message in filter(None, faults)}
    assert reasons == {
        "the truth is none",
        "Error during evaluation: ValueError: no answer in it",
    }
    assert "dropped_failed" in told["ledger"]["0"]  # the tokens of those are accounted for


def test_a_groupwise_evaluator_sees_the_rollouts_of_a_row_together(tmp_path: Path) -> None:
    told = run_job(tmp_path, GROUPWISE, [{"prompt": "2+2?"}])
    assert told["status"] == "COMPLETED"
    assert sorted(json.loads(r["told"][0])["reason"] for r in told["rollouts"]) == ["of 3"] * 3
    longest = max(len(r["said"][0]) for r in told["rollouts"])
    for rollout in told["rollouts"]:
        assert rollout["rewards"] == [len(rollout["said"][0]) / longest]


def test_an_entry_point_that_is_not_there_fails_to_build_with_pytests_words(tmp_path: Path) -> None:
    told = run_job(tmp_path, SINGLE_TURN, entry_point="test_math.py::test_maths")
    assert told["state"] == "BUILD_FAILED"
    assert "test_maths" in told["message"]
    assert "not found" in told["message"]
