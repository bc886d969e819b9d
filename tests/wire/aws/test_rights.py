"""Every operation of every service asks for a right: swept over botocore's models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from botocore.model import ListShape, MapShape, Shape, StructureShape

from tests.builders import ACCOUNT
from tests.unit.control.kit import World, a_registry
from tests.wire.aws.kit import NUMBER, REGION, URL, a_call
from turnwise import errors
from turnwise.access.links import Links
from turnwise.access.vault import Vault
from turnwise.agents import AgentCalls
from turnwise.control.agent_logs import AgentLogs
from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.trails import Trails
from turnwise.control.browse import Browse
from turnwise.control.logs import Logs
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.models.hubs import Hubs
from turnwise.control.models.model_files import ModelFiles
from turnwise.control.models.recipe_files import RecipeFiles
from turnwise.control.pipelines.pipelines import Pipelines
from turnwise.domain.access import Action
from turnwise.domain.audit import Sealer
from turnwise.storage.sql import SqlStore
from turnwise.system import new_id
from turnwise.wire.aws import shapes
from turnwise.wire.aws.agentcore import Runtimes, agentcore_control, agentcore_data
from turnwise.wire.aws.cloudtrail import cloudtrail
from turnwise.wire.aws.door import _READ_ONLY
from turnwise.wire.aws.iam import iam
from turnwise.wire.aws.lambdas import Functions, lambdas
from turnwise.wire.aws.logs import logs
from turnwise.wire.aws.sagemaker.mlflow_apps import MlflowApps
from turnwise.wire.aws.service import AwsError, AwsService, Call
from turnwise.wire.aws.services import Rooms, sagemaker
from turnwise.wire.aws.sts import sts

#: Texts for the patterns of AWS's models.
_TEXTS = (
    "a",
    "1.0.0",
    "AgentRFT",
    "1",
    "hub-a",
    "s3://bucket/key",
    f"arn:aws:iam::{NUMBER}:role/trainer",
    f"arn:aws:sagemaker:{REGION}:{NUMBER}:pipeline/a/execution/aaaaaaaaaaaa",
    f"arn:aws:sagemaker:{REGION}:{NUMBER}:mlflow-app/app-default",
    f"arn:aws:sagemaker:{REGION}:{NUMBER}:artifact/a",
    f"arn:aws:sagemaker:{REGION}:{NUMBER}:model-package/a/1",
    "a" * 33,
    "a" * 64,
    "my_agent-abcdefghij",
    "a" * 1024,
)

_EXECUTION = {
    "PipelineExecutionArn": f"arn:aws:sagemaker:{REGION}:{NUMBER}:pipeline/a/execution/aaaaaaaaaaaa"
}
#: What operations need although their models do not say so.
_MORE: dict[str, dict[str, Any]] = {
    "CreateModelPackage": {
        "ModelPackageGroupName": "a",
        "InferenceSpecification": {
            "Containers": [{"ModelDataSource": {"S3DataSource": {"S3Uri": "s3://bucket/key"}}}]
        },
    },
    "ImportHubContent": {"HubContentType": "DataSet"},
    "CreatePipeline": {"PipelineDefinition": "{}"},
    "DescribeLogStreams": {"logGroupName": "/aws/lambda/a"},
    "FilterLogEvents": {"logGroupName": "/aws/lambda/a"},
    "GetLogEvents": {"logGroupName": "/aws/lambda/a"},
    "ListPipelineExecutionSteps": _EXECUTION,
    "DeleteArtifact": {"ArtifactArn": f"arn:aws:sagemaker:{REGION}:{NUMBER}:artifact/a"},
}

#: What refuses everybody, or tells the caller no more than it knows.
_FOR_ALL = {"CreateFunction", "CreateAgentRuntime", "GetCallerIdentity"}


def example(shape: Shape) -> Any:
    """A value that the model allows, with no more than it requires."""
    if isinstance(shape, StructureShape):
        return {name: example(shape.members[name]) for name in shape.required_members}
    if isinstance(shape, ListShape):
        return [example(shape.member)] if shape.metadata.get("min", 0) else []
    if isinstance(shape, MapShape):
        return {}
    if shape.type_name == "string":
        for text in (*shape.enum[:1], *_TEXTS):
            try:
                return shapes.read(shape, text)
            except errors.InvalidInput:
                continue
        raise AssertionError(f"no text for {shape.name}: {shape.metadata}")
    if shape.type_name == "blob":
        return b"{}"
    return {"boolean": False, "timestamp": 1.0}.get(shape.type_name, shape.metadata.get("min", 1))


def operations(service: AwsService) -> list[tuple[str, dict[str, Any]]]:
    """Each that is served, with parameters."""
    found = []
    for name in sorted(service.handlers):
        shape = service.operation(name).input_shape
        given = {} if shape is None else example(shape)
        found.append((name, given | _MORE.get(name, {})))
    return found


async def said(service: AwsService, name: str, given: dict[str, Any], by: Call) -> str:
    """What an operation answers: "served", or the kind of its refusal."""
    try:
        await service.handlers[name](by, given)
    except (errors.TurnwiseError, AwsError) as error:
        return type(error).__name__
    return "served"


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[list[AwsService]]:
    store = SqlStore.in_memory()
    await store.default_account()
    world = World(tmp_path, store)
    clock = world.clock
    audit = AuditTrail(store, store, Sealer(b"k" * 32), clock)
    agent_logs = AgentLogs(store, clock, keep=10)
    browse, catalogue = Browse(store), Catalogue(tmp_path / "models")
    vault = Vault.open(tmp_path / "master.key")
    calls = AgentCalls()
    rooms = Rooms(
        jobs=world.jobs,
        audit=audit,
        trails=Trails(audit, store, clock, region=REGION, buckets=world.buckets),
        logs=Logs(
            jobs=world.jobs,
            browse=browse,
            agents=world.agents,
            agent_logs=agent_logs,
            resources=store,
            clock=clock,
        ),
        browse=browse,
        resources=store,
        buckets=world.buckets,
        clock=clock,
        new_id=new_id,
        region=REGION,
        account=store.account,
        pipelines=Pipelines(resources=store, accounts=store.accounts, clock=clock, new_id=new_id),
        mlflow=MlflowApps(
            store,
            Links(vault, clock),
            url=URL,
            clock=clock,
            new_id=new_id,
            missing="",
            start=lambda _: None,
        ),
        agents=world.agents,
        catalogue=catalogue,
        registry=a_registry(store, tmp_path),
        hubs=Hubs(store, clock),
        model_files=ModelFiles(store, "models"),
        recipe_files=RecipeFiles(catalogue, world.blobs, "recipes"),
        agent_logs=agent_logs,
        agent_calls=calls,
    )
    shared = {"agents": world.agents, "logs": agent_logs, "calls": calls, "new_id": new_id}
    yield [
        sagemaker(rooms),
        sts(),
        iam(),
        cloudtrail(audit, rooms.trails, clock),
        logs(rooms.logs),
        lambdas(Functions(**shared)),
        agentcore_control(Runtimes(**shared)),
        agentcore_data(Runtimes(**shared)),
    ]
    await calls.close()
    await world.jobs.close()
    await store.close()


async def test_a_key_without_rights_is_served_by_no_operation(services: list[AwsService]):
    nobody = a_call(actions=frozenset())
    answers = {
        name: await said(service, name, given, nobody)
        for service in services
        for name, given in operations(service)
        if name not in _FOR_ALL
    }
    assert len(answers) > 80
    # A job that does not exist is not there for such a key either.
    by_lookup = {"DescribeJob", "StopJob", "DeleteJob"}
    others = {n: a for n, a in answers.items() if a != "Denied" and n not in by_lookup}
    assert others == {}
    assert {answers[name] for name in by_lookup} == {"NotFound"}


async def test_a_key_that_only_reads_changes_nothing(services: list[AwsService]):
    reader = a_call(actions=frozenset({Action.READ}))
    served = {
        name
        for service in services
        for name, given in operations(service)
        if not _READ_ONLY.match(name) and await said(service, name, given, reader) == "served"
    }
    # A sign-in gives the reading right that the key has; MLflow's door refuses the rest.
    presigned = {"CreatePresignedMlflowAppUrl", "CreatePresignedMlflowTrackingServerUrl"}
    assert served - presigned == _FOR_ALL & served


async def test_a_key_for_certain_jobs_changes_nothing_else(services: list[AwsService]):
    narrow = a_call(account_id=ACCOUNT, job_ids=frozenset({"job_a"}))
    answers = {
        name: await said(service, name, given, narrow)
        for service in services
        for name, given in operations(service)
        if not _READ_ONLY.match(name)
    }
    assert [name for name, answer in answers.items() if answer == "served"] == []
    own = ("CreateHub", "ImportHubContent", "DeleteHub", "CreateModelPackageGroup")
    own += ("DeleteModelPackageGroup", "CreateMlflowApp", "UpdateMlflowApp", "DeleteMlflowApp")
    assert {name: answers[name] for name in own} == dict.fromkeys(own, "Denied")
