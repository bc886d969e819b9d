"""One building for all tests in here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.wire.fuzz.building import a_building
from tests.wire.fuzz.checks import Checked


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checked]:
    with a_building(tmp_path_factory.mktemp("fuzz")) as building:
        yield Checked(building)
