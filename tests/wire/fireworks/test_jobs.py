"""Fine-tuning jobs over the control plane, with loops that do what a test says."""

import json
from typing import Any

import httpx
import pytest

from tests.builders import ACCOUNT
from tests.unit.control.kit import ADMIN, Loop
from tests.wire.fireworks.kit import (
    HOME,
    JOBS,
    ROWS,
    Place,
    a_dataset,
    an_evaluator,
    job_body,
    message_of,
    rows_text,
)
from turnwise import errors
from turnwise.control.datasets import DataFile, load_files
from turnwise.control.jobs import status_event
from turnwise.control.objects.locations import parse_location
from turnwise.domain.access import Action
from turnwise.domain.event import EventDraft, EventKind, Level
from turnwise.domain.job import AgentKind, JobStatus, Secondary
from turnwise.wire.fireworks.job_body import failure_of


async def create(api: httpx.AsyncClient, body: dict[str, Any], id: str = "walk") -> httpx.Response:
    return await api.post(JOBS, params={"reinforcementFineTuningJobId": id}, json=body)


async def test_a_job_takes_its_id_from_the_query_and_its_settings_from_a_flat_body(
    api: httpx.AsyncClient, place: Place
):
    body = await job_body(
        api,
        place,
        displayName="Walks",
        chunkSize=2,
        maxConcurrentRollouts=16,
        inferenceParameters={"maxOutputTokens": 64, "responseCandidatesCount": 4, "topP": 0.95},
        trainingConfig={"epochs": 2, "learningRate": 5e-5, "loraRank": 16, "outputModel": "walker"},
    )
    made = await create(api, body)
    assert made.status_code == 200, made.text
    assert made.json()["name"] == "accounts/default/reinforcementFineTuningJobs/walk"

    spec = (await place.world.jobs.describe(ADMIN, "walk")).spec
    assert (spec.agent.kind, spec.agent.target) == (AgentKind.EVALUATOR, "judge")
    assert (spec.batch.global_batch_size, spec.batch.group_size) == (2, 4)
    assert (spec.schedule.max_epochs, spec.schedule.max_steps) == (2, 4)
    assert (spec.lora.rank, spec.optimizer.learning_rate, spec.adapters_in) == (16, 5e-5, "walker")
    assert (spec.sampling_params.temperature, spec.sampling_params.top_k) == (0.7, 40)
    assert (spec.sampling_params.top_p, spec.sampling_params.max_tokens) == (0.95, 64)
    assert spec.rollout.rollout_max_concurrency == 16
    assert (spec.prompt_column, spec.algorithm.kl_coef) == ("messages", 0.001)

    shown = (await api.get(f"{JOBS}/walk")).json()
    assert {**body, "trainingConfig": None} == {
        name: shown[name] if name != "trainingConfig" else None for name in body
    }
    output = {"outputModel": "accounts/default/models/walker"}
    assert shown["trainingConfig"] == body["trainingConfig"] | output


async def test_a_job_without_an_id_gets_a_random_one(api: httpx.AsyncClient, place: Place):
    made = await api.post(JOBS, json=await job_body(api, place))
    assert len(made.json()["name"].rpartition("/")[2]) == 8


async def test_an_id_that_is_taken_is_refused_for_good(api: httpx.AsyncClient, place: Place):
    body = await job_body(api, place)
    await create(api, body)
    again = await create(api, body)
    assert "already exists" in message_of(again, 409)
    assert again.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("output", ["walker", "accounts/default/models/walker"])
async def test_an_output_model_may_be_named_either_way(
    api: httpx.AsyncClient, place: Place, output: str
):
    made = await create(api, await job_body(api, place, trainingConfig={"outputModel": output}))
    assert made.json()["trainingConfig"]["outputModel"] == "accounts/default/models/walker"
    assert (await place.world.jobs.describe(ADMIN, "walk")).spec.adapters_in == "walker"


async def test_names_of_older_clients_are_read(api: httpx.AsyncClient, place: Place):
    old = {"maxTokens": 32768, "n": 3}
    made = await create(api, await job_body(api, place, inferenceParameters=old))
    assert made.status_code == 200, made.text
    spec = (await place.world.jobs.describe(ADMIN, "walk")).spec
    # As many tokens as the model has.
    assert (spec.batch.group_size, spec.sampling_params.max_tokens) == (3, 512)


