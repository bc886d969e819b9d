"""A run's own tracing gateway: what RemoteRolloutProcessor and its server ask for, over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from tests import builders
from tests.unit.gateway.kit import KEY, World, a_world, assistant, user
from tests.wire.listening import listening
from tests.wire.served import a_browser, a_serving, data_plane
from turnwise.control.traces import Traces
from turnwise.evaluators.runs import Run, Runs
from turnwise.system import new_id
from turnwise.wire.fireworks.tracing import TracingDoor

TAGS = ["rollout_id:odd-1", "run_id:r", "row_id:w"]
PATH = "/rollout_id/odd-1/run_id/r/row_id/w/chat/completions"


@dataclass
class Asking:
    """Two runs of one rollout each, the account's own gateway, and a client of them."""

    world: World
    browser: httpx.AsyncClient
    url: str
    ours: Run
    other: Run

    async def get(self, run: Run, path: str, **params: Any) -> Any:
        answered = await self.browser.get(
            f"{self.url}{run.path}/litellm-gateway{path}", params=params
        )
        assert answered.status_code == 200, answered.text
        return answered.json()

    async def chat(self, run: Run, *messages: Any, path: str = PATH) -> Any:
        answered = await self.browser.post(
            f"{self.url}{run.path}/litellm-gateway{path}",
            json={"model": "m", "messages": list(messages)},
        )
        assert answered.status_code == 200, answered.text
        return answered.json()["choices"][0]["message"]

    async def log(self, where: str, code: int | None, message: str, tags: list[str] = TAGS) -> None:
        status = None if code is None else {"code": code, "message": message, "details": []}
        answered = await self.browser.post(
            f"{self.url}{where}/litellm-gateway/logs",
            json={"message": message, "tags": tags, "status": status, "extras": {"k": 1}},
            headers={"authorization": f"Bearer {KEY}"},
        )
        assert answered.status_code == 200, answered.text

    async def status(self, run: Run, their_id: str = "odd-1") -> Any:
        return (await self.get(run, "/v1/status", rollout_id=their_id))["status"]


@contextlib.asynccontextmanager
async def asking(*replies: str) -> AsyncIterator[Asking]:
    async with a_world(*replies, opened=False) as world:
        runs, serving = Runs(new_id), a_serving(world)
        for slot, name in enumerate(("rollout_a", "rollout_b")):
            await world.open(name, slot=slot, created_at=world.clock.now())
        plane = data_plane(world, serving, runs=runs)

        async def holder(key: str) -> Any:
            assert key == KEY
            return world.principal

        traces = Traces(world.store, world.clock, retention_days=30)
        gateway = TracingDoor(traces, holder, world.clock)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await (plane if plane.owns(scope["path"]) else gateway)(scope, receive, send)

        async with listening(app, http="httptools") as url, a_browser() as browser:
            yield Asking(
                world,
                browser,
                url,
                runs.open(builders.ACCOUNT, ["rollout_a"]),
                runs.open(builders.ACCOUNT, ["rollout_b"]),
            )
        await serving.close()


async def test_a_remote_rollout_is_asked_after_until_its_status_and_its_calls_are_there() -> None:
    async with asking("one", "two") as its:
        assert await its.status(its.ours) is None
        said = await its.chat(its.ours, user("hi"))
        await its.chat(its.ours, user("hi"), assistant(said["content"]), user("more"))
        await its.log(its.ours.path, 101, "still at it")
        assert await its.status(its.ours) is None
        await its.log(its.ours.path, 100, "done")
        assert (await its.status(its.ours))["code"] == 100
        logged = await its.get(its.ours, "/logs", tags="rollout_id:odd-1", program="eval_protocol")
        assert [entry["message"] for entry in logged["entries"]] == ["done", "still at it"]
        assert logged["entries"][0]["tags"] == TAGS
        assert logged["entries"][0]["extras"] == {"k": 1}
        found = await its.get(its.ours, "/v1/traces/pointwise", tags="rollout_id:odd-1")
        assert found["total_traces"] == 2
        texts = [
            [*(m["content"] for m in trace["input"]["messages"]), trace["output"]["content"]]
            for trace in found["traces"]
        ]
        assert sorted(texts, key=len) == [["hi", "one"], ["hi", "one", "more", "two"]]
        assert found["traces"][0]["tags"] == TAGS
        kept = await its.world.trajectory("rollout_a")
        assert {trace["id"] for trace in found["traces"]} == {t.turn_id for t in kept.turns}


