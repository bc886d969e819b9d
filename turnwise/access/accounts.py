"""Accounts and their keys, for callers: who may make and end which.

Each account is a tenant and sees nothing of another. The operator, who holds the data folder's
admin key, makes accounts and keys for them; everyone else makes keys for their own account, and
none that may do more than theirs.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from turnwise import errors
from turnwise.access.keys import Keyring
from turnwise.domain.access import ADMIN, ALL_ACTIONS, Account, Action, Key, Principal
from turnwise.domain.job import Job
from turnwise.ports import Keys, NewId
from turnwise.system import new_id

_SLUG = re.compile(r"[a-z0-9](-?[a-z0-9]){0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a caller is told of itself."""

    principal: Principal
    account: Account
    region: str  # that AWS clients address this server in


class Accounts:
    """Makes accounts and keys on behalf of a caller. `find_job` finds an account's job by name."""

    def __init__(
        self,
        store: Keys,
        keyring: Keyring,
        *,
        find_job: Callable[[str, str], Awaitable[Job]],
        region: str,
        make_id: NewId = new_id,
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._find_job = find_job
        self._region = region
        self._make_id = make_id
        self._making = asyncio.Lock()  # held from a look at the numbers to the use of the next
        self._numbers: dict[str, str] = {}  # they never change

    async def authenticate(self, bearer: str) -> Principal:
        """The caller who presents this key. Raises `Unauthenticated`."""
        return await self._keyring.authenticate(bearer)

    async def identity(self, principal: Principal) -> Identity:
        """Who the caller is; needs no right."""
        account = await self._store.account(principal.account_id)
        return Identity(principal=principal, account=account, region=self._region)

    async def number(self, account_id: str) -> str:
        """The 12 digits of an account. Raises `NotFound`."""
        if account_id not in self._numbers:
            self._numbers[account_id] = (await self._store.account(account_id)).number
        return self._numbers[account_id]

    # ── accounts ──────────────────────────────────────────────────────────────────────────────

    async def create(self, principal: Principal, slug: str) -> Account:
        """A new account with the next number. Raises `Conflict` if the slug is taken."""
        _require_operator(principal)
        if not _SLUG.fullmatch(slug):
            raise errors.InvalidInput(
                "slug", slug, "is not allowed", remedy="use 1 to 63 of a-z, 0-9 and single hyphens"
            )
        async with self._making:
            numbers = _free_numbers({account.number for account in await self._store.accounts()})
            account = Account(account_id=self._make_id("acc"), slug=slug, number=next(numbers))
            return await self._store.create_account(account)

    async def accounts(self, principal: Principal) -> Sequence[Account]:
        """All accounts, by number."""
        _require_operator(principal)
        return await self._store.accounts()

    # ── keys ──────────────────────────────────────────────────────────────────────────────────

    async def create_key(
        self,
        principal: Principal,
        name: str,
        *,
        account: str = "",
        jobs: Collection[str] = (),
        actions: Collection[Action] = (),
    ) -> tuple[str, Key]:
        """A new key of an account (by its slug; the caller's own if none is named).

        `jobs`, by name or id, and `actions`, where given, limit it. Returns the secret, which
        cannot be read again, and the key. Raises `Denied` for more than the caller may do itself.
        """
        account_id = await self._managed(principal, account)
        allowed = ALL_ACTIONS if principal.is_operator else principal.actions
        wanted = frozenset(actions) or allowed
        if beyond := sorted(wanted - allowed):
            raise errors.Denied(f"this key may not {', '.join(beyond)}, so it cannot let others")
        found = [await self._find_job(account_id, job) for job in jobs]
        job_ids = [job.job_id for job in found] or None
        return await self._keyring.create(account_id, name, actions=wanted, job_ids=job_ids)

    async def keys(self, principal: Principal, *, account: str = "") -> Sequence[Key]:
        """An account's keys, oldest first, revoked ones included."""
        return await self._keyring.keys(await self._managed(principal, account))

    async def revoke(self, principal: Principal, key_id: str, *, account: str = "") -> Key:
        """End a key, at once. Raises `NotFound`, `Conflict` for the admin key."""
        account_id = await self._managed(principal, account)
        known = {key.key_id: key for key in await self._keyring.keys(account_id)}
        if key_id in known and known[key_id].name == ADMIN:
            raise errors.Conflict(
                "the admin key ends when admin.key in the data folder is deleted and the server "
                "started again, which makes a new one"
            )
        return await self._keyring.revoke(account_id, key_id)

    async def _managed(self, principal: Principal, slug: str) -> str:
        """The id of the account whose keys the caller wants to manage, if it may."""
        principal.require_all(Action.MANAGE, "keys")
        if not slug:
            return principal.account_id
        if not principal.is_operator:
            own = await self._store.account(principal.account_id)
            if slug != own.slug:
                raise errors.Denied("only the operator's key manages keys of another account")
            return own.account_id
        for account in await self._store.accounts():
            if account.slug == slug:
                return account.account_id
        raise errors.NotFound("account", slug, remedy="turnwise accounts list shows all")


def _require_operator(principal: Principal) -> None:
    if not principal.is_operator:
        raise errors.Denied("accounts are made by the operator, with admin.key of the data folder")


def _free_numbers(taken: Collection[str]) -> Iterator[str]:
    """Account numbers after the highest; none with "404" in it, as no id has it (`ports.NewId`)."""
    number = max(map(int, taken), default=0)
    while True:
        number += 1
        if "404" not in (text := f"{number:012d}"):
            yield text
