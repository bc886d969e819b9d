"""MLflow behind the server's keys: the sagemaker SDK, MLflow's own client with sagemaker-mlflow."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.wire.aws.clients.conftest import Trained
from tests.wire.aws.clients.place import Place
from tests.wire.aws.clients.service import REGION, Server, client, until

KEYS = (
    "rollout/reward/mean",
    "rollout/turns/mean",
    "training/total_tokens",
    "training/num_trajectories",
)
STEPS = 2
ROLE = "arn:aws:iam::000000000001:role/trainer"


@pytest.fixture
def aws(shell: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """The user's shell; MLflow's own settings are put back after."""
    import mlflow

    yield shell
    mlflow.set_tracking_uri("file:unused")


@pytest.fixture
def walk(trained: Trained) -> str:
    """The name of a completed job."""
    return trained.name


@pytest.fixture
def arn(env: Mapping[str, str]) -> str:
    """The account's MLflow app."""
    found: str = client("sagemaker", env).list_mlflow_apps()["Summaries"][0]["Arn"]
    return found


def presigned(env: Mapping[str, str], arn: str, **options: Any) -> str:
    url: str = client("sagemaker", env).create_presigned_mlflow_app_url(Arn=arn, **options)[
        "AuthorizedUrl"
    ]
    return url


# ── apps ──────────────────────────────────────────────────────────────────────────────────────


def test_the_accounts_app_is_there_and_new_enough_for_the_sdk(env: Mapping[str, str]) -> None:
    apps = client("sagemaker", env).list_mlflow_apps()["Summaries"]
    assert apps[0]["Status"] == "Created"
    assert tuple(map(int, apps[0]["MlflowVersion"].split("."))) >= (3, 10)
    assert re.fullmatch(rf"arn:aws:sagemaker:{REGION}:000000000001:mlflow-app/.+", apps[0]["Arn"])


def test_an_app_is_made_described_updated_listed_by_pages_and_deleted(
    env: Mapping[str, str],
) -> None:
    sagemaker = client("sagemaker", env)
    store = "s3://bucket/mlflow"
    made = sagemaker.create_mlflow_app(Name="second", ArtifactStoreUri=store, RoleArn=ROLE)["Arn"]
    found = sagemaker.describe_mlflow_app(Arn=made)
    assert (found["Name"], found["Status"], found["ArtifactStoreUri"]) == (
        "second",
        "Created",
        store,
    )
    with pytest.raises(sagemaker.exceptions.ClientError, match="exists already"):
        sagemaker.create_mlflow_app(Name="second", ArtifactStoreUri=store, RoleArn=ROLE)
    sagemaker.update_mlflow_app(Arn=made, WeeklyMaintenanceWindowStart="Tue:03:00")
    assert sagemaker.describe_mlflow_app(Arn=made)["Status"] == "Updated"
    pages = sagemaker.get_paginator("list_mlflow_apps").paginate(
        SortBy="Name", SortOrder="Ascending", PaginationConfig={"PageSize": 1}
    )
    assert [app["Name"] for page in pages for app in page["Summaries"]] == ["default", "second"]
    assert "/mlflow/auth?authToken=" in presigned(env, made)
    sagemaker.delete_mlflow_app(Arn=made)
    with pytest.raises(sagemaker.exceptions.ResourceNotFound):
        sagemaker.describe_mlflow_app(Arn=made)


# ── a presigned sign-in ───────────────────────────────────────────────────────────────────────


def test_authorized_url_signs_in_by_a_cookie_and_the_api_works_under_its_base(
    env: Mapping[str, str], arn: str, walk: str
) -> None:
    """Contract check 18."""
    url = presigned(env, arn)
    assert "/auth?authToken=" in url
    session = requests.Session()
    answer = session.get(url, timeout=60)
    assert answer.status_code == 200
    assert "<html" in answer.text
    assert [step.status_code for step in answer.history] == [302]
    base = url.split("/auth")[0]
    assert answer.url == base + "/"
    cookie = answer.history[0].headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    found = session.get(
        f"{base}/api/2.0/mlflow/experiments/get-by-name",
        params={"experiment_name": "walks"},
        timeout=10,
    )
    assert found.json()["experiment"]["name"] == "walks"
    root = requests.Session()  # the same by the server's root
    root.get(env["SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT"] + url[len(base) :], timeout=60)
    path = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=walks"
    assert root.get(env["SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT"] + path, timeout=10).ok


