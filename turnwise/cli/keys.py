"""`turnwise keys` and `turnwise accounts`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from turnwise.cli.screen import AsJson, clock, show, table
from turnwise.cli.server import server
from turnwise.domain.access import Action

Json = dict[str, Any]

keys = typer.Typer(no_args_is_help=True, help="Access keys: create, list, revoke.")
accounts = typer.Typer(no_args_is_help=True, help="Accounts: create, list. The operator's.")

_KEY_COLUMNS = ("key_id", "name", "access_key_id", "actions", "jobs", "created", "revoked")

OfAccount = Annotated[
    str, typer.Option("--account", help="Another account, by its slug; for the operator.")
]


@keys.command("create")
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
    with server.client() as client:
        key = client.create_key(name, account=account, jobs=job or (), actions=action or ())
    lines = [
        f"key (also the secret access key): {key['secret']}",
        f"access key id: {key['access_key_id']}",
        f"key id, to revoke it: {key['key_id']}",
        "The key is not shown again.",
    ]
    show(key, as_json, lambda: "\n".join(lines))


@keys.command("list")
def keys_list(account: OfAccount = "", as_json: AsJson = False) -> None:
    """Keys, oldest first, revoked ones included; never their secrets."""
    with server.client() as client:
        found = client.keys(account=account)
    show(found, as_json, lambda: table(map(_key_row, found), _KEY_COLUMNS))


def _key_row(key: Json) -> Json:
    return key | {
        "actions": " ".join(key["actions"]),
        "jobs": "all" if key["job_ids"] is None else " ".join(key["job_ids"]),
        "created": clock(key["created_at"]),
        "revoked": None if key["revoked_at"] is None else clock(key["revoked_at"]),
    }


@keys.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    account: OfAccount = "",
    as_json: AsJson = False,
) -> None:
    """End a key, at once and for good."""
    with server.client() as client:
        key = client.revoke_key(key_id, account=account)
    show(key, as_json, lambda: f"revoked {key['key_id']} ({key['name']})")


@accounts.command("create")
def accounts_create(
    slug: Annotated[str, typer.Argument(help="Its name: a-z, 0-9 and hyphens.")],
    as_json: AsJson = False,
) -> None:
    """Make an account; `turnwise keys create --account` gives it its first key."""
    with server.client() as client:
        account = client.create_account(slug)
    show(account, as_json, lambda: f"account {account['slug']}, number {account['number']}")


@accounts.command("list")
def accounts_list(as_json: AsJson = False) -> None:
    """All accounts."""
    with server.client() as client:
        found = client.accounts()
    show(found, as_json, lambda: table(found, ("slug", "number")))
