"""What botocore signs is verified; whatever is changed on the way is refused."""

from __future__ import annotations

import calendar
import dataclasses
import hashlib
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from turnwise import errors
from turnwise.access import sigv4
from turnwise.access.sigv2 import PresignedUrl
from turnwise.access.sigv4 import ALGORITHM, Signature, SignedRequest

ID, SECRET, REGION = "TWAKABCDEFGHIJKLMNOP", "tw_" + "s" * 40, "us-west-2"
KEY = Credentials(ID, SECRET)

NAMES = st.text(st.sampled_from("abcdefgXYZ-_.~ +%é&=:/"), min_size=1, max_size=8)
PATHS = st.lists(NAMES.filter(lambda n: n not in (".", "..")), max_size=3)
QUERIES = st.dictionaries(NAMES, NAMES, max_size=3)
BODIES = st.binary(max_size=40)


def _url(path: list[str], query: dict[str, str]) -> str:
    asked = f"?{urlencode(query, quote_via=quote)}" if query else ""
    return "http://here:8420/" + "/".join(quote(part, safe="") for part in path) + asked


def arrived(request: AWSRequest) -> SignedRequest:
    """The request as a server sees it once botocore has signed and sent it."""
    sent = request.prepare()
    _, _, rest = sent.url.partition("//")
    host, _, target = rest.partition("/")
    path, _, query = target.partition("?")
    headers = {k.lower(): v if isinstance(v, str) else v.decode() for k, v in sent.headers.items()}
    body = sent.body or b""
    body = body if isinstance(body, bytes) else body.encode()
    return SignedRequest(
        method=sent.method,
        path="/" + path,
        query=query,
        headers={"host": host} | headers,
        body_sha256=hashlib.sha256(body).hexdigest(),
    )


def signed(
    method: str = "POST",
    url: str = "http://here:8420/",
    headers: dict[str, str] | None = None,
    body: bytes = b"{}",
    *,
    signer: Callable[..., Any] = SigV4Auth,
    service: str = "sagemaker",
    **options: Any,
) -> SignedRequest:
    request = AWSRequest(method, url, headers or {}, body)
    signer(KEY, service, REGION, **options).add_auth(request)
    return arrived(request)


def signature_of(request: SignedRequest) -> Signature:
    found = Signature.of(request)
    assert found is not None
    return found


def check(request: SignedRequest, *, secret: str = SECRET, now: float | None = None) -> None:
    signature = signature_of(request)
    sigv4.check_time(signature, time.time() if now is None else now)
    sigv4.check_signature(request, signature, secret)


@settings(max_examples=50)
@given(st.sampled_from(["GET", "POST", "PUT", "DELETE"]), PATHS, QUERIES, BODIES, st.booleans())
def test_what_botocore_signs_is_verified(
    method: str, path: list[str], query: dict[str, str], body: bytes, is_url: bool
):
    signer = SigV4QueryAuth if is_url else SigV4Auth
    body = b"" if is_url else body  # botocore would make query parameters of it
    check(signed(method, _url(path, query), {"X-Amz-Target": "A.B"}, body, signer=signer))


@settings(max_examples=50)
@given(st.sampled_from(["GET", "PUT"]), PATHS, QUERIES, BODIES, st.booleans())
def test_what_botocore_signs_for_s3_is_verified(
    method: str, path: list[str], query: dict[str, str], body: bytes, is_url: bool
):
    signer = S3SigV4QueryAuth if is_url else S3SigV4Auth
    body = b"" if is_url else body
    check(signed(method, _url(path, query), {}, body, signer=signer, service="s3"))


def _with_header(request: SignedRequest, name: str, value: str) -> SignedRequest:
    return dataclasses.replace(request, headers=dict(request.headers) | {name: value})


def _other_scope(request: SignedRequest, old: str, new: str) -> SignedRequest:
    return _with_header(
        request, "authorization", request.headers["authorization"].replace(old, new)
    )


CHANGES: dict[str, Callable[[SignedRequest], SignedRequest]] = {
    "method": lambda r: dataclasses.replace(r, method="PUT"),
    "path": lambda r: dataclasses.replace(r, path=r.path + "x"),
    "query": lambda r: dataclasses.replace(r, query=r.query + "&more=1"),
    "a query's values": lambda r: dataclasses.replace(r, query="a=2&a=2"),
    "the body": lambda r: dataclasses.replace(r, body_sha256=hashlib.sha256(b"other").hexdigest()),
    "a signed header": lambda r: _with_header(r, "x-amz-target", "SageMaker.DeleteJob"),
    "the host": lambda r: _with_header(r, "host", "there"),
    "a new x-amz header": lambda r: _with_header(r, "x-amz-copy-source", "/other"),
    "the hash of the body in a header": lambda r: _with_header(
        r, "x-amz-content-sha256", r.body_sha256
    ),
    "an unsigned body in a header": lambda r: _with_header(
        r, "x-amz-content-sha256", sigv4.UNSIGNED
    ),
    "the region": lambda r: _other_scope(r, REGION, "us-east-1"),
    "the service": lambda r: _other_scope(r, "/sagemaker/", "/sts/"),
    "the date of the scope": lambda r: _other_scope(r, signature_of(r).date, "20200101"),
    "the time": lambda r: _with_header(r, "x-amz-date", _stamp(time.time() + 60)),
    "the list of signed headers": lambda r: _other_scope(r, "host;", ""),
    "the signature": lambda r: _other_scope(r, signature_of(r).digest, "0" * 64),
    "the signature, left out": lambda r: _other_scope(r, "Signature=", "Nothing="),
    "the credential, cut": lambda r: _other_scope(r, "/aws4_request", ""),
}


