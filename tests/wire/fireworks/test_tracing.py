"""The tracing gateway by plain HTTP: what is recorded, what is found, who sees it."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders import ACCOUNT, package
from tests.unit.gateway.kit import ids, user
from tests.wire.fireworks.tracing_kit import BASE, TAGGED, TAGS, Gateway, a_gateway
from tests.wire.openai.test_serving import register
from tests.wire.served import SLUG
from turnwise import errors
from turnwise.domain.access import Action, Principal
from turnwise.domain.resource import Resource
from turnwise.wire.fireworks import tracing
from turnwise.wire.fireworks.deployments import KIND

FINISHED = {"code": 100, "message": "Rollout finished", "details": []}


# ── calls ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_tagged_call_is_recorded_with_what_was_asked_and_answered(tmp_path: Path):
    tools = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
    async with a_gateway(tmp_path, "hello") as gateway:
        answer = await gateway.chat("hi", tools=tools)
        (trace,) = await gateway.traces("rollout_id:calm-1")
    assert answer.status_code == 200, answer.text
    reply = answer.json()
    assert reply["choices"][0]["message"]["content"] == "hello"
    assert trace["id"] == reply["id"].removeprefix("chatcmpl-")
    assert trace["tags"] == TAGS
    assert trace["input"] == {"messages": [user("hi")], "tools": tools}
    assert trace["output"] == {"role": "assistant", "content": "hello"}
    assert trace["timestamp"] == "1970-01-01T00:16:40.000000Z"
    assert "payloads" not in trace
    usage = {name: reply["usage"][name] for name in trace["metadata"]["usage"]}
    assert trace["metadata"]["usage"] == usage
    assert (trace["metadata"]["model"], trace["metadata"]["finish_reason"]) == (BASE, "stop")


@pytest.mark.parametrize("before", ["", "/v1", "/litellm-gateway", "/litellm-gateway/v1"])
@pytest.mark.parametrize(("project", "after"), [("", ""), ("/project_id/p", "/v1")])
async def test_the_ways_to_write_a_tagged_path_are_one(
    before: str, project: str, after: str, tmp_path: Path
):
    async with a_gateway(tmp_path) as gateway:
        answer = await gateway.chat(path=f"{before}{project}{TAGGED}{after}")
        found = await gateway.get(f"{before}{project}/traces/pointwise", tags=TAGS)
    assert answer.status_code == 200, answer.text
    assert found.json()["project_id"] == ("p" if project else "default")
    assert [trace["tags"] for trace in found.json()["traces"]] == [TAGS]


@pytest.mark.parametrize("path", ["", "/v1", "/inference/v1", "/litellm-gateway"])
async def test_a_call_without_tags_is_answered_and_not_recorded(path: str, tmp_path: Path):
    async with a_gateway(tmp_path) as gateway:
        assert (await gateway.chat(path=path)).status_code == 200
        listed = await gateway.get("/inference/v1/models")
        assert await gateway.traces() == []
    assert [model["id"] for model in listed.json()["data"]] == ["tiny"]


async def test_the_tokens_of_a_call_come_as_payloads(tmp_path: Path):
    async with a_gateway(tmp_path, "ab") as gateway:
        await gateway.chat("hi")
        (trace,) = await gateway.traces(*TAGS, include_payloads="True")
    prompt, logprobs = (
        raw(trace["payloads"][name]["data"]) for name in ("prompt_token_ids", "logprobs")
    )
    assert json.loads(prompt) == [*ids("<user>hi"), 0, *ids("<assistant>")]
    assert struct.unpack_from("<4sBBHIIQ", logprobs) == (b"LP01", 1, 0, 0, 3, 24, 0)
    tokens = [struct.unpack_from("<if", logprobs, 24 + 8 * n) for n in range(3)]
    assert [token for token, _ in tokens] == [ord("a"), ord("b"), 0]
    assert len(logprobs) == 24 + 24


def raw(data: str) -> bytes:
    """What a frame of one raw block holds."""
    frame = base64.b64decode(data)
    size = int.from_bytes(frame[5:9], "little")
    assert len(frame) == 12 + size
    return frame[12:]


async def test_a_streamed_call_is_recorded_before_its_end(tmp_path: Path):
    async with a_gateway(tmp_path, "hello") as gateway:
        answer = await gateway.chat("hi", stream=True)
        (trace,) = await gateway.traces("run_id:run")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert trace["output"]["content"] == "hello"


async def test_a_call_that_cannot_be_recorded_fails_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with a_gateway(tmp_path, "hello") as gateway:

        async def full(noun: Any) -> None:
            raise errors.StorageFull("the device of the database is full; make room")

        with monkeypatch.context() as broken:
            broken.setattr(gateway.world.store, "add_traced", full)
            refused = await gateway.chat("hi")
        assert (await gateway.chat("hi")).status_code == 200
        assert len(await gateway.traces(*TAGS)) == 1
    assert refused.status_code == 500
    assert "the device of the database is full" in refused.json()["message"]


async def test_calls_are_found_by_whole_tags_and_by_all_of_them(tmp_path: Path):
    async with a_gateway(tmp_path) as gateway:
        for rollout_id in ("calm-1", "calm-10", "calm-1"):
            path = TAGGED.replace("calm-1", rollout_id)
            await gateway.chat(rollout_id, path=path)
        assert len(await gateway.traces("rollout_id:calm-1")) == 2
        assert len(await gateway.traces("rollout_id:calm-10", "run_id:run")) == 1
        assert len(await gateway.traces("run_id:run", limit=2)) == 2
        for tags in (["rollout_id:calm"], ["calm-1"], ["rollout_id:calm-1", "run_id:other"]):
            assert await gateway.traces(*tags) == []
        assert await gateway.traces("rollout_id:calm%") == []


async def test_the_newest_call_comes_first_and_times_bound_the_list(tmp_path: Path):
    async with a_gateway(tmp_path) as gateway:
        for _ in range(3):
            await gateway.chat()
            gateway.world.clock.time += 3600
        stamps = [trace["timestamp"][11:19] for trace in await gateway.traces(*TAGS)]
        assert stamps == ["02:16:40", "01:16:40", "00:16:40"]
        assert len(await gateway.traces(*TAGS, hours_back=2)) == 2
        between = {
            "from_timestamp": "1970-01-01T01:00:00",
            "to_timestamp": "1970-01-01T03:16:40+01:00",
        }
        assert len(await gateway.traces(*TAGS, **between)) == 1


async def test_somebody_elses_server_is_not_called(tmp_path: Path):
    encoded = base64.urlsafe_b64encode(b"https://models.example/v1").decode()
    async with a_gateway(tmp_path) as gateway:
        answer = await gateway.chat(path=f"{TAGGED}/encoded_base_url/{encoded}")
        assert await gateway.traces() == []
        assert gateway.world.script.asked == []
    assert answer.status_code == 400
    assert answer.json()["message"] == (
        "encoded_base_url: 'https://models.example/v1' is a server that this one does not call; "
        "leave base_url out of completion_params; this server's models answer"
    )


async def test_a_call_that_is_too_large_to_keep_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tracing, "MAX_CALL_BYTES", 1000)
    async with a_gateway(tmp_path) as gateway:
        refused = await gateway.chat("x" * 2000)
        assert (await gateway.chat("x" * 2000, path="/v1")).status_code == 200
    assert refused.status_code == 400
    assert "is larger than 1000 bytes" in refused.json()["message"]


# ── models ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        ("tiny", None),
        ("fireworks_ai/tiny", None),
        (BASE, None),
        (f"fireworks_ai/{BASE}", None),
        ("walk", package(2).sha256),
        ("fireworks_ai/walk/1", package(1).sha256),
        (f"accounts/{SLUG}/models/walk", package(2).sha256),
        (f"fireworks_ai/accounts/{ACCOUNT}/models/walk/1", package(1).sha256),
    ],
)
async def test_a_model_is_named_as_fireworks_clients_name_it(
    model: str, adapter: str | None, tmp_path: Path
):
    async with a_gateway(tmp_path) as gateway:
        await register(gateway.world, package(1), package(2))
        answer = await gateway.chat(model=model)
        (asked,) = gateway.world.script.asked
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    assert asked.adapter_id == adapter


@pytest.mark.parametrize(
    "model",
    [
        "accounts/others/models/walk",
        f"accounts/{SLUG}/models/tiny",
        "accounts/fireworks/models/walk",
        "accounts/fireworks/models/../tiny",
        "accounts/fireworks/deployments/tiny",
        f"accounts/{SLUG}/deployments/mine",
        "small",
    ],
)
async def test_what_is_no_model_of_the_caller_does_not_exist(model: str, tmp_path: Path):
    async with a_gateway(tmp_path) as gateway:
        await register(gateway.world, package(1))
        answer = await gateway.chat(model=model)
        assert await gateway.traces() == []
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert answer.json()["message"].startswith(f"model {model!r} does not exist; GET /v1/models")


@pytest.mark.parametrize(
    ("deployed", "adapter"),
    [(BASE, None), (f"accounts/{SLUG}/models/walk", package(2).sha256)],
)
async def test_a_deployment_is_answered_by_its_model(
    deployed: str, adapter: str | None, tmp_path: Path
):
    async with a_gateway(tmp_path) as gateway:
        await register(gateway.world, package(1), package(2))
        record = Resource(
            account_id=ACCOUNT, kind=KIND, name="mine", body={"model": deployed}, created_at=0.0
        )
        await gateway.world.store.create_resource(record)
        answer = await gateway.chat(model=f"fireworks_ai/accounts/{SLUG}/deployments/mine")
        theirs = await gateway.chat(model="accounts/others/deployments/mine")
        (asked,) = gateway.world.script.asked
    assert answer.status_code == 200, answer.text
    assert asked.adapter_id == adapter
    assert theirs.status_code == 404


async def test_a_key_for_certain_jobs_may_not_ask_a_base_model(tmp_path: Path):
    async with a_gateway(tmp_path) as gateway:
        gateway.world.principal = Principal(account_id=ACCOUNT, job_ids=frozenset({"job_walk"}))
        answer = await gateway.chat()
        listed = await gateway.get("/v1/models")
    assert answer.status_code == 403
    assert answer.json()["message"] == (
        "this key is for certain jobs; base models are the whole account's"
    )
    assert listed.json()["data"] == []


async def test_a_base_model_with_a_broken_recipe_is_not_there(tmp_path: Path):
    async with a_gateway(tmp_path) as gateway:
        (tmp_path / "tiny" / "turnwise-recipe.json").write_text("{")
        answer = await gateway.chat()
    assert answer.status_code == 404


# ── log entries and statuses ──────────────────────────────────────────────────────────────────


async def test_an_entry_is_found_as_it_was_logged(tmp_path: Path):
    extras = {"custom": 5, "logger_name": "rs.calm-1", "level": "WARNING"}
    async with a_gateway(tmp_path) as gateway:
        sent = await gateway.log("done", TAGS[0], "run_id:?", status=FINISHED, extras=extras)
        (entry,) = await gateway.entries(TAGS[0], program="eval_protocol", hours_back=24)
    assert (sent.status_code, sent.json()) == (200, {})
    assert entry == {
        "timestamp": "1970-01-01T00:16:40.000000Z",
        "message": "done",
        "severity": "WARNING",
        "program": "eval_protocol",
        "tags": [TAGS[0], "run_id:?"],
        "status": FINISHED,
        "extras": extras,
    }


async def test_entries_are_of_a_program_and_of_some_hours(tmp_path: Path):
    async with a_gateway(tmp_path) as gateway:
        await gateway.log("old", "t:1")
        gateway.world.clock.time += 7200
        await gateway.log("other", "t:1", program="judge")
        await gateway.log("new", "t:1")
        said = [entry["message"] for entry in await gateway.entries("t:1")]
        recent = [entry["message"] for entry in await gateway.entries("t:1", hours_back=1)]
        judged = [entry["message"] for entry in await gateway.entries("t:1", program="judge")]
        one = [entry["message"] for entry in await gateway.entries("t:1", limit=1)]
    assert (said, recent) == (["new", "other", "old"], ["new", "other"])
    assert (judged, one) == (["other"], ["new"])


async def status_of(gateway: Gateway, rollout_id: str, path: str = "/v1/status") -> Any:
    answer = await gateway.get(path, rollout_id=rollout_id)
    assert answer.status_code == 200, answer.text
    assert answer.json()["rollout_id"] == rollout_id
    return answer.json()["status"]


async def test_a_rollouts_status_is_the_newest_that_ends_it(tmp_path: Path):
    tag = "rollout_id:calm-1"
    async with a_gateway(tmp_path) as gateway:
        await gateway.log("begins", tag)
        await gateway.log("runs", tag, status={"code": 101, "message": "runs", "details": []})
        await gateway.log("nothing", tag, status={"code": None, "message": "?"})
        assert await status_of(gateway, "calm-1") is None
        await gateway.log("failed", tag, status={"code": 13, "message": "m", "details": []})
        await gateway.log("done", tag, status=FINISHED)
        await gateway.log("still", tag, status={"code": 101, "message": "", "details": []})
        for path in ("/status", "/v1/status", "/litellm-gateway/v1/status"):
            assert await status_of(gateway, "calm-1", path) == FINISHED
        for other in ("calm", "calm-10", "calm-_", "rollout_id:calm-1"):
            assert await status_of(gateway, other) is None


async def test_a_long_message_is_cut(tmp_path: Path):
    async with a_gateway(tmp_path) as gateway:
        await gateway.log("x" * 20_000 + "\x00", "t:1")
        (entry,) = await gateway.entries("t:1")
    assert entry["message"] == "x" * 16_384 + "... (3617 more characters)"


BAD_ENTRIES: list[tuple[Any, str]] = [
    (b"{", "body: '{' is not JSON"),
    (b"\xff", "is not UTF-8"),
    (b"[]", "body: '[]' must be a JSON object"),
    (b'{"tags": ["t:1"], "extras": {"a": NaN}}', "NaN is no number"),
    ({"message": "m"}, "tags: None must be a list of texts; as ['rollout_id:ID']"),
    ({"tags": []}, "tags: [] holds no tag; send one at least, as 'rollout_id:ID'"),
    ({"tags": [1]}, "tags: [1] must be a list of texts"),
    ({"tags": [""]}, "tags: '' is not of 1 to 256 characters"),
    ({"tags": ["t" * 257]}, "is not of 1 to 256 characters"),
    ({"tags": ["t:\x00"]}, "NUL is none of them"),
    ({"tags": ["t:1"] * 33}, "tags: 33 are more than 32"),
    ({"tags": ["t:1"], "message": 1}, "message: 1 must be a text"),
    ({"tags": ["t:1"], "program": "p" * 129}, "is not of 1 to 128 characters"),
    ({"tags": ["t:1"], "severity": "s" * 33}, "is not of 1 to 32 characters"),
    ({"tags": ["t:1"], "extras": []}, "extras: [] must be an object or null"),
    ({"tags": ["t:1"], "status": 100}, "status: 100 must be an object or null"),
    ({"tags": ["t:1"], "status": {"code": "OK"}}, "status.code: 'OK' is not a status code"),
    ({"tags": ["t:1"], "status": {"code": -1}}, "use 0 to 16, or 100 to 103"),
    ({"tags": ["t:1"], "message": "x" * 300_000}, "is larger than 262144 bytes"),
]


@pytest.mark.parametrize(("body", "said"), BAD_ENTRIES)
async def test_a_bad_entry_is_refused_and_nothing_is_kept(body: Any, said: str, tmp_path: Path):
    async with a_gateway(tmp_path) as gateway:
        answer = await gateway.post("/v1/logs", body)
        assert await gateway.entries() == []
    assert answer.status_code == 400
    assert said in answer.json()["message"]
    assert answer.json() == {"code": 3} | dict.fromkeys(
        ("message", "detail"), answer.json()["message"]
    )


@pytest.mark.parametrize(
    ("path", "params", "said"),
    [
        ("/logs", {"limit": "many"}, "limit: 'many' must be a whole number"),
        ("/logs", {"limit": 0}, "limit: 0 must be from 1 to 1000"),
        ("/traces/pointwise", {"limit": 1001}, "limit: 1001 must be from 1 to 1000"),
        ("/logs", {"hours_back": "1.5"}, "hours_back: '1.5' must be a whole number"),
        ("/logs", {"user": "me"}, "user: 'me' is not known here; use hours_back, limit, "),
        ("/logs", {"tags": [""]}, "tags: '' is not of 1 to 256 characters"),
        ("/status", {}, "rollout_id: '' is required; ?rollout_id=ID"),
        ("/traces/pointwise", {"user_id": "me"}, "user_id: 'me' is not known here"),
        ("/traces/pointwise", {"sample_size": 5}, "sample_size: '5' is not known here"),
        ("/traces/pointwise", {"from_timestamp": "now"}, "from_timestamp: 'now' is not a moment"),
    ],
)
async def test_a_bad_query_names_what_is_wrong(
    path: str, params: dict[str, Any], said: str, tmp_path: Path
):
    async with a_gateway(tmp_path) as gateway:
        answer = await gateway.get(path, **params)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]


async def test_another_method_says_which_are_there(tmp_path: Path):
    async with a_gateway(tmp_path) as gateway:
        answer = await gateway.post("/v1/status", {})
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


# ── who may ───────────────────────────────────────────────────────────────────────────────────


async def test_another_accounts_traces_and_entries_do_not_show(tmp_path: Path):
    async with a_gateway(tmp_path) as gateway:
        await gateway.chat()
        await gateway.log("done", TAGS[0], status=FINISHED)
        gateway.world.principal = Principal(account_id="acc_other")
        assert await gateway.traces() == await gateway.traces(*TAGS) == []
        assert await gateway.entries() == await gateway.entries(TAGS[0]) == []
        assert await status_of(gateway, "calm-1") is None
        await gateway.log("theirs", TAGS[0])
        assert [entry["message"] for entry in await gateway.entries(TAGS[0])] == ["theirs"]


async def test_each_call_needs_its_right(tmp_path: Path):
    async with a_gateway(tmp_path) as gateway:
        everything = gateway.world.principal
        for action, said in ((Action.READ, "read"), (Action.REPORT, "report")):
            others = frozenset(Action) - {action}
            gateway.world.principal = replace(everything, actions=others)
            answers = [
                await gateway.get("/logs"),
                await gateway.get("/traces/pointwise"),
                await gateway.get("/status", rollout_id="x"),
                await gateway.log("m", "t:1"),
            ]
            refused = [answer for answer in answers if answer.status_code == 403]
            assert len(refused) == (3 if action is Action.READ else 1)
            for answer in refused:
                assert answer.json()["detail"] == f"this key may not {said}"
                assert answer.json()["code"] == 7
        gateway.world.principal = replace(everything, job_ids=frozenset({"job_walk"}))
        answer = await gateway.get("/logs")
    assert answer.json()["detail"] == (
        "this key is for certain jobs; traces are the whole account's"
    )


async def test_without_the_key_nothing_is_said(tmp_path: Path):
    async with a_gateway(tmp_path) as gateway:
        for headers, said in (
            ({}, "no key: send 'Authorization: Bearer <access key>'"),
            ({"Authorization": "Basic eA=="}, "no key: send"),
            ({"Authorization": "Bearer wrong"}, "this key does not exist"),
        ):
            answer = await replace(gateway, headers=headers).get("/logs", tags="t:1")
            assert (answer.status_code, answer.json()["code"]) == (401, 16)
            assert said in answer.json()["detail"]


async def test_a_fault_of_ours_is_said_without_its_details(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with a_gateway(tmp_path) as gateway:

        async def broken(*arguments: Any) -> None:
            raise RuntimeError("a secret")

        monkeypatch.setattr(gateway.world.store, "traced_logs", broken)
        answer = await gateway.get("/logs")
    assert (answer.status_code, answer.json()["message"]) == (500, "internal error")
