"""Base models and their recipes, data sets, groups and packages, with the real clients."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
from botocore.exceptions import ClientError

from tests.wire.aws.clients.conftest import Trained
from tests.wire.aws.clients.place import BASE, Place
from tests.wire.aws.clients.service import Server, client, code_of, run_python

LAMBDA = "arn:aws:lambda:us-west-2:000000000001:function:walker"
ROLE = "arn:aws:iam::000000000001:role/trainer"


pytestmark = pytest.mark.usefixtures("shell")


@contextlib.contextmanager
def a_base(server: Server) -> Iterator[str]:
    """The name of a base model with the standard recipe."""
    name = f"base-{uuid.uuid4().hex[:8]}"
    folder = server.data_dir / "models" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 4096}))
    yield name
    shutil.rmtree(folder)


@pytest.fixture
def base(server: Server) -> Iterator[str]:
    """A base model for one test."""
    with a_base(server) as name:
        yield name


@pytest.fixture
def sagemaker(env: dict[str, str]) -> Any:
    return client("sagemaker", env)


def trainer(model: str, **given: Any) -> Any:
    from sagemaker.train.multi_turn_rl_trainer import MultiTurnRLTrainer

    return MultiTurnRLTrainer(model=model, agent_env=LAMBDA, role=ROLE, **given)


# ── the trainer ───────────────────────────────────────────────────────────────────────────────


def test_a_trainer_with_only_a_role_finishes_and_makes_bucket_prefix_and_groups_exactly_once(
    base: str, env: dict[str, str], sagemaker: Any
):
    """Contract check 1."""
    made = trainer(base)
    groups = [made.output_model_package_group, made.intermediate_checkpoint_model_package_group]
    assert [arn.rpartition("/")[2] for arn in groups] == [
        *(f"{base}-mtrl-mpg", f"{base}-mtrl-checkpoint-mpg")
    ]
    times = [
        sagemaker.describe_model_package_group(ModelPackageGroupName=arn)["CreationTime"]
        for arn in groups
    ]

    again = trainer(base)

    assert again.output_model_package_group == groups[0]
    assert times == [
        sagemaker.describe_model_package_group(ModelPackageGroupName=arn)["CreationTime"]
        for arn in groups
    ]
    listed = sagemaker.list_model_package_groups(NameContains=base)
    assert len(listed["ModelPackageGroupSummaryList"]) == 2
    bucket, _, prefix = made.s3_output_path.removeprefix("s3://").partition("/")
    s3 = client("s3", env)
    assert [b["Name"] for b in s3.list_buckets()["Buckets"]].count(bucket) == 1
    found = s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")
    assert f"{prefix}/" in [each["Key"] for each in found["Contents"]]


def test_an_unknown_model_is_not_available_in_the_hub(sagemaker: Any):
    """Contract check 2."""
    with pytest.raises(ValueError, match="is not available in SageMaker Hub"):
        trainer("no-such-model")
    with pytest.raises(ClientError, match="models add-base") as refused:
        sagemaker.describe_hub_content(
            HubName="SageMakerPublicHub", HubContentType="Model", HubContentName="no-such-model"
        )
    assert code_of(refused) == "ResourceNotFound"


def test_a_trainers_hyperparameters_are_the_served_defaults_and_keep_to_what_is_allowed(
    base: str, sagemaker: Any, env: dict[str, str]
):
    """Contract check 3."""
    served = override_params(base, sagemaker, env)
    hyperparameters = trainer(base).hyperparameters
    assert hyperparameters.to_dict() == {
        name: str(each["default"]) for name, each in served.items()
    }
    assert hyperparameters.to_dict()["learning_rate"] == "4e-05"
    with pytest.raises(ValueError, match="global_batch_size must be one of"):
        hyperparameters.global_batch_size = 10
    with pytest.raises(ValueError, match="group_size must be <= 32"):
        hyperparameters.group_size = 64
    hyperparameters.loss_fn = "cispo"
    assert hyperparameters.to_user_dict() == {"loss_fn": "cispo"}


def override_params(base: str, sagemaker: Any, env: Mapping[str, str]) -> dict[str, Any]:
    """What the hub's document points to, read as any S3 client would."""
    content = sagemaker.describe_hub_content(
        HubName="SageMakerPublicHub", HubContentType="Model", HubContentName=base
    )
    recipes = json.loads(content["HubContentDocument"])["RecipeCollection"]
    [training] = [each for each in recipes if each.get("CustomizationTechnique") == "MTRL"]
    bucket, _, key = training["SmtjOverrideParamsS3Uri"].removeprefix("s3://").partition("/")
    found = client("s3", env).get_object(Bucket=bucket, Key=key)
    return dict(json.loads(found["Body"].read()))


