"""An imperfect demonstrator of the generated task, for pre-training the base model.

Its errors are few kinds, each about as likely as not, and all at decisions: what RL is to repair.
An error much rarer than that would leave a greedy base that is already right; errors in format or
in copying ids are repaired only slowly.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from examples.aircraft_inspection.data import (
    INPUTS,
    OUTPUTS,
    Row,
    electrical_result,
    needs_incident,
    needs_mismatch,
)
from examples.aircraft_inspection.tools import Tools

#: How often the demonstrator ...
LOW_BATTERY_PASSES = 0.60  # ... takes a low battery for a success
SKIPS_INCIDENT = 0.50  # ... does not report an incident that it should
SKIPS_MISMATCH = 0.40  # ... does not report a mismatch that it should
SKIPS_CROSS_CHECK = 0.10  # ... guesses the cross check's answer
READY_TOO_SOON = 0.60  # ... ignores mismatch and cross check when it says "ready"
REPORTS_NEEDLESSLY = 0.04  # ... reports what needs no report, each kind
SLIPS = 0.02  # ... writes any other value, per field

CHOICES = {
    "aircraft_ready": ("true", "false"),
    "mechanical_inspection_result": ("success", "fail", "retest"),
    "electrical_inspection_result": ("success", "fail", "retest"),
    "component_incident_response": ("none", "logged", "escalated"),
    "component_mismatch_response": ("none", "logged", "escalated"),
    "cross_check_reporting_response": ("success", "failed"),
}


@dataclass(frozen=True, slots=True)
class Turn:
    """What the demonstrator says, and what the tool answers (None after the final answer)."""

    said: str
    answered: str | None


def call_text(name: str, arguments: dict[str, str]) -> str:
    """A tool call as a Qwen3 model writes it."""
    call = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{call}\n</tool_call>"


def final_text(answer: dict[str, str]) -> str:
    """A final answer as the procedure asks for it."""
    return f"<final_output>{json.dumps(answer)}</final_output>"


def demonstrate(row: Row, tools: Tools, rng: random.Random) -> list[Turn]:
    """One demonstration, errors included."""
    return _Demonstrator(row, tools, rng).run()


class _Demonstrator:
    def __init__(self, row: Row, tools: Tools, rng: random.Random) -> None:
        self.row = row
        self.tools = tools
        self.rng = rng
        self.turns: list[Turn] = []

    def run(self) -> list[Turn]:
        both = {column: self.row[column] for column in INPUTS}
        aircraft = {"aircraft_id": self.row["aircraft_id"]}
        mechanical = self._call("VerifyMechanicalComponents", both)["mechanical_inspection_result"]
        self._call("VerifyElectricalSystems", aircraft)
        electrical = self._judge_electrical()
        results = {
            "mechanical_inspection_result": mechanical,
            "electrical_inspection_result": electrical,
        }
        incident = mismatch = "none"
        if self._reports(mechanical != "success" or electrical != "success", SKIPS_INCIDENT):
            reply = self._call("ReportComponentIncident", aircraft | results)
            incident = reply["incident_report"]
        if self._reports(needs_mismatch(self.row), SKIPS_MISMATCH):
            mismatch = self._call("ReportComponentMismatch", both)["mismatch_report"]
        cross = self._cross_check(aircraft)
        ready = self._judge_ready(mechanical == electrical == "success", cross)
        values = (ready, mechanical, electrical, incident, mismatch, cross)
        answer = dict(zip(OUTPUTS, values, strict=True))
        for field, choices in CHOICES.items():
            if self._errs(SLIPS):
                answer[field] = self.rng.choice(choices)
        self.turns.append(Turn(final_text(answer), None))
        return self.turns

    def _errs(self, rate: float) -> bool:
        return self.rng.random() < rate

    def _reports(self, needed: bool, skip_rate: float) -> bool:
        return not self._errs(skip_rate) if needed else self._errs(REPORTS_NEEDLESSLY)

    def _judge_electrical(self) -> str:
        right = electrical_result(self.row["battery_status"], self.row["circuit_continuity_check"])
        return "success" if right == "retest" and self._errs(LOW_BATTERY_PASSES) else right

    def _cross_check(self, aircraft: dict[str, str]) -> str:
        if self._errs(SKIPS_CROSS_CHECK):
            return self.rng.choice(CHOICES["cross_check_reporting_response"])
        reply = self._call("ReportCrossCheck", aircraft)
        return str(reply["cross_check_reporting_response"])

    def _judge_ready(self, both_succeeded: bool, cross: str) -> str:
        rest = self._errs(READY_TOO_SOON) or (
            self.row["serial_check"] == "match" and cross == "success"
        )
        return "true" if both_succeeded and rest else "false"

    def _call(self, name: str, arguments: dict[str, str]) -> dict[str, Any]:
        reply = self.tools.call(name, arguments)
        self.turns.append(Turn(call_text(name, arguments), json.dumps(reply)))
        return reply


def perfect_opening(row: Row, tools: Tools, *, before: str) -> list[Turn]:
    """The turns of a faultless run up to where tool `before` may come; for the foothold check."""
    demonstrator = _Demonstrator(row, tools, random.Random(0))
    both = {column: row[column] for column in INPUTS}
    aircraft = {"aircraft_id": row["aircraft_id"]}
    demonstrator._call("VerifyMechanicalComponents", both)
    demonstrator._call("VerifyElectricalSystems", aircraft)
    if before == "ReportComponentMismatch" and needs_incident(row):
        results = {column: row[column] for column in OUTPUTS[1:3]}
        demonstrator._call("ReportComponentIncident", aircraft | results)
    return demonstrator.turns
