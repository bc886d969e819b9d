from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.builders import SetClock
from turnwise.storage.sql import SqlStore


@pytest.fixture
def clock() -> SetClock:
    return SetClock(5000.0)


@pytest.fixture(params=["memory", "sqlite"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: SetClock
) -> AsyncIterator[SqlStore]:
    if request.param == "memory":
        opened = SqlStore.in_memory(clock=clock)
    else:
        opened = SqlStore.open(tmp_path / "turnwise.db", clock=clock)
    yield opened
    await opened.close()
