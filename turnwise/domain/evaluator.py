"""Uploaded evaluators: a user's pytest project that drives rollouts and scores them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EvaluatorState(StrEnum):
    """Where an evaluator stands; the names are those of the Fireworks API."""

    BUILDING = "BUILDING"  # made, and waiting for its files or being built
    ACTIVE = "ACTIVE"
    BUILD_FAILED = "BUILD_FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """One evaluator of an account.

    `entry_point` is a pytest node id below the archive's top folder, "test_math.py::test_math".
    `archive` is the blob key of its tar.gz, empty until it is uploaded. `message` says what the
    build did, or why it failed.
    """

    account_id: str
    evaluator_id: str
    entry_point: str = ""
    display_name: str = ""
    description: str = ""
    commit_hash: str = ""
    requirements: str = ""
    default_dataset: str = ""
    state: EvaluatorState = EvaluatorState.BUILDING
    message: str = ""
    archive: str = ""
    archive_sha256: str = ""
    created_by: str = ""
    created_at: float = 0.0
    updated_at: float = 0.0
