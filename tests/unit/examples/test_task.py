from __future__ import annotations

import json
from typing import Any

import pytest

from examples.aircraft_inspection.task import AnswerFormat, Score, is_exact_match, score

JSON = AnswerFormat(tag="final_output", form="json", other_keys=False)
OPEN = AnswerFormat(tag="final_output", form="json", other_keys=True)
TEXT = AnswerFormat(tag="final_decision", form="text", other_keys=False)
EXPECTED = {"ready": "true", "result": "success"}
RIGHT = {"ready": "true", "result": "success"}


def final(answer: Any) -> str:
    return f"<final_output>{json.dumps(answer)}</final_output>"


def judged(text: str, answer_format: AnswerFormat = JSON) -> tuple[float, float, float, float]:
    """(reward, completion, field_acc, exact_match)"""
    found = score(text, EXPECTED, answer_format)
    metrics = dict(found.metrics)
    return (
        round(found.reward, 6),
        metrics["completion"],
        metrics["field_acc"],
        metrics["exact_match"],
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (final(RIGHT), (1.0, 1, 1, 1)),
        (f"\n{final(RIGHT)} \n", (1.0, 1, 1, 1)),
        (final(RIGHT | {"result": "fail"}), (0.5, 1, 0.5, 0)),
        (final({"ready": "false", "result": "fail"}), (0.0, 1, 0, 0)),
        (final(RIGHT | {"result": " Success"}), (1.0, 1, 1, 0)),  # forgiven, but no exact match
        (final(RIGHT | {"ready": True}), (1.0, 1, 1, 1)),  # JSON's true is "true"
        # not in the format: the share of right fields, less the cost
        (final(RIGHT | {"more": "x"}), (0.9, 1, 1, 0)),
        (final({"ready": "true"}), (0.4, 1, 0.5, 0)),
        (f"Here: {final(RIGHT)}", (0.9, 1, 1, 1)),
        (f"{final(RIGHT)} Bye.", (0.9, 1, 1, 0)),
        (final(RIGHT) + final(RIGHT), (0.9, 1, 1, 0)),
        (
            '<final_output>{"ready": "true", "ready": "true", "result": "success"}</final_output>',
            (0.9, 1, 1, 0),
        ),
        # nothing to read
        ("", (-0.1, 0, 0, 0)),
        (json.dumps(RIGHT), (-0.1, 0, 0, 0)),
        ("<final_output>{'ready': 'true'}</final_output>", (-0.1, 0, 0, 0)),
        ("<final_output>[]</final_output>", (-0.1, 0, 0, 0)),
        ('<final_output>{"ready": "true"', (-0.1, 0, 0, 0)),
    ],
)
def test_reward_and_exact_match_judge_independently(
    text: str, expected: tuple[float, float, float, float]
) -> None:
    assert judged(text) == expected


def test_a_score_is_a_reward_and_three_metrics() -> None:
    metrics = {"completion": 1.0, "field_acc": 1.0, "exact_match": 1.0}
    assert score(final(RIGHT), EXPECTED, JSON) == Score(reward=1.0, metrics=metrics)


def test_a_procedure_may_ask_for_more_fields_than_are_checked() -> None:
    assert judged(final(RIGHT | {"summary": "all well"}), OPEN) == (1.0, 1, 1, 1)
    assert judged(final({"summary": "all well", "ready": "true"}), OPEN) == (0.4, 1, 0.5, 0)


def test_an_answer_may_be_bare_text() -> None:
    def match(text: str) -> Score:
        return score(text, {"action": "No Action"}, TEXT)

    right = {"completion": 1.0, "field_acc": 1.0, "exact_match": 1.0}
    assert match("I think <final_decision>Other</final_decision>").reward == -0.1
    assert match("<final_decision>No Action</final_decision>") == Score(reward=1.0, metrics=right)
    assert match("<final_decision> no action</final_decision>").metrics == right | {
        "exact_match": 0.0
    }


def test_an_exact_match_compares_tables_booleans_numbers_and_empty_cells_as_text() -> None:
    expected = {"found": "True", "count": "3", "note": ""}
    assert is_exact_match(final({"found": True, "count": 3, "note": ""}), expected, JSON)
    assert is_exact_match(final({"found": "true", "count": "3", "note": ""}), expected, JSON)
    assert not is_exact_match(final({"found": True, "count": 3.5, "note": ""}), expected, JSON)
    assert not is_exact_match(final({"found": True, "count": 3, "note": None}), expected, JSON)


def test_an_exact_match_refuses_what_json_does_not_know() -> None:
    assert not is_exact_match('<final_output>{"a": NaN}</final_output>', {"a": "NaN"}, JSON)