async def test_false_flags_are_no_wish_but_a_project_without_the_flag_is_warned_about(
    api: httpx.AsyncClient, place: Place
):
    unset = await job_body(api, place, evalAutoCarveout=False, wandbConfig={"enabled": False})
    assert (await create(api, unset)).json()["status"] == {"code": "OK", "message": ""}
    named = unset | {"wandbConfig": {"enabled": False, "project": "p", "entity": "e"}}
    made = await create(api, named, "named")
    assert "enabled is false" in made.json()["status"]["message"]
    assert "enabled is false" in (await api.get(f"{JOBS}/named")).json()["status"]["message"]
    for name, warnings in (("walk", 0), ("named", 1)):
        job = await place.world.jobs.describe(ADMIN, name)
        events = await place.world.store.events(ACCOUNT, job.job_id)
        said = [e.body["message"] for e in events if e.level is Level.WARNING]
        assert len(said) == warnings
        assert all("nothing is logged to Weights & Biases" in each for each in said)


async def test_what_makes_no_sense_is_refused_by_name_and_makes_no_job(
    api: httpx.AsyncClient, place: Place
):
    body = await job_body(api, place, trainingConfig={"learningRate": 0.01})
    said = "Learning rate 1e-2 outside valid range [1e-5, 5e-4]"
    assert message_of(await create(api, body), 400) == said
    no_key = body | {"trainingConfig": {"baseModel": "tiny"}, "wandbConfig": {"enabled": True}}
    assert "there is no key" in message_of(await create(api, no_key), 400)
    assert (await api.get(JOBS)).json()["totalSize"] == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"evaluator": "nobody"}, "Evaluator 'nobody' not found in account"),
        ({"dataset": "nothing"}, "Dataset 'nothing' not found in account"),
        ({"dataset": "accounts/other/datasets/rows"}, "account 'other' does not exist"),
        ({"trainingConfig": {"baseModel": "huge"}}, "Model 'huge' not found"),
    ],
)
async def test_what_is_not_there_is_not_found(
    api: httpx.AsyncClient, place: Place, more: dict[str, Any], said: str
):
    assert said in message_of(await create(api, await job_body(api, place, **more)), 404)


async def test_an_evaluator_that_is_not_built_starts_no_job(api: httpx.AsyncClient, place: Place):
    body = await job_body(api, place)
    await api.post(f"{HOME}/evaluatorsV2", json={"evaluator": {}, "evaluatorId": "raw"})
    refused = await create(api, body | {"evaluator": "raw"})
    assert "Evaluator 'raw' is BUILDING" in message_of(refused, 400)


async def test_a_job_of_bad_rows_fails_with_the_line(api: httpx.AsyncClient, place: Place):
    body = await job_body(api, place)
    broken = await a_dataset(api, "broken", rows_text(ROWS[:2]) + "{\n")
    place.world.broken["walk"] = _error_of(rows_text(ROWS[:2]) + "{\n", place)
    assert (await create(api, body | {"dataset": broken})).status_code == 200
    await place.world.until("walk", JobStatus.FAILED)
    shown = (await api.get(f"{JOBS}/walk")).json()
    assert shown["state"] == "JOB_STATE_FAILED"
    assert shown["status"]["code"] == "INVALID_ARGUMENT"
    said = "Dataset validation failed: invalid JSON on line 3 "
    assert shown["status"]["message"].startswith(said)


def _error_of(text: str, place: Place) -> errors.InvalidInput:
    """What reading such rows raises, as the start of a job does."""
    file = place.world.folder / "bad.jsonl"
    file.write_text(text)
    with pytest.raises(errors.InvalidInput) as caught:
        load_files([DataFile(name=str(file), path=file)], prompt_column="messages")
    return caught.value


def test_a_row_without_messages_is_said_to_be(place: Place):
    error = _error_of('{"messages": []}\n{"prompt": "x"}\n', place)
    said = "Dataset validation failed: Missing required field 'messages' on line 2 "
    assert failure_of(str(error)).startswith(said)


