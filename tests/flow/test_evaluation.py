"""An evaluation through real processes: base and trained model side by side, with two judges."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.service import Server, agent, chatty, save_chat_model, serving
from turnwise import cli
from turnwise.client import Client

Json = dict[str, Any]


class _Judge(BaseHTTPRequestHandler):
    """Answers every score with half of the reward."""

    def do_POST(self) -> None:
        rollout = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"score": rollout["reward"] / 2}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Not a word."""


@contextlib.contextmanager
def judge() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Judge) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/score"
        finally:
            server.shutdown()
            thread.join()


def save_labelled_rows(file: Path, count: int) -> Path:
    rows = ({"prompt": f"row {n}", "kind": "odd" if n % 2 else "even"} for n in range(count))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


class World:
    """A server with a model trained for a step, registered as `run`."""

    def __init__(self, folder: Path, server: Server, client: Client, urls: tuple[str, str]) -> None:
        self.folder, self.server, self.client = folder, server, client
        self.agent, self.judge = urls
        self.job: Json = {
            "name": "run",
            "model": str(save_chat_model(folder / "model")),
            "dataset": str(save_labelled_rows(folder / "rows.jsonl", 12)),
            "label_column": "kind",
            "agent": {"url": self.agent},
            "batch": {"global_batch_size": 4, "group_size": 4},
            "schedule": {"max_steps": 1, "val_every": 0},
            "sampling_params": {"max_tokens": 12},
            "lora": {"rank": 8, "alpha": 16},
            "optimizer": {"learning_rate": 0.05},
        }
        client.create_job(self.job)
        assert client.wait("run")["status"] == "COMPLETED"

    def job_file(self, **evaluation: Any) -> str:
        file = self.folder / "job.yaml"
        job = self.job | {"eval_sampling_params": {"max_tokens": 12}, "evaluation": evaluation}
        file.write_text(yaml.safe_dump(job))
        return str(file)

    def turnwise(self, *args: str) -> int:
        """Run a command; its exit status."""
        with pytest.raises(SystemExit) as ended:
            cli.main(["--data-dir", str(self.server.data_dir), *args])
        return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("evaluation")
    with (
        agent(chatty) as url,
        judge() as judge_url,
        serving(folder / "data") as server,
        server.client() as client,
    ):
        yield World(folder, server, client, (url, judge_url))


def test_base_and_package_are_compared_by_reward_and_by_two_judges(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    scorers = [
        {"name": "brevity", "target": "tests.flow.judges:brevity"},
        {"name": "half", "url": world.judge},
    ]
    file = world.job_file(
        scorers=scorers, max_turns=2, format_pattern="[a-z]", success_threshold=0.5
    )
    status = world.turnwise(
        *("eval", file, "--model", "run", "--model", "base", "--name", "side-by-side")
    )
    said = capsys.readouterr().out

    print(said)
    assert status == 0
    results = world.client.results("side-by-side")
    assert [model["name"] for model in results["models"]] == ["run/1", "base"]
    tuned, base = (model["metrics"] for model in results["models"])
    for metrics in (tuned, base):
        assert metrics["eval/completion_rate"] == 1.0
        assert metrics["eval/turns/at_limit_frac"] == 1.0
        assert metrics["eval/metrics/completion/mean"] == 1.0
        assert metrics["eval/scorer/half/mean"] == pytest.approx(metrics["eval/reward/mean"] / 2)
        assert metrics["eval/scorer/brevity/failed"] == 1
    assert_told(said, results)
    assert_table(world, results)
    name = "eval/model/run_1/label/odd/reward/mean"
    assert name in world.client.metrics("side-by-side", names=("eval/model/",))
    # The rollouts say which model each was of.
    page = world.client.rollouts("side-by-side", limit=1000)["rollouts"]
    adapters = [rollout["pinned_adapter_id"] for rollout in page]
    assert sorted(map(str, adapters)) == sorted(
        12 * [str(model["adapter_id"]) for model in results["models"]]
    )


def assert_told(said: str, results: Json) -> None:
    """The summary holds every finding."""
    for sentence in [each["sentence"] for each in results["comparisons"]]:
        assert sentence in said
    assert "12 of 12 rows evaluated" in said
    assert "12 rows, 1 rollout per row, greedy; a success is a reward of at least 0.5" in said
    assert "run/1: 1 score by brevity missing: raised KeyError('no answer to row 3')" in said
    for word in ("reward", "success", "completed", "even", "odd", "brevity", "half"):
        assert word in said


def assert_table(world: World, results: Json) -> None:
    file = world.folder / "rows.csv"
    assert world.turnwise("jobs", "results", "side-by-side", "--csv", str(file)) == 0
    table = list(csv.DictReader(io.StringIO(file.read_text(), newline="")))
    assert [(row["row"], row["label"]) for row in table[:2]] == [("0", "even"), ("1", "odd")]
    assert [row["base: score brevity"] == "" for row in table] == [at == 3 for at in range(12)]
    rewards = [float(row["run/1: reward"]) for row in table]
    assert sum(rewards) / 12 == pytest.approx(results["models"][0]["metrics"]["eval/reward/mean"])


def test_a_scorer_that_cannot_be_imported_fails_the_job_by_its_setting(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    file = world.job_file(scorers=[{"name": "a", "target": "tests.flow.judges:no_such"}])

    assert world.turnwise("eval", file, "--name", "never") == 1
    said = capsys.readouterr()
    assert world.client.job("never")["message"] == (
        "evaluation.scorers[0].target: 'tests.flow.judges:no_such' cannot be imported (module "
        "'tests.flow.judges' has no attribute 'no_such'); install it where the server runs"
    )
    assert "cannot be imported" in said.out
    assert said.err == ""
    assert world.turnwise("jobs", "results", "never") == 1
    assert capsys.readouterr().err == "error: job 'never' is FAILED and has no results\n"


def test_a_model_whose_files_have_changed_is_not_evaluated(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    package = world.client.model("run")
    config = next(Path(package["path"]).rglob("adapter_config.json"))
    config.write_text(config.read_text().replace("16", "17"))

    assert world.turnwise("eval", world.job_file(), "--model", "run", "--name", "damaged") == 1
    assert capsys.readouterr().err == (
        f"error: model run/1: the files in {package['path']} are not as they were registered; "
        "choose another version\n"
    )
