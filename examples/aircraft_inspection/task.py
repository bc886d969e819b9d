"""What the model is told, how its answer is read, and how it is scored.

Two judges that share no code path: `reward` is what RL learns from and forgives a lot;
`is_exact_match` is what the evaluation reports and forgives nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from examples.aircraft_inspection.data import Row, Task
from examples.aircraft_inspection.tools import family

#: What it costs not to answer in the format that was asked for. Without it the fields alone are
#: rewarded, and a model may drift into saying more than the answer, which the evaluation refuses.
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
        reward=share if is_clean(text, answer, expected, answer_format) else share - FORMAT_COST,
        metrics={
            "completion": float(answer is not None),
            "field_acc": share,
            "exact_match": float(is_exact_match(text, expected, answer_format)),
        },
    )


# ── the reward ────────────────────────────────────────────────────────────────────────────────


def read_answer(
    text: str, columns: Sequence[str], answer_format: AnswerFormat
) -> dict[str, Any] | None:
    """The last answer in a text, whatever stands around it; None if there is none to read."""
    tag = re.escape(answer_format.tag)
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    if not found:
        return None
    if answer_format.form == "text":
        return {columns[0]: found[-1].strip()}
    try:
        answer = json.loads(found[-1])
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def field_accuracy(answer: Mapping[str, Any] | None, expected: Mapping[str, str]) -> float:
    """Share of the expected fields that the answer has right; case and white space are forgiven.

    >>> field_accuracy({"ready": True, "result": " Fail"}, {"ready": "true", "result": "success"})
    0.5
    """
    if answer is None:
        return 0.0
    right = sum(
        column in answer and str(answer[column]).strip().lower() == value.strip().lower()
        for column, value in expected.items()
    )
    return right / len(expected)


def is_clean(
    text: str,
    answer: Mapping[str, Any] | None,
    expected: Mapping[str, str],
    answer_format: AnswerFormat,
) -> bool:
    """Whether the message is an answer and nothing else, with no field too many or too few."""
    if answer is None or text.count("<") != 2 or not text.strip().startswith("<"):
        return False
    if not text.strip().endswith(">"):
        return False
    return answer_format.other_keys or answer.keys() == expected.keys()


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
