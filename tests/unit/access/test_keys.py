"""Keys, the admin key's file, rollout secrets."""

import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.builders import ACCOUNT, SetClock
from turnwise import errors
from turnwise.access.keys import Keyring, matches, sha256_hex
from turnwise.access.vault import Vault
from turnwise.domain.access import ALL_ACTIONS, Action, Key, Principal
from turnwise.storage.sql import SqlStore
from turnwise.system import random_letters


@pytest.fixture
async def store() -> AsyncIterator[SqlStore]:
    opened = SqlStore.in_memory()
    yield opened
    await opened.close()


def keyring(store: SqlStore, clock: SetClock | None = None) -> Keyring:
    return Keyring(store, Vault(bytes(32)), clock=clock or SetClock())


async def test_a_key_authenticates_as_what_it_was_made_for(store: SqlStore) -> None:
    ring = keyring(store)
    secret, key = await ring.create(
        ACCOUNT, "agent", actions=[Action.READ], job_ids=["job_a", "job_b"]
    )
    assert await ring.authenticate(secret) == Principal(
        account_id=ACCOUNT,
        actions=frozenset({Action.READ}),
        job_ids=frozenset({"job_a", "job_b"}),
        name="agent",
        access_key_id=key.access_key_id,
    )
    assert await ring.keys(ACCOUNT) == [key]
    assert (key.sha256, key.created_at) == (sha256_hex(secret), 1000.0)


async def test_a_key_is_letters_only_and_its_secret_is_not_stored(store: SqlStore) -> None:
    secret, key = await keyring(store).create(ACCOUNT, "ci")
    assert re.fullmatch(r"tw_[a-z]{40}", secret)
    assert secret not in str(key)


@pytest.mark.parametrize("bearer", ["", "tw_nobody", "Bearer", "\u00e9"])
async def test_a_key_that_does_not_exist_is_refused(store: SqlStore, bearer: str) -> None:
    with pytest.raises(errors.Unauthenticated, match="this key does not exist or has been revoked"):
        await keyring(store).authenticate(bearer)


async def test_a_revoked_key_is_refused_at_once(store: SqlStore) -> None:
    ring = keyring(store)
    secret, key = await ring.create(ACCOUNT, "ci")
    await ring.authenticate(secret)
    await ring.revoke(ACCOUNT, key.key_id)
    with pytest.raises(errors.Unauthenticated):
        await ring.authenticate(secret)


async def test_a_revocation_by_another_server_is_noticed_after_a_while(store: SqlStore) -> None:
    clock = SetClock()
    ring = keyring(store, clock)
    secret, key = await ring.create(ACCOUNT, "ci")
    await ring.authenticate(secret)
    await store.revoke_key(ACCOUNT, key.key_id)
    await ring.authenticate(secret)
    clock.at += 30
    with pytest.raises(errors.Unauthenticated):
        await ring.authenticate(secret)


@pytest.mark.parametrize("name", ["", "  ", "admin", "x" * 129])
async def test_names_that_a_key_cannot_have(store: SqlStore, name: str) -> None:
    with pytest.raises(errors.InvalidInput, match="cannot be a key's name; use any text but"):
        await keyring(store).create(ACCOUNT, name)


async def test_a_key_without_actions_is_refused(store: SqlStore) -> None:
    with pytest.raises(errors.InvalidInput, match=r"actions: \[\] is empty; use some of manage"):
        await keyring(store).create(ACCOUNT, "ci", actions=[])


async def test_the_admin_key_is_made_once_and_read_again(store: SqlStore, tmp_path: Path) -> None:
    path = tmp_path / "admin.key"
    secret = await keyring(store).admin_key(path)
    assert path.read_text() == secret + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    restarted = keyring(store)
    assert await restarted.admin_key(path) == secret
    [key] = await restarted.keys("acc_default")
    assert await restarted.authenticate(secret) == Principal(
        account_id="acc_default",
        actions=ALL_ACTIONS,
        name="admin",
        access_key_id=key.access_key_id,
        is_operator=True,
    )


async def test_the_file_serves_a_new_database_too(store: SqlStore, tmp_path: Path) -> None:
    secret = await keyring(store).admin_key(tmp_path / "admin.key")
    fresh = SqlStore.in_memory()
    ring = keyring(fresh)
    assert await ring.admin_key(tmp_path / "admin.key") == secret
    assert (await ring.authenticate(secret)).name == "admin"
    await fresh.close()


async def test_deleting_the_file_makes_a_new_admin_key_and_ends_the_old(
    store: SqlStore, tmp_path: Path
) -> None:
    ring = keyring(store)
    old = await ring.admin_key(tmp_path / "admin.key")
    (tmp_path / "admin.key").unlink()
    new = await ring.admin_key(tmp_path / "admin.key")
    assert (await ring.authenticate(new)).name == "admin"
    with pytest.raises(errors.Unauthenticated):
        await ring.authenticate(old)


async def test_an_admin_key_that_others_can_read_is_refused(
    store: SqlStore, tmp_path: Path
) -> None:
    path = tmp_path / "admin.key"
    await keyring(store).admin_key(path)
    path.chmod(0o640)
    with pytest.raises(errors.Denied, match=rf"has mode 0640.* or chmod 600 {path}"):
        await keyring(store).admin_key(path)


async def test_a_file_that_holds_no_valid_key_is_refused(store: SqlStore, tmp_path: Path) -> None:
    path = tmp_path / "admin.key"
    path.touch(mode=0o600)
    with pytest.raises(errors.InvalidInput, match="does not hold a key; delete the file"):
        await keyring(store).admin_key(path)
    path.unlink()
    await keyring(store).admin_key(path)
    admin = (await store.keys("acc_default"))[0]
    assert isinstance(admin, Key)
    await store.revoke_key("acc_default", admin.key_id)
    with pytest.raises(errors.InvalidInput, match="holds a revoked key; delete the file"):
        await keyring(store).admin_key(path)


def test_a_rollout_secret_matches_its_hash_alone() -> None:
    secret = random_letters(40)
    assert re.fullmatch(r"[a-z]{40}", secret)
    assert matches(secret, sha256_hex(secret))
    assert not matches(random_letters(40), sha256_hex(secret))
    assert not matches("", sha256_hex(secret))
