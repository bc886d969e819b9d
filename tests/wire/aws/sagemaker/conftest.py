from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from turnwise.storage.sql import SqlStore


@pytest.fixture
async def store() -> AsyncIterator[SqlStore]:
    opened = SqlStore.in_memory()
    yield opened
    await opened.close()