async def test_states_are_those_of_the_service(api: httpx.AsyncClient, place: Place):
    async def state() -> str:
        return str((await api.get(f"{JOBS}/walk")).json()["state"])

    place.world.may_start.clear()
    body = await job_body(api, place)
    await create(api, body)
    assert await state() == "JOB_STATE_VALIDATING"
    place.world.may_start.set()
    await place.world.running("walk")
    await _move(place, JobStatus.RUNNING, Secondary.TRAINING)
    assert await state() == "JOB_STATE_RUNNING"
    waiting = await create(api, body, "second")
    assert waiting.json()["state"] == "JOB_STATE_PENDING"
    await _move(place, JobStatus.COMPLETED, Secondary.EARLY_STOPPED)
    assert await state() == "JOB_STATE_EARLY_STOPPED"


async def _move(place: Place, status: JobStatus, secondary: Secondary) -> None:
    job = await place.world.jobs.describe(ADMIN, "walk")
    await place.world.store.append(ACCOUNT, job.job_id, [status_event(status, secondary)])


async def test_a_job_is_cancelled_and_then_not_resumed(api: httpx.AsyncClient, place: Place):
    await create(api, await job_body(api, place))
    await place.world.running("walk")
    assert (await api.post(f"{JOBS}/walk:cancel", json={})).json() == {}
    await place.world.until("walk", JobStatus.STOPPED)
    assert (await api.get(f"{JOBS}/walk")).json()["state"] == "JOB_STATE_CANCELLED"
    assert (await api.post(f"{JOBS}/walk:cancel", json={})).json() == {}
    refused = await api.post(f"{JOBS}/walk:resume", json={})
    assert "is JOB_STATE_CANCELLED and cannot be resumed" in message_of(refused, 400)
    assert refused.json()["details"][0]["reason"] == "FAILED_PRECONDITION"


async def test_a_failed_job_is_resumed(api: httpx.AsyncClient, place: Place):
    await create(api, await job_body(api, place))
    (await place.world.running("walk")).break_down(errors.Unavailable("gone"))
    await place.world.until("walk", JobStatus.FAILED)
    resumed = await api.post(f"{JOBS}/walk:resume", json={})
    assert resumed.json()["state"] in ("JOB_STATE_PENDING", "JOB_STATE_VALIDATING")
    completed = await place.world.running("walk")
    completed.end()
    await place.world.until("walk", JobStatus.COMPLETED)
    refused = await api.post(f"{JOBS}/walk:cancel", json={})
    assert "is JOB_STATE_COMPLETED and cannot be cancelled" in message_of(refused, 400)


async def test_a_running_job_that_is_deleted_is_gone_at_once_and_its_id_is_free_when_it_has_ended(
    api: httpx.AsyncClient, place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Loop, "request_stop", lambda self: None)  # it takes its time
    body = await job_body(api, place)
    await create(api, body)
    loop = await place.world.running("walk")
    assert (await api.delete(f"{JOBS}/walk")).json() == {}
    message_of(await api.get(f"{JOBS}/walk"), 404)
    assert (await api.get(JOBS)).json()["totalSize"] == 0
    assert (await place.world.jobs.describe(ADMIN, "walk")).status is JobStatus.STOPPING
    message_of(await create(api, body), 409)

    loop.end(JobStatus.STOPPED)
    await place.world.until("walk", JobStatus.STOPPED)
    made = await create(api, body)
    assert made.status_code == 200, made.text
    assert (await api.get(JOBS)).json()["totalSize"] == 1


async def test_an_ended_job_is_deleted_with_its_record(api: httpx.AsyncClient, place: Place):
    await create(api, await job_body(api, place))
    (await place.world.running("walk")).end()
    await place.world.until("walk", JobStatus.COMPLETED)
    await api.delete(f"{JOBS}/walk")
    assert await place.world.statuses() == {}
    assert await place.world.store.resources(ACCOUNT, "fireworks-job") == []


