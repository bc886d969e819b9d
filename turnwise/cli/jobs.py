"""`turnwise eval` and `turnwise jobs`."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table

from turnwise import errors
from turnwise.cli.screen import AsJson, cell, clock, out, say, show, table
from turnwise.cli.server import pages, server
from turnwise.client import Client
from turnwise.control.job_file import as_mapping, parse_job, read_job
from turnwise.domain.job import JobKind
from turnwise.domain.metrics import HEADLINE
from turnwise.terminal import harmless, summary

Json = dict[str, Any]

app = typer.Typer(no_args_is_help=True, help="Jobs: list, describe, logs, metrics, stop ...")

Name = Annotated[str, typer.Argument(help="The job's name or id.")]


def evaluate(
    job_file: Annotated[Path, typer.Argument(help="The job whose agent and model to evaluate.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A registered model, a PEFT folder or `base`; give several to compare the first "
            "with the others on the same rows. Default: as the job file says, else the base model."
        ),
    ] = None,
    dataset: Annotated[str, typer.Option(help="Rows; default the job's validation set.")] = "",
    rows: Annotated[
        int | None, typer.Option(min=0, help="Take the first N rows; 0 takes all.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    group_size: Annotated[int | None, typer.Option(min=1, help="Rollouts per row.")] = None,
    name: Annotated[str, typer.Option(help="The evaluation job's name.")] = "",
    detach: Annotated[bool, typer.Option(help="Start it and return.")] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate models with a job's agent, by its `evaluation` block; a summary at the end."""
    job = as_mapping(read_job(job_file))
    job["kind"] = JobKind.EVALUATION.value
    job["resume_from"] = ""  # what its training went on from is none of the models to evaluate
    job["name"] = name or f"{job['name'][:40]}-eval-{time.strftime('%Y%m%d%H%M%S')}"
    job["dataset"] = dataset or job["validation_dataset"] or job["dataset"]
    given = {"models": model, "max_rows": rows, "group_size": group_size}
    job["evaluation"] |= {key: value for key, value in given.items() if value is not None}
    if temperature is not None:
        job["eval_sampling_params"]["temperature"] = temperature
    job = as_mapping(parse_job(job, folder=Path.cwd()))
    with server.client() as client:
        run_job(client, job, detach=detach, as_json=as_json)


def run_job(client: Client, job_file: Json, *, detach: bool, as_json: bool) -> None:
    """Start a job and, unless told to `detach`, show its events to its end; exits with 1 if it
    fails.
    """
    job = client.create_job(job_file)
    if not detach:
        for event in client.follow(job["name"]):
            if as_json or event["kind"] != "rollout":
                _show_event(event, as_json)
        job = client.job(job["name"])
    show(job, as_json, lambda: _job_text(job))
    if job["kind"] == JobKind.EVALUATION and job["status"] in ("COMPLETED", "FAILED"):
        with contextlib.suppress(errors.Conflict):  # it failed before it had any
            _show_results(client, job["name"], as_json)
    if job["status"] == "FAILED":
        raise typer.Exit(1)


@app.command("list")
def jobs_list(
    status: Annotated[str | None, typer.Option(help="Only jobs of this status.")] = None,
    as_json: AsJson = False,
) -> None:
    """Jobs, newest first."""
    with server.client() as client:
        found = client.jobs(status=status)
    show(found, as_json, lambda: table(found, _JOB_COLUMNS))


@app.command("describe")
def jobs_describe(name: Name, as_json: AsJson = False) -> None:
    """One job: where it stands, what it cost in tokens, and its whole job file."""
    with server.client() as client:
        job = client.job(name)
        spec = job.pop("spec")
        job |= {"usage": client.usage(name), "spec": spec}
    show(job, as_json, lambda: yaml.safe_dump(job, sort_keys=False))


@app.command("logs")
def jobs_logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Events past this number.")] = 0,
    kind: Annotated[list[str] | None, typer.Option(help="Only events of this kind.")] = None,
    as_json: AsJson = False,
) -> None:
    """A job's events: status, logs, steps, rollouts."""
    kinds = tuple(kind or ())
    with server.client() as client:
        events = (
            client.follow(name, after=after, kinds=kinds)
            if follow
            else pages(lambda at: client.events(name, after=at, kinds=kinds), after)
        )
        for event in events:
            _show_event(event, as_json)


@app.command("metrics")
def jobs_metrics(
    name: Name,
    metric: Annotated[list[str] | None, typer.Option(help="Names that start so.")] = None,
    as_json: AsJson = False,
) -> None:
    """A job's metrics: the latest values, or every point with --json."""
    with server.client() as client:
        curves = client.metrics(name, names=tuple(metric or ()))
    latest = [{"metric": key} | curve[-1] for key, curve in curves.items()]
    show(curves, as_json, lambda: table(latest, ("metric", "step", "value")))


