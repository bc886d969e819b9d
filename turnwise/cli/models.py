"""`turnwise models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from turnwise import errors
from turnwise.cli.screen import AsJson, clock, err, show, table
from turnwise.cli.server import server

Json = dict[str, Any]

app = typer.Typer(no_args_is_help=True, help="Models: list, export, delete, add-base ...")


@app.command("list")
def models_list(
    group: Annotated[str | None, typer.Option(help="Only this group.")] = None,
    as_json: AsJson = False,
) -> None:
    """Registered models, oldest first."""
    with server.client() as client:
        found = client.models(group=group)
    show(found, as_json, lambda: table(map(_model_row, found), _MODEL_COLUMNS))


_MODEL_COLUMNS = ("name", "kind", "step", "reward", "job", "created", "files", "sha256")


def _model_row(model: Json) -> Json:
    metadata = model["metadata"]
    return model | {
        "reward": metadata.get("metrics", {}).get("rollout/reward/mean"),
        "job": metadata.get("job", {}).get("name", model["job_id"]),
        "created": clock(model["created_at"]),
        "files": "kept" if model["pruned_at"] is None else "pruned",
        "sha256": model["sha256"][:12],
    }


@app.command("describe")
def models_describe(
    name: Annotated[str, typer.Argument(help='"group/version", or "group" for the newest.')],
    as_json: AsJson = False,
) -> None:
    """One model and where it comes from: job, step, base, data, settings, code."""
    with server.client() as client:
        model = client.model(name)
    show(model, as_json, lambda: yaml.safe_dump(model, sort_keys=False))


@app.command("export")
def models_export(
    name: Annotated[str, typer.Argument(help='"group/version", or "group" for the newest.')],
    folder: Annotated[Path, typer.Argument(help="A new folder to write.")],
    merged: Annotated[
        bool, typer.Option(help="Write a whole model, the adapter merged into its base.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model as a PEFT folder, or merged into its base as a Hugging Face folder."""
    if folder.exists():
        raise errors.InvalidInput("folder", str(folder), "exists", remedy="name a new folder")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bar = Progress(*columns, console=err, disable=as_json or not err.is_terminal)
    with server.client() as client, bar:
        task = bar.add_task(name, total=None)
        client.export_model(
            name,
            folder,
            merged=merged,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    facts = {"model": name, "folder": str(folder), "merged": merged}
    show(facts, as_json, lambda: f"wrote {folder}")


@app.command("delete")
def models_delete(
    name: Annotated[str, typer.Argument(help='One version, "group/version".')],
    as_json: AsJson = False,
) -> None:
    """Delete a model and its files, unless a job that has not ended needs it."""
    with server.client() as client:
        model = client.delete_model(name)
    show(model, as_json, lambda: f"deleted {model['name']}")


@app.command("add-base")
def models_add_base(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face model folder on this machine.")],
    name: Annotated[str, typer.Option(help="The name that AWS clients know it by.")],
    as_json: AsJson = False,
) -> None:
    """Give a base model a name, on the server's own machine: a link in its folder of models.

    The server need not be running, and sees the model at once if it is.
    """
    from turnwise.control.models.catalogue import Catalogue
    from turnwise.settings import load_settings

    given: Json = {} if server.data_dir is None else {"data_dir": server.data_dir}
    catalogue = Catalogue(load_settings(**given).models_folder)
    model = catalogue.add(folder, name)
    facts = {"name": model.name, "folder": str(model.folder), "version": model.version}
    text = f"{name} is {model.folder}, by a link in {catalogue.models_dir}"
    show(facts, as_json, lambda: text)