async def test_payloads_are_the_tokens_that_were_trained() -> None:
    async with asking("one") as its:
        await its.chat(its.ours, user("hi"))
        found = await its.get(
            its.ours, "/v1/traces/pointwise", tags="rollout_id:odd-1", include_payloads="True"
        )
        kept = await its.world.trajectory("rollout_a")
        manifest = found["traces"][0]["payloads"]["logprobs"]["manifest"]
        assert manifest["token_count"] == len(kept.nodes[1].tokens)


async def test_a_run_never_sees_another_runs_calls_or_entries() -> None:
    async with asking("one") as its:
        await its.chat(its.other, user("hi"))
        await its.log(its.other.path, 13, "the other's")
        assert await its.status(its.ours) is None
        for path in ("/logs", "/v1/traces/pointwise"):
            found = await its.get(its.ours, path, tags="rollout_id:odd-1")
            assert next(found[name] for name in ("entries", "traces") if name in found) == []
        assert await its.get(its.ours, "/logs", tags=f"turnwise_run:{its.other.run_id}") == {
            "entries": []
        }
        assert (await its.status(its.other))["message"] == "the other's"


async def test_what_a_server_logs_at_the_accounts_gateway_is_found_from_its_rollouts_start() -> (
    None
):
    async with asking() as its:
        its.world.clock.time -= 1
        await its.log("", 13, "of an earlier rollout of that name")
        its.world.clock.time += 1
        assert await its.status(its.ours) is None
        await its.log("", 13, "the tool broke")
        assert (await its.status(its.ours))["message"] == "the tool broke"
        logged = await its.get(its.ours, "/logs", tags="rollout_id:odd-1")
        assert [entry["message"] for entry in logged["entries"]] == ["the tool broke"]
        # The run has one rollout: an id beside it is nobody's.
        await its.log("", 13, "somebody else's", ["rollout_id:odd-2"])
        assert await its.status(its.ours, "odd-2") is None


async def test_a_rollout_that_fails_before_it_speaks_has_its_name_for_its_row() -> None:
    async with asking() as its:
        await its.log(its.ours.path, 13, "no browser")
        assert dict(its.ours.joining.names) == {"odd-1": "rollout_a"}
        assert (await its.status(its.ours))["code"] == 13


async def test_wrong_requests_are_refused_in_the_words_of_the_gateway() -> None:
    async with asking() as its:
        at = f"{its.url}{its.ours.path}"
        wrong = await its.browser.get(f"{at}/logs", params={"colour": "red"})
        assert (wrong.status_code, wrong.json()["code"]) == (400, 3)
        assert wrong.json()["detail"].startswith("colour: 'red' is not known here")
        stranger = await its.browser.get(f"{its.url}/e/{its.ours.run_id}.wrong/v1/status")
        assert (stranger.status_code, stranger.json()["code"]) == (401, 16)
        for method, path, allow in (("PUT", "/logs", "GET, POST"), ("POST", "/status", "GET")):
            refused = await its.browser.request(method, f"{at}{path}")
            assert (refused.status_code, refused.headers["allow"]) == (405, allow)
        elsewhere = await its.browser.post(
            f"{at}/rollout_id/odd-1/encoded_base_url/aHR0cDovL2g=/chat/completions",
            json={"model": "m", "messages": [user("hi")]},
        )
        assert elsewhere.status_code == 400
        assert "is a server that this one does not call" in elsewhere.text
        assert (await its.world.trajectory("rollout_a")).turns == ()