def test_a_models_own_recipe_is_what_its_trainer_offers(base: str, server: Server):
    own = {"training": {"global_batch_size": {"default": 4, "min": 1}}}
    (server.data_dir / "models" / base / "turnwise-recipe.json").write_text(json.dumps(own))
    hyperparameters = trainer(base).hyperparameters
    assert hyperparameters.to_dict()["global_batch_size"] == "4"
    hyperparameters.global_batch_size = 10


def test_list_supported_models_returns_exactly_the_models_with_the_mtrl_keyword(
    base: str, sagemaker: Any, server: Server
):
    """Contract check 4."""
    from sagemaker.train.multi_turn_rl_trainer import MultiTurnRLTrainer

    (server.data_dir / "models" / "not-a-model").mkdir(exist_ok=True)
    shutil.copytree(server.data_dir / "models" / base, server.data_dir / "models" / f"{base}-b")
    keywords: dict[str, list[str]] = {}
    asked: dict[str, Any] = {"HubName": "SageMakerPublicHub", "HubContentType": "Model"}
    while "NextToken" in asked or not keywords:
        found = sagemaker.list_hub_contents(**asked, MaxResults=1)
        for each in found["HubContentSummaries"]:
            keywords[each["HubContentName"]] = each["HubContentSearchKeywords"]
        asked = {key: value for key, value in asked.items() if key != "NextToken"}
        if "NextToken" in found:
            asked["NextToken"] = found["NextToken"]
    trained = [name for name, words in keywords.items() if "@recipe:finetuning_mtrl_lora" in words]
    assert {base, f"{base}-b"} <= set(trained)
    assert MultiTurnRLTrainer.list_supported_models() == sorted(trained)
    shutil.rmtree(server.data_dir / "models" / f"{base}-b")


def test_overrides_are_laid_over_the_recipe(base: str, sagemaker: Any):
    made = trainer(base, overrides={"training_config": {"group_size": 4}})
    resolved = made.get_resolved_recipe()
    assert resolved["training_config"]["group_size"] == 4
    assert resolved["training_config"]["max_steps"] == 50


def test_the_evaluators_parameters_are_the_served_ones(base: str):
    from sagemaker.train.common_utils.recipe_utils import _get_evaluation_override_params

    found = _get_evaluation_override_params(base, evaluation_type="MTRLEvaluation")
    assert found["eval_group_size"]["default"] == 1


# ── model packages ────────────────────────────────────────────────────────────────────────────

_WITH_STEPS = """
import asyncio, sys
from pathlib import Path
from tests.unit.control.models.kit import finish_steps
from turnwise.storage import sql
import tests.unit.control.models.kit as models

async def main(data, base, *jobs):
    store = sql.SqlStore.open(Path(data) / "database" / "turnwise.db")
    models.ACCOUNT = (await store.default_account()).account_id
    for job in jobs:
        await finish_steps(store, Path(data) / "blobs", base, job=job, steps=2)
    await store.close()

asyncio.run(main(*ARGUMENTS))
"""


@dataclass(frozen=True)
class Walked:
    """A base model, and jobs that have registered the models of two steps, as their loop would."""

    base: str
    jobs: Iterator[str]