def _stamp(at: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_changed_request_is_refused(change: Callable[[SignedRequest], SignedRequest]):
    request = signed(
        url="http://here:8420/path?a=1&a=2", headers={"X-Amz-Target": "SageMaker.ListJobs"}
    )
    check(request)
    with pytest.raises(errors.BadSignature):
        check(change(request))


@settings(max_examples=50)
@given(st.data(), PATHS, QUERIES, BODIES)
def test_any_other_method_path_query_or_body_is_refused(
    data: st.DataObject, path: list[str], query: dict[str, str], body: bytes
):
    """Another request that botocore would sign, under the first one's signature."""
    first = signed("POST", _url(path, query), {}, body)
    others = (data.draw(PATHS), data.draw(QUERIES), data.draw(BODIES))
    other = signed(data.draw(st.sampled_from(["POST", "GET"])), _url(*others[:2]), {}, others[2])
    taken = dataclasses.replace(other, headers=first.headers)
    parts = ("method", "path", "query", "body_sha256")
    assume(any(getattr(taken, part) != getattr(first, part) for part in parts))
    # Only the order of the query's pairs may differ without a difference in meaning.
    assume(sorted(taken.query.split("&")) != sorted(first.query.split("&")) or not query)
    with pytest.raises(errors.BadSignature):
        check(taken)


URL_CHANGES: dict[str, Callable[[SignedRequest], SignedRequest]] = {
    "a longer life": lambda r: dataclasses.replace(
        r, query=r.query.replace("X-Amz-Expires=60", "X-Amz-Expires=600")
    ),
    "a body": lambda r: dataclasses.replace(r, body_sha256=hashlib.sha256(b"body").hexdigest()),
    "a body behind the hash of the signed one": lambda r: dataclasses.replace(
        _with_header(r, "x-amz-content-sha256", r.body_sha256),
        body_sha256=hashlib.sha256(b"body").hexdigest(),
    ),
    "an operation in a header": lambda r: _with_header(r, "x-amz-target", "SageMaker.CreateJob"),
    "no number of seconds": lambda r: dataclasses.replace(
        r, query=r.query.replace("X-Amz-Expires=60", "X-Amz-Expires=x")
    ),
}


@pytest.mark.parametrize("change", URL_CHANGES.values(), ids=list(URL_CHANGES))
def test_a_changed_presigned_url_is_refused(change: Callable[[SignedRequest], SignedRequest]):
    request = signed(body=b"", signer=SigV4QueryAuth, expires=60)
    check(request)
    with pytest.raises(errors.BadSignature):
        check(change(request))


def test_an_s3_request_may_say_that_its_body_is_unsigned_but_not_lie_about_it():
    request = signed("PUT", body=b"", signer=S3SigV4QueryAuth, service="s3", expires=60)
    check(dataclasses.replace(request, body_sha256=hashlib.sha256(b"any").hexdigest()))
    whole = signed("PUT", "https://here/", body=b"data", signer=S3SigV4Auth, service="s3")
    check(whole)
    with pytest.raises(errors.BadSignature, match="the body is not the one that was signed"):
        check(dataclasses.replace(whole, body_sha256=hashlib.sha256(b"any").hexdigest()))


@pytest.mark.parametrize(
    ("late_s", "reason"),
    [(-901, "not yet valid"), (-899, ""), (0, ""), (899, ""), (902, "has expired")],
)
def test_a_clock_may_be_off_by_a_quarter_of_an_hour(late_s: int, reason: str):
    request = signed()
    now = _signed_at(request) + late_s
    if not reason:
        check(request, now=now)
        return
    with pytest.raises(errors.BadSignature, match=reason):
        check(request, now=now)


def _signed_at(request: SignedRequest) -> float:
    stamp = signature_of(request).signed_at
    return float(calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ")))


def test_a_presigned_url_is_valid_until_it_expires_and_never_for_longer_than_allowed():
    request = signed(body=b"", signer=SigV4QueryAuth, expires=60)
    at = _signed_at(request)
    check(request, now=at + 60)
    with pytest.raises(errors.BadSignature, match="has expired"):
        check(request, now=at + 61)
    with pytest.raises(errors.BadSignature, match="X-Amz-Expires is over 30 s"):
        sigv4.check_time(signature_of(request), at, max_expires_s=30)


def test_another_secret_is_refused_and_an_unsigned_request_has_no_signature():
    with pytest.raises(errors.BadSignature, match="check the secret access key"):
        check(signed(), secret="tw_" + "x" * 40)
    assert Signature.of(SignedRequest(method="GET", path="/")) is None


@pytest.mark.parametrize("expires", ["9" * 5000, "-1", "1e3", "\u0669"])
def test_an_expiry_that_is_no_number_is_refused_before_anything_is_looked_up(expires: str):
    new = f"X-Amz-Algorithm={ALGORITHM}&X-Amz-Credential=K/20240101/r/s/aws4_request"
    new += f"&X-Amz-Signature=f&X-Amz-SignedHeaders=host&X-Amz-Expires={expires}"
    old = f"AWSAccessKeyId=K&Signature=f&Expires={expires}"
    with pytest.raises(errors.BadSignature):
        Signature.of(SignedRequest(method="GET", path="/", query=new))
    with pytest.raises(errors.BadSignature):
        PresignedUrl.of(SignedRequest(method="GET", path="/", query=old), "r")
