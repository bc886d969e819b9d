"""JobConfigDocument: what CreateJob is given and DescribeJob gives back. Pure.

A document of schema version 1.0.0, of the category AgentRFT or AgentRFTEvaluation, becomes a job
file; a job becomes a document again, with a `ServiceOutput` that tells what came of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import pydantic
from pydantic import BaseModel as Part
from pydantic import ConfigDict, Field, model_validator

from turnwise import errors
from turnwise.control.job_file import as_mapping, flattened
from turnwise.control.job_settings import leaves
from turnwise.control.json_text import read_json
from turnwise.control.models.catalogue import BaseModel
from turnwise.control.models.recipes import FIELD, Recipe
from turnwise.domain.job import BASE, AgentSpec, Job, JobKind, JobSpec
from turnwise.domain.ledger import TokenUsage
from turnwise.ports import ModelPackage
from turnwise.wire.aws.arns import HubContentArn, ModelPackageArn, ModelPackageGroupArn

Json = dict[str, Any]

VERSION = "1.0.0"
DOCUMENT = "JobConfigDocument"
CATEGORY = {JobKind.TRAIN: "AgentRFT", JobKind.EVALUATION: "AgentRFTEvaluation"}
KIND = {category: kind for kind, category in CATEGORY.items()}
TRAIN, VALIDATION, EVALUATION = "train", "validation", "evaluation"

_ARN = r"^arn:aws[a-z-]*:"


class _Part(Part):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _exactly_one(part: _Part, *names: str) -> None:
    given = [name for name in names if getattr(part, name) is not None]
    if len(given) != 1:
        raise ValueError(f"must hold exactly one of {', '.join(names)}")


def _one_of(*names: str) -> ConfigDict:
    """The same in JSON Schema."""
    return ConfigDict(json_schema_extra={"oneOf": [{"required": [name]} for name in names]})


class AgentCore(_Part):
    """An agent in a Bedrock AgentCore runtime."""

    AgentRuntimeArn: str = Field(pattern=_ARN)
    Qualifier: str | None = None


class AgentLambda(_Part):
    """An agent behind a Lambda function."""

    LambdaArn: str = Field(pattern=_ARN)


class Agent(_Part):
    """The agent; one of the two."""

    model_config = _one_of("BedrockAgentCoreConfig", "CustomAgentLambdaConfig")

    BedrockAgentCoreConfig: AgentCore | None = None
    CustomAgentLambdaConfig: AgentLambda | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        _exactly_one(self, "BedrockAgentCoreConfig", "CustomAgentLambdaConfig")
        return self

    @property
    def arn(self) -> str:
        """The address of whichever it is."""
        if self.BedrockAgentCoreConfig is not None:
            return self.BedrockAgentCoreConfig.AgentRuntimeArn
        assert self.CustomAgentLambdaConfig is not None
        return self.CustomAgentLambdaConfig.LambdaArn


class S3Data(_Part):
    """A file, or the one file under a prefix."""

    S3DataType: Literal["S3Prefix"] = "S3Prefix"
    S3Uri: str = Field(pattern=r"^(s3|file)://.+")


class Dataset(_Part):
    """A data set of a hub. The sagemaker SDK puts every source here that is not in S3."""

    DatasetArn: str = Field(pattern=r"^(arn:aws[a-z-]*:|file://)")


class Source(_Part):
    """Where rows are; one of the two."""

    model_config = _one_of("S3DataSource", "DatasetSource")

    S3DataSource: S3Data | None = None
    DatasetSource: Dataset | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        _exactly_one(self, "S3DataSource", "DatasetSource")
        return self


class TrainingChannel(_Part):
    """Rows to train or to validate on."""

    ChannelName: Literal["train", "validation"]
    DataSource: Source


class EvaluationChannel(_Part):
    """Rows to evaluate."""

    ChannelName: Literal["evaluation"]
    DataSource: Source


class Mlflow(_Part):
    """Where the job is shown in MLflow."""

    MlflowResourceArn: str = Field(pattern=_ARN)
    MlflowExperimentName: str | None = None
    MlflowRunName: str | None = None


class OutputData(_Part):
    """Where results are copied to."""

    S3OutputPath: str = Field(pattern=r"^(s3|file)://.+")
    KmsKeyArn: str | None = None
    MlflowConfig: Mlflow | None = None


class ModelPackages(_Part):
    """The groups that models are registered in, and the one to start from."""

    OutputModelPackageGroupArn: str | None = Field(default=None, pattern=_ARN)
    IntermediateCheckpointModelPackageGroupArn: str | None = Field(default=None, pattern=_ARN)
    InputModelPackageArn: str | None = Field(default=None, pattern=_ARN)


class Configuration(_Part):
    """The base model and the hyperparameters that differ from its recipe's."""

    BaseModelArn: str = Field(pattern=_ARN)
    AcceptEula: bool = False
    MlflowConfig: Mlflow | None = None
    HyperParameters: dict[str, Any] | None = None


