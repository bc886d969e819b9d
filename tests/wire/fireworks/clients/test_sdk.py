"""The `fireworks-ai` SDK against a server of ours."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fireworks
import httpx
import pytest
from fireworks import Fireworks

from tests.wire.aws.clients.service import Server, until
from tests.wire.fireworks.clients.conftest import BASE, ROWS, Created


@pytest.fixture
def job(sdk: Any, dataset: str, created: Created) -> Iterator[dict[str, Any]]:
    """What the jobs of a test are created with; they are gone after it."""
    jobs = sdk.reinforcement_fine_tuning_jobs
    before = {made.name for made in jobs.list()}
    yield {
        "dataset": dataset,
        "evaluator": created.evaluator,
        "training_config": {"base_model": BASE},
        "loss_config": {"method": "GRPO", "kl_beta": 0.0},
        "inference_parameters": {"max_output_tokens": 16},
    }
    for made in jobs.list():
        if made.name not in before:
            jobs.delete(made.name.rpartition("/")[2])


def test_a_dataset_is_read_until_it_is_ready(sdk: Any, dataset: str):
    """Contract checks 3, 4, 5."""
    found = sdk.datasets.get("rows")
    assert (found.state, found.example_count) == ("READY", "2")
    assert dataset in [each.name for each in sdk.datasets.list()]


def test_a_verb_is_told_from_an_id_of_63_characters(sdk: Any):
    """Contract checks 7, 10."""
    id = "a-" + "b" * 61
    sdk.datasets.create(dataset_id=id, dataset={})
    urls = sdk.datasets.get_upload_endpoint(id, filename_to_size={"a.jsonl": "3"})
    url = urls.filename_to_signed_urls["a.jsonl"]
    for size in (2, 3):
        headers = {"X-Goog-Content-Length-Range": "3,3"}
        sent = httpx.put(url, content=b"{}\n"[:size], headers=headers)
        assert sent.status_code == (200 if size == 3 else 400), sent.text
    sdk.datasets.validate_upload(id, body={})
    assert sdk.datasets.get(id).state == "READY"
    sdk.datasets.delete(id)


def test_jobs_are_listed_filtered_cancelled_and_deleted(sdk: Any, job: dict[str, Any]):
    """Contract check 18."""
    jobs = sdk.reinforcement_fine_tuning_jobs
    for id in ("first", "second", "third"):
        jobs.create(reinforcement_fine_tuning_job_id=id, **job)
    asked = {"order_by": "create_time desc", "page_size": 2, "read_mask": "name,state"}
    names = [each.name.rpartition("/")[2] for each in jobs.list(**asked)]
    assert names[:3] == ["third", "second", "first"]
    assert "my-job" in names[3:]

    jobs.cancel("third", body={})
    until(lambda: jobs.get("third").state == "JOB_STATE_CANCELLED")
    with pytest.raises(fireworks.BadRequestError, match="cannot be resumed"):
        jobs.resume("third", body={})
    cancelled = jobs.list(filter='state="JOB_STATE_CANCELLED"')
    assert "third" in [each.name.rpartition("/")[2] for each in cancelled]
    jobs.delete("second")
    with pytest.raises(fireworks.NotFoundError):
        jobs.get("second")


def test_times_and_counts_have_the_types_of_the_sdk(sdk: Any, created: Created):
    """Contract check 20."""
    found = sdk.reinforcement_fine_tuning_jobs.get(created.job)
    assert isinstance(found.create_time, datetime.datetime)
    assert type(found.job_progress.percent) is int
    assert type(found.job_progress.epoch) is int


def test_an_id_that_is_taken_is_asked_for_once(
    sdk: Any, server: Server, job: dict[str, Any], created: Created
):
    """Contract checks 13, 21."""
    tries = []
    hooks = {"request": [tries.append]}
    with (
        httpx.Client(event_hooks=hooks) as http,
        Fireworks(
            api_key=server.key, base_url=server.url, account_id="default", http_client=http
        ) as client,
        pytest.raises(fireworks.ConflictError, match="already exists"),
    ):
        client.reinforcement_fine_tuning_jobs.create(
            reinforcement_fine_tuning_job_id=created.job, **job
        )
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (
            {"training_config": {"base_model": BASE, "warm_start_from": "my-rft"}},
            fireworks.BadRequestError,
            "exactly one of base_model and warm_start_from",
        ),
        (
            {"loss_config": {"method": "DAPO", "kl_beta": 0.1}},
            fireworks.BadRequestError,
            "loss_config.kl_beta must be 0/unset when method is DAPO",
        ),
        (
            {"loss_config": {"method": "GSPO_TOKEN", "kl_beta": 0.1}},
            fireworks.BadRequestError,
            "loss_config.kl_beta must be 0/unset when method is GSPO_TOKEN",
        ),
        (
            {"training_config": {"base_model": BASE, "learning_rate": 1e-2}},
            fireworks.BadRequestError,
            r"Learning rate 1e-2 outside valid range \[1e-5, 5e-4\]",
        ),
        (
            {"inference_parameters": {"response_candidates_count": 1}},
            fireworks.BadRequestError,
            "response_candidates_count",
        ),
        (
            {"evaluator": "nobody"},
            fireworks.NotFoundError,
            "Evaluator 'nobody' not found in account",
        ),
    ],
)
def test_a_refusal_is_the_sdks_error_and_says_why(
    sdk: Any, job: dict[str, Any], changes: dict[str, Any], error: type[Exception], said: str
):
    """Contract checks 15, 21."""
    with pytest.raises(error, match=said) as caught:
        sdk.reinforcement_fine_tuning_jobs.create(**job | changes)
    body = caught.value.body  # type: ignore[attr-defined]
    assert type(body["code"]) is int
    assert re.search(said, body["message"])
    assert "\n" not in body["message"]


def test_a_key_that_may_not_and_one_that_is_none_are_the_sdks_errors(server: Server):
    """Contract checks 1, 21."""
    asked = {"name": "reader", "actions": ["read"]}
    reading = server.call("POST", "/keys", asked)["secret"]
    with (
        Fireworks(api_key=reading, base_url=server.url, account_id="default") as reader,
        pytest.raises(fireworks.PermissionDeniedError, match="manage"),
    ):
        reader.datasets.create(dataset_id="mine", dataset={})
    with (
        Fireworks(api_key="tw_wrong", base_url=server.url, account_id="default") as wrong,
        pytest.raises(fireworks.AuthenticationError),
    ):
        wrong.datasets.list()
    with (
        Fireworks(api_key=server.key, base_url=server.url, account_id="other") as other,
        pytest.raises(fireworks.NotFoundError, match="this key is of 'default'"),
    ):
        other.datasets.list()


def test_a_broken_archive_and_a_missing_one_fail_their_build_with_the_reason(
    sdk: Any, tmp_path: Path
):
    """Contract checks 9, 11."""
    for id, content in (("broken", b"no archive"), ("missing", b"")):
        evaluator = {"entry_point": "test_a.py::test_a", "display_name": id}
        sdk.evaluators.create(evaluator_id=id, evaluator=evaluator)
        if content:
            sizes = {"p.tar.gz": str(len(content))}
            urls = sdk.evaluators.get_upload_endpoint(id, filename_to_size=sizes)
            headers = {"X-Goog-Content-Length-Range": f"{len(content)},{len(content)}"}
            url = urls.filename_to_signed_urls["p.tar.gz"]
            assert httpx.put(url, content=content, headers=headers).status_code == 200
        sdk.evaluators.validate_upload(id, body={})
        found = until(lambda id=id: (e := sdk.evaluators.get(id)).state != "BUILDING" and e)
        assert found.state == "BUILD_FAILED"
        assert found.status.message
        sdk.evaluators.delete(id)


def test_a_job_of_broken_rows_fails_with_the_line(sdk: Any, job: dict[str, Any], tmp_path: Path):
    """Contract check 19."""
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\n{\n")
    sdk.datasets.create(dataset_id="bad", dataset={})
    with file.open("rb") as content:
        sdk.datasets.upload("bad", file=content)
    jobs = sdk.reinforcement_fine_tuning_jobs
    jobs.create(reinforcement_fine_tuning_job_id="bad", **job | {"dataset": "bad"})
    failed = until(lambda: (j := jobs.get("bad")).state == "JOB_STATE_FAILED" and j)
    assert "Dataset validation failed: invalid JSON on line 2" in failed.status.message


def test_metrics_are_read_by_the_five_lines_of_the_documentation(server: Server, created: Created):
    """Contract check 29."""
    import requests

    account, job_id, api_key = "default", created.job, server.key
    response = requests.get(
        f"{server.url}/v1/accounts/{account}/reinforcementFineTuningJobs/{job_id}/metrics",
        headers={"Authorization": f"Bearer {api_key}"},
    )
    metrics = response.json()
    assert metrics["name"].endswith(f"{created.job}/metrics")


def test_an_output_model_is_the_same_by_its_id_and_by_its_full_name(sdk: Any, job: dict[str, Any]):
    """Contract check 16."""
    full = "accounts/default/models/out"
    jobs = sdk.reinforcement_fine_tuning_jobs
    for output in ("out", full):
        made = jobs.create(
            **job | {"training_config": {"base_model": BASE, "output_model": output}}
        )
        assert made.training_config.output_model == full
        jobs.cancel(made.name.rpartition("/")[2], body={})


def test_a_body_of_a_client_of_last_year_is_taken(
    server: Server, sdk: Any, job: dict[str, Any], created: Created
):
    """Contract checks 13, 17: eval-protocol 0.2 posts to the list of jobs, without an id."""
    import requests

    body = {
        "displayName": "old",
        "dataset": job["dataset"],
        "evaluator": f"accounts/default/evaluators/{created.evaluator}",
        "evalAutoCarveout": False,
        "trainingConfig": {
            "baseModel": BASE,
            "epochs": 8,
            "batchSize": 128000,
            "learningRate": 3e-5,
            "maxContextLength": 65536,
            "loraRank": 16,
            "acceleratorCount": 1,
            "outputModel": "accounts/default/models/old",
        },
        "inferenceParameters": {"maxTokens": 32, "n": 3, "temperature": 0.7, "topP": 1.0},
        "outputStats": None,
        "outputMetrics": "",
        "mcpServer": None,
    }
    answer = requests.post(
        f"{server.url}/v1/accounts/default/reinforcementFineTuningJobs",
        json=body,
        headers={"Authorization": f"Bearer {server.key}"},
    )
    assert answer.status_code == 200, answer.text
    id = answer.json()["name"].rpartition("/")[2]
    spec = server.call("GET", f"/jobs/{id}")["spec"]
    assert spec["batch"]["group_size"] == 3
    assert spec["sampling_params"]["max_tokens"] == 32
    assert spec["lora"]["rank"] == 16
    sdk.reinforcement_fine_tuning_jobs.cancel(id, body={})


def test_a_project_that_nothing_is_logged_to_is_warned_of(
    server: Server, sdk: Any, job: dict[str, Any]
):
    """Contract check 14: the command sends enabled=false where --wandb is forgotten."""
    jobs = sdk.reinforcement_fine_tuning_jobs
    said = "nothing is logged to Weights & Biases"
    for project, id in (("mine", "warned"), ("", "unset")):
        wandb = {"enabled": False} | ({"project": project} if project else {})
        made = jobs.create(
            reinforcement_fine_tuning_job_id=id,
            **job | {"wandb_config": wandb, "eval_auto_carveout": False},
        )
        events = server.call("GET", f"/jobs/{id}/events")["events"]
        warned = [e for e in events if e["level"] == "warning" and said in e["body"]["message"]]
        assert (said in made.status.message, len(warned)) == (bool(project), int(bool(project)))
        jobs.cancel(id, body={})
