from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.client.serving import Serving


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    server = Serving(tmp_path)
    yield server
    server.close()
