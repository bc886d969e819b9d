"""Secrets sealed with a key that is not in the database, so that its copy gives nobody a secret.

AES-256-GCM, as NIST SP 800-38D has it: a fresh 96-bit nonce before each ciphertext. The name of
what is sealed is authenticated with it, so that no sealed secret can be put in another's place.
"""

from __future__ import annotations

import hmac
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from turnwise import errors
from turnwise.system import write_private_file

_NONCE_BYTES = 12
_KEY_BYTES = 32


class Vault:
    """Seals and opens secrets with one master key."""

    def __init__(self, master_key: bytes) -> None:
        self._cipher = AESGCM(master_key)
        self._master_key = master_key

    @classmethod
    def open(cls, path: Path) -> Vault:
        """The vault whose master key is in that file, made at the first start. Blocks.

        Raises `Denied` if others may read the file, `InvalidInput` if it holds no master key.
        """
        if not path.exists():
            write_private_file(path, os.urandom(_KEY_BYTES).hex() + "\n")
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise errors.Denied(
                f"{path} may be read by others, and with it every access key; chmod 600 {path}"
            )
        try:
            return cls(bytes.fromhex(path.read_text().strip()))
        except ValueError:
            raise errors.InvalidInput(
                "master key",
                str(path),
                f"does not hold {2 * _KEY_BYTES} hexadecimal digits",
                remedy="put back the file that was there when the access keys were made",
            ) from None

    def derived(self, purpose: str) -> bytes:
        """A key of 32 bytes for one purpose, which tells nothing of the master key."""
        return hmac.digest(self._master_key, purpose.encode(), "sha256")

    def seal(self, name: str, secret: str) -> bytes:
        """The secret, unreadable and unchangeable without the master key."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret.encode(), name.encode())

    def unseal(self, name: str, sealed: bytes) -> str:
        """What was sealed under that name. Raises `Corrupted` with another master key."""
        nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, ciphertext, name.encode()).decode()
        except InvalidTag:
            raise errors.Corrupted(
                f"the secret of {name} cannot be read with this server's master key; "
                "put back the file that was there when it was made, or make a new access key"
            ) from None
