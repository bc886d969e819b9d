"""Who may make accounts and keys, and for whom."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import builders
from turnwise import errors
from turnwise.access.accounts import Accounts
from turnwise.access.keys import Keyring
from turnwise.access.vault import Vault
from turnwise.domain.access import ALL_ACTIONS, Account, Action, Principal
from turnwise.storage.sql import SqlStore


@dataclass
class Office:
    store: SqlStore
    keyring: Keyring
    accounts: Accounts
    operator: Principal

    async def caller(self, secret: str) -> Principal:
        return await self.accounts.authenticate(secret)

    async def tenant(self, slug: str = "lab") -> tuple[Account, Principal]:
        """A new account and the holder of its first key."""
        account = await self.accounts.create(self.operator, slug)
        secret, _ = await self.accounts.create_key(self.operator, "first", account=slug)
        return account, await self.caller(secret)


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    store = SqlStore.in_memory()
    keyring = Keyring(store, Vault(bytes(32)))
    accounts = Accounts(store, keyring, find_job=store.job, region="us-west-2")
    admin = await keyring.admin_key(tmp_path / "admin.key")
    yield Office(store, keyring, accounts, await keyring.authenticate(admin))
    await store.close()


async def test_accounts_get_the_next_numbers_and_none_that_would_put_404_in_a_url(office: Office):
    made = [await office.accounts.create(office.operator, slug) for slug in ("lab", "team-b")]
    assert [account.number for account in made] == ["000000000002", "000000000003"]
    last = Account(account_id="acc_x", slug="x", number="000000000403")
    await office.store.create_account(last)
    assert (await office.accounts.create(office.operator, "next")).number == "000000000405"
    assert [each.slug for each in await office.accounts.accounts(office.operator)] == [
        "default",
        "lab",
        "team-b",
        "x",
        "next",
    ]
    with pytest.raises(errors.Conflict, match="account 'lab' exists already"):
        await office.accounts.create(office.operator, "lab")


@pytest.mark.parametrize("slug", ["", "Lab", "a b", "-a", "a--b", "a/b", "x" * 64])
async def test_a_slug_is_a_short_plain_word(office: Office, slug: str):
    with pytest.raises(errors.InvalidInput, match=r"slug: .* use 1 to 63 of a-z"):
        await office.accounts.create(office.operator, slug)


async def test_a_key_of_another_account_acts_there_alone(office: Office):
    account, holder = await office.tenant()
    assert (holder.account_id, holder.actions, holder.is_operator) == (
        account.account_id,
        ALL_ACTIONS,
        False,
    )
    identity = await office.accounts.identity(holder)
    assert (identity.account, identity.region) == (account, "us-west-2")
    assert await office.accounts.number(account.account_id) == account.number
    names = [key.name for key in await office.accounts.keys(holder)]
    assert names == ["first"]
    assert [key.name for key in await office.accounts.keys(office.operator)] == ["admin"]
    with pytest.raises(errors.NotFound, match="account 'acc_x'"):
        await office.accounts.number("acc_x")


async def test_only_the_operator_makes_accounts_and_reaches_into_them(office: Office):
    _, holder = await office.tenant()
    await office.accounts.create(office.operator, "other")
    secret, _ = await office.accounts.create_key(office.operator, "mate")
    mate = await office.caller(secret)  # of the operator's own account, with all rights
    refused: list[Callable[[Principal], Awaitable[object]]] = [
        lambda who: office.accounts.create(who, "mine"),
        lambda who: office.accounts.accounts(who),
        lambda who: office.accounts.create_key(who, "spy", account="other"),
        lambda who: office.accounts.keys(who, account="other"),
        lambda who: office.accounts.revoke(who, "key_x", account="other"),
        # Whether an account exists is not told either.
        lambda who: office.accounts.keys(who, account="nobody"),
    ]
    for who in (holder, mate):
        for call in refused:
            with pytest.raises(errors.Denied, match="operator"):
                await call(who)
    assert [key.name for key in await office.accounts.keys(holder, account="lab")] == ["first"]
    with pytest.raises(errors.NotFound, match="account 'nobody' does not exist; turnwise accounts"):
        await office.accounts.keys(office.operator, account="nobody")


async def test_nobody_hands_out_more_than_they_have(office: Office):
    some = [Action.MANAGE, Action.READ]
    secret, _ = await office.accounts.create_key(office.operator, "lead", actions=some)
    lead = await office.caller(secret)
    secret, key = await office.accounts.create_key(lead, "like mine")
    assert key.actions == frozenset(some)
    _, key = await office.accounts.create_key(lead, "less", actions=[Action.READ])
    assert key.actions == {Action.READ}
    with pytest.raises(errors.Denied, match="may not report, sample, so it cannot let others"):
        await office.accounts.create_key(lead, "more", actions=ALL_ACTIONS)
    reader = dataclasses.replace(lead, actions=frozenset({Action.READ}))
    for call in (
        office.accounts.create_key(reader, "x"),
        office.accounts.keys(reader),
        office.accounts.revoke(reader, key.key_id),
    ):
        with pytest.raises(errors.Denied, match="may not manage"):
            await call


async def test_a_key_for_jobs_holds_their_ids_and_makes_no_keys(office: Office):
    account = office.operator.account_id
    await office.store.create_job(builders.job(account_id=account))
    secret, key = await office.accounts.create_key(office.operator, "walker", jobs=["walk"])
    assert key.job_ids == {"job_walk"}
    holder = await office.caller(secret)
    for call in (office.accounts.create_key(holder, "x"), office.accounts.keys(holder)):
        with pytest.raises(errors.Denied, match="this key is for certain jobs"):
            await call
    with pytest.raises(errors.NotFound, match="job 'run'"):
        await office.accounts.create_key(office.operator, "x", jobs=["walk", "run"])
    await office.accounts.create(office.operator, "lab")
    with pytest.raises(errors.NotFound, match="job 'walk'"):
        await office.accounts.create_key(office.operator, "x", account="lab", jobs=["walk"])
    assert [key.name for key in await office.accounts.keys(office.operator)] == ["admin", "walker"]


async def test_a_key_is_revoked_by_its_account_but_the_admin_key_by_nobody(office: Office):
    _, holder = await office.tenant()
    secret, key = await office.accounts.create_key(holder, "ci")
    with pytest.raises(errors.NotFound):
        await office.accounts.revoke(office.operator, key.key_id)  # not one of its own account
    await office.accounts.revoke(office.operator, key.key_id, account="lab")
    with pytest.raises(errors.Unauthenticated):
        await office.caller(secret)
    secret, _ = await office.accounts.create_key(office.operator, "mate")
    mate = await office.caller(secret)
    [admin, *_] = await office.accounts.keys(mate)
    for who in (mate, office.operator):
        with pytest.raises(errors.Conflict, match=r"when admin\.key in the data folder is deleted"):
            await office.accounts.revoke(who, admin.key_id)
