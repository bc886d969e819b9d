"""An uploaded evaluator as a job's agent: a real process in a sandbox, over the real gateway."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.evaluators.kit import STUB, Playground, a_playground, packed
from turnwise import errors
from turnwise.domain.evaluator import EvaluatorState
from turnwise.domain.rollout import Fault, RolloutStatus
from turnwise.evaluators import room as rooms


def codes(outcomes: dict[str, Fault | None]) -> dict[str, str]:
    return {rollout[-1]: fault.code if fault else "" for rollout, fault in outcomes.items()}


async def ran(play: Playground, count: int = 2, **fields: Any) -> dict[str, Fault | None]:
    """The outcomes of one group."""
    agent = await play.agent(size=count)
    return await play.outcomes(agent, await play.requests(count, **fields))


async def test_one_run_scores_the_rollouts_of_a_group_each_by_what_it_said(tmp_path: Path) -> None:
    async with a_playground(tmp_path, "a", "bb", "ccc") as play:
        outcomes = await ran(play, 3)
        assert codes(outcomes) == {"a": "", "b": "", "c": ""}
        for rollout_id in outcomes:
            kept = await play.world.trajectory(rollout_id)
            (node,) = [node for node in kept.nodes if node.logprobs is not None]
            said = node.messages[0]["content"]
            assert kept.rollout.status is RolloutStatus.REWARDED
            assert kept.rollout.rewards == (float(len(said)),)
            assert kept.rollout.metrics == {"letters": float(len(said))}
            (told,) = [text for _, text, rollout in play.log.entries if rollout == rollout_id]
            assert json.loads(told)["reason"] == f"said {said}"
        printed = await play.log.until("1 passed")
        assert printed.count("1 passed") == 1  # one run for the group
        assert "secret" not in printed


async def test_a_groups_later_attempts_are_a_later_run_of_the_same_process(tmp_path: Path) -> None:
    async with a_playground(tmp_path, "a") as play:
        agent = await play.agent(size=1)
        assert codes(await play.outcomes(agent, await play.requests(1))) == {"a": ""}
        host = agent.host
        assert codes(await play.outcomes(agent, await play.requests(1))) == {"b": ""}
        assert agent.host is host
        assert host is not None
        assert host.forks


#: What an evaluation does with its row, and what its rollout's fault then says.
FAULTS: tuple[tuple[dict[str, Any], str, str], ...] = (
    (
        {"after": "row['evaluation_result'].update(is_score_valid=False, reason='no judge')"},
        "score_invalid",
        "no judge",
    ),
    (
        {"after": "row['rollout_status'] = {'code': 13, 'message': 'the tool broke'}"},
        "rollout_error",
        "the tool broke",
    ),
    ({"after": "row['evaluation_result']['score'] = None"}, "no_score", "no finite"),
    ({"after": "row['is_kept'] = False"}, "no_row", "left no row for it: "),
    ({"after": "row['execution_metadata'] = {}"}, "unjoined", "2 rows of its run hold no id"),
    ({"before": "1 / 0"}, "no_row", "ZeroDivisionError"),
    ({"before": "import os; os._exit(3)"}, "evaluator_crashed", "ended with code 3"),
    (
        {"before": "import os; os.kill(os.getpid(), 9)"},
        "evaluator_crashed",
        "was killed by signal 9",
    ),
)


async def test_what_goes_wrong_in_a_run_is_a_fault_that_says_it(tmp_path: Path) -> None:
    async with a_playground(tmp_path, "hello") as play:
        agent = await play.agent(size=2)
        for fields, expected, message in FAULTS:
            outcomes = await play.outcomes(agent, await play.requests(2, **fields))
            for rollout_id, fault in outcomes.items():
                assert fault is not None
                assert (fault.code, fault.is_fatal) == (expected, False)
                assert message in fault.message
                assert fault.retryable is (expected == "evaluator_crashed")
                assert (await play.world.trajectory(rollout_id)).rollout.rewards is None
        # The process has stood all that: the next group is scored, a sibling that fails apart.
        mixed = await play.requests(2, before="if number: raise SystemExit(1)")
        assert sorted(codes(await play.outcomes(agent, mixed)).values()) == ["", "no_row"]


async def test_a_single_row_without_ids_is_that_of_the_single_rollout(tmp_path: Path) -> None:
    """And one more conversation than there are rollouts is refused, with the reason."""
    more = (
        "import urllib.error\n"
        "answer = chat(params, row['messages'])\n"
        "try: chat(params, row['messages'])\n"
        "except urllib.error.HTTPError as error: refused = error.read().decode()"
    )
    after = "row['execution_metadata'] = {}; row['evaluation_result']['reason'] = refused"
    async with a_playground(tmp_path, "hello") as play:
        assert codes(await ran(play, 1, before=more, after=after)) == {"a": ""}
        assert "this run has 1 rollouts" in await play.log.until("this run has 1 rollouts")


async def test_a_row_cannot_speak_for_another_runs_rollout(tmp_path: Path) -> None:
    """Ids are joined within the run alone, and messages in a row are not believed."""
    async with a_playground(tmp_path, "hello") as play:
        await play.world.open("rollout_z", group_id="grp_a", slot=9)
        forged = "row['execution_metadata']['raw_output'] = {'turn_id': 'rollout_z'}"
        lies = "row['messages'].append({'role': 'assistant', 'content': 'never said'})"
        assert codes(await ran(play, 2, after=f"{forged}; {lies}")) == {
            "a": "unjoined",
            "b": "unjoined",
        }
        untouched = await play.world.trajectory("rollout_z")
        assert untouched.rollout.status is RolloutStatus.PENDING
        kept = await play.world.trajectory("rollout_a")
        assert "never said" not in str(kept.nodes)


async def test_ids_in_the_path_say_whose_a_conversation_is(tmp_path: Path) -> None:
    """As RemoteRolloutProcessor's do; the second call holds no id of ours."""
    twice = (
        "path = f'/rollout_id/odd-{number}/run_id/r/row_id/x'\n"
        "first = chat(params, row['messages'], path)['choices'][0]['message']\n"
        "asked = row['messages'] + [first, {'role': 'user', 'content': 'more'}]\n"
        "answer = chat(params, asked, path)"
    )
    named = "row['execution_metadata'] = {'rollout_id': f'odd-{number}'}"
    async with a_playground(tmp_path, "a", "bb", "ccc") as play:
        outcomes = await ran(play, 2, before=twice, after=named)
        assert codes(outcomes) == {"a": "", "b": ""}
        for rollout_id in outcomes:
            kept = await play.world.trajectory(rollout_id)
            assert len(kept.turns) == 2
            last = kept.path(kept.turns[-1].leaf)[-1].messages[0]["content"]
            assert kept.rollout.rewards == (float(len(last)),)


