"""What a copied database gives away, and what somebody who can write to it can do."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import ACCOUNT
from tests.unit.access.test_sigv4 import arrived
from turnwise import errors
from turnwise.access.keys import Keyring
from turnwise.access.sigv4 import Signature
from turnwise.access.vault import Vault
from turnwise.domain.access import Principal
from turnwise.storage.sql import SqlStore


@given(st.text(max_size=20), st.text(max_size=60))
def test_a_secret_comes_back_under_its_own_name_alone(name: str, secret: str):
    vault = Vault(bytes(32))
    sealed = vault.seal(name, secret)
    assert vault.unseal(name, sealed) == secret
    assert vault.seal(name, secret) != sealed
    with pytest.raises(errors.Corrupted):
        vault.unseal(name + "x", sealed)


def test_another_master_key_and_a_changed_byte_open_nothing():
    sealed = Vault(bytes(32)).seal("TWAK", "secret")
    with pytest.raises(errors.Corrupted, match="cannot be read with this server's master key"):
        Vault(bytes(31) + b"\x01").unseal("TWAK", sealed)
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(errors.Corrupted):
            Vault(bytes(32)).unseal("TWAK", changed)


def test_the_master_key_is_made_once_for_the_owner_alone(tmp_path: Path):
    path = tmp_path / "master.key"
    sealed = Vault.open(path).seal("TWAK", "secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Vault.open(path).unseal("TWAK", sealed) == "secret"
    path.chmod(0o644)
    with pytest.raises(errors.Denied, match="chmod 600"):
        Vault.open(path)
    path.chmod(0o600)
    path.write_text("no key")
    with pytest.raises(errors.InvalidInput, match="does not hold 64 hexadecimal digits"):
        Vault.open(path)


async def signer_of(store: SqlStore, vault: Vault, access_key_id: str, secret: str) -> Principal:
    """Who a request signed with that pair is by, to a server with that database and master key."""
    request = AWSRequest("POST", "http://here/", {}, b"{}")
    SigV4Auth(Credentials(access_key_id, secret), "sagemaker", "us-west-2").add_auth(request)
    seen = arrived(request)
    signature = Signature.of(seen)
    assert signature is not None
    return await Keyring(store, vault).verify(seen, signature, max_expires_s=60)


async def test_a_copied_database_without_the_master_key_gives_nobody_a_secret(tmp_path: Path):
    file = tmp_path / "turnwise.sqlite"
    store = SqlStore.open(file)
    vault = Vault.open(tmp_path / "master.key")
    secret, key = await Keyring(store, vault).create(ACCOUNT, "agent")
    assert (await signer_of(store, vault, key.access_key_id, secret)).name == "agent"
    await store.close()
    for part in tmp_path.glob("turnwise.sqlite*"):
        assert secret.encode() not in part.read_bytes()
    copied = SqlStore.open(file)
    elsewhere = Vault.open(tmp_path / "another-master.key")
    with pytest.raises(errors.Corrupted):
        await signer_of(copied, elsewhere, key.access_key_id, secret)
    await copied.close()


async def test_one_keys_sealed_secret_cannot_be_put_in_anothers_place(tmp_path: Path):
    """Who can write to the database cannot let their own secret sign as somebody else."""
    file, vault = tmp_path / "turnwise.sqlite", Vault(bytes(32))
    store = SqlStore.open(file)
    ring = Keyring(store, vault)
    _, victim = await ring.create(ACCOUNT, "victim")
    mine, own = await ring.create("acc_other", "own")
    await store.close()
    with sqlite3.connect(file) as database:
        database.execute(
            "UPDATE keys SET sealed = (SELECT sealed FROM keys WHERE key_id = ?) WHERE key_id = ?",
            (own.key_id, victim.key_id),
        )
    database.close()
    store = SqlStore.open(file)
    with pytest.raises(errors.Corrupted):
        await signer_of(store, vault, victim.access_key_id, mine)
    await store.close()
