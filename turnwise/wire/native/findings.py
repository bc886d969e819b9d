"""The native API's route of findings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, Request

from turnwise.diagnostics import Finding, Inspector
from turnwise.domain.access import Principal

Json = dict[str, Any]
Caller = Callable[[Request], Awaitable[Principal]]


def finding_routes(inspector: Inspector) -> Callable[[Caller], APIRouter]:
    """Routes, given the caller's check."""

    def routes_of(principal: Caller) -> APIRouter:
        routes = APIRouter(prefix="/api/v1/jobs")

        @routes.get("/{name}/findings")
        async def findings(name: str, who: Principal = Depends(principal)) -> Json:  # noqa: B008
            """What is wrong with a job, errors first; docs/findings.md lists what there can be."""
            found = await inspector.findings(who, name)
            return {"findings": [finding_body(each) for each in found]}

        return routes

    return routes_of


def finding_body(finding: Finding) -> Json:
    """A finding; `rollouts` are filters of the list of rollouts."""
    return {**asdict(finding), "severity": finding.severity.value}
