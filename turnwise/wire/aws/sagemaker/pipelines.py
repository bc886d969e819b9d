"""Pipelines and their executions, as SageMaker's clients call them: decode, call, encode."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar

from turnwise import errors
from turnwise.control.jobs import Jobs
from turnwise.control.pipelines.definition import StepKind, parse_definition
from turnwise.control.pipelines.execution import Execution, StepState
from turnwise.control.pipelines.pipelines import Pipeline, Pipelines, Start, driver
from turnwise.domain.access import Account, Action
from turnwise.domain.job import JobKind
from turnwise.ports import NewId
from turnwise.wire.aws import shapes
from turnwise.wire.aws.paging import in_time, page
from turnwise.wire.aws.sagemaker.tags import Tags
from turnwise.wire.aws.service import AwsError, AwsService, Call, Handler, Json

Item = TypeVar("Item")

_EXECUTION = re.compile(r"pipeline/(?P<pipeline>[^/]+)/execution/(?P<execution>[^/]+)")


def pipeline_handlers(pipelines: Pipelines, tags: Tags) -> dict[str, Handler]:
    """Pipelines, their executions, and the steps of these."""
    handlers = _pipeline_operations(pipelines, tags) | _execution_operations(pipelines)
    return {name: _conflicting(handler) for name, handler in handlers.items()}


def _pipeline_operations(pipelines: Pipelines, tags: Tags) -> dict[str, Handler]:
    async def create(call: Call, given: Json) -> Json:
        """The definition comes with the call; its steps are of type Job or Lineage."""
        _refuse(given, "PipelineDefinitionS3Location", "PipelineVersionAliases")
        pipeline = Pipeline(
            name=given["PipelineName"],
            definition=_definition(given),
            token=given["ClientRequestToken"],
            **_changes(given),
        )
        try:
            pipeline, is_new = await pipelines.create(call.principal, pipeline)
        except errors.Conflict as error:
            # So that the SDK's create-or-update goes on to the update.
            raise AwsError("ValidationException", str(error)) from None
        arn = _pipeline_arn(call, pipeline.name)
        if is_new:
            await tags.put(call, arn, given.get("Tags", []))
        return {"PipelineArn": arn}

    async def update(call: Call, given: Json) -> Json:
        """A new definition; executions under way keep theirs."""
        _refuse(given, "PipelineDefinitionS3Location", "PipelineVersionAliases")
        changes = _changes(given)
        if "PipelineDefinition" in given:
            changes["definition"] = given["PipelineDefinition"]
        changed = await pipelines.update(call.principal, given["PipelineName"], **changes)
        arn = _pipeline_arn(call, changed.name)
        return {"PipelineArn": arn, "PipelineVersionId": changed.version}

    async def describe(call: Call, given: Json) -> Json:
        """The newest version."""
        _refuse(given, "PipelineVersionAlias")
        pipeline = await pipelines.describe(call.principal, _name(call, given["PipelineName"]))
        _check_version(pipeline, given)
        return _pipeline_summary(call, pipeline) | {
            "PipelineDefinition": pipeline.definition,
            "PipelineStatus": "Active",
            "LastRunTime": pipeline.last_run_at,
            "ParallelismConfiguration": {"MaxParallelExecutionSteps": pipeline.max_parallel},
        }

    async def listed(call: Call, given: Json) -> Json:
        """The account's pipelines."""
        found = await pipelines.list(call.principal, prefix=given.get("PipelineNamePrefix", ""))
        by_name = {one.name: one for one in _created_within(found, given)}
        names = list(by_name)
        if given.get("SortBy") == "Name":
            names.sort()
        shown, token = page(_ordered(names, given), given)
        summaries = [
            _pipeline_summary(call, by_name[name])
            | {"LastExecutionTime": by_name[name].last_run_at}
            for name in shown
        ]
        return {"PipelineSummaries": summaries, "NextToken": token}

    async def delete(call: Call, given: Json) -> Json:
        """With its executions, none of which may be under way; their jobs stay."""
        pipeline = await pipelines.delete(call.principal, given["PipelineName"])
        arn = _pipeline_arn(call, pipeline.name)
        await tags.drop(call, arn)
        return {"PipelineArn": arn}

    return {
        "CreatePipeline": create,
        "UpdatePipeline": update,
        "DescribePipeline": describe,
        "ListPipelines": listed,
        "DeletePipeline": delete,
    }


