from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from turnwise.rl import advantages, passk


@pytest.mark.parametrize("module", [advantages, passk])
def test_the_examples_in_docstrings_are_true(module: ModuleType) -> None:
    found = doctest.testmod(module)

    assert found.attempted
    assert not found.failed