def test_every_file_of_the_pages_comes_through(env: Mapping[str, str], arn: str, walk: str) -> None:
    session = requests.Session()
    page = session.get(presigned(env, arn), timeout=60)
    assert page.status_code == 200, page.text
    scripts = re.findall(r'src="((?:\./)?static-files/[^"]+\.js)"', page.text)
    assert scripts
    for script in scripts:
        answer = session.get(page.url + script.removeprefix("./"), timeout=60)
        assert answer.status_code == 200
        assert "javascript" in answer.headers["content-type"]


def test_a_forged_token_and_a_foreign_page_are_refused(
    env: Mapping[str, str], arn: str, server: Server
) -> None:
    url = presigned(env, arn)
    token = url.partition("authToken=")[2]
    other = token[:-1] + ("a" if token[-1] != "a" else "b")
    assert requests.get(url.replace(token, other), timeout=10).status_code == 403
    session = requests.Session()
    session.get(url, timeout=60)
    create = f"{server.url}/mlflow/api/2.0/mlflow/experiments/create"
    headers = {"Origin": "https://elsewhere.example"}
    answer = session.post(create, json={"name": "evil"}, headers=headers, timeout=10)
    assert answer.status_code == 403
    assert answer.json()["error_code"] == "PERMISSION_DENIED"
    search = f"{server.url}/mlflow/api/2.0/mlflow/experiments/get-by-name"
    found = session.get(search, params={"experiment_name": "evil"}, timeout=10)
    assert found.status_code == 404
    # a sign-in's token is not a session's
    session.cookies.set("turnwise_mlflow", token, domain="127.0.0.1", path="/mlflow")
    stolen = requests.get(search, cookies={"turnwise_mlflow": token}, timeout=10)
    assert stolen.status_code == 403


# ── the SDK ───────────────────────────────────────────────────────────────────────────────────


def rft_job(name: str) -> Any:
    from sagemaker.train.agent_rft_job import AgentRFTJob

    return AgentRFTJob.get(name)


def test_get_training_metrics_returns_four_keys_per_step_via_the_custom_endpoint(
    aws: Mapping[str, str], walk: str
) -> None:
    """Contract check 17."""
    _check_metrics(rft_job(walk).get_training_metrics())


