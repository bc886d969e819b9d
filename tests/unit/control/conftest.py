from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.control.kit import World
from turnwise.storage.sql import SqlStore


@pytest.fixture
async def store() -> AsyncIterator[SqlStore]:
    opened = SqlStore.in_memory()
    yield opened
    await opened.close()


@pytest.fixture
async def world(tmp_path: Path, store: SqlStore) -> AsyncIterator[World]:
    made = World(tmp_path, store)
    yield made
    await made.jobs.close()
