"""The command line: `turnwise serve`, and commands that talk to a running server."""

from __future__ import annotations

import errno
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from turnwise import __version__, errors
from turnwise.cli import agents, audit, jobs, keys, models, rollouts, train
from turnwise.cli.screen import AsJson, err, show
from turnwise.cli.server import server
from turnwise.terminal import harmless

Json = dict[str, Any]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they show local variables, and keys are among them
    help=__doc__,
)


@app.callback()
def _options(
    url: Annotated[str, typer.Option(help="Server address; default $TURNWISE_URL.")] = "",
    key: Annotated[str, typer.Option(help="API key; default $TURNWISE_API_KEY.")] = "",
    data_dir: Annotated[
        Path | None, typer.Option(help="Data folder of a server on this machine.")
    ] = None,
) -> None:
    server.url, server.key, server.data_dir = url, key, data_dir


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


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    show({"version": __version__}, as_json, lambda: __version__)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start the server: every door, the gateway, the jobs' loops, and their processes."""
    from turnwise.app.server import run_server  # uvicorn and the doors are for the server alone
    from turnwise.settings import load_settings

    given: Json = {"host": host, "port": port, "data_dir": server.data_dir}
    settings = load_settings(**{key: value for key, value in given.items() if value is not None})

    def ready(url: str) -> None:
        facts = {"url": url, "data_dir": str(settings.data_dir.resolve())}
        lines = [
            f"Turnwise {__version__} at {url}, data in {facts['data_dir']}; Ctrl-C ends it",
            f"Pages at {url}/dashboard; sign in with the key in {settings.data_dir / 'admin.key'}",
        ]
        show(facts, as_json, lambda: "\n".join(lines))
        sys.stdout.flush()

    try:
        run_server(settings, ready)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise errors.InvalidInput(
            "port", settings.port, "is in use", remedy="choose another one, or 0, with --port"
        ) from None


app.command()(train.train)
app.command("eval")(jobs.evaluate)


@app.command()
def env(as_json: AsJson = False) -> None:
    """Print what brings AWS's clients to this server: eval "$(turnwise env)"."""
    with server.client() as client:
        variables = client.aws_environment()
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    show(variables, as_json, lambda: "\n".join(lines))


for name, commands in (
    ("jobs", jobs.app),
    ("rollouts", rollouts.app),
    ("models", models.app),
    ("keys", keys.keys),
    ("accounts", keys.accounts),
    ("audit", audit.app),
    ("agents", agents.app),
    ("create", train.create),
):
    app.add_typer(commands, name=name)
