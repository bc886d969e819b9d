"""Renderers of all families, made once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.families import FAMILIES, save_family
from turnwise.domain.job import History
from turnwise.ports import Renderer
from turnwise.rendering import load_renderer


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: save_family(root / name, name) for name in FAMILIES}


@pytest.fixture(scope="session")
def renderers(folders: Mapping[str, Path]) -> Mapping[str, Renderer]:
    return {name: load_renderer(folder, History.TEMPLATE) for name, folder in folders.items()}
