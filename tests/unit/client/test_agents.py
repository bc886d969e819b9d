from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import unused_port

from tests.unit.client.serving import Serving
from turnwise import errors
from turnwise.client import Client
from turnwise.client.running import run_agent


@pytest.fixture
def client(serving: Serving) -> Iterator[Client]:
    with Client(serving.url, serving.key) as opened:
        yield opened


def texts(client: Client, name: str = "walker") -> list[tuple[str, str]]:
    return [(entry["kind"], entry["text"]) for entry in client.agent_log(name)]


def test_an_agent_is_registered_shown_listed_and_removed_with_its_log(client: Client) -> None:
    made = client.register_agent("walker", "http://127.0.0.1:1", "lambda")
    assert made["arn"] == "arn:aws:lambda:us-west-2:000000000001:function:walker"
    assert (made["as"], made["log_group"]) == ("lambda", "/aws/lambda/walker")
    assert client.agents() == [client.agent("walker")] == [made]
    client.print_agent_lines("walker", ["hello", "world"])
    assert texts(client) == [("printed", "hello"), ("printed", "world")]
    [last] = client.agent_log("walker", after=client.agent_log("walker")[0]["seq"])
    assert last["text"] == "world"

    assert client.remove_agent("walker") == made
    with pytest.raises(errors.NotFound, match="turnwise agents register NAME URL"):
        client.agent("walker")
    client.register_agent("walker", "http://127.0.0.1:1", "lambda")
    assert texts(client) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "body: [] is not an agent"),
        ({"url": "http://a:1"}, "name: None is not text"),
        ({"name": "walker", "url": 5}, "url: 5 is not text"),
        (
            {"name": "walker", "url": "http://a:1", "as": "ftp"},
            "as: 'ftp' is not a choice; allowed: lambda, agentcore, http",
        ),
    ],
)
def test_a_registration_that_cannot_be_says_what_is_wrong(
    client: Client, body: Any, said: str
) -> None:
    with pytest.raises(errors.InvalidInput) as raised:
        client._call("POST", "/api/v1/agents", json=body)
    assert str(raised.value).startswith(said)
    assert client.agents() == []


def test_a_test_of_an_agent_that_is_down_says_so_and_is_in_its_log(client: Client) -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    client.register_agent("walker", url, "agentcore")
    found = client.test_agent("walker")
    assert (found["is_healthy"], found["is_reached"]) == (False, False)
    assert found["problem"].startswith(f"the agent cannot be reached: GET {url}/ping: ")
    (received, payload), (failed, why) = texts(client)
    assert (received, failed) == ("received", "failed")
    assert '"prompt": "test"' in payload
    assert why.startswith(f"POST {url}/invocations: ")


def test_a_job_takes_a_registered_agent_by_its_name(client: Client, serving: Serving) -> None:
    client.register_agent("walker", "http://127.0.0.1:1", "agentcore")
    job = client.create_job(serving.world.job_file("walk", agent={"name": "walker"}))
    assert job["spec"]["agent"] == {
        "kind": "agentcore",
        "url": "http://127.0.0.1:1",
        "target": "",
        "name": "walker",
        "extra_body": "",
    }
    with pytest.raises(errors.NotFound, match="agent 'gone' does not exist; register it"):
        client.create_job(serving.world.job_file("lost", agent={"name": "gone"}))
    assert [each["name"] for each in client.jobs()] == ["walk"]


# ── agents run ────────────────────────────────────────────────────────────────────────────────


def run(client: Client, program: str, **more: Any) -> tuple[int, list[tuple[str, bytes]]]:
    shown: list[tuple[str, bytes]] = []
    more.setdefault("show", lambda stream, line: shown.append((stream, line)))
    command = [sys.executable, "-c", program]
    return run_agent(client, "walker", command, warn=more.pop("warn", print), **more), shown


def test_what_an_agent_prints_is_shown_and_kept_and_its_exit_status_is_ours(
    client: Client,
) -> None:
    client.register_agent("walker", "http://127.0.0.1:1", "http")
    program = (
        "import sys\n"
        "for n in range(2500): print('line', n)\n"
        "print('w\\u00e9', file=sys.stderr)\n"
        "sys.exit(3)"
    )
    status, shown = run(client, program)
    assert status == 3
    assert shown.count(("stdout", b"line 7\n")) == 1
    assert ("stderr", "wé\n".encode()) in shown
    pages: list[tuple[str, str]] = []
    after = 0
    while page := client.agent_log("walker", after=after):
        pages += [(entry["kind"], entry["text"]) for entry in page]
        after = page[-1]["seq"]
    assert [text for _, text in pages if text != "wé"] == [f"line {n}" for n in range(2500)]
    assert ("printed", "wé") in pages


def test_a_signal_goes_to_the_agent_and_all_that_it_started(client: Client, tmp_path: Path) -> None:
    client.register_agent("walker", "http://127.0.0.1:1", "http")
    program = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen(['sleep', '100'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "print('ready')\n"
        "time.sleep(100)"
    )

    def show(stream: str, line: bytes) -> None:
        if line == b"ready\n":
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    status, _ = run(client, program, show=show)
    assert status == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    grandchild = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not grandchild.exists() or grandchild.read_text().split()[2] == "Z"


class Away:
    """A server that cannot be reached for the first two reports."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._refusals = 2

    def agent(self, name: str) -> dict[str, Any]:
        return {"name": name}

    def print_agent_lines(self, name: str, lines: Sequence[str]) -> None:
        if self._refusals:
            self._refusals -= 1
            raise errors.Unavailable("no server answers")
        self.lines += lines


def test_a_server_that_is_away_costs_no_line_and_is_told_of_once() -> None:
    away, warnings = Away(), list[str]()
    program = "import time\nprint('one')\ntime.sleep(1)\nprint('two')\ntime.sleep(0.5)"
    status, _ = run(away, program, warn=warnings.append)  # type: ignore[arg-type]
    assert (status, away.lines) == (0, ["one", "two"])
    assert warnings == ["the agent's output is not kept for now: no server answers"]


def test_nothing_is_started_for_a_name_or_a_command_that_does_not_exist(client: Client) -> None:
    with pytest.raises(errors.NotFound):
        run(client, "raise SystemExit(1)")
    client.register_agent("walker", "http://127.0.0.1:1", "http")
    with pytest.raises(errors.InvalidInput, match=r"command: '/no/such' cannot be run"):
        run_agent(client, "walker", ["/no/such"], warn=print)
