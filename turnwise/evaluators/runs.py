"""Runs of evaluators under way, by the address that each asks for turns at.

{server}/e/{run id}.{run secret}/...
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from turnwise import errors
from turnwise.evaluators.joining import Joining
from turnwise.ports import NewId
from turnwise.system import random_letters

PREFIX = "/e/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, which makes the rollouts of one group.

    `tags` holds what eval-protocol's paths say of a rollout ("row_id:7"), by its id there.
    """

    run_id: str
    secret: str = field(repr=False)
    account_id: str
    joining: Joining
    tags: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Its address below the server's."""
        return f"{PREFIX}{self.run_id}.{self.secret}"


class Runs:
    """The runs of all jobs on this server. What is closed is answered no more."""

    def __init__(self, new_id: NewId) -> None:
        self._new_id = new_id
        self._open: dict[str, Run] = {}

    def open(self, account_id: str, rollout_ids: Sequence[str]) -> Run:
        """A run that may ask for turns of these rollouts from now on."""
        run = Run(
            run_id=self._new_id("run"),
            secret=random_letters(32),
            account_id=account_id,
            joining=Joining(rollout_ids),
        )
        self._open[run.run_id] = run
        return run

    def close(self, run: Run) -> None:
        """It has ended."""
        self._open.pop(run.run_id, None)

    def find(self, run_id: str, secret: str) -> Run:
        """Raises `Unauthenticated` for what is no run's secret, or one's that has ended."""
        run = self._open.get(run_id)
        if run is None or not hmac.compare_digest(run.secret.encode(), secret.encode()):
            raise errors.Unauthenticated(
                "the secret in the path is not that of an evaluator's run, or the run has ended"
            )
        return run
