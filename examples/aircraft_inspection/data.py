"""The task's tables: made from a seed, or read from any folder in SOP-Bench's format.

A folder holds `metadata.json` (name, input and output columns), `sop.txt` (the procedure),
`toolspecs.json` (the tools) and one `<split>_set_with_outputs.csv` per split. One line of a table
is one task: inputs, what the tools answer, and the expected outputs.

    python -m examples.aircraft_inspection.data --seed 0 --out data/     # make a folder
    python -m examples.aircraft_inspection.data --data FOLDER --out data/  # import one

Either way `data/` also gets `train.jsonl`, `validation.jsonl` and `test.jsonl`, the datasets of a
training job: a `prompt` beside the row's inputs.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, str]

NAME = "aircraft_inspection_generated"
SPLITS = ("train", "validation", "test")
SIZES = {"train": 1280, "validation": 64, "test": 256}

#: Values of one chunk of an id: "AC00" to "AC39". An aircraft's id has two chunks.
CHUNK_VALUES = 40

INPUTS = ("aircraft_id", "component_serial_number")
FOUND = (
    "serial_check",
    "battery_status",
    "circuit_continuity_check",
    "incident_report",
    "mismatch_report",
)
OUTPUTS = (
    "aircraft_ready",
    "mechanical_inspection_result",
    "electrical_inspection_result",
    "component_incident_response",
    "component_mismatch_response",
    "cross_check_reporting_response",
)

SOP = """\
Inspect the aircraft by this procedure.
1. Verify the mechanical components, then the electrical systems. The electrical result is fail if \
the circuit check is failure or the battery is critical, retest if the battery is low, else success.
2. Report a component incident only if one of the two results is not success.
3. Report a component mismatch only if the serial check says differs.
4. Report the cross check. The aircraft is ready (true) only if both results are success, the \
serials match and the cross check is success; else false.
5. Answer with a JSON object of the six fields in <final_output> tags. A report that was not made \
is none.
"""

_TOOLS = {
    "VerifyMechanicalComponents": ("Inspect a component.", INPUTS),
    "VerifyElectricalSystems": ("Check battery and circuit.", ("aircraft_id",)),
    "ReportComponentIncident": (
        "Report a failed inspection.",
        ("aircraft_id", "mechanical_inspection_result", "electrical_inspection_result"),
    ),
    "ReportComponentMismatch": ("Report a wrong serial number.", INPUTS),
    "ReportCrossCheck": ("Cross-check the records.", ("aircraft_id",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A family of tasks, as its folder says it. `tools` are in OpenAI's shape."""

    name: str
    sop: str
    tools: tuple[dict[str, Any], ...]
    input_columns: tuple[str, ...]
    output_columns: tuple[str, ...]
    splits: Mapping[str, tuple[Row, ...]]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all splits."""
        return tuple(row for rows in self.splits.values() for row in rows)


def user_prompt(row: Row, input_columns: Sequence[str]) -> str:
    """What the agent asks for: one line per input.

    >>> print(user_prompt({"aircraft_id": "AC17-AX05", "battery_status": "low"}, ["aircraft_id"]))
    aircraft_id: AC17-AX05
    """
    return "\n".join(f"{column}: {row[column]}" for column in input_columns)


# ── making the tables ─────────────────────────────────────────────────────────────────────────


def make_rows(seed: int) -> dict[str, list[Row]]:
    """All splits for a seed. No aircraft is in two of them."""
    aircraft = [(first, second) for first in range(CHUNK_VALUES) for second in range(CHUNK_VALUES)]
    rng = random.Random(f"{NAME}-{seed}")
    rng.shuffle(aircraft)
    rows = [_row(first, second, rng) for first, second in aircraft]
    split: dict[str, list[Row]] = {}
    start = 0
    for name, size in SIZES.items():
        split[name] = rows[start : start + size]
        start += size
    return split


def two_chunks(first: str, second: str, rng: random.Random) -> str:
    """A random id, such as "CS03-CX22"."""
    return f"{first}{rng.randrange(CHUNK_VALUES):02d}-{second}{rng.randrange(CHUNK_VALUES):02d}"


def _row(first: int, second: int, rng: random.Random) -> Row:
    found = {
        "aircraft_id": f"AC{first:02d}-AX{second:02d}",
        "component_serial_number": two_chunks("CS", "CX", rng),
        "mechanical_inspection_result": _draw(rng, success=0.7, fail=0.2, retest=0.1),
        "serial_check": _draw(rng, match=0.6, differs=0.4),
        "battery_status": _draw(rng, operational=0.6, low=0.3, critical=0.1),
        "circuit_continuity_check": _draw(rng, success=0.9, failure=0.1),
        # Known only to who calls the tool: an agent that does not call it must guess.
        "incident_report": _draw(rng, logged=0.5, escalated=0.5),
        "mismatch_report": _draw(rng, logged=0.5, escalated=0.5),
        "cross_check_reporting_response": _draw(rng, success=0.7, failed=0.3),
    }
    row = {**found, **expected(found)}
    return {column: row[column] for column in (*INPUTS, *FOUND, *OUTPUTS)}


def _draw(rng: random.Random, **weights: float) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def electrical_result(battery: str, circuit: str) -> str:
    """The procedure's rule.

    >>> electrical_result("low", "success")
    'retest'
    """
    if circuit == "failure" or battery == "critical":
        return "fail"
    return "retest" if battery == "low" else "success"


def needs_incident(row: Row) -> bool:
    """Whether the procedure asks for an incident report."""
    electrical = electrical_result(row["battery_status"], row["circuit_continuity_check"])
    return row["mechanical_inspection_result"] != "success" or electrical != "success"


def needs_mismatch(row: Row) -> bool:
    """Whether the procedure asks for a mismatch report."""
    return row["serial_check"] == "differs"


def expected(row: Row) -> dict[str, str]:
    """The right answer: the procedure applied to what the tools say."""
    incident, mismatch = needs_incident(row), needs_mismatch(row)
    cross = row["cross_check_reporting_response"]
    ready = not incident and not mismatch and cross == "success"
    return {
        "aircraft_ready": "true" if ready else "false",
        "mechanical_inspection_result": row["mechanical_inspection_result"],
        "electrical_inspection_result": electrical_result(
            row["battery_status"], row["circuit_continuity_check"]
        ),
        "component_incident_response": row["incident_report"] if incident else "none",
        "component_mismatch_response": row["mismatch_report"] if mismatch else "none",
        "cross_check_reporting_response": cross,
    }


def toolspecs() -> list[dict[str, Any]]:
    """The tools of the generated task, as `toolspecs.json` holds them."""
    return [
        {
            "toolSpec": {
                "name": name,
                "description": description,
                "inputSchema": {
                    "json": {
                        "type": "object",
                        "properties": {argument: {"type": "string"} for argument in arguments},
                        "required": list(arguments),
                    }
                },
            }
        }
        for name, (description, arguments) in _TOOLS.items()
    ]


def make_task(seed: int) -> Task:
    """The generated task for a seed."""
    return Task(
        name=NAME,
        sop=SOP.strip(),
        tools=tuple(_openai_tool(spec) for spec in toolspecs()),
        input_columns=INPUTS,
        output_columns=OUTPUTS,
        splits={split: tuple(rows) for split, rows in make_rows(seed).items()},
    )


def generate(seed: int, folder: Path) -> Task:
    """Write the folder for a seed."""
    task = make_task(seed)
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"input_columns": list(INPUTS), "output_columns": list(OUTPUTS)}
    _write_json(folder / "metadata.json", {"name": NAME, **columns})
    _write_json(folder / "toolspecs.json", toolspecs())
    (folder / "sop.txt").write_text(SOP, encoding="utf-8")
    for split, rows in task.splits.items():
        everything = (*INPUTS, *FOUND, *OUTPUTS)
        _write_csv(folder / f"{split}_set_with_outputs.csv", everything, rows)
        _write_csv(folder / f"{split}_set_without_outputs.csv", INPUTS, rows)
    return task


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# ── reading a folder ──────────────────────────────────────────────────────────────────────────


def load(folder: Path) -> Task:
    """Read a folder. Raises ValueError, naming the file, for one that is not in the format."""
    metadata = _read_json(folder / "metadata.json")
    try:
        name = metadata["name"]
        inputs, outputs = tuple(metadata["input_columns"]), tuple(metadata["output_columns"])
        tools = tuple(_openai_tool(spec) for spec in _read_json(folder / "toolspecs.json"))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder}: metadata.json or toolspecs.json lacks {error}") from error
    splits = {
        split: _read_csv(path, (*inputs, *outputs))
        for split in SPLITS
        if (path := folder / f"{split}_set_with_outputs.csv").exists()
    }
    if not splits:
        raise ValueError(f"{folder}: no test_set_with_outputs.csv")
    return Task(
        name=name,
        sop=(folder / "sop.txt").read_text(encoding="utf-8").strip(),
        tools=tools,
        input_columns=inputs,
        output_columns=outputs,
        splits=splits if len(splits) > 1 else _divide(next(iter(splits.values()))),
    )


def _openai_tool(spec: Mapping[str, Any]) -> dict[str, Any]:
    tool = spec["toolSpec"]
    return {
        "type": "function",
        "function": {
            "name": tool["name"],
            "description": tool["description"],
            "parameters": tool["inputSchema"]["json"],
        },
    }


def _read_json(path: Path) -> Any:
    if not path.exists():
        raise ValueError(f"{path.parent}: no {path.name}; is this a SOP-Bench folder?")
    return json.loads(path.read_text(encoding="utf-8"))


def _read_csv(path: Path, required: Sequence[str]) -> tuple[Row, ...]:
    """The rows of a table. An empty cell is the empty string, in tools' answers and expected."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, restval="")
        if missing := [c for c in required if c not in (reader.fieldnames or ())]:
            raise ValueError(f"{path}: no column {missing[0]!r}")
        return tuple(reader)