@app.command("export")
def jobs_export(
    name: Name,
    what: Annotated[str, typer.Argument(help="metrics or rollouts.")] = "metrics",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file; default NAME-WHAT.FORMAT.")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="csv, json or parquet.")] = "csv",
    metric: Annotated[list[str] | None, typer.Option(help="Metrics that start so.")] = None,
    step: Annotated[int | None, typer.Option(help="Rollouts of this step.")] = None,
    purpose: Annotated[
        str | None, typer.Option(help="Rollouts for this: train, validation or evaluation.")
    ] = None,
    status: Annotated[str | None, typer.Option(help="Rollouts of this status.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a job's metrics (a row per step) or rollouts (a row each) to a file."""
    filters: Json = {"metrics": {"metric": metric}}.get(
        what, {"step": step, "purpose": purpose, "status": status}
    )
    file = output or Path(f"{name}-{what}.{format}")
    with server.client() as client:
        size = client.export(name, what, file, format=format, **filters)
    show({"file": str(file), "bytes": size}, as_json, lambda: f"wrote {size:,} bytes: {file}")


@app.command("ledger")
def jobs_ledger(name: Name, as_json: AsJson = False) -> None:
    """Where every sampled token went, per step; complete once the job has ended."""
    with server.client() as client:
        steps = client.ledger(name)
    bins = sorted({key for step in steps for key in step["bins"]})
    rows = [{"step": step["step"]} | step["bins"] for step in steps]
    show(steps, as_json, lambda: table(rows, ("step", *bins)))


@app.command("findings")
def jobs_findings(name: Name, as_json: AsJson = False) -> None:
    """What is wrong with a job, from what it has recorded, and what to do about it."""
    with server.client() as client:
        found = client.findings(name)
    show(found, as_json, lambda: _findings_text(found))


def _findings_text(found: list[Json]) -> str:
    if not found:
        return "no findings"
    return "\n\n".join(
        f"{each['severity']}: {each['title']} ({each['code']})\n"
        + "".join(
            f"  step {point['step']}: {point['metric']} = {cell(point['value'])}\n"
            for point in each["evidence"]
        )
        + f"  {each['remedy']}"
        for each in found
    )


@app.command("results")
def jobs_results(
    name: Name,
    csv: Annotated[Path | None, typer.Option(help="Write the table of rows to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """What an evaluation found."""
    with server.client() as client:
        if csv is None:
            _show_results(client, name, as_json)
            return
        table = client.results_csv(name)
    csv.write_bytes(table)
    show({"csv": str(csv)}, as_json, lambda: f"wrote {csv}")


def _show_results(client: Client, name: str, as_json: bool) -> None:
    results = client.results(name)
    if as_json:
        print(json.dumps(results))
        return
    for part in summary(results):
        out.print()
        say(part)


@app.command("stop")
def jobs_stop(name: Name, as_json: AsJson = False) -> None:
    """Stop a job; its last finished step stays, and can be served or continued."""
    with server.client() as client:
        job = client.stop(name)
    show(job, as_json, lambda: _job_text(job))


@app.command("resume")
def jobs_resume(name: Name, as_json: AsJson = False) -> None:
    """Continue a stopped or failed job from its last checkpoint."""
    with server.client() as client:
        job = client.resume(name)
    show(job, as_json, lambda: _job_text(job))


@app.command("delete")
def jobs_delete(name: Name, as_json: AsJson = False) -> None:
    """Remove a job that has ended, with its rollouts; its models stay."""
    with server.client() as client:
        job = client.delete(name)
    show(job, as_json, lambda: f"deleted {job['name']}")


# ── showing ───────────────────────────────────────────────────────────────────────────────────


_JOB_COLUMNS = ("name", "kind", "status", "secondary_status", "step", "max_steps", "message")


def _job_text(job: Json) -> Table:
    return table([job], _JOB_COLUMNS)


def _event_text(event: Json) -> str:
    body = event["body"]
    if event["kind"] == "log":
        what = body["message"]
    elif event["kind"] == "status":
        what = f"{body['status']} ({body['secondary']}) {body.get('message', '')}".rstrip()
    elif event["kind"] in ("metrics", "evaluation"):
        what = _metrics_text(body)
    else:
        what = " ".join(f"{key}={cell(value)}" for key, value in body.items())
    return f"{clock(event['at'])} {event['level']:<7} {event['kind']:<10} {what}"


def _metrics_text(body: Json) -> str:
    shown = [f"{n}={cell(body['values'][n])}" for n in HEADLINE if n in body["values"]]
    return f"step {body['step']} " + " ".join(shown)


def _show_event(event: Json, as_json: bool) -> None:
    if as_json:
        print(json.dumps(event), flush=True)
    else:
        out.print(harmless(_event_text(event)), soft_wrap=True)
