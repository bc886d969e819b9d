"""An account's secrets for its evaluators: sealed when they come, and never shown again.

A secret has an id to manage it by (`openai-api-key`), and the name of the environment variable
that an evaluator finds it in (`OPENAI_API_KEY`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from turnwise import errors
from turnwise.domain.access import Action, Principal
from turnwise.domain.resource import Resource
from turnwise.ports import Clock, Resources

KIND = "secret"  # of the records

#: Longer values are files, which an evaluator brings with it.
MAX_VALUE_BYTES = 64 * 1024

_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_KEY_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class Sealing(Protocol):
    """Seals text under a name: `access.vault.Vault`."""

    def seal(self, name: str, secret: str) -> bytes:
        """Unreadable without the master key."""
        ...

    def unseal(self, name: str, sealed: bytes) -> str:
        """What was sealed under that name. Raises `Corrupted`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A secret as it may be shown: everything but its value. Times are seconds since the epoch."""

    secret_id: str
    key_name: str
    created_at: float
    updated_at: float


class Secrets:
    """The secrets of all accounts. Every call but `values` requires a principal with the right."""

    def __init__(self, resources: Resources, vault: Sealing, clock: Clock) -> None:
        self._resources = resources
        self._vault = vault
        self._clock = clock

    async def create(self, principal: Principal, secret_id: str, key_name: str, value: str) -> None:
        """Keep a new secret. Raises `InvalidInput`, and `Conflict` if the id is taken."""
        principal.require_all(Action.MANAGE, "secrets")
        body = self._body(principal.account_id, secret_id, key_name, value)
        await self._resources.create_resource(
            Resource(
                account_id=principal.account_id,
                kind=KIND,
                name=secret_id,
                body=body,
                created_at=self._clock.now(),
            )
        )

    async def change(
        self, principal: Principal, secret_id: str, *, key_name: str = "", value: str
    ) -> Secret:
        """Give a secret another value, and another name where one is given. Raises `NotFound`."""
        principal.require_all(Action.MANAGE, "secrets")
        known = await self.get(principal, secret_id)
        body = self._body(principal.account_id, secret_id, key_name or known.key_name, value)
        record = Resource(account_id=principal.account_id, kind=KIND, name=secret_id, body=body)
        return _shown(await self._resources.change_resource(record))

    async def put(self, principal: Principal, secret_id: str, key_name: str, value: str) -> None:
        """Keep a secret, in place of the one of that id if there is one."""
        try:
            await self.create(principal, secret_id, key_name, value)
        except errors.Conflict:
            await self.change(principal, secret_id, key_name=key_name, value=value)

    async def get(self, principal: Principal, secret_id: str) -> Secret:
        """One secret without its value. Raises `NotFound`."""
        principal.require_all(Action.READ, "secrets")
        return _shown(await self._resources.resource(principal.account_id, KIND, secret_id))

    async def list(self, principal: Principal) -> list[Secret]:
        """Oldest first."""
        principal.require_all(Action.READ, "secrets")
        return [
            _shown(each) for each in await self._resources.resources(principal.account_id, KIND)
        ]

    async def delete(self, principal: Principal, secret_id: str) -> None:
        """Raises `NotFound`."""
        principal.require_all(Action.MANAGE, "secrets")
        await self._resources.delete_resource(principal.account_id, KIND, secret_id)

    async def values(self, account_id: str) -> dict[str, str]:
        """Every secret in clear, by the name of its variable, for the account's own evaluators.

        Of two of one name, the one made last. Raises `Corrupted` with another master key.
        """
        return {
            record.body["key_name"]: self._vault.unseal(
                _sealed_as(account_id, record.name), bytes.fromhex(record.body["sealed"])
            )
            for record in await self._resources.resources(account_id, KIND)
        }

    def _body(self, account_id: str, secret_id: str, key_name: str, value: str) -> dict[str, str]:
        _check(secret_id, key_name, value)
        sealed = self._vault.seal(_sealed_as(account_id, secret_id), value)
        return {"key_name": key_name, "sealed": sealed.hex()}


def _sealed_as(account_id: str, secret_id: str) -> str:
    """What a value is sealed as: it cannot be put in another account's, or another's, place."""
    return f"secret {secret_id} of {account_id}"


def _check(secret_id: str, key_name: str, value: str) -> None:
    """Raise `InvalidInput`; never with the value in it."""
    if not _ID.fullmatch(secret_id):
        raise errors.InvalidInput(
            "secret_id",
            secret_id,
            "is not an id",
            remedy="use 1 to 63 of a-z, 0-9 and hyphens, with a letter first and no hyphen last",
        )
    if not _KEY_NAME.fullmatch(key_name):
        raise errors.InvalidInput(
            "key_name",
            key_name,
            "is not the name of an environment variable",
            remedy="use letters, digits and underscores, as in OPENAI_API_KEY",
        )
    if not value:
        raise errors.InvalidInput("value", "", "is empty", remedy="delete the secret instead")
    size = len(value.encode())
    if "\0" in value or size > MAX_VALUE_BYTES:
        raise errors.InvalidInput(
            "value",
            f"({size} bytes)",
            "cannot be the value of an environment variable",
            remedy=f"use at most {MAX_VALUE_BYTES} bytes of text without NUL",
        )


def _shown(record: Resource) -> Secret:
    return Secret(
        secret_id=record.name,
        key_name=record.body["key_name"],
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
