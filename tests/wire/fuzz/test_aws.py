"""Every operation of the AWS door, asked with parameters that are nearly right."""

from __future__ import annotations

import functools
import json
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from botocore.model import OperationModel, Shape, StructureShape
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.fuzz.building import Answer, Building, Sent, encoded
from tests.wire.fuzz.checks import Checked, fuzzing
from tests.wire.fuzz.values import NASTY_TEXTS, as_json, json_bodies, spoilt
from turnwise.wire.aws.service import load_model

JSON_SERVICES = ("sagemaker", "cloudtrail", "logs")
QUERY_SERVICES = ("sts", "iam")
REST_SERVICES = ("lambda", "bedrock-agentcore-control", "bedrock-agentcore")


@functools.cache
def operations(*services: str) -> list[OperationModel]:
    """All that are served."""
    return [
        load_model(service).operation_model(name)
        for service in services
        for name in sorted(Building.served(service))
    ]


def is_json_error(answer: Answer) -> str:
    """What is wrong with a refusal; "" for nothing."""
    body = json.loads(answer.body)
    named = body["__type"] == answer.headers["x-amzn-errortype"]
    return "" if named and isinstance(body["message"], str) else "not in the shape of an error"


def is_xml_error(answer: Answer) -> str:
    error = ElementTree.fromstring(answer.body)
    code = next((each.text for each in error.iter() if each.tag.endswith("Code")), "")
    return "" if code else "has no Code"


@fuzzing(220)
@given(data=st.data())
def test_json_operations_refuse_what_they_cannot_take(checked: Checked, data: st.DataObject):
    operation = data.draw(st.sampled_from(operations(*JSON_SERVICES)), label="operation")
    building, service = checked.building, operation.service_model.service_name
    values = checked.valid(operation)
    body = data.draw(json_bodies(values), label="body")
    sent = building.json_call(service, operation.name, body)
    checked.ask(sent, operation, is_json_error)


@fuzzing(30)
@given(data=st.data())
def test_query_operations_refuse_what_they_cannot_take(checked: Checked, data: st.DataObject):
    operation = data.draw(st.sampled_from(operations(*QUERY_SERVICES)), label="operation")
    building, service = checked.building, operation.service_model.service_name
    value = data.draw(spoilt(checked.valid(operation)), label="parameters")
    pairs = {"Action": operation.name, "Version": operation.service_model.api_version}
    pairs |= flattened(value)
    body = encoded(pairs).encode()
    if data.draw(st.integers(0, 9)) == 7:
        body = data.draw(
            st.sampled_from([b"", b"\xff=\xfe", b"&&=&", body + b"&Action=X", b"a=" * 99])
        )
    headers = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
    sent = Sent(method="POST", target="/", headers=headers, body=body)
    checked.ask(building.signed_in(service, sent), operation, is_xml_error)


def flattened(value: Any, prefix: str = "") -> dict[str, str]:
    """`Name.member.1` pairs of a value."""
    if isinstance(value, dict):
        at = prefix + "." if prefix else ""
        return {k: v for n, item in value.items() for k, v in flattened(item, f"{at}{n}").items()}
    if isinstance(value, list):
        return {
            k: v
            for n, item in enumerate(value)
            for k, v in flattened(item, f"{prefix}.member.{n + 1}").items()
        }
    return {prefix: json.dumps(value) if isinstance(value, bool) else str(value)[:6000]}


@fuzzing(60)
@given(data=st.data())
def test_rest_operations_refuse_what_they_cannot_take(checked: Checked, data: st.DataObject):
    operation = data.draw(st.sampled_from(operations(*REST_SERVICES)), label="operation")
    building = checked.building
    value = data.draw(spoilt(checked.valid(operation)), label="parameters")
    sent = rest_request(operation, value if isinstance(value, dict) else {})
    if data.draw(st.integers(0, 9)) == 7:
        broken = data.draw(st.sampled_from([b"{", b"\xff", b"[" * 5000, b"null", b"[]", b"\x00"]))
        sent = Sent(method=sent.method, target=sent.target, headers=sent.headers, body=broken)
    checked.ask(
        building.signed_in(operation.service_model.service_name, sent), operation, is_json_error
    )


