"""Which requests the door answers, for whom, and in whose words it refuses."""

from __future__ import annotations

import re
import threading
from typing import Any

import httpx
import pytest
from botocore.model import ServiceModel

from tests.wire.aws.a_door import Door, a_door, echo
from turnwise import errors
from turnwise.domain.access import Action
from turnwise.wire.aws import cloudtrail, faults, service
from turnwise.wire.aws.iam import iam
from turnwise.wire.aws.service import AwsError, AwsService, Call, load_model
from turnwise.wire.aws.sts import sts

DESCRIBE = {"JobName": "walk", "JobCategory": "AgentRFT"}


def refused(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, code and message, which must agree wherever JSON's clients look for them."""
    body = answer.json()
    assert body["__type"] == answer.headers["x-amzn-errortype"]
    assert body["message"] == body["Message"]
    assert answer.headers["x-amzn-requestid"]
    return answer.status_code, body["__type"], body["message"]


def refused_xml(answer: httpx.Response) -> tuple[int, str]:
    found = re.search(r"<Code>(.*?)</Code>", answer.text)
    assert found is not None
    assert "<RequestId>" in answer.text
    return answer.status_code, found[1]


async def test_a_signed_call_is_answered_and_told_with_who_called():
    async with a_door({"DescribeJob": echo}) as door:
        answer = await door.json("DescribeJob", DESCRIBE)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-amz-json-1.1"
        assert answer.json() == {
            "JobArn": "arn:aws:sagemaker:us-west-2:000000000007:job/AgentRFT/walk",
            "JobName": "walk",
            "JobStatus": "InProgress",
            "CreationTime": 1700000000.25,
        }
        [(call, outcome)] = door.told
    assert (call.principal.name, call.account.slug, call.access_key_id) == (
        "tester",
        "lab",
        door.key.access_key_id,
    )
    assert call.request_id == answer.headers["x-amzn-requestid"]
    assert (outcome.service, outcome.operation, outcome.parameters, outcome.error) == (
        "sagemaker",
        "DescribeJob",
        DESCRIBE,
        "",
    )


async def test_no_services_model_is_read_where_requests_are_answered(
    monkeypatch: pytest.MonkeyPatch,
):
    first: dict[str, threading.Thread] = {}

    def load(name: str) -> ServiceModel:
        first.setdefault(name, threading.current_thread())
        return load_model(name)

    monkeypatch.setattr(service, "load_model", load)
    async with a_door({"DescribeJob": echo}) as door:
        assert (await door.json("DescribeJob", DESCRIBE)).status_code == 200
    async with a_door({"DescribeJob": echo}) as door:
        unsigned = httpx.Request("POST", "http://server/", headers={"x-amz-target": "Logs.Any"})
        assert (await door.send(unsigned)).status_code == 403
    assert first
    assert threading.main_thread() not in first.values()


async def test_who_is_not_verified_is_refused_and_not_told():
    async with a_door({"DescribeJob": echo}) as door:
        target = "SageMaker.DescribeJob"
        good = door.signed("sagemaker", target=target)
        unsigned = httpx.Request("POST", good.url, headers={"x-amz-target": target}, content="{}")
        changed = httpx.Request("POST", good.url, headers=good.headers, content="[]")
        for request, code, words in (
            (unsigned, "MissingAuthenticationToken", "the request is not signed"),
            (changed, "InvalidSignatureException", "signature does not match"),
            (
                door.signed("sagemaker", target=target, secret="tw_wrong"),
                "InvalidSignatureException",
                "signature does not match",
            ),
            (
                door.signed("sagemaker", target=target, access_key_id="TWAKNOBODY"),
                "UnrecognizedClientException",
                "'TWAKNOBODY' does not exist or has been revoked",
            ),
            (
                door.signed("sagemaker", target=target, region="eu-west-1"),
                "InvalidSignatureException",
                "set AWS_REGION and AWS_DEFAULT_REGION",
            ),
        ):
            status, said, message = refused(await door.send(request))
            assert (status, said) == (403, code)
            assert words in message
        assert door.told == []


async def test_a_bearer_token_of_the_data_plane_opens_no_other_door():
    """It is a signature of POST / with an empty body; the operation in a header is not signed."""
    from tests.unit.access.test_callers import token
    from turnwise.access.sdk_token import presigned

    async with a_door({"ListJobs": _never}) as door:
        request = presigned(token(door.key, door.secret))
        for headers in ({"x-amz-target": "SageMaker.ListJobs"}, {}):
            url = f"http://sagemaker.amazonaws.com/?{request.query}"
            answer = await door.send(httpx.Request("POST", url, headers=headers))
            assert answer.status_code in (400, 403)
            assert answer.json()["__type"] in (
                "InvalidSignatureException",
                "UnknownOperationException",
            )


async def _never(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    raise AssertionError("this must not be reached")


async def test_unknown_services_and_operations_are_refused_in_aws_words():
    async with a_door({"DescribeJob": echo}, sts()) as door:
        for request, name in (
            (door.signed("comprehend"), "of service comprehend"),
            (door.signed("sagemaker", target="SageMaker.Fly"), "SageMaker.Fly"),
            (door.signed("sagemaker", target="SageMaker.CreateApp"), "CreateApp"),  # not served
            (door.signed("sagemaker", target="Other.DescribeJob"), "Other.DescribeJob"),
            (door.signed("sagemaker"), "''"),
        ):
            answer = refused(await door.send(request))
            assert answer[:2] == (400, "UnknownOperationException")
            assert name in answer[2]
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        flight = await door.send(door.signed("sts", "Action=Fly", headers=form))
        assert refused_xml(flight) == (400, "UnknownOperationException")


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("{", "SerializationException", "the body is not JSON"),
        ("[" * 100_000, "SerializationException", "the body is not JSON"),
        (b"\xff\xfe", "SerializationException", "the body is not JSON"),
        ("[]", "ValidationException", "the request: [] must be an object"),
        ("{}", "ValidationException", "JobName: None is required"),
        (
            '{"JobName": "a b", "JobCategory": "AgentRFT"}',
            "ValidationException",
            "JobName: 'a b' must match",
        ),
        ('{"JobName": 7, "JobCategory": "AgentRFT"}', "ValidationException", "JobName: 7 must be"),
        (
            '{"JobName": "a", "JobCategory": "Other"}',
            "ValidationException",
            "JobCategory: 'Other' must be one of",
        ),
    ],
)
async def test_a_body_that_is_wrong_is_refused_with_the_members_name(
    body: str | bytes, code: str, words: str
):
    async with a_door({"DescribeJob": _never}) as door:
        request = door.signed("sagemaker", body, target="SageMaker.DescribeJob")
        answer = refused(await door.send(request))
        [(_, outcome)] = door.told
    assert answer[:2] == (400, code)
    assert words in answer[2]
    assert (outcome.error, outcome.operation) == (code, "DescribeJob")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput("S3KeyPrefix", "..", "is no prefix"), "InvalidS3PrefixException"),
        (errors.InvalidInput("EventSelectors[0].Type", None, "is required"), "InvalidEventSel"),
        (errors.InvalidInput("folder", "x", "is not absolute"), "InvalidParameterException"),
        (errors.NotFound("bucket", "logs"), "S3BucketDoesNotExistException"),
        (errors.NotFound("trail", "mine"), "TrailNotFoundException"),
        (errors.Denied("not yours"), "AccessDeniedException"),
    ],
)
def test_a_code_may_say_what_the_error_is_about(error: Exception, code: str):
    service = AwsService(
        name="cloudtrail", handlers={}, codes=cloudtrail.CODES, codes_of=cloudtrail.CODES_OF
    )
    assert faults.describe(error, service)[1].startswith(code)


