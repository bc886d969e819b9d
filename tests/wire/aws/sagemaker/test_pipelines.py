"""Pipelines as SageMaker's model reads and writes them, over jobs that end as a test says."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.builders import ACCOUNT
from tests.unit.control.pipelines.test_pipelines import COMPARISON, Jobs, World, definition
from tests.wire.aws.kit import Caller, Refused, a_call
from turnwise import errors
from turnwise.control.jobs import Jobs as ControlJobs
from turnwise.domain.access import Account, Action, Principal
from turnwise.domain.job import JobKind
from turnwise.storage.sql import SqlStore
from turnwise.system import SYSTEM_CLOCK
from turnwise.wire.aws.sagemaker.pipelines import (
    InsideJobs,
    create_parameters,
    describe_training_job,
    pipeline_handlers,
)
from turnwise.wire.aws.sagemaker.tags import Tags, tag_handlers
from turnwise.wire.aws.service import AwsError, AwsService, Call, Json

ROLE = "arn:aws:iam::000000000001:role/any"
TOKEN = "t" * 32
PIPELINE_ARN = "arn:aws:sagemaker:us-west-2:000000000001:pipeline/p"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    store = SqlStore.in_memory()
    await store.default_account()
    made = World(store, Jobs())
    yield made
    await made.pipelines.close()
    await store.close()


@pytest.fixture
def ask(world: World) -> Caller:
    tags = Tags(world.store, SYSTEM_CLOCK)
    extra = {"DescribeTrainingJob": describe_training_job}
    return Caller(pipeline_handlers(world.pipelines, tags) | tag_handlers(tags) | extra)


async def create(ask: Caller, name: str = "p", **more: Any) -> Json:
    given = {
        "PipelineName": name,
        "PipelineDefinition": definition(COMPARISON),
        "RoleArn": ROLE,
        "ClientRequestToken": TOKEN,
    }
    return await ask("CreatePipeline", **(given | more))


async def start(ask: Caller, token: str = TOKEN, **more: Any) -> str:
    given = {"PipelineName": "p", "ClientRequestToken": token}
    return str((await ask("StartPipelineExecution", **(given | more)))["PipelineExecutionArn"])


async def ended(ask: Caller, arn: str) -> Json:
    async with asyncio.timeout(30):
        while True:
            found = await ask("DescribePipelineExecution", PipelineExecutionArn=arn)
            if found["PipelineExecutionStatus"] not in ("Executing", "Stopping"):
                return found
            await asyncio.sleep(0)


async def test_a_pipeline_is_created_described_listed_updated_and_deleted(ask: Caller):
    tags = [{"Key": "SagemakerModelEvaluation", "Value": "true"}]
    created = await create(ask, PipelineDisplayName="shown", PipelineDescription="d", Tags=tags)
    assert created == {"PipelineArn": PIPELINE_ARN}
    assert (await ask("ListTags", ResourceArn=PIPELINE_ARN))["Tags"] == tags

    by_arn = await ask("DescribePipeline", PipelineName=PIPELINE_ARN)
    assert by_arn == await ask("DescribePipeline", PipelineName="p")
    assert (by_arn["PipelineDisplayName"], by_arn["PipelineStatus"]) == ("shown", "Active")
    assert json.loads(by_arn["PipelineDefinition"]) == json.loads(definition(COMPARISON))
    (summary,) = (await ask("ListPipelines"))["PipelineSummaries"]
    assert (summary["PipelineName"], summary["RoleArn"]) == ("p", ROLE)

    other = definition({"A": ("Job", [])})
    updated = await ask("UpdatePipeline", PipelineName="p", PipelineDefinition=other)
    assert updated == {"PipelineArn": PIPELINE_ARN, "PipelineVersionId": 2}
    described = await ask("DescribePipeline", PipelineName="p")
    assert (described["PipelineDefinition"], described["PipelineDescription"]) == (other, "d")

    await ask("DeletePipeline", PipelineName="p", ClientRequestToken=TOKEN)
    assert (await ask("ListTags", ResourceArn=PIPELINE_ARN))["Tags"] == []
    with pytest.raises(Refused, match=r"^ResourceNotFound: pipeline 'p' does not exist"):
        await ask("DescribePipeline", PipelineName="p")


async def test_pipelines_are_listed_by_prefix_in_order_and_in_pages(ask: Caller, world: World):
    for number, name in enumerate(("ab", "a", "b")):
        world.clock.at = 1000.0 + number
        await create(ask, name)

    async def names(**given: Any) -> list[str]:
        found, token = [], None
        while True:
            more = {} if token is None else {"NextToken": token}
            listed = await ask("ListPipelines", MaxResults=1, **given, **more)
            found += [one["PipelineName"] for one in listed["PipelineSummaries"]]
            if (token := listed.get("NextToken")) is None:
                return found

    assert await names() == ["b", "a", "ab"]
    assert await names(SortOrder="Ascending") == ["ab", "a", "b"]
    assert await names(SortBy="Name", SortOrder="Ascending") == ["a", "ab", "b"]
    assert await names(PipelineNamePrefix="a") == ["a", "ab"]
    assert await names(CreatedAfter=1000.5, CreatedBefore=1001.5) == ["a"]


async def test_creating_with_the_same_token_is_once_and_a_taken_name_is_what_the_sdk_expects(
    ask: Caller,
):
    assert await create(ask) == await create(ask)
    with pytest.raises(Refused, match=r"^ValidationException: .* already exists"):
        await create(ask, ClientRequestToken="u" * 32)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"PipelineDefinition": "{"}, "is not JSON"),
        ({"PipelineDefinition": definition({"A": ("Training", [])})}, "step 'A': Type"),
        ({"PipelineDefinition": None}, "PipelineDefinition: None is required"),
        (
            {"PipelineDefinitionS3Location": {"Bucket": "abc", "ObjectKey": "k"}},
            "is not served here",
        ),
        ({"PipelineName": "no good"}, "PipelineName"),
        ({"ClientRequestToken": "short"}, "ClientRequestToken"),
    ],
)
async def test_a_pipeline_that_could_not_run_is_refused_and_not_kept(
    ask: Caller, given: Json, words: str
):
    with pytest.raises(Refused) as refused:
        await create(ask, **given)
    assert refused.value.code == "ValidationException"
    assert words in str(refused.value)
    assert (await ask("ListPipelines"))["PipelineSummaries"] == []


async def test_an_execution_shows_its_steps_newest_first_with_their_job_under_both_names(
    ask: Caller, world: World
):
    await create(ask)
    arn = await start(ask, PipelineExecutionDisplayName="mine")
    found = await ended(ask, arn)
    assert arn.startswith(PIPELINE_ARN + "/execution/")
    assert found["PipelineExecutionStatus"] == "Succeeded"
    assert found["PipelineExecutionDisplayName"] == "mine"
    assert (found["PipelineArn"], found["PipelineVersionId"]) == (PIPELINE_ARN, 1)

    steps = (await ask("ListPipelineExecutionSteps", PipelineExecutionArn=arn))[
        "PipelineExecutionSteps"
    ]
    assert [step["StepName"] for step in steps] == ["Associate", "Tuned", "Base", "Create"]
    assert {step["StepStatus"] for step in steps} == {"Succeeded"}
    base = steps[2]
    job = base["Metadata"]["Job"]["Arn"]
    assert job.startswith("arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFTEvaluation/")
    assert base["Metadata"]["TrainingJob"] == {"Arn": job}
    assert "Metadata" not in steps[0]
    oldest = await ask(
        "ListPipelineExecutionSteps", PipelineExecutionArn=arn, SortOrder="Ascending", MaxResults=1
    )
    assert oldest["PipelineExecutionSteps"][0]["StepName"] == "Create"
    assert "NextToken" in oldest

    (summary,) = (await ask("ListPipelineExecutions", PipelineName="p"))[
        "PipelineExecutionSummaries"
    ]
    assert summary["PipelineExecutionArn"] == arn
    assert await start(ask, PipelineExecutionDisplayName="mine") == arn  # the same token
    with pytest.raises(Refused, match=r"^ConflictException"):
        await start(ask)
    assert len(world.jobs.created) == 2


async def test_an_execution_keeps_the_definition_and_parameters_it_was_started_with(ask: Caller):
    data = json.loads(definition({"A": ("Job", [])}))
    data["Parameters"] = [{"Name": "rows", "Type": "Integer", "DefaultValue": 3}]
    before = json.dumps(data)
    await create(ask, PipelineDefinition=before)
    arn = await start(ask, PipelineParameters=[{"Name": "rows", "Value": "7"}])
    with pytest.raises(Refused, match=r"^ValidationException: .*'many' is no Integer"):
        await start(ask, "x" * 32, PipelineParameters=[{"Name": "rows", "Value": "many"}])
    await ask("UpdatePipeline", PipelineName="p", PipelineDefinition=definition(COMPARISON))

    kept = await ask("DescribePipelineDefinitionForExecution", PipelineExecutionArn=arn)
    assert kept["PipelineDefinition"] == before
    values = await ask("ListPipelineParametersForExecution", PipelineExecutionArn=arn)
    assert values["PipelineParameters"] == [{"Name": "rows", "Value": "7"}]
    assert (await ended(ask, arn))["PipelineExecutionStatus"] == "Succeeded"


async def test_an_execution_is_stopped_and_says_so(ask: Caller, world: World):
    world.jobs.ends_by_itself = False
    await create(ask)
    arn = await start(ask)
    stop = {"PipelineExecutionArn": arn, "ClientRequestToken": TOKEN}
    assert await ask("StopPipelineExecution", **stop) == {"PipelineExecutionArn": arn}
    assert (await ended(ask, arn))["PipelineExecutionStatus"] == "Stopped"


async def test_a_failed_execution_gives_the_jobs_reason(ask: Caller, world: World):
    world.jobs.outcomes = {"Base": "Failed"}
    await create(ask)
    found = await ended(ask, await start(ask))
    assert found["PipelineExecutionStatus"] == "Failed"
    assert "it broke" in found["FailureReason"]


async def test_where_jobs_are_shown_in_mlflow_is_told_of_the_execution(ask: Caller):
    data = json.loads(definition({"A": ("Job", [])}))
    mlflow = {"MlflowResourceArn": "arn:app", "MlflowExperimentName": "e", "MlflowRunName": "r"}
    document = json.dumps({"OutputDataConfig": {"MlflowConfig": mlflow}})
    data["Steps"][0]["Arguments"]["JobConfigDocument"] = document
    await create(ask, PipelineDefinition=json.dumps(data))
    found = await ended(ask, await start(ask))
    del mlflow["MlflowRunName"]
    assert found["MLflowConfig"] == mlflow


@pytest.mark.parametrize(
    "arn",
    [
        PIPELINE_ARN + "/execution/aaaaaaaaaaaa",
        PIPELINE_ARN.replace("000000000001", "000000000002") + "/execution/aaaaaaaaaaaa",
        PIPELINE_ARN.replace("us-west-2", "eu-west-1") + "/execution/aaaaaaaaaaaa",
    ],
)
async def test_an_execution_that_there_is_not_is_not_found(ask: Caller, arn: str):
    await create(ask)
    for operation in ("DescribePipelineExecution", "ListPipelineExecutionSteps"):
        with pytest.raises(Refused, match=r"^ResourceNotFound"):
            await ask(operation, PipelineExecutionArn=arn)


async def test_another_account_finds_nothing_and_a_key_to_sample_may_do_nothing(ask: Caller):
    await create(ask)
    arn = await start(ask)
    stranger = a_call("acc_other", number="000000000002")
    assert (await ask("ListPipelines", by=stranger))["PipelineSummaries"] == []
    for operation, given in (
        ("DescribePipeline", {"PipelineName": "p"}),
        ("DescribePipelineExecution", {"PipelineExecutionArn": arn}),
        ("StartPipelineExecution", {"PipelineName": "p", "ClientRequestToken": TOKEN}),
    ):
        with pytest.raises(Refused, match=r"^ResourceNotFound"):
            await ask(operation, by=stranger, **given)
        with pytest.raises(Refused, match=r"^AccessDeniedException"):
            await ask(operation, by=a_call(actions=frozenset({Action.SAMPLE})), **given)
    await ended(ask, arn)


async def test_there_are_no_training_jobs(ask: Caller):
    with pytest.raises(Refused, match=r"^ResourceNotFound: training job 'walk'"):
        await ask("DescribeTrainingJob", TrainingJobName="walk")


# ── the jobs of steps ─────────────────────────────────────────────────────────────────────────

ARGUMENTS = {
    "JobName": "pipelines-a",
    "JobCategory": "AgentRFTEvaluation",
    "RoleArn": ROLE,
    "JobConfigSchemaVersion": "1.0.0",
    "JobConfigDocument": '{"a": 1}',
}


class Quota(ControlJobs):
    """Jobs of which only the quota is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, JobKind]] = []

    async def check_quota(self, principal: Principal, kind: JobKind) -> None:
        self.asked.append((principal.account_id, kind))


