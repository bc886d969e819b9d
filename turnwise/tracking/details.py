"""Where a job is to be found in its account's MLflow, kept as a resource of the job's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from turnwise import errors
from turnwise.domain.resource import Resource
from turnwise.ports import Resources

#: The kind of the resource; its name is the job's id.
KIND = "mlflow-run"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A job's run in MLflow, and how far the event log has been told there.

    Everything up to event `told` is in the run, and every chosen rollout up to event `traced` has
    its trace. `share` is that of the rollouts without a fault that are traced.
    """

    experiment: str
    experiment_id: str
    run_name: str
    run_id: str
    share: float = 1.0
    told: int = 0
    traced: int = 0


async def run_state(resources: Resources, account_id: str, job_id: str) -> RunState | None:
    """What is stored of a job's run; None before MLflow has one."""
    try:
        found = await resources.resource(account_id, KIND, job_id)
    except errors.NotFound:
        return None
    return RunState(**found.body)


async def save_run_state(
    resources: Resources, account_id: str, job_id: str, state: RunState
) -> None:
    """Keep it, in place of what was there."""
    try:
        await change_run_state(resources, account_id, job_id, state)
    except errors.NotFound:
        await resources.create_resource(_resource(account_id, job_id, state))


async def change_run_state(
    resources: Resources, account_id: str, job_id: str, state: RunState
) -> None:
    """Replace what was there. Raises `NotFound`: it goes with its job."""
    await resources.change_resource(_resource(account_id, job_id, state))


def _resource(account_id: str, job_id: str, state: RunState) -> Resource:
    return Resource(account_id=account_id, kind=KIND, name=job_id, body=asdict(state))


async def mlflow_details(
    resources: Resources, account_id: str, job_id: str
) -> Mapping[str, str] | None:
    """AWS's `MlflowDetails` of a job: ExperimentName, ExperimentId, RunName, RunId.

    None where the job is not tracked, or MLflow has not been reached since it was created.
    """
    state = await run_state(resources, account_id, job_id)
    if state is None:
        return None
    return {
        "ExperimentName": state.experiment,
        "ExperimentId": state.experiment_id,
        "RunName": state.run_name,
        "RunId": state.run_id,
    }
