"""Who is calling, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from turnwise import errors


class Action(StrEnum):
    """What a key may be allowed to do."""

    MANAGE = "manage"  # create, stop, resume, delete jobs; models; keys
    READ = "read"  # describe, list, logs, metrics
    SAMPLE = "sample"  # ask for a model turn, inside a rollout or of a registered model
    REPORT = "report"  # complete a rollout, report its reward


ALL_ACTIONS: frozenset[Action] = frozenset(Action)

#: The name of the key in the data folder, the operator's; nobody else's key may have it.
ADMIN = "admin"

#: The operator's own account, there from the first start. Only its keys may name what lies on the
#: server's machine: files, Python functions, and the buckets that its own credentials open.
OPERATORS = "acc_default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One tenant. `number` is the 12-digit id that AWS shapes need.

    >>> Account(account_id="acc_a", slug="default", number="000000000001").slug
    'default'
    """

    account_id: str
    slug: str
    number: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A verified caller. Made by a door, required by control and gateway.

    `job_ids` and `rollout_id`, where set, narrow the key to these jobs or to one rollout. The
    operator, who holds the data folder, also makes accounts and keys for them.

    >>> agent = Principal(account_id="a", actions=frozenset({Action.SAMPLE}), rollout_id="r1")
    >>> agent.allows(Action.SAMPLE, rollout_id="r1"), agent.allows(Action.SAMPLE, rollout_id="r2")
    (True, False)
    """

    account_id: str
    actions: frozenset[Action] = ALL_ACTIONS
    job_ids: frozenset[str] | None = None
    rollout_id: str | None = None
    name: str = ""
    access_key_id: str = ""
    is_operator: bool = False

    @property
    def user_name(self) -> str:
        """Its name in the letters that IAM allows of a user's."""
        kept = [c if c.isascii() and (c.isalnum() or c in "+=,.@_-") else "-" for c in self.name]
        return "".join(kept)[:64] or "key"

    def allows(
        self, action: Action, *, job_id: str | None = None, rollout_id: str | None = None
    ) -> bool:
        """Whether the action is granted on that job or rollout."""
        if action not in self.actions:
            return False
        if self.rollout_id is not None and rollout_id != self.rollout_id:
            return False
        return self.job_ids is None or job_id is None or job_id in self.job_ids

    def require(
        self, action: Action, *, job_id: str | None = None, rollout_id: str | None = None
    ) -> None:
        """Raise `Denied` unless the action is granted."""
        if not self.allows(action, job_id=job_id, rollout_id=rollout_id):
            what = f"rollout {rollout_id!r}" if rollout_id else f"job {job_id!r}" if job_id else ""
            raise errors.Denied(f"this key may not {action.value} {what}".rstrip())

    def require_all(self, action: Action, what: str) -> None:
        """Raise `Denied` unless the action is granted on the whole account, of which `what` is."""
        self.require(action)
        if self.job_ids is not None or self.rollout_id is not None:
            raise errors.Denied(f"this key is for certain jobs; {what} are the whole account's")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as the store keeps it: never the secret in clear, only its sha256 in hex.

    One secret serves two ways: sent as it is (a bearer key), or, with `access_key_id` beside it, to
    sign requests as AWS's clients do. To verify a signature the secret itself is needed, so it is
    kept `sealed` too, with a key that is not in the database (`access.vault`).

    `job_ids`, where set, narrows it to these jobs. Times are seconds since the epoch.
    """

    key_id: str
    account_id: str
    name: str
    sha256: str
    actions: frozenset[Action] = ALL_ACTIONS
    job_ids: frozenset[str] | None = None
    created_at: float = 0.0
    revoked_at: float | None = None
    access_key_id: str = ""
    sealed: bytes | None = None

    @property
    def principal(self) -> Principal:
        """The caller that presents it."""
        return Principal(
            account_id=self.account_id,
            actions=self.actions,
            job_ids=self.job_ids,
            name=self.name,
            access_key_id=self.access_key_id,
            is_operator=self.name == ADMIN,
        )
