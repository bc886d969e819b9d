"""Pages that are printed from code are what the code prints; every setting is on them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from turnwise import settings
from turnwise.control import job_settings
from turnwise.diagnostics import page as findings_page
from turnwise.domain.job import JobSpec
from turnwise.settings import Settings
from turnwise.wire.aws import coverage
from turnwise.wire.aws.runtime import PATHS
from turnwise.wire.aws.service import load_model
from turnwise.wire.dataplane import DataPlane

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "module"),
    [
        ("settings.md", settings),
        ("job-file.md", job_settings),
        ("aws-operations.md", coverage),
        ("findings.md", findings_page),
    ],
)
def test_a_printed_page_is_up_to_date(page: str, module: Any):
    assert (DOCS / page).read_text() == module.markdown(), "run `make docs`"


def test_every_setting_of_the_server_is_documented():
    page = (DOCS / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        assert field.description
        assert f"`TURNWISE_{name.upper()}`" in page


def test_every_field_of_a_job_is_documented_and_nothing_else_is():
    blocks: list[type[Any]] = [JobSpec]
    for cls in blocks:
        fields = {field.name: field for field in dataclasses.fields(cls)}
        assert set(job_settings.SETTINGS[cls]) == set(fields), cls.__name__
        factories = [field.default_factory for field in fields.values()]
        blocks += [f for f in factories if isinstance(f, type) and f not in blocks]
    page = (DOCS / "job-file.md").read_text()
    paths = [leaf.path for leaf in job_settings.leaves()]
    assert "val_sampling_params.top_k" in paths
    assert [path for path in paths if f"| `{path}` |" not in page] == []


def test_every_operation_that_is_served_says_what_it_does_here_and_is_one_of_aws():
    for service, answered in coverage.operations().items():
        known = load_model(service).operation_names
        assert [each.name for each in answered if not each.meaning] == [], service
        assert [each.name for each in answered if each.name not in known] == [], service


def test_the_data_plane_owns_the_paths_of_the_job_runtimes_operations():
    model = load_model("sagemakerjobruntime")
    plane = DataPlane(*[None] * 7)  # type: ignore[arg-type]
    assert set(PATHS.values()) == set(model.operation_names)
    for name in model.operation_names:
        path = model.operation_model(name).http["requestUri"]
        assert PATHS[path] == name
        assert plane.owns(path)
