from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from turnwise import errors
from turnwise.agents.scorers import MAX_HANGING, HttpScorer, PythonScorer, open_scorers
from turnwise.domain.evaluation import Finished, Score
from turnwise.domain.job import ScorerSpec

FINISHED = Finished(
    rollout_id="rol_a",
    model="walk/3",
    row_index=4,
    row={"prompt": "2 + 2", "answer": 4},
    prompt="2 + 2",
    label="easy",
    messages=({"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}),
    reward=1.0,
    rewards=(0.25, 0.75),
    metrics={"speed": 2.0},
)
BODY = {
    "rollout_id": "rol_a",
    "model": "walk/3",
    "row_index": 4,
    "row": {"prompt": "2 + 2", "answer": 4},
    "prompt": "2 + 2",
    "label": "easy",
    "messages": [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}],
    "reward": 1.0,
    "rewards": [0.25, 0.75],
    "metrics": {"speed": 2.0},
}


def is_right(rollout: dict[str, Any]) -> bool:
    """What a user's module would hold."""
    return bool(rollout["messages"][-1]["content"] == str(rollout["row"]["answer"]))


class BadRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


async def ask(function: Callable[[Any], Any], *, timeout: float = 5.0) -> Score:
    return await PythonScorer(ScorerSpec(name="judge", timeout=timeout), function).score(FINISHED)


async def test_a_function_gets_the_row_the_conversation_and_the_reward() -> None:
    [scorer] = open_scorers([ScorerSpec(name="right", target=f"{__name__}:is_right")])
    assert await scorer.score(FINISHED) == Score(scorer="right", rollout_id="rol_a", value=1.0)
    await scorer.close()
    seen: list[Any] = []
    await ask(lambda rollout: seen.append(rollout) or 0)
    assert seen == [BODY]


async def test_a_function_may_change_what_it_gets_for_it_gets_its_own() -> None:
    finished = replace(FINISHED, row={"steps": [1, 2]})
    scorer = PythonScorer(
        ScorerSpec(name="judge"), lambda rollout: rollout["row"]["steps"].pop() and 1.0
    )

    assert [(await scorer.score(finished)).value for _ in range(3)] == [1.0] * 3
    assert finished.row == {"steps": [1, 2]}


async def later(rollout: dict[str, Any]) -> float:
    await asyncio.sleep(0)
    return 0.5


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (lambda rollout: 3, 3.0),
        (lambda rollout: {"score": 0.25, "why": "half"}, 0.25),
        (lambda rollout: np.float32(0.5), 0.5),
        (lambda rollout: False, 0.0),
        (later, 0.5),
    ],
)
async def test_numbers_are_read_however_they_are_given(
    function: Callable[[Any], Any], value: float
) -> None:
    assert (await ask(function)).value == value


def raises(rollout: object) -> None:
    raise ValueError("no such answer")


def leaves(rollout: object) -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (raises, "raised ValueError('no such answer')"),
        (leaves, "raised SystemExit(3)"),
        (lambda rollout: math.nan, "gave nan, which is not a finite number"),
        (lambda rollout: {"score": math.inf}, "gave inf, which is not a finite number"),
        (lambda rollout: "0.5", "gave no number: '0.5'"),
        (lambda rollout: None, "gave no number: None"),
        (lambda rollout: {"points": 1}, "gave no number: {'points': 1}"),
        (lambda rollout: 10**400, "gave no number: "),
        (lambda rollout: BadRepr(), "gave no number: <BadRepr instance at"),
    ],
)
async def test_what_a_function_does_wrong_costs_its_score_and_is_named(
    function: Callable[[Any], Any], problem: str
) -> None:
    score = await ask(function)

    assert score.value is None
    assert score.problem.startswith(problem)


