"""Jobs from flags: which job file they say, and what the command makes of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import builders
from tests.unit.client.serving import Serving
from tests.unit.test_cli import (  # noqa: F401  fixtures
    Run,
    _no_environment,
    serving,
    turnwise,
)
from turnwise import errors
from turnwise.cli.flags import MANY_STEPS, SETTINGS, Flags, job_of
from turnwise.cli.train import train
from turnwise.control.job_file import parse_job
from turnwise.control.job_settings import leaves

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def job(model: str = "/models/tiny", lora: Any = None, **flags: Any) -> dict[str, Any]:
    """The job file of these flags and the least that there must be."""
    least = {"dataset": "/data/rows.jsonl", "evaluator": "maths"}
    given = Flags(**(least | flags))
    return job_of(given, model=model, lora=lora, folder=Path("/here"), now="20260102030405")


# ── flags to job file ─────────────────────────────────────────────────────────────────────────


def test_the_least_flags_are_a_whole_job_file():
    assert job() == {
        "name": "maths-20260102030405",
        "model": "/models/tiny",
        "dataset": "/data/rows.jsonl",
        "agent": {"kind": "evaluator", "target": "maths"},
        "prompt_column": "messages",
        "schedule": {"max_steps": MANY_STEPS},
    }


def test_every_flag_sets_what_it_says():
    made = parse_job(
        job(
            evaluation_dataset="accounts/default/datasets/held-out",
            output_model="accounts/default/models/maths-model",
            job_id="first",
            epochs=3,
            n=4,
            chunk_size=16,
            batch_size=4096,
            temperature=0.7,
            top_p=0.9,
            top_k=40,
            max_tokens=256,
            learning_rate=5e-5,
            lora_rank=16,
            rollout_timeout=90.0,
            max_concurrent_rollouts=12,
            wandb_project="walks",
            wandb_entity="us",
        )
    )
    assert (made.name, made.output_group) == ("first", "maths-model")
    assert made.validation_dataset == "s3://turnwise-datasets/held-out/"
    assert (made.schedule.max_epochs, made.batch.group_size) == (3, 4)
    assert (made.batch.global_batch_size, made.batch.tokens_per_micro_batch) == (16, 4096)
    sampling = made.sampling_params
    assert (sampling.temperature, sampling.top_p) == (0.7, 0.9)
    assert (sampling.top_k, sampling.max_tokens) == (40, 256)
    assert (made.optimizer.learning_rate, made.lora.rank, made.lora.alpha) == (5e-5, 16, 32.0)
    assert (made.rollout.rollout_timeout, made.rollout.rollout_max_concurrency) == (90.0, 12)
    wandb = made.tracking.wandb
    assert (wandb.enabled, wandb.project, wandb.entity) == (True, "walks", "us")


def test_an_agent_by_url_has_rows_of_its_own_form():
    made = job(evaluator="", agent_url="http://127.0.0.1:8430")
    assert made["agent"] == {"kind": "http", "url": "http://127.0.0.1:8430"}
    assert "prompt_column" not in made
    assert made["name"] == "train-20260102030405"


@pytest.mark.parametrize("name", ["walk", "walk/3", "accounts/default/models/walk"])
def test_a_warm_start_keeps_the_adapters_shape_unless_told(name: str):
    shape = {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj"]}
    made = job(warm_start_from=name, lora=shape)
    assert (made["input_adapter"], made["lora"]) == ("walk/3" if "/3" in name else "walk", shape)
    told = job(warm_start_from=name, lora=shape, lora_rank=8)
    assert told["lora"] == shape | {"rank": 8, "alpha": 16}


def test_a_dataset_is_a_path_where_there_is_one_else_an_uploaded_one(tmp_path: Path):
    (tmp_path / "rows").mkdir()

    def where(text: str) -> str:
        flags = Flags(dataset=text, evaluator="maths")
        return job_of(flags, model="/m", folder=tmp_path, now="1")["dataset"]

    assert where("rows") == str(tmp_path / "rows")
    assert where("others") == "s3://turnwise-datasets/others/"
    assert where("s3://mine/rows.jsonl") == "s3://mine/rows.jsonl"
    assert where("sub/rows.csv") == str(tmp_path / "sub/rows.csv")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset": ""}, "--dataset: '' is empty; name a path, an s3:// URI or an uploaded"),
        ({"evaluator": ""}, "--evaluator: '' is not set, nor is --agent-url; give one of them"),
        (
            {"agent_url": "http://a:1"},
            "--evaluator: 'maths and http://a:1' is set together with --agent-url; give one",
        ),
        ({"evaluator": "a/b"}, "--evaluator: 'a/b' is not a name; use ID or accounts/ACCOUNT/eval"),
        (
            {"evaluator": "accounts/default/models/maths"},
            "--evaluator: 'accounts/default/models/maths' names one of models; use accounts/",
        ),
        (
            {"dataset": "accounts/default/models/rows"},
            "--dataset: 'accounts/default/models/rows' names one of models; use accounts/ACCOUNT/d",
        ),
        ({"output_model": "a/1"}, "--output-model: 'a/1' is not a name; use ID or accounts/"),
        ({"warm_start_from": "a/b/c"}, "--warm-start-from: 'a/b/c' is not a registered model; use"),
    ],
)
def test_a_flag_that_says_nothing_sensible_is_refused_by_name(flags: dict[str, Any], message: str):
    with pytest.raises(errors.InvalidInput) as refused:
        job(**flags)
    assert str(refused.value).startswith(message)


def test_a_value_out_of_range_is_refused_as_the_job_file_would_be():
    with pytest.raises(errors.InvalidInput, match=r"batch.group_size: 1 leaves group_based"):
        parse_job(job(n=1))


# ── the command ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def flags(serving: Serving, tmp_path: Path) -> list[str]:  # noqa: F811
    """Those of a job that this server can start."""
    made = serving.world.job_file("walk")
    return [
        *("--base-model", made["model"], "--dataset", made["dataset"]),
        *("--agent-url", "http://127.0.0.1:9", "--job-id", "walk", "--n", "4"),
    ]


@pytest.mark.parametrize("command", [("train",), ("create", "rft")])
def test_flags_write_their_job_file_start_the_job_and_follow_it(
    turnwise: Run,  # noqa: F811
    flags: list[str],
    command: tuple[str, ...],
):
    said = turnwise(*command, *flags)
    assert (said.status, said.err) == (0, "")
    text, _, events = said.out.partition("\n\n")
    assert yaml.safe_load(text)["batch"] == {"group_size": 4}
    assert "COMPLETED (Completed)" in events
    assert turnwise("jobs", "describe", "walk", "--json").json["spec"]["batch"]["group_size"] == 4


def test_with_json_the_job_file_comes_first_and_with_output_in_a_file(
    turnwise: Run,  # noqa: F811
    flags: list[str],
    tmp_path: Path,
):
    said = turnwise("train", *flags, "--no-follow", "--json", "--output", "job.yaml")
    assert said.json["name"] == "walk"
    written = tmp_path / "job.yaml"
    assert parse_job(yaml.safe_load(written.read_text())).name == "walk"
    said = turnwise("train", *flags, "--dry-run", "--json")
    assert said.json["job_file"] == yaml.safe_load(written.read_text())
    again = turnwise("train", str(written), "--dry-run")
    assert yaml.safe_load(again.out)["schedule"]["stop_early"] is True
    said = turnwise("train", *flags, "--dry-run", "--output", "no/folder")
    assert said.err == (
        "error: --output: 'no/folder' cannot be written: No such file or directory\n"
    )


def test_a_dry_run_starts_nothing(turnwise: Run, flags: list[str]):  # noqa: F811
    assert turnwise("train", *flags, "--dry-run").status == 0
    assert turnwise("jobs", "list", "--json").json == []


def test_a_warm_start_takes_base_and_shape_from_the_model(
    turnwise: Run,  # noqa: F811
    serving: Serving,  # noqa: F811
    flags: list[str],
):
    config = {"lora": {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj"]}}
    made = builders.package(base_model=flags[1], metadata={"config": config})
    serving.call(serving.world.store.register([made]))
    said = turnwise("train", *flags[2:], "--warm-start-from", made.name, "--dry-run", "--json")
    written = said.json["job_file"]
    assert (written["model"], written["input_adapter"]) == (made.base_model, made.name)
    assert written["lora"] == config["lora"]


def test_a_base_model_has_the_name_that_it_was_given_here(
    turnwise: Run,  # noqa: F811
    serving: Serving,  # noqa: F811
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    model, rest = flags[1], flags[2:]
    monkeypatch.setenv("TURNWISE_DATA_DIR", str(serving.data))
    (Path(model) / "config.json").touch()
    folder = serving.data / "models" / "tiny"
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(model)
    named = turnwise("train", "--base-model", "accounts/fireworks/models/tiny", *rest, "--dry-run")
    assert yaml.safe_load(named.out)["model"] == model
    said = turnwise("train", "--base-model", "huge", *rest)
    assert said.err.startswith("error: --base-model: 'huge' is no folder, and no model's name in ")
    assert said.err.endswith("or its name to `turnwise models add-base`\n")


def test_wrong_usage_exits_with_2_and_asks_no_server(turnwise: Run):  # noqa: F811
    said = turnwise("train", "job.yaml", "--n", "4")
    assert said.status == 2
    assert "give a job file or flags, not both" in said.err
    said = turnwise("create", "rft")
    assert said.status == 2
    assert "give a job file, or --base-model, --dataset and --evaluator" in said.err
    said = turnwise("train", "--dataset", "rows", "--evaluator", "maths")
    assert said.err.startswith("error: --base-model: '' is not set; name one, or a model with")


# ── the page ──────────────────────────────────────────────────────────────────────────────────


def test_every_flag_is_documented_with_its_setting():
    page = DOCS.read_text()
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| ")}
    settings = {leaf.path for leaf in leaves()}
    for field in fields(Flags):
        flag = f"`--{field.name.replace('_', '-')}`"
        [row] = [line for flags, line in rows.items() if flag in flags.split(", ")]
        if setting := SETTINGS.get(field.name):
            assert setting in settings
            assert f"`{setting}`" in row


def test_every_flag_of_a_job_is_an_option_of_the_command():
    command: Callable[..., None] = train
    assert {field.name for field in fields(Flags)} <= set(inspect.signature(command).parameters)
