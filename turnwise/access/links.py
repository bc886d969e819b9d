"""Tokens that the server gives out and takes back: for one purpose, for a time, for one key.

A token is sealed by the vault, so that nobody else can make or change one; what it was made for is
authenticated with it. It names an access key, whose rights are looked up when it comes back: a key
that has been revoked takes its tokens with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from turnwise import errors
from turnwise.access.vault import Vault
from turnwise.ports import Clock

#: Purposes: a presigned address that signs a browser in, and the cookie that it then has.
MLFLOW_SIGN_IN, MLFLOW_SESSION = "mlflow sign-in", "mlflow session"
#: The cookie of who signed in to the dashboard with a key.
DASHBOARD_SESSION = "dashboard session"

_HEX, _LETTERS = "0123456789abcdef", "abcdefghijklmnop"
_TO_LETTERS = str.maketrans(_HEX, _LETTERS)
_FROM_LETTERS = str.maketrans(_LETTERS, _HEX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a token says. `session_s` is how long a sign-in by it lasts."""

    access_key_id: str
    expires_at: float
    session_s: int = 0


class Links:
    """Makes and reads tokens."""

    def __init__(self, vault: Vault, clock: Clock) -> None:
        self._vault = vault
        self._clock = clock

    def make(
        self, purpose: str, access_key_id: str, *, expires_s: float, session_s: int = 0
    ) -> str:
        """A token of letters only (see `ports.NewId`)."""
        expires_at = self._clock.now() + expires_s
        sealed = self._vault.seal(purpose, json.dumps([access_key_id, expires_at, session_s]))
        return sealed.hex().translate(_TO_LETTERS)

    def read(self, purpose: str, token: str) -> Grant:
        """What a token of that purpose says. Raises `Unauthenticated`."""
        try:
            sealed = bytes.fromhex(token.translate(_FROM_LETTERS))
            key, expires_at, session_s = json.loads(self._vault.unseal(purpose, sealed))
        except (ValueError, errors.Corrupted):
            raise errors.Unauthenticated("this sign-in was not given out by this server") from None
        if self._clock.now() >= expires_at:
            raise errors.Unauthenticated("this sign-in has expired; ask for a new presigned URL")
        return Grant(access_key_id=key, expires_at=expires_at, session_s=session_s)
