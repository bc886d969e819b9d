from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from tests.unit.agents.door import Door
from tests.unit.agents.test_http import request
from turnwise import errors
from turnwise.agents import PythonAgent, PythonRollout, open_runner
from turnwise.domain.job import AgentKind, AgentSpec
from turnwise.ports import AgentOutcome, AgentRequest

HERE = "tests.unit.agents.test_python"


async def answers_later(request: AgentRequest) -> Mapping[str, Any]:
    await asyncio.sleep(0)
    return {"metrics": {"letters": len(request.prompt)}}


def answers_from_a_thread(request: AgentRequest) -> Mapping[str, Any]:
    return {"metrics": {"is_main": threading.current_thread() is threading.main_thread()}}


async def breaks(request: AgentRequest) -> None:
    raise KeyError("tool")


async def hangs(request: AgentRequest) -> None:
    await asyncio.Event().wait()


async def asks_and_grades(request: PythonRollout) -> Mapping[str, Any]:
    messages = [{"role": "user", "content": request.prompt}]
    reply = await request.chat(messages, temperature=0.5)
    said = reply["choices"][0]["message"]["content"]
    return {"reward": [0.5, 1], "metrics": {"letters": len(said)}}


def grades_from_a_thread(request: PythonRollout) -> Mapping[str, Any]:
    return {"reward": 1}


async def grades_with_a_word(request: PythonRollout) -> Mapping[str, Any]:
    return {"reward": "good"}


async def streams(request: PythonRollout) -> None:
    await request.chat([], stream=True)


async def outcome(target: str, door: Door | None = None, **changes: Any) -> AgentOutcome:
    runner = PythonAgent(f"{HERE}:{target}", door or Door())
    try:
        [only] = [outcome async for outcome in runner.run([request(**changes)])]
    finally:
        await runner.close()
    return only


async def test_a_coroutine_function_runs_in_the_loop_and_gives_its_metrics() -> None:
    assert (await outcome("answers_later")).metrics == {"letters": 12.0}


async def test_a_plain_function_runs_in_a_thread() -> None:
    assert (await outcome("answers_from_a_thread")).metrics == {"is_main": 0.0}


async def test_a_function_calls_its_model_and_returns_its_reward() -> None:
    door = Door()
    assert await outcome("asks_and_grades", door) == AgentOutcome(rollout_id="rollout_a")
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": request().prompt}],
        "temperature": 0.5,
    }
    assert door.calls == [
        ("rollout_a", body),
        ("rollout_a", (0.5, 1.0), {"letters": 5.0}),
    ]


async def test_a_plain_function_returns_its_reward_as_well() -> None:
    door = Door()
    assert await outcome("grades_from_a_thread", door) == AgentOutcome(rollout_id="rollout_a")
    assert door.calls == [("rollout_a", (1.0,), {})]


async def test_a_function_without_a_reward_reports_for_itself() -> None:
    door = Door()
    await outcome("answers_later", door)
    assert door.calls == []


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            "grades_with_a_word",
            "InvalidInput: reward: 'good' is no number and no list of numbers; return one of them",
        ),
        (
            "streams",
            "InvalidInput: stream: True is not possible in process; call request.endpoint",
        ),
    ],
)
async def test_a_wrong_value_is_the_agents_fault(target: str, said: str) -> None:
    door = Door()
    fault = (await outcome(target, door)).fault
    assert fault is not None
    assert (fault.blame, fault.code, fault.message) == ("agent", "agent_error", said)
    assert door.calls == []


async def test_an_exception_of_the_agent_is_its_fault() -> None:
    fault = (await outcome("breaks")).fault
    assert fault is not None
    assert (fault.blame, fault.code, fault.message) == ("agent", "agent_error", "KeyError: 'tool'")


async def test_an_agent_that_does_not_return_runs_into_its_deadline() -> None:
    fault = (await outcome("hangs", timeout_s=0.02)).fault
    assert fault is not None
    assert (fault.code, fault.message) == ("deadline", "the agent did not return in 0.02 s")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("walk", 'names no function; use "package.module:function"'),
        ("nowhere:walk", "cannot be imported (No module named 'nowhere')"),
        (f"{HERE}:walk", "has no attribute 'walk'"),
        (f"{HERE}:HERE", "is not a function"),
    ],
)
def test_a_target_that_is_no_function_is_refused(target: str, said: str) -> None:
    with pytest.raises(errors.InvalidInput) as raised:
        open_runner(AgentSpec(kind=AgentKind.PYTHON, target=target), Door())
    assert str(raised.value).startswith(f"agent.target: {target!r} ")
    assert said in str(raised.value)
