"""The services of the AWS door, each plugged into the rooms that do its work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from turnwise.agents import AgentCalls
from turnwise.control.agent_logs import AgentLogs
from turnwise.control.agents import Agents
from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.trails import Trails
from turnwise.control.browse import Browse
from turnwise.control.jobs import Jobs
from turnwise.control.logs import Logs
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.models.hubs import Hubs
from turnwise.control.models.model_files import ModelFiles
from turnwise.control.models.recipe_files import RecipeFiles
from turnwise.control.models.registry import Registry
from turnwise.control.objects.buckets import Buckets
from turnwise.control.pipelines.pipelines import Pipelines
from turnwise.domain.access import Account
from turnwise.domain.job import Job
from turnwise.ports import Clock, NewId, Resources
from turnwise.wire.aws.agents import agent_services
from turnwise.wire.aws.arns import JobArn
from turnwise.wire.aws.cloudtrail import cloudtrail
from turnwise.wire.aws.door import Answering, Modelled
from turnwise.wire.aws.iam import iam
from turnwise.wire.aws.logs import logs
from turnwise.wire.aws.s3.service import S3
from turnwise.wire.aws.sagemaker.artifacts import artifact_handlers
from turnwise.wire.aws.sagemaker.hub import HubRooms, dataset_uri, hub_handlers
from turnwise.wire.aws.sagemaker.jobs import JobRooms, job_handlers
from turnwise.wire.aws.sagemaker.mlflow_apps import MlflowApps, mlflow_handlers
from turnwise.wire.aws.sagemaker.model_packages import ModelPackageRooms, model_package_handlers
from turnwise.wire.aws.sagemaker.pipelines import (
    InsideJobs,
    describe_training_job,
    pipeline_handlers,
)
from turnwise.wire.aws.sagemaker.tags import Tags, checking, tag_handlers
from turnwise.wire.aws.service import AwsService
from turnwise.wire.aws.sts import sts


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """What the handlers call."""

    jobs: Jobs
    audit: AuditTrail
    trails: Trails
    logs: Logs
    browse: Browse
    resources: Resources
    buckets: Buckets
    clock: Clock
    new_id: NewId
    region: str
    account: Callable[[str], Awaitable[Account]]  # by its id
    pipelines: Pipelines
    mlflow: MlflowApps
    agents: Agents
    catalogue: Catalogue
    registry: Registry
    hubs: Hubs
    model_files: ModelFiles
    recipe_files: RecipeFiles
    agent_logs: AgentLogs
    agent_calls: AgentCalls


def sagemaker(rooms: Rooms) -> AwsService:
    """SageMaker's control plane: each noun brings its operations."""
    tags = Tags(rooms.resources, rooms.clock)

    async def job_arn(job: Job) -> str:
        number = (await rooms.account(job.account_id)).number
        return str(JobArn.of(job, rooms.region, number))

    jobs = JobRooms(
        jobs=rooms.jobs,
        browse=rooms.browse,
        resources=rooms.resources,
        catalogue=rooms.catalogue,
        agents=rooms.agents,
        tags=tags,
        clock=rooms.clock,
        job_arn=job_arn,
        dataset_uri=partial(dataset_uri, rooms.hubs),
        check_group=rooms.registry.group,
    )
    models = ModelPackageRooms(
        registry=rooms.registry, catalogue=rooms.catalogue, files=rooms.model_files, tags=tags
    )
    hub = HubRooms(
        hubs=rooms.hubs, catalogue=rooms.catalogue, recipes=rooms.recipe_files, tags=tags
    )
    handlers = {
        **tag_handlers(tags),
        **model_package_handlers(models),
        **hub_handlers(hub),
        **mlflow_handlers(rooms.mlflow, tags),
        **job_handlers(jobs),
        **pipeline_handlers(rooms.pipelines, tags),
        **artifact_handlers(rooms.resources, tags, rooms.clock),
        "DescribeTrainingJob": describe_training_job,
    }
    service = AwsService(name="sagemaker", handlers=checking(handlers))
    rooms.pipelines.plug(
        InsideJobs(
            service, rooms.jobs, account=rooms.account, region=rooms.region, new_id=rooms.new_id
        )
    )
    return service


def open_services(rooms: Rooms) -> list[Answering]:
    """All services, by the names that their clients sign for."""
    return [
        Modelled(sagemaker(rooms)),
        Modelled(sts()),
        Modelled(iam()),
        Modelled(cloudtrail(rooms.audit, rooms.trails, rooms.clock)),
        Modelled(logs(rooms.logs)),
        S3(rooms.buckets),
        *agent_services(rooms.agents, rooms.agent_logs, rooms.agent_calls, rooms.new_id),
    ]
