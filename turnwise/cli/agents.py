"""`turnwise agents`."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
import yaml

from turnwise.cli.screen import AsJson, clock, err, out, show, table
from turnwise.cli.server import pages, server
from turnwise.client.running import pass_through, run_agent
from turnwise.domain.job import AgentKind
from turnwise.terminal import harmless

Json = dict[str, Any]

app = typer.Typer(no_args_is_help=True, help="Agents: register, list, test, logs, run ...")

AgentName = Annotated[str, typer.Argument(help="The agent's name.")]

#: How often `agents logs -f` looks for more.
_LOOK_EVERY_S = 0.5

_AGENT_COLUMNS = ("name", "as", "url", "arn")


@app.command("register")
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
    with server.client() as client:
        agent = client.register_agent(name, url, contract)
    show(agent, as_json, lambda: f"{agent['name']} at {agent['url']}: {agent['arn']}")


@app.command("list")
def agents_list(as_json: AsJson = False) -> None:
    """Registered agents, oldest first."""
    with server.client() as client:
        found = client.agents()
    show(found, as_json, lambda: table(found, _AGENT_COLUMNS))


@app.command("show")
def agents_show(name: AgentName, as_json: AsJson = False) -> None:
    """One agent: where it is, its ARN, and its log group."""
    with server.client() as client:
        agent = client.agent(name)
    show(agent, as_json, lambda: yaml.safe_dump(agent, sort_keys=False))


@app.command("remove")
def agents_remove(name: AgentName, as_json: AsJson = False) -> None:
    """Forget an agent and its log."""
    with server.client() as client:
        agent = client.remove_agent(name)
    show(agent, as_json, lambda: f"removed {agent['name']}")


@app.command("test")
def agents_test(name: AgentName, as_json: AsJson = False) -> None:
    """Ask an agent for its health and send it a rollout; it counts that the agent is reached.

    The rollout does not exist, so what the agent asks of this server is refused: an error in its
    answer is as good as any.
    """
    with server.client() as client:
        found = client.test_agent(name)
    show(found, as_json, lambda: _probe_text(found))
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


@app.command("logs")
def agents_logs(
    name: AgentName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until interrupted.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Entries past this number.")] = 0,
    as_json: AsJson = False,
) -> None:
    """What an agent received, answered, failed with and printed."""
    with server.client() as client:
        while True:
            for entry in pages(lambda at: client.agent_log(name, after=at), after):
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
    text = f"{clock(entry['at'])} {entry['kind']:<8} {where}{entry['text']}"
    out.print(harmless(text), soft_wrap=True)


@app.command("run", context_settings={"ignore_unknown_options": True})
def agents_run(
    name: AgentName,
    command: Annotated[list[str], typer.Argument(help="After --: the command that starts it.")],
    as_json: AsJson = False,
) -> None:
    """Start an agent on this machine; what it prints is shown here and kept in its log."""

    def warn(text: str) -> None:
        err.print(harmless(text), soft_wrap=True)

    show = _show_line if as_json else pass_through
    with server.client() as client:
        status = run_agent(client, name, command, warn, show)
    raise typer.Exit(status)


def _show_line(stream: str, line: bytes) -> None:
    text = line.decode(errors="replace").rstrip("\r\n")
    print(json.dumps({"stream": stream, "line": text}), flush=True)