async def test_errors_have_the_codes_of_their_service():
    async def fails(call: Call, given: dict[str, Any]) -> dict[str, Any]:
        raise failures.pop()

    failures: list[Exception] = [
        RuntimeError("a secret path"),
        errors.NotFound("job", "walk"),
        errors.Denied("this key may not read"),
        errors.Conflict("it runs"),
        errors.LimitExceeded("one job at a time"),
        errors.Unavailable("the disk is away"),
        AwsError("SomethingElse", "as AWS says it", status=418),
    ]
    async with a_door({"DescribeJob": fails}) as door:
        said = [refused(await door.json("DescribeJob", DESCRIBE)) for _ in list(failures)]
        assert [outcome.error for _, outcome in door.told] == [code for _, code, _ in said]
    assert said == [
        (418, "SomethingElse", "as AWS says it"),
        (503, "ServiceUnavailable", "the disk is away"),
        (400, "ResourceLimitExceeded", "one job at a time"),
        (400, "ResourceInUse", "it runs"),
        (403, "AccessDeniedException", "this key may not read"),
        (400, "ResourceNotFound", "job 'walk' does not exist"),
        (500, "InternalFailure", "internal error"),
    ]


async def test_a_result_that_the_model_does_not_know_is_a_fault_of_ours():
    async def wrong(call: Call, given: dict[str, Any]) -> dict[str, Any]:
        return {"JobNam": "walk"}

    async with a_door({"DescribeJob": wrong}) as door:
        answer = refused(await door.json("DescribeJob", DESCRIBE))
    assert answer == (500, "InternalFailure", "internal error")


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def test_sts_says_who_calls_and_refuses_in_its_own_words():
    async with a_door({}, sts()) as door:
        asked = "Action=GetCallerIdentity&Version=2011-06-15"
        answer = await door.send(door.signed("sts", asked, headers=FORM))
        assert "<Arn>arn:aws:iam::000000000007:user/tester</Arn>" in answer.text
        assert "<Account>000000000007</Account>" in answer.text
        unsigned = httpx.Request("POST", "http://server/", headers=FORM, content=asked)
        assert refused_xml(await door.send(unsigned)) == (403, "MissingAuthenticationToken")
        for options, code in (
            ({"secret": "tw_wrong"}, "SignatureDoesNotMatch"),
            ({"access_key_id": "TWAKNOBODY"}, "InvalidClientTokenId"),
        ):
            forged = await door.send(door.signed("sts", asked, headers=FORM, **options))
            assert refused_xml(forged) == (403, code)


