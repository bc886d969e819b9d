"""An uploaded evaluator as a job's agent: a real process in a sandbox, over the real gateway."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.evaluators.kit import a_playground
from turnwise.domain.agent import AgentLogKind
from turnwise.domain.rollout import RolloutStatus


async def test_one_run_scores_the_rollouts_of_a_group_each_by_what_it_said(tmp_path: Path) -> None:
    async with a_playground(tmp_path, "a", "bb", "ccc") as play:
        agent = await play.agent(size=3)
        requests = await play.requests(3)
        assert await play.outcomes(agent, requests) == dict.fromkeys(
            [request.rollout_id for request in requests]
        )
        for request in requests:
            kept = await play.world.trajectory(request.rollout_id)
            (node,) = [node for node in kept.nodes if node.logprobs is not None]
            said = node.messages[0]["content"]
            assert kept.rollout.status is RolloutStatus.REWARDED
            assert kept.rollout.rewards == (float(len(said)),)
            assert kept.rollout.metrics == {"letters": float(len(said))}
            told = [t for kind, t, r in play.log.entries if r == request.rollout_id]
            assert json.loads(told[0])["reason"] == f"said {said}"
        assert play.world.sampler.aborted == 0
        assert "1 passed" in await play.log.until("1 passed")
        assert all(k is not AgentLogKind.FAILED for k, _, _ in play.log.entries)