@pytest.fixture(scope="module")
def walked(server: Server) -> Iterator[Walked]:
    with a_base(server) as base:
        names = [f"walk-{uuid.uuid4().hex[:8]}" for _ in range(4)]
        arguments = (str(server.data_dir), str(server.data_dir / "models" / base), *names)
        run_python(_WITH_STEPS.replace("ARGUMENTS", repr(arguments)))
        yield Walked(base, iter(names))


@pytest.fixture
def job(walked: Walked) -> str:
    """A job of its own for a test."""
    return next(walked.jobs)


def arn_of(sagemaker: Any, group: str, version: int) -> str:
    found = sagemaker.list_model_packages(ModelPackageGroupName=group)["ModelPackageSummaryList"]
    return str(next(p["ModelPackageArn"] for p in found if p["ModelPackageVersion"] == version))


def test_an_output_package_names_its_base_and_a_checkpoint_says_that_it_is_one_at_each_step(
    sagemaker: Any, trained: Trained
):
    """Contract check 36."""
    output, versions = versions_of(sagemaker, trained.trainer.output_model_package_group)
    checkpoint, checkpoints = versions_of(
        sagemaker, trained.trainer.intermediate_checkpoint_model_package_group
    )
    assert (versions, checkpoints) == ([1, 2], [1, 2])
    assert (output["IsCheckpoint"], checkpoint["IsCheckpoint"]) == (False, True)
    for container in (output, checkpoint):
        assert container["BaseModel"]["HubContentName"] == BASE
        assert container["BaseModel"]["HubContentVersion"] == "1.0.0"


def versions_of(sagemaker: Any, group: str) -> tuple[dict[str, Any], list[int]]:
    """The container of a group's newest package, and the versions that it has."""
    pages = sagemaker.get_paginator("list_model_packages").paginate(
        ModelPackageGroupName=group, PaginationConfig={"PageSize": 1}
    )
    arns = [each["ModelPackageArn"] for each in pages.search("ModelPackageSummaryList[]")]
    found = [sagemaker.describe_model_package(ModelPackageName=arn) for arn in arns]
    versions = {each["ModelPackageVersion"]: each for each in found}
    [container] = versions[max(versions)]["InferenceSpecification"]["Containers"]
    return container, sorted(versions)


def test_a_trainer_with_an_output_packages_arn_starts_at_step_0_with_its_weights(
    sagemaker: Any, place: Place, trained: Trained, env: dict[str, str]
):
    """Contract check 37, for an output: steps too small to move a weight leave what it had."""
    again = place.trainer(
        trained.job.output_model_package_arn,
        base_job_name="again",
        output_model_package_group=place.group("again-mpg"),
    )
    again.hyperparameters.max_steps = 1
    again.hyperparameters.learning_rate = 1e-12
    job = again.train(wait=False)
    assert place.ended(job.job_name)["JobStatus"] == "Completed"
    job.refresh()
    assert [row["step"] for row in job.get_training_metrics()] == [0]
    s3 = client("s3", env)
    before, after = [
        weights_of(sagemaker, s3, each.output_model_package_arn) for each in (trained.job, job)
    ]
    assert before.keys() == after.keys()
    assert all(numpy.abs(before[name] - after[name]).max() < 1e-9 for name in before)
    assert any(numpy.abs(each).max() > 1e-4 for name, each in before.items() if "lora_B" in name)


def weights_of(sagemaker: Any, s3: Any, arn: str) -> dict[str, Any]:
    """An adapter's tensors, by S3: the format is a length, a table of contents, and numbers."""
    found = sagemaker.describe_model_package(ModelPackageName=arn)
    [container] = found["InferenceSpecification"]["Containers"]
    uri = container["ModelDataSource"]["S3DataSource"]["S3Uri"]
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    file = s3.get_object(Bucket=bucket, Key=f"{prefix}adapter_model.safetensors")["Body"].read()
    start = 8 + int.from_bytes(file[:8], "little")
    contents = json.loads(file[8:start])
    contents.pop("__metadata__", None)
    assert {each["dtype"] for each in contents.values()} == {"F32"}
    return {
        name: numpy.frombuffer(file[slice(*(start + at for at in each["data_offsets"]))], "<f4")
        for name, each in contents.items()
    }


