"""`turnwise train`, from a job file or from flags; `turnwise create rft` is another name of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from turnwise import errors
from turnwise.cli.flags import Flags, id_of, job_of, model_name
from turnwise.cli.jobs import run_job
from turnwise.cli.screen import AsJson, say
from turnwise.cli.server import server
from turnwise.control.job_file import as_mapping, parse_job, read_job

Json = dict[str, Any]

create = typer.Typer(no_args_is_help=True, help="Jobs from flags: rft.")


@create.command("rft")
def train(
    job_file: Annotated[
        Path | None, typer.Argument(help="The job, as YAML or JSON; or give flags.")
    ] = None,
    base_model: Annotated[
        str, typer.Option(help="A base model's folder, or its name on this machine's server.")
    ] = "",
    dataset: Annotated[
        str, typer.Option(help="Rows to train on: a path, an s3:// URI or an uploaded dataset.")
    ] = "",
    evaluation_dataset: Annotated[str, typer.Option(help="Rows to validate on.")] = "",
    evaluator: Annotated[str, typer.Option(help="An uploaded evaluator's id.")] = "",
    agent_url: Annotated[
        str, typer.Option(help="In place of --evaluator: an agent's base URL.")
    ] = "",
    output_model: Annotated[
        str, typer.Option(help="The group that the models are registered in.")
    ] = "",
    warm_start_from: Annotated[
        str, typer.Option(help="A registered model to go on from; its base is the job's.")
    ] = "",
    job_id: Annotated[str, typer.Option(help="The job's name.")] = "",
    epochs: Annotated[int | None, typer.Option(help="Passes over the rows.")] = None,
    n: Annotated[
        int | None, typer.Option("--n", "--response-candidates-count", help="Rollouts per row.")
    ] = None,
    chunk_size: Annotated[int | None, typer.Option(help="Rows per step.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Tokens that the learner reads at once.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of training rollouts.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of training rollouts.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Of training rollouts; 0: all.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", "--max-output-tokens", help="Most tokens of one turn."),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the optimizer.")] = None,
    lora_rank: Annotated[
        int | None, typer.Option(help="Of the adapter; alpha is twice it.")
    ] = None,
    rollout_timeout: Annotated[
        float | None, typer.Option(help="Longest time for one rollout, in seconds.")
    ] = None,
    max_concurrent_rollouts: Annotated[
        int | None, typer.Option(help="Rollouts under way at once.")
    ] = None,
    wandb_project: Annotated[
        str | None, typer.Option(help="Show the job in this project of Weights & Biases.")
    ] = None,
    wandb_entity: Annotated[str | None, typer.Option(help="The W&B team or user.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the job file here, not to standard output.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Write the job file and start nothing.")] = False,
    follow: Annotated[bool, typer.Option(help="Follow the job to its end.")] = True,
    detach: Annotated[bool, typer.Option(help="The same as --no-follow.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start the job of a job file, or of flags, and follow it to its end."""
    given = locals()
    flags = Flags(**{name: given[name] for name in Flags.__dataclass_fields__})
    if job_file is not None and flags != Flags():
        raise typer.BadParameter("give a job file or flags, not both")
    if job_file is None and flags == Flags():
        raise typer.BadParameter("give a job file, or --base-model, --dataset and --evaluator")
    if job_file is not None:
        job = as_mapping(read_job(job_file))
        if dry_run or output is not None:
            _write(job, output, as_json)
    else:
        written = _from_flags(flags)
        job = as_mapping(parse_job(written, folder=Path.cwd()))
        _write(written, output, as_json)
    if not dry_run:
        with server.client() as client:
            run_job(client, job, detach=detach or not follow, as_json=as_json)


def _from_flags(flags: Flags) -> Json:
    model, lora = flags.base_model, None
    if flags.warm_start_from:
        with server.client() as client:
            found = client.model(model_name(flags.warm_start_from))
        model = model or found["base_model"]
        lora = found["metadata"].get("config", {}).get("lora")
    if not model:
        raise errors.InvalidInput(
            "--base-model", "", "is not set", remedy="name one, or a model with --warm-start-from"
        )
    now = time.strftime("%Y%m%d%H%M%S")
    return job_of(flags, model=_base_folder(model), lora=lora, folder=Path.cwd(), now=now)


def _base_folder(model: str) -> str:
    """A path made absolute; a name's folder among the models of the server on this machine."""
    path = Path(model).expanduser()
    if path.is_absolute() or path.exists():
        return str(path.resolve())
    from turnwise.control.models.catalogue import Catalogue
    from turnwise.settings import load_settings

    name = id_of("--base-model", model, "models")
    given: Json = {} if server.data_dir is None else {"data_dir": server.data_dir}
    catalogue = Catalogue(load_settings(**given).models_folder)
    try:
        return str(catalogue.model(name).folder)
    except errors.NotFound:
        raise errors.InvalidInput(
            "--base-model",
            model,
            f"is no folder, and no model's name in {catalogue.models_dir}",
            remedy="give its folder, or its name to `turnwise models add-base`",
        ) from None


def _write(job: Json, output: Path | None, as_json: bool) -> None:
    """The job file, to a file or to standard output."""
    text = yaml.safe_dump(job, sort_keys=False)
    if output is not None:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            reason = f"cannot be written: {error.strerror}"
            raise errors.InvalidInput("--output", str(output), reason) from None
    elif as_json:
        print(json.dumps({"job_file": job}))
    else:
        say(text)
