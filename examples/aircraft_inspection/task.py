"""What the model is told, how its answer is read, and how it is scored.

Two independent judges: the reward is what RL learns from, and gives something for every right
field; `is_exact_match` is what the evaluation reports, and forgives nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from examples.aircraft_inspection.data import Row, Task
from examples.aircraft_inspection.tools import family

#: What it costs not to answer in the format that was asked for. Without it a model may drift into
#: giving a field twice: every field right, and no answer that the evaluation accepts.
FORMAT_COST = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """How a procedure wants its answer: in which tag, as a JSON object or as bare text.

    `other_keys` says whether the procedure asks for more fields than are checked.
    """

    tag: str
    form: str  # "json" | "text"
    other_keys: bool

    @classmethod
    def of(cls, task: Task) -> AnswerFormat:
        """The format of a task family, from `tool_map.json`."""
        return cls(**family(task.name)["answer"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the agent reports for one rollout."""

    reward: float
    metrics: Mapping[str, float]


def opening_messages(task: Task, prompt: str) -> list[dict[str, Any]]:
    """The procedure as the system prompt, and the request."""
    return [{"role": "system", "content": task.sop}, {"role": "user", "content": prompt}]


def expected_outputs(task: Task, row: Row) -> dict[str, str]:
    """The right value of each output column."""
    return {column: row[column] for column in task.output_columns}


def score(text: str, expected: Mapping[str, str], answer_format: AnswerFormat) -> Score:
    """Judge the last message of a rollout."""
    answer = read_answer(text, tuple(expected), answer_format)
    share = field_accuracy(answer, expected)
    return Score(
        reward=share if answer and answer.is_clean else share - FORMAT_COST,
        metrics={
            "completion": float(answer is not None),
            "field_acc": share,
            "exact_match": float(is_exact_match(text, expected, answer_format)),
        },
    )


# ── the reward ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered, and whether it came in the format that was asked for."""

    fields: Mapping[str, Any]
    is_clean: bool


def read_answer(text: str, columns: Sequence[str], answer_format: AnswerFormat) -> Answer | None:
    """The last answer in a text, whatever stands around it; None if there is none to read.

    It is clean if nothing stands around it and each field is there, once, and no other.
    """
    tag = re.escape(answer_format.tag)
    found = list(re.finditer(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL))
    if not found:
        return None
    is_alone = len(found) == 1 and found[0][0] == text.strip()
    if answer_format.form == "text":
        return Answer({columns[0]: found[-1][1].strip()}, is_alone)
    try:
        pairs = json.loads(found[-1][1], object_pairs_hook=_Pairs)
    except ValueError:
        return None
    if not isinstance(pairs, _Pairs):
        return None
    keys = sorted(key for key, _ in pairs if key in columns or not answer_format.other_keys)
    return Answer(dict(pairs), is_alone and keys == sorted(columns))


def field_accuracy(answer: Answer | None, expected: Mapping[str, str]) -> float:
    """Share of the expected fields that the answer has right; case and white space are forgiven.

    >>> answer = Answer({"ready": True, "result": " Fail"}, is_clean=True)
    >>> field_accuracy(answer, {"ready": "true", "result": "success"})
    0.5
    """
    if answer is None:
        return 0.0
    right = sum(
        column in answer.fields
        and str(answer.fields[column]).strip().lower() == value.strip().lower()
        for column, value in expected.items()
    )
    return right / len(expected)


# ── the evaluation ────────────────────────────────────────────────────────────────────────────


def is_exact_match(text: str, expected: Mapping[str, str], answer_format: AnswerFormat) -> bool:
    """Whether the message ends in the one answer it gives, and every field of that is right.

    Fields are compared as text; JSON's true and a table's True are both "true". A key that was
    not asked for, a key given twice, a second answer, or text after the answer is a miss.
    """
    opening, closing = f"<{answer_format.tag}>", f"</{answer_format.tag}>"
    body = text.strip()
    if body.count(opening) != 1 or body.count(closing) != 1 or not body.endswith(closing):
        return False
    inside = body[body.index(opening) + len(opening) : -len(closing)]
    if answer_format.form == "text":
        return [inside] == list(expected.values())
    try:
        pairs = json.loads(inside, object_pairs_hook=_Pairs, parse_constant=_refuse)
    except ValueError:
        return False
    if not isinstance(pairs, _Pairs) or len({key for key, _ in pairs}) != len(pairs):
        return False
    answer = {key: _canonical(value) for key, value in pairs}
    wanted = {key: _canonical(value) for key, value in expected.items()}
    if answer_format.other_keys:
        answer = {key: value for key, value in answer.items() if key in wanted}
    return answer == wanted


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys as they came, duplicates included."""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _canonical(value: Any) -> str:
    if isinstance(value, bool) or value in ("True", "False"):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value)
