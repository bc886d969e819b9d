"""Real SOP-Bench folders, where there are some: set TURNWISE_SOP_BENCH to the folder of folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from examples.aircraft_inspection.agent import InspectionAgent
from examples.aircraft_inspection.data import load, user_prompt, write_datasets
from examples.aircraft_inspection.task import expected_outputs, is_exact_match
from examples.aircraft_inspection.tokenizer import build_tokenizer
from examples.aircraft_inspection.tools import Tools

ROOT = os.environ.get("TURNWISE_SOP_BENCH")
FOLDERS = {
    "aircraft_inspection_synthetic": 240,
    "customer_service": 156,
    "referral_abuse_detection_v1": 200,
}

pytestmark = pytest.mark.skipif(ROOT is None, reason="TURNWISE_SOP_BENCH names no folder")


def folder(name: str) -> Path:
    assert ROOT is not None
    return Path(ROOT) / name


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_goes_from_files_to_a_right_answer(name: str, tmp_path: Path) -> None:
    task = load(folder(name))
    assert len(task.rows) == FOLDERS[name]
    write_datasets(task, tmp_path)
    record = json.loads((tmp_path / "test.jsonl").read_text().splitlines()[0])

    agent = InspectionAgent(task)
    row = agent.row(record)
    assert record["prompt"] == user_prompt(row, task.input_columns)
    expected = expected_outputs(task, row)
    answer_format = agent.answer_format
    inside = json.dumps(expected) if answer_format.form == "json" else next(iter(expected.values()))
    text = f"<{answer_format.tag}>{inside}</{answer_format.tag}>"
    assert is_exact_match(text, expected, answer_format)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_tool_answers_for_the_first_row_in_which_its_ids_are_filled(name: str) -> None:
    task = load(folder(name))
    tools = Tools(task)
    for tool in task.tools:
        function = tool["function"]
        columns = function["parameters"]["properties"]
        row = next(row for row in task.rows if all(row.get(column, "x") for column in columns))
        arguments = {column: row.get(column, "x") for column in columns}
        assert "error" not in tools.call(function["name"], arguments), function["name"]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_prompt_fits_the_tiny_model(name: str) -> None:
    task = load(folder(name))
    tokenizer = build_tokenizer(task)
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": task.sop}], tools=list(task.tools), tokenize=False
    )
    assert len(tokenizer.encode(str(text), add_special_tokens=False)) < 1000
