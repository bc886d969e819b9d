"""What a run leaves is read in bounds, and no link in it is followed."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from turnwise.evaluators import agent
from turnwise.evaluators.agent import _RunFiles


def files_of(folder: Path) -> _RunFiles:
    (folder / "runs").mkdir()
    host: Any = SimpleNamespace(folder=folder)
    files = _RunFiles(host, "run_a")
    files.make([{"prompt": "hi"}])
    return files


def test_a_line_without_end_is_given_up_and_other_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "MAX_ROW", 100)
    files = files_of(tmp_path)
    (files.results / "buffer_a.jsonl").write_text("x" * 100)
    (files.results / "buffer_b.jsonl").write_text("{}\n")
    given_up = "(buffer_a.jsonl goes on for more than 100 bytes, which is not read)"
    assert files.read() == ([given_up, "{}"], "")
    with (files.results / "buffer_a.jsonl").open("a") as file:
        file.write("\n{}\n")
    assert files.read() == ([], "")


def test_rows_past_a_runs_share_and_more_files_than_any_run_needs_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "MAX_ROWS", 6)
    monkeypatch.setattr(agent, "MAX_FILES", 4)
    files = files_of(tmp_path)
    for n in range(6):
        (files.results / f"buffer_{n}.jsonl").write_text("{}\n")
    lines, _ = files.read()
    assert lines[:2] == ["{}", "{}"]
    assert len(lines) == 4
    assert "buffer_2.jsonl goes on for more than 0 bytes" in lines[2]


def test_the_last_words_are_the_end_of_a_long_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "MAX_QUOTED", 10)
    files = files_of(tmp_path)
    files.output.write_text("x" * 1000 + "the end...")
    assert files.last_words() == "the end..."
    assert _RunFiles.last_words(files_of(_new(tmp_path))) == "it printed nothing"


def test_a_run_that_has_put_a_link_in_place_of_its_folders_has_nothing_else_removed(
    tmp_path: Path,
) -> None:
    files = files_of(tmp_path)
    other = _new(tmp_path)
    (other / "run_a").mkdir()
    (other / "run_a/kept").write_text("mine")
    (tmp_path / "runs").rename(tmp_path / "away")
    os.symlink(other, tmp_path / "runs")
    files.remove()
    assert (other / "run_a/kept").read_text() == "mine"
    (tmp_path / "runs").unlink()
    (tmp_path / "away").rename(tmp_path / "runs")
    files.remove()
    assert not (tmp_path / "runs/run_a").exists()


def _new(folder: Path) -> Path:
    made = folder / "other"
    made.mkdir()
    return made