def inside(quota: Quota, **handlers: Any) -> InsideJobs:
    async def account(account_id: str) -> Account:
        return Account(account_id=account_id, slug="default", number="000000000001")

    return InsideJobs(
        AwsService(name="sagemaker", handlers=handlers),
        quota,
        account=account,
        region="us-west-2",
        new_id=lambda prefix: prefix,
    )


async def test_a_steps_job_is_created_as_by_a_client_of_the_account():
    calls: list[tuple[Call, Json]] = []

    async def create_job(call: Call, given: Json) -> Json:
        calls.append((call, given))
        return {"JobArn": "arn"}

    quota = Quota()
    await inside(quota, CreateJob=create_job).create(ACCOUNT, ARGUMENTS)

    ((call, given),) = calls
    assert given == ARGUMENTS
    assert (call.principal.account_id, call.account.number) == (ACCOUNT, "000000000001")
    assert call.principal.actions == {Action.MANAGE, Action.READ}
    assert quota.asked == [(ACCOUNT, JobKind.EVALUATION)]


async def test_a_steps_arguments_are_checked_by_the_model_before_the_job_is_created():
    with pytest.raises(errors.InvalidInput, match="JobConfigSchemaVersion"):
        await inside(Quota()).create(ACCOUNT, ARGUMENTS | {"JobConfigSchemaVersion": 1})


