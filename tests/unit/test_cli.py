"""The commands against a real server; `main` is what the `turnwise` script calls."""

import dataclasses
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tests import builders
from tests.builders import ACCOUNT
from tests.unit.client.serving import Serving
from tests.unit.control.test_jobs import package, register
from tests.unit.test_terminal import RESULTS
from turnwise import __version__, cli
from turnwise.access.keys import sha256_hex
from turnwise.client import connect
from turnwise.domain.access import Key
from turnwise.domain.evaluation import results_key, table_key
from turnwise.domain.event import EventDraft, EventKind
from turnwise.domain.job import JobStatus
from turnwise.domain.rollout import Blame, Fault, ForkCause, RolloutStatus

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass
class Said:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Run = Callable[..., Said]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TURNWISE_URL", "TURNWISE_API_KEY", "TURNWISE_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def turnwise(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command."""

    def run(*args: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            cli.main(args)
        status = ended.value.code or 0
        assert isinstance(status, int)
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return run


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    server = Serving(tmp_path)  # its data folder is "data", the CLI's default
    yield server
    server.close()


@pytest.fixture
def job_yaml(serving: Serving, tmp_path: Path) -> str:
    """A job file with relative paths."""
    file = tmp_path / "job.yaml"
    files = {"model": "model", "dataset": "train.jsonl"}
    file.write_text(yaml.safe_dump(serving.world.job_file("walk", **files)))
    return str(file)


def test_the_version_is_text_or_json(turnwise: Run):
    assert turnwise("version").out == f"{__version__}\n"
    assert turnwise("version", "--json").json == {"version": __version__}


def test_training_shows_events_and_ends_with_the_job(turnwise: Run, job_yaml: str):
    said = turnwise("train", job_yaml)
    assert (said.status, said.err) == (0, "")
    shown = [line[20:] for line in said.lines[:5]]  # after the time
    assert shown == [
        "info    status     PENDING (Pending)",
        "info    status     RUNNING (Starting)",
        "info    log        the agent [http] answers",
        "info    metrics    step 0 rollout/reward/mean=0.25 training/loss=0.5",
        "info    status     COMPLETED (Completed)",
    ]
    assert said.lines[-1].split() == ["walk", "train", "COMPLETED", "Completed", "0", "50"]


def test_training_with_json_gives_a_line_per_event_and_then_the_job(turnwise: Run, job_yaml: str):
    lines = [json.loads(line) for line in turnwise("train", job_yaml, "--json").lines]
    assert [line.get("seq") for line in lines] == [1, 2, 3, 4, 5, None]
    assert (lines[-1]["name"], lines[-1]["status"]) == ("walk", "COMPLETED")


def test_training_that_fails_exits_with_1(turnwise: Run, serving: Serving, job_yaml: str):
    serving.world.broken["walk"] = RuntimeError("no more memory")
    said = turnwise("train", job_yaml)
    assert (said.status, said.err) == (1, "")
    assert "RuntimeError: no more memory" in said.out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("batch: {group_size: 0}", "batch.group_size: 0 is out of range; must be at least 1"),
        (
            "modle: x",
            "modle: 'x' is set, but there is no such setting; did you mean model?",
        ),
    ],
)
def test_a_bad_job_file_is_refused_before_any_server_is_asked(
    turnwise: Run, tmp_path: Path, line: str, message: str
):
    file = tmp_path / "job.yaml"
    file.write_text(f"name: walk\nmodel: /m\ndataset: /d.csv\nagent: {{kind: scripted}}\n{line}\n")
    for command in ("train", "eval"):
        said = turnwise("--url", "http://127.0.0.1:9", command, str(file))
        assert (said.status, said.out, said.err) == (1, "", f"error: {message}\n")


def test_an_error_is_one_line_on_stderr_or_json(turnwise: Run, serving: Serving):
    message = "job 'walk' does not exist"
    said = turnwise("jobs", "describe", "walk")
    assert (said.status, said.out, said.err) == (1, "", f"error: {message}\n")
    said = turnwise("jobs", "describe", "walk", "--json")
    assert (said.status, said.out) == (1, "")
    assert json.loads(said.err) == {"error": {"type": "NotFound", "message": message}}


def test_a_long_error_stays_on_one_line(turnwise: Run, tmp_path: Path):
    said = turnwise("jobs", "list")
    assert said.err == (
        "error: no API key for http://127.0.0.1:8420: set TURNWISE_API_KEY, or name the data "
        "folder of a server on this machine with --data-dir (looked in data)\n"
    )


def test_jobs_are_listed_described_stopped_resumed_and_deleted(
    turnwise: Run, serving: Serving, job_yaml: str
):
    serving.world.outcome = None
    assert turnwise("train", job_yaml, "--detach", "--json").json["name"] == "walk"
    serving.call(serving.world.running("walk"))

    (listed,) = turnwise("jobs", "list", "--json").json
    assert (listed["name"], listed["status"]) == ("walk", "RUNNING")
    assert turnwise("jobs", "list", "--status", "RUNNING").lines[1].split()[:3] == [
        *("walk", "train", "RUNNING")
    ]
    described = turnwise("jobs", "describe", "walk", "--json").json
    assert yaml.safe_load(turnwise("jobs", "describe", "walk").out) == described
    assert described.pop("usage")["sample_tokens"] == 0
    assert described == listed

    assert turnwise("jobs", "stop", "walk").lines[1].split()[2].startswith("STOPP")
    serving.call(serving.world.until("walk", JobStatus.STOPPED))
    assert turnwise("jobs", "resume", "walk", "--json").json["name"] == "walk"
    assert turnwise("jobs", "delete", "walk").err == (
        "error: job 'walk' is RUNNING and cannot be deleted; stop it first\n"
    )
    turnwise("jobs", "stop", "walk")
    serving.call(serving.world.until("walk", JobStatus.STOPPED))
    assert turnwise("jobs", "delete", "walk").out == "deleted walk\n"
    assert turnwise("jobs", "list", "--json").json == []


def test_logs_are_followed_until_the_job_ends(turnwise: Run, serving: Serving, job_yaml: str):
    serving.world.outcome = None
    turnwise("train", job_yaml, "--detach")
    serving.call(serving.world.running("walk"))
    assert len(turnwise("jobs", "logs", "walk").lines) == 4
    serving.later(0.1, serving.world.loops["walk"].request_stop)

    said = turnwise("jobs", "logs", "walk", "-f", "--after", "2", "--json")

    assert [json.loads(line)["kind"] for line in said.lines] == ["log", "metrics", "status"]
    assert turnwise("jobs", "logs", "walk", "--kind", "log").lines[0].endswith("[http] answers")


def test_metrics_show_the_latest_values_and_every_point_as_json(
    turnwise: Run, serving: Serving, job_yaml: str
):
    turnwise("train", job_yaml)
    assert turnwise("jobs", "metrics", "walk", "--json").json["training/loss"] == [
        {"step": 0, "value": 0.5, "seq": 4}
    ]
    said = turnwise("jobs", "metrics", "walk", "--metric", "training/")
    assert [line.split() for line in said.lines] == [
        ["metric", "step", "value"],
        ["training/loss", "0", "0.5"],
    ]


async def record_rollout(serving: Serving) -> None:
    """A failed rollout of job_a with two turns, the second a fork."""
    store = serving.world.store
    await store.open_group(builders.group(job_id="job_a"))
    await store.open_rollouts([builders.rollout(job_id="job_a")])
    (prompt, completion), turn = builders.turn_with_nodes()
    reply = {"role": "assistant", "content": "\x1b[2Jgone", "tool_calls": [{"id": "call_a"}]}
    completion = dataclasses.replace(completion, messages=(reply,))
    await store.commit_turn(ACCOUNT, "rol_a", (prompt, completion), turn)
    (prompt, completion), turn = builders.turn_with_nodes(1, parent=-1)
    prompt = dataclasses.replace(prompt, fork_cause=ForkCause.REWRITTEN_HISTORY)
    await store.commit_turn(ACCOUNT, "rol_a", (prompt, completion), turn)
    await store.move_rollout(
        ACCOUNT,
        "rol_a",
        [RolloutStatus.PENDING],
        status=RolloutStatus.FAILED,
        fault=Fault(blame=Blame.AGENT, code="http_error", message="the agent answered 500"),
    )


def test_rollouts_are_listed_and_shown(turnwise: Run, serving: Serving, job_yaml: str):
    turnwise("train", job_yaml)
    serving.call(record_rollout(serving))

    (listed,) = turnwise("rollouts", "list", "walk", "--json").json["rollouts"]
    assert (listed["rollout_id"], listed["turns"], listed["tokens"]) == ("rol_a", 2, 4)
    said = turnwise("rollouts", "list", "walk", "--limit", "1", "--purpose", "train")
    assert said.lines[1].split() == ["rol_a", "train", *"0000", "FAILED", "-", "2", "4"]
    assert said.lines[2] == f"more: --after {listed['seq']}"

    assert turnwise("rollouts", "show", "rol_a").lines == [
        "rollout_id: rol_a",
        "status: FAILED",
        "reward: -",
        "fault: http_error: the agent answered 500",
        "[user] question 0",
        '[assistant] \\x1b[2Jgone [{"id": "call_a"}]',
        "── fork: rewritten_history",
        "[user] question 1",
        "[assistant] answer 1",
    ]
    assert turnwise("rollouts", "show", "rol_a", "--json").json["sampled_tokens"] == 4


def test_a_job_is_described_with_what_it_cost(turnwise: Run, serving: Serving, job_yaml: str):
    turnwise("train", job_yaml)
    serving.call(record_rollout(serving))

    usage = {
        "train_tokens": 0,
        "prefill_tokens": 6,
        "cached_prefill_tokens": 0,
        "sample_tokens": 4,
    }
    assert turnwise("jobs", "describe", "walk", "--json").json["usage"] == usage
    said = turnwise("jobs", "describe", "walk").lines
    at = said.index("usage:")
    assert said[at + 1 : at + 5] == [f"  {name}: {tokens}" for name, tokens in usage.items()]


def test_findings_are_told_with_evidence_and_remedy(turnwise: Run, serving: Serving, job_yaml: str):
    turnwise("train", job_yaml)
    assert turnwise("jobs", "findings", "walk").lines == ["no findings"]
    body = {"step": 1, "values": {"training/num_groups": 2}}
    draft = EventDraft(kind=EventKind.METRICS, body=body)
    serving.call(serving.world.store.append(ACCOUNT, "job_a", [draft]))

    said = turnwise("jobs", "findings", "walk").lines
    assert said[:2] == [
        "info: A step learns from 2 groups (few_groups)",
        "  step 1: training/num_groups = 2",
    ]
    assert said[2].startswith("  raise batch.global_batch_size")
    [found] = turnwise("jobs", "findings", "walk", "--json").json
    assert (found["code"], found["severity"]) == ("few_groups", "info")


def test_the_ledger_is_shown_per_step(turnwise: Run, serving: Serving, job_yaml: str):
    turnwise("train", job_yaml)
    assert turnwise("jobs", "ledger", "walk").lines == ["step"]
    assert turnwise("jobs", "ledger", "walk", "--json").json == []


def test_models_are_listed_and_exported_to_a_new_folder(
    turnwise: Run, serving: Serving, job_yaml: str, tmp_path: Path
):
    turnwise("train", job_yaml)
    serving.call(register(serving.world, package(serving.world)))

    assert turnwise("models", "list", "--json").json[0]["name"] == "walk/1"
    assert turnwise("models", "list").lines[1].split()[:3] == ["walk/1", "checkpoint", "0"]
    assert "package_id: package_a" in turnwise("models", "describe", "walk").lines
    assert turnwise("models", "export", "walk", "tuned").out == "wrote tuned\n"
    assert (tmp_path / "tuned" / "adapter_config.json").read_text() == "{}"
    assert turnwise("models", "export", "walk", "tuned").err == (
        "error: folder: 'tuned' exists; name a new folder\n"
    )
    assert turnwise("models", "export", "run", "other").err == (
        "error: model 'run' does not exist; `turnwise models list` shows what is registered\n"
    )


def test_a_model_is_deleted_by_its_version(turnwise: Run, serving: Serving, job_yaml: str):
    turnwise("train", job_yaml)
    serving.call(register(serving.world, package(serving.world)))
    assert turnwise("models", "delete", "walk").err == (
        "error: model: 'walk' names no version; give one, as walk/1\n"
    )
    assert turnwise("models", "delete", "walk/1").out == "deleted walk/1\n"
    assert turnwise("models", "list", "--json").json == []
    assert turnwise("models", "delete", "walk/1").err.startswith(
        "error: model package 'walk/1' does"
    )


def test_an_evaluation_is_a_job_of_its_own(
    turnwise: Run, serving: Serving, job_yaml: str, tmp_path: Path
):
    (tmp_path / "test.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "adapter_config.json").write_text("{}")

    said = turnwise(
        *(
            "eval",
            job_yaml,
            "--model",
            "tuned",
            "--model",
            "base",
            "--dataset",
            "test.jsonl",
            "--rows",
            "5",
        ),
        *("--temperature", "0.5", "--group-size", "2", "--name", "walk-test", "--detach", "--json"),
    )

    job = said.json
    assert (job["name"], job["kind"]) == ("walk-test", "evaluation")
    spec = job["spec"]
    assert spec["evaluation"]["models"] == [str(tmp_path / "tuned"), "base"]
    assert spec["dataset"] == str(tmp_path / "test.jsonl")
    assert (spec["evaluation"]["max_rows"], spec["evaluation"]["group_size"]) == (5, 2)
    assert spec["eval_sampling_params"]["temperature"] == 0.5
    named = turnwise("eval", job_yaml, "--detach", "--json").json
    assert named["name"].startswith("walk-eval-")
    assert (named["spec"]["dataset"], named["spec"]["evaluation"]["models"]) == (
        str(tmp_path / "train.jsonl"),
        ["base"],
    )
    Path(job_yaml).write_text(Path(job_yaml).read_text() + "\nresume_from: walk-checkpoints/3\n")
    assert turnwise("eval", job_yaml, "--detach", "--json", "--name", "on").json["name"] == "on"
    assert turnwise("eval", job_yaml, "--temperature", "-1").err == (
        "error: eval_sampling_params.temperature: -1.0 is out of range; "
        "must be at least 0 and at most 100\n"
    )


def test_an_evaluations_results_are_shown_at_its_end_and_again_later(
    turnwise: Run, serving: Serving, job_yaml: str, tmp_path: Path
):
    serving.world.blobs.path(results_key("job_a")).write_text(json.dumps(RESULTS))
    serving.world.blobs.path(table_key("job_a")).write_text("row\r\n0\r\n", newline="")

    said = turnwise("eval", job_yaml, "--name", "judged").lines
    at = next(place for place, line in enumerate(said) if line.startswith("12 rows"))
    assert turnwise("jobs", "results", "judged").lines == said[at - 1 :]
    assert turnwise("jobs", "results", "judged", "--json").json == RESULTS
    assert turnwise("eval", job_yaml, "--name", "other", "--json").status == 0
    assert turnwise("jobs", "results", "judged", "--csv", "t.csv").out == "wrote t.csv\n"
    assert (tmp_path / "t.csv").read_bytes() == b"row\r\n0\r\n"
    assert turnwise("jobs", "results", "other").err == (
        "error: job 'other' is COMPLETED and has no results\n"
    )


def test_serve_says_what_is_wrong_with_a_setting_or_an_address(
    turnwise: Run, monkeypatch: pytest.MonkeyPatch
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert turnwise("serve", "--port", port).err == (
            f"error: port: {port} is in use; choose another one, or 0, with --port\n"
        )
    monkeypatch.setenv("TURNWISE_PORT", "http")
    assert turnwise("serve").err == (
        "error: TURNWISE_PORT: 'http' is not allowed; must be a whole number, 0 to 65535\n"
    )


def test_env_prints_what_brings_awss_clients_here_for_a_shell_and_as_json(
    turnwise: Run, serving: Serving
):
    variables = turnwise("env", "--json").json
    assert variables == {
        "AWS_ENDPOINT_URL": serving.url,
        "AWS_REGION": "us-west-2",
        "AWS_DEFAULT_REGION": "us-west-2",
        "AWS_ACCESS_KEY_ID": variables["AWS_ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": serving.key,
        "SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT": serving.url,
        "RFT_RUNTIME_ENDPOINT": serving.url,
        "SAGEMAKER_VALIDATE_ROLE": "false",
    }
    script = turnwise("env").out + "env"
    shell = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True)
    assert {f"{name}={value}" for name, value in variables.items()} <= set(shell.stdout.split("\n"))


def test_a_key_is_made_shown_once_used_and_revoked(turnwise: Run, serving: Serving, job_yaml: str):
    assert turnwise("train", job_yaml).status == 0
    said = turnwise("keys", "create", "ci", "--action", "read", "--job", "walk").lines
    secret, access_key_id, key_id = (line.rpartition(" ")[2] for line in said[:3])
    assert said[3] == "The key is not shown again."
    assert turnwise("--key", secret, "jobs", "list", "--json").json[0]["name"] == "walk"
    assert "this key may not manage" in turnwise("--key", secret, "keys", "list").err
    listed = turnwise("keys", "list")
    assert secret not in listed.out
    assert [key["name"] for key in turnwise("keys", "list", "--json").json] == ["admin", "ci"]
    [line] = [line for line in listed.lines if " ci " in line]
    assert line.split()[:5] == [key_id, "ci", access_key_id, "read", "job_a"]
    assert turnwise("--key", secret, "env", "--json").json["AWS_ACCESS_KEY_ID"] == access_key_id
    assert turnwise("keys", "revoke", key_id).out == f"revoked {key_id} (ci)\n"
    assert turnwise("--key", secret, "jobs", "list").status == 1
    assert turnwise("keys", "revoke", "key_x").err == "error: key 'key_x' does not exist\n"
    assert turnwise("keys", "create", "x", "--action", "fly").status == 2
    assert turnwise("keys", "create", "admin").err.startswith("error: name: 'admin' cannot be")


def test_the_operator_makes_accounts_and_their_first_keys(turnwise: Run, serving: Serving):
    assert turnwise("accounts", "create", "lab").out == "account lab, number 000000000002\n"
    assert turnwise("accounts", "list", "--json").json == [
        {"slug": "default", "number": "000000000001"},
        {"slug": "lab", "number": "000000000002"},
    ]
    made = turnwise("keys", "create", "first", "--account", "lab", "--json").json
    assert turnwise("keys", "list", "--account", "lab", "--json").json == [
        {name: value for name, value in made.items() if name != "secret"}
    ]
    with connect(serving.url, made["secret"]) as client:
        assert client.whoami() == {
            "name": "first",
            "account": "lab",
            "account_number": "000000000002",
            "region": "us-west-2",
            "access_key_id": made["access_key_id"],
            "actions": ["manage", "read", "report", "sample"],
            "job_ids": None,
            "is_operator": False,
        }
    refused = turnwise("--key", made["secret"], "accounts", "list", "--json")
    assert json.loads(refused.err)["error"]["type"] == "Denied"


def test_a_key_of_an_earlier_version_says_that_it_cannot_sign(turnwise: Run, serving: Serving):
    secret = "tw_" + "o" * 40
    old = Key(key_id="key_old", account_id=ACCOUNT, name="old", sha256=sha256_hex(secret))
    serving.call(serving.world.store.add_key(old))
    assert turnwise("--key", secret, "env").err == (
        "error: the key 'old' was made by an earlier version and cannot sign requests; "
        "make a new one with `turnwise keys create`\n"
    )


def commands(app: typer.Typer, prefix: str = "turnwise") -> Iterator[str]:
    for command in app.registered_commands:
        assert command.callback is not None
        yield f"{prefix} {command.name or command.callback.__name__}"
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, f"{prefix} {group.name}")


@pytest.mark.parametrize("command", list(commands(cli.app)))
def test_every_command_has_json_and_stands_in_the_manual(turnwise: Run, command: str):
    assert "--json" in turnwise(*command.split()[1:], "--help").out
    assert f"`{command}" in (ROOT / "docs" / "cli.md").read_text()
