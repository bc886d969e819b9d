"""Which rollout is a model call of, and which rollout is a scored row of? Pure.

One run of an evaluator makes the rollouts of one group. It knows nothing of our rollouts: it sends
chat requests to the run's address, and leaves scored rows in a file. All rollouts of the run have
the same row, so until one has spoken they are exchangeable:

    request                                             is of
    with an id of eval-protocol's own (path)            the rollout that the id was first seen with,
                                                        else the next one free
    without an assistant's turn                         the next one free
    with ids of our own earlier tool calls              the rollout that these were said in
    anything else                                       none: refused

    row                                                 is of
    with `turn_id` in execution_metadata.raw_output     the rollout of that turn
    with an `execution_metadata.rollout_id` of a path   the rollout that the id was seen with
    with ids of our tool calls in its messages          the rollout that these were said in
    the only one left, at the end, where one is left    that one

Texts are never compared: two rollouts may say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from turnwise import errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The rollout that a request is of. `is_new` says that this request took it."""

    rollout_id: str
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What an evaluator made of one rollout, read from its row.

    `is_valid` False says that the score does not count, and `reason` why; `status` is the row's
    own status code (contract §4.4) and `problem` its message where it is an error. `steps` say in
    words what each step was worth: the reward is the score alone.
    """

    score: float | None
    is_valid: bool = True
    reason: str = ""
    steps: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""
    status: int = 100
    turn_ids: tuple[str, ...] = ()
    call_ids: tuple[str, ...] = ()
    their_id: str = ""  # eval-protocol's id of the rollout


@dataclass(slots=True)
class _Said:
    """A reply of ours that holds tool calls, and whether a later request has continued it."""

    rollout_id: str
    turn_id: str
    is_continued: bool = False


class Joining:
    """One run's rollouts, requests and rows."""

    def __init__(self, rollout_ids: Sequence[str]) -> None:
        self._free = list(rollout_ids)
        self._size = len(rollout_ids)
        self._theirs: dict[str, str] = {}  # eval-protocol's id -> ours
        self._turns: dict[str, str] = {}  # turn id -> rollout
        self._calls: dict[str, list[_Said]] = {}  # tool call id -> replies that hold it
        self._lost: dict[str, list[str]] = {}  # request -> rollouts whose client went away
        self._began: list[str] = []
        self._joined: set[str] = set()

    # ── requests ──────────────────────────────────────────────────────────────────────────────

    def place(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        their_id: str = "",
        request: str = "",
        is_retry: bool = False,
    ) -> Place:
        """The rollout of a request; `request` tells equal bodies apart from others.

        Raises `NotInValidStatus` for one more conversation than there are rollouts, `InvalidInput`
        for one that cannot be attached.
        """
        if their_id:
            if (known := self._theirs.get(their_id)) is not None:
                return Place(rollout_id=known, is_new=False)
            place = self._take()
            self._theirs[their_id] = place.rollout_id
            return place
        if any(message.get("role") == "assistant" for message in messages):
            return Place(rollout_id=self._continued(messages), is_new=False)
        if is_retry and (lost := self._lost.get(request)):
            return Place(rollout_id=lost.pop(0), is_new=False)
        return self._take()

    def named(self, their_id: str) -> str:
        """The rollout that eval-protocol calls by that id; the next one free where it is new.

        A remote rollout is asked after before it has spoken, and one that fails may never speak.
        "" where each rollout of the run has another id.
        """
        if their_id not in self._theirs:
            if not self._free:
                return ""
            self._theirs[their_id] = self._take().rollout_id
        return self._theirs[their_id]

    @property
    def names(self) -> Mapping[str, str]:
        """The rollouts by eval-protocol's ids, as far as these are known."""
        return dict(self._theirs)

    def failed(self, place: Place) -> None:
        """The request came to no turn: what it took is free again."""
        if place.is_new and place.rollout_id not in self._turns.values():
            self._began.remove(place.rollout_id)
            self._theirs = {t: r for t, r in self._theirs.items() if r != place.rollout_id}
            self._free.insert(0, place.rollout_id)

    def lost(self, place: Place, request: str) -> None:
        """The client went away before it had the reply; its library may ask again."""
        self._lost.setdefault(request, []).append(place.rollout_id)

    def said(self, place: Place, turn_id: str, message: Mapping[str, Any]) -> None:
        """A reply goes out."""
        self._turns[turn_id] = place.rollout_id
        said = _Said(place.rollout_id, turn_id)
        for call_id in _call_ids([message]):
            self._calls.setdefault(call_id, []).append(said)

    # ── rows ──────────────────────────────────────────────────────────────────────────────────

    def joined(self, row: Scored) -> str:
        """The rollout of a scored row; "" for a row of none, or of one that has its row."""
        named = [self._turns.get(turn_id, "") for turn_id in row.turn_ids]
        named.append(self._theirs.get(row.their_id, ""))
        found = next((rollout_id for rollout_id in named if rollout_id), "")
        if not found:
            found = self._by_calls(row.call_ids)
        if not found or found in self._joined:
            return ""
        self._joined.add(found)
        return found

    def joined_last(self, rows: Sequence[Scored]) -> str:
        """Once the run has ended: the rollout of the one row without ids, if one alone lacks one.

        A row that failed before any request may be of a rollout that never began.
        """
        left = [rollout_id for rollout_id in self._began if rollout_id not in self._joined]
        if not left:
            left = [rollout_id for rollout_id in self._free if rollout_id not in self._joined]
        if len(rows) != 1 or len(left) != 1:
            return ""
        self._joined.add(left[0])
        return left[0]

    @property
    def unjoined(self) -> tuple[str, ...]:
        """Rollouts without a row, those that have begun first."""
        return tuple(r for r in (*self._began, *self._free) if r not in self._joined)

    def has_begun(self, rollout_id: str) -> bool:
        """Whether a request took it."""
        return rollout_id in self._began

    # ── how ───────────────────────────────────────────────────────────────────────────────────

    def _take(self) -> Place:
        if not self._free:
            raise errors.NotInValidStatus(
                f"this run has {self._size} rollouts, and each has a conversation already: an "
                "evaluator may begin one per rollout, or name its rollout in the path "
                "(/rollout_id/{execution_metadata.rollout_id}/chat/completions)"
            )
        rollout_id = self._free.pop(0)
        self._began.append(rollout_id)
        return Place(rollout_id=rollout_id, is_new=True)

    def _continued(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """By the newest of our tool calls in it; equal ones were said in equal conversations.

        Siblings that said the same so far have the same ids, and are as exchangeable as before:
        each is continued once.
        """
        for call_id in reversed(_call_ids(messages)):
            if said := self._calls.get(call_id):
                one = next((reply for reply in said if not reply.is_continued), said[-1])
                one.is_continued = True
                return one.rollout_id
        raise errors.InvalidInput(
            "messages",
            f"{len(messages)} messages",
            "hold an assistant's turn without a tool call of this run, so that it cannot be known "
            "which rollout they continue",
            remedy="name the rollout in the path: base URL + /rollout_id/"
            "{row.execution_metadata.rollout_id}",
        )

    def _by_calls(self, call_ids: Iterable[str]) -> str:
        """The rollout in which all of these were said; the first without a row where several."""
        candidates: list[str] | None = None
        for call_id in call_ids:
            said_in = [said.rollout_id for said in self._calls.get(call_id, ())]
            if said_in:
                candidates = [r for r in (candidates or said_in) if r in said_in]
        return next((r for r in candidates or () if r not in self._joined), "")


def _call_ids(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        str(call.get("id") or "")
        for message in messages
        for call in message.get("tool_calls") or ()
        if isinstance(call, Mapping) and call.get("id")
    ]
