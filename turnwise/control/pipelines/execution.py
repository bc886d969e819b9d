"""One execution of a pipeline, as a state machine. Pure.

    step:       Waiting -> Starting -> Executing -> Succeeded | Failed | Stopped
                              |            +-> Stopping -+
                              +-> (no room for its job: stays here)
    execution:  Executing -> Succeeded | Failed        Executing -> Stopping -> Stopped

A step begins when all it depends on has succeeded. After a failure nothing more begins, and the
execution fails once what is under way has ended.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from turnwise.control.pipelines.definition import Definition, Step, StepKind

#: As many steps at once as AWS runs unless it is told otherwise.
MAX_PARALLEL = 200
#: Characters of a reason that a step, and an execution, may have.
MAX_REASON = 1024


class ExecutionStatus(StrEnum):
    """Where an execution stands."""

    EXECUTING = "Executing"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    FAILED = "Failed"
    SUCCEEDED = "Succeeded"

    @property
    def is_final(self) -> bool:
        """Whether nothing happens any more."""
        return self not in (ExecutionStatus.EXECUTING, ExecutionStatus.STOPPING)


class StepStatus(StrEnum):
    """Where a step stands; one that is Waiting has not begun and is not shown."""

    WAITING = "Waiting"
    STARTING = "Starting"
    EXECUTING = "Executing"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    FAILED = "Failed"
    SUCCEEDED = "Succeeded"

    @property
    def is_active(self) -> bool:
        """Whether it has begun and not ended."""
        return self in (StepStatus.STARTING, StepStatus.EXECUTING, StepStatus.STOPPING)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """Where one step stands. `number` counts the steps in the order in which they began.

    `category` and `job` name the job of a Job step, from before it is created: whoever goes on
    after a crash finds it, or creates it under the same name.
    """

    status: StepStatus = StepStatus.WAITING
    number: int = 0
    category: str = ""
    job: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One execution with the definition that it was started with.

    `values` is what `Execution.` gets, `parameters` what `Parameters.` does.
    """

    execution_id: str
    pipeline: str
    definition: str
    steps: Mapping[str, StepState]
    version: int = 1
    values: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    role_arn: str = ""
    display_name: str = ""
    description: str = ""
    token: str = ""
    max_parallel: int = MAX_PARALLEL
    status: ExecutionStatus = ExecutionStatus.EXECUTING
    failure: str = ""
    created_at: float = 0.0
    updated_at: float = 0.0

    @property
    def begun(self) -> list[tuple[str, StepState]]:
        """The steps that have begun, in that order."""
        begun = [item for item in self.steps.items() if item[1].number]
        return sorted(begun, key=lambda item: item[1].number)


def as_body(execution: Execution) -> dict[str, Any]:
    """The execution as JSON."""
    body: dict[str, Any] = msgspec.to_builtins(execution)
    return body


def from_body(body: Mapping[str, Any]) -> Execution:
    """The execution that was kept."""
    execution: Execution = msgspec.convert(body, Execution)
    return execution


def job_name(execution_id: str, step: str) -> str:
    """The name of a step's job: the same at every try, another one for every step and execution.

    >>> job_name("abcdefghijkl", "EvaluateBaseModel")
    'pipelines-abcdefghijkl-EvaluateBaseModel-btqybl'
    """
    digest = int(hashlib.sha256(f"{execution_id}/{step}".encode()).hexdigest(), 16)
    tail = "".join(chr(ord("a") + digest // 26**place % 26) for place in range(6))
    words = "-".join(part for part in step[:30].replace("_", "-").split("-") if part)
    return "-".join(part for part in ("pipelines", execution_id, words, tail) if part)


def ready(execution: Execution, definition: Definition) -> list[Step]:
    """The steps that may begin now, in the definition's order."""
    states = execution.steps
    if execution.status is not ExecutionStatus.EXECUTING or went_wrong(execution):
        return []
    active = sum(state.status.is_active for state in states.values())
    may = [
        step
        for step in definition.steps
        if states[step.name].status is StepStatus.WAITING
        and all(states[name].status is StepStatus.SUCCEEDED for name in step.depends_on)
    ]
    return may[: max(0, execution.max_parallel - active)]


def begin(execution: Execution, step: Step, now: float) -> Execution:
    """A step that is ready, begun. A Job step gets its job's name."""
    number = 1 + max(state.number for state in execution.steps.values())
    state = StepState(
        status=StepStatus.STARTING,
        number=number,
        job=job_name(execution.execution_id, step.name) if step.kind is StepKind.JOB else "",
        started_at=now,
    )
    return _with(execution, step.name, state)


def change(execution: Execution, name: str, **changes: Any) -> Execution:
    """A step with some of its state changed."""
    return _with(execution, name, dataclasses.replace(execution.steps[name], **changes))


def end(
    execution: Execution, name: str, status: StepStatus, now: float, reason: str = ""
) -> Execution:
    """A step, ended."""
    return change(execution, name, status=status, ended_at=now, failure=reason[:MAX_REASON])


def stop(execution: Execution) -> Execution:
    """The execution asked to end; one that has ended stays as it is."""
    if execution.status is not ExecutionStatus.EXECUTING:
        return execution
    return dataclasses.replace(execution, status=ExecutionStatus.STOPPING)


def settle(execution: Execution) -> Execution:
    """The execution with its own status as its steps' imply."""
    states = execution.steps.values()
    if execution.status.is_final or any(state.status.is_active for state in states):
        return execution
    if all(state.status is StepStatus.SUCCEEDED for state in states):
        return dataclasses.replace(execution, status=ExecutionStatus.SUCCEEDED)
    if execution.status is ExecutionStatus.STOPPING:
        return dataclasses.replace(execution, status=ExecutionStatus.STOPPED)
    if wrong := went_wrong(execution):
        failure = "; ".join(f"step {name}: {execution.steps[name].failure}" for name in wrong)
        return dataclasses.replace(
            execution, status=ExecutionStatus.FAILED, failure=failure[:MAX_REASON]
        )
    return execution


def went_wrong(execution: Execution) -> list[str]:
    """The steps that have ended without success, in the order in which they began."""
    ends = (StepStatus.FAILED, StepStatus.STOPPED)
    return [name for name, state in execution.begun if state.status in ends]


def _with(execution: Execution, name: str, state: StepState) -> Execution:
    return dataclasses.replace(execution, steps={**execution.steps, name: state})