async def asked_of_iam(door: Door, form: str, region: str = "us-east-1") -> httpx.Response:
    return await door.send(door.signed("iam", form, headers=FORM, region=region))


async def test_iam_lists_the_services_that_a_role_trusts_and_what_the_callers_key_may_do():
    async with a_door({}, iam()) as door:
        for region in ("us-east-1", "us-west-2"):
            role = await asked_of_iam(door, "Action=GetRole&RoleName=trainer", region)
            assert "<Arn>arn:aws:iam::000000000007:role/trainer</Arn>" in role.text
            assert "sagemaker.amazonaws.com" in role.text
        actions = ("sagemaker:CreateJob", "s3:GetObject", "sagemaker:Sample")
        form = "Action=SimulatePrincipalPolicy&PolicySourceArn=arn:aws:iam::%s:role/trainer&"
        form += "&".join(f"ActionNames.member.{n + 1}={a}" for n, a in enumerate(actions))
        answer = await asked_of_iam(door, form % "000000000007")
        assert re.findall(r"<EvalActionName>(.*?)<", answer.text) == list(actions)
        assert re.findall(r"<EvalDecision>(.*?)<", answer.text) == ["allowed"] * 3
        foreign = await asked_of_iam(door, form % "000000000008")
        assert refused_xml(foreign) == (400, "NoSuchEntity")
        wrong = await asked_of_iam(door, (form % "").replace("arn:aws:iam", "arn:aws:sts"))
        assert refused_xml(wrong) == (400, "InvalidInput")


async def test_iam_denies_what_the_callers_key_may_not_do():
    from turnwise.domain.access import Principal
    from turnwise.wire.aws.iam import may

    reporter = Principal(account_id="a", actions=frozenset({Action.REPORT}))
    allowed = [
        "sagemaker:CompleteRollout",
        "sagemaker:UpdateReward",
        "sagemaker:CallWithBearerToken",
    ]
    denied = ["sagemaker:Sample", "sagemaker:DescribeJob", "s3:PutObject", "sagemaker:StopJob", "*"]
    assert [may(reporter, action) for action in allowed] == [True] * 3
    assert [may(reporter, action) for action in denied] == [False] * 5


async def test_a_managing_call_may_be_no_larger_than_such_calls_are():
    async with a_door({"DescribeJob": echo}) as door:
        large = b'{"JobName": "' + b"a" * (9 << 20) + b'"}'
        answer = await door.send(door.signed("sagemaker", large, target="SageMaker.DescribeJob"))
    assert answer.status_code == 400
    assert "larger than 8388608 bytes" in answer.json()["message"]
    assert door.told == []