def test_a_trainer_with_a_checkpoints_arn_resumes_at_the_next_step_and_keeps_hyperparameters(
    sagemaker: Any, place: Place, trained: Trained
):
    """Contract check 37, for a checkpoint."""
    first = arn_of(sagemaker, trained.trainer.intermediate_checkpoint_model_package_group, 1)
    groups = {
        "output_model_package_group": place.group("on-mpg"),
        "intermediate_checkpoint_model_package_group": place.group("on-checkpoint-mpg"),
    }
    changed = place.trainer(first, **groups)
    changed.hyperparameters.learning_rate = 0.002
    with pytest.raises(ClientError, match=r"learning_rate is 0\.002") as refused:
        changed.train(wait=False)
    assert code_of(refused) == "ValidationException"
    job = place.trainer(first, base_job_name="on", **groups).train(wait=False)
    assert place.ended(job.job_name)["JobStatus"] == "Completed"
    job.refresh()
    assert [row["step"] for row in job.get_training_metrics()] == [1]  # 0 was the checkpoint's


def test_a_packages_files_are_read_and_not_written_through_s3(
    sagemaker: Any, env: dict[str, str], job: str, server: Server, tmp_path: Path
):
    found = sagemaker.describe_model_package(ModelPackageName=arn_of(sagemaker, job, 2))
    [container] = found["InferenceSpecification"]["Containers"]
    uri = container["ModelDataSource"]["S3DataSource"]["S3Uri"]
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    s3 = client("s3", env)
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    assert [each["Key"].removeprefix(prefix) for each in listed] == [
        *("adapter_config.json", "adapter_model.safetensors")
    ]
    for each in listed:
        file = tmp_path / Path(each["Key"]).name
        s3.download_file(bucket, each["Key"], str(file))
        assert file.stat().st_size == each["Size"]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    for change in (
        lambda: s3.put_object(Bucket=bucket, Key=f"{prefix}adapter_config.json", Body=b"{}"),
        lambda: s3.delete_object(Bucket=bucket, Key=f"{prefix}adapter_config.json"),
    ):
        with pytest.raises(ClientError) as refused:
            change()
        assert code_of(refused) == "AccessDenied"


def test_a_trainer_starts_from_a_packages_arn(sagemaker: Any, job: str, walked: Walked):
    made = trainer(arn_of(sagemaker, job, 2))
    assert made._model_name == walked.base
    assert made._model_arn.endswith(f"/Model/{walked.base}/1.0.0")


def test_the_sdks_package_is_refreshed_and_deleted_as_the_version_that_it_is(
    sagemaker: Any, job: str
):
    from sagemaker.core.resources import ModelPackage, ModelPackageGroup

    package = ModelPackage.get(model_package_name=arn_of(sagemaker, job, 1))
    assert package.refresh().model_package_version == 1
    package.update(model_approval_status="Approved")
    assert package.refresh().model_approval_status == "Approved"
    approved = sagemaker.list_model_packages(
        ModelPackageGroupName=job, ModelApprovalStatus="Approved"
    )
    assert len(approved["ModelPackageSummaryList"]) == 1
    group = ModelPackageGroup.get(model_package_group_name=job)
    with pytest.raises(ClientError, match="delete them first") as refused:
        group.delete()
    assert code_of(refused) == "ConflictException"
    package.delete()
    assert [
        p.model_package_version for p in ModelPackage.get_all(model_package_group_name=job)
    ] == [2]
    ModelPackage.get(model_package_name=arn_of(sagemaker, job, 2)).delete()
    group.delete()
    with pytest.raises(ClientError) as gone:
        sagemaker.describe_model_package_group(ModelPackageGroupName=job)
    assert code_of(gone) == "ResourceNotFound"


