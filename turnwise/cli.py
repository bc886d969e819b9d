"""The command line: `turnwise serve`, and commands that talk to a running server."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from turnwise import __version__, errors
from turnwise.client import Client, connect
from turnwise.client.running import pass_through, run_agent
from turnwise.control.audit.export import export
from turnwise.control.job_file import as_mapping, parse_job, read_job
from turnwise.domain.access import Action
from turnwise.domain.job import AgentKind, JobKind
from turnwise.terminal import harmless, summary

Json = dict[str, Any]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they show local variables, and keys are among them
    help=__doc__,
)
jobs_app = typer.Typer(no_args_is_help=True, help="Jobs: list, describe, logs, metrics, stop ...")
rollouts_app = typer.Typer(no_args_is_help=True, help="Rollouts: list, show.")
models_app = typer.Typer(no_args_is_help=True, help="Models: list, export, delete, add-base ...")
app.add_typer(jobs_app, name="jobs")
app.add_typer(rollouts_app, name="rollouts")
app.add_typer(models_app, name="models")
keys_app = typer.Typer(no_args_is_help=True, help="Access keys: create, list, revoke.")
accounts_app = typer.Typer(no_args_is_help=True, help="Accounts: create, list. The operator's.")
audit_app = typer.Typer(no_args_is_help=True, help="The audit trail: search, export, verify.")
trails_app = typer.Typer(no_args_is_help=True, help="Trails: create, start, stop, select ...")
app.add_typer(keys_app, name="keys")
app.add_typer(accounts_app, name="accounts")
app.add_typer(audit_app, name="audit")
audit_app.add_typer(trails_app, name="trail")
agents_app = typer.Typer(no_args_is_help=True, help="Agents: register, list, test, logs, run ...")
app.add_typer(agents_app, name="agents")

#: A terminal is as wide as it is; a pipe gets whole lines.
_WIDTH = None if sys.stdout.isatty() else 200
out = Console(width=_WIDTH, markup=False, highlight=False)
err = Console(stderr=True, markup=False, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Name = Annotated[str, typer.Argument(help="The job's name or id.")]


@dataclasses.dataclass
class _Server:
    """Which server this call's command talks to."""

    url: str = ""
    key: str = ""
    data_dir: Path | None = None

    def client(self) -> Client:
        return connect(self.url, self.key, data_dir=self.data_dir)


_server = _Server()


@app.callback()
def _options(
    url: Annotated[str, typer.Option(help="Server address; default $TURNWISE_URL.")] = "",
    key: Annotated[str, typer.Option(help="API key; default $TURNWISE_API_KEY.")] = "",
    data_dir: Annotated[
        Path | None, typer.Option(help="Data folder of a server on this machine.")
    ] = None,
) -> None:
    _server.url, _server.key, _server.data_dir = url, key, data_dir


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; an expected error is one line on stderr and exit status 1."""
    args = sys.argv[1:] if args is None else args
    try:
        app(args)
    except errors.TurnwiseError as error:
        message = " ".join(str(error).split())
        if "--json" in args:
            said = {"error": {"type": type(error).__name__, "message": message}}
            print(json.dumps(said), file=sys.stderr)
        else:
            err.print(harmless(f"error: {message}"), style="red", soft_wrap=True)
        sys.exit(1)


# ── showing ───────────────────────────────────────────────────────────────────────────────────


def _show(value: object, as_json: bool, text: Callable[[], str | Table]) -> None:
    if as_json:
        print(json.dumps(value))
        return
    _print(text())


def _print(shown: str | Table) -> None:
    if isinstance(shown, str):
        out.print(harmless(shown), soft_wrap=True)
    else:
        out.print(shown)


def _show_event(event: Json, as_json: bool) -> None:
    if as_json:
        print(json.dumps(event), flush=True)
    else:
        out.print(harmless(_event_text(event)), soft_wrap=True)


def _table(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


_JOB_COLUMNS = ("name", "kind", "status", "secondary_status", "step", "max_steps", "message")


def _job_text(job: Json) -> Table:
    return _table([job], _JOB_COLUMNS)


def _event_text(event: Json) -> str:
    body = event["body"]
    if event["kind"] == "log":
        what = body["message"]
    elif event["kind"] == "status":
        what = f"{body['status']} ({body['secondary']}) {body.get('message', '')}".rstrip()
    elif event["kind"] in ("metrics", "evaluation"):
        what = _metrics_text(body)
    else:
        what = " ".join(f"{key}={_cell(value)}" for key, value in body.items())
    return f"{_clock(event['at'])} {event['level']:<7} {event['kind']:<10} {what}"


#: What a line of `logs` shows of a step's metrics; `jobs metrics` shows all.
_HEADLINE = (
    "rollout/reward/mean",
    "training/loss",
    "analysis/zero_adv_groups",
    "val/reward/mean",
    "eval/reward/mean",
    "eval/reward/success_rate",
    "timing_s/step",
)


def _metrics_text(body: Json) -> str:
    shown = [f"{n}={_cell(body['values'][n])}" for n in _HEADLINE if n in body["values"]]
    return f"step {body['step']} " + " ".join(shown)


# ── commands ──────────────────────────────────────────────────────────────────────────────────


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    _show({"version": __version__}, as_json, lambda: __version__)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start the server: every door, the gateway, the jobs' loops, and their processes."""
    from turnwise.app import run_server  # uvicorn and the doors are for the server alone
    from turnwise.settings import load_settings

    given: Json = {"host": host, "port": port, "data_dir": _server.data_dir}
    settings = load_settings(**{key: value for key, value in given.items() if value is not None})

    def ready(url: str) -> None:
        facts = {"url": url, "data_dir": str(settings.data_dir.resolve())}
        text = f"Turnwise {__version__} at {url}, data in {facts['data_dir']}; Ctrl-C ends it"
        _show(facts, as_json, lambda: text)
        sys.stdout.flush()

    try:
        run_server(settings, ready)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise errors.InvalidInput(
            "port", settings.port, "is in use", remedy="choose another one, or 0, with --port"
        ) from None


