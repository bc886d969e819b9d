"""What a list of rollouts shows, as its address says it. Pure: URL -> query, query -> URL."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlencode

from turnwise import errors
from turnwise.domain.rollout import Purpose, RolloutStatus
from turnwise.ports import RolloutCursor, RolloutQuery, RolloutSort

SIZES = (25, 50, 100, 250)
SIZE = 50

#: Of a random sample.
SAMPLE = 10

#: Pages that one can go back by links, before the first page comes.
MAX_BACK = 20

#: No number of a step or a row is larger in any database.
_LARGEST = 2**31 - 1

_OF_A_STEP = ("step", "trained")

_REMEDY = "change it in the address, or start again from the job's rollouts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """One state of the list; what is not set has its default and is not in the address.

    `step` is the one that rollouts were planned at, `trained` the one that took them to learn from.
    `min` and `below` are a range of rewards, [min, below). `sample` rollouts are random ones of
    either step, by `seed`; then order and pages mean nothing. `valid` is "yes", "no" or "". `back`
    holds the `after` of the pages that led to this one, "0" for the first.
    """

    step: int | None = None
    trained: int | None = None
    row: int | None = None
    status: RolloutStatus | None = None
    purpose: Purpose | None = None
    valid: str = ""
    reason: str = ""
    min: float | None = None
    below: float | None = None
    text: str = ""
    group: str = ""
    sort: RolloutSort = RolloutSort.SEQ
    order: str = "asc"
    after: str = ""
    back: str = ""
    size: int = SIZE
    sample: int = 0
    seed: int = 0

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Filters:
        """From an address's parameters; empty ones and unknown ones are as if not given.

        Raises `InvalidInput` for a value that cannot be.
        """
        values = {key: value.strip() for key, value in given.items() if value.strip()}
        size = _whole("size", values.get("size"), least=1, most=SIZES[-1])
        sample = _whole("sample", values.get("sample"), least=1, most=100)
        filters = cls(
            step=_whole("step", values.get("step"), least=-1),
            trained=_whole("trained", values.get("trained")),
            row=_whole("row", values.get("row")),
            status=_one_of("status", values.get("status"), RolloutStatus),
            purpose=_one_of("purpose", values.get("purpose"), Purpose),
            valid=_word("valid", values.get("valid", ""), ("", "yes", "no")),
            reason=values.get("reason", ""),
            min=_number("min", values.get("min")),
            below=_number("below", values.get("below")),
            text=values.get("text", ""),
            group=values.get("group", ""),
            sort=_one_of("sort", values.get("sort"), RolloutSort) or RolloutSort.SEQ,
            order=_word("order", values.get("order", "asc"), ("asc", "desc")),
            after=values.get("after", ""),
            back=values.get("back", ""),
            size=size or SIZE,
            sample=sample or 0,
            seed=_whole("seed", values.get("seed")) or 0,
        )
        if filters.sample and filters.step is None and filters.trained is None:
            raise errors.InvalidInput(
                "step",
                None,
                "is missing: a sample is of one step",
                remedy="add step=N or trained=N",
            )
        return filters

    def query(self, job_id: str) -> RolloutQuery:
        """As the store is asked. Raises `InvalidInput` for an `after` of no list."""
        return RolloutQuery(
            job_id=job_id,
            step=self.step,
            trained_step=self.trained,
            purpose=self.purpose,
            status=self.status,
            row_index=self.row,
            group_id=self.group or None,
            reward_ge=self.min,
            reward_lt=self.below,
            fault_code=self.reason or None,
            is_valid={"yes": True, "no": False}.get(self.valid),
            text=self.text,
            sort=self.sort,
            descending=self.order == "desc",
            after=RolloutCursor.decode(self.after) if self.after else None,
            limit=self.size,
        )

    def to(self, **changes: Any) -> str:
        """The address of this list with changes, from its first page: "?step=3&...", "" for all."""
        changed = replace(self, **({"after": "", "back": ""} | changes))
        parameters = urlencode(dict(changed.parameters()))
        return f"?{parameters}" if parameters else ""

    def next_page(self, after: str) -> str:
        """The address of the page behind this one."""
        led_here = [*filter(None, self.back.split("-")), self.after or "0"]
        return self.to(after=after, back="-".join(led_here[-MAX_BACK:]))

    def previous_page(self) -> str:
        """The address of the page before this one, "" where it is the first."""
        if not self.after:
            return ""
        *led_here, before = self.back.split("-")
        return self.to(after="" if before == "0" else before, back="-".join(led_here))

    def parameters(self) -> Iterator[tuple[str, str]]:
        """What differs from the default, in the order of the fields."""
        plain = asdict(Filters())
        for name, value in asdict(self).items():
            if value != plain[name]:
                yield name, f"{value:.17g}" if isinstance(value, float) else str(value)

    def chips(self) -> list[tuple[str, str]]:
        """What is filtered by, in words, each with the address of the list without it."""
        said = {
            "step": f"begun at step {self.step}",
            "trained": f"trained at step {self.trained}",
            "row": f"row {self.row}",
            "status": f"status {self.status}",
            "purpose": f"made for {self.purpose}",
            "valid": {"yes": "valid", "no": "not valid"}.get(self.valid, ""),
            "reason": f"reason {self.reason}",
            "text": f"“{self.text}”",
            "group": f"group {self.group}",
        }
        unset: dict[str, Any] = asdict(Filters())
        no_sample = {"sample": 0, "seed": 0}  # which is of one step
        chips = [
            (words, self.to(**{name: unset[name]}, **(no_sample if name in _OF_A_STEP else {})))
            for name, words in said.items()
            if getattr(self, name) != unset[name]
        ]
        if self.min is not None or self.below is not None:
            chips.append((self._range(), self.to(min=None, below=None)))
        if self.sample:
            chips.append((f"{self.sample} at random", self.to(sample=0, seed=0)))
        return chips

    def _range(self) -> str:
        least = "" if self.min is None else f"reward ≥ {self.min:.6g}"
        most = "" if self.below is None else f"reward < {self.below:.6g}"
        return " and ".join(filter(None, (least, most)))

    def sorted_by(self, key: RolloutSort) -> str:
        """The address that a column's title leads to: best first, and the other way from there."""
        order = "asc" if key is RolloutSort.SEQ else "desc"
        if self.sort is key:
            order = "asc" if self.order == "desc" else "desc"
        return self.to(sort=key, order=order)

    def aria_sort(self, key: RolloutSort) -> str:
        """What a column's title says of the order."""
        if self.sort is not key or self.sample:
            return "none"
        return "descending" if self.order == "desc" else "ascending"


def _whole(name: str, text: str | None, *, least: int = 0, most: int = _LARGEST) -> int | None:
    if text is None:
        return None
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        problem = f"is no whole number from {least} to {most}"
        raise errors.InvalidInput(name, text, problem, remedy=_REMEDY)
    return value


def _number(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise errors.InvalidInput(name, text, "is no number", remedy=_REMEDY)
    return value


def _one_of(name: str, text: str | None, kind: Any) -> Any:
    if text is None:
        return None
    _word(name, text, tuple(member.value for member in kind))
    return kind(text)


def _word(name: str, text: str, known: tuple[str, ...]) -> str:
    if text not in known:
        problem = f"is none of {', '.join(filter(None, known))}"
        raise errors.InvalidInput(name, text, problem, remedy=_REMEDY)
    return text
