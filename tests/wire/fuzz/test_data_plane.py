"""The data plane, the job runtime under its old and new names, and MLflow's door."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.wire.fuzz.building import NUMBER, REGION, Answer, Sent
from tests.wire.fuzz.checks import Checked, fuzzing
from tests.wire.fuzz.values import NASTY_TEXTS, json_bodies, nasty

ARN = f"arn:aws:sagemaker:{REGION}:{NUMBER}:job/AgentRFT/walk"
HEADER_TEXTS = [
    text for text in NASTY_TEXTS if len(text) < 6000 and text.isprintable() and text.strip() == text
]


CHAT: dict[str, Any] = {
    "model": "default",
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "done"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "max_tokens": 8,
    "stop": ["x"],
    "seed": 7,
    "stream": False,
    "stream_options": {"include_usage": True},
    "logprobs": True,
    "n": 1,
    "logit_bias": {},
}
COMPLETED = {"JobArn": ARN, "TrajectoryId": "rol_1", "Status": "ready", "ClientToken": "a"}
REWARDED = {
    "JobArn": ARN,
    "TrajectoryId": "rol_1",
    "Rewards": [0.5, 1],
    "Metrics": {"steps": 3},
    "ClientToken": "a",
}
PATHS = {
    "/v1/chat/completions": CHAT,
    "/sample": CHAT,
    "/sample-with-response-stream": CHAT,
    "/complete-rollout": COMPLETED,
    "/update-reward": REWARDED,
    "/CompleteTrajectory": COMPLETED,
    "/UpdateReward": REWARDED,
}


def is_refusal(answer: Answer) -> str:
    """An error in OpenAI's words or AWS's."""
    if answer.status == 405:
        return ""
    body = json.loads(answer.body)
    return "" if isinstance(body["message"], str) and ("error" in body or "__type" in body) else "?"


rollouts = st.sampled_from([f"rol_{n}" for n in range(64)])


@fuzzing(130)
@given(data=st.data())
def test_the_data_plane_refuses_what_it_cannot_take(checked: Checked, data: st.DataObject):
    building = checked.building
    path = data.draw(st.sampled_from(sorted(PATHS)), label="path")
    rollout = data.draw(rollouts)
    base = copy.deepcopy(PATHS[path])
    if "TrajectoryId" in base:
        base["TrajectoryId"] = rollout
    body = data.draw(json_bodies(st.builds(copy.deepcopy, st.just(base))), label="body")
    odd = st.sampled_from(HEADER_TEXTS)
    headers: dict[str, str] = {"content-type": "application/json"}
    way = data.draw(st.sampled_from(["headers", "headers", "url", "key", "sdk", "odd"]))
    secret = building.secret_of_rollouts
    if way == "headers":
        headers |= {"x-amzn-sagemaker-job-arn": ARN, "x-amzn-sagemaker-trajectory-id": rollout}
        headers |= building.bearer
    elif way == "sdk":
        headers |= {"x-rft-job-arn": ARN, "x-trajectory-id": rollout, "x-span-id": data.draw(odd)}
        headers |= {"authorization": f"Bearer {secret}"}
    elif way == "url":
        path = f"/r/{rollout}.{secret}" + path
    elif way == "key":
        headers |= building.bearer
    else:
        headers |= {
            "authorization": data.draw(
                st.sampled_from(["Bearer ", "Bearer x", "bearer", "Basic eDp5"]) | odd
            ),
            "x-amzn-sagemaker-job-arn": data.draw(odd),
            "x-amzn-sagemaker-trajectory-id": data.draw(odd),
        }
    if data.draw(st.integers(0, 9)) == 7:
        headers |= {
            "x-stainless-retry-count": data.draw(odd),
            "amz-sdk-request": data.draw(odd | st.just("attempt=9999; max=3")),
        }
    method = data.draw(st.sampled_from(["POST"] * 9 + ["GET"]))
    sent = Sent(method=method, target=path, headers=_latin(headers), body=body)
    checked.ask(sent, wrong=is_refusal)


@fuzzing(20)
@given(data=st.data())
def test_rewards_and_statuses_of_any_kind_are_taken_or_refused(
    checked: Checked, data: st.DataObject
):
    rollout = data.draw(rollouts)
    body = {"TrajectoryId": rollout, "Rewards": data.draw(st.lists(nasty, max_size=3))}
    body |= {"Metrics": {"a": data.draw(nasty)}, "Status": data.draw(nasty)}
    from tests.wire.fuzz.values import as_json

    for path in ("/complete-rollout", "/update-reward"):
        target = f"/r/{rollout}.{checked.building.secret_of_rollouts}{path}"
        checked.ask(Sent(method="POST", target=target, body=as_json(body)), wrong=is_refusal)


@fuzzing(15)
@given(data=st.data())
def test_addresses_of_rollouts_that_are_not_are_refused(checked: Checked, data: st.DataObject):
    tails = ["", "/", "/v1/models", "/v1/chat/completions", "/%2e%2e/health", "/update-reward"]
    heads = [
        "rol_1",
        "rol_1.",
        ".",
        "..",
        "rol_1.x",
        "%00.%00",
        "%ff.%ff",
        "rol_1.%F0%9D%92%B3",
        "",
    ]
    target = f"/r/{data.draw(st.sampled_from(heads))}{data.draw(st.sampled_from(tails))}"
    method = data.draw(st.sampled_from(["GET", "POST", "PUT"]))
    checked.refused(Sent(method=method, target=target, body=b"{}"))


MLFLOW = [
    "/mlflow",
    "/mlflow/",
    "/mlflow//",
    "/mlflow%2Fapi/2.0/mlflow/runs/search",
    "/mlflow/%2e%2e/api/2.0/mlflow/runs/search",
    "/mlflow/api/2.0/mlflow/runs/search",
    "/mlflow/api/2.0/mlflow/runs/create",
    "/mlflow/ajax-api/3.0/mlflow/traces/x?a=%ff&b=%00",
    "/mlflow%2F@elsewhere/",
    "/mlflow/%40elsewhere",
    "/mlflow/static-files/%ff",
    "/mlflow/static-files/..%2f..%2fetc/passwd",
    "/mlflow/get-artifact?path=../../x&run_id=%0d%0a",
    "/%6dlflow/api/2.0/mlflow/runs/search",
    "/api/2.0/mlflow/runs/search",
    "/api/2.0/mlflow/runs/search?" + "a" * 5000,
    "/api/2.0/mlflow-artifacts/artifacts/%2e%2e/x",
    "/api/2.0/mlflow/gateway-proxy",
    "/api/9.0/mlflow/x",
    "/v1/traces",
    "/auth",
    "/auth?authToken=" + "a" * 5000,
    "/auth?authToken=%ff",
    "/auth?authToken=abc",
    "/mlflow/auth?authToken=abcd",
    "/mlflow/" + "a/" * 1000,
    "/mlflow/[",
    "/mlflow/api/2.0/mlflow/\xe9?[]{}|^",
]


@fuzzing(50)
@given(data=st.data())
def test_mlflows_door_refuses_what_it_cannot_take(checked: Checked, data: st.DataObject):
    building = checked.building
    target = data.draw(st.sampled_from(MLFLOW), label="target")
    odd = st.sampled_from(HEADER_TEXTS)
    cookies = ["turnwise_mlflow=abc", "turnwise_mlflow=" + "p" * 4000, "=;=;", 'a="\\777"', "\xff"]
    headers = data.draw(
        st.sampled_from(
            [
                building.bearer,
                building.bearer | {"transfer-encoding": "chunked"},
                building.bearer | {"x-sm-mlflow-app-arn": "arn:aws:sagemaker:x"},
                building.bearer | {"connection": "x-a", "accept": "text/html", "x-a": "\xff"},
                {"authorization": "Bearer x"},
                {},
            ]
        )
        | st.builds(lambda c: {"cookie": c}, st.sampled_from(cookies) | odd)
        | st.builds(lambda o: {"origin": o, "cookie": cookies[0]}, odd)
        | st.builds(lambda a: {"authorization": a}, odd)
    )
    method = data.draw(st.sampled_from(["GET", "POST", "HEAD", "DELETE", "PATCH", "OPTIONS"]))
    body = data.draw(st.sampled_from([b"", b"{}", b"\xff", b"[" * 5000]))
    sent = Sent(method=method, target=target, headers=_latin(headers), body=body)
    if data.draw(st.integers(0, 4)) == 3 and "[" not in target:
        sent = building.signed("sagemaker", sent)
    checked.ask(sent)


def _latin(headers: dict[str, str]) -> dict[str, str]:
    return {
        name: text.encode("utf-8", "surrogatepass").decode("latin-1").strip()
        if not text.isascii()
        else text
        for name, text in headers.items()
    }