@pytest.mark.parametrize(
    ("code", "ours"),
    [
        ("ResourceLimitExceeded", errors.LimitExceeded),
        ("ResourceInUse", errors.Conflict),
        ("ResourceNotFound", errors.NotFound),
        ("ValidationException", errors.TurnwiseError),
    ],
)
async def test_what_aws_would_be_told_is_told_to_the_step_in_our_words(
    code: str, ours: type[Exception]
):
    async def describe(call: Call, given: Json) -> Json:
        raise AwsError(code, "why")

    with pytest.raises(errors.TurnwiseError) as told:
        await inside(Quota(), DescribeJob=describe).describe(ACCOUNT, "AgentRFTEvaluation", "a")
    assert type(told.value) is ours


def test_a_steps_network_is_put_inside_the_document_which_is_sent_as_text():
    network = {"SecurityGroupIds": ["sg"], "Subnets": ["s"]}
    for document in ('{"a": 1}', {"a": 1}):
        given = ARGUMENTS | {"JobConfigDocument": document, "VpcConfig": network}
        made = create_parameters(given)
        assert json.loads(made["JobConfigDocument"]) == {"a": 1, "VpcConfig": network}
        assert "VpcConfig" not in made
    assert create_parameters(ARGUMENTS) == ARGUMENTS
    odd = ARGUMENTS | {"JobConfigDocument": "{", "VpcConfig": network}
    assert create_parameters(odd)["JobConfigDocument"] == "{"
