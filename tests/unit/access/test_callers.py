"""Who the data plane takes a caller for: keys, the sagemaker SDK's tokens, signatures."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.builders import ACCOUNT
from tests.unit.access.test_sigv4 import arrived
from turnwise import errors
from turnwise.access import keys, sigv4
from turnwise.access.callers import Callers
from turnwise.access.keys import Keyring
from turnwise.access.sigv4 import SignedRequest
from turnwise.access.vault import Vault
from turnwise.domain.access import Action, Key
from turnwise.storage.sql import SqlStore

REGION = "us-west-2"


@dataclass
class Now:
    """The real time, and what a test adds to it."""

    later_s: float = 0.0

    def now(self) -> float:
        return time.time() + self.later_s

    async def sleep(self, seconds: float) -> None:
        self.later_s += seconds


@dataclass
class Desk:
    store: SqlStore
    clock: Now = field(default_factory=Now)

    def __post_init__(self) -> None:
        self.ring = Keyring(self.store, Vault(bytes(32)), clock=self.clock)
        self.callers = Callers(self.ring, REGION, clock=self.clock)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    store = SqlStore.in_memory()
    yield Desk(store)
    await store.close()


def token(
    key: Key,
    secret: str,
    *,
    region: str = REGION,
    service: str = "sagemaker",
    expires: int = 43200,
    session: str | None = None,
    action: str = "CallWithBearerToken",
    host: str = "sagemaker.amazonaws.com",
    version: str = "&Version=1",
) -> str:
    """A token as the SDK makes it (contract §3.5)."""
    credentials = Credentials(key.access_key_id, secret, session)
    request = AWSRequest("POST", f"https://{host}/", {"host": host}, params={"Action": action})
    SigV4QueryAuth(credentials, service, region, expires=expires).add_auth(request)
    url = request.url.replace("https://", "") + version
    return "sagemaker-api-key-" + base64.b64encode(url.encode()).decode()


def changed(made: str, change: Callable[[str], str]) -> str:
    prefix = "sagemaker-api-key-"
    url = base64.b64decode(made.removeprefix(prefix)).decode()
    return prefix + base64.b64encode(change(url).encode()).decode()


async def test_a_key_a_token_and_a_signature_are_the_same_caller(desk: Desk):
    secret, key = await desk.ring.create(ACCOUNT, "agent", actions=[Action.SAMPLE])
    request = AWSRequest("POST", "http://here/sample", {}, b"{}")
    SigV4Auth(Credentials(key.access_key_id, secret), "sagemaker", REGION).add_auth(request)
    by_key = await desk.callers.bearer(secret)
    assert by_key == key.principal
    assert await desk.callers.bearer(token(key, secret)) == by_key
    assert await desk.callers.bearer(token(key, secret, session="a/session+token==")) == by_key
    assert await desk.callers.signed(arrived(request)) == by_key


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "region": ({"region": "us-east-1"}, "it is signed for sagemaker in us-east-1; sign for"),
    "service": ({"service": "sts"}, "it is signed for sts in us-west-2"),
    "life": ({"expires": 43201}, "X-Amz-Expires is over 43200 s"),
    "action": ({"action": "CreateJob"}, "the token is not one that generate_token"),
    "host": ({"host": "sagemaker.example.com"}, "the token is not one that generate_token"),
    "version": ({"version": "&Version=2"}, "the token is not one that generate_token"),
}


@pytest.mark.parametrize(("made_with", "reason"), WRONG.values(), ids=list(WRONG))
async def test_a_token_for_something_else_is_refused(
    desk: Desk, made_with: dict[str, Any], reason: str
):
    secret, key = await desk.ring.create(ACCOUNT, "agent")
    with pytest.raises(errors.BadSignature, match=r"^Authentication failed: ") as refused:
        await desk.callers.bearer(token(key, secret, **made_with))
    assert reason in str(refused.value)


CHANGES: dict[str, Callable[[str], str]] = {
    "expires": lambda url: url.replace("X-Amz-Expires=43200", "X-Amz-Expires=43100"),
    "date": lambda url: url.replace("X-Amz-Date=2", "X-Amz-Date=1"),
    "signed headers": lambda url: url.replace("SignedHeaders=host", "SignedHeaders="),
    "signature": lambda url: url.replace("X-Amz-Signature=", "X-Amz-Signature=0"),
    "no signature": lambda url: url[: url.index("&X-Amz-Signature")] + "&Version=1",
    "no algorithm": lambda url: url.replace("X-Amz-Algorithm", "X-Algorithm"),
    "one more parameter": lambda url: url.replace("&Version=1", "&A=1&Version=1"),
    "a second action": lambda url: url.replace("&Version=1", "&Action=X&Version=1"),
    "another key": lambda url: url.replace("TWAK", "TWAX"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
async def test_a_changed_token_is_refused_though_the_right_one_is_known(
    desk: Desk, change: Callable[[str], str]
):
    secret, key = await desk.ring.create(ACCOUNT, "agent")
    made = token(key, secret)
    await desk.callers.bearer(made)
    assert changed(made, change) != made
    with pytest.raises(errors.Unauthenticated):
        await desk.callers.bearer(changed(made, change))


@pytest.mark.parametrize("text", ["", "%%%", "aGk=", base64.b64encode(b"\xff\xfe").decode()])
async def test_what_is_no_token_is_refused(desk: Desk, text: str):
    with pytest.raises(errors.BadSignature, match="Authentication failed: the token is not"):
        await desk.callers.bearer("sagemaker-api-key-" + text)


async def test_a_token_is_verified_once_and_its_end_and_its_keys_are_still_heeded(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    verified = []
    check = sigv4.check_signature

    def counted(request: SignedRequest, *rest: Any) -> None:
        verified.append(parse_qs(request.query)["X-Amz-Expires"])
        check(request, *rest)

    monkeypatch.setattr(keys.sigv4, "check_signature", counted)
    secret, key = await desk.ring.create(ACCOUNT, "agent")
    short, long = token(key, secret, expires=60), token(key, secret)
    for _ in range(3):
        await desk.callers.bearer(short)
        await desk.callers.bearer(long)
    assert verified == [["60"], ["43200"]]
    desk.clock.later_s = 62
    for _ in range(2):  # remembered as valid, then not remembered
        with pytest.raises(errors.BadSignature, match="has expired"):
            await desk.callers.bearer(short)
    await desk.callers.bearer(long)
    await desk.ring.revoke(ACCOUNT, key.key_id)
    with pytest.raises(errors.UnknownKey, match="has been revoked"):
        await desk.callers.bearer(long)


async def test_a_revocation_by_another_server_ends_a_known_token_after_a_while(desk: Desk):
    secret, key = await desk.ring.create(ACCOUNT, "agent")
    made = token(key, secret)
    await desk.callers.bearer(made)
    await desk.store.revoke_key(ACCOUNT, key.key_id)
    await desk.callers.bearer(made)
    desk.clock.later_s = 30
    with pytest.raises(errors.UnknownKey):
        await desk.callers.bearer(made)


async def test_a_signature_for_another_region_or_service_is_refused(desk: Desk):
    secret, key = await desk.ring.create(ACCOUNT, "agent")
    for service, region in (("sagemaker", "us-east-1"), ("s3", REGION)):
        request = AWSRequest("POST", "http://here/sample", {}, b"{}")
        SigV4Auth(Credentials(key.access_key_id, secret), service, region).add_auth(request)
        with pytest.raises(errors.BadSignature, match="it is signed for"):
            await desk.callers.signed(arrived(request))
    with pytest.raises(errors.BadSignature, match="not signed"):
        await desk.callers.signed(SignedRequest(method="POST", path="/sample"))
