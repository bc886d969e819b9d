"""The services of the AWS door, each plugged into the rooms that do its work."""

from __future__ import annotations

from dataclasses import dataclass

from turnwise import errors
from turnwise.agents import AgentCalls
from turnwise.control.agent_logs import AgentLogs
from turnwise.control.agents import Agents
from turnwise.control.audit import AuditTrail
from turnwise.control.browse import Browse
from turnwise.control.buckets import Buckets
from turnwise.control.catalogue import Catalogue
from turnwise.control.jobs import Jobs
from turnwise.control.logs import Logs
from turnwise.control.trails import Trails
from turnwise.domain.access import Principal
from turnwise.ports import Clock, NewId, Resources
from turnwise.wire.aws.agentcore import (
    SIGNING_NAME,
    Runtimes,
    agentcore_control,
    agentcore_data,
)
from turnwise.wire.aws.cloudtrail import cloudtrail
from turnwise.wire.aws.door import Answering, Modelled, Planes
from turnwise.wire.aws.iam import iam
from turnwise.wire.aws.jobs import JobRooms, job_handlers
from turnwise.wire.aws.lambdas import Functions, lambdas
from turnwise.wire.aws.logs import logs
from turnwise.wire.aws.mlflow_apps import MlflowApps, mlflow_handlers
from turnwise.wire.aws.s3.service import S3
from turnwise.wire.aws.service import AwsService
from turnwise.wire.aws.sts import sts
from turnwise.wire.aws.tags import Tags, tag_handlers


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """What the handlers call."""

    url: str  # of this server, as clients reach it
    jobs: Jobs
    audit: AuditTrail
    trails: Trails
    logs: Logs
    browse: Browse
    resources: Resources
    buckets: Buckets
    clock: Clock
    new_id: NewId
    mlflow: MlflowApps
    catalogue: Catalogue
    agents: Agents
    agent_logs: AgentLogs
    agent_calls: AgentCalls


def sagemaker(rooms: Rooms) -> AwsService:
    """SageMaker's control plane: each noun brings its operations."""
    tags = Tags(rooms.resources, rooms.clock)
    jobs = JobRooms(
        jobs=rooms.jobs,
        browse=rooms.browse,
        resources=rooms.resources,
        catalogue=rooms.catalogue,
        agents=rooms.agents,
        tags=tags,
        clock=rooms.clock,
        dataset_uri=_no_data_sets,
        check_group=_any_group,
    )
    handlers = {
        **tag_handlers(tags),
        **mlflow_handlers(rooms.mlflow),
        **job_handlers(jobs),
    }
    return AwsService(name="sagemaker", handlers=handlers)


async def _no_data_sets(principal: Principal, arn: str) -> str:
    raise errors.NotFound("data set", arn)


async def _any_group(principal: Principal, name: str) -> None:
    """A job makes the groups that it registers models in."""


def open_services(rooms: Rooms) -> list[Answering]:
    """All services, by the names that their clients sign for."""
    return [
        Modelled(sagemaker(rooms)),
        Modelled(sts()),
        Modelled(iam()),
        Modelled(cloudtrail(rooms.audit, rooms.trails, rooms.clock)),
        Modelled(logs(rooms.logs)),
        S3(rooms.buckets),
        *agent_services(rooms),
    ]


def agent_services(rooms: Rooms) -> list[Answering]:
    """Lambda and Bedrock AgentCore, over the registered agents."""
    calls, logs = rooms.agent_calls, rooms.agent_logs
    functions = Functions(agents=rooms.agents, logs=logs, calls=calls, new_id=rooms.new_id)
    runtimes = Runtimes(agents=rooms.agents, logs=logs, calls=calls, new_id=rooms.new_id)
    return [
        Modelled(lambdas(functions)),
        Planes(
            Modelled(agentcore_control(runtimes), signing_name=SIGNING_NAME),
            Modelled(agentcore_data(runtimes), signing_name=SIGNING_NAME),
        ),
    ]
