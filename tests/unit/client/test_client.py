import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from tests.unit.client.serving import Serving
from tests.unit.control.test_jobs import package, register
from turnwise import errors
from turnwise.client import Client, connect
from turnwise.client.client import _error
from turnwise.domain.job import JobStatus
from turnwise.wire.native.faults import fault

pytestmark = pytest.mark.usefixtures("no_environment")


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TURNWISE_URL", "TURNWISE_API_KEY", "TURNWISE_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client(serving: Serving) -> Iterator[Client]:
    with connect(data_dir=serving.data) as connected:
        yield connected


def test_a_job_is_followed_to_its_end(serving: Serving, client: Client):
    created = client.create_job(serving.world.job_file("walk"))
    assert (created["name"], created["job_id"]) == ("walk", "job_a")

    events = list(client.follow("walk"))

    assert [event["seq"] for event in events] == [1, 2, 3, 4, 5]
    assert [event["kind"] for event in events] == ["status", "status", "log", "metrics", "status"]
    assert events[-1]["body"]["status"] == "COMPLETED"
    assert [event["seq"] for event in client.follow("walk", kinds=("metrics",))] == [4]
    assert list(client.follow("walk", after=5)) == []
    assert client.wait("walk")["status"] == "COMPLETED"


def test_a_follower_of_one_kind_ends_when_the_job_is_stopped(serving: Serving, client: Client):
    serving.world.outcome = None
    client.create_job(serving.world.job_file("walk"))
    followed = client.follow("walk", kinds=("metrics",))
    assert next(followed)["seq"] == 4

    client.stop("walk")

    assert list(followed) == []
    assert client.job("walk")["status"] == "STOPPED"


def test_every_question_is_answered(serving: Serving, client: Client, tmp_path: Path):
    job_file = serving.world.job_file("walk")
    assert client.validate_job(job_file)["schedule"]["max_epochs"] == 1
    serving.world.outcome = JobStatus.FAILED
    client.create_job(job_file)
    assert client.wait("walk", poll_s=0.01)["status"] == "FAILED"
    serving.call(register(serving.world, package(serving.world)))

    assert [job["name"] for job in client.jobs()] == ["walk"]
    assert client.jobs(status="COMPLETED") == []
    assert client.metrics("walk", names=("training/",)) == {
        "training/loss": [{"step": 0, "value": 0.5, "seq": 4}]
    }
    assert client.ledger("walk") == []
    assert client.usage("walk")["sample_tokens"] == 0
    assert client.rollouts("walk", step=0, purpose=None) == {"rollouts": [], "next_after": None}
    assert [model["name"] for model in client.models(group="walk")] == ["walk/1"]
    assert client.model("walk")["package_id"] == "package_a"
    client.export_model("walk/1", tmp_path / "tuned")
    assert [file.name for file in (tmp_path / "tuned").iterdir()] == ["adapter_config.json"]
    assert client.resume("walk")["name"] == "walk"
    client.wait("walk", poll_s=0.01)
    assert client.delete("walk")["name"] == "walk"
    assert client.jobs() == []


def test_errors_are_raised_as_the_server_raised_them(serving: Serving, client: Client):
    with pytest.raises(errors.InvalidInput) as refused:
        client.create_job(serving.world.job_file("walk", seed="many"))
    assert str(refused.value) == "seed: 'many' is not a whole number"
    assert (refused.value.field, refused.value.value) == ("seed", "'many'")
    with pytest.raises(errors.NotFound, match="rollout 'rol_a' does not exist"):
        client.rollout("rol_a")
    with pytest.raises(errors.NotFound, match=r"job 'walk\?#%' does not exist"):
        client.stop("walk?#%")
    with Client(serving.url, "tw_guess") as guesser, pytest.raises(errors.Unauthenticated):
        guesser.jobs()


@pytest.mark.parametrize(
    "error",
    [
        errors.NotFound("model", "walk", remedy="look at the list"),
        errors.LimitExceeded("full", retry_after_s=2.0),
        errors.ProcessDied("the engine died"),
        errors.StorageFull("the disk is full"),
        errors.ParityExceeded("too far apart"),
    ],
)
def test_an_error_keeps_its_class_its_text_and_its_facts(error: errors.TurnwiseError):
    status, body, _ = fault(error)
    raised = _error(httpx.Response(status, json=body))
    assert (type(raised), str(raised), vars(raised)) == (type(error), str(error), vars(error))


class _Proxy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(502, "Bad Gateway")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_an_answer_in_another_shape_is_shown_as_it_is():
    with HTTPServer(("127.0.0.1", 0), _Proxy) as proxy:
        answering = threading.Thread(target=proxy.handle_request)
        answering.start()
        url = f"http://127.0.0.1:{proxy.server_address[1]}"
        with Client(url, "key") as client, pytest.raises(errors.TurnwiseError) as refused:
            client.jobs()
        answering.join()
    assert str(refused.value).startswith("the server answered 502: ")


def test_a_server_that_is_not_there_is_said_to_be():
    with Client("http://127.0.0.1:9", "key") as client, pytest.raises(errors.Unavailable) as gone:
        client.jobs()
    assert "no server answers at http://127.0.0.1:9" in str(gone.value)
    assert str(gone.value).endswith("start one with `turnwise serve`")


def leave_files(folder: Path) -> None:
    (folder / "server.url").write_text("http://127.0.0.1:7000\n")
    (folder / "admin.key").write_text("tw_local\n")


def key_of(client: Client) -> str:
    return client._http.headers["authorization"]


def test_arguments_win_over_the_environment_and_that_over_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    leave_files(tmp_path)
    with connect(data_dir=tmp_path) as client:
        assert (client.url, key_of(client)) == ("http://127.0.0.1:7000", "Bearer tw_local")
    monkeypatch.setenv("TURNWISE_URL", "http://there/")
    monkeypatch.setenv("TURNWISE_API_KEY", "tw_env")
    with connect(data_dir=tmp_path) as client:
        assert (client.url, key_of(client)) == ("http://there", "Bearer tw_env")
    with connect("http://here", "tw_given", data_dir=tmp_path) as client:
        assert (client.url, key_of(client)) == ("http://here", "Bearer tw_given")


def test_the_local_servers_key_is_sent_to_no_other_machine(tmp_path: Path):
    leave_files(tmp_path)
    with connect("http://localhost:8421", data_dir=tmp_path) as client:
        assert key_of(client) == "Bearer tw_local"
    with pytest.raises(errors.Unauthenticated) as refused:
        connect("https://elsewhere.example", data_dir=tmp_path)
    assert str(refused.value) == (
        "no API key for https://elsewhere.example: set TURNWISE_API_KEY, or name the data folder "
        f"of a server on this machine with --data-dir (looked in {tmp_path})"
    )


def test_what_is_no_address_is_refused(tmp_path: Path):
    with pytest.raises(errors.InvalidInput, match="url: 'localhost' is no HTTP address"):
        connect("localhost", data_dir=tmp_path)