def _execution_operations(pipelines: Pipelines) -> dict[str, Handler]:
    async def start(call: Call, given: Json) -> Json:
        """Runs the definition as it is now. No selective execution."""
        _refuse(given, "SelectiveExecutionConfig", "PipelineVersionAlias", "MlflowExperimentName")
        name = _name(call, given["PipelineName"])
        if "PipelineVersionId" in given:
            _check_version(await pipelines.describe(call.principal, name), given)
        execution = await pipelines.start(
            call.principal,
            name,
            Start(
                token=given["ClientRequestToken"],
                parameters={
                    one["Name"]: one["Value"] for one in given.get("PipelineParameters", [])
                },
                display_name=given.get("PipelineExecutionDisplayName", ""),
                description=given.get("PipelineExecutionDescription", ""),
                role_arn=given.get("RoleArn", ""),
                max_parallel=_max_parallel(given),
            ),
            lambda execution_id: {
                "PipelineArn": _pipeline_arn(call, name),
                "PipelineExecutionArn": _execution_arn(call, name, execution_id),
            },
        )
        return {"PipelineExecutionArn": _execution_arn(call, name, execution.execution_id)}

    async def describe(call: Call, given: Json) -> Json:
        """An execution, with its failure's reason."""
        execution = await _find(pipelines, call, given)
        return {
            "PipelineArn": _pipeline_arn(call, execution.pipeline),
            "PipelineExecutionArn": given["PipelineExecutionArn"],
            "PipelineExecutionDisplayName": execution.display_name or None,
            "PipelineExecutionStatus": execution.status.value,
            "PipelineExecutionDescription": execution.description or None,
            "FailureReason": execution.failure or None,
            "CreationTime": execution.created_at,
            "LastModifiedTime": execution.updated_at,
            "ParallelismConfiguration": {"MaxParallelExecutionSteps": execution.max_parallel},
            "PipelineVersionId": execution.version,
            "MLflowConfig": _mlflow_config(execution),
            "RoleArn": execution.role_arn or None,
        }

    async def listed(call: Call, given: Json) -> Json:
        """A pipeline's executions."""
        _refuse(given, "PipelineVersionAlias")
        name = _name(call, given["PipelineName"])
        found = await pipelines.executions(call.principal, name)
        by_id = {one.execution_id: one for one in _created_within(found, given)}
        ids = list(by_id)
        if given.get("SortBy") == "PipelineExecutionArn":
            ids.sort()
        shown, token = page(_ordered(ids, given), given)
        summaries = [
            {
                "PipelineExecutionArn": _execution_arn(call, name, execution_id),
                "StartTime": by_id[execution_id].created_at,
                "PipelineExecutionStatus": by_id[execution_id].status.value,
                "PipelineExecutionDescription": by_id[execution_id].description or None,
                "PipelineExecutionDisplayName": by_id[execution_id].display_name or None,
                "PipelineExecutionFailureReason": by_id[execution_id].failure or None,
            }
            for execution_id in shown
        ]
        return {"PipelineExecutionSummaries": summaries, "NextToken": token}

    async def steps(call: Call, given: Json) -> Json:
        """The steps that have begun, with the ARNs of their jobs."""
        execution = await _find(pipelines, call, given)
        names = _ordered([name for name, _ in execution.begun], given)
        shown, token = page(names, given)
        return {
            "PipelineExecutionSteps": [_step(call, execution, name) for name in shown],
            "NextToken": token,
        }

    async def stop(call: Call, given: Json) -> Json:
        """Stops its jobs as well."""
        execution = await _find(pipelines, call, given)
        await pipelines.stop(call.principal, execution.execution_id)
        return {"PipelineExecutionArn": given["PipelineExecutionArn"]}

    async def definition(call: Call, given: Json) -> Json:
        """The definition that the execution began with."""
        execution = await _find(pipelines, call, given)
        return {
            "PipelineDefinition": execution.definition,
            "CreationTime": execution.created_at,
        }

    async def parameters(call: Call, given: Json) -> Json:
        """The values that the execution began with."""
        execution = await _find(pipelines, call, given)
        shown, token = page(list(execution.parameters), given)
        values = [
            {"Name": name, "Value": _parameter_text(execution.parameters[name])} for name in shown
        ]
        return {"PipelineParameters": values, "NextToken": token}

    return {
        "StartPipelineExecution": start,
        "DescribePipelineExecution": describe,
        "ListPipelineExecutions": listed,
        "ListPipelineExecutionSteps": steps,
        "StopPipelineExecution": stop,
        "DescribePipelineDefinitionForExecution": definition,
        "ListPipelineParametersForExecution": parameters,
    }


