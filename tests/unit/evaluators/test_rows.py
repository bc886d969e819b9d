"""Eval-protocol's rows, written and read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from turnwise import errors
from turnwise.domain.rollout import Blame, SamplingParams
from turnwise.evaluators.agent import fault_of
from turnwise.evaluators.rows import completion_params, read_row, row_for


def a_row(**changes: Any) -> str:
    fields: dict[str, Any] = {
        "messages": [{"role": "assistant", "content": "4", "tool_calls": [{"id": "c1"}]}],
        "rollout_status": {"code": 100, "message": "Rollout finished"},
        "evaluation_result": {
            "score": 0.5,
            "is_score_valid": True,
            "reason": "close",
            "metrics": {
                "exact": {"score": 1, "reason": "yes"},
                "odd": {"score": 2, "is_score_valid": False, "reason": "no"},
            },
        },
        "execution_metadata": {"rollout_id": "odd-9", "raw_output": {"turn_id": "turn_a"}},
    }
    return json.dumps(fields | changes)


def test_a_row_is_read_with_all_that_says_whose_it_is() -> None:
    row = read_row(a_row())
    assert (row.score, row.is_valid, row.reason, row.metrics) == (0.5, True, "close", {"exact": 1})
    assert (row.turn_ids, row.call_ids, row.their_id) == (("turn_a",), ("c1",), "odd-9")
    assert fault_of(row) is None


def test_a_score_that_does_not_count_is_a_fault_with_its_reason() -> None:
    result = {"score": 0.0, "is_score_valid": False, "reason": "the judge was down"}
    fault = fault_of(read_row(a_row(evaluation_result=result)))
    assert fault is not None
    assert (fault.code, fault.message, fault.blame, fault.retryable) == (
        "score_invalid",
        "the judge was down",
        Blame.REWARD,
        False,
    )


@pytest.mark.parametrize(
    ("code", "name"),
    [(4, "DEADLINE_EXCEEDED: "), (13, ""), (103, "RESPONSE_QUALITY_ERROR: "), (77, "status 77: ")],
)
def test_a_row_of_a_failed_rollout_is_a_fault_with_the_logged_message(code: int, name: str) -> None:
    status = {"code": code, "message": "timed out after 120 seconds"}
    fault = fault_of(read_row(a_row(rollout_status=status, evaluation_result={"score": 0.0})))
    assert fault is not None
    assert (fault.code, fault.message) == ("rollout_error", f"{name}timed out after 120 seconds")


def test_steps_are_told_in_words_for_the_reward_is_the_score_alone() -> None:
    steps = [
        {"step_index": 0, "base_reward": 0.25, "reason": "found it"},
        {"step_index": "end", "base_reward": None},
        "none",
    ]
    row = read_row(a_row(evaluation_result={"score": 1.0, "step_outputs": steps}))
    assert row.steps == ("step 0: 0.25, found it", "step end: no reward")
    assert (row.score, row.metrics) == (1.0, {})


@pytest.mark.parametrize("score", [None, "1", True, float("nan"), float("inf"), 10**400])
def test_what_is_no_finite_number_is_no_score(score: object) -> None:
    fault = fault_of(read_row(a_row(evaluation_result={"score": score})))
    assert fault is not None
    assert fault.code == "no_score"


@pytest.mark.parametrize("line", ["", "[]", "{", "3", "[" * 100_000])
def test_what_is_no_row_is_refused(line: str) -> None:
    with pytest.raises(errors.InvalidInput, match="row"):
        read_row(line)


def test_parts_of_another_type_are_read_as_absent() -> None:
    odd = {"messages": 3, "rollout_status": [], "evaluation_result": 1, "execution_metadata": "x"}
    row = read_row(json.dumps(odd))
    assert (row.score, row.metrics, row.turn_ids, row.call_ids) == (None, {}, (), ())


def test_a_record_without_messages_asks_its_prompt_and_leaves_stale_ids_behind() -> None:
    fields = {
        "prompt": "2+2?",
        "ground_truth": "4",
        "execution_metadata": {"rollout_id": "old"},
        "rollout_status": {"code": 101},
    }
    assert row_for(fields, "2+2?") == {
        "prompt": "2+2?",
        "ground_truth": "4",
        "messages": [{"role": "user", "content": "2+2?"}],
    }


def test_the_jobs_sampling_is_what_the_evaluator_asks_for() -> None:
    sampling = SamplingParams(temperature=0.7, top_p=0.9, top_k=40, max_tokens=64)
    params = completion_params("http://localhost:1/e/run.x/v1", sampling, {"stop": ["\n"]})
    assert params["extra_body"] == {"stop": ["\n"], "top_k": 40}
    assert (params["temperature"], params["top_p"], params["max_tokens"]) == (0.7, 0.9, 64)
    assert params["raw_output"] is True


def test_so_many_metrics_of_a_row_are_kept_and_no_more() -> None:
    metrics = {f"m{n}": {"score": n, "reason": ""} for n in range(1000)}
    row = read_row(a_row(evaluation_result={"score": 1, "metrics": metrics}))
    assert list(row.metrics) == [f"m{n}" for n in range(100)]
