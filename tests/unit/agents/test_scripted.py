from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.unit.agents.door import Door
from tests.unit.agents.test_http import request
from turnwise import errors
from turnwise.agents import open_runner
from turnwise.agents.scripted import Behaviour, ScriptedAgent, always, log_normal
from turnwise.domain.job import AgentKind, AgentSpec
from turnwise.ports import AgentOutcome, AgentRequest

SCRIPT = {"prompt": "Count", "script": ["Again"], "reward": 0.5}


class Endpoint:
    """Keeps the calls and answers them all."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Mapping[str, Any]]] = []

    async def __call__(
        self, request: AgentRequest, path: str, body: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        messages = [dict(message) for message in body.get("messages", ())]
        self.calls.append((path, {**body, "messages": messages} if messages else body))
        return {"choices": [{"message": {"role": "assistant", "content": "one"}}]}

    async def close(self) -> None:
        pass


async def play(agent: ScriptedAgent) -> AgentOutcome:
    sent = request(prompt="Count", fields=SCRIPT)
    [only] = [outcome async for outcome in agent.run([sent])]
    return only


async def test_it_says_the_prompt_and_the_script_and_reports_the_reward() -> None:
    endpoint = Endpoint()
    outcome = await play(ScriptedAgent(endpoint))

    count = {"role": "user", "content": "Count"}
    one = {"role": "assistant", "content": "one"}
    again = {"role": "user", "content": "Again"}
    subject = {"JobArn": request().job_arn, "TrajectoryId": "rollout_a"}
    assert endpoint.calls == [
        ("/v1/chat/completions", {"model": "default", "messages": [count]}),
        ("/v1/chat/completions", {"model": "default", "messages": [count, one, again]}),
        ("/complete-rollout", {**subject, "Status": "ready"}),
        ("/update-reward", {**subject, "Rewards": [0.5]}),
    ]
    assert outcome == AgentOutcome(rollout_id="rollout_a", metrics={"replies": 2.0})


@pytest.mark.parametrize(
    ("behaviour", "paths"),
    [
        (Behaviour.NO_REWARD, ["/complete-rollout"]),
        (Behaviour.ABORT, ["/complete-rollout"]),
        (Behaviour.ANSWER_500, []),
    ],
)
async def test_it_misbehaves_as_told(behaviour: Behaviour, paths: list[str]) -> None:
    endpoint = Endpoint()
    outcome = await play(ScriptedAgent(endpoint, behaviour=always(behaviour)))

    assert [path for path, _ in endpoint.calls if "chat" not in path] == paths
    assert (outcome.fault is None) == (behaviour is not Behaviour.ANSWER_500)


async def test_a_call_that_is_refused_is_the_rollouts_fault() -> None:
    class Refusing(Endpoint):
        async def __call__(
            self, request: AgentRequest, path: str, body: Mapping[str, Any]
        ) -> Mapping[str, Any]:
            raise errors.Unavailable("/complete-rollout answered 409")

    fault = (await play(ScriptedAgent(Refusing()))).fault
    assert fault is not None
    assert (fault.code, fault.message) == ("agent_error", "/complete-rollout answered 409")


async def test_its_latency_is_waited_before_each_turn() -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    latency = log_normal(2.0, 0.5)
    await play(ScriptedAgent(Endpoint(), latency=latency, sleep=sleep))

    assert waited == [latency(request())] * 2
    drawn = [latency(request(f"rollout_{i}")) for i in range(999)]
    assert median(drawn) == pytest.approx(2.0, rel=0.1)


async def test_as_a_jobs_agent_it_talks_http_to_its_endpoint() -> None:
    paths: list[str] = []

    async def reply(received: web.Request) -> web.Response:
        paths.append(received.path)
        if received.path.endswith("/update-reward"):
            return web.Response(status=409, text="no")
        return web.json_response({"choices": [{"message": {"content": "one"}}]})

    app = web.Application()
    app.router.add_post("/{any:.*}", reply)
    server = TestServer(app)
    await server.start_server()
    runner = open_runner(AgentSpec(kind=AgentKind.SCRIPTED), Door())
    sent = request(endpoint=str(server.make_url("/r/secret")), fields={})
    [outcome] = [outcome async for outcome in runner.run([sent])]
    await runner.close()
    await server.close()

    assert paths == [
        f"/r/secret{path}"
        for path in ("/v1/chat/completions", "/complete-rollout", "/update-reward")
    ]
    assert outcome.fault is not None
    assert outcome.fault.message == "/update-reward answered 409: no"
