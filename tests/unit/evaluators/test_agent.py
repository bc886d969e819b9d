"""An uploaded evaluator as a job's agent: a real process in a sandbox, over the real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.unit.evaluators.kit import STUB, Playground, a_playground, packed
from turnwise import errors
from turnwise.domain.evaluator import EvaluatorState
from turnwise.domain.rollout import Fault, RolloutStatus
from turnwise.evaluators.agent import EvaluatorAgent
from turnwise.evaluators.room import Terms

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Most rollouts of one run here.
SIZE = 4

#: As `@evaluation_test` marks a test whose rollouts are made elsewhere.
REMOTE = """
class RemoteRolloutProcessor: pass
class Ours(RemoteRolloutProcessor): pass
class Parameters: mode, rollout_processor = "pointwise", Ours()
test_rollouts.__ep_params__ = Parameters
"""

HANG = "import time; open('started', 'w').close(); time.sleep(600)"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_playground(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Playground]:
    async with a_playground(tmp_path_factory.mktemp("playground")) as play:
        yield play


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def warm(module_playground: Playground) -> EvaluatorAgent:
    """The stub's one process for all tests that leave it as it was."""
    return await module_playground.agent(size=SIZE)


@pytest.fixture
def play(module_playground: Playground) -> Playground:
    """The module's playground, whose model says "hello" and whose log is empty."""
    module_playground.says("hello")
    module_playground.log.entries.clear()
    return module_playground


def codes(outcomes: dict[str, Fault | None]) -> list[str]:
    return [fault.code if fault else "" for fault in outcomes.values()]


async def test_one_run_scores_the_rollouts_of_a_group_each_by_what_it_said(
    play: Playground, warm: EvaluatorAgent
) -> None:
    play.says("a", "bb", "ccc")
    outcomes = await play.outcomes(warm, await play.requests(3))
    assert codes(outcomes) == ["", "", ""]
    for rollout_id in outcomes:
        kept = await play.world.trajectory(rollout_id)
        (node,) = [node for node in kept.nodes if node.logprobs is not None]
        said = node.messages[0]["content"]
        assert kept.rollout.status is RolloutStatus.REWARDED
        assert kept.rollout.rewards == (float(len(said)),)
        assert kept.rollout.metrics == {"letters": float(len(said))}
        (told,) = [text for _, text, rollout in play.log.entries if rollout == rollout_id]
        assert json.loads(told)["reason"] == f"said {said}"
        assert kept.rollout.reason == f"said {said}"
    printed = await play.log.until("1 passed")
    assert printed.count("1 passed") == 1  # one run for the group
    assert "secret" not in printed


async def test_a_groups_later_attempts_are_a_later_run_of_the_same_process(
    play: Playground, warm: EvaluatorAgent
) -> None:
    assert codes(await play.outcomes(warm, await play.requests(1))) == [""]
    host = warm.host
    assert codes(await play.outcomes(warm, await play.requests(1))) == [""]
    assert warm.host is host
    assert host is not None
    assert host.forks


def by_number(*deeds: str) -> str:
    """Python that does the n-th deed for a run's n-th row."""
    return f"exec({list(deeds)!r}[number], globals())"


#: What an evaluation does with the rows of a run, and what the faults of its rollouts then say.
FAULTS: tuple[tuple[dict[str, Any], list[tuple[str, str]]], ...] = (
    (
        {
            "after": by_number(
                "row['evaluation_result'].update(is_score_valid=False, reason='no judge')",
                "row['rollout_status'] = {'code': 13, 'message': 'the tool broke'}",
                "row['evaluation_result']['score'] = None",
                "row['is_kept'] = False",
            )
        },
        [
            ("no_row", "left no row for it: "),
            ("no_score", "no finite"),
            ("rollout_error", "the tool broke"),
            ("score_invalid", "no judge"),
        ],
    ),
    (
        {"after": "row['execution_metadata'] = {}"},
        [("unjoined", "2 rows of its run hold no id")] * 2,
    ),
    (
        {"before": "import os; os._exit(3)"},
        [("evaluator_crashed", "ended with code 3")] * 2,
    ),
    (
        {"before": "import os; os.kill(os.getpid(), 9)"},
        [("evaluator_crashed", "was killed by signal 9")] * 2,
    ),
)


async def test_what_goes_wrong_in_a_run_is_a_fault_that_says_it(
    play: Playground, warm: EvaluatorAgent
) -> None:
    for fields, expected in FAULTS:
        outcomes = await play.outcomes(warm, await play.requests(len(expected), **fields))
        faults = sorted(outcomes.values(), key=lambda fault: str(fault.code))
        for fault, (code, message) in zip(faults, expected, strict=True):
            assert (fault.code, fault.is_fatal) == (code, False)
            assert message in fault.message
            assert fault.retryable is (code == "evaluator_crashed")
        for rollout_id in outcomes:
            assert (await play.world.trajectory(rollout_id)).rollout.rewards is None
    # The process has stood all that: the next group is scored, a sibling that fails apart.
    mixed = await play.outcomes(warm, await play.requests(2, before="if number: 1 / 0"))
    assert sorted(codes(mixed)) == ["", "no_row"]
    (fault,) = filter(None, mixed.values())
    assert "ZeroDivisionError" in fault.message