def test_a_copy_of_a_package_is_registered_in_another_group(
    sagemaker: Any, server: Server, job: str, walked: Walked
):
    source = sagemaker.describe_model_package(ModelPackageName=arn_of(sagemaker, job, 2))
    weights = source["InferenceSpecification"]["Containers"][0]["ModelDataSource"]
    release = f"release-{uuid.uuid4().hex[:8]}"
    sagemaker.create_model_package_group(ModelPackageGroupName=release)
    made = sagemaker.create_model_package(
        ModelPackageGroupName=release,
        InferenceSpecification={"Containers": [{"ModelDataSource": weights}]},
    )
    found = sagemaker.describe_model_package(ModelPackageName=made["ModelPackageArn"])
    assert found["ModelPackageVersion"] == 1
    base_model = found["InferenceSpecification"]["Containers"][0]["BaseModel"]
    assert base_model["HubContentName"] == walked.base
    hashes = [each["CustomerMetadataProperties"]["turnwise:sha256"] for each in (source, found)]
    assert len(hashes[1]) == 64
    described = json.loads(server.cli("models", "describe", f"{release}/1", "--json").stdout)
    assert described["sha256"] == hashes[1]
    server.cli("models", "delete", f"{release}/1")
    with pytest.raises(AssertionError, match=f"{release}/1"):
        server.call("GET", f"/models/{release}/1")


# ── data sets ─────────────────────────────────────────────────────────────────────────────────


def test_a_data_set_of_the_sdk_is_kept_in_the_accounts_own_hub(tmp_path: Path, env: dict[str, str]):
    from sagemaker.ai_registry.dataset import CustomizationTechnique, DataSet
    from sagemaker.core.helper.session_helper import Session

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "go", "completion": "gone"}\n' * 3)
    name = f"rows-{uuid.uuid4().hex[:8]}"
    s3 = client("s3", env)
    with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(
            Bucket="sagemaker-us-west-2-000000000001",  # which the SDK takes to be there
            CreateBucketConfiguration={"LocationConstraint": "us-west-2"},
        )
    mine = {"sagemaker_session": Session()}
    both = {
        "role": ROLE,
        "customization_technique": CustomizationTechnique.SFT,
        "domain_id": "d-tests",  # else the SDK asks AWS itself for it, past the endpoint
    }
    made = DataSet.create(name=name, source=str(rows), **both, **mine)
    assert made.arn.endswith(f"/DataSet/{name}/1.0.0")
    found = DataSet.get(name, **mine)
    bucket, _, key = found.source.removeprefix("s3://").partition("/")
    body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    assert body == rows.read_bytes()

    assert name in [each.name for each in DataSet.get_all(**mine)]
    assert found.delete()
    with pytest.raises(ClientError) as gone:
        DataSet.get(name, **mine)
    assert code_of(gone) == "ResourceNotFound"


# ── tags ──────────────────────────────────────────────────────────────────────────────────────


def test_tags_are_added_listed_and_deleted_on_any_arn_of_the_account(sagemaker: Any):
    arn = f"arn:aws:sagemaker:us-west-2:000000000001:pipeline/p-{time.monotonic_ns()}"
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": f"k{n}", "Value": "v"} for n in range(3)])
    sagemaker.delete_tags(ResourceArn=arn, TagKeys=["k1"])
    pages = sagemaker.get_paginator("list_tags").paginate(ResourceArn=arn)
    assert [tag["Key"] for tag in pages.search("Tags[]")] == ["k0", "k2"]
    with pytest.raises(ClientError) as refused:
        sagemaker.list_tags(ResourceArn=arn.replace("000000000001", "000000000002"))
    assert code_of(refused) == "ResourceNotFound"
