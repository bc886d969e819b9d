"""One server, one model and one trained job for all tests that need no other."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.wire.aws.clients.answering import Json, answering
from tests.wire.aws.clients.place import BASE, RECIPE, Place
from tests.wire.aws.clients.playing import playing
from tests.wire.aws.clients.running import RunningJob
from tests.wire.aws.clients.service import Server, save_model

#: Unfinished training jobs of the account: the one that lends rollouts, and one of a test.
QUOTA = 2


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with an empty data folder."""
    folder = tmp_path_factory.mktemp("server") / "data"
    started = Server(folder, TURNWISE_QUOTA_TRAINING_JOBS=str(QUOTA))
    yield started
    started.stop()
    print(started.log.read_text())


@pytest.fixture(scope="session")
def env(server: Server) -> dict[str, str]:
    """What a user's shell has after `eval "$(turnwise env)"`."""
    return server.env()


@pytest.fixture(scope="session")
def shell(env: dict[str, str]) -> Iterator[dict[str, str]]:
    """The same, set: clients read it when they are imported.

    What goes past the endpoint, as the SDK's reports of its use do, ends at a port where nobody
    listens. (The SDK's own way to turn them off has it check its settings, a fifth of a second,
    before each call.)
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        patch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        yield env


@pytest.fixture(scope="session")
def tiny_model(server: Server) -> Path:
    """A tiny random model with its tokenizer and recipe, which the hub has as `BASE`."""
    folder = server.data_dir / "models" / BASE
    folder.parent.mkdir(exist_ok=True)
    save_model(folder)
    (folder / "turnwise-recipe.json").write_text(json.dumps(RECIPE))
    return folder


@pytest.fixture(scope="session")
def place(
    server: Server,
    shell: dict[str, str],
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    """What jobs are made of. Of its agents, one plays, one is silent, and one is not there."""

    def accept(path: str, payload: Json) -> tuple[int, object]:
        return 200, {"status": "accepted"}

    with playing() as (player, url), answering(accept) as silent:
        agents = {"player": url, "silent": silent, "nobody": "http://127.0.0.1:9"}
        yield Place(server, shell, player, agents, tmp_path_factory.mktemp("place"))


@dataclass(frozen=True)
class Trained:
    """A training job that the SDK has waited for: `MultiTurnRLTrainer(...).train(wait=True)`."""

    trainer: Any
    job: Any  # AgentRFTJob
    printed: str

    @property
    def name(self) -> str:
        """The job's name."""
        return str(self.job.job_name)


@pytest.fixture(scope="session")
def trained(place: Place) -> Trained:
    """Two steps, shown in the experiment "walks" as the run "walk"."""
    printed = io.StringIO()
    trainer = place.trainer(
        base_job_name="walk", mlflow_experiment_name="walks", mlflow_run_name="walk"
    )
    with contextlib.redirect_stdout(printed):
        job = trainer.train(wait=True)
    assert job.job_status == "Completed", job.failure_reason
    return Trained(trainer, job, printed.getvalue())


@pytest.fixture(scope="session")
def running(
    server: Server, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningJob]:
    """A training job that lends open rollouts; started when a test first asks for it."""
    job = RunningJob(server, tmp_path_factory.mktemp("running"), tiny_model)
    yield job
    job.close()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sagemaker SDK writes files where it is run."""
    monkeypatch.chdir(tmp_path)