class Vpc(_Part):
    """Kept and given back: the jobs of this server run where it runs."""

    SecurityGroupIds: list[str]
    Subnets: list[str]


class Stopping(_Part):
    """When to give up."""

    MaxRuntimeInSeconds: int = Field(gt=0, le=259_200)


class _Document(_Part):
    AgentConfig: Agent
    OutputDataConfig: OutputData | None = None
    ModelPackageConfig: ModelPackages | None = None
    VpcConfig: Vpc | None = None
    StoppingCondition: Stopping | None = None
    ServiceOutput: dict[str, Any] | None = None  # of a job described earlier; has no effect


class TrainingDocument(_Document):
    """Category AgentRFT."""

    InputDataConfig: list[TrainingChannel] = Field(min_length=1)
    TrainingConfig: Configuration


class EvaluationDocument(_Document):
    """Category AgentRFTEvaluation."""

    InputDataConfig: list[EvaluationChannel] = Field(min_length=1)
    EvaluationConfig: Configuration


_MODELS: Mapping[JobKind, type[_Document]] = {
    JobKind.TRAIN: TrainingDocument,
    JobKind.EVALUATION: EvaluationDocument,
}


def schema(kind: JobKind) -> Json:
    """The JSON Schema of a category's document."""
    found = _MODELS[kind].model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | found


# ── reading ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a document asks for, by the names that it uses. Sources are URIs or ARNs."""

    kind: JobKind
    agent_arn: str
    base_name: str
    base_version: str  # empty: any
    hyperparameters: Mapping[str, Any]
    sources: Mapping[str, str]  # by channel
    output_path: str
    groups: Mapping[str, str]  # "adapter" and "checkpoint" -> the group's ARN
    input_package: str  # an ARN; empty: none
    mlflow_arn: str
    experiment: str
    run_name: str
    max_runtime_s: int  # 0: no limit


def read(kind: JobKind, text: str) -> Asked:
    """Read a document. Raises `InvalidInput` that names the member by its path."""
    document = _parsed(kind, text)
    configuration: Configuration = (
        document.TrainingConfig
        if isinstance(document, TrainingDocument)
        else document.EvaluationConfig  # type: ignore[attr-defined]
    )
    output, packages = document.OutputDataConfig, document.ModelPackageConfig or ModelPackages()
    if output is not None and output.KmsKeyArn:
        raise errors.InvalidInput(
            f"{DOCUMENT}.OutputDataConfig.KmsKeyArn",
            output.KmsKeyArn,
            "cannot be used: this server has no key management service",
            remedy="leave it out, and encrypt the disk that the server writes to",
        )
    mlflow = configuration.MlflowConfig or (output and output.MlflowConfig)
    base = _base_model(configuration.BaseModelArn)
    return Asked(
        kind=kind,
        agent_arn=document.AgentConfig.arn,
        base_name=base.name,
        base_version=base.version,
        hyperparameters=_hyperparameters(configuration, base.name),
        sources=_sources(document.InputDataConfig),  # type: ignore[attr-defined]
        output_path=output.S3OutputPath if output else "",
        groups={
            "adapter": packages.OutputModelPackageGroupArn or "",
            "checkpoint": packages.IntermediateCheckpointModelPackageGroupArn or "",
        },
        input_package=packages.InputModelPackageArn or "",
        mlflow_arn=mlflow.MlflowResourceArn if mlflow else "",
        experiment=(mlflow and mlflow.MlflowExperimentName) or "",
        run_name=(mlflow and mlflow.MlflowRunName) or "",
        max_runtime_s=(
            document.StoppingCondition.MaxRuntimeInSeconds if document.StoppingCondition else 0
        ),
    )


