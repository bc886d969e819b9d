"""Nouns -> JSON bodies of the native API. Pure."""

from __future__ import annotations

import dataclasses
from typing import Any

from turnwise.access.accounts import Identity
from turnwise.control.browse import Point
from turnwise.control.job_file import as_mapping
from turnwise.domain.access import Account, Key
from turnwise.domain.event import Event
from turnwise.domain.job import Job, JobKind
from turnwise.domain.ledger import TokenUsage
from turnwise.domain.rollout import Node, Rollout, Trajectory, Turn
from turnwise.ports import ModelPackage, RolloutSummary

Json = dict[str, Any]

#: The last place that a list can have: the database counts in 64 bits.
MAX_PLACE = 2**63 - 1


def identity_body(identity: Identity) -> Json:
    """What a caller is told of itself; never a secret."""
    who = identity.principal
    return {
        "name": who.name,
        "account": identity.account.slug,
        "account_number": identity.account.number,
        "region": identity.region,
        "access_key_id": who.access_key_id,
        "actions": sorted(who.actions),
        "job_ids": None if who.job_ids is None else sorted(who.job_ids),
        "is_operator": who.is_operator,
    }


def account_body(account: Account) -> Json:
    """An account."""
    return {"slug": account.slug, "number": account.number}


def key_body(key: Key) -> Json:
    """A key without its secret, or anything that was made from it."""
    return {
        "key_id": key.key_id,
        "name": key.name,
        "access_key_id": key.access_key_id,
        "actions": sorted(key.actions),
        "job_ids": None if key.job_ids is None else sorted(key.job_ids),
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }


def job_body(job: Job) -> Json:
    """A job with its spec as a job file."""
    return {
        "job_id": job.job_id,
        "name": job.name,
        "kind": job.spec.kind.value,
        "status": job.status.value,
        "secondary_status": job.secondary.value,
        "message": job.message,
        "priority": job.spec.priority,
        "ahead": job.ahead,
        "step": job.step,
        "max_steps": job.spec.schedule.max_steps if job.spec.kind is JobKind.TRAIN else 0,
        "incarnation": job.incarnation,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "parent": job.parent,
        "output": job.output,
        "inputs": None if job.inputs is None else dataclasses.asdict(job.inputs),
        "spec": as_mapping(job.spec),
    }


def event_body(event: Event) -> Json:
    """An event."""
    return {
        "seq": event.seq,
        "at": event.at,
        "kind": event.kind.value,
        "level": event.level.value,
        "body": dict(event.body),
    }


def curve_body(points: list[Point]) -> list[Json]:
    """A metric's curve."""
    return [{"step": p.step, "value": p.value, "seq": p.seq} for p in points]


def usage_body(usage: TokenUsage) -> Json:
    """What a job cost, in tokens."""
    return {
        "train_tokens": usage.train,
        "prefill_tokens": usage.prefill,
        "cached_prefill_tokens": usage.cached,
        "sample_tokens": usage.sample,
    }


def rollout_body(rollout: Rollout) -> Json:
    """A rollout without its record; never its secret."""
    return {
        "rollout_id": rollout.rollout_id,
        "job_id": rollout.job_id,
        "group_id": rollout.group_id,
        "slot": rollout.slot,
        "attempt": rollout.attempt,
        "incarnation": rollout.incarnation,
        "purpose": rollout.purpose.value,
        "row_index": rollout.row_index,
        "step": rollout.step,
        "pinned_adapter_id": rollout.policy.adapter_id if rollout.policy else None,
        "status": rollout.status.value,
        "reward": rollout.reward,
        "rewards": list(rollout.rewards) if rollout.rewards is not None else None,
        "metrics": dict(rollout.metrics),
        "reason": rollout.reason,
        "fault": dataclasses.asdict(rollout.fault) if rollout.fault else None,
        "created_at": rollout.created_at,
        "ended_at": rollout.ended_at,
    }


def summary_body(summary: RolloutSummary) -> Json:
    """A rollout in a list."""
    counts = {"seq": summary.seq, "turns": summary.turns, "tokens": summary.tokens}
    return rollout_body(summary.rollout) | counts


def trajectory_body(trajectory: Trajectory) -> Json:
    """A rollout with every message, token and turn."""
    return rollout_body(trajectory.rollout) | {
        "sampled_tokens": trajectory.sampled_tokens,
        "nodes": [_node_body(node) for node in trajectory.nodes],
        "turns": [_turn_body(turn) for turn in trajectory.turns],
    }


def _node_body(node: Node) -> Json:
    return {
        "node_id": node.node_id,
        "parent": node.parent,
        "kind": node.kind.value,
        "messages": [dict(message) for message in node.messages],
        "tokens": node.tokens.tolist(),
        "logprobs": None if node.logprobs is None else node.logprobs.tolist(),
        "fork_cause": node.fork_cause.value if node.fork_cause else None,
        "tools": [dict(tool) for tool in node.tools],
    }


def _turn_body(turn: Turn) -> Json:
    return {
        "turn_id": turn.turn_id,
        "index": turn.index,
        "leaf": turn.leaf,
        "adapter_id": turn.policy.adapter_id,
        "policy_step": turn.policy.policy_step,
        "sampling": dataclasses.asdict(turn.sampling),
        "seed": turn.seed,
        "finish_reason": turn.finish_reason.value,
        "delivery": turn.delivery.value,
        "prompt_tokens": turn.prompt_tokens,
        "cached_tokens": turn.cached_tokens,
        "completion_tokens": turn.completion_tokens,
        "past_stop_tokens": turn.past_stop_tokens,
        "seconds": turn.ended_at - turn.started_at,
    }


def package_summary(package: ModelPackage) -> Json:
    """A registered model in a list: without its job file, the largest part of it."""
    body = package_body(package)
    metadata = {key: value for key, value in body["metadata"].items() if key != "config"}
    return body | {"metadata": metadata}


def package_body(package: ModelPackage) -> Json:
    """A registered model."""
    return {
        "package_id": package.package_id,
        "name": package.name,
        "group": package.group,
        "version": package.version,
        "kind": package.kind,
        "path": package.path,
        "sha256": package.sha256,
        "base_model": package.base_model,
        "job_id": package.job_id,
        "step": package.step,
        "created_at": package.created_at,
        "pruned_at": package.pruned_at,
        "metadata": dict(package.metadata),
    }
