from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from examples.aircraft_inspection import data


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_seed_gives_the_same_files_every_time_and_another_seed_other_rows(tmp_path: Path) -> None:
    data.generate(7, tmp_path / "once")
    data.generate(7, tmp_path / "again")
    data.generate(8, tmp_path / "other")
    once, again, other = (folder_bytes(tmp_path / name) for name in ("once", "again", "other"))
    assert once == again
    assert {name for name in once if once[name] != other[name]} == {
        f"{split}_set_{kind}_outputs.csv" for split in data.SPLITS for kind in ("with", "without")
    }


def test_a_folder_is_in_sop_benchs_format(tmp_path: Path) -> None:
    data.generate(0, tmp_path)
    assert json.loads((tmp_path / "metadata.json").read_text()) == {
        "name": "aircraft_inspection_generated",
        "input_columns": ["aircraft_id", "component_serial_number"],
        "output_columns": list(data.OUTPUTS),
    }
    [mechanical, *_] = json.loads((tmp_path / "toolspecs.json").read_text())
    assert mechanical["toolSpec"] == {
        "name": "VerifyMechanicalComponents",
        "description": "Inspect a component.",
        "inputSchema": {
            "json": {
                "type": "object",
                "properties": {
                    "aircraft_id": {"type": "string"},
                    "component_serial_number": {"type": "string"},
                },
                "required": ["aircraft_id", "component_serial_number"],
            }
        },
    }
    with (tmp_path / "test_set_with_outputs.csv").open() as file:
        assert csv.DictReader(file).fieldnames == [*data.INPUTS, *data.FOUND, *data.OUTPUTS]
    with (tmp_path / "test_set_without_outputs.csv").open() as file:
        assert csv.DictReader(file).fieldnames == [*data.INPUTS]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    made = data.generate(3, tmp_path)
    assert data.load(tmp_path) == made


def test_no_aircraft_is_in_two_splits() -> None:
    splits = {
        split: {row["aircraft_id"] for row in rows} for split, rows in data.make_rows(0).items()
    }
    assert {split: len(ids) for split, ids in splits.items()} == data.SIZES
    assert len(set.union(*splits.values())) == sum(data.SIZES.values())


def test_the_expected_outputs_follow_the_procedure() -> None:
    row = {
        "mechanical_inspection_result": "success",
        "serial_check": "differs",
        "battery_status": "low",
        "circuit_continuity_check": "success",
        "incident_report": "escalated",
        "mismatch_report": "logged",
        "cross_check_reporting_response": "success",
    }
    assert data.expected(row) == {
        "aircraft_ready": "false",
        "mechanical_inspection_result": "success",
        "electrical_inspection_result": "retest",
        "component_incident_response": "escalated",
        "component_mismatch_response": "logged",
        "cross_check_reporting_response": "success",
    }
    assert data.expected(row | {"serial_check": "match", "battery_status": "operational"}) == {
        "aircraft_ready": "true",
        "mechanical_inspection_result": "success",
        "electrical_inspection_result": "success",
        "component_incident_response": "none",
        "component_mismatch_response": "none",
        "cross_check_reporting_response": "success",
    }


@pytest.mark.parametrize(
    ("battery", "circuit", "result"),
    [
        ("operational", "success", "success"),
        ("low", "success", "retest"),
        ("low", "failure", "fail"),
        ("critical", "success", "fail"),
        ("operational", "failure", "fail"),
    ],
)
def test_the_electrical_result_is_judged_from_battery_and_circuit(
    battery: str, circuit: str, result: str
) -> None:
    assert data.electrical_result(battery, circuit) == result


def test_the_datasets_hold_prompt_and_inputs_but_no_outputs(tmp_path: Path) -> None:
    task = data.make_task(0)
    data.write_datasets(task, tmp_path)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    row = task.splits["train"][0]
    aircraft, serial = row["aircraft_id"], row["component_serial_number"]
    assert len(lines) == 1280
    assert json.loads(lines[0]) == {
        "prompt": f"aircraft_id: {aircraft}\ncomponent_serial_number: {serial}",
        "aircraft_id": aircraft,
        "component_serial_number": serial,
    }


def write_folder(folder: Path, *, rows: int) -> None:
    """A folder with a test set only, as SOP-Bench's are."""
    metadata = {"name": "aircraft_inspection", "input_columns": ["id"], "output_columns": ["out"]}
    folder.mkdir()
    (folder / "metadata.json").write_text(json.dumps(metadata))
    (folder / "toolspecs.json").write_text("[]")
    (folder / "sop.txt").write_text("Do it.\n")
    lines = [f"{n},{'' if n == 1 else 'done'}" for n in range(rows)]
    (folder / "test_set_with_outputs.csv").write_text("\n".join(["id,out", *lines]) + "\n")


def test_a_folder_with_one_set_is_divided_and_its_empty_cells_are_empty_strings(
    tmp_path: Path,
) -> None:
    write_folder(tmp_path / "foreign", rows=20)
    task = data.import_folder(tmp_path / "foreign", tmp_path / "imported")
    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 12,
        "validation": 2,
        "test": 6,
    }
    assert sorted(int(row["id"]) for row in task.rows) == list(range(20))
    assert task.splits["train"][1] == {"id": "1", "out": ""}
    assert data.load(tmp_path / "imported") == task


def test_a_folder_in_another_format_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no metadata\.json; is this a SOP-Bench folder\?"):
        data.load(tmp_path)
    folder = tmp_path / "foreign"
    write_folder(folder, rows=1)
    (folder / "test_set_with_outputs.csv").write_text("id\n1\n")
    with pytest.raises(ValueError, match=r"test_set_with_outputs\.csv: no column 'out'"):
        data.load(folder)
    (folder / "test_set_with_outputs.csv").unlink()
    with pytest.raises(ValueError, match=r"no test_set_with_outputs\.csv"):
        data.load(folder)
    (folder / "metadata.json").write_text('{"name": "x", "input_columns": []}')
    with pytest.raises(
        ValueError, match=r"metadata\.json or toolspecs\.json lacks 'output_columns'"
    ):
        data.load(folder)


def test_the_command_makes_or_imports_a_folder_with_its_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, imported = tmp_path / "made", tmp_path / "imported"
    monkeypatch.setattr("sys.argv", ["data", "--seed", "5", "--out", str(made)])
    data.main()
    monkeypatch.setattr("sys.argv", ["data", "--data", str(made), "--out", str(imported)])
    data.main()
    assert "train 1280, validation 64, test 256" in capsys.readouterr().out
    assert folder_bytes(imported) == folder_bytes(made)