def rest_request(operation: OperationModel, value: dict[str, Any]) -> Sent:
    """Parameters where the model puts them, whatever they are."""
    shape = operation.input_shape
    members: dict[str, Shape] = shape.members if isinstance(shape, StructureShape) else {}
    path = operation.http["requestUri"]
    query: dict[str, Any] = {}
    headers = {"content-type": "application/json"}
    rest: dict[str, Any] = {}
    body: bytes | None = None
    payload = shape.serialization.get("payload") if shape is not None else None
    for name, member in members.items():
        item = value.get(name)
        wire = member.serialization.get("name", name)
        text = item.decode("latin-1") if isinstance(item, bytes) else str(item)[:6000]
        match member.serialization.get("location"):
            case "uri":
                shown = quote(text, safe="", errors="surrogatepass") if name in value else "x"
                path = path.replace("{" + wire + "}", shown).replace("{" + wire + "+}", shown)
            case "querystring" if name in value:
                query[wire] = text
            case "header" if name in value:
                kept = "".join(c for c in text if " " <= c <= "~" or "\xa1" <= c <= "\xff")
                headers[wire] = kept.strip()
            case None if name == payload and name in value:
                body = item if isinstance(item, bytes) else text.encode(errors="surrogatepass")
            case None if name in value:
                rest[wire] = item
    if body is None:
        body = as_json(rest) if rest else b""
    target = path.split("?")[0] + (f"?{encoded(query)}" if query else "")
    return Sent(method=operation.http["method"], target=target, headers=headers, body=body)


TARGETS = st.sampled_from(
    [
        "/",
        "//",
        "/%",
        "/%ff",
        "/..%2f..",
        "/a" * 2000,
        "/?" + "a=b&" * 2000,
        "/?X-Amz-Algorithm=AWS4-HMAC-SHA256",
        "/?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a/b/us-west-2/s3/aws4_request"
        "&X-Amz-Date=99999999T999999Z&X-Amz-Expires=" + "9" * 5000 + "&X-Amz-Signature=x",
        "/?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a/b/us-west-2/s3/aws4_request"
        "&X-Amz-Date=00010101T000000Z&X-Amz-Expires=1&X-Amz-Signature=x&X-Amz-SignedHeaders=host",
        "/stuff/x?AWSAccessKeyId={key}&Signature=%ff&Expires=" + "9" * 5000,
        "/stuff/x?AWSAccessKeyId={key}&Signature=%ff&Expires=99999999999999999999",
        "/stuff/x?AWSAccessKeyId={key}&Signature=a&Expires=1",
    ]
)


@fuzzing(61)
@given(data=st.data())
def test_signatures_that_are_not_right_are_refused(checked: Checked, data: st.DataObject):
    building = checked.building
    target = data.draw(TARGETS, label="target").replace("{key}", building.access_key_id)
    scope = data.draw(
        st.sampled_from(
            [
                "20240101/us-west-2/sagemaker/aws4_request",
                "20240101/us-west-2/s3/aws4_request",
                "20240101/us-west-2/iam/aws4_request",
                "20240101/us-east-1/sts/aws4_request",
                "20240101/xx/unknown/aws4_request",
                "x",
                "////",
            ]
        ),
        label="scope",
    )
    text = st.sampled_from([t for t in NASTY_TEXTS if "\n" not in t and len(t) < 6000])
    authorization = data.draw(
        st.sampled_from(
            [
                "",
                "AWS4-HMAC-SHA256",
                "AWS4-HMAC-SHA256 Credential="
                + building.access_key_id
                + "/"
                + scope
                + ", SignedHeaders=host, Signature="
                + "0" * 64,
                "AWS4-HMAC-SHA256 Credential=a/" + scope + ",SignedHeaders=;;,Signature=\xff",
                "AWS4-HMAC-SHA256 Credential="
                + building.access_key_id
                + "/"
                + scope
                + ", SignedHeaders="
                + "host;" * 500
                + ", Signature=x",
                "Bearer ",
                "Bearer sagemaker-api-key-\xff",
            ]
        ),
        label="authorization",
    )
    headers = {
        "authorization": authorization,
        "x-amz-date": data.draw(
            st.sampled_from(["", "20240101T000000Z", "20240101T250000Z"]) | text
        ),
        "x-amz-target": data.draw(st.sampled_from(["", "SageMaker.ListJobs", "SageMaker."]) | text),
        "content-type": data.draw(
            st.sampled_from(["", "application/x-amz-json-1.1", "application/x-www-form-urlencoded"])
            | text
        ),
    }
    headers = {k: v for k, v in headers.items() if v}
    method = data.draw(
        st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "QUERY"])
    )
    checked.refused(Sent(method=method, target=target, headers=headers, body=b"{}"))
