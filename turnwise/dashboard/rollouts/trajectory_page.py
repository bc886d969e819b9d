"""The page of one rollout: everything that was asked and said, what it earned, what was learned."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Depends, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from turnwise import errors
from turnwise.control.learned import GroupCredit
from turnwise.dashboard.rollouts.messages import MessageView, view
from turnwise.dashboard.rollouts.trajectories import Shown, TrajectoryView, lay_out
from turnwise.dashboard.rooms import Dashboard
from turnwise.domain.access import Principal
from turnwise.domain.job import Job
from turnwise.domain.rollout import Rollout, Trajectory
from turnwise.ports import RolloutQuery

#: More siblings than any group has attempts.
_SIBLINGS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Siblings:
    """The attempts of a rollout's group, by (slot, attempt), and its neighbours among them."""

    all: tuple[Rollout, ...]
    place: int

    @property
    def previous(self) -> Rollout | None:
        """The one before it."""
        return self.all[self.place - 1] if self.place else None

    @property
    def following(self) -> Rollout | None:
        """The one behind it."""
        return self.all[self.place + 1] if self.place + 1 < len(self.all) else None


def trajectory_routes(dashboard: Dashboard) -> APIRouter:
    """The page, its JSON, and what it asks for while the rollout is open."""
    routes = APIRouter(prefix="/dashboard/rollouts")
    caller = Depends(dashboard.principal)
    rooms = dashboard.rooms

    @routes.get("/{rollout_id}")
    async def rollout(request: Request, rollout_id: str, who: Principal = caller) -> HTMLResponse:
        trajectory = await rooms.browse.trajectory(who, rollout_id)
        its = trajectory.rollout
        job = await rooms.jobs.describe(who, its.job_id)
        credit = await rooms.learned.of_group(who, job, its.group_id)
        siblings = await _siblings(dashboard, who, its)
        # A hundred turns take a while, which everybody else would wait for.
        return await asyncio.to_thread(
            _page, dashboard, request, who, job, trajectory, credit, siblings
        )

    @routes.get("/{rollout_id}/trajectory.json")
    async def body(rollout_id: str, who: Principal = caller) -> Response:
        trajectory = await rooms.browse.trajectory(who, rollout_id)
        return await asyncio.to_thread(
            lambda: JSONResponse(dict(rooms.trajectory_body(trajectory)))
        )

    @routes.get("/{rollout_id}/news")
    async def news(
        request: Request, rollout_id: str, turns: int = 0, who: Principal = caller
    ) -> HTMLResponse:
        trajectory = await rooms.browse.trajectory(who, rollout_id)
        return dashboard.pages.page(
            request,
            "rollout_news.html",
            principal=who,
            rollout=trajectory.rollout,
            turns=len(trajectory.turns),
            shown_turns=turns,
        )

    @routes.get("/{rollout_id}/messages/{node_id}/{number}")
    async def message(
        request: Request, rollout_id: str, node_id: int, number: int, who: Principal = caller
    ) -> HTMLResponse:
        trajectory = await rooms.browse.trajectory(who, rollout_id)
        found = await asyncio.to_thread(_message, trajectory, node_id, number)
        is_part = "hx-request" in request.headers
        return dashboard.pages.page(
            request,
            "message_part.html" if is_part else "message.html",
            principal=who,
            rollout=trajectory.rollout,
            shown=Shown(message=found, place=f"{node_id}/{number}"),
        )

    return routes


async def _siblings(dashboard: Dashboard, who: Principal, its: Rollout) -> Siblings:
    query = RolloutQuery(job_id=its.job_id, group_id=its.group_id, limit=_SIBLINGS)
    found = [summary.rollout for summary in await dashboard.rooms.browse.rollouts(who, query)]
    ordered = tuple(sorted(found, key=lambda each: (each.slot, each.attempt)))
    place = [each.rollout_id for each in ordered].index(its.rollout_id)
    return Siblings(all=ordered, place=place)


def _page(
    dashboard: Dashboard,
    request: Request,
    who: Principal,
    job: Job,
    trajectory: Trajectory,
    credit: GroupCredit | None,
    siblings: Siblings,
) -> HTMLResponse:
    its = trajectory.rollout
    laid_out: TrajectoryView = lay_out(
        trajectory, credit.of.get(its.rollout_id) if credit else None
    )
    return dashboard.pages.page(
        request,
        "rollout.html",
        principal=who,
        job=job,
        tab="rollouts",
        rollout=its,
        trajectory=trajectory,
        laid_out=laid_out,
        credit=credit,
        siblings=siblings,
        seconds=_seconds(its, dashboard.rooms.clock.now()),
        prompt_tokens=sum(turn.prompt_tokens for turn in trajectory.turns),
        sampled_s=sum(turn.ended_at - turn.started_at for turn in trajectory.turns),
        samplings=_distinct(trajectory),
    )


def _seconds(rollout: Rollout, now: float) -> float:
    """How long it took, or takes so far."""
    return (rollout.ended_at if rollout.ended_at is not None else now) - rollout.created_at


def _distinct(trajectory: Trajectory) -> Sequence[str]:
    """How its turns were sampled, each way once."""
    words = (
        f"temperature {s.temperature:g}, top-p {s.top_p:g}"
        + (f", top-k {s.top_k}" if s.top_k else "")
        + f", at most {s.max_tokens:,} tokens"
        for s in [turn.sampling for turn in trajectory.turns] or [trajectory.rollout.sampling]
    )
    return list(dict.fromkeys(words))


def _message(trajectory: Trajectory, node_id: int, number: int) -> MessageView:
    if 0 <= node_id < len(trajectory.nodes):
        messages = trajectory.nodes[node_id].messages
        if 0 <= number < len(messages):
            return view(messages[number])
    raise errors.NotFound("message", f"{node_id}/{number}")
