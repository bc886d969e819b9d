"""S3's operations with buckets, keys, queries, headers and bodies that are nearly right."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from tests.wire.fuzz.building import Answer, Sent, encoded
from tests.wire.fuzz.checks import Checked, fuzzing
from tests.wire.fuzz.values import NASTY_TEXTS

#: The operations that are not here are refused with this.
NOT_IMPLEMENTED = 501

ONE = b"<Object><Key>a/b.txt</Key></Object>"
PART = b"<Part><PartNumber>1</PartNumber><ETag>x</ETag></Part>"
BOMB = b"<!DOCTYPE a [<!ENTITY b 'c'><!ENTITY d '&b;&b;'>]><Delete>&d;</Delete>"
BODIES: Sequence[bytes] = (
    b"",
    b"content",
    b"\x00" * 2048,
    b"<Delete>" + ONE + b"</Delete>",
    b"<Delete><Quiet>true</Quiet>" + ONE * 2 + b"</Delete>",
    b"<Delete>" + ONE * 1001 + b"</Delete>",
    b"<Delete><Object><Key>" + b"k" * 1025 + b"</Key></Object></Delete>",
    b"<Delete><Object><Key/></Object></Delete>",
    b"<Delete><Object/></Delete>",
    b"<Delete><Object><Key>&#1;&#xd800;</Key></Object></Delete>",
    b"<Delete><Object><Key>\xff</Key></Object></Delete>",
    b"<CompleteMultipartUpload>" + PART + b"</CompleteMultipartUpload>",
    b"<CompleteMultipartUpload>" + PART.replace(b"1", b"9" * 5000) + b"</CompleteMultipartUpload>",
    b"<CompleteMultipartUpload>" + PART.replace(b"1", "٣".encode()) + b"</CompleteMultipartUpload>",
    b"<CompleteMultipartUpload/>",
    b"<CreateBucketConfiguration><LocationConstraint>us-west-2</LocationConstraint>"
    b"</CreateBucketConfiguration>",
    b"<CreateBucketConfiguration><LocationConstraint>x\r\n</LocationConstraint>"
    b"</CreateBucketConfiguration>",
    BOMB,
    b'<?xml version="1.0" encoding="UTF-16"?>'.decode().encode("utf-16-le"),
    BOMB.decode().encode("utf-16"),
    b'<?xml version="1.0" encoding="x-none"?><Delete/>',
    b'<?xml version="1.0" encoding="utf-7"?><Delete/>',
    b"<a>" * 20_000,
    b"<Delete>" + b"<a>" * 20_000 + b"</a>" * 20_000 + b"</Delete>",
    b"<Delete",
    b"3\r\nabc\r\n0\r\nx-amz-checksum-crc32:NSRBwg==\r\n\r\n",
    b"f" * 300 + b"\r\nabc\r\n",
    b"-1\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabc",
    b"0\r\nx-amz-checksum-none:\xff\r\n",
)
TEXTS = [text for text in NASTY_TEXTS if len(text) < 6000]
NUMBERS = ("0", "1", "1000", "-1", "1.5", "9" * 5000, "٣", "²", "", "x", "2147483648")

buckets = st.sampled_from(["stuff", "stuff", "stuff", "trails", "nowhere", "new-one"])
odd_buckets = st.sampled_from(TEXTS)
keys = st.sampled_from(["", "", "a/b.txt", "a/b.txt", "new", "a/", "..", "../x", "a//b", "é"])
odd_keys = st.sampled_from(TEXTS)
texts = st.sampled_from(["", "a", "a/b.txt", "/", *TEXTS])
numbers = st.sampled_from(NUMBERS)
QUERY: dict[str, st.SearchStrategy[str]] = {
    "uploadId": texts,
    "uploads": st.just(""),
    "delete": st.just(""),
    "location": st.just(""),
    "list-type": st.sampled_from(["2", "1", "x"]),
    "prefix": texts,
    "delimiter": texts,
    "marker": texts,
    "start-after": texts,
    "continuation-token": texts,
    "encoding-type": st.sampled_from(["url", "x"]),
    "max-keys": numbers,
    "max-parts": numbers,
    "max-uploads": numbers,
    "part-number-marker": numbers,
    "partNumber": numbers,
    "key-marker": texts,
    "upload-id-marker": texts,
    "versionId": st.sampled_from(["null", "x"]),
    "acl": st.just(""),
    "response-content-type": texts,
    "response-expires": texts,
    "fetch-owner": st.sampled_from(["true", "x"]),
}
_RARE = ["acl", "versionId", "delete", "uploads", "uploadId", "location"]
HEADERS: dict[str, st.SearchStrategy[str]] = {
    "range": st.sampled_from(
        [
            "bytes=0-1",
            "bytes=-1",
            "bytes=9-",
            "bytes=" + "9" * 5000 + "-",
            "bytes=-" + "9" * 5000,
            "bytes=1-" + "9" * 5000,
            "bytes=²-",
            "bytes=2-1",
            "bytes=0-0,2-3",
            "x",
        ]
    ),
    "if-match": texts,
    "if-none-match": st.sampled_from(["*", '"x"', ",", ""]),
    "if-modified-since": st.sampled_from(
        [
            "Mon, 01 Jan 0001 00:00:00 -0000",
            "Mon, 01 Jan 9999 00:00:00 +9999",
            "x",
            "1",
            "Thu, 01 Jan 1970 00:00:00 GMT",
            "Thu, 01 Jan 99999 00:00:00 GMT",
            "9" * 5000,
            "Mon, 01 Jan 0001 00:00:00 +2359",
            "Fri, 31 Dec 9999 23:59:59 -2359",
            "1 1 1 1:1:1 +" + "9" * 30,
        ]
    ),
    "if-unmodified-since": st.sampled_from(["Mon, 01 Jan 0001 00:00:00 -0000", "x", "\xff"]),
    "x-amz-copy-source": st.sampled_from(
        [
            "stuff/a/b.txt",
            "/stuff/a/b.txt",
            "stuff%2Fa%2Fb.txt",
            "nowhere/x",
            "%ff/%ff",
            "a",
            "/",
            "stuff/a/b.txt?versionId=x",
            "stuff/..",
            "ÿ/ÿ",
            "stuff/" + "a" * 2000,
        ]
    ),
    "x-amz-copy-source-range": st.sampled_from(
        ["bytes=0-1", "bytes=99-", "bytes=" + "9" * 5000 + "-"]
    ),
    "x-amz-copy-source-if-match": texts,
    "x-amz-metadata-directive": st.sampled_from(["REPLACE", "COPY", "x"]),
    "x-amz-meta-a": texts,
    "x-amz-meta-": texts,
    "x-amz-meta-" + "a" * 9000: st.just("x"),
    "x-amz-checksum-crc32": st.sampled_from(["AAAAAA==", "x", "\xff", ""]),
    "x-amz-checksum-none": st.just("AAAA"),
    "x-amz-checksum-mode": st.just("ENABLED"),
    "content-md5": st.sampled_from(["x", "\xff", "1B2M2Y8AsgTpgAmY7PhCfg=="]),
    "content-type": texts,
    "content-encoding": st.sampled_from(["gzip", "aws-chunked", "aws-chunked,gzip", "\xff"]),
    "cache-control": texts,
    "expires": texts,
    "x-amz-content-sha256": st.sampled_from(
        [
            "UNSIGNED-PAYLOAD",
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            "0" * 64,
            "x",
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        ]
    ),
    "x-amz-decoded-content-length": numbers,
    "x-amz-expected-bucket-owner": st.sampled_from(["000000000001", "000000000002", "x"]),
}


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    method = draw(st.sampled_from(["GET", "GET", "PUT", "POST", "DELETE", "HEAD", "PATCH"]))
    is_odd = draw(st.integers(0, 9))
    bucket = draw(odd_buckets if is_odd == 0 else buckets)
    key = draw(odd_keys if is_odd < 3 else keys)
    raw = st.sampled_from(["", "", "", "", "%ff", "%", "%00", "//", "/../../x", "%2e%2e/x", ";a"])
    path = "/" + quote(bucket, errors="surrogatepass") + "/" + quote(key, errors="surrogatepass")
    marks = [
        name
        for name in ("uploads", "delete", "uploadId", "partNumber")
        if draw(st.integers(0, 3)) == 0
    ]
    names = draw(
        st.lists(st.sampled_from(sorted(set(QUERY) - set(_RARE))), max_size=3, unique=True)
    )
    names += [draw(st.sampled_from(_RARE))] if draw(st.integers(0, 19)) == 13 else []
    query = {name: draw(QUERY[name]) for name in {*names, *marks[:1]}}
    chosen = draw(st.lists(st.sampled_from(sorted(HEADERS)), max_size=3, unique=True))
    headers = {name: _header(draw(HEADERS[name])) for name in chosen}
    target = path + draw(raw) + (f"?{encoded(query)}" if query else "")
    return Sent(method=method, target=target, headers=headers, body=draw(st.sampled_from(BODIES)))


def _header(text: str) -> str:
    """What a server lets through as a header's value."""
    kept = text.encode("utf-8", "surrogatepass").decode("latin-1")
    return "".join(c for c in kept if c >= " " and c != "\x7f").strip()