async def test_rollouts_that_nobody_waits_for_end_their_run(tmp_path: Path) -> None:
    hang = "import time; open('started', 'w').close(); time.sleep(600)"
    async with a_playground(tmp_path, "hello") as play:
        agent = await play.agent(size=1)
        (request,) = await play.requests(1, before=hang)
        waiting = asyncio.create_task(play.outcomes(agent, [request]))
        await _started(agent)
        assert len(_runs(agent)) == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        async with asyncio.timeout(30):
            while _runs(agent):
                await asyncio.sleep(0.02)
        assert agent.host is not None
        assert agent.host.is_alive


async def test_a_run_that_takes_too_long_is_killed_and_its_rollouts_are_late(
    tmp_path: Path,
) -> None:
    async with a_playground(tmp_path, "hello") as play:
        agent = await play.agent(size=1)
        requests = await play.requests(1, timeout_s=3.0, before="import time; time.sleep(600)")
        assert codes(await play.outcomes(agent, requests)) == {"a": "deadline"}
        assert _runs(agent) == []


async def test_a_host_that_dies_costs_its_rollouts_and_is_started_again(tmp_path: Path) -> None:
    hang = "import time; open('started', 'w').close(); time.sleep(600)"
    async with a_playground(tmp_path, "hello") as play:
        agent = await play.agent(size=1)
        first, second = await play.requests(2)
        object.__setattr__(first, "fields", {"prompt": "hi", "before": hang})
        waiting = asyncio.create_task(play.outcomes(agent, [first]))
        await _started(agent)
        assert agent.host is not None
        os.kill(_child_of(_child_of(agent.host.boxed.process.pid)), 9)
        assert codes(await waiting) == {"a": "evaluator_unavailable"}
        assert codes(await play.outcomes(agent, [second])) == {"b": ""}


