"""Who calls the data plane: the holder of an access key, in any of three ways.

bearer     the key itself, or the token that the sagemaker SDK makes of it (`access.sdk_token`)
signature  AWS's Signature Version 4, for service `sagemaker` and this server's region
"""

from __future__ import annotations

from turnwise import errors
from turnwise.access import sdk_token, sigv4
from turnwise.access.keys import Keyring
from turnwise.access.sigv4 import Signature, SignedRequest
from turnwise.domain.access import Principal
from turnwise.ports import Clock
from turnwise.system import SYSTEM_CLOCK

_SERVICE = "sagemaker"

# An agent that makes a token per call gives each of them once; the newest ones are worth keeping.
_MAX_TOKENS = 4096


class Callers:
    """Verifies callers of the data plane."""

    def __init__(self, keyring: Keyring, region: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._keyring = keyring
        self._region = region
        self._clock = clock
        self._tokens: dict[str, tuple[str, float]] = {}  # verified: access key id, end of validity

    async def bearer(self, bearer: str) -> Principal:
        """The caller who presents an access key or a token. Raises `Unauthenticated`."""
        if not bearer.startswith(sdk_token.PREFIX):
            return await self._keyring.authenticate(bearer)
        try:
            return await self._token(bearer)
        except errors.Unauthenticated as error:
            # The first words are those of the real service, which agents' logs are searched for.
            raise type(error)(f"Authentication failed: {error}") from None

    async def signed(self, request: SignedRequest) -> Principal:
        """The caller who signed this request. Raises `Unauthenticated`."""
        signature = Signature.of(request)
        if signature is None:
            raise errors.BadSignature("the request is not signed")
        return await self._verify(request, signature, max_expires_s=sigv4.MAX_EXPIRES_S)

    async def _token(self, bearer: str) -> Principal:
        """The holder of the key that a token was made with. A token is verified once."""
        access_key_id, expires_at = self._tokens.get(bearer, ("", 0.0))
        if access_key_id:
            if self._clock.now() > expires_at:
                del self._tokens[bearer]
                raise errors.BadSignature("the token has expired; make a new one")
            return await self._keyring.holder(access_key_id)
        request = sdk_token.presigned(bearer)
        signature = Signature.of(request)
        if signature is None or signature.expires_s is None:
            raise errors.BadSignature("the token is not signed")
        who = await self._verify(request, signature, max_expires_s=sdk_token.MAX_EXPIRES_S)
        if len(self._tokens) >= _MAX_TOKENS:
            del self._tokens[next(iter(self._tokens))]
        expires_at = sigv4.expires_at(signature)
        self._tokens[bearer] = (signature.access_key_id, expires_at)
        return who

    async def _verify(
        self, request: SignedRequest, signature: Signature, *, max_expires_s: int
    ) -> Principal:
        if (signature.service, signature.region) != (_SERVICE, self._region):
            raise errors.BadSignature(
                f"it is signed for {signature.service} in {signature.region}; sign for {_SERVICE} "
                f"in {self._region} (AWS_REGION and AWS_DEFAULT_REGION)"
            )
        return await self._keyring.verify(request, signature, max_expires_s=max_expires_s)
