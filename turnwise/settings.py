"""The server's settings: environment (`TURNWISE_*`) over `turnwise.toml` over these defaults.

`python -m turnwise.settings` prints docs/settings.md.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

import pydantic
from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from turnwise import errors

PREFIX = "TURNWISE_"
TOML = "turnwise.toml"  # in the working directory


class Settings(BaseSettings):
    """What an operator may set. Each field is documented in docs/settings.md."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, toml_file=TOML, env_ignore_empty=True, frozen=True, extra="forbid"
    )

    data_dir: Path = Field(Path("data"), description="Where everything is kept; mode 0700.")
    host: str = Field(
        "127.0.0.1", description="Address to listen on. Loopback unless you say otherwise."
    )
    port: int = Field(8420, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    public_url: str = Field(
        "", description="Base URL that agents reach this server by; default http://host:port."
    )
    database_url: str = Field(
        "", description="SQLAlchemy URL; default a SQLite file in the data folder."
    )
    region: str = Field(
        "us-west-2",
        pattern=r"^[a-z]{2}(-[a-z]+)+-\d$",
        description="Region that AWS clients address this server in, and of the ARNs it makes; the "
        "sagemaker SDK accepts us-east-1, us-west-2, ap-northeast-1 and eu-west-1.",
    )
    master_key_file: str = Field(
        "",
        description="File with the key that seals access keys in the database; default master.key "
        "in the data folder, made at the first start. Keep it out of the database's backups.",
    )
    models_dir: str = Field(
        "",
        description="Folder of base models by name, each a Hugging Face folder or a link to one; "
        "default models/ in the data folder. AWS clients see them as hub content.",
    )
    mlflow: str = Field(
        "auto",
        pattern=r"^(auto|off)$",
        description="auto: an account's MLflow is started when it is first needed (250 MB each); "
        "off: there is none. Needs the extra `mlflow`.",
    )
    mlflow_traces_per_step: int = Field(
        512,
        ge=0,
        description="Rollouts per step that get a trace in MLflow. Of a job with more per step, a "
        "sample of that size is traced, and every rollout that failed.",
    )
    s3_endpoint_url: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="A real S3, as https://s3.us-west-2.amazonaws.com, for s3:// URIs whose "
        "buckets this server does not have; with the credentials that boto3 finds, for all "
        "accounts. Needs the extra `s3`.",
    )
    agent_log_entries: int = Field(
        20_000,
        ge=1,
        description="Entries of a registered agent's log that stay; the oldest go first.",
    )
    max_running_jobs: int = Field(4, ge=1, description="Jobs that run at once; others wait.")
    account_running_jobs: int = Field(
        0,
        ge=0,
        description="Jobs of one account that run at once; others wait. 0: max_running_jobs.",
    )
    quota_training_jobs: int = Field(
        0,
        ge=0,
        description="Unfinished training jobs of one account, waiting ones included, past which "
        "the AWS door refuses another with ResourceLimitExceeded (AWS's own default is 1); "
        "the native API lets them wait. 0: max_running_jobs.",
    )
    quota_evaluation_jobs: int = Field(
        0,
        ge=0,
        description="The same of evaluation jobs; a pipeline's step waits for room. "
        "0: max_running_jobs.",
    )
    device: str = Field(
        "cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="Where engines and learners compute."
    )
    engine_threads: int = Field(1, ge=1, description="Compute threads of an engine.")
    engine_slots: int = Field(128, ge=1, description="Requests that an engine decodes at once.")
    engine_max_length: int = Field(4096, ge=16, description="Longest prompt + completion, tokens.")
    engine_queue: int = Field(1024, ge=1, description="Waiting requests before 429 is answered.")
    learner_threads: int = Field(1, ge=1, description="Compute threads of a learner.")
    serving_models: int = Field(
        8, ge=1, description="Registered models that stay loaded while nobody asks for them."
    )
    serving_idle_s: int = Field(
        600,
        ge=1,
        description="Seconds after its last call until a registered model is unloaded, and from "
        "its last user's leaving until an engine ends.",
    )
    evaluator_python: str = Field(
        "",
        description="Python that runs uploaded evaluators: the path of one in an environment with "
        "eval-protocol and pytest. Default the server's own, if it has eval-protocol.",
    )
    evaluator_isolation: str = Field(
        "required",
        pattern=r"^(required|best_effort)$",
        description="required: an evaluator runs in namespaces of its own, without the data folder "
        "and without network, and is refused where the kernel does not allow that; best_effort: it "
        "then runs with a clean environment and limits alone.",
    )
    evaluator_network: str = Field(
        "none",
        pattern=r"^(none|host)$",
        description="none: an evaluator reaches this server and nothing else; host: it has the "
        "network of this machine, as one needs whose rollouts run on a remote server or whose "
        "judge is a model elsewhere.",
    )
    evaluator_processes: int = Field(
        4, ge=1, description="Runs of evaluators at once, over all jobs; others wait."
    )
    evaluator_memory_mb: int = Field(
        4096, ge=0, description="Address space of each process of an evaluator, MiB; 0: no limit."
    )
    evaluator_cpu_s: int = Field(
        3600, ge=0, description="CPU seconds of each process of an evaluator; 0: no limit."
    )
    evaluator_file_mb: int = Field(
        1024, ge=0, description="Largest file that an evaluator may write, MiB; 0: no limit."
    )
    evaluator_tasks: int = Field(
        256, ge=0, description="Processes and threads of an evaluator's sandbox; 0: no limit."
    )
    evaluator_open_files: int = Field(
        1024, ge=64, description="Open files of each process of an evaluator."
    )
    evaluator_unpacked_mb: int = Field(
        1024, ge=1, description="What an evaluator's archive may hold unpacked, MiB."
    )
    evaluator_build_s: int = Field(
        600, ge=1, description="Seconds that building an evaluator may take."
    )

    audit_retention_days: int = Field(
        90,
        ge=90,
        description="Days that records of the audit trail are kept; older ones are dropped by the "
        "segment, up to a day later.",
    )
    trace_retention_days: int = Field(
        30,
        ge=1,
        description="Days that traced model calls and log entries of remote rollouts are kept "
        "(docs/fireworks-tracing.md).",
    )

    price_train_per_million: float = Field(
        0.0,
        ge=0,
        description="What a million trained tokens cost, in any currency; with the three prices "
        "below, job pages estimate what a job cost. All 0: they show tokens and hours alone.",
    )
    price_prefill_per_million: float = Field(
        0.0, ge=0, description="The same of prompt tokens that were computed."
    )
    price_cached_per_million: float = Field(
        0.0, ge=0, description="The same of prompt tokens that came from the prefix cache."
    )
    price_sample_per_million: float = Field(0.0, ge=0, description="The same of sampled tokens.")

    @property
    def models_folder(self) -> Path:
        """Where the base models are."""
        return Path(self.models_dir) if self.models_dir else self.data_dir / "models"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(**given: Any) -> Settings:
    """The settings, `given` ones first.

    Raises `InvalidInput` that names the option, variable or line of the file, and what is allowed.
    """
    try:
        return Settings(**given)
    except tomllib.TOMLDecodeError as error:
        where = str(Path(TOML).resolve())
        raise errors.InvalidInput(TOML, where, f"is not TOML: {error}") from None
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
    name, value = str(problem["loc"][0]), problem["input"]
    if name not in Settings.model_fields:
        near = difflib.get_close_matches(name, Settings.model_fields, n=1)
        remedy = f"did you mean {near[0]}?" if near else "docs/settings.md lists all"
        raise errors.InvalidInput(
            f"{TOML}: {name}", value, "is set, but there is no such setting", remedy=remedy
        )
    raise errors.InvalidInput(
        _source(name, given), value, "is not allowed", remedy=f"must be {_allowed(name)}"
    )