async def test_closing_the_agent_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    hang = "import time; open('started', 'w').close(); time.sleep(600)"
    async with a_playground(tmp_path, "hello") as play:
        agent = await play.agent(size=1)
        (request,) = await play.requests(1, before=hang)
        waiting = asyncio.create_task(play.outcomes(agent, [request]))
        await _started(agent)
        assert agent.host is not None
        pid, folder = agent.host.boxed.process.pid, agent.host.folder
        inside = _child_of(_child_of(pid))
        await agent.close()
        assert codes(await waiting) == {"a": "cancelled"}
        assert not Path(f"/proc/{pid}").exists()
        assert not Path(f"/proc/{inside}").exists()
        assert not folder.exists()


async def test_results_that_are_links_to_the_servers_files_are_not_read(tmp_path: Path) -> None:
    """The folder of a run is the evaluator's: it may put anything there."""
    secret = tmp_path / "secret.jsonl"
    row = {"evaluation_result": {"score": 99.0}, "execution_metadata": {}}
    secret.write_text(json.dumps(row) + "\n")
    link = f"os.symlink({str(secret)!r}, out / 'buffer_9.jsonl'); row['is_kept'] = False"
    pipe = "os.mkfifo(out / 'buffer_8.jsonl')"
    async with a_playground(tmp_path, "hello") as play:
        outcomes = await ran(play, 1, after=f"import os; {link}; {pipe}")
        assert codes(outcomes) == {"a": "no_row"}


async def test_an_evaluator_without_isolation_runs_where_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_namespaces(*_: object) -> str:
        return "unshare: Operation not permitted"

    monkeypatch.setattr(rooms, "try_isolation", no_namespaces)
    async with a_playground(tmp_path, "hello", is_isolated=False) as play:
        assert codes(await ran(play)) == {"a": "", "b": ""}
        monkeypatch.setattr(play.room, "_finding", None)
        monkeypatch.setattr(play.room, "_terms", rooms.Terms(python=play.python))
        _, built = await play.built()
        assert not built.is_active
        assert "unshare: Operation not permitted" in built.message
        assert "TURNWISE_EVALUATOR_ISOLATION=best_effort" in built.message


async def test_a_job_of_an_evaluator_that_is_not_built_is_refused(tmp_path: Path) -> None:
    async with a_playground(tmp_path) as play:
        evaluator, _ = await play.built_of(packed(STUB), "test_stub.py::missing")
        with pytest.raises(errors.Unavailable, match="is not built on this server"):
            await play.agent(evaluator)
        object.__setattr__(evaluator, "state", EvaluatorState.BUILD_FAILED)
        object.__setattr__(evaluator, "message", "no such test")
        with pytest.raises(errors.Unavailable, match="is BUILD_FAILED: no such test"):
            await play.agent(evaluator)


def _runs(agent: Any) -> list[int]:
    """The processes of runs under way, by this machine's ids."""
    return _children(_child_of(_child_of(agent.host.boxed.process.pid)))


def _child_of(pid: int) -> int:
    (child,) = _children(pid)
    return child


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def _started(agent: Any) -> None:
    async with asyncio.timeout(60):
        while agent.host is None or not (agent.host.folder / "project/started").exists():
            await asyncio.sleep(0.02)
