"""What clients have uploaded: evaluators with their builds, and datasets with their first rows."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Depends, Request
from starlette.responses import HTMLResponse

from turnwise.control.named_datasets import NamedDataset
from turnwise.dashboard.rooms import Dashboard, DashboardRooms
from turnwise.domain.access import Principal

#: Rows that a dataset's page shows, and the most bytes of each that are read.
FIRST_ROWS, MAX_ROW = 20, 64 * 1024


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row of a dataset: its number from 1, and its text, indented where it is JSON."""

    number: int
    text: str
    is_cut: bool = False


def upload_routes(dashboard: Dashboard) -> APIRouter:
    """Routes below /dashboard/evaluators and /dashboard/datasets."""
    routes = APIRouter(prefix="/dashboard")
    caller = Depends(dashboard.principal)
    rooms, pages = dashboard.rooms, dashboard.pages

    @routes.get("/evaluators")
    async def evaluators(request: Request, who: Principal = caller) -> HTMLResponse:
        found = (await rooms.evaluators.list(who))[::-1]
        return pages.page(request, "evaluators.html", principal=who, evaluators=found)

    @routes.get("/evaluators/{evaluator_id}")
    async def evaluator(
        request: Request, evaluator_id: str, who: Principal = caller
    ) -> HTMLResponse:
        found = await rooms.evaluators.get(who, evaluator_id)
        log = await rooms.evaluators.build_log(who, evaluator_id)
        return pages.page(request, "evaluator.html", principal=who, evaluator=found, log=log)

    @routes.get("/datasets")
    async def datasets(request: Request, who: Principal = caller) -> HTMLResponse:
        found = (await rooms.datasets.list(who))[::-1]
        return pages.page(request, "datasets.html", principal=who, datasets=found)

    @routes.get("/datasets/{dataset_id}")
    async def dataset(request: Request, dataset_id: str, who: Principal = caller) -> HTMLResponse:
        found = await rooms.datasets.get(who, dataset_id)
        rows = await _first_rows(rooms, who, found)
        return pages.page(request, "dataset.html", principal=who, dataset=found, rows=rows)

    return routes


async def _first_rows(
    rooms: DashboardRooms, who: Principal, dataset: NamedDataset
) -> list[ShownRow]:
    """Of its files, in their order."""
    found: list[ShownRow] = []
    for name in dataset.files:
        path = await rooms.datasets.file(who, dataset.dataset_id, name)
        texts = await asyncio.to_thread(_lines, path, FIRST_ROWS - len(found))
        found += [shown_row(n, text) for n, text in enumerate(texts, len(found) + 1)]
        if len(found) >= FIRST_ROWS:
            break
    return found


def _lines(file: Path, most: int) -> list[bytes]:
    """The first lines that are not blank, each cut to one byte more than is shown."""
    found: list[bytes] = []
    with file.open("rb") as opened:
        while len(found) < most and (line := opened.readline(MAX_ROW + 1)):
            if line.strip():
                found.append(line)
            while line and not line.endswith(b"\n"):  # what is past the cut
                line = opened.readline(MAX_ROW)
    return found


def shown_row(number: int, line: bytes) -> ShownRow:
    """A line as a page shows it; what is no JSON, or too long, as it is.

    >>> shown_row(1, b'{"a": 1}').text
    '{\\n  "a": 1\\n}'
    """
    text = line[:MAX_ROW].decode(errors="replace").strip()
    if len(line) > MAX_ROW:
        return ShownRow(number, text, is_cut=True)
    try:
        return ShownRow(number, json.dumps(json.loads(text), indent=2, ensure_ascii=False))
    except (ValueError, RecursionError):
        return ShownRow(number, text)