@app.command()
def train(
    job_file: Annotated[Path, typer.Argument(help="The job, as YAML or JSON.")],
    detach: Annotated[bool, typer.Option(help="Start it and return.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start the job of a job file and follow it to its end."""
    job = as_mapping(read_job(job_file))
    with _server.client() as client:
        _run_job(client, job, detach=detach, as_json=as_json)


@app.command("eval")
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
    with _server.client() as client:
        _run_job(client, job, detach=detach, as_json=as_json)


def _run_job(client: Client, job_file: Json, *, detach: bool, as_json: bool) -> None:
    job = client.create_job(job_file)
    if not detach:
        for event in client.follow(job["name"]):
            if as_json or event["kind"] != "rollout":
                _show_event(event, as_json)
        job = client.job(job["name"])
    _show(job, as_json, lambda: _job_text(job))
    if job["kind"] == JobKind.EVALUATION and job["status"] in ("COMPLETED", "FAILED"):
        with contextlib.suppress(errors.Conflict):  # it failed before it had any
            _show_results(client, job["name"], as_json)
    if job["status"] == "FAILED":
        raise typer.Exit(1)


@jobs_app.command("list")
def jobs_list(
    status: Annotated[str | None, typer.Option(help="Only jobs of this status.")] = None,
    as_json: AsJson = False,
) -> None:
    """Jobs, newest first."""
    with _server.client() as client:
        found = client.jobs(status=status)
    _show(found, as_json, lambda: _table(found, _JOB_COLUMNS))


@jobs_app.command("describe")
def jobs_describe(name: Name, as_json: AsJson = False) -> None:
    """One job: where it stands, what it cost in tokens, and its whole job file."""
    with _server.client() as client:
        job = client.job(name)
        spec = job.pop("spec")
        job |= {"usage": client.usage(name), "spec": spec}
    _show(job, as_json, lambda: yaml.safe_dump(job, sort_keys=False))


@jobs_app.command("logs")
def jobs_logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Events past this number.")] = 0,
    kind: Annotated[list[str] | None, typer.Option(help="Only events of this kind.")] = None,
    as_json: AsJson = False,
) -> None:
    """A job's events: status, logs, steps, rollouts."""
    kinds = tuple(kind or ())
    with _server.client() as client:
        events = (
            client.follow(name, after=after, kinds=kinds)
            if follow
            else _pages(lambda at: client.events(name, after=at, kinds=kinds), after)
        )
        for event in events:
            _show_event(event, as_json)


def _pages(read: Callable[[int], list[Json]], after: int) -> Iterable[Json]:
    while page := read(after):
        yield from page
        after = page[-1]["seq"]


@jobs_app.command("metrics")
def jobs_metrics(
    name: Name,
    metric: Annotated[list[str] | None, typer.Option(help="Names that start so.")] = None,
    as_json: AsJson = False,
) -> None:
    """A job's metrics: the latest values, or every point with --json."""
    with _server.client() as client:
        curves = client.metrics(name, names=tuple(metric or ()))
    latest = [{"metric": key} | curve[-1] for key, curve in curves.items()]
    _show(curves, as_json, lambda: _table(latest, ("metric", "step", "value")))


@jobs_app.command("ledger")
def jobs_ledger(name: Name, as_json: AsJson = False) -> None:
    """Where every sampled token went, per step; complete once the job has ended."""
    with _server.client() as client:
        steps = client.ledger(name)
    bins = sorted({key for step in steps for key in step["bins"]})
    rows = [{"step": step["step"]} | step["bins"] for step in steps]
    _show(steps, as_json, lambda: _table(rows, ("step", *bins)))


@jobs_app.command("results")
def jobs_results(
    name: Name,
    csv: Annotated[Path | None, typer.Option(help="Write the table of rows to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """What an evaluation found."""
    with _server.client() as client:
        if csv is None:
            _show_results(client, name, as_json)
            return
        table = client.results_csv(name)
    csv.write_bytes(table)
    _show({"csv": str(csv)}, as_json, lambda: f"wrote {csv}")


def _show_results(client: Client, name: str, as_json: bool) -> None:
    results = client.results(name)
    if as_json:
        print(json.dumps(results))
        return
    for part in summary(results):
        out.print()
        _print(part)


@jobs_app.command("stop")
def jobs_stop(name: Name, as_json: AsJson = False) -> None:
    """Stop a job; its last finished step stays, and can be served or continued."""
    with _server.client() as client:
        job = client.stop(name)
    _show(job, as_json, lambda: _job_text(job))


@jobs_app.command("resume")
def jobs_resume(name: Name, as_json: AsJson = False) -> None:
    """Continue a stopped or failed job from its last checkpoint."""
    with _server.client() as client:
        job = client.resume(name)
    _show(job, as_json, lambda: _job_text(job))


@jobs_app.command("delete")
def jobs_delete(name: Name, as_json: AsJson = False) -> None:
    """Remove a job that has ended, with its rollouts; its models stay."""
    with _server.client() as client:
        job = client.delete(name)
    _show(job, as_json, lambda: f"deleted {job['name']}")


_ROLLOUT_COLUMNS = (
    *("rollout_id", "purpose", "step", "row_index", "slot", "attempt"),
    *("status", "reward", "turns", "tokens"),
)


@rollouts_app.command("list")
def rollouts_list(
    job: Name,
    step: Annotated[int | None, typer.Option(help="Planned at this step.")] = None,
    purpose: Annotated[str | None, typer.Option(help="train, validation or evaluation.")] = None,
    status: Annotated[str | None, typer.Option(help="PENDING, READY, FAILED ...")] = None,
    after: Annotated[int, typer.Option(min=0, help="Rollouts past this number.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: AsJson = False,
) -> None:
    """A job's rollouts, a page at a time."""
    with _server.client() as client:
        page = client.rollouts(
            job, step=step, purpose=purpose, status=status, after=after, limit=limit
        )
    _show(page, as_json, lambda: _table(page["rollouts"], _ROLLOUT_COLUMNS))
    if page["next_after"] and not as_json:
        out.print(f"more: --after {page['next_after']}")


@rollouts_app.command("show")
def rollouts_show(rollout_id: str, as_json: AsJson = False) -> None:
    """One rollout: its conversation, turns and reward; tokens with --json."""
    with _server.client() as client:
        rollout = client.rollout(rollout_id)
    _show(rollout, as_json, lambda: _conversation(rollout))


def _conversation(rollout: Json) -> str:
    lines = [f"{key}: {_cell(rollout[key])}" for key in ("rollout_id", "status", "reward")]
    if rollout["fault"]:
        lines.append(f"fault: {rollout['fault']['code']}: {rollout['fault']['message']}")
    for node in rollout["nodes"]:
        if node["fork_cause"]:
            lines.append(f"── fork: {node['fork_cause']}")
        for message in node["messages"]:
            said = [message[part] for part in ("content", "tool_calls") if message.get(part)]
            texts = [part if isinstance(part, str) else json.dumps(part) for part in said]
            lines.append(f"[{message['role']}] {' '.join(texts)}")
    return "\n".join(lines)


@models_app.command("list")
def models_list(
    group: Annotated[str | None, typer.Option(help="Only this group.")] = None,
    as_json: AsJson = False,
) -> None:
    """Registered models, oldest first."""
    with _server.client() as client:
        found = client.models(group=group)
    _show(found, as_json, lambda: _table(map(_model_row, found), _MODEL_COLUMNS))


_MODEL_COLUMNS = ("name", "kind", "step", "reward", "job", "created", "files", "sha256")


def _model_row(model: Json) -> Json:
    metadata = model["metadata"]
    return model | {
        "reward": metadata.get("metrics", {}).get("rollout/reward/mean"),
        "job": metadata.get("job", {}).get("name", model["job_id"]),
        "created": _clock(model["created_at"]),
        "files": "kept" if model["pruned_at"] is None else "pruned",
        "sha256": model["sha256"][:12],
    }


@models_app.command("describe")
def models_describe(
    name: Annotated[str, typer.Argument(help='"group/version", or "group" for the newest.')],
    as_json: AsJson = False,
) -> None:
    """One model and where it comes from: job, step, base, data, settings, code."""
    with _server.client() as client:
        model = client.model(name)
    _show(model, as_json, lambda: yaml.safe_dump(model, sort_keys=False))


@models_app.command("export")
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
    with _server.client() as client, bar:
        task = bar.add_task(name, total=None)
        client.export_model(
            name,
            folder,
            merged=merged,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    facts = {"model": name, "folder": str(folder), "merged": merged}
    _show(facts, as_json, lambda: f"wrote {folder}")


@models_app.command("delete")
def models_delete(
    name: Annotated[str, typer.Argument(help='One version, "group/version".')],
    as_json: AsJson = False,
) -> None:
    """Delete a model and its files, unless a job that has not ended needs it."""
    with _server.client() as client:
        model = client.delete_model(name)
    _show(model, as_json, lambda: f"deleted {model['name']}")


@models_app.command("add-base")
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

    given: Json = {} if _server.data_dir is None else {"data_dir": _server.data_dir}
    catalogue = Catalogue(load_settings(**given).models_folder)
    model = catalogue.add(folder, name)
    facts = {"name": model.name, "folder": str(model.folder), "version": model.version}
    text = f"{name} is {model.folder}, by a link in {catalogue.models_dir}"
    _show(facts, as_json, lambda: text)


@app.command()
def env(as_json: AsJson = False) -> None:
    """Print what brings AWS's clients to this server: eval "$(turnwise env)"."""
    with _server.client() as client:
        variables = client.aws_environment()
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    _show(variables, as_json, lambda: "\n".join(lines))


_KEY_COLUMNS = ("key_id", "name", "access_key_id", "actions", "jobs", "created", "revoked")

OfAccount = Annotated[
    str, typer.Option("--account", help="Another account, by its slug; for the operator.")
]


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="What the key is for, as logs will show it.")],
    account: OfAccount = "",
    job: Annotated[list[str] | None, typer.Option(help="Limit it to this job; repeatable.")] = None,
    action: Annotated[
        list[Action] | None, typer.Option(help="Limit it to this action; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, the only time that it is shown."""
    with _server.client() as client:
        key = client.create_key(name, account=account, jobs=job or (), actions=action or ())
    lines = [
        f"key (also the secret access key): {key['secret']}",
        f"access key id: {key['access_key_id']}",
        f"key id, to revoke it: {key['key_id']}",
        "The key is not shown again.",
    ]
    _show(key, as_json, lambda: "\n".join(lines))


@keys_app.command("list")
def keys_list(account: OfAccount = "", as_json: AsJson = False) -> None:
    """Keys, oldest first, revoked ones included; never their secrets."""
    with _server.client() as client:
        found = client.keys(account=account)
    _show(found, as_json, lambda: _table(map(_key_row, found), _KEY_COLUMNS))


def _key_row(key: Json) -> Json:
    return key | {
        "actions": " ".join(key["actions"]),
        "jobs": "all" if key["job_ids"] is None else " ".join(key["job_ids"]),
        "created": _clock(key["created_at"]),
        "revoked": None if key["revoked_at"] is None else _clock(key["revoked_at"]),
    }


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    account: OfAccount = "",
    as_json: AsJson = False,
) -> None:
    """End a key, at once and for good."""
    with _server.client() as client:
        key = client.revoke_key(key_id, account=account)
    _show(key, as_json, lambda: f"revoked {key['key_id']} ({key['name']})")


@accounts_app.command("create")
def accounts_create(
    slug: Annotated[str, typer.Argument(help="Its name: a-z, 0-9 and hyphens.")],
    as_json: AsJson = False,
) -> None:
    """Make an account; `turnwise keys create --account` gives it its first key."""
    with _server.client() as client:
        account = client.create_account(slug)
    _show(account, as_json, lambda: f"account {account['slug']}, number {account['number']}")


@accounts_app.command("list")
def accounts_list(as_json: AsJson = False) -> None:
    """All accounts."""
    with _server.client() as client:
        found = client.accounts()
    _show(found, as_json, lambda: _table(found, ("slug", "number")))


# ── the audit trail ───────────────────────────────────────────────────────────────────────────

_AUDIT_COLUMNS = ("seq", "time", "event", "user", "from", "error", "about")

EventName = Annotated[str, typer.Option("--event-name", help="Such as CreateJob.")]
Since = Annotated[str, typer.Option(help="Such as 90m, 24h, 7d, 2026-11-25 or 2026-11-25T08:00Z.")]
Until = Annotated[str, typer.Option(help="As --since.")]
User = Annotated[str, typer.Option(help="The name of the caller's key.")]
About = Annotated[str, typer.Option("--resource", help="An ARN, or its last part: a job's name.")]


def _filters(event_name: str, since: str, until: str, user: str, resource: str) -> Json:
    return {
        "name": event_name or None,
        "user": user or None,
        "resource": resource or None,
        "since": _moment("--since", since),
        "until": _moment("--until", until),
    }


_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _moment(option: str, text: str) -> float | None:
    """Seconds since the epoch: so long ago, or a date, of UTC if it says no zone."""
    if not text:
        return None
    if text[:-1].isdecimal() and text[-1] in _AGES:
        return time.time() - int(text[:-1]) * _AGES[text[-1]]
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        remedy = "use 90m, 24h, 7d, 2026-11-25 or 2026-11-25T08:00Z"
        raise errors.InvalidInput(option, text, "is no time", remedy=remedy) from None
    return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()


@audit_app.command("search")
def audit_search(
    event_name: EventName = "",
    since: Since = "",
    until: Until = "",
    user: User = "",
    resource: About = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Who called what, newest first."""
    filters = _filters(event_name, since, until, user, resource)
    with _server.client() as client:
        found = client.audit(**filters, limit=limit)["records"]
    rows = map(_audit_row, found)
    _show([each["record"] for each in found], as_json, lambda: _table(rows, _AUDIT_COLUMNS))


def _audit_row(entry: Json) -> Json:
    record = entry["record"]
    who = record["userIdentity"]
    return {
        "seq": entry["seq"],
        "time": record["eventTime"],
        "event": record["eventName"],
        "user": who.get("userName") or who["principalId"],
        "from": record["sourceIPAddress"],
        "error": record.get("errorCode", ""),
        "about": " ".join(each["ARN"].rpartition(":")[2] for each in record["resources"]),
    }


@audit_app.command("export")
def audit_export(
    file: Annotated[Path, typer.Argument(help="A new file to write.")],
    format: Annotated[str, typer.Option("--format", help="json or parquet.")] = "json",
    event_name: EventName = "",
    since: Since = "",
    until: Until = "",
    user: User = "",
    resource: About = "",
    as_json: AsJson = False,
) -> None:
    """Write records, oldest first: CloudTrail's JSON, or Parquet for SQL over them."""
    filters = _filters(event_name, since, until, user, resource)
    with _server.client() as client:
        count = export(client.audit_records(**filters), format, file)
    _show({"file": str(file), "records": count}, as_json, lambda: f"wrote {count} records: {file}")


@audit_app.command("verify")
def audit_verify(as_json: AsJson = False) -> None:
    """Read the whole trail and check that nothing was altered, removed or inserted."""
    with _server.client() as client:
        verdict = client.verify_audit()
    _show(verdict, as_json, lambda: _verdict_text(verdict))
    if not verdict["is_intact"]:
        raise typer.Exit(1)


def _verdict_text(verdict: Json) -> str:
    if verdict["is_intact"]:
        lines = [f"intact: {verdict['records']} records, from {verdict['first_seq']} on"]
    else:
        lines = [f"record {each['seq']}: {each['what']}" for each in verdict["flaws"]]
    return "\n".join([*lines, f"the chain ends at {verdict['last_seq']}: {verdict['digest']}"])


TrailName = Annotated[str, typer.Argument(help="The trail's name.")]
_TRAIL_COLUMNS = ("name", "bucket", "folder", "is_logging", "files", "error")


def _show_trail(trail: Json, as_json: bool) -> None:
    _show(trail, as_json, lambda: _table([trail], _TRAIL_COLUMNS))


@trails_app.command("create")
def trails_create(
    name: TrailName,
    folder: Annotated[str, typer.Option(help="Absolute path on the server's machine.")] = "",
    bucket: Annotated[str, typer.Option(help="A bucket of the account.")] = "",
    prefix: Annotated[str, typer.Option(help="Before AWSLogs/ in the names of its files.")] = "",
    data_events: Annotated[
        bool, typer.Option(help="Also what agents call: samples, completions, rewards.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Deliver the account's records as they come, as CloudTrail's files."""
    with _server.client() as client:
        client.create_trail(name, folder=folder, bucket=bucket, prefix=prefix)
        if data_events:
            client.select_events(name, advanced=_ALL_EVENTS)
        trail = client.start_trail(name)
    _show_trail(trail, as_json)


_ALL_EVENTS: list[Json] = [
    {"FieldSelectors": [{"Field": "eventCategory", "Equals": ["Management"]}]},
    {
        "FieldSelectors": [
            {"Field": "eventCategory", "Equals": ["Data"]},
            {"Field": "resources.type", "Equals": ["AWS::SageMaker::Job"]},
        ]
    },
]


@trails_app.command("list")
def trails_list(as_json: AsJson = False) -> None:
    """Trails, and what keeps one from delivering."""
    with _server.client() as client:
        found = client.trails()
    _show(found, as_json, lambda: _table(found, _TRAIL_COLUMNS))


@trails_app.command("select")
def trails_select(
    name: TrailName,
    selectors: Annotated[Path, typer.Argument(help="JSON: a list of advanced event selectors.")],
    as_json: AsJson = False,
) -> None:
    """Choose what a trail delivers, by the selectors that `aws cloudtrail` takes."""
    try:
        chosen = json.loads(selectors.read_text())
    except (OSError, ValueError) as error:
        raise errors.InvalidInput("selectors", str(selectors), f"is no JSON: {error}") from None
    with _server.client() as client:
        trail = client.select_events(name, advanced=chosen)
    _show_trail(trail, as_json)


@trails_app.command("start")
def trails_start(name: TrailName, as_json: AsJson = False) -> None:
    """Deliver what happens from now on."""
    with _server.client() as client:
        _show_trail(client.start_trail(name), as_json)


@trails_app.command("stop")
def trails_stop(name: TrailName, as_json: AsJson = False) -> None:
    """Deliver nothing that happens after."""
    with _server.client() as client:
        _show_trail(client.stop_trail(name), as_json)


@trails_app.command("delete")
def trails_delete(name: TrailName, as_json: AsJson = False) -> None:
    """Forget a trail; the files that it has delivered stay."""
    with _server.client() as client:
        trail = client.delete_trail(name)
    _show(trail, as_json, lambda: f"deleted {trail['name']}")


# ── agents ────────────────────────────────────────────────────────────────────────────────────

AgentName = Annotated[str, typer.Argument(help="The agent's name.")]

#: How often `agents logs -f` looks for more.
_LOOK_EVERY_S = 0.5

_AGENT_COLUMNS = ("name", "as", "url", "arn")


@agents_app.command("register")
def agents_register(
    name: Annotated[
        str, typer.Argument(help="A letter, then letters, digits, hyphens and underscores.")
    ],
    url: Annotated[str, typer.Argument(help="Where it listens: http://host:port.")],
    contract: Annotated[
        str, typer.Option("--as", help="How it is called: lambda, agentcore or http.")
    ] = AgentKind.HTTP.value,
    as_json: AsJson = False,
) -> None:
    """Give an agent a name and an ARN; again, to move it to another URL."""
    with _server.client() as client:
        agent = client.register_agent(name, url, contract)
    _show(agent, as_json, lambda: f"{agent['name']} at {agent['url']}: {agent['arn']}")


@agents_app.command("list")
def agents_list(as_json: AsJson = False) -> None:
    """Registered agents, oldest first."""
    with _server.client() as client:
        found = client.agents()
    _show(found, as_json, lambda: _table(found, _AGENT_COLUMNS))


@agents_app.command("show")
def agents_show(name: AgentName, as_json: AsJson = False) -> None:
    """One agent: where it is, its ARN, and its log group."""
    with _server.client() as client:
        agent = client.agent(name)
    _show(agent, as_json, lambda: yaml.safe_dump(agent, sort_keys=False))


@agents_app.command("remove")
def agents_remove(name: AgentName, as_json: AsJson = False) -> None:
    """Forget an agent and its log."""
    with _server.client() as client:
        agent = client.remove_agent(name)
    _show(agent, as_json, lambda: f"removed {agent['name']}")


@agents_app.command("test")
def agents_test(name: AgentName, as_json: AsJson = False) -> None:
    """Ask an agent for its health and send it a rollout; it counts that the agent is reached.

    The rollout does not exist, so what the agent asks of this server is refused: an error in its
    answer is as good as any.
    """
    with _server.client() as client:
        found = client.test_agent(name)
    _show(found, as_json, lambda: _probe_text(found))
    if found["problem"]:
        raise typer.Exit(1)


def _probe_text(found: Json) -> str:
    lines = [f"healthy: {'yes' if found['is_healthy'] else 'no'}"]
    if found["is_reached"]:
        lines.append(f"reached: yes, it answered {found['status']} in {found['seconds']:.2f} s")
        lines.append(f"answer: {found['answer']}")
    else:
        lines.append("reached: no")
    if found["problem"]:
        lines.append(f"problem: {found['problem']}")
    return "\n".join(lines)


@agents_app.command("logs")
def agents_logs(
    name: AgentName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until interrupted.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Entries past this number.")] = 0,
    as_json: AsJson = False,
) -> None:
    """What an agent received, answered, failed with and printed."""
    with _server.client() as client:
        while True:
            for entry in _pages(lambda at: client.agent_log(name, after=at), after):
                after = entry["seq"]
                _show_entry(entry, as_json)
            if not follow:
                return
            time.sleep(_LOOK_EVERY_S)


def _show_entry(entry: Json, as_json: bool) -> None:
    if as_json:
        print(json.dumps(entry), flush=True)
        return
    where = f"{entry['rollout_id']} " if entry["rollout_id"] else ""
    text = f"{_clock(entry['at'])} {entry['kind']:<8} {where}{entry['text']}"
    out.print(harmless(text), soft_wrap=True)


@agents_app.command("run", context_settings={"ignore_unknown_options": True})
def agents_run(
    name: AgentName,
    command: Annotated[list[str], typer.Argument(help="After --: the command that starts it.")],
    as_json: AsJson = False,
) -> None:
    """Start an agent on this machine; what it prints is shown here and kept in its log."""

    def warn(text: str) -> None:
        err.print(harmless(text), soft_wrap=True)

    show = _show_line if as_json else pass_through
    with _server.client() as client:
        status = run_agent(client, name, command, warn, show)
    raise typer.Exit(status)


def _show_line(stream: str, line: bytes) -> None:
    text = line.decode(errors="replace").rstrip("\r\n")
    print(json.dumps({"stream": stream, "line": text}), flush=True)


if __name__ == "__main__":
    main()