async def test_a_single_row_without_ids_is_that_of_the_single_rollout(
    play: Playground, warm: EvaluatorAgent
) -> None:
    """And one more conversation than there are rollouts is refused, with the reason."""
    more = (
        "import urllib.error\n"
        "answer = chat(params, row['messages'])\n"
        "try: chat(params, row['messages'])\n"
        "except urllib.error.HTTPError as error: refused = error.read().decode()"
    )
    after = "row['execution_metadata'] = {}; row['evaluation_result']['reason'] = refused"
    requests = await play.requests(1, before=more, after=after)
    assert codes(await play.outcomes(warm, requests)) == [""]
    assert "this run has 1 rollouts" in await play.log.until("this run has 1 rollouts")


async def test_a_row_cannot_speak_for_another_runs_rollout(
    play: Playground, warm: EvaluatorAgent
) -> None:
    """Ids are joined within the run alone, and messages in a row are not believed."""
    await play.world.open("rollout_z", group_id="grp_a", slot=99)
    forged = "row['execution_metadata']['raw_output'] = {'turn_id': 'rollout_z'}"
    lies = "row['messages'].append({'role': 'assistant', 'content': 'never said'})"
    requests = await play.requests(2, after=f"{forged}; {lies}")
    assert codes(await play.outcomes(warm, requests)) == ["unjoined", "unjoined"]
    untouched = await play.world.trajectory("rollout_z")
    assert untouched.rollout.status is RolloutStatus.PENDING
    kept = await play.world.trajectory(requests[0].rollout_id)
    assert "never said" not in str(kept.nodes)


async def test_ids_in_the_path_say_whose_a_conversation_is(
    play: Playground, warm: EvaluatorAgent
) -> None:
    """As RemoteRolloutProcessor's do; the second call holds no id of ours."""
    twice = (
        "path = f'/rollout_id/odd-{number}/run_id/r/row_id/x'\n"
        "first = chat(params, row['messages'], path)['choices'][0]['message']\n"
        "asked = row['messages'] + [first, {'role': 'user', 'content': 'more'}]\n"
        "answer = chat(params, asked, path)"
    )
    named = "row['execution_metadata'] = {'rollout_id': f'odd-{number}'}"
    play.says("a", "bb", "ccc")
    outcomes = await play.outcomes(warm, await play.requests(2, before=twice, after=named))
    assert codes(outcomes) == ["", ""]
    for rollout_id in outcomes:
        kept = await play.world.trajectory(rollout_id)
        assert len(kept.turns) == 2
        last = kept.path(kept.turns[-1].leaf)[-1].messages[0]["content"]
        assert kept.rollout.rewards == (float(len(last)),)