def _divide(rows: Sequence[Row]) -> dict[str, tuple[Row, ...]]:
    """Splits for a folder that has only one set: every tenth row in turn, 6 : 1 : 3."""
    kinds = ("train",) * 6 + ("validation",) + ("test",) * 3
    return {
        split: tuple(row for i, row in enumerate(rows) if kinds[i % 10] == split)
        for split in SPLITS
    }


# ── the job's datasets ────────────────────────────────────────────────────────────────────────


def write_datasets(task: Task, folder: Path) -> None:
    """Write one .jsonl per split: prompt and inputs, never the expected outputs."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in task.splits.items():
        records = (
            {
                "prompt": user_prompt(row, task.input_columns),
                **{column: row[column] for column in task.input_columns},
            }
            for row in rows
        )
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def import_folder(source: Path, folder: Path) -> Task:
    """Copy a folder's files beside its datasets."""
    task = load(source)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".txt", ".csv"):
            shutil.copyfile(path, folder / path.name)
    return task


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.aircraft_inspection.data")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="import this SOP-Bench folder instead")
    args = parser.parse_args()
    task = import_folder(args.data, args.out) if args.data else generate(args.seed, args.out)
    write_datasets(task, args.out)
    sizes = ", ".join(f"{split} {len(rows)}" for split, rows in task.splits.items())
    print(f"{task.name}: {sizes} -> {args.out}")


if __name__ == "__main__":
    main()
