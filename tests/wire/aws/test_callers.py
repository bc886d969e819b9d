"""The data plane with real keys: signatures, tokens, limits, and the first SDK's spelling."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.builders import ACCOUNT
from tests.unit.access.test_callers import token
from tests.unit.gateway.kit import World, a_world, user
from tests.wire.served import ARN, HEADERS, NUMBER, a_browser, served
from turnwise.access.callers import Callers
from turnwise.access.keys import Keyring
from turnwise.access.vault import Vault
from turnwise.domain.access import Action, Key
from turnwise.domain.rollout import RolloutStatus

CHAT = {"model": "default", "messages": [user("hi")]}
SUBJECT = {"JobArn": ARN, "TrajectoryId": "rol_a"}
PATHS = ("/sample", "/v1/chat/completions")


@dataclass
class Street:
    """The data plane of a world, and keys of its account."""

    world: World
    url: str
    http: httpx.AsyncClient
    ring: Keyring

    async def signed(
        self,
        key: Key,
        secret: str,
        path: str,
        body: object,
        headers: Mapping[str, str] | None = None,
        *,
        region: str = "us-west-2",
    ) -> httpx.Response:
        """A request as AWS's clients sign it."""
        data = json.dumps(body)
        request = AWSRequest("POST", self.url + path, dict(headers or {}), data)
        SigV4Auth(Credentials(key.access_key_id, secret), "sagemaker", region).add_auth(request)
        sent = request.prepare()
        return await self.http.post(sent.url, content=data, headers=dict(sent.headers))

    async def bearer(self, bearer: str, path: str, body: object) -> httpx.Response:
        headers = HEADERS | {"Authorization": f"Bearer {bearer}"}
        return await self.http.post(self.url + path, json=body, headers=headers)

    async def rollout_status(self) -> RolloutStatus:
        return (await self.world.store.rollout("rol_a")).status


@contextlib.asynccontextmanager
async def a_street() -> AsyncIterator[Street]:
    async with a_world("one", "two", "three", "four") as world:
        ring = Keyring(world.store, Vault(bytes(32)))
        callers = Callers(ring, "us-west-2")
        async with served(world, callers) as url, a_browser() as http:
            yield Street(world, url, http, ring)


def refused(answer: httpx.Response) -> tuple[int, str]:
    """Status and text, in whichever shape the path has; both spellings must agree."""
    body = answer.json()
    inner = body["error"]["message"] if "error" in body else body["Message"]
    assert inner == body["message"]
    if "Message" in body:
        assert body["__type"] == answer.headers["x-amzn-errortype"] == "AccessDeniedException"
    return answer.status_code, inner


async def test_a_signature_and_a_token_reach_a_rollout_on_both_kinds_of_paths():
    async with a_street() as street:
        secret, key = await street.ring.create(ACCOUNT, "agent")
        made = token(key, secret)
        for path in PATHS:
            for answer in (
                await street.signed(key, secret, path, CHAT, HEADERS),
                await street.bearer(made, path, CHAT),
            ):
                assert answer.status_code == 200, answer.text
        assert len((await street.world.trajectory()).turns) == 4
        models = await street.http.get(
            f"{street.url}/v1/models", headers={"Authorization": f"Bearer {made}"}
        )
        assert models.status_code == 200