async def test_rollouts_that_nobody_waits_for_end_their_run(
    play: Playground, warm: EvaluatorAgent
) -> None:
    waiting = asyncio.create_task(play.outcomes(warm, await play.requests(1, before=HANG)))
    await _started(warm)
    await _until_runs(warm, 1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await _until_runs(warm, 0)
    assert warm.host is not None
    assert warm.host.is_alive


async def test_a_run_that_takes_too_long_is_killed_and_its_rollouts_are_late(
    play: Playground, warm: EvaluatorAgent
) -> None:
    requests = await play.requests(1, timeout_s=0.5, before="import time; time.sleep(600)")
    assert codes(await play.outcomes(warm, requests)) == ["deadline"]
    assert _runs(warm) == []


async def test_results_that_are_links_to_the_servers_files_are_not_read(
    play: Playground, warm: EvaluatorAgent, tmp_path: Path
) -> None:
    """The folder of a run is the evaluator's: it may put anything there."""
    secret = tmp_path / "secret.jsonl"
    row = {"evaluation_result": {"score": 99.0}, "execution_metadata": {}}
    secret.write_text(json.dumps(row) + "\n")
    link = f"os.symlink({str(secret)!r}, out / 'buffer_9.jsonl'); row['is_kept'] = False"
    pipe = "os.mkfifo(out / 'buffer_8.jsonl')"
    requests = await play.requests(1, after=f"import os; {link}; {pipe}")
    assert codes(await play.outcomes(warm, requests)) == ["no_row"]


async def test_a_host_that_dies_is_started_again_and_one_that_is_closed_leaves_nothing(
    play: Playground,
) -> None:
    agent = await play.agent(size=1)
    killed, scored, unended = await play.requests(3)
    for request in (killed, unended):
        object.__setattr__(request, "fields", {"prompt": "hi", "before": HANG})
    waiting = asyncio.create_task(play.outcomes(agent, [killed]))
    await _started(agent)
    assert agent.host is not None
    os.kill(_child_of(_child_of(agent.host.boxed.process.pid)), 9)
    assert codes(await waiting) == ["evaluator_unavailable"]
    assert codes(await play.outcomes(agent, [scored])) == [""]
    waiting = asyncio.create_task(play.outcomes(agent, [unended]))
    await _started(agent)
    pid, folder = agent.host.boxed.process.pid, agent.host.folder
    inside = _child_of(_child_of(pid))
    await agent.close()
    assert codes(await waiting) == ["cancelled"]
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{inside}").exists()
    assert not folder.exists()


async def test_an_evaluator_finds_its_accounts_secrets_and_they_are_nowhere_else(
    tmp_path: Path,
) -> None:
    """Nor does it see a variable of the server's own."""
    told = "row['evaluation_result']['reason'] = str(len(os.environ['JUDGE_KEY']))"
    hidden = "assert 'SERVERS_OWN' not in os.environ; print('checked')"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SERVERS_OWN", "x")
        async with a_playground(tmp_path, "hi", secrets={"JUDGE_KEY": "sk-very-secret"}) as play:
            agent = await play.agent(size=1)
            requests = await play.requests(1, after=f"import os; {told}; {hidden}")
            outcomes = await play.outcomes(agent, requests)
            assert codes(outcomes) == [""], outcomes
            kept = await play.world.trajectory(requests[0].rollout_id)
            assert kept.rollout.reason == str(len("sk-very-secret"))
            assert "sk-very-secret" not in await play.log.until("1 passed")


async def test_an_evaluator_of_remote_rollouts_is_refused_without_network_with_the_setting(
    play: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {**STUB, "test_stub.py": STUB["test_stub.py"] + REMOTE}
    evaluator, built = await play.built(files)
    assert built.is_active, built.message
    with pytest.raises(errors.Unavailable, match="set TURNWISE_EVALUATOR_NETWORK=host"):
        await play.agent(evaluator)
    monkeypatch.setattr(play.room, "_terms", replace(play.room._terms, has_network=True))
    monkeypatch.setattr(play.room, "_public_url", "https://turnwise.test")
    agent = await play.agent(evaluator, size=1)
    say = (
        "import os\n"
        "row['evaluation_result']['reason'] = os.environ['EP_MODEL_BASE_URL']\n"
        "assert os.environ['FW_TRACING_GATEWAY_BASE_URL'] == os.environ['EP_MODEL_BASE_URL']"
    )
    requests = await play.requests(1, after=say)
    assert codes(await play.outcomes(agent, requests)) == [""]
    base = (await play.world.trajectory(requests[0].rollout_id)).rollout.reason
    assert re.fullmatch(r"https://turnwise\.test/e/run_\w+\.\w+/litellm-gateway", base)


async def test_an_evaluator_without_isolation_runs_where_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_playground(tmp_path, "hello", is_isolated=False) as play:
        agent = await play.agent(size=2)
        assert codes(await play.outcomes(agent, await play.requests(2))) == ["", ""]
        monkeypatch.setattr(play.room, "_finding", None)
        monkeypatch.setattr(play.room, "_terms", Terms(python=play.room._terms.python))
        _, built = await play.built()
        assert not built.is_active
        assert "unshare: Not permitted" in built.message
        assert "TURNWISE_EVALUATOR_ISOLATION=best_effort" in built.message


async def test_a_job_of_an_evaluator_that_is_not_built_is_refused(tmp_path: Path) -> None:
    async with a_playground(tmp_path) as play:
        evaluator, _ = await play.built_of(packed(STUB), "")
        with pytest.raises(errors.Unavailable, match="is not built on this server"):
            await play.agent(evaluator)
        object.__setattr__(evaluator, "state", EvaluatorState.BUILD_FAILED)
        object.__setattr__(evaluator, "message", "no such test")
        with pytest.raises(errors.Unavailable, match="is BUILD_FAILED: no such test"):
            await play.agent(evaluator)


def _runs(agent: Any) -> list[int]:
    """The processes of runs under way, by this machine's ids."""
    return _children(_child_of(_child_of(agent.host.boxed.process.pid)))


async def _until_runs(agent: Any, count: int) -> None:
    async with asyncio.timeout(30):
        while len(_runs(agent)) != count:
            await asyncio.sleep(0.02)


def _child_of(pid: int) -> int:
    (child,) = _children(pid)
    return child


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def _started(agent: Any) -> None:
    async with asyncio.timeout(60):
        while agent.host is None or not (agent.host.folder / "project/started").exists():
            await asyncio.sleep(0.02)
    (agent.host.folder / "project/started").unlink()