async def describe_training_job(call: Call, given: Json) -> Json:
    """There are none here; the SDK's evaluator asks for some by the name of a job."""
    call.principal.require(Action.READ)
    raise AwsError("ResourceNotFound", f"training job {given['TrainingJobName']!r} does not exist")


# ── decoding ──────────────────────────────────────────────────────────────────────────────────


def _conflicting(handler: Handler) -> Handler:
    """A handler whose conflicts have the code that the model gives them for pipelines."""

    @wraps(handler)
    async def answer(call: Call, given: Json) -> Json:
        try:
            return await handler(call, given)
        except errors.Conflict as error:
            raise AwsError("ConflictException", str(error)) from None

    return answer


def _refuse(given: Json, *names: str) -> None:
    for name in names:
        if given.get(name):
            raise errors.InvalidInput(
                name, given[name], "is not served here", remedy="leave it out"
            )


def _definition(given: Json) -> str:
    if "PipelineDefinition" not in given:
        raise errors.InvalidInput("PipelineDefinition", None, "is required")
    return str(given["PipelineDefinition"])


def _changes(given: Json) -> dict[str, Any]:
    """What a pipeline's own members are set to."""
    members = {
        "PipelineDisplayName": "display_name",
        "PipelineDescription": "description",
        "RoleArn": "role_arn",
    }
    changes = {ours: given[name] for name, ours in members.items() if name in given}
    if (most := _max_parallel(given)) is not None:
        changes["max_parallel"] = most
    return changes


def _max_parallel(given: Json) -> int | None:
    configuration = given.get("ParallelismConfiguration", {})
    most: int | None = configuration.get("MaxParallelExecutionSteps")
    return most


def _check_version(pipeline: Pipeline, given: Json) -> None:
    version = given.get("PipelineVersionId", pipeline.version)
    if version != pipeline.version:
        raise errors.NotFound(
            "pipeline version", str(version), remedy=f"version {pipeline.version} alone is kept"
        )


def _name(call: Call, name_or_arn: str) -> str:
    """A pipeline's name, given as that or as its ARN."""
    prefix = call.arn("sagemaker", "pipeline/")
    if not name_or_arn.startswith("arn:"):
        return name_or_arn
    if not name_or_arn.startswith(prefix):
        raise errors.NotFound("pipeline", name_or_arn)
    return name_or_arn.removeprefix(prefix)


async def _find(pipelines: Pipelines, call: Call, given: Json) -> Execution:
    arn = given.get("PipelineExecutionArn")
    if not arn:
        raise errors.InvalidInput("PipelineExecutionArn", arn, "is required")
    found = _EXECUTION.fullmatch(arn.removeprefix(call.arn("sagemaker", "")))
    if found is None:
        raise errors.NotFound("pipeline execution", arn)
    execution = await pipelines.execution(call.principal, found["execution"])
    if execution.pipeline != found["pipeline"]:
        raise errors.NotFound("pipeline execution", arn)
    return execution


def _created_within(found: Sequence[Any], given: Json) -> list[Any]:
    return [one for one in found if in_time(given, one.created_at, "Created")]


def _ordered(items: Sequence[Item], given: Json) -> list[Item]:
    """Items that are oldest (or least) first, as asked for; newest first by default."""
    return list(items) if given.get("SortOrder") == "Ascending" else list(items)[::-1]


# ── encoding ──────────────────────────────────────────────────────────────────────────────────


def _pipeline_arn(call: Call, name: str) -> str:
    return call.arn("sagemaker", f"pipeline/{name}")


def _execution_arn(call: Call, name: str, execution_id: str) -> str:
    return call.arn("sagemaker", f"pipeline/{name}/execution/{execution_id}")


def _pipeline_summary(call: Call, pipeline: Pipeline) -> Json:
    return {
        "PipelineArn": _pipeline_arn(call, pipeline.name),
        "PipelineName": pipeline.name,
        "PipelineDisplayName": pipeline.display_name or None,
        "PipelineDescription": pipeline.description or None,
        "RoleArn": pipeline.role_arn or None,
        "CreationTime": pipeline.created_at,
        "LastModifiedTime": pipeline.updated_at,
    }