def _source(name: str, given: dict[str, Any]) -> str:
    """Where the value of a field came from, as the operator wrote it."""
    if name in given:
        return "--" + name.replace("_", "-")
    variable = next((key for key in os.environ if key.upper() == (PREFIX + name).upper()), None)
    return variable or f"{TOML}: {name}"


def _allowed(name: str) -> str:
    """What a field may be, in words."""
    schema = Settings.model_json_schema()["properties"][name]
    if name == "device":
        return "cpu, cuda or cuda:N"
    if name == "mlflow":
        return "auto or off"
    if name == "evaluator_isolation":
        return "required or best_effort"
    if name == "evaluator_network":
        return "none or host"
    if name == "region":
        return "a region's name"
    if name == "s3_endpoint_url":
        return "an http:// or https:// address"
    if schema["type"] not in ("integer", "number"):
        return "a path" if schema.get("format") == "path" else "text"
    high = f" to {schema['maximum']}" if "maximum" in schema else " or more"
    kind = "a whole number" if schema["type"] == "integer" else "a number"
    return f"{kind}, {schema['minimum']:g}{high}"


def wandb_api_key() -> str:
    """The key that W&B's own clients take, for jobs whose account has none; "" without one."""
    return os.environ.get("WANDB_API_KEY", "")


_HEAD = """\
# Settings of the server

Printed from `turnwise/settings.py` by `python -m turnwise.settings > docs/settings.md`.

Each setting is an environment variable, or a line of `turnwise.toml` in the directory that
`turnwise serve` is started in (`port = 8421`). An option of `turnwise serve` wins over the
variable, the variable over the file, the file over the default.

Clients (the CLI, `turnwise.client`) read three variables of their own: `TURNWISE_URL`,
`TURNWISE_API_KEY`, and `TURNWISE_DATA_DIR` for the files that a server on the same machine leaves
there. `WANDB_API_KEY` is the key of the operator's jobs with `tracking.wandb`, unless a secret of
the account holds one; `WANDB_BASE_URL` names another W&B than the public one.

| variable | in turnwise.toml | default | allowed | meaning |
|---|---|---|---|---|
"""


def _shown(default: object) -> str:
    return "" if default == "" else f"`{default}`"


def markdown() -> str:
    """All settings as docs/settings.md."""
    lines = [
        f"| `{PREFIX}{name.upper()}` | `{name}` | {_shown(field.default)} "
        f"| {_allowed(name)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return _HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
