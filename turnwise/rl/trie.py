"""Rows merged where they begin alike, so that a forward pass computes a shared beginning once.

    [P1 C1 P2 C2]            [P1] [C1 P2 C2] [C1' P2 C2'] [C1" P3 C3"]
    [P1 C1' P2 C2']    ->     `--- what the rows share; each then goes on alone
    [P1 C1" P3 C3"]

A trie's tokens lie depth first: a segment, then all that follows from it. So the descendants of a
segment are one range, and a token at place i follows from one at place j exactly if j <= i and i
lies before the end of the last descendant of j's segment. Nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from turnwise.domain.rollout import Tokens

Ints = npt.NDArray[np.int64]

# What a segment costs beyond its tokens (attention calls of its own), and a pass (a call of every
# layer), in tokens of a small model on a CPU; larger models make both cheaper. A shared run shorter
# than a segment's price is computed once per row instead.
SEGMENT_TOKENS = 16
PASS_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A longest run of tokens that the same rows share, at the places [start, end) of a trie."""

    start: int
    end: int
    until: int  # end of its last descendant; `end` if it has none
    depth: int  # place of its first token in its rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Trie:
    """Some rows, each of their tokens once.

    >>> (found,) = tries([np.array([*range(20), 40]), np.array([*range(20), 30, 31])], budget=100)
    >>> found.rows, found.tokens.tolist()[18:]
    ((1, 0), [18, 19, 30, 31, 40])
    >>> [(s.start, s.end, s.until, s.depth) for s in found.segments]
    [(0, 20, 23, 0), (20, 22, 22, 20), (22, 23, 23, 20)]
    >>> found.places[1].tolist()[18:]
    [18, 19, 22]
    """

    rows: tuple[int, ...]  # [R] indices into what was given
    tokens: Ints  # [T]
    segments: tuple[Segment, ...]  # by start; together they cover 0..T
    places: tuple[Ints, ...]  # [R][length of the row] where each of its tokens lies

    @property
    def price(self) -> int:
        """What computing it costs, in tokens."""
        return len(self.tokens) + SEGMENT_TOKENS * len(self.segments)


def tries(rows: Sequence[Tokens], budget: int) -> list[Trie]:
    """Lay rows out in the tries of at most `budget` tokens that repeat least of what is shared.

    A row longer than the budget gets a trie of its own; rows of length 0 are left out. Neither
    tries nor places depend on the order of the rows, but for equal ones.
    """
    # Big-endian bytes sort as the tokens do: rows that begin alike become neighbours.
    keys = [row.astype(">u4").tobytes() for row in rows]
    order = sorted((i for i in range(len(rows)) if len(rows[i])), key=keys.__getitem__)
    if not order:
        return []
    ordered = [rows[i] for i in order]
    lengths = np.array([len(row) for row in ordered])
    shared = _worth_sharing(_shared(ordered), lengths)
    return [
        _trie(order[first:last], ordered[first:last], shared[first:last])
        for first, last in _parts(lengths, shared, budget)
    ]


def depths(segments: Sequence[Segment]) -> Ints:
    """Each token's place in its rows, [T]."""
    return np.concatenate([np.arange(s.end - s.start) + s.depth for s in segments])


def untils(segments: Sequence[Segment]) -> Ints:
    """For each token, the end of the range of those that follow from it, [T]."""
    return np.repeat([s.until for s in segments], [s.end - s.start for s in segments])


def _shared(rows: Sequence[Tokens]) -> Ints:
    """How many tokens each row has in common with the one before it, [R]; 0 for the first."""
    found = np.zeros(len(rows), dtype=np.int64)
    for i in range(1, len(rows)):
        both = min(len(rows[i - 1]), len(rows[i]))
        apart = np.flatnonzero(rows[i - 1][:both] != rows[i][:both])
        found[i] = apart[0] if len(apart) else both
    return found


def _nodes(shared: Ints, lengths: Ints) -> Iterator[tuple[int, int, int, int]]:
    """The trie's nodes, depth first: its rows [first, last) and its run [depth, end) of them.

    Runs may be empty. `shared` may be lowered within a node once it was yielded.
    """
    waiting = [(0, len(shared), 0)]
    while waiting:
        first, last, depth = waiting.pop()
        inner = shared[first + 1 : last]
        end = int(inner.min()) if len(inner) else int(lengths[first])
        edges = first + 1 + np.flatnonzero(inner == end)
        yield first, last, depth, end
        if len(inner):
            bounds = [first, *edges.tolist(), last]
            end = int(shared[edges[0]])
            children = [(a, b, end) for a, b in pairwise(bounds)]
            waiting += reversed(children)


def _worth_sharing(shared: Ints, lengths: Ints) -> Ints:
    """`shared` without the runs that are too short to have a segment of their own."""
    kept = shared.copy()
    for first, last, depth, end in _nodes(kept, lengths):
        if end - depth < SEGMENT_TOKENS:
            inner = kept[first + 1 : last]
            inner[inner == end] = depth
    return kept


def _parts(lengths: Ints, shared: Ints, budget: int) -> list[tuple[int, int]]:
    """Ranges [first, last) of rows, each within the budget, that cost least altogether.

    A range's tokens are its first row and what each later one does not share with the one before.
    """
    total = np.concatenate([[0], np.cumsum(lengths - shared)])
    least = np.zeros(len(lengths) + 1, dtype=np.int64)  # cost of the rows up to here
    firsts = np.zeros(len(lengths) + 1, dtype=np.int64)  # where the last range then begins
    for last in range(1, len(lengths) + 1):
        tokens = total[last] - total[:last] + shared[:last]
        # Tokens fall as ranges get shorter; a single row is always allowed.
        earliest = min(int(np.count_nonzero(tokens > budget)), last - 1)
        costs = least[earliest:last] + tokens[earliest:] + PASS_TOKENS
        firsts[last] = earliest + int(costs.argmin())
        least[last] = costs.min()
    parts = [(int(firsts[-1]), len(lengths))]
    while parts[-1][0] > 0:
        parts.append((int(firsts[parts[-1][0]]), parts[-1][0]))
    return parts[::-1]


def _trie(rows: Sequence[int], tokens: Sequence[Tokens], shared: Ints) -> Trie:
    lengths = np.array([len(row) for row in tokens])
    runs = [node for node in _nodes(shared, lengths) if node[3] > node[2]]
    starts = np.cumsum([0, *(end - depth for _, _, depth, end in runs)]).tolist()
    paths: list[list[Ints]] = [[] for _ in rows]
    for start, (first, last, depth, end) in zip(starts, runs, strict=False):
        for path in paths[first:last]:
            path.append(np.arange(start, start + end - depth))
    places = tuple(np.concatenate(path) for path in paths)
    segments = tuple(
        # Of the rows that share a segment, the last one's end is laid out last.
        Segment(start=start, end=stop, until=int(places[last - 1][-1]) + 1, depth=depth)
        for start, stop, (_, last, depth, _) in zip(starts, starts[1:], runs, strict=False)
    )
    return Trie(
        rows=tuple(rows),
        tokens=np.concatenate([tokens[first][depth:end] for first, _, depth, end in runs]).astype(
            np.int64
        ),
        segments=segments,
        places=places,
    )
