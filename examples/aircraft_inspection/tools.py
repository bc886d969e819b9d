"""Tools that answer from the tables, the same answer every time.

Which arguments find the row, and which columns come back, is not in SOP-Bench's files; it stands
in `tool_map.json`, per task family.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.aircraft_inspection.data import Row, Task

TOOL_MAP = Path(__file__).with_name("tool_map.json")


def family(name: str) -> Mapping[str, Any]:
    """The entry of a task family in `tool_map.json`. Raises ValueError if there is none."""
    families = json.loads(TOOL_MAP.read_text(encoding="utf-8"))
    if name not in families:
        known = ", ".join(sorted(families))
        raise ValueError(f"{name!r} is not in {TOOL_MAP.name} (known: {known}); add its tools")
    entry: Mapping[str, Any] = families[name]
    return entry


@dataclass(frozen=True, slots=True)
class Lookup:
    """One tool: the arguments that find its row, and the columns that it returns."""

    arguments: frozenset[str]
    required: frozenset[str]
    ids: tuple[str, ...]
    returns: tuple[str, ...]
    rows: Mapping[tuple[str, ...], Row]

    def __call__(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The row's columns, or what is wrong with the call."""
        if missing := sorted(self.required - arguments.keys()):
            return {"error": f"missing argument {missing[0]}"}
        if unknown := sorted(arguments.keys() - self.arguments):
            return {"error": f"unknown argument {unknown[0]}"}
        row = self.rows.get(tuple(cell(arguments.get(column, "")) for column in self.ids))
        if row is None:
            return {"error": "not found"}
        return {column: typed(row[column]) for column in self.returns}


class Tools:
    """All tools of a task."""

    def __init__(self, task: Task) -> None:
        """Raises ValueError for a tool without an entry in the map."""
        entries = family(task.name)["tools"]
        self._lookups: dict[str, Lookup] = {}
        for tool in task.tools:
            function = tool["function"]
            if function["name"] not in entries:
                raise ValueError(f"{task.name}: tool {function['name']!r} is not in the map")
            self._lookups[function["name"]] = _lookup(
                function["parameters"], entries[function["name"]], task.rows
            )

    def call(self, name: str, arguments: object) -> dict[str, Any]:
        """Answer a call. A bad call is answered with {"error": ...}, for the model to read."""
        lookup = self._lookups.get(name)
        if lookup is None:
            return {"error": f"no tool {name}"}
        if not isinstance(arguments, dict):
            return {"error": "arguments must be a JSON object"}
        return lookup(arguments)


def _lookup(
    schema: Mapping[str, Any], entry: Mapping[str, list[str]], rows: tuple[Row, ...]
) -> Lookup:
    ids = tuple(entry["ids"])
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in ids), row)
    return Lookup(
        arguments=frozenset(schema["properties"]),
        required=frozenset(schema.get("required", ())),
        ids=ids,
        returns=tuple(entry["returns"]),
        rows=found,
    )


def cell(value: object) -> str:
    """An argument as a table's cell would hold it.

    >>> cell(True), cell("AC17-AX05"), cell(3)
    ('True', 'AC17-AX05', '3')
    """
    return value if isinstance(value, str) else str(value)


def typed(text: str) -> str | bool:
    """A cell as a tool returns it: Python's True and False are JSON booleans, the rest is text."""
    return {"True": True, "False": False}.get(text, text)