def _step(call: Call, execution: Execution, name: str) -> Json:
    state = execution.steps[name]
    step = parse_definition(execution.definition).step(name)
    return {
        "StepName": name,
        "StepDisplayName": step.display_name or None,
        "StepDescription": step.description or None,
        "StartTime": state.started_at,
        "EndTime": state.ended_at,
        "StepStatus": state.status.value,
        "FailureReason": state.failure or None,
        "Metadata": _metadata(call, state),
        "AttemptCount": 1,
    }


def _metadata(call: Call, state: StepState) -> Json | None:
    if not state.job:
        return None
    arn = {"Arn": call.arn("sagemaker", f"job/{state.category}/{state.job}")}
    # The SDK's evaluator finds its job under this name only.
    return {"Job": arn, "TrainingJob": arn}


def _mlflow_config(execution: Execution) -> Json | None:
    """Where the executions' jobs are shown in MLflow: what the first of them that says so says."""
    for step in parse_definition(execution.definition).steps:
        if step.kind is not StepKind.JOB:
            continue
        try:
            document = json.loads(step.arguments["JobConfigDocument"])
            config = document["OutputDataConfig"]["MlflowConfig"]
            members = ("MlflowResourceArn", "MlflowExperimentName")
            return {name: str(config[name]) for name in members if name in config}
        except (ValueError, TypeError, KeyError):
            continue  # the document is the job's to check
    return None


def _parameter_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# ── the jobs of steps ─────────────────────────────────────────────────────────────────────────


class InsideJobs:
    """`StepJobs` through the handlers that answer AWS's clients, parameters checked alike."""

    def __init__(
        self,
        service: AwsService,
        jobs: Jobs,
        *,
        account: Callable[[str], Awaitable[Account]],
        region: str,
        new_id: NewId,
    ) -> None:
        self._service = service
        self._jobs = jobs
        self._account = account
        self._region = region
        self._new_id = new_id

    async def create(self, account_id: str, given: Mapping[str, Any]) -> None:
        """CreateJob. Raises `LimitExceeded` where there is no room yet, `Conflict` for its name."""
        is_evaluation = given["JobCategory"] == "AgentRFTEvaluation"
        # First, for it is asked again and again while there is none.
        await self._jobs.check_quota(
            driver(account_id), JobKind.EVALUATION if is_evaluation else JobKind.TRAIN
        )
        await self._call(account_id, "CreateJob", create_parameters(given))

    async def describe(self, account_id: str, category: str, name: str) -> Json:
        """DescribeJob. Raises `NotFound`."""
        given = {"JobName": name, "JobCategory": category}
        return await self._call(account_id, "DescribeJob", given)

    async def stop(self, account_id: str, category: str, name: str) -> None:
        """StopJob. Raises `NotFound`."""
        await self._call(account_id, "StopJob", {"JobName": name, "JobCategory": category})

    async def _call(self, account_id: str, operation: str, given: Json) -> Json:
        call = Call(
            principal=driver(account_id),
            account=await self._account(account_id),
            region=self._region,
            request_id=self._new_id("req"),
        )
        model = await asyncio.to_thread(self._service.operation, operation)
        parameters = shapes.read(model.input_shape, given)
        try:
            return await self._service.handlers[operation](call, parameters)
        except AwsError as error:
            raise _ours(error, given) from error


def create_parameters(given: Mapping[str, Any]) -> Json:
    """A Job step's arguments as CreateJob takes them: its document as text, its VPC inside."""
    parameters = dict(given)
    document = parameters["JobConfigDocument"]
    network = parameters.pop("VpcConfig", None)
    if network is not None and isinstance(document, str):
        with contextlib.suppress(ValueError):  # CreateJob says what is wrong with it
            document = json.loads(document)
    if network is not None and isinstance(document, dict):
        document = {"VpcConfig": network} | document
    is_text = isinstance(document, str)
    return parameters | {"JobConfigDocument": document if is_text else json.dumps(document)}


def _ours(error: AwsError, given: Json) -> errors.TurnwiseError:
    match error.code:
        case "ResourceLimitExceeded":
            return errors.LimitExceeded(str(error))
        case "ResourceInUse" | "ConflictException":
            return errors.Conflict(str(error))
        case "ResourceNotFound":
            return errors.NotFound("job", given["JobName"])
    return errors.TurnwiseError(str(error))
