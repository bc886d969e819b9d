"""One server for all tests that do not stop, kill or configure theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wire.aws.clients.running import RunningJob, save_model
from tests.wire.aws.clients.service import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with an empty data folder."""
    started = Server(tmp_path_factory.mktemp("server") / "data")
    yield started
    started.stop()
    print(started.log.read_text())


@pytest.fixture(scope="session")
def env(server: Server) -> dict[str, str]:
    """What a user's shell has after `eval "$(turnwise env)"`."""
    return server.env()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for all jobs, so that they share an engine."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def running(
    server: Server, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningJob]:
    """A training job that lends open rollouts; started when a test first asks for it."""
    job = RunningJob(server, tmp_path_factory.mktemp("running"), model=tiny_model)
    yield job
    job.close()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sagemaker SDK writes files where it is run."""
    monkeypatch.chdir(tmp_path)