def test_get_training_metrics_returns_four_keys_per_step_via_the_presigned_fallback(
    aws: Mapping[str, str], walk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contract check 17."""
    monkeypatch.delenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # of the address that is not there
    _check_metrics(rft_job(walk).get_training_metrics())


def _check_metrics(rows: list[dict[str, Any]]) -> None:
    assert [row["step"] for row in rows] == [*range(STEPS)]
    assert all(isinstance(row[key], float) for row in rows for key in KEYS)
    assert all(row["rollout/turns/mean"] == 2 for row in rows)


def test_the_url_of_a_job_opens_its_run(aws: Mapping[str, str], walk: str) -> None:
    job = rft_job(walk)
    details = job.mlflow_details
    assert (details["ExperimentName"], details["RunName"]) == ("walks", "walk")
    url = job.get_mlflow_url()
    place = f"#/experiments/{details['ExperimentId']}/runs/{details['RunId']}?workspace=default"
    assert url.endswith(place)
    assert requests.get(url, timeout=60).ok


@pytest.mark.parametrize("member", ["TrainingConfig", "OutputDataConfig"])
def test_mlflow_config_in_output_data_config_or_training_config_both_work(
    aws: Mapping[str, str], arn: str, place: Place, member: str
) -> None:
    """Contract check 9."""
    name = "asks-in-" + member[:8].lower()
    document = place.document("nobody") | {"OutputDataConfig": {"S3OutputPath": place.output}}
    document[member]["MlflowConfig"] = mlflow_config(arn, "asked", name)
    place.create(name, document)
    place.ended(name)
    until(lambda: rft_job(name).mlflow_details)
    job = rft_job(name)
    assert job.mlflow_details["ExperimentName"] == "asked"
    assert job.mlflow_details["RunName"] == name
    assert job.mlflow_details["RunId"] in job.get_mlflow_url()


def mlflow_config(arn: str, experiment: str, run: str) -> dict[str, str]:
    """As a document has it."""
    return {
        "MlflowResourceArn": arn,
        "MlflowExperimentName": experiment,
        "MlflowRunName": run,
    }


# ── MLflow's own client ───────────────────────────────────────────────────────────────────────


def test_mlflows_client_with_sagemakers_plugin_reads_and_writes(
    aws: Mapping[str, str], arn: str, walk: str
) -> None:
    import mlflow

    mlflow.set_tracking_uri(arn)
    mlflow.set_experiment("my own words")
    with mlflow.start_run(run_name="mine") as run:
        mlflow.log_metrics({"reward": 0.5, "a b/c": 1.0}, step=3)
        mlflow.log_param("greeting", "hällo + wörld?")
    found = mlflow.search_runs(
        experiment_names=["my own words"], filter_string="metrics.reward > 0.4"
    )
    assert list(found.run_id) == [run.info.run_id]
    assert found["params.greeting"][0] == "hällo + wörld?"


def rollouts_of(server: Server, job: str) -> set[str]:
    """Ids of all rollouts that have ended."""
    found = server.call("GET", f"/jobs/{job}/rollouts?limit=1000")["rollouts"]
    return {each["rollout_id"] for each in found}


def test_each_rollout_is_a_trace_of_its_turns_in_the_jobs_run(
    aws: Mapping[str, str], arn: str, server: Server, walk: str
) -> None:
    import mlflow

    mlflow.set_tracking_uri(arn)
    details = rft_job(walk).mlflow_details
    rollouts = rollouts_of(server, walk)

    def traces() -> list[Any]:
        found: list[Any] = mlflow.search_traces(
            locations=[details["ExperimentId"]],
            filter_string=f"attributes.run_id = '{details['RunId']}'",
            max_results=500,
            return_type="list",
        )
        return found

    until(lambda: len(traces()) == len(rollouts), 30)
    found = traces()
    assert {trace.info.tags["turnwise.rollout_id"] for trace in found} == rollouts
    trace = found[0]
    assert [span.name for span in trace.data.spans] == ["rollout", "turn 0", "turn 1"]
    root, first, second = trace.data.spans
    assert root.inputs["messages"][0]["content"].startswith("row ")
    assert root.outputs["reward"] == pytest.approx(root.attributes["turnwise.reward"])
    assert first.span_type == "CHAT_MODEL"
    assert first.outputs["messages"][0]["role"] == "assistant"
    assert [m["role"] for m in second.inputs["messages"]] == ["user", "assistant", "user"]
    assert second.attributes["mlflow.chat.tokenUsage"]["output_tokens"] > 0
    assert "row" in trace.info.request_preview
    run = mlflow.get_run(details["RunId"])
    assert run.data.tags["turnwise.traces"] == "every rollout has a trace"
    assert run.info.status == "FINISHED"
    assert run.data.params["batch.group_size"] == "2"
    assert run.inputs.dataset_inputs[0].dataset.name == "rows.jsonl"


def test_the_runs_artifacts_hold_the_adapter_and_take_more(
    aws: Mapping[str, str],
    walk: str,
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient

    # MLflow's client finds proxied artifacts only by an http address, not by an ARN.
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", server.key)
    run_id = rft_job(walk).mlflow_details["RunId"]
    mine = MlflowClient(tracking_uri=server.url + "/mlflow")
    folder = mine.download_artifacts(run_id, "adapter", str(tmp_path))
    names = {file.name for file in Path(folder).iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    file = tmp_path / "a file.txt"
    file.write_bytes(bytes(5_000_000))
    mine.log_artifact(run_id, str(file), "some folder")
    (tmp_path / "back").mkdir()
    back = mine.download_artifacts(run_id, "some folder/a file.txt", str(tmp_path / "back"))
    assert Path(back).read_bytes() == bytes(5_000_000)


def test_mlflows_client_alone_comes_in_with_a_key(
    server: Server, walk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", server.key)
    mine = MlflowClient(tracking_uri=server.url + "/mlflow")
    assert mine.get_experiment_by_name("walks") is not None
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tw_" + "a" * 40)
    with pytest.raises(Exception, match="does not exist or has been revoked"):
        mine.get_experiment_by_name("walks")


# ── whose it is ───────────────────────────────────────────────────────────────────────────────


def test_a_key_that_may_only_read_reads(server: Server, walk: str) -> None:
    made = server.call("POST", "/keys", {"name": "r", "actions": ["read"]})
    headers = {"Authorization": f"Bearer {made['secret']}"}
    api = server.url + "/api/2.0/mlflow/"
    search = requests.post(
        api + "experiments/search", json={"max_results": 5}, headers=headers, timeout=60
    )
    assert search.ok, search.text
    create = requests.post(
        api + "experiments/create", json={"name": "n"}, headers=headers, timeout=60
    )
    assert (create.status_code, create.json()["error_code"]) == (403, "PERMISSION_DENIED")
    assert "may not manage" in create.json()["message"]


def test_another_accounts_key_does_not_come_into_this_ones_app(
    server: Server, env: Mapping[str, str], arn: str, walk: str
) -> None:
    server.call("POST", "/accounts", {"slug": "other"})
    made = server.call("POST", "/keys", {"name": "theirs", "account": "other"})
    theirs = dict(env) | {
        "AWS_ACCESS_KEY_ID": made["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": made["secret"],
    }
    sagemaker = client("sagemaker", theirs)
    with pytest.raises(sagemaker.exceptions.ResourceNotFound):
        sagemaker.create_presigned_mlflow_app_url(Arn=arn)
    headers = {"Authorization": f"Bearer {made['secret']}", "x-sm-mlflow-app-arn": arn}
    path = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=walks"
    refused = requests.get(server.url + path, headers=headers, timeout=60)
    assert refused.status_code == 403


def test_nobody_without_a_key_comes_in(server: Server, walk: str) -> None:
    for path in (
        "/mlflow/",
        "/mlflow/api/2.0/mlflow/experiments/search?max_results=1",
        "/api/2.0/mlflow/experiments/search?max_results=1",
        "/mlflow/static-files/x.js",
        "/mlflow/get-artifact?path=x",
        "/auth?authToken=",
    ):
        assert requests.get(server.url + path, timeout=10).status_code == 403, path
    assert requests.post(server.url + "/v1/traces", data=b"", timeout=10).status_code == 403


def test_an_artifact_location_outside_the_servers_own_folder_shows_nothing(
    server: Server, walk: str
) -> None:
    headers = {"Authorization": "Bearer " + server.key}
    api = server.url + "/mlflow/api/2.0/mlflow/"

    def post(path: str, body: object) -> dict[str, Any]:
        answer = requests.post(api + path, json=body, headers=headers, timeout=60)
        found: dict[str, Any] = answer.json()
        return found

    made = post(
        "experiments/create", {"name": "spy", "artifact_location": f"file://{server.data_dir}"}
    )
    run = post("runs/create", {"experiment_id": made["experiment_id"]})["run"]["info"]["run_id"]
    listed = requests.get(
        api + "artifacts/list", params={"run_id": run, "path": ".."}, headers=headers, timeout=60
    )
    assert listed.status_code == 400
    for path in ("admin.key", "../../admin.key", "../../master.key"):
        got = requests.get(
            server.url + "/mlflow/get-artifact",
            params={"run_uuid": run, "path": path},
            headers=headers,
            timeout=60,
        )
        assert got.status_code >= 400
        assert server.key not in got.text


def test_what_would_run_programs_or_call_others_is_not_served(server: Server, walk: str) -> None:
    headers = {"Authorization": "Bearer " + server.key}
    for method, path in (
        ("POST", "/api/2.0/mlflow/webhooks"),
        ("POST", "/ajax-api/2.0/mlflow/gateway-proxy"),
        ("GET", "/ajax-api/3.0/mlflow/assistant/status"),
        ("POST", "/api/3.0/mlflow/gateway/secrets/create"),
        ("POST", "/gateway/chat/mlflow/invocations"),
    ):
        answer = requests.request(
            method, f"{server.url}/mlflow{path}", json={}, headers=headers, timeout=60
        )
        assert answer.status_code == 404, (path, answer.text)


# ── outages ───────────────────────────────────────────────────────────────────────────────────


def test_a_job_whose_mlflow_is_killed_trains_on_and_is_whole_in_the_end(
    aws: Mapping[str, str], arn: str, place: Place, server: Server
) -> None:
    import mlflow

    document = place.document(max_steps="4", max_epochs="9")
    document["TrainingConfig"]["MlflowConfig"] = mlflow_config(arn, "walks", "tough")
    place.create("tough", document)
    details = None

    def has_begun() -> bool:
        nonlocal details
        details = rft_job("tough").mlflow_details
        found = server.call("GET", "/jobs/tough/metrics?name=rollout/reward/mean")
        return details is not None and bool(found["metrics"])

    until(has_begun)
    killed = _mlflow_pids(server)
    assert killed
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    assert place.ended("tough")["JobStatus"] == "Completed"
    assert details is not None
    mlflow.set_tracking_uri(arn)
    tracker = mlflow.MlflowClient()
    until(lambda: tracker.get_run(details["RunId"]).info.status == "FINISHED")
    for key in KEYS:
        history = tracker.get_metric_history(details["RunId"], key)
        assert sorted(point.step for point in history) == [*range(4)]
    rollouts = rollouts_of(server, "tough")

    def traced() -> set[str]:
        found = mlflow.search_traces(
            locations=[details["ExperimentId"]],
            filter_string=f"attributes.run_id = '{details['RunId']}'",
            max_results=500,
            return_type="list",
            include_spans=False,
        )
        return {trace.info.tags["turnwise.rollout_id"] for trace in found}

    until(lambda: traced() == rollouts, 30)
    assert _mlflow_pids(server) not in ([], killed)


def _mlflow_pids(server: Server) -> list[int]:
    tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
    pids = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    found = []
    for pid in pids:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except FileNotFoundError:
            continue
        if "mlflow_child" in command and "acc_default" in command:
            found.append(pid)
    return found
