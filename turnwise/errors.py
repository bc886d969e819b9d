"""Everything that can go wrong, as one tree. No HTTP codes: each door has its own table.

    TurnwiseError
    ├── InvalidInput          a field, its value, and what would be right
    │   └── PromptTooLong     more tokens than the model can read
    ├── NotFound              no such job, rollout, model ... in this account
    ├── Conflict              the thing exists, but not in a state that allows this
    │   ├── NotInValidStatus  a rollout that is closed to this call
    │   └── OverBudget        a rollout that has sampled all the tokens it may
    ├── AccessError
    │   ├── Unauthenticated   no valid key
    │   │   ├── BadSignature  a signature or a signed token that is not valid (any more)
    │   │   └── UnknownKey    a signature by an access key that does not exist
    │   └── Denied            a valid key without the right
    ├── LimitExceeded         a quota or a full queue; `retry_after_s` when waiting helps
    ├── Unavailable           a part of the service is down; `retry_after_s` when waiting helps
    │   ├── ProcessDied       the engine's or the learner's process ended
    │   └── TooSlow           an answer did not come within its time limit
    ├── AgentDenied           the agent refuses to be called by the service
    ├── FolderLocked          another server holds the data folder
    ├── StorageFull           the disk is full; nothing half-written stays
    ├── Corrupted             a file does not match its hash
    ├── NothingScored         an evaluation of which every rollout failed
    └── ParityExceeded        sampler and learner disagree about the same tokens

A failed rollout is none of these: it is data, a `domain.rollout.Fault` on its trajectory.
"""

from __future__ import annotations


def sendable(text: str) -> str:
    r"""Text that every door can encode: half a surrogate pair is shown by its number.

    >>> sendable("a\ud800")
    'a\\ud800'
    """
    return text.encode("utf-8", "backslashreplace").decode()


class TurnwiseError(Exception):
    """Base of all errors that Turnwise raises on purpose."""

    def __str__(self) -> str:
        """The message, whatever names of the client's are in it."""
        return sendable(super().__str__())


class InvalidInput(TurnwiseError, ValueError):
    """Input that a user can mend: names the field, the value and the remedy.

    >>> str(InvalidInput("group_size", 1, "must be at least 2", remedy="use 2 to 32"))
    'group_size: 1 must be at least 2; use 2 to 32'
    """

    def __init__(self, field: str, value: object, reason: str, *, remedy: str = "") -> None:
        self.field = sendable(field)
        self.value = value
        self.reason = reason
        self.remedy = remedy
        shown = repr(value)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        super().__init__(f"{field}: {shown} {reason}" + (f"; {remedy}" if remedy else ""))


class PromptTooLong(InvalidInput):
    """The messages render to more tokens than the model can read."""


class NotFound(TurnwiseError):
    """Nothing of that kind and id is visible to the caller.

    >>> str(NotFound("job", "walk"))
    "job 'walk' does not exist"
    """

    def __init__(self, kind: str, id: str, *, remedy: str = "") -> None:
        self.kind = kind
        self.id = sendable(id)
        super().__init__(f"{kind} {id!r} does not exist" + (f"; {remedy}" if remedy else ""))


class Conflict(TurnwiseError):
    """The state of the thing does not allow the call."""


class NotInValidStatus(Conflict):
    """The rollout's status does not allow the call; waiting does not help."""


class OverBudget(Conflict):
    """The rollout has sampled all the tokens it may; waiting does not help.

    It goes on: its agent may still complete it and report a reward.
    """


class AccessError(TurnwiseError):
    """The caller may not do this."""


class Unauthenticated(AccessError):
    """No key, or a key that does not exist or has been revoked."""


class BadSignature(Unauthenticated):
    """A signed request, URL or token whose signature is wrong, expired or for another place."""


class UnknownKey(Unauthenticated):
    """A signature by an access key that does not exist or has been revoked."""


class Denied(AccessError):
    """A valid key that does not carry this right."""


class LimitExceeded(TurnwiseError):
    """A quota is used up or a queue is full."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Unavailable(TurnwiseError):
    """A part of the service cannot answer now."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class ProcessDied(Unavailable):
    """The process behind a handle ended before it answered."""


class TooSlow(Unavailable):
    """The answer did not come within its time limit."""


class FolderLocked(TurnwiseError):
    """Another server process uses the same data folder."""


class AgentDenied(TurnwiseError):
    """The agent refuses the service's calls, so that no rollout of the job can do better."""


class StorageFull(TurnwiseError, OSError):
    """No room on the device; what was being written has been removed again."""


class Corrupted(TurnwiseError):
    """Stored content that does not match its recorded hash."""


class NothingScored(TurnwiseError):
    """Every rollout of an evaluation failed, so that nothing is known of its models."""


class ParityExceeded(TurnwiseError):
    """Sampler and learner give the same tokens different logprobs beyond the limit."""


#: Errors by name, for crossing a process boundary without pickle.
BY_NAME: dict[str, type[TurnwiseError]] = {
    cls.__name__: cls
    for cls in (
        TurnwiseError,
        Conflict,
        Unauthenticated,
        Denied,
        LimitExceeded,
        Unavailable,
        ProcessDied,
        FolderLocked,
        StorageFull,
        Corrupted,
        ParityExceeded,
    )
}
