"""Whether an account's audit trail is as it was recorded, and where it is not. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from turnwise.control.audit.record import iso
from turnwise.domain.audit import (
    GENESIS,
    AuditHead,
    AuditRecord,
    AuditSegment,
    Sealer,
    chained,
    fields_of,
)

#: Records younger than this are never dropped; a segment that is gone earlier has been taken away.
MIN_RETENTION_S = 90 * 24 * 3600.0

MAX_FLAWS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """Something that is not as it was recorded, at a record's number."""

    seq: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verification found. `first_seq` is 1, or what follows the dropped segments.

    `last_seq` and `digest` are the end of the chain. Whoever writes them down can prove later that
    nothing up to there has changed, even against someone who has the database and the master key.
    """

    records: int
    segments: int
    dropped: int
    first_seq: int
    last_seq: int
    digest: str
    flaws: tuple[Flaw, ...]

    @property
    def is_intact(self) -> bool:
        """Whether nothing was found."""
        return not self.flaws


@dataclass
class Verifier:
    """Reads a chain once, in order: `take` pages of records, then `verdict`."""

    head: AuditHead
    segments: Sequence[AuditSegment]
    sealer: Sealer
    now: float
    _flaws: list[Flaw] = field(default_factory=list, init=False)
    _records: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._ends = {each.last_seq: each for each in self.segments if each.dropped_at is None}
        self._next, self._previous = 1, GENESIS
        self._check_segments()
        self._first = self._next

    def _check_segments(self) -> None:
        """That they follow each other, and that only old ones were dropped; move to the anchor."""
        seq, digest, kept = 1, GENESIS, False
        for each in self.segments:
            if (each.first_seq, each.previous) != (seq, digest):
                self._flaw(seq, "the segment that begins here is missing or was changed")
            if each.seal != self.sealer.segment(each):
                self._flaw(each.first_seq, "the segment's seal is not this server's")
            seq, digest = each.last_seq + 1, each.digest
            if each.dropped_at is None:
                kept = True
                continue
            is_due = each.last_at + MIN_RETENTION_S <= each.dropped_at <= self.now
            if kept or not is_due:
                self._flaw(each.first_seq, f"records up to {each.last_seq} were removed too early")
            self._next, self._previous = seq, digest
        if (self.head.open_seq, self.head.open_digest) != (seq, digest):
            self._flaw(seq, "the open segment does not follow the last sealed one")

    def take(self, page: Sequence[AuditRecord]) -> None:
        """The next records, by `seq`."""
        for record in page:
            self._records += 1
            if record.seq > self._next:
                self._flaw(self._next, f"records up to {record.seq - 1} are missing")
            elif record.seq < self._next:
                self._flaw(record.seq, "was dropped, and is here")
                continue
            elif chained(self._previous, record.body) != record.digest:
                self._flaw(
                    record.seq,
                    "does not follow from the record before it: it was altered or inserted, or one "
                    "before it was removed",
                )
            if not _agrees(record):
                self._flaw(record.seq, "what is searched for is not what the record says")
            end = self._ends.get(record.seq)
            if end is not None and end.digest != record.digest:
                self._flaw(record.seq, "is not the record that its segment was sealed with")
            self._next, self._previous = record.seq + 1, record.digest

    def verdict(self) -> Verdict:
        """After the last page: whether the chain ends where it was left."""
        if self._next <= self.head.last_seq:
            self._flaw(self._next, f"records up to {self.head.last_seq} are missing at the end")
        elif self._next - 1 != self.head.last_seq or self._previous != self.head.digest:
            self._flaw(self._next - 1, "is not the last record that was appended")
        if self.head.last_seq and self.head.seal != self.sealer.head(self.head):
            self._flaw(self.head.last_seq, "the seal of the chain's end is not this server's")
        dropped = sum(each.dropped_at is not None for each in self.segments)
        return Verdict(
            records=self._records,
            segments=len(self.segments) - dropped,
            dropped=dropped,
            first_seq=self._first,
            last_seq=self.head.last_seq,
            digest=self.head.digest,
            flaws=tuple(self._flaws),
        )

    def _flaw(self, seq: int, what: str) -> None:
        if len(self._flaws) < MAX_FLAWS:
            self._flaws.append(Flaw(seq=seq, what=what))


def _agrees(record: AuditRecord) -> bool:
    """Whether the fields by which a record is found are those of its body."""
    try:
        body = json.loads(record.body)
        own = fields_of(body)
        return iso(record.at) == body["eventTime"] and all(
            getattr(record, name) == value for name, value in own.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