async def test_jobs_are_listed_in_pages_in_the_order_asked_for(
    api: httpx.AsyncClient, place: Place
):
    body = await job_body(api, place)
    for name in ("b", "c", "a"):
        place.world.clock.at += 1
        await create(api, body, name)
    asked = {"orderBy": "create_time desc", "pageSize": 2, "readMask": "name,create_time"}
    first = (await api.get(JOBS, params=asked)).json()
    rest = (await api.get(JOBS, params=asked | {"pageToken": first["nextPageToken"]})).json()
    shown = [*first["reinforcementFineTuningJobs"], *rest["reinforcementFineTuningJobs"]]
    assert [each["name"].rpartition("/")[2] for each in shown] == ["a", "c", "b"]
    assert {key for each in shown for key in each} == {"name", "createTime"}
    assert (rest["nextPageToken"], rest["totalSize"]) == ("", 3)
    waiting = await api.get(JOBS, params={"filter": 'state="JOB_STATE_PENDING"'})
    assert waiting.json()["totalSize"] == 2


async def test_metrics_come_step_by_step_and_once_more_as_text(
    api: httpx.AsyncClient, place: Place
):
    body = await job_body(
        api, place, chunkSize=2, inferenceParameters={"responseCandidatesCount": 2}
    )
    await create(api, body)
    job = await place.world.jobs.describe(ADMIN, "walk")
    values = {
        "rollout/reward/mean": 0.5,
        "training/loss": -0.25,
        "training/num_groups": 2.0,
        "training/num_trajectories": 3.0,
        "analysis/zero_adv_groups": 1.0,
    }
    drafts = [
        EventDraft(kind=EventKind.METRICS, body={"step": 0, "values": values}),
        EventDraft(kind=EventKind.METRICS, body={"step": 1, "values": {"val/reward/mean": 0.75}}),
    ]
    await place.world.store.append(ACCOUNT, job.job_id, drafts)
    found = (await api.get(f"{JOBS}/walk/metrics")).json()
    [step] = found["steps"]
    assert (step["step"], step["epoch"], step["chunk"]) == (0, 0, 0)
    assert (step["reward_mean"], step["loss"], step["eval_reward"]) == (0.5, -0.25, 0.75)
    assert (step["n_rollouts"], step["n_valid"]) == (4, 3)
    assert (step["groups_total"], step["groups_filtered"]) == (2, 1)
    assert found["curves"] == {"average": {"Score": [0.5]}}
    shown = (await api.get(f"{JOBS}/walk")).json()
    assert json.loads(shown["outputMetrics"]) == found
    assert (
        shown["jobProgress"] | {"totalInputRequests": 8, "failedRequests": 1}
        == (shown["jobProgress"])
    )


async def test_a_part_of_the_rows_is_held_back_where_that_is_asked_for(
    api: httpx.AsyncClient, place: Place
):
    body = await job_body(api, place, evalAutoCarveout=True)
    assert (await create(api, body)).status_code == 200
    spec = (await place.world.jobs.describe(ADMIN, "walk")).spec
    lines = {
        uri: (await place.world.buckets.download(ACCOUNT, uri)).read_text().splitlines()
        for uri in (spec.dataset, spec.validation_dataset)
    }
    assert [json.loads(line) for each in lines.values() for line in each] == ROWS
    assert len(lines[spec.validation_dataset]) == 1
    assert parse_location(spec.dataset).bucket == "turnwise-datasets"


async def test_a_key_without_the_right_changes_nothing(api: httpx.AsyncClient, place: Place):
    body = await job_body(api, place)
    await create(api, body)
    async with place.client(await place.key(actions=[Action.READ])) as reader:
        assert (await reader.get(f"{JOBS}/walk")).status_code == 200
        for refused in (
            await create(reader, body, "mine"),
            await reader.post(f"{JOBS}/walk:cancel", json={}),
            await reader.post(f"{JOBS}/walk:resume", json={}),
            await reader.delete(f"{JOBS}/walk"),
        ):
            message_of(refused, 403)
    assert (await api.get(JOBS)).json()["totalSize"] == 1


async def test_a_job_of_another_door_is_shown_if_an_evaluator_drives_it(
    api: httpx.AsyncClient, place: Place
):
    await an_evaluator(api, place)
    await place.world.create("other")
    assert (await api.get(JOBS)).json()["totalSize"] == 0
    message_of(await api.get(f"{JOBS}/other"), 404)
