"""The attempts at one row side by side: what each earned, and where their answers differ."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Depends, Request
from starlette.responses import HTMLResponse

from turnwise import errors
from turnwise.control.learned import GroupCredit
from turnwise.dashboard.rollouts.diffs import Piece, word_changes
from turnwise.dashboard.rollouts.messages import MessageView, view
from turnwise.dashboard.rollouts.trajectories import SHOWN_CHARS, final_answer
from turnwise.dashboard.rooms import Dashboard
from turnwise.domain.access import Principal
from turnwise.domain.rollout import Rollout, Trajectory

#: So many attempts have their answers compared word by word; all have their numbers.
COMPARED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt. `pieces` compare its final answer with the reference's; the reference has none.

    `advantages` are its turns', once a step took the group; equal ones are one.
    """

    rollout: Rollout
    turns: int
    tokens: int
    seconds: float | None
    advantages: tuple[float, ...]
    answer: str
    pieces: tuple[Piece, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One number of every attempt, None where it has none."""

    name: str
    values: tuple[float | None, ...]

    @property
    def differs(self) -> bool:
        """Whether the attempts can be told apart by it."""
        return len(set(self.values)) > 1


def group_routes(dashboard: Dashboard) -> APIRouter:
    """The page of a group."""
    routes = APIRouter(prefix="/dashboard/groups")
    caller = Depends(dashboard.principal)
    rooms = dashboard.rooms

    @routes.get("/{group_id}")
    async def group(
        request: Request, group_id: str, beside: str = "", who: Principal = caller
    ) -> HTMLResponse:
        found = await rooms.browse.group(who, group_id)
        job = await rooms.jobs.describe(who, found[0].rollout.job_id)
        credit = await rooms.learned.of_group(who, job, group_id)
        reference = reference_of(found, beside)
        attempts = await asyncio.to_thread(attempts_of, found, credit, reference)
        return dashboard.pages.page(
            request,
            "group.html",
            principal=who,
            job=job,
            tab="rollouts",
            group_id=group_id,
            attempts=attempts,
            reference=reference,
            lines=lines(attempts),
            credit=credit,
            prompt=_prompt(found),
        )

    return routes


def reference_of(found: Sequence[Trajectory], rollout_id: str = "") -> Trajectory:
    """The attempt that others are compared with: the one named, else the first of the best reward.

    Raises `NotFound` for a name that is not of this group.
    """
    if rollout_id:
        named = [each for each in found if each.rollout.rollout_id == rollout_id]
        if not named:
            raise errors.NotFound("rollout of this group", rollout_id)
        return named[0]
    return max(found, key=lambda each: _rank(each.rollout.reward))


def _rank(reward: float | None) -> tuple[bool, float]:
    return (reward is not None, reward or 0.0)


def attempts_of(
    found: Sequence[Trajectory], credit: GroupCredit | None, reference: Trajectory
) -> list[Attempt]:
    """In the order given."""
    best = final_answer(reference)
    attempts = []
    for place, each in enumerate(found):
        its = each.rollout
        answer = final_answer(each)
        is_compared = each is not reference and place < COMPARED
        of = credit.of.get(its.rollout_id) if credit else None
        attempts.append(
            Attempt(
                rollout=its,
                turns=len(each.delivered),
                tokens=each.sampled_tokens,
                seconds=None if its.ended_at is None else its.ended_at - its.created_at,
                advantages=tuple(dict.fromkeys(of.advantages)) if of else (),
                answer=answer[:SHOWN_CHARS],
                pieces=tuple(word_changes(best[:SHOWN_CHARS], answer[:SHOWN_CHARS]))
                if is_compared
                else None,
            )
        )
    return attempts


def lines(attempts: Sequence[Attempt]) -> list[Line]:
    """Every metric that any attempt reported."""
    names = sorted({name for attempt in attempts for name in attempt.rollout.metrics})
    return [
        Line(name=name, values=tuple(each.rollout.metrics.get(name) for each in attempts))
        for name in names
    ]


def _prompt(found: Sequence[Trajectory]) -> MessageView | None:
    """What the row asks: the last message of a user in the first request of any attempt."""
    for each in found:
        if each.nodes:
            asked = [view(message) for message in each.nodes[0].messages]
            of_users = [message for message in asked if message.role == "user"]
            return (of_users or asked)[-1] if asked else None
    return None