def _parsed(kind: JobKind, text: str) -> _Document:
    try:
        return _MODELS[kind].model_validate(read_json(DOCUMENT, text))
    except pydantic.ValidationError as error:
        raise _invalid(_MODELS[kind], error) from None


def _invalid(model: type[_Document], error: pydantic.ValidationError) -> errors.InvalidInput:
    """The first problem, with the member's path."""
    problem = error.errors(include_url=False)[0]
    parts, value = problem["loc"], problem["input"]
    path = DOCUMENT + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts)
    reason, remedy = problem["msg"], ""
    match problem["type"]:
        case "missing":
            value, reason = None, "is required"
        case "extra_forbidden":
            reason = "is set, but there is no such member"
            near = difflib.get_close_matches(str(parts[-1]), _members(model), n=1)
            remedy = f"did you mean {near[0]}?" if near else "DescribeJobSchemaVersion has all"
        case "value_error":
            reason = str(problem["ctx"]["error"])
        case "literal_error":
            reason, remedy = "is not allowed", f"must be {problem['ctx']['expected']}"
    return errors.InvalidInput(path, value, reason[0].lower() + reason[1:], remedy=remedy)


def _members(model: type[_Document]) -> list[str]:
    """Every member's name in a document."""
    found = model.model_json_schema()
    blocks = [found, *found["$defs"].values()]
    return [name for block in blocks for name in block["properties"]]


def _base_model(arn: str) -> HubContentArn:
    found = HubContentArn.parse(arn, "BaseModelArn")
    if found.kind != "Model":
        raise errors.InvalidInput("BaseModelArn", arn, "is not the ARN of a model")
    return found


def _hyperparameters(configuration: Configuration, base_name: str) -> Mapping[str, Any]:
    """What is given, without the model's own name, which SageMaker's documents list among it."""
    given = dict(configuration.HyperParameters or {})
    named = given.pop("model_name_or_path", base_name)
    if named not in (base_name, configuration.BaseModelArn):
        raise errors.InvalidInput(
            f"{FIELD}.model_name_or_path",
            named,
            f"is not the model of BaseModelArn ({base_name})",
            remedy="leave it out",
        )
    return given


def _sources(channels: Sequence[TrainingChannel | EvaluationChannel]) -> dict[str, str]:
    found: dict[str, str] = {}
    for place, channel in enumerate(channels):
        if channel.ChannelName in found:
            raise errors.InvalidInput(
                f"{DOCUMENT}.InputDataConfig[{place}].ChannelName",
                channel.ChannelName,
                "is there twice; a channel has one source",
            )
        source = channel.DataSource
        if source.S3DataSource is not None:
            found[channel.ChannelName] = source.S3DataSource.S3Uri
        elif source.DatasetSource is not None:
            found[channel.ChannelName] = source.DatasetSource.DatasetArn
    if found.keys() == {VALIDATION}:
        raise errors.InvalidInput(
            f"{DOCUMENT}.InputDataConfig", [VALIDATION], "has no channel named train"
        )
    return found


# ── a document's job ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What stands behind the names of a document."""

    base: BaseModel
    agent: AgentSpec
    sources: Mapping[str, str]  # URIs by channel
    groups: Mapping[str, str]  # names; empty: the job's own
    package: ModelPackage | None = None  # to start from, or to evaluate


def job_file(name: str, asked: Asked, found: Found) -> Json:
    """The job file of a document. Raises `InvalidInput` for hyperparameters out of range."""
    job: Json = {
        "name": name,
        "kind": str(asked.kind),
        "model": str(found.base.folder),
        "agent": {
            "kind": str(found.agent.kind),
            "url": found.agent.url,
            "target": found.agent.target,
            "name": found.agent.name,
        },
        "output_path": asked.output_path,
        "max_runtime_s": asked.max_runtime_s,
        "tracking": {"mlflow": True, "experiment": asked.experiment, "run_name": asked.run_name},
    }
    if asked.kind is JobKind.TRAIN:
        job |= {
            "dataset": found.sources[TRAIN],
            "validation_dataset": found.sources.get(VALIDATION, ""),
            "output_group": found.groups.get("adapter", ""),
            "checkpoint_group": found.groups.get("checkpoint", ""),
        }
    else:
        job["dataset"] = found.sources[EVALUATION]
    if found.package is not None:
        job[_start_setting(asked.kind, found.package)] = found.package.name
    for leaf, value in _settings(asked, found).items():
        _set(job, leaf, value)
    return job


