"""What was once answered with 500, or with nothing at all: each by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.wire.fuzz.building import Answer, Sent
from tests.wire.fuzz.checks import Checked
from turnwise import errors
from turnwise.control.job_file import parse_job
from turnwise.storage.sql import SqlStore
from turnwise.wire.aws.s3 import conditions, xml
from turnwise.wire.aws.service import AwsError

LONG = "9" * 5000  # Python refuses to read a number of as many digits
HALF = "\ud800"  # half a character, which JSON can spell and nothing can store
BOMB = (
    "<?xml version='1.0' encoding='{}'?><!DOCTYPE a [<!ENTITY a 'aaaaaaaaaa'>"
    "<!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]><Delete>&b;</Delete>"
)


def operation(checked: Checked, service: str, name: str, **given: Any) -> Answer:
    body = json.dumps(given).encode()
    return checked.refused(checked.building.json_call(service, name, body))


def native(checked: Checked, method: str, path: str, body: object = None) -> Answer:
    headers = checked.building.bearer | {"content-type": "application/json"}
    sent = b"" if body is None else json.dumps(body).encode()
    target = f"/api/v1{path}"
    return checked.refused(Sent(method=method, target=target, headers=headers, body=sent))


@pytest.mark.parametrize("time", [10**400, 1e18, -1e18])
def test_a_filter_by_a_time_without_a_date_is_refused(checked: Checked, time: float):
    refused = operation(checked, "sagemaker", "ListHubs", LastModifiedTimeAfter=time)
    assert "LastModifiedTimeAfter" in refused.text


def test_a_forged_page_of_infinity_is_refused(checked: Checked):
    forged = "eyJuZXh0IjogSW5maW5pdHksICJsYXN0IjogMSwgInF1ZXJ5IjogMX0="
    refused = operation(checked, "sagemaker", "ListJobs", JobCategory="AgentRFT", NextToken=forged)
    assert "is no token of this operation" in refused.text


def test_a_document_with_half_a_character_in_a_name_is_refused_in_whole_ones(checked: Checked):
    refused = operation(
        checked,
        "sagemaker",
        "CreatePipeline",
        PipelineName="half",
        PipelineDefinition=json.dumps({HALF: 1}),
        ClientRequestToken="t" * 32,
        RoleArn="arn:aws:iam::000000000001:role/trainer",
    )
    assert "holds half a character" in refused.text


@pytest.mark.parametrize(
    "target",
    [
        "/stuff?max-keys=" + LONG,
        "/stuff?uploads&max-uploads=" + LONG,
        "/stuff?list-type=2&max-keys=" + LONG,
    ],
)
def test_a_number_of_thousands_of_digits_is_no_number_for_s3(checked: Checked, target: str):
    sent = checked.building.signed("s3", Sent(method="GET", target=target))
    assert b"<Code>InvalidArgument</Code>" in checked.refused(sent).body


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a/b/us-west-2/s3/aws4_request"
        "&X-Amz-Date=20240101T000000Z&X-Amz-Signature=x&X-Amz-Expires=" + LONG,
        "AWSAccessKeyId=a&Signature=x&Expires=" + LONG,
    ],
)
def test_a_url_that_holds_for_thousands_of_digits_is_refused(checked: Checked, query: str):
    refused = checked.refused(Sent(method="GET", target="/stuff/a?" + query))
    assert (refused.status, b"SignatureDoesNotMatch" in refused.body) == (403, True)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_entities_are_refused_before_they_are_expanded_in_every_encoding(encoding: str):
    with pytest.raises(AwsError, match=r"has a document type|is not UTF-8"):
        xml.Element.parse(BOMB.format(encoding).encode(encoding), "Delete")


@pytest.mark.parametrize("text", [f"bytes={LONG}-", f"bytes=0-{LONG}", f"bytes=-{LONG}"])
def test_a_range_of_thousands_of_digits_is_as_none(text: str):
    assert conditions.byte_range(text, 10) is None


@pytest.mark.parametrize(
    ("service", "target"),
    [
        ("lambda", "/2015-03-31/functions?Marker=" + LONG),
        ("lambda", "/2015-03-31/functions?Marker=%C2%B2"),
    ],
)
def test_a_marker_of_functions_that_is_not_ours_is_refused(
    checked: Checked, service: str, target: str
):
    sent = checked.building.signed(service, Sent(method="GET", target=target))
    assert "is no token of this operation" in checked.refused(sent).text


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/audit/records?before=" + "9" * 30, None),
        ("GET", "/jobs/walk/rollouts?step=" + "9" * 30, None),
        ("GET", "/jobs/walk/events?after=" + "9" * 30, None),
        ("GET", "/agents/tool/logs?after=" + "9" * 30, None),
        ("GET", "/models/walk/" + "9" * 30, None),
        ("GET", "/models/walk/" + LONG, None),
        ("POST", "/keys", {"name": HALF}),
        ("POST", "/keys", {"name": "x", "jobs": [HALF]}),
        ("POST", "/agents", {"name": "x", "url": f"http://{HALF}"}),
        ("POST", "/agents", {"name": "x", "url": "http://[::1"}),
        ("POST", "/audit/trails", {"name": "odd", "bucket": "trails", "prefix": HALF}),
        ("PUT", "/audit/trails/trail-a/selectors", {"classic": [{HALF: 1}]}),
        ("PUT", "/audit/trails/trail-a/selectors", {"classic": [{"DataResources": "x"}]}),
        ("PUT", "/audit/trails/trail-a/selectors", {"classic": [{"ReadWriteType": 5}]}),
        ("PUT", "/audit/trails/trail-a/selectors", {"advanced": [{}]}),
        ("PUT", "/audit/trails/trail-a/selectors", {"advanced": [{"FieldSelectors": [{}]}]}),
    ],
)
def test_the_native_api_refuses_what_the_database_cannot_hold(
    checked: Checked, method: str, path: str, body: object
):
    assert native(checked, method, path, body).status in (400, 404)


@pytest.mark.parametrize("url", ["http://[::1", "http://a:99999", "http://"])
def test_an_agents_address_that_is_none_is_refused_with_the_job(url: str):
    job = {"name": "a", "model": "/m", "dataset": "/d", "agent": {"url": url}}
    with pytest.raises(errors.InvalidInput, match="is no HTTP address"):
        parse_job(job)


def test_a_job_of_more_steps_than_can_be_counted_is_refused():
    job = {"name": "a", "model": "/m", "dataset": "/d", "agent": {"kind": "scripted"}}
    with pytest.raises(errors.InvalidInput, match="must be at most 9007199254740992"):
        parse_job(job | {"schedule": {"max_steps": 10**30}})


async def test_the_store_says_what_it_cannot_hold():
    store = SqlStore.in_memory()
    with pytest.raises(errors.InvalidInput, match="half a character"):
        await store.account(HALF)
    await store.close()


@pytest.mark.parametrize("origin", ["http://[::1", "null", "http://elsewhere"])
def test_a_page_of_an_address_that_is_none_may_not_post_to_mlflow(checked: Checked, origin: str):
    headers = {"origin": origin, "cookie": "turnwise_mlflow=abc"}
    target = "/mlflow/api/2.0/mlflow/runs/create"
    refused = checked.refused(Sent(method="POST", target=target, headers=headers, body=b"{}"))
    assert refused.status == 403


@pytest.mark.parametrize(
    "target",
    [
        "/mlflow%2Fapi/2.0/mlflow/runs/search",
        "/%6dlflow/api/2.0/mlflow/runs/search",
        "/mlflow%2F@elsewhere/api/2.0/mlflow/runs/search",
    ],
)
def test_mlflow_is_not_asked_by_an_address_whose_beginning_is_encoded(
    checked: Checked, target: str
):
    sent = Sent(method="GET", target=target, headers=checked.building.bearer)
    assert checked.refused(sent).status == 404
