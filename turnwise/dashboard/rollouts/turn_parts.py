"""Parts of a trajectory that come when a reader asks: tokens, and the command that asks again.

Each is a page of its own, and to htmx the part alone.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import HTMLResponse

from turnwise import errors
from turnwise.dashboard.rollouts.forks import messages_to
from turnwise.dashboard.rollouts.messages import readable
from turnwise.dashboard.rollouts.replays import curl, request_body
from turnwise.dashboard.rollouts.tokens import PAGE_TOKENS, TokenView, token_views
from turnwise.dashboard.rollouts.trajectories import FATES
from turnwise.dashboard.rooms import Dashboard
from turnwise.domain.access import Principal
from turnwise.domain.job import Job
from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import Node, Trajectory, Turn


def turn_routes(dashboard: Dashboard) -> APIRouter:
    """Tokens, prompt and command of one turn."""
    routes = APIRouter(prefix="/dashboard/rollouts/{rollout_id}/turns/{index}")
    caller = Depends(dashboard.principal)
    rooms = dashboard.rooms

    async def found(who: Principal, rollout_id: str, index: int) -> tuple[Job, Trajectory, Turn]:
        trajectory = await rooms.browse.trajectory(who, rollout_id)
        if not 0 <= index < len(trajectory.turns):
            raise errors.NotFound("turn", f"{index} of rollout {rollout_id}")
        job = await rooms.jobs.describe(who, trajectory.rollout.job_id)
        return job, trajectory, trajectory.turns[index]

    def part(request: Request, template: str, who: Principal, **values: Any) -> HTMLResponse:
        is_part = "hx-request" in request.headers
        return dashboard.pages.page(
            request,
            template if is_part else "part_page.html",
            principal=who,
            part=template,
            **values,
        )

    @routes.get("/tokens")
    async def tokens(
        request: Request,
        rollout_id: str,
        index: int,
        start: Annotated[int, Query(alias="from", ge=0)] = 0,
        who: Principal = caller,
    ) -> HTMLResponse:
        job, trajectory, turn = await found(who, rollout_id, index)
        node = trajectory.nodes[turn.leaf]
        shown, problem = await _tokens(dashboard, job, node, start)
        credit = await rooms.learned.of_group(who, job, trajectory.rollout.group_id)
        its = credit.of.get(rollout_id) if credit else None
        bins = its.bins[index] if its else {}
        advantages = dict(
            zip([t.index for t in trajectory.delivered], its.advantages, strict=False)
            if its
            else ()
        )
        return part(
            request,
            "tokens.html",
            who,
            rollout=trajectory.rollout,
            turn=turn,
            tokens=shown,
            problem=problem,
            following=start + PAGE_TOKENS if start + PAGE_TOKENS < len(node.tokens) else None,
            total=len(node.tokens),
            bins=[(FATES[bin], count) for bin, count in bins.items()],
            is_trained=Bin.TRAINED in bins,
            first_masked=Bin.MASKED_FIRST_POSITION in bins,
            advantage=advantages.get(index),
        )

    @routes.get("/prompt")
    async def prompt(
        request: Request, rollout_id: str, index: int, who: Principal = caller
    ) -> HTMLResponse:
        job, trajectory, turn = await found(who, rollout_id, index)
        text, problem = await _prompt_text(dashboard, job, trajectory, turn)
        return part(
            request,
            "prompt_text.html",
            who,
            rollout=trajectory.rollout,
            turn=turn,
            text=text,
            problem=problem,
        )

    @routes.get("/request")
    async def again(
        request: Request, rollout_id: str, index: int, who: Principal = caller
    ) -> HTMLResponse:
        job, trajectory, turn = await found(who, rollout_id, index)
        model = await _model(dashboard, who, turn)
        parent = trajectory.nodes[turn.leaf].parent
        messages = [] if parent is None else messages_to(trajectory, parent)
        root = trajectory.path(turn.leaf)[0]
        body = request_body(model or job.spec.adapters_in, messages, turn, root.tools)
        return part(
            request,
            "request.html",
            who,
            rollout=trajectory.rollout,
            turn=turn,
            model=model,
            group=job.spec.adapters_in,
            command=readable(curl(rooms.url, body)),
            lacks_tools=bool(root.tools_sha256) and not root.tools,
        )

    return routes


async def _tokens(
    dashboard: Dashboard, job: Job, node: Node, start: int
) -> tuple[list[TokenView], str]:
    """A page of a completion's tokens, and why their texts are missing if they are."""
    page = slice(start, start + PAGE_TOKENS)
    ids = node.tokens[page].tolist()
    pieces, problem = await _bytes(dashboard, job, ids)
    logprobs = [] if node.logprobs is None else node.logprobs[page].tolist()
    return await asyncio.to_thread(token_views, ids, pieces, logprobs, start), problem


async def _prompt_text(
    dashboard: Dashboard, job: Job, trajectory: Trajectory, turn: Turn
) -> tuple[str, str]:
    """What the turn added to what the model saw, as one text."""
    parent = trajectory.nodes[turn.leaf].parent
    ids = [] if parent is None else trajectory.nodes[parent].tokens.tolist()
    pieces, problem = await _bytes(dashboard, job, ids)
    text = b"".join(pieces).decode("utf-8", "replace")
    return readable(text) if pieces else " ".join(map(str, ids)), problem


async def _bytes(dashboard: Dashboard, job: Job, ids: list[int]) -> tuple[list[bytes], str]:
    try:
        return await dashboard.rooms.token_bytes(job, ids), ""
    except (errors.NotFound, errors.InvalidInput) as error:
        return [], str(error)


async def _model(dashboard: Dashboard, who: Principal, turn: Turn) -> str:
    """The registered model that the turn was sampled from, "" if it is none."""
    if turn.policy.adapter_id is None:
        return ""
    its = [
        package.name
        for package in await dashboard.rooms.browse.packages(who)
        if package.sha256 == turn.policy.adapter_id and package.pruned_at is None
    ]
    return its[-1] if its else ""