def _start_setting(kind: JobKind, package: ModelPackage) -> str:
    if kind is JobKind.TRAIN and package.kind == "checkpoint":
        return "resume_from"
    return "input_adapter"


def recipe_of(base: BaseModel, kind: JobKind) -> Recipe:
    """The hyperparameters of a category."""
    return base.training if kind is JobKind.TRAIN else base.evaluation


def _settings(asked: Asked, found: Found) -> Json:
    """Settings by their dotted names: what is given, inherited, or the recipe's default."""
    recipe = recipe_of(found.base, asked.kind)
    chosen = recipe.chosen(asked.hyperparameters)
    settings = recipe.read(asked.hyperparameters)
    if found.package is not None and asked.kind is JobKind.TRAIN:
        settings |= _inherited(found.package, recipe) | chosen
    if settings.get("algorithm.loss_fn") == "importance_sampling":
        # It has no bounds: those of the recipe are for the other losses.
        for leaf in ("algorithm.clip_low_threshold", "algorithm.clip_high_threshold"):
            if leaf not in chosen:
                settings.pop(leaf, None)
    return settings


def _inherited(package: ModelPackage, recipe: Recipe) -> Json:
    """Settings that are those of the job before: an adapter's shape; of a checkpoint, whatever
    no hyperparameter of the recipe can say.
    """
    before = dict(flattened(package.metadata.get("config", {})))
    covered = {each.leaf for each in recipe.hyperparameters}
    return {
        leaf: before[leaf]
        for leaf in _decisive()
        if leaf in before
        and (leaf.startswith("lora.") if package.kind == "adapter" else leaf not in covered)
    }


def _decisive() -> Iterator[str]:
    """Settings in blocks and the top level's own that decide what is learned."""
    for leaf in leaves():
        if "[]" not in leaf.path and leaf.path.startswith(_LEARNING):
            yield leaf.path


_LEARNING = (
    *("seed", "deterministic", "history", "prompt_column", "label_column"),
    *("batch.", "algorithm.", "sampling_params.", "schedule.warmup_steps"),
    *("schedule.final_learning_rate_fraction", "lora.", "optimizer.", "async_config."),
    *("rollout.rollout_max_tokens", "rollout.trunc"),
)


def _set(job: Json, leaf: str, value: Any) -> None:
    *blocks, name = leaf.split(".")
    at = job
    for block in blocks:
        at = at.setdefault(block, {})
    at[name] = value


# ── a job's document ──────────────────────────────────────────────────────────────────────────


def mirrored(document: Json) -> Json:
    """The document with MlflowConfig where the sagemaker SDK looks for it, in TrainingConfig."""
    given = (document.get("OutputDataConfig") or {}).get("MlflowConfig")
    training = document.get("TrainingConfig")
    if given is None or training is None or training.get("MlflowConfig") is not None:
        return document
    return document | {"TrainingConfig": training | {"MlflowConfig": given}}


def document_of(
    spec: JobSpec, base: BaseModel, *, agent_arn: str, mlflow_arn: str, region: str, number: str
) -> Json:
    """The document of a job that came by another door; what AWS has no words for is left out."""
    settings = dict(flattened(as_mapping(spec)))
    recipe = recipe_of(base, spec.kind)
    configuration: Json = {
        "BaseModelArn": base_model_arn(base, region=region),
        "AcceptEula": True,
        "HyperParameters": {each.name: str(settings[each.leaf]) for each in recipe.hyperparameters},
    }
    if spec.tracking.mlflow and mlflow_arn:
        named = {
            "MlflowExperimentName": spec.tracking.experiment,
            "MlflowRunName": spec.tracking.run_name,
        }
        configuration["MlflowConfig"] = {"MlflowResourceArn": mlflow_arn} | {
            key: value for key, value in named.items() if value
        }
    is_training = spec.kind is JobKind.TRAIN
    sources = {TRAIN if is_training else EVALUATION: spec.dataset}
    if spec.validation_dataset and is_training:
        sources[VALIDATION] = spec.validation_dataset
    document: Json = {
        "AgentConfig": _agent_config(agent_arn),
        "InputDataConfig": [_channel(name, source) for name, source in sources.items()],
        "TrainingConfig" if is_training else "EvaluationConfig": configuration,
    }
    if spec.output_path:
        document["OutputDataConfig"] = {"S3OutputPath": spec.output_path}
    if packages := _packages_of(spec, region, number):
        document["ModelPackageConfig"] = packages
    return document


