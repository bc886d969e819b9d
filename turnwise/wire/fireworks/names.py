"""Names of resources, `accounts/{account}/{collection}/{id}`, and moments. Pure.

https://google.aip.dev/122
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from turnwise import errors

DATASETS = "datasets"
DEPLOYMENTS = "deployments"
EVALUATORS = "evaluators"
JOBS = "reinforcementFineTuningJobs"
MODELS = "models"

#: The account whose models are this server's base models.
PUBLIC = "fireworks"

_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


def full_name(account: str, collection: str, id: str) -> str:
    """A resource's name.

    >>> full_name("default", DATASETS, "rows")
    'accounts/default/datasets/rows'
    """
    return f"accounts/{account}/{collection}/{id}"


def own_id(field: str, text: str, account: str, collection: str) -> str:
    """The id in a name of the account's own, or that is sent alone.

    Raises `InvalidInput` for another collection's name, `NotFound` for another account's.

    >>> own_id("dataset", "accounts/default/datasets/rows", "default", DATASETS)
    'rows'
    """
    its_account, id = split(field, text, collection)
    if its_account not in ("", account):
        raise errors.NotFound("account", its_account, remedy=f"this key is of {account!r}")
    return id


def split(field: str, text: str, collection: str) -> tuple[str, str]:
    """The account ("" if none is named) and the id of a name.

    >>> split("base_model", "accounts/fireworks/models/tiny", MODELS), split("x", "tiny", MODELS)
    (('fireworks', 'tiny'), ('', 'tiny'))
    """
    parts = text.split("/")
    if len(parts) == 1 and text:
        return "", text
    if len(parts) == 4 and all(parts) and (parts[0], parts[2]) == ("accounts", collection):
        return parts[1], parts[3]
    raise errors.InvalidInput(
        field, text, "is not a name", remedy=f"use accounts/ACCOUNT/{collection}/ID"
    )


def check_id(field: str, id: str) -> str:
    """The id of a resource to be made. Raises `InvalidInput`."""
    if not _ID.fullmatch(id):
        raise errors.InvalidInput(
            field,
            id,
            "is not an id",
            remedy="use 1 to 63 of a-z, 0-9 and hyphens, with a letter first and no hyphen last",
        )
    return id


def rfc3339(at: float | None) -> str | None:
    """Seconds since the epoch as the service writes them; None stays None.

    >>> rfc3339(1.5)
    '1970-01-01T00:00:01.500000Z'
    """
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
