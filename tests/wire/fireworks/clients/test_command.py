"""`eval-protocol create rft` against a server of ours, with nothing but two variables set."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx

from tests.wire.aws.clients.service import Server
from tests.wire.fireworks.clients.conftest import (
    BASE,
    Created,
    Watched,
    calls_in_trail,
    eval_protocol,
)

ROWS_MADE = ["CreateDataset", "UploadDataset"]


def test_a_wrong_key_ends_the_command(env: dict[str, str], project: Path):
    """Contract check 1."""
    done = eval_protocol(
        env | {"FIREWORKS_API_KEY": "tw_wrong"},
        project,
        *("create", "rft", "--yes", "--skip-validation", "--base-model", BASE),
    )
    assert done.returncode == 1
    assert "Could not resolve Fireworks account id" in done.stdout + done.stderr


def test_one_command_uploads_rows_secrets_and_evaluator_and_makes_the_job(
    created: Created, long_job: Watched, sdk: Any
):
    """Contract checks 2, 8, 9."""
    name = f"accounts/default/reinforcementFineTuningJobs/{created.job}"
    assert f"Created Reinforcement Fine-tuning Job: {name}" in created.printed
    calls = [call for call in created.calls if call != "VerifyApiKey"]
    made = calls[: calls.index("CreateReinforcementFineTuningJob") + 1]
    assert [call for call in made if call.startswith(("Create", "Upload"))] == [
        *ROWS_MADE,
        "CreateEvaluationJob",
        *ROWS_MADE,
        *["CreateSecret"] * 3,
        "CreateEvaluator",
        "CreateReinforcementFineTuningJob",
    ]
    assert made.count("GetSecret NOT_FOUND") >= 3
    assert {"GetEvaluator NOT_FOUND", "GetUploadEndpointEvaluator", "GetEvaluator"} <= {*made}
    assert "ValidateUploadEvaluator" in made
    assert created.calls.count("VerifyApiKey") >= 3

    for kept in ("openai-api-key", "my-token", "fireworks-api-key"):
        secret = sdk.secrets.get(kept)
        assert secret.name == f"accounts/default/secrets/{kept}"
        assert "value" not in secret.to_dict()
    evaluator = sdk.evaluators.get(created.evaluator)
    assert (evaluator.state, evaluator.entry_point) == ("ACTIVE", "test_math.py::test_math")
    job = sdk.reinforcement_fine_tuning_jobs.get(created.job)
    assert job.evaluator == evaluator.name
    assert sdk.datasets.get(job.dataset.rpartition("/")[2]).state == "READY"


def test_the_run_on_ones_own_machine_that_comes_first_is_kept(created: Created, sdk: Any):
    """Contract checks 3, 25: rows with their scores, and a job whose evaluator is a dummy."""
    path = "/v1/accounts/default/evaluationJobs"
    (run,) = sdk.get(path, cast_to=object)["evaluationJobs"]
    assert run["evaluator"] == "accounts/default/evaluators/dummy"
    id = run["outputDataset"].rpartition("/")[2]
    (url,) = sdk.datasets.get_download_endpoint(id).filename_to_signed_urls.values()
    rows = [json.loads(line) for line in httpx.get(url).text.splitlines()]
    assert len(rows) == 2
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        said = row["messages"][1]["content"]
        assert row["evals"]["score"] == 0.1 + len(said) % 7 / 10


def test_the_links_that_the_command_prints_open(server: Server, created: Created):
    """Contract check 22."""
    links = re.findall(r"https?://\S+/dashboard/\S+", created.printed)
    ours = {link for link in links if link.startswith(server.url)}
    assert {link.removeprefix(f"{server.url}/dashboard/").split("/")[0] for link in ours} == {
        "fine-tuning",
        "evaluators",
        "datasets",
    }
    with httpx.Client(base_url=server.url, follow_redirects=True, timeout=60) as browser:
        assert "/dashboard/sign-in" in str(browser.get(next(iter(ours))).url)
        browser.post("/dashboard/sign-in", data={"key": server.key})
        for link in ours:
            page = browser.get(link)
            assert page.status_code == 200, link
            assert "/sign-in" not in page.url.path
            assert link.rpartition("/")[2] in page.text


def test_what_is_wrong_is_what_the_command_prints(
    server: Server, env: dict[str, str], project: Path, created: Created
):
    """Contract check 8: the second time, secrets are there and are changed."""
    assert calls_in_trail(server, name="UpdateSecret") == []
    done = eval_protocol(
        env,
        project,
        *("create", "rft", "--yes", "--skip-validation", "--base-model", BASE),
        *("--dataset", "nothing", "--evaluator", created.evaluator, "--learning-rate", "0.01"),
    )
    assert done.returncode == 1
    said = "Learning rate 1e-2 outside valid range [1e-5, 5e-4]"
    assert said in done.stdout + done.stderr
    assert calls_in_trail(server, name="UpdateSecret") == ["UpdateSecret"] * 3
    assert calls_in_trail(server, name="CreateSecret") == ["CreateSecret"] * 3
