"""The three request formats, over requests that botocore's own serializers make."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from botocore.awsrequest import AWSRequest, HeadersDict
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from hypothesis import given
from hypothesis import strategies as st

from turnwise import errors
from turnwise.wire.aws.protocols import Reply, Request, wire_format
from turnwise.wire.aws.service import AwsError, load_model


def sent(service: str, operation: str, **given: Any) -> Request:
    """The request that botocore sends for a call."""
    model = load_model(service)
    serializer = create_serializer(model.metadata["protocol"], include_validation=False)
    made = serializer.serialize_to_request(given, model.operation_model(operation))
    url = "http://here" + made["url_path"]
    prepared = AWSRequest(
        made["method"], url, made["headers"], made["body"], params=made["query_string"]
    ).prepare()
    parts = urlsplit(prepared.url)
    body = prepared.body or b""
    return Request(
        method=prepared.method,
        path=parts.path,
        query=parts.query,
        headers={
            name.lower(): value if isinstance(value, str) else value.decode()
            for name, value in prepared.headers.items()
        },
        body=body if isinstance(body, bytes) else body.encode(),
    )


def read(service: str, request: Request) -> tuple[str, dict[str, Any]]:
    """The operation and its parameters, as the door reads them."""
    model = load_model(service)
    format_ = wire_format(model)
    operation = format_.operation(model, request)
    return operation.name, dict(format_.read(operation, request))


def received(service: str, operation: str, result: dict[str, Any]) -> dict[str, Any]:
    """What botocore makes of an answer."""
    model = load_model(service)
    shape = model.operation_model(operation)
    reply = wire_format(model).write(shape, result, "request-1")
    return parsed(service, operation, reply)


def parsed(service: str, operation: str, reply: Reply) -> dict[str, Any]:
    model = load_model(service)
    parser = create_parser(model.metadata["protocol"])
    response = {
        "status_code": reply.status,
        "headers": HeadersDict({"content-type": reply.media_type} | dict(reply.headers)),
        "body": reply.body,
    }
    found: dict[str, Any] = parser.parse(response, model.operation_model(operation).output_shape)
    return found


CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("sagemaker", "ListJobs", {"JobCategory": "AgentRFT", "MaxResults": 5, "NameContains": "a"}),
    ("sagemaker", "ListJobs", {"JobCategory": "AgentRFT", "CreationTimeAfter": 1700000000.0}),
    ("logs", "GetLogEvents", {"logStreamName": "a/b", "startFromHead": True}),
    ("sts", "GetCallerIdentity", {}),
    (
        "iam",
        "SimulatePrincipalPolicy",
        {
            "PolicySourceArn": "arn:aws:iam::000000000001:role/a",
            "ActionNames": [f"s3:Get{n}" for n in range(12)],
            "ContextEntries": [
                {"ContextKeyName": "aws:a", "ContextKeyValues": ["1", "2"]},
                {"ContextKeyName": "aws:b", "ContextKeyType": "string"},
            ],
            "MaxItems": 7,
        },
    ),
    (
        "lambda",
        "Invoke",
        {
            "FunctionName": "arn:aws:lambda:us-west-2:000000000001:function:walker",
            "InvocationType": "RequestResponse",
            "Qualifier": "1",
            "Payload": b'{"a": 1}',
        },
    ),
    ("lambda", "ListFunctions", {"MaxItems": 3}),
    ("bedrock-agentcore-control", "ListAgentRuntimes", {"maxResults": 3, "nextToken": "a+b/c="}),
    ("bedrock-agentcore-control", "GetAgentRuntime", {"agentRuntimeId": "walker-abcdefghij"}),
    (
        "bedrock-agentcore",
        "InvokeAgentRuntime",
        {
            "agentRuntimeArn": "arn:aws:bedrock-agentcore:us-west-2:000000000001:runtime/walk/ü",
            "qualifier": "DEFAULT",
            "runtimeSessionId": "s" * 33,
            "payload": b"\x00\xff",
        },
    ),
]


@pytest.mark.parametrize(("service", "operation", "parameters"), CALLS)
def test_what_botocore_sends_is_read_as_it_was_given(
    service: str, operation: str, parameters: dict[str, Any]
):
    assert read(service, sent(service, operation, **parameters)) == (operation, parameters)


ACTIONS = st.lists(st.text(st.characters(codec="utf-8"), min_size=3, max_size=6), max_size=3)


@given(ACTIONS, st.lists(ACTIONS.filter(bool), max_size=2))
def test_query_lists_of_any_text_are_read_in_order(names: list[str], values: list[list[str]]):
    given_: dict[str, Any] = {
        "PolicySourceArn": "arn:aws:iam::000000000001:role/a",
        "ActionNames": names,
        "ContextEntries": [{"ContextKeyName": "aws:a", "ContextKeyValues": v} for v in values],
    }
    request = sent("iam", "SimulatePrincipalPolicy", **given_)
    if not names:  # an empty list is not sent, and this one is required
        with pytest.raises(errors.InvalidInput, match="ActionNames: None is required"):
            read("iam", request)
        return
    if not values:
        del given_["ContextEntries"]
    assert read("iam", request)[1] == given_


def query(**pairs: str) -> Request:
    body = urlencode({"Action": "SimulatePrincipalPolicy"} | pairs).encode()
    return Request(method="POST", path="/", query="", headers={}, body=body)


def test_a_query_may_come_in_the_url_and_its_scalars_are_of_their_types():
    arn = "arn:aws:iam::000000000001:role/a"
    pairs = {"PolicySourceArn": arn, "ActionNames.member.1": "s3:Get", "MaxItems": "five"}
    with pytest.raises(errors.InvalidInput, match="MaxItems: 'five' must be a whole number"):
        read("iam", query(**pairs))
    in_url = query(**pairs | {"MaxItems": "5"})
    in_url = Request(method="GET", path="/", query=in_url.body.decode(), headers={}, body=b"")
    assert read("iam", in_url)[1]["MaxItems"] == 5


@pytest.mark.parametrize(
    ("service", "request_"),
    [
        ("sagemaker", Request(method="POST", path="/", query="", headers={}, body=b"{}")),
        ("iam", Request(method="POST", path="/", query="", headers={}, body=b"Action=Fly")),
        ("lambda", Request(method="POST", path="/elsewhere", query="", headers={}, body=b"")),
        (
            "lambda",
            Request(method="PATCH", path="/2015-03-31/functions", query="", headers={}, body=b""),
        ),
    ],
)
def test_an_operation_that_aws_does_not_have_is_refused(service: str, request_: Request):
    with pytest.raises(AwsError) as refused:
        read(service, request_)
    assert refused.value.code == "UnknownOperationException"


def test_a_path_names_the_operation_with_the_most_fixed_text():
    request = Request(
        method="GET", path="/2015-03-31/functions/a/versions", query="", headers={}, body=b""
    )
    assert read("lambda", request) == ("ListVersionsByFunction", {"FunctionName": "a"})
    slash = Request(method="POST", path="/runtimes", query="", headers={}, body=b"")
    assert read("bedrock-agentcore-control", slash)[0] == "ListAgentRuntimes"


def test_rest_json_refuses_a_member_by_its_name():
    runtime = {"agentRuntimeArn": "a", "payload": b"", "runtimeSessionId": "short"}
    with pytest.raises(errors.InvalidInput, match="runtimeSessionId: 'short' must have at least"):
        read("bedrock-agentcore", sent("bedrock-agentcore", "InvokeAgentRuntime", **runtime))
    wrong = sent("lambda", "ListFunctions", MaxItems=0)
    with pytest.raises(errors.InvalidInput, match="MaxItems: 0 must be at least 1"):
        read("lambda", wrong)


def test_answers_are_what_botocore_reads():
    job = {
        "JobArn": "arn",
        "JobName": "walk",
        "JobStatus": "InProgress",
        "CreationTime": 1700000000.25,
    }
    found = received("sagemaker", "DescribeJob", job)
    assert found["CreationTime"].timestamp() == 1700000000.25
    assert found["ResponseMetadata"]["RequestId"] == "request-1"
    results = [
        {"EvalActionName": "s3:<Get>", "EvalDecision": "allowed"},
        {"EvalActionName": "s3:Put", "EvalDecision": "implicitDeny"},
    ]
    found = received(
        "iam", "SimulatePrincipalPolicy", {"EvaluationResults": results, "IsTruncated": False}
    )
    assert (found["EvaluationResults"], found["IsTruncated"]) == (results, False)
    found = received(
        "lambda",
        "Invoke",
        {"StatusCode": 202, "FunctionError": "Unhandled", "Payload": b"{}", "LogResult": None},
    )
    assert (found["StatusCode"], found["FunctionError"]) == (202, "Unhandled")
    assert "LogResult" not in found


@pytest.mark.parametrize(("service", "operation"), [(s, o) for s, o, _ in CALLS])
def test_errors_are_what_botocore_reads(service: str, operation: str):
    reply = wire_format(load_model(service)).fault(400, "SomethingWrong", "a <b> & c", "request-1")
    found = parsed(service, operation, reply)
    assert found["Error"]["Code"] == "SomethingWrong"
    assert found["Error"]["Message"] == "a <b> & c"
    assert found["ResponseMetadata"]["RequestId"] == "request-1"


def test_json_bodies_keep_their_letters():
    model = load_model("sagemaker")
    reply = wire_format(model).write(model.operation_model("DescribeJob"), {"JobName": "ü"}, "r")
    assert json.loads(reply.body) == {"JobName": "ü"}
    assert "ü".encode() in reply.body
