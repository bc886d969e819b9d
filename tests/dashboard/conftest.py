"""A site with one job, and a browser signed in to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.dashboard.kit import Site
from tests.unit.control.kit import World
from turnwise.storage.sql import SqlStore


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = SqlStore.in_memory()
    world = World(tmp_path, store)
    yield world
    await world.jobs.close()
    await store.close()


@pytest.fixture
async def site(world: World) -> Site:
    await world.store.default_account()
    await world.create("walk")
    return Site(world)


@pytest.fixture
async def browser(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with site.browser() as browser:
        yield browser
