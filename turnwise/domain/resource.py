"""A named record whose meaning is its owner's: an agent, a package group, a pipeline, tags ..."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One record of an account, unique by kind and name; the module that writes a kind reads it.

    For things that are few and small. What the service itself reasons about has a noun and a table
    of its own. `seq` counts over all kinds in order of creation, given by the store.
    """

    account_id: str
    kind: str
    name: str
    body: Mapping[str, Any] = field(default_factory=dict)
    created_at: float = 0.0
    updated_at: float = 0.0
    seq: int = 0
