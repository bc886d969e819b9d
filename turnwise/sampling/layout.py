"""A step as index arrays: which token sits in which row, and which rows attend to what. Numpy only.

    rows   | decode, sorted by (adapter, place) | prefill spans, by adapter | padding |

Linears run over all rows at once; LoRA over `segments` of one adapter each; attention over
`groups` of equal shape.

Deterministic mode fixes every shape that could change a rounding. Rows come in blocks of `BLOCK`
and a block holds one adapter; a prefill block is the tile of positions [k * BLOCK, (k+1) * BLOCK)
of one prompt, each position at its own row; a row's attention covers a number of keys that
depends on its own position alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from turnwise.sampling.scheduler import Entry, Plan, Span
from turnwise.sampling.slots import SlotTable

Indices = npt.NDArray[np.int64]

#: Rows per matrix product in deterministic mode, and its prefill border.
BLOCK = 32
#: Otherwise row counts are rounded up to this, so that few shapes occur: oneDNN compiles a kernel
#: for each (about a millisecond) and keeps 1024 of them.
_ROUND_ROWS = 8
#: Key counts are rounded up to this.
_ROUND_KEYS = 16
#: Decoding rows are gathered if they lie among this many times as many places.
_MAX_SPREAD = 2
#: So few attention scores (sequences x queries x keys) cost less than one more group.
_SMALL_SCORES = 1 << 15
#: The position of a sequence in a group that is of no step's concern.
NOBODY = -1


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, end) are of one adapter."""

    start: int
    end: int
    key: int


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that attend together: b sequences, w queries each, over the first `keys` positions.

    A query attends to the positions up to its own. Where a sequence has fewer than w queries its
    last one stands there again. A sequence of position `NOBODY` is a place that happens to lie
    between the others; what it attends to is not used.
    """

    rows: Indices  # [b, w]
    places: Indices  # [b]
    positions: Indices  # [b, w]
    keys: int


@dataclass(frozen=True, slots=True)
class Layout:
    """One forward: N rows in, logits of `samples` out."""

    tokens: npt.NDArray[np.int32]  # [N]
    places: Indices  # [N]; padding rows write to the scratch place, number `num_slots`
    positions: Indices  # [N]
    segments: tuple[Segment, ...]
    groups: tuple[Group, ...]
    attended: Indices  # [N] where a row is among the queries of all groups, one after the other
    samples: Indices  # [n] rows whose logits are wanted
    sample_slots: Indices  # [n] and the slots they belong to


def bucket(length: int) -> int:
    """Round a number of keys up to one of few sizes, at most a quarter larger (64 at least).

    >>> [bucket(n) for n in (1, 64, 65, 300, 1000, 1025)]
    [64, 64, 128, 320, 1024, 1280]
    """
    step = max(64, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step


def lay_out(plan: Plan, table: SlotTable, *, fixed: bool) -> Layout:
    """Lay a plan out; `fixed` is deterministic mode. The plan is not empty."""
    rows = _Rows(table, fixed=fixed)
    decode = _sorted_slots(plan.decode, table)
    decode_rows = rows.add_decode(decode)
    spans = sorted(plan.prefill, key=lambda span: span.entry.key)
    firsts = [rows.add_span(span) for span in spans]
    groups = [*_decode_groups(decode, decode_rows, table, fixed=fixed)]
    make_groups = _tile_groups if fixed else _span_groups
    groups += make_groups(spans, firsts, table)
    ended = [
        (first + span.end - 1 - rows.origin(span), span.entry.slot)
        for span, first in zip(spans, firsts, strict=True)
        if span.end == span.entry.prompt_length
    ]
    ends = np.array(ended, np.int64).reshape(-1, 2)
    tokens, places, positions = rows.arrays()
    return Layout(
        tokens=tokens,
        places=places,
        positions=positions,
        segments=rows.segments(),
        groups=tuple(groups),
        attended=_attended(groups, len(tokens)),
        samples=np.concatenate([decode_rows, ends[:, 0]]),
        sample_slots=np.concatenate([decode, ends[:, 1]]),
    )


def lay_out_sequence(tokens: npt.NDArray[np.int32], start: int, key: int, *, fixed: bool) -> Layout:
    """The next tokens of one sequence in slot 0 of its own cache; logits of all of them."""
    count = len(tokens)
    padding = -count % BLOCK if fixed else 0
    rows = np.arange(count)
    group = Group(rows[None], np.zeros(1, np.int64), start + rows[None], start + count)
    return Layout(
        tokens=np.pad(tokens, (0, padding)),
        places=np.pad(np.zeros(count, np.int64), (0, padding), constant_values=1),
        positions=np.pad(start + rows, (0, padding)),
        segments=(Segment(0, count + padding, key),),
        groups=(group,),
        attended=_attended([group], count + padding),
        samples=rows,
        sample_slots=np.zeros(count, np.int64),
    )


class _Rows:
    """Collects rows in order."""

    def __init__(self, table: SlotTable, *, fixed: bool) -> None:
        self._table = table
        self._fixed = fixed
        self._count = 0
        self._slots: list[Indices] = []
        self._positions: list[Indices] = []
        self._segments: list[Segment] = []

    def origin(self, span: Span) -> int:
        """The position that sits in a span's first row."""
        return span.start // BLOCK * BLOCK if self._fixed else span.start

    def add_decode(self, slots: Indices) -> Indices:
        """A row per slot, which are sorted by adapter; the rows' numbers, [R]."""
        if len(slots) == 0:
            return slots
        keys = self._table.key[slots]
        starts = np.flatnonzero(np.diff(keys, prepend=-2))
        ends = np.append(starts[1:], len(slots))
        numbers = []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            part = slots[start:end]
            numbers.append(self._count + np.arange(len(part)))
            self._add(part, self._table.kv[part], int(keys[start]))
        return np.concatenate(numbers)

    def add_span(self, span: Span) -> int:
        """The rows of a span; the number of its first row."""
        first, slot = self._count, span.entry.slot
        positions = np.arange(self.origin(span), span.end)
        slots = np.full(len(positions), slot)
        # In deterministic mode the positions before `start` only hold their rows; their KV exists.
        slots[: span.start - self.origin(span)] = self._table.num_slots
        self._add(slots, positions, span.entry.key)
        return first

    def segments(self) -> tuple[Segment, ...]:
        """Neighbours of the same adapter are one segment."""
        merged: list[Segment] = []
        for segment in self._segments:
            if merged and merged[-1].key == segment.key:
                merged[-1] = Segment(merged[-1].start, segment.end, segment.key)
            else:
                merged.append(segment)
        return tuple(merged)

    def arrays(self) -> tuple[npt.NDArray[np.int32], Indices, Indices]:
        """Tokens, places and positions of all rows."""
        self._pad(self._count, BLOCK if self._fixed else _ROUND_ROWS)
        slots = np.concatenate(self._slots)
        positions = np.concatenate(self._positions)
        real = slots < self._table.num_slots
        tokens = np.zeros(len(slots), np.int32)
        tokens[real] = self._table.tokens[slots[real], positions[real]]
        places = np.append(self._table.place, self._table.num_slots)[slots]
        return tokens, places, np.where(real, positions, 0)

    def _add(self, slots: Indices, positions: Indices, key: int) -> None:
        start = self._count
        self._slots.append(slots)
        self._positions.append(positions)
        self._count += len(slots)
        if self._fixed:
            self._pad(len(slots), BLOCK)
        self._segments.append(Segment(start, self._count, key))

    def _pad(self, length: int, multiple: int) -> None:
        missing = -length % multiple
        if missing:
            self._slots.append(np.full(missing, self._table.num_slots))
            self._positions.append(np.zeros(missing, np.int64))
            self._count += missing


