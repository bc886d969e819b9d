"""turnwise.rft beside sagemaker.train.rft: the same names, taking the same arguments."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from sagemaker.train import rft as theirs

import turnwise.rft as ours

MODULES = ("adapters", "context", "decorators", "feedback", "headers", "models")
ADAPTERS = {
    "strands": ("wrap_model",),
    "langchain": ("create_http_client", "create_async_http_client", "create_http_clients"),
}


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, bool]]:
    """Name, kind, and whether it may be left out, of each parameter."""
    return [
        (name, each.kind, each.default is not inspect.Parameter.empty)
        for name, each in inspect.signature(function).parameters.items()
    ]


def assert_takes_what(function: Callable[..., Any], other: Callable[..., Any]) -> None:
    """`function` takes every call that `other` takes; what it takes beside that is optional."""
    mine, wanted = parameters(function), parameters(other)
    for (name, kind, is_optional), (their_name, their_kind, theirs_is_optional) in zip(
        mine, wanted, strict=False
    ):
        assert (name, kind) == (their_name, their_kind)
        assert is_optional or not theirs_is_optional
    assert len(mine) >= len(wanted)
    assert all(is_optional for _, _, is_optional in mine[len(wanted) :])


def public(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


def test_every_public_name_of_sagemaker_train_rft_is_one_of_ours() -> None:
    assert set(theirs.__all__) <= set(ours.__all__)


@pytest.mark.parametrize("name", sorted(theirs.__all__))
def test_a_name_takes_what_the_sdks_takes(name: str) -> None:
    mine, wanted = getattr(ours, name), getattr(theirs, name)
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        assert issubclass(mine, BaseModel)
        described = {
            field: (str(info.is_required()), info.default)
            for field, info in wanted.model_fields.items()
        }
        assert {
            field: (str(info.is_required()), info.default)
            for field, info in mine.model_fields.items()
        } == described
    elif isinstance(wanted, type):
        assert_takes_what(mine, wanted)
        for method in public(wanted):
            assert_takes_what(getattr(mine, method), getattr(wanted, method))
    else:
        assert_takes_what(mine, wanted)


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_of_the_sdk_defines_is_in_ours(module: str) -> None:
    mine = importlib.import_module(f"turnwise.rft.{module}")
    wanted = importlib.import_module(f"sagemaker.train.rft.{module}")
    defined = {
        name
        for name, value in vars(wanted).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == wanted.__name__
    }
    assert defined <= set(vars(mine))


@pytest.mark.parametrize(
    ("adapter", "name"), [(each, name) for each, names in ADAPTERS.items() for name in names]
)
def test_an_adapter_takes_what_the_sdks_takes(adapter: str, name: str) -> None:
    mine = importlib.import_module(f"turnwise.rft.adapters.{adapter}")
    wanted = importlib.import_module(f"sagemaker.train.rft.adapters.{adapter}")
    assert_takes_what(getattr(mine, name), getattr(wanted, name))


@pytest.mark.parametrize(
    "metadata",
    [
        {"job_arn": "arn:j", "trajectory_id": "t", "endpoint": "http://e"},
        {"jobArn": "arn:j", "rolloutId": "t"},
        {"trajectoryId": "t"},
        {},
    ],
)
def test_headers_are_those_of_the_sdk(metadata: dict[str, str]) -> None:
    assert ours.make_inference_headers(metadata) == theirs.make_inference_headers(metadata)
    assert ours.get_inference_params() == theirs.get_inference_params() is None
    for rft in (ours, theirs):
        rft.set_rollout_context(metadata, {"maxTokens": 3})
    assert ours.get_inference_headers() == theirs.get_inference_headers()
    assert ours.get_inference_params() == theirs.get_inference_params()
    for rft in (ours, theirs):
        rft.clear_rollout_context()
