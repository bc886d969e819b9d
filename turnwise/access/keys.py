"""Access keys and rollout secrets. A secret is shown once, when made.

What is stored of it is its sha256 and, where it also verifies signatures, its sealed form.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import re
import stat
from collections.abc import Collection
from pathlib import Path

from turnwise import errors
from turnwise.access import sigv2, sigv4
from turnwise.access.vault import Vault
from turnwise.domain.access import ADMIN, ALL_ACTIONS, Action, Key, Principal
from turnwise.ports import Clock, Keys, NewId
from turnwise.system import SYSTEM_CLOCK, new_id, random_letters, write_private_file

_PREFIX = "tw_"
_LETTERS = 40  # 188 bits
_MAX_NAME = 128
_SHAPE = re.compile(r"tw_[a-z]{40}")

# How long a revocation made by another server of the same database may go unnoticed.
_CACHE_S = 30.0


def sha256_hex(secret: str) -> str:
    """What is stored of a secret. It is random and long, so that no salt is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def matches(secret: str, sha256: str) -> bool:
    """Whether the secret has that hash, in a time that does not tell how much of it fits."""
    return hmac.compare_digest(sha256_hex(secret), sha256)


class Keyring:
    """Makes, lists, revokes and checks the keys of accounts."""

    def __init__(
        self, store: Keys, vault: Vault, *, clock: Clock = SYSTEM_CLOCK, make_id: NewId = new_id
    ) -> None:
        self._store = store
        self._vault = vault
        self._clock = clock
        self._make_id = make_id
        self._known: dict[str, tuple[Key, float]] = {}  # by sha256, with the time it was read
        self._signers: dict[str, tuple[Key, str, float]] = {}  # by access key id, with the secret

    async def authenticate(self, bearer: str) -> Principal:
        """The caller who presents this key. Raises `Unauthenticated`."""
        sha256 = sha256_hex(bearer)
        key = await self._find(sha256)
        if key is None or key.revoked_at is not None or not matches(bearer, key.sha256):
            raise errors.Unauthenticated(
                "this key does not exist or has been revoked; send a valid one as "
                '"Authorization: Bearer tw_..." (the admin key is in admin.key in the data folder)'
            )
        return key.principal

    async def verify(
        self,
        request: sigv4.SignedRequest,
        signature: sigv4.Signature | sigv2.PresignedUrl,
        *,
        max_expires_s: int,
    ) -> Principal:
        """The caller who signed this request. Raises `Unauthenticated`.

        The region and the service of the scope are for the door to judge.
        """
        if isinstance(signature, sigv2.PresignedUrl):
            sigv2.check_time(signature, self._clock.now(), max_expires_s=max_expires_s)
            key, secret = await self._signer(signature.access_key_id)
            sigv2.check_signature(request, signature, secret)
            return key.principal
        sigv4.check_time(signature, self._clock.now(), max_expires_s=max_expires_s)
        key, secret = await self._signer(signature.access_key_id)
        sigv4.check_signature(request, signature, secret)
        return key.principal

    async def holder(self, access_key_id: str) -> Principal:
        """The caller behind an access key whose signature was verified before.

        Raises `UnknownKey` once it has been revoked.
        """
        key, _ = await self._signer(access_key_id)
        return key.principal

    async def create(
        self,
        account_id: str,
        name: str,
        *,
        actions: Collection[Action] = ALL_ACTIONS,
        job_ids: Collection[str] | None = None,
    ) -> tuple[str, Key]:
        """A new key: the secret to hand out, which cannot be read again, and what is stored."""
        if not name.strip() or name == ADMIN or len(name) > _MAX_NAME:
            raise errors.InvalidInput(
                "name",
                name,
                "cannot be a key's name",
                remedy=f"use any text but {ADMIN!r}, of at most {_MAX_NAME} characters",
            )
        if not actions:
            raise errors.InvalidInput(
                "actions", list(actions), "is empty", remedy=f"use some of {', '.join(Action)}"
            )
        secret = _new_key()
        key = self._key(account_id, name, secret, frozenset(actions), job_ids)
        await self._store.add_key(key)
        return secret, key

    async def keys(self, account_id: str) -> list[Key]:
        """Oldest first, revoked ones included."""
        return await self._store.keys(account_id)

    async def revoke(self, account_id: str, key_id: str) -> Key:
        """End a key, from its next use on. Raises `NotFound`."""
        key = await self._store.revoke_key(account_id, key_id)
        self._known.pop(key.sha256, None)
        self._signers.pop(key.access_key_id, None)
        return key

    async def admin_key(self, path: Path) -> str:
        """The default account's admin key, kept in `path` and made at the first start.

        Delete the file and start again to have a new one; the old one is then revoked. Raises
        `Denied` if others may read the file, `InvalidInput` if it holds no key or a revoked one.
        """
        account = await self._store.default_account()
        secret = _read_secret(path) if path.exists() else _write_secret(path, _new_key())
        current = None
        for key in await self._store.keys(account.account_id):
            if key.sha256 == sha256_hex(secret):
                current = await self._sealed(_still_valid(key, path), secret)
            elif key.name == ADMIN and key.revoked_at is None:
                await self.revoke(account.account_id, key.key_id)
        if current is None:
            await self._store.add_key(
                self._key(account.account_id, ADMIN, secret, ALL_ACTIONS, None)
            )
        return secret

    def _key(
        self,
        account_id: str,
        name: str,
        secret: str,
        actions: frozenset[Action],
        job_ids: Collection[str] | None,
    ) -> Key:
        key_id = self._make_id("key")
        access_key_id = _new_access_key_id()
        return Key(
            key_id=key_id,
            account_id=account_id,
            name=name,
            sha256=sha256_hex(secret),
            actions=actions,
            job_ids=None if job_ids is None else frozenset(job_ids),
            created_at=self._clock.now(),
            access_key_id=access_key_id,
            sealed=self._vault.seal(access_key_id, secret),
        )

    async def _sealed(self, key: Key, secret: str) -> Key:
        """The key, able to verify signatures, which those of earlier versions were not."""
        if key.sealed is not None:
            return key
        access_key_id = _new_access_key_id()
        sealed = self._vault.seal(access_key_id, secret)
        key = dataclasses.replace(key, access_key_id=access_key_id, sealed=sealed)
        await self._store.seal_key(key)
        return key

    async def _signer(self, access_key_id: str) -> tuple[Key, str]:
        """A key and its secret by its access key id."""
        key, secret, read_at = self._signers.get(access_key_id, (None, "", 0.0))
        if key is None or self._clock.now() - read_at >= _CACHE_S:
            try:
                key = await self._store.key_by_access_key_id(access_key_id)
            except errors.NotFound:
                key = None
            if key is None or key.revoked_at is not None or key.sealed is None:
                self._signers.pop(access_key_id, None)
                raise errors.UnknownKey(
                    f"the access key {access_key_id!r} does not exist or has been revoked"
                )
            secret = self._vault.unseal(access_key_id, key.sealed)
            self._signers[access_key_id] = (key, secret, self._clock.now())
        return key, secret

    async def _find(self, sha256: str) -> Key | None:
        key, read_at = self._known.get(sha256, (None, 0.0))
        if key is not None and self._clock.now() - read_at < _CACHE_S:
            return key
        try:
            key = await self._store.key_by_sha256(sha256)
        except errors.NotFound:
            self._known.pop(sha256, None)
            return None
        self._known[sha256] = (key, self._clock.now())
        return key


def _new_key() -> str:
    return _PREFIX + random_letters(_LETTERS)


def _new_access_key_id() -> str:
    return "TWAK" + random_letters(16).upper()


def _still_valid(key: Key, path: Path) -> Key:
    if key.revoked_at is not None:
        raise errors.InvalidInput(
            "admin.key", str(path), "holds a revoked key", remedy="delete the file for a new key"
        )
    return key


def _read_secret(path: Path) -> str:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise errors.Denied(
            f"{path} has mode {mode:04o}, so that others may have read the admin key; "
            f"delete it for a new key, or chmod 600 {path} to go on with this one"
        )
    secret = path.read_text().strip()
    if not _SHAPE.fullmatch(secret):
        raise errors.InvalidInput(
            "admin.key", str(path), "does not hold a key", remedy="delete the file for a new key"
        )
    return secret


def _write_secret(path: Path, secret: str) -> str:
    write_private_file(path, secret + "\n")
    return secret