async def test_a_function_that_hangs_costs_its_scores_and_is_not_called_for_ever() -> None:
    may_end = threading.Event()
    scorer = PythonScorer(
        ScorerSpec(name="slow", timeout=0.02), lambda rollout: may_end.wait(10) and 1.0
    )
    scores = await asyncio.gather(*(scorer.score(FINISHED) for _ in range(MAX_HANGING)))

    assert {score.problem for score in scores} == {"no answer in 0.02 s"}
    assert (
        await scorer.score(FINISHED)
    ).problem == "not called: 16 earlier calls have not returned"
    may_end.set()
    while (score := await scorer.score(FINISHED)).value is None:  # its threads come back
        await asyncio.sleep(0.001)
    assert score.value == 1.0


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_module:f", "cannot be imported (No module named 'no_such_module')"),
        ("math:no_such_name", "cannot be imported (module 'math' has no attribute 'no_such_name')"),
        ("math:pi", "is not a function"),
        ("tests.unit.agents.breaks_at_import:f", "cannot be imported (ZeroDivisionError: "),
    ],
)
async def test_a_function_that_cannot_be_imported_is_refused_by_its_setting(
    target: str, said: str
) -> None:
    with pytest.raises(errors.InvalidInput) as refused:
        open_scorers([ScorerSpec(name="a", url="http://x"), ScorerSpec(name="b", target=target)])

    assert str(refused.value).startswith(f"evaluation.scorers[1].target: {target!r} {said}")


# ── over HTTP ─────────────────────────────────────────────────────────────────────────────────

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def endpoint(answer: Answer, **spec: Any) -> AsyncIterator[tuple[HttpScorer, list[float]]]:
    """A scorer that asks a server which answers so, and how long it has waited between tries."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    app = web.Application()
    app.router.add_post("/score", answer)
    async with TestServer(app) as server:
        url = str(server.make_url("/score"))
        scorer = HttpScorer(ScorerSpec(name="judge", url=url, **spec), sleep=sleep)
        yield scorer, waits
        await scorer.close()


async def test_an_endpoint_gets_the_same_mapping_as_json() -> None:
    seen: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(await request.json())
        return web.json_response({"score": 0.75})

    async with endpoint(answer) as (scorer, waits):
        assert await scorer.score(FINISHED) == Score(scorer="judge", rollout_id="rol_a", value=0.75)
    assert (seen, waits) == ([BODY], [])


async def test_an_endpoint_that_is_busy_is_asked_again() -> None:
    statuses = iter([503, 429, 200])

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=next(statuses), text="1")

    async with endpoint(answer) as (scorer, waits):
        assert (await scorer.score(FINISHED)).value == 1.0
    assert waits == [0.5, 2.0]


@pytest.mark.parametrize(
    ("status", "text", "problem", "tries"),
    [
        (500, "out of order", "answered 500: out of order", 3),
        (422, "no label", "answered 422: no label", 1),
        (200, "oops", "answered no JSON: oops", 1),
        (200, "NaN", "gave nan, which is not a finite number", 1),
        (200, '{"score": "high"}', "gave no number: {'score': 'high'}", 1),
    ],
)
async def test_what_an_endpoint_does_wrong_costs_its_score_and_is_named(
    status: int, text: str, problem: str, tries: int
) -> None:
    seen = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal seen
        seen += 1
        return web.Response(status=status, text=text)

    async with endpoint(answer) as (scorer, _):
        score = await scorer.score(FINISHED)
    assert (score.value, score.problem, seen) == (None, problem, tries)


async def test_an_endpoint_that_does_not_answer_or_is_not_there_costs_its_score() -> None:
    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(10)
        raise AssertionError

    async with endpoint(hang, timeout=0.02) as (scorer, waits):
        assert (await scorer.score(FINISHED)).problem == "no answer in 0.02 s"
    assert len(waits) == 2

    url = f"http://127.0.0.1:{unused_port()}"
    scorer = HttpScorer(ScorerSpec(name="judge", url=url), sleep=lambda _: asyncio.sleep(0))
    assert (await scorer.score(FINISHED)).problem.startswith("cannot be reached: ")
    await scorer.close()


async def test_what_json_cannot_hold_is_named_before_anything_is_sent() -> None:
    async def answer(request: web.Request) -> web.Response:
        raise AssertionError

    async with endpoint(answer) as (scorer, _):
        score = await scorer.score(replace(FINISHED, row={"when": object()}))
    assert score.problem.startswith("the rollout cannot be written as JSON: Object of type object")
