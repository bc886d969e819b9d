"""`turnwise rollouts`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from turnwise.cli.jobs import Name
from turnwise.cli.screen import AsJson, cell, out, show, table
from turnwise.cli.server import server

Json = dict[str, Any]

app = typer.Typer(no_args_is_help=True, help="Rollouts: list, show.")

_ROLLOUT_COLUMNS = (
    *("rollout_id", "purpose", "step", "row_index", "slot", "attempt"),
    *("status", "reward", "turns", "tokens"),
)


@app.command("list")
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
    with server.client() as client:
        page = client.rollouts(
            job, step=step, purpose=purpose, status=status, after=after, limit=limit
        )
    show(page, as_json, lambda: table(page["rollouts"], _ROLLOUT_COLUMNS))
    if page["next_after"] and not as_json:
        out.print(f"more: --after {page['next_after']}")


@app.command("show")
def rollouts_show(rollout_id: str, as_json: AsJson = False) -> None:
    """One rollout: its conversation, turns and reward; tokens with --json."""
    with server.client() as client:
        rollout = client.rollout(rollout_id)
    show(rollout, as_json, lambda: _conversation(rollout))


def _conversation(rollout: Json) -> str:
    lines = [f"{key}: {cell(rollout[key])}" for key in ("rollout_id", "status", "reward")]
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
