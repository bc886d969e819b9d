from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from examples.aircraft_inspection.data import Task, make_task
from examples.aircraft_inspection.tools import Tools

ROW = {
    "aircraft_id": "AC17-AX05",
    "component_serial_number": "CS03-CX22",
    "serial_check": "differs",
    "battery_status": "low",
    "circuit_continuity_check": "success",
    "incident_report": "escalated",
    "mismatch_report": "logged",
    "aircraft_ready": "false",
    "mechanical_inspection_result": "fail",
    "electrical_inspection_result": "retest",
    "component_incident_response": "escalated",
    "component_mismatch_response": "logged",
    "cross_check_reporting_response": "success",
}
AIRCRAFT = {"aircraft_id": "AC17-AX05"}
COMPONENT = {"component_serial_number": "CS03-CX22"}
RESULTS = {"mechanical_inspection_result": "fail", "electrical_inspection_result": "retest"}


def task(**cells: str) -> Task:
    return replace(make_task(0), splits={"test": (ROW | cells,)})


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        (
            "VerifyMechanicalComponents",
            AIRCRAFT | COMPONENT,
            {"mechanical_inspection_result": "fail", "serial_check": "differs"},
        ),
        (
            "VerifyElectricalSystems",
            AIRCRAFT,
            {"battery_status": "low", "circuit_continuity_check": "success"},
        ),
        ("ReportComponentIncident", AIRCRAFT | RESULTS, {"incident_report": "escalated"}),
        ("ReportComponentMismatch", AIRCRAFT | COMPONENT, {"mismatch_report": "logged"}),
        ("ReportCrossCheck", AIRCRAFT, {"cross_check_reporting_response": "success"}),
    ],
)
def test_a_tool_returns_its_columns_of_the_row(
    name: str, arguments: dict[str, str], answer: dict[str, str]
) -> None:
    assert Tools(task()).call(name, arguments) == answer


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("VerifyElectricalSystems", {"aircraft_id": "AC00-AX00"}, "not found"),
        (
            "ReportComponentMismatch",
            AIRCRAFT | {"component_serial_number": "CS00-CX00"},
            "not found",
        ),
        ("VerifyElectricalSystems", {"aircraft_id": 17}, "not found"),
        (
            "ReportComponentMismatch",
            AIRCRAFT,
            "missing argument component_serial_number",
        ),
        ("ReportCrossCheck", AIRCRAFT | {"when": "now"}, "unknown argument when"),
        ("ReportCrossCheck", None, "arguments must be a JSON object"),
        ("ReportCrossCheck", ["AC17-AX05"], "arguments must be a JSON object"),
        ("FlyAway", AIRCRAFT, "no tool FlyAway"),
    ],
)
def test_a_bad_call_is_answered_with_what_is_wrong(name: str, arguments: Any, error: str) -> None:
    assert Tools(task()).call(name, arguments) == {"error": error}


def test_pythons_booleans_in_a_table_are_json_booleans_and_found_as_either() -> None:
    tools = Tools(task(mismatch_report="True", component_serial_number="False"))
    answer = {"mismatch_report": True}
    for serial in ("False", False):
        arguments = AIRCRAFT | {"component_serial_number": serial}
        assert tools.call("ReportComponentMismatch", arguments) == answer


def test_a_task_that_is_not_in_the_map_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"'walking' is not in tool_map\.json \(known: aircraft_"):
        Tools(replace(task(), name="walking"))
    with pytest.raises(ValueError, match="customer_service: tool 'VerifyMechanicalComponents'"):
        Tools(replace(task(), name="customer_service"))
