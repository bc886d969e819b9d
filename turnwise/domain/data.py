"""Dataset records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One dataset record: what the agent is asked, and what travels with it.

    `index` is its place in the dataset file. `fields` is the whole record, passed to the agent
    as `instance`; `prompt` is its prompt column as a string, unparsed.

    >>> Row(index=0, prompt="Inspect AC01", fields={"prompt": "Inspect AC01"}).prompt
    'Inspect AC01'
    """

    index: int
    prompt: str
    fields: Mapping[str, Any]
    label: str | None = None