def _sorted_slots(entries: Iterable[Entry], table: SlotTable) -> Indices:
    slots = np.fromiter((entry.slot for entry in entries), np.int64)
    return slots[np.lexsort((table.place[slots], table.key[slots]))]


def _attended(groups: Sequence[Group], num_rows: int) -> Indices:
    """Rows that no group has (padding) take what comes first; it is not used."""
    rows = np.concatenate([group.rows.ravel() for group in groups])
    asked = np.concatenate([group.positions.ravel() for group in groups]) != NOBODY
    attended = np.zeros(num_rows, np.int64)
    attended[rows[asked]] = np.flatnonzero(asked)
    return attended


def _decode_groups(
    slots: Indices, rows: Indices, table: SlotTable, *, fixed: bool
) -> Iterable[Group]:
    if len(slots) == 0:
        return
    positions, places = table.kv[slots], table.place[slots]
    if fixed or _is_uneven(positions):
        for part in _by_length(positions + 1):
            keys = bucket(int(positions[part].max()) + 1)
            yield Group(rows[part, None], places[part], positions[part, None], keys)
        return
    keys = -(-(int(positions.max()) + 1) // _ROUND_KEYS) * _ROUND_KEYS
    front = int(places.max()) + 1
    if front > _MAX_SPREAD * len(slots):
        yield Group(rows[:, None], places, positions[:, None], keys)
        return
    # Everything at the front is read in place; what does not decode is read in vain.
    all_rows, all_positions = np.full(front, rows[0]), np.full(front, NOBODY)
    all_rows[places], all_positions[places] = rows, positions
    yield Group(all_rows[:, None], np.arange(front), all_positions[:, None], keys)


def _is_uneven(positions: Indices) -> bool:
    """Whether reading up to the longest reads more than twice what they hold."""
    longest = int(positions.max())
    return longest > 256 and longest * len(positions) > 2 * int(positions.sum())


def _by_length(lengths: Indices) -> list[Indices]:
    """Those of one `bucket` together."""
    sizes = np.array([bucket(length) for length in lengths.tolist()])
    return [np.flatnonzero(sizes == size) for size in np.unique(sizes)]


def _span_groups(spans: Sequence[Span], firsts: Sequence[int], table: SlotTable) -> list[Group]:
    """All spans together, unless most of the queries or keys would then be there in vain."""
    members = list(zip(spans, firsts, strict=True))
    if not members:
        return []
    widths = np.array([span.end - span.start for span in spans])
    keys = np.array([span.end for span in spans])
    computed = len(spans) * int(widths.max()) * int(keys.max())
    if computed <= max(_SMALL_SCORES, 2 * int((widths * keys).sum())):
        return [_span_group(members, table)]
    by_size: dict[tuple[int, int], list[tuple[Span, int]]] = {}
    for width, length, member in zip(widths.tolist(), keys.tolist(), members, strict=True):
        size = (width - 1).bit_length(), (length - 1).bit_length()
        by_size.setdefault(size, []).append(member)
    return [_span_group(group, table) for group in by_size.values()]


def _span_group(members: Sequence[tuple[Span, int]], table: SlotTable) -> Group:
    lengths = np.array([span.end - span.start for span, _ in members])
    starts = np.array([span.start for span, _ in members])
    firsts = np.array([first for _, first in members])
    offsets = np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)  # [b, w]
    return Group(
        rows=firsts[:, None] + offsets,
        places=table.place[[span.entry.slot for span, _ in members]],
        positions=starts[:, None] + offsets,
        keys=int((starts + lengths).max()),
    )


def _tile_groups(spans: Sequence[Span], firsts: Sequence[int], table: SlotTable) -> list[Group]:
    by_keys: dict[int, list[tuple[int, int, int]]] = {}
    for span, first in zip(spans, firsts, strict=True):
        origin = span.start // BLOCK * BLOCK
        for tile in range(origin, span.end, BLOCK):
            member = (first + tile - origin, int(table.place[span.entry.slot]), tile)
            by_keys.setdefault(bucket(tile + BLOCK), []).append(member)
    groups = []
    for keys, members in by_keys.items():
        first_rows, places, tiles = np.array(members).T
        within = np.arange(BLOCK)
        groups.append(Group(first_rows[:, None] + within, places, tiles[:, None] + within, keys))
    return groups
