"""The rollout under way, for code deep in the call stack; one per thread or asyncio task."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from pydantic import BaseModel

from turnwise.rft.models import Metadata, as_mapping

_metadata: ContextVar[dict[str, Any] | None] = ContextVar("rollout_metadata", default=None)
_params: ContextVar[dict[str, Any] | None] = ContextVar("inference_params", default=None)


def set_rollout_context(
    metadata: Metadata, inference_params: Mapping[str, Any] | BaseModel | None = None
) -> None:
    """Remember the rollout for this thread or task."""
    _metadata.set(dict(as_mapping(metadata)))
    _params.set(None if inference_params is None else dict(as_mapping(inference_params)))


def clear_rollout_context() -> None:
    """Forget it."""
    _metadata.set(None)
    _params.set(None)


def get_rollout_context() -> dict[str, Any] | None:
    """The rollout's metadata, None outside of one."""
    return _metadata.get()


def get_inference_params() -> dict[str, Any] | None:
    """The sampling parameters that came with the rollout, None if none came."""
    return _params.get()