async def test_callers_that_are_not_verified_are_refused_in_each_paths_words():
    async with a_street() as street:
        secret, key = await street.ring.create(ACCOUNT, "agent")
        revoked, gone = await street.ring.create(ACCOUNT, "gone")
        await street.ring.revoke(ACCOUNT, gone.key_id)
        for path in PATHS:
            for answer, words in (
                (
                    await street.signed(key, "tw_wrong", path, CHAT, HEADERS),
                    "the request signature does not match",
                ),
                (
                    await street.signed(key, secret, path, CHAT, HEADERS, region="eu-west-1"),
                    "it is signed for sagemaker in eu-west-1",
                ),
                (
                    await street.signed(gone, revoked, path, CHAT, HEADERS),
                    "does not exist or has been revoked",
                ),
                (
                    await street.bearer(token(key, "tw_wrong"), path, CHAT),
                    "Authentication failed: the request signature does not match",
                ),
                (
                    await street.bearer(token(gone, revoked), path, CHAT),
                    "Authentication failed: the access key",
                ),
                (
                    await street.bearer("sagemaker-api-key-x", path, CHAT),
                    "Authentication failed: the token is not whole",
                ),
            ):
                status, text = refused(answer)
                assert status == 403
                assert words in text
        unknown = await street.bearer("tw_" + "x" * 40, "/v1/chat/completions", CHAT)
        assert unknown.status_code == 401  # as OpenAI answers a wrong key
        assert (await street.world.trajectory()).turns == ()


async def test_a_key_is_held_to_its_actions_and_jobs_and_account():
    async with a_street() as street:
        sampler = await street.ring.create(ACCOUNT, "sampler", actions=[Action.SAMPLE])
        reporter = await street.ring.create(ACCOUNT, "reporter", actions=[Action.REPORT])
        elsewhere = await street.ring.create(ACCOUNT, "elsewhere", job_ids=["job_other"])
        stranger = await street.ring.create("acc_other", "stranger")
        report = SUBJECT | {"Status": "ready"}
        calls: list[tuple[tuple[str, Key], str, Any, int, str]] = [
            (sampler, "/complete-rollout", report, 403, "this key may not report"),
            (reporter, "/sample", CHAT, 403, "this key may not sample"),
            (reporter, "/v1/chat/completions", CHAT, 403, "this key may not sample"),
            (elsewhere, "/sample", CHAT, 403, "this key may not sample"),
            (elsewhere, "/complete-rollout", report, 403, "this key may not report"),
            (
                sampler,
                "/complete-rollout",
                report | {"JobArn": ARN.replace(NUMBER, "000000000009")},
                403,
                "this key is not of account 000000000009",
            ),
        ]
        for (secret, key), path, body, status, words in calls:
            said = [
                refused(await street.signed(key, secret, path, body, HEADERS)),
                refused(await street.bearer(token(key, secret), path, body)),
                refused(await street.bearer(secret, path, body)),
            ]
            assert len(set(said)) == 1
            assert said[0][0] == status
            assert words in said[0][1]
        secret, key = stranger  # names no account that is not its own: the rollout is not there
        hidden = await street.signed(key, secret, "/complete-rollout", {"TrajectoryId": "rol_a"})
        assert hidden.status_code == 404
        assert await street.rollout_status() is RolloutStatus.PENDING
        assert (await street.world.trajectory()).turns == ()


@pytest.mark.parametrize(
    "spelled",
    [
        {"TrajectoryId": "rol_a", "Rewards": [0.5]},
        {"trajectoryId": "rol_a", "jobArn": ARN, "rewards": [0.5]},
    ],
)
async def test_the_first_sdks_paths_headers_and_members_are_answered(spelled: dict[str, Any]):
    first = {"X-Rft-Job-Arn": ARN, "X-Trajectory-Id": "rol_a", "X-Span-Id": "span"}
    async with a_street() as street:
        secret, key = await street.ring.create(ACCOUNT, "agent")
        sampled = await street.signed(key, secret, "/sample", CHAT, first)
        assert sampled.json()["choices"][0]["message"]["content"] == "one"
        done = await street.signed(key, secret, "/CompleteTrajectory", spelled)
        assert (done.status_code, done.json()) == (200, {})
        assert await street.rollout_status() is RolloutStatus.READY
        scored = await street.signed(key, secret, "/UpdateReward", spelled)
        assert (scored.status_code, scored.json()) == (200, {})
        rollout = await street.world.store.rollout("rol_a")
    assert (rollout.status, rollout.rewards) == (RolloutStatus.REWARDED, (0.5,))
