"""The `fireworks-ai` SDK against a server of ours."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fireworks
import httpx
import pytest
from fireworks import Fireworks

from tests.wire.aws.clients.service import Server, until
from tests.wire.fireworks.clients.conftest import BASE, ROWS, Created


@pytest.fixture(scope="module")
def dataset(sdk: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset that the SDK has made, as the notebook makes one."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    sdk.datasets.create(dataset_id="rows", dataset={"format": "CHAT", "example_count": 2})
    with file.open("rb") as content:
        sent = sdk.datasets.upload("rows", file=content)
    assert sent.bytes == file.stat().st_size
    return str(sdk.datasets.get("rows").name)


@pytest.fixture
def job(sdk: Any, dataset: str, created: Created) -> Iterator[dict[str, Any]]:
    """What the jobs of a test are created with; they are gone after it."""
    yield {
        "dataset": dataset,
        "evaluator": created.evaluator,
        "training_config": {"base_model": BASE},
        "loss_config": {"method": "GRPO", "kl_beta": 0.0},
        "inference_parameters": {"max_output_tokens": 16},
    }
    for made in sdk.reinforcement_fine_tuning_jobs.list():
        if (id := made.name.rpartition("/")[2]) != created.job:
            sdk.reinforcement_fine_tuning_jobs.delete(id)


def test_a_dataset_is_read_until_it_is_ready(sdk: Any, dataset: str):
    found = sdk.datasets.get("rows")
    assert (found.state, found.example_count) == ("READY", "2")
    assert dataset in [each.name for each in sdk.datasets.list()]


def test_a_verb_is_told_from_an_id_of_63_characters(sdk: Any):
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
    jobs = sdk.reinforcement_fine_tuning_jobs
    for id in ("first", "second", "third"):
        jobs.create(reinforcement_fine_tuning_job_id=id, **job)
    asked = {"order_by": "create_time desc", "page_size": 2, "read_mask": "name,state"}
    names = [each.name.rpartition("/")[2] for each in jobs.list(**asked)]
    assert [name for name in names if name != "my-job"] == ["third", "second", "first"]

    jobs.cancel("third", body={})
    until(lambda: jobs.get("third").state == "JOB_STATE_CANCELLED")
    with pytest.raises(fireworks.BadRequestError, match="cannot be resumed"):
        jobs.resume("third", body={})
    cancelled = jobs.list(filter='state="JOB_STATE_CANCELLED"')
    assert [each.name.rpartition("/")[2] for each in cancelled] == ["third"]
    jobs.delete("second")
    with pytest.raises(fireworks.NotFoundError):
        jobs.get("second")


def test_times_and_counts_have_the_types_of_the_sdk(sdk: Any, created: Created):
    found = sdk.reinforcement_fine_tuning_jobs.get(created.job)
    assert isinstance(found.create_time, datetime.datetime)
    assert type(found.job_progress.percent) is int
    assert type(found.job_progress.epoch) is int


def test_an_id_that_is_taken_is_asked_for_once(
    sdk: Any, server: Server, job: dict[str, Any], created: Created
):
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
    with pytest.raises(error, match=said) as caught:
        sdk.reinforcement_fine_tuning_jobs.create(**job | changes)
    body = caught.value.body  # type: ignore[attr-defined]
    assert type(body["code"]) is int
    assert said in body["message"]


def test_no_key_and_no_account_are_the_sdks_errors(server: Server):
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
    import requests

    url = f"{server.url}/v1/accounts/default/reinforcementFineTuningJobs/{created.job}/metrics"
    answer = requests.get(url, headers={"Authorization": f"Bearer {server.key}"}, timeout=30)
    assert answer.json()["name"].endswith(f"{created.job}/metrics")


def test_a_run_of_a_test_on_ones_own_machine_is_kept(sdk: Any):
    job = {
        "evaluator": "accounts/default/evaluators/dummy",
        "inputDataset": "accounts/default/datasets/dummy",
        "outputDataset": "accounts/default/datasets/rows",
    }
    made = sdk.post(
        "/v1/accounts/default/evaluationJobs",
        cast_to=object,
        body={"evaluationJobId": "run", "evaluationJob": job},
    )
    assert made["name"] == "accounts/default/evaluationJobs/run"