def is_error(answer: Answer) -> str:
    if not answer.body:
        return ""  # HEAD has none, and 304
    error = ElementTree.fromstring(_without_references(answer.body))
    return "" if error.tag == "Error" and error.findtext("Code") else "is no error of S3's"


def _without_references(body: bytes) -> bytes:
    """S3 writes references to control characters, which XML 1.0 does not know."""
    import re

    return re.sub(rb"&#x[0-9a-f]+;", b"?", body)


@fuzzing(140)
@given(sent=requests())
def test_s3_refuses_what_it_cannot_take(checked: Checked, sent: Sent):
    answer = checked.ask(
        checked.building.signed("s3", sent), wrong=is_error, allowed=(NOT_IMPLEMENTED,)
    )
    if answer.body and answer.headers["content-type"] == "application/xml" and "?" in sent.target:
        ElementTree.fromstring(_without_references(answer.body))


@fuzzing(10)
@given(data=st.data())
def test_an_upload_in_parts_refuses_what_it_cannot_take(checked: Checked, data: st.DataObject):
    building = checked.building
    begun = checked.ask(building.signed("s3", Sent(method="POST", target="/stuff/parts?uploads")))
    upload = ElementTree.fromstring(begun.body).findtext("{*}UploadId")
    for _ in range(data.draw(st.integers(1, 4))):
        number = data.draw(st.sampled_from(["1", "2", *NUMBERS]))
        method = data.draw(st.sampled_from(["PUT", "POST", "GET", "DELETE"]))
        query = encoded({"uploadId": upload, "partNumber": number, "max-parts": data.draw(numbers)})
        sent = Sent(
            method=method,
            target=f"/stuff/parts?{query}",
            body=data.draw(st.sampled_from(BODIES)),
            headers={
                n: _header(data.draw(HEADERS[n]))
                for n in data.draw(st.sets(st.sampled_from(sorted(HEADERS)), max_size=2))
            },
        )
        checked.ask(building.signed("s3", sent), wrong=is_error, allowed=(NOT_IMPLEMENTED,))
    checked.ask(
        building.signed("s3", Sent(method="DELETE", target=f"/stuff/parts?uploadId={upload}"))
    )
