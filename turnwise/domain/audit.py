"""The audit trail: who called what, as records that form a chain of digests.

    record n    digest = sha256(digest of record n-1, as bytes + the record's canonical JSON)
    segment     a sealed run of records; its digest is that of its last record, on which the first
                record of the next segment builds

So whoever changes, removes or inserts a record changes every digest after it. The head of the chain
and each segment are sealed as well, with a key that is not in the database.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

#: What the first record of an account builds on.
GENESIS = "0" * 64

Json = dict[str, Any]


class Category(StrEnum):
    """CloudTrail's two kinds of events."""

    MANAGEMENT = "Management"  # always recorded
    DATA = "Data"  # the data plane's calls: recorded once an event selector selects them


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditDraft:
    """A record before the store has numbered it.

    `body` is the record in CloudTrail's shape as canonical JSON; the other fields repeat parts of
    it, for searching. `resources` holds the ARNs and names that the call was about.
    """

    at: float  # seconds since the epoch
    category: Category
    source: str  # "sagemaker.amazonaws.com"
    name: str  # "CreateJob"
    user_name: str
    access_key_id: str
    event_id: str
    read_only: bool
    resources: tuple[str, ...]
    resource_types: tuple[str, ...]
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord(AuditDraft):
    """A record in its account's chain; `seq` counts from 1 without gaps."""

    account_id: str
    seq: int
    digest: str  # hex


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSegment:
    """A sealed run of records. `previous` is the digest that its first record builds on.

    Once `dropped_at` is set its records are gone, and `digest` is what the next one builds on.
    """

    account_id: str
    first_seq: int
    last_seq: int
    last_at: float
    previous: str
    digest: str
    seal: str
    dropped_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHead:
    """The newest record of an account's chain, and where its open segment begins."""

    account_id: str
    last_seq: int = 0
    last_at: float = 0.0
    digest: str = GENESIS
    seal: str = ""
    open_seq: int = 1  # the first record of the open segment
    open_at: float = 0.0
    open_digest: str = GENESIS  # what it builds on


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditQuery:
    """Which records to find; what is None or empty does not matter. Times in seconds, inclusive.

    `before` and `after` are exclusive bounds of `seq`: the cursors of newest and oldest first.
    """

    category: Category | None = None
    name: str = ""
    source: str = ""
    user_name: str = ""
    access_key_id: str = ""
    event_id: str = ""
    read_only: bool | None = None
    resource: str = ""
    resource_type: str = ""
    since: float | None = None
    until: float | None = None
    before: int | None = None
    after: int = 0
    newest_first: bool = True
    limit: int = 50


def chained(previous: str, body: str) -> str:
    """The digest of a record that builds on `previous`, in hex.

    >>> chained(GENESIS, "{}") == chained(GENESIS, "{}") != chained("1" * 64, "{}")
    True
    """
    return hashlib.sha256(bytes.fromhex(previous) + body.encode()).hexdigest()


class Sealer:
    """Seals what the database says of a chain with a key from outside it."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def head(self, head: AuditHead) -> str:
        """Proof in hex that the chain of an account once ended so."""
        return self._mac(f"head {head.account_id} {head.last_seq} {head.digest}")

    def segment(self, segment: AuditSegment) -> str:
        """Proof in hex that these records were once sealed; whether they are kept is not in it."""
        its = (segment.account_id, segment.first_seq, segment.last_seq, segment.last_at.hex())
        return self._mac(f"segment {its} {segment.previous} {segment.digest}")

    def _mac(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def fields_of(record: Mapping[str, Any]) -> Json:
    """What a draft repeats of a record in CloudTrail's shape."""
    identity = record["userIdentity"]
    resources = record.get("resources") or []
    names: list[str] = []
    for resource in resources:
        arn = resource["ARN"]
        names += [arn, arn.rsplit(":", 1)[-1].rsplit("/", 1)[-1]]
    return {
        "category": Category(record["eventCategory"]),
        "source": record["eventSource"],
        "name": record["eventName"],
        "user_name": identity.get("userName", ""),
        "access_key_id": identity.get("accessKeyId", ""),
        "event_id": record["eventID"],
        "read_only": record["readOnly"],
        "resources": tuple(dict.fromkeys(names)),
        "resource_types": tuple(dict.fromkeys(each["type"] for each in resources)),
    }
