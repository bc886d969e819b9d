from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.gateway.kit import KEY, SECRET, World, a_world, user
from tests.wire.served import ARN, HEADERS, NUMBER, a_browser, served
from turnwise import errors
from turnwise.domain.access import Principal
from turnwise.domain.rollout import RolloutStatus
from turnwise.wire.aws import faults
from turnwise.wire.aws.arns import JobArn

BEARER = {"Authorization": f"Bearer {KEY}"}
BOTO = HEADERS | BEARER
SUBJECT = {"JobArn": ARN, "TrajectoryId": "rol_a"}
CHAT = {"model": "default", "messages": [user("hi")]}


async def status_of(world: World) -> RolloutStatus:
    return (await world.store.rollout("rol_a")).status


def refused(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, type and text, which must agree wherever clients look for them."""
    body = answer.json()
    assert body["Message"] == body["message"]
    assert body["__type"] == answer.headers["x-amzn-errortype"]
    return answer.status_code, body["__type"], body["message"]


async def test_sample_is_a_chat_completion_without_a_content_type():
    async with a_world("hello") as world, served(world) as url, a_browser() as http:
        answer = await http.post(f"{url}/sample", content=json.dumps(CHAT), headers=BOTO)
        assert len((await world.trajectory()).turns) == 1
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["choices"][0]["message"]["content"] == "hello"


async def test_a_response_stream_is_plain_server_sent_events():
    async with a_world("yo") as world, served(world) as url, a_browser() as http:
        answer = await http.post(
            f"{url}/sample-with-response-stream", content=json.dumps(CHAT), headers=BOTO
        )
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_botocores_own_retry_gets_the_same_turn():
    async with a_world("one", "two") as world, served(world) as url, a_browser() as http:
        answers = [
            await http.post(
                f"{url}/sample",
                content=json.dumps(CHAT),
                headers=BOTO | {"amz-sdk-request": f"attempt={attempt}; max=3"},
            )
            for attempt in (1, 2)
        ]
    assert answers[0].json() == answers[1].json()


ENCODINGS: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    ("", BOTO, {"TrajectoryId": "rol_a", "ClientToken": "t-1"}),  # boto3
    ("", BEARER, SUBJECT),  # the SageMaker SDK
    (f"/r/rol_a.{SECRET}", {"Authorization": "Bearer ignored"}, SUBJECT),
    (f"/r/rol_a.{SECRET}", {}, {}),
]


@pytest.mark.parametrize(("prefix", "headers", "subject"), ENCODINGS)
async def test_reports_are_taken_in_every_encoding_and_may_be_repeated(
    prefix: str, headers: dict[str, str], subject: dict[str, Any]
):
    async with a_world() as world, served(world) as url, a_browser() as http:
        for _ in range(2):
            done = await http.post(
                f"{url}{prefix}/complete-rollout",
                json=subject | {"Status": "ready"},
                headers=headers,
            )
            assert (done.status_code, done.json()) == (200, {})
        assert await status_of(world) is RolloutStatus.READY
        for _ in range(2):
            scored = await http.post(
                f"{url}{prefix}/update-reward",
                json=subject | {"Rewards": [1], "Metrics": {"field_acc": 0.5}},
                headers=headers,
            )
            assert (scored.status_code, scored.json()) == (200, {})
        rollout = await world.store.rollout("rol_a")
    assert (rollout.status, rollout.rewards, rollout.metrics) == (
        RolloutStatus.REWARDED,
        (1.0,),
        {"field_acc": 0.5},
    )


async def test_a_rollout_is_ready_unless_the_status_says_otherwise():
    async with a_world() as world, served(world) as url, a_browser() as http:
        await http.post(f"{url}/complete-rollout", json=SUBJECT, headers=BEARER)
        assert await status_of(world) is RolloutStatus.READY


async def test_an_error_report_completes_as_failed_and_may_be_scored():
    async with a_world() as world, served(world) as url, a_browser() as http:
        for path, more in (
            ("complete-rollout", {"Status": "failed"}),
            ("update-reward", {"Rewards": [0.0]}),
        ):
            answer = await http.post(f"{url}/{path}", json=SUBJECT | more, headers=BEARER)
            assert answer.status_code == 200
        assert await status_of(world) is RolloutStatus.FAILED


REFUSED: list[tuple[str, dict[str, Any], int, str, str]] = [
    ("complete-rollout", {"Status": "done"}, 400, "ValidationException", "Status: 'done' must be"),
    (
        "complete-rollout",
        {"TrajectoryId": "rol_x"},
        404,
        "ResourceNotFoundException",
        "trajectory 'rol_x' does not exist",
    ),
    (
        "complete-rollout",
        {"TrajectoryId": 5},
        400,
        "ValidationException",
        "TrajectoryId: 5 must be",
    ),
    (
        "complete-rollout",
        {"TrajectoryId": "\ud800"},
        400,
        "ValidationException",
        "TrajectoryId: '\\ud800' is not text: half a character is missing",
    ),
    ("complete-rollout", {"JobArn": "walk"}, 400, "ValidationException", "JobArn: 'walk' is not"),
    (
        "complete-rollout",
        {"JobArn": ARN.replace("walk", "run")},
        404,
        "ResourceNotFoundException",
        "trajectory 'rol_a' does not exist; not in job run",
    ),
    (
        "complete-rollout",
        {"JobArn": ARN.replace(NUMBER, "000000000002")},
        403,
        "AccessDeniedException",
        "this key is not of account 000000000002",
    ),
    ("update-reward", {"Rewards": [1.0]}, 400, "ValidationException", "not in valid status"),
    ("update-reward", {"Rewards": 1.0}, 400, "ValidationException", "Rewards: 1.0 must be a list"),
    ("update-reward", {"Rewards": ["a"]}, 400, "ValidationException", "Rewards[0]: 'a' must be"),
    (
        "update-reward",
        {"Rewards": [1.0], "Metrics": {"a": "b"}},
        400,
        "ValidationException",
        "Metrics.a: 'b' must be a number",
    ),
    (
        "update-reward",
        {"Rewards": [1.0], "Metrics": {"\ud800": 1}},
        400,
        "ValidationException",
        "Metrics: '\\ud800' is not text",
    ),
]


async def test_wrong_reports_are_refused_in_aws_shape():
    async with a_world() as world, served(world) as url, a_browser() as http:
        for path, more, status, kind, text in REFUSED:
            body = json.dumps(SUBJECT | more)  # as httpx would, but for half a surrogate pair
            answer = await http.post(f"{url}/{path}", content=body, headers=BEARER)
            assert refused(answer)[:2] == (status, kind)
            assert text in refused(answer)[2]
        unknown = await http.post(f"{url}/complete-rollout", json={}, headers=BEARER)
        assert refused(unknown)[2] == "TrajectoryId: '' is required"
        keyless = await http.post(f"{url}/complete-rollout", json=SUBJECT)
        assert refused(keyless)[:2] == (403, "AccessDeniedException")
        broken = await http.post(f"{url}/complete-rollout", content=b"{", headers=BEARER)
        assert refused(broken)[0] == 400
        deep = await http.post(f"{url}/complete-rollout", content=b"[" * 100_000, headers=BEARER)
        assert refused(deep)[:2] == (400, "ValidationException")
        assert await status_of(world) is RolloutStatus.PENDING


@pytest.mark.parametrize("spelled", [b"NaN", b'"NaN"', b"Infinity", b"1" * 400])
async def test_a_reward_that_is_no_number_is_named(spelled: bytes):
    body = json.dumps(SUBJECT)[:-1].encode() + b', "Rewards": [' + spelled + b"]}"
    async with a_world() as world, served(world) as url, a_browser() as http:
        await http.post(f"{url}/complete-rollout", json=SUBJECT, headers=BEARER)
        answer = await http.post(f"{url}/update-reward", content=body, headers=BEARER)
    said = "nan" if b"NaN" in spelled else "inf"
    assert refused(answer) == (
        400,
        "ValidationException",
        f"Rewards: {said} must be a finite number",
    )


async def test_conflicting_reports_are_conflicts():
    async with a_world() as world, served(world) as url, a_browser() as http:
        await http.post(f"{url}/complete-rollout", json=SUBJECT, headers=BEARER)
        failed = await http.post(
            f"{url}/complete-rollout", json=SUBJECT | {"Status": "failed"}, headers=BEARER
        )
        assert refused(failed) == (
            409,
            "ConflictException",
            "Cannot transition trajectory rol_a from READY to FAILED",
        )
        for reward in (1.0, 0.5):
            scored = await http.post(
                f"{url}/update-reward", json=SUBJECT | {"Rewards": [reward]}, headers=BEARER
            )
        assert refused(scored)[:2] == (409, "ConflictException")


async def test_sample_on_a_closed_rollout_and_with_a_bad_body():
    async with a_world() as world, served(world) as url, a_browser() as http:
        bad = await http.post(f"{url}/sample", json=CHAT | {"n": 2}, headers=BOTO)
        await http.post(f"{url}/complete-rollout", json=SUBJECT, headers=BEARER)
        closed = await http.post(f"{url}/sample", json=CHAT, headers=BOTO)
    assert refused(bad) == (
        400,
        "ValidationException",
        "n: 2 is not supported here; leave it out or send 1",
    )
    assert refused(closed)[:2] == (400, "ValidationException")
    assert "not in valid status" in closed.json()["message"]


async def test_another_accounts_rollout_does_not_exist_whatever_job_is_named():
    async with a_world() as world, served(world) as url, a_browser() as http:
        world.principal = Principal(account_id="acc_other")
        answers = [
            await http.post(f"{url}/complete-rollout", json=SUBJECT | more, headers=BEARER)
            for more in ({}, {"JobArn": ARN.replace("walk", "run")}, {"TrajectoryId": "rol_x"})
        ]
        models = await http.get(f"{url}/v1/models", headers=BOTO)
    said = [refused(answer)[2] for answer in answers]
    assert said == [f"trajectory '{id}' does not exist" for id in ("rol_a", "rol_a", "rol_x")]
    assert models.status_code == 404


async def test_a_path_secret_does_not_reach_another_rollout():
    async with a_world() as world, served(world) as url, a_browser() as http:
        await world.open("rol_b")
        answer = await http.post(
            f"{url}/r/rol_a.{SECRET}/complete-rollout", json=SUBJECT | {"TrajectoryId": "rol_b"}
        )
    assert refused(answer)[:2] == (403, "AccessDeniedException")


NAMES = st.from_regex(r"[a-zA-Z0-9](-?[a-zA-Z0-9]){0,20}", fullmatch=True)


@given(NAMES, st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True), st.integers(0, 10**12 - 1))
def test_arns_survive_the_round_trip(name: str, region: str, number: int):
    arn = JobArn(region=region, number=f"{number:012d}", name=name)
    assert JobArn.parse(str(arn)) == arn


def test_every_error_has_an_aws_name():
    def kinds(kind: type[errors.TurnwiseError]) -> list[type[errors.TurnwiseError]]:
        return [kind, *(k for sub in kind.__subclasses__() for k in kinds(sub))]

    rows = {
        k.__name__: next(faults.TABLE[m] for m in k.__mro__ if m in faults.TABLE)
        for k in kinds(errors.TurnwiseError)
    }
    assert rows["PromptTooLong"] == (400, "ValidationException")
    assert rows["LimitExceeded"] == (429, "ThrottlingException")
    assert rows["ProcessDied"] == (503, "InternalServiceError")
    assert rows["Corrupted"] == (500, "InternalServiceError")