def base_model_arn(base: BaseModel, *, region: str) -> str:
    """A base model's ARN in the public hub, which the evaluator looks for."""
    return str(HubContentArn(region=region, kind="Model", name=base.name, version=base.version))


def _agent_config(arn: str) -> Json:
    if ":bedrock-agentcore:" in arn:
        return {"BedrockAgentCoreConfig": {"AgentRuntimeArn": arn, "Qualifier": "DEFAULT"}}
    return {"CustomAgentLambdaConfig": {"LambdaArn": arn}}


def _channel(name: str, source: str) -> Json:
    uri = source if "://" in source else f"file://{source}"
    data = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}}
    return {"ChannelName": name, "DataSource": data}


def _packages_of(spec: JobSpec, region: str, number: str) -> Json:
    def group(name: str) -> str:
        return str(ModelPackageGroupArn(region=region, number=number, name=name))

    found: Json = {}
    if spec.kind is JobKind.TRAIN:
        found["OutputModelPackageGroupArn"] = group(spec.adapters_in)
        found["IntermediateCheckpointModelPackageGroupArn"] = group(spec.checkpoints_in)
    start = spec.resume_from or spec.input_adapter
    if spec.kind is JobKind.EVALUATION:
        named = [model for model in spec.evaluated_models if model != BASE]
        start = named[0] if named else ""
    if start and "/" in start and not start.startswith("/"):
        found["InputModelPackageArn"] = package_arn(start, region=region, number=number)
    return found


def package_arn(name: str, *, region: str, number: str) -> str:
    """The ARN of "group/version"."""
    group, _, version = name.rpartition("/")
    return str(ModelPackageArn(region=region, number=number, group=group, version=int(version)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is known of a job beside its own record."""

    steps: int = 0  # that it makes in all; 0: unknown
    rollouts: tuple[int, int] | None = None  # scored, planned: of the step under way, or in all
    usage: TokenUsage | None = None
    mlflow: Mapping[str, str] | None = None
    adapter: ModelPackage | None = None  # the newest it registered
    checkpoint: ModelPackage | None = None


def service_output(job: Job, outcome: Outcome, *, region: str, number: str) -> Json:
    """`ServiceOutput`: progress, cost and models of a job."""

    def arn(name: str) -> str:
        return package_arn(name, region=region, number=number)

    found: Json = {}
    if job.spec.kind is JobKind.TRAIN:
        most = outcome.steps or job.spec.schedule.max_steps
        under_way = job.step if job.status.is_final else job.step + 1
        found["ProgressInfo"] = {
            "MaxSteps": most,
            "CurrentStep": min(under_way, most),
            "BatchSize": job.spec.batch.global_batch_size,
        }
    if outcome.rollouts is not None:
        done, planned = outcome.rollouts
        found["RolloutInfo"] = {"Completed": min(done, planned), "Total": planned}
    if outcome.mlflow is not None:
        found["MlflowDetails"] = dict(outcome.mlflow)
    if outcome.usage is not None:
        found["BillableTokenUsage"] = {
            "TrainTokenCount": outcome.usage.train,
            "PrefillTokenCount": outcome.usage.prefill,
            "SampleTokenCount": outcome.usage.sample,
        }
    if job.output and job.status.is_final:
        found["OutputModelPackageArn"] = arn(job.output)
    for member, package in (
        ("ModelCheckpoint", outcome.adapter),
        ("ResumableCheckpoint", outcome.checkpoint),
    ):
        if package is not None:
            found[member] = {"ModelPackageArn": arn(package.name), "Step": package.step + 1}
    return found
