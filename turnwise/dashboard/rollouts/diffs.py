"""Two texts side by side: which lines and words were taken out and which put in. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum

#: The comparison takes up to the product of both lengths; above this, all that differs between
#: the common beginning and the common end counts as replaced. 10^6 takes about 0.2 s.
MAX_PRODUCT = 1_000_000


class Change(StrEnum):
    """What became of a piece."""

    SAME = "same"
    GONE = "gone"
    NEW = "new"
    LEFT_OUT = "left_out"  # pieces that are the same and far from any change


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text; of `LEFT_OUT` pieces, how many lines they were."""

    change: Change
    text: str


def changes(before: Sequence[str], after: Sequence[str]) -> list[Piece]:
    """Item by item; those that are gone come before those in their place.

    >>> [f"{piece.change}:{piece.text}" for piece in changes(["a", "b"], ["a", "c"])]
    ['same:a', 'gone:b', 'new:c']
    """
    start = _common(before, after)
    shorter = min(len(before), len(after)) - start
    end = min(shorter, _common(before[::-1], after[::-1]))
    stop_before, stop_after = len(before) - end, len(after) - end
    return [
        *(Piece(Change.SAME, text) for text in before[:start]),
        *_compared(before[start:stop_before], after[start:stop_after]),
        *(Piece(Change.SAME, text) for text in before[stop_before:]),
    ]


def line_changes(before: str, after: str, *, context: int = 3) -> list[Piece]:
    """Line by line; lines that are further than `context` from any change are counted only."""
    found = changes(before.split("\n"), after.split("\n"))
    changed = [at for at, piece in enumerate(found) if piece.change is not Change.SAME]
    near = {n for at in changed for n in range(at - context, at + context + 1)}
    shown: list[Piece] = []
    left_out = 0
    for at, piece in enumerate(found):
        if at in near:
            shown += _counted(left_out)
            shown.append(piece)
            left_out = 0
        else:
            left_out += 1
    return [*shown, *_counted(left_out)]


def word_changes(before: str, after: str) -> list[Piece]:
    """Word by word, white space included; neighbouring words of one kind are one piece.

    >>> [f"{piece.change}:{piece.text}" for piece in word_changes("go left", "go right")]
    ['same:go ', 'gone:left', 'new:right']
    """
    joined: list[Piece] = []
    for piece in changes(_words(before), _words(after)):
        if joined and joined[-1].change is piece.change:
            joined[-1] = Piece(piece.change, joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


def _compared(before: Sequence[str], after: Sequence[str]) -> Iterator[Piece]:
    if len(before) * len(after) > MAX_PRODUCT:
        blocks = [("replace", 0, len(before), 0, len(after))]
    else:
        blocks = list(SequenceMatcher(None, before, after, autojunk=False).get_opcodes())
    for kind, first, last, new_first, new_last in blocks:
        if kind == "equal":
            yield from (Piece(Change.SAME, text) for text in before[first:last])
        else:
            yield from (Piece(Change.GONE, text) for text in before[first:last])
            yield from (Piece(Change.NEW, text) for text in after[new_first:new_last])


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for ours, theirs in zip(one, other, strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def _counted(lines: int) -> list[Piece]:
    return [Piece(Change.LEFT_OUT, str(lines))] if lines else []


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|[^\s]+", text)
