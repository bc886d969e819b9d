import asyncio
import io
import json
import tarfile
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import builders
from tests.builders import ACCOUNT
from tests.unit.control.kit import World, a_registry, agent_rooms, archives
from tests.unit.control.test_jobs import package, register
from turnwise.access.accounts import Accounts
from turnwise.access.keys import Keyring
from turnwise.access.vault import Vault
from turnwise.control.browse import Browse
from turnwise.control.jobs import status_event
from turnwise.control.results import StoredResults
from turnwise.diagnostics import Inspector
from turnwise.domain.access import ALL_ACTIONS, Action
from turnwise.domain.evaluation import results_key, table_key
from turnwise.domain.event import EventDraft, EventKind
from turnwise.domain.job import JobStatus, Secondary
from turnwise.domain.rollout import Blame, Fault, Policy, RolloutStatus
from turnwise.modeling.fingerprint import fingerprint
from turnwise.ports import FinishedStep
from turnwise.wire.native.findings import finding_routes
from turnwise.wire.native.routes import native_app

OTHER = "acc_other"


class Door:
    """The native API over one world, and keys for it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._keyring = Keyring(world.store, Vault(bytes(32)))
        self._app = native_app(
            world.jobs,
            Browse(world.store),
            archives(),
            StoredResults(world.store, world.blobs),
            Accounts(world.store, self._keyring, find_job=world.store.job, region="us-west-2"),
            a_registry(world.store, world.folder),
            agents=agent_rooms(world),
            more=[finding_routes(Inspector(world.jobs, Browse(world.store)))],
        )

    async def key(
        self,
        account: str = ACCOUNT,
        *,
        actions: Collection[Action] = ALL_ACTIONS,
        job_ids: Collection[str] | None = None,
    ) -> str:
        secret, _ = await self._keyring.create(account, "test", actions=actions, job_ids=job_ids)
        return secret

    def client(self, key: str = "") -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self._app),
            base_url="http://server",
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )


@pytest.fixture
async def door(world: World) -> Door:
    return Door(world)


@pytest.fixture
async def api(door: Door) -> AsyncIterator[httpx.AsyncClient]:
    async with door.client(await door.key()) as client:
        yield client


async def create(api: httpx.AsyncClient, world: World, name: str = "walk") -> dict[str, Any]:
    reply = await api.post("/api/v1/jobs", json=world.job_file(name))
    assert reply.status_code == 201, reply.text
    job: dict[str, Any] = reply.json()
    return job


def error_of(reply: httpx.Response) -> tuple[int, str, str]:
    error = reply.json()["error"]
    return reply.status_code, error["type"], error["message"]


async def test_a_job_is_created_described_listed_stopped_resumed_and_deleted(
    api: httpx.AsyncClient, world: World
):
    created = await create(api, world)
    shown = {key: value for key, value in created.items() if key not in ("spec", "started_at")}
    assert shown == {
        "job_id": "job_a",
        "name": "walk",
        "kind": "train",
        "status": "RUNNING",
        "secondary_status": "Starting",
        "message": "",
        "priority": 0,
        "ahead": None,
        "step": 0,
        "max_steps": 50,
        "incarnation": 0,
        "created_at": 1000.0,
        "ended_at": None,
        "parent": "",
        "output": "",
        "inputs": None,
    }
    assert created["spec"]["batch"]["group_size"] == 8
    await world.running("walk")
    described = (await api.get("/api/v1/jobs/job_a")).json()
    assert sorted(described["inputs"]) == ["base_sha256", "dataset_sha256", "validation_sha256"]
    assert described | {"inputs": None} == created
    created = described
    assert (await api.get("/api/v1/jobs")).json() == {"jobs": [created]}
    assert (await api.get("/api/v1/jobs?status=FAILED")).json() == {"jobs": []}

    stopping = (await api.post("/api/v1/jobs/walk/stop")).json()
    assert stopping["status"] in ("STOPPING", "STOPPED")
    await world.until("walk", JobStatus.STOPPED)
    assert (await api.post("/api/v1/jobs/walk/resume")).json()["status"] in ("PENDING", "RUNNING")
    (await world.running("walk")).end(JobStatus.FAILED)
    await world.until("walk", JobStatus.FAILED)

    assert (await api.delete("/api/v1/jobs/walk")).json()["status"] == "FAILED"
    assert error_of(await api.get("/api/v1/jobs/walk")) == (
        404,
        "NotFound",
        "job 'walk' does not exist",
    )


async def test_validation_writes_every_default_out_and_stores_nothing(
    api: httpx.AsyncClient, world: World
):
    checked = (await api.post("/api/v1/jobs/validate", json=world.job_file("walk"))).json()
    assert (checked["name"], checked["schedule"]["max_steps"]) == ("walk", 50)
    assert (await api.get("/api/v1/jobs")).json() == {"jobs": []}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch": {"group_size": 0}},
            "batch.group_size: 0 is out of range; must be at least 1",
        ),
        (
            {"modle": "x"},
            "modle: 'x' is set, but there is no such setting; did you mean model?",
        ),
    ],
)
async def test_a_bad_job_file_is_refused_with_its_field(
    api: httpx.AsyncClient, world: World, changes: dict[str, Any], message: str
):
    reply = await api.post("/api/v1/jobs", json=world.job_file("walk", **changes))
    assert error_of(reply) == (400, "InvalidInput", message)
    assert reply.json()["error"]["field"] == message.split(":")[0]


async def test_what_is_not_even_a_request_is_refused_in_the_same_shape(
    api: httpx.AsyncClient, world: World
):
    await create(api, world)
    json_type = {"Content-Type": "application/json"}
    for reply, expected in (
        (
            await api.post("/api/v1/jobs", content=b'{"name": walk}', headers=json_type),
            (400, "body: 'the request' is not JSON: Expecting value at character 9"),
        ),
        (
            await api.post("/api/v1/jobs"),
            (400, "body: None is wrong: Field required"),
        ),
        (
            await api.get("/api/v1/jobs?status=RUNING"),
            (400, "status: 'RUNING' is wrong: Input should be 'PENDING', 'RUNNING', "),
        ),
        (
            await api.get("/api/v1/jobs/walk/events?wait_s=1000"),
            (400, "wait_s: '1000' is wrong: Input should be less than or equal to 25"),
        ),
        (
            await api.get("/api/v1/job"),
            (404, "GET /api/v1/job: Not Found"),
        ),
        (
            await api.put("/api/v1/jobs/walk"),
            (405, "PUT /api/v1/jobs/walk: Method Not Allowed"),
        ),
    ):
        status, _, message = error_of(reply)
        assert status == expected[0]
        assert message.startswith(expected[1])


async def test_without_a_valid_key_there_is_only_health(door: Door):
    async with door.client() as nobody, door.client("tw_guess") as guesser:
        assert (await nobody.get("/health")).json()["status"] == "ok"
        refused = await nobody.get("/api/v1/jobs")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert error_of(refused) == (
            401,
            "Unauthenticated",
            "no key was sent; send 'Authorization: Bearer <key>'",
        )
        assert (await guesser.post("/api/v1/jobs/validate", json={})).status_code == 401


READS = (
    "/api/v1/jobs/walk",
    "/api/v1/jobs/walk/events",
    "/api/v1/jobs/walk/metrics",
    "/api/v1/jobs/walk/ledger",
    "/api/v1/jobs/walk/usage",
    "/api/v1/jobs/walk/rollouts",
    "/api/v1/rollouts/rol_a",
    "/api/v1/models/walk/1",
    "/api/v1/models/walk/1/archive",
)
CHANGES = ("/api/v1/jobs/walk/stop", "/api/v1/jobs/walk/resume")


def save_adapter(folder: Path) -> str:
    """Write a PEFT folder with one weight of four zeros; its id."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    head = {"q_proj.lora_A.weight": {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16]}}
    text = json.dumps(head).encode()
    (folder / "adapter_model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + bytes(16)
    )
    return fingerprint(folder)


async def record(world: World, path: Path, sha256: str = builders.ZERO_SHA256) -> None:
    """A rollout and a model of job_a."""
    await world.store.open_group(builders.group(job_id="job_a"))
    await world.store.open_rollouts([builders.rollout(job_id="job_a")])
    package = builders.package(
        package_id="package_a", path=str(path), sha256=sha256, job_id="job_a", created_at=5.0
    )
    metrics = EventDraft(kind=EventKind.METRICS, body={"step": 0, "values": {"training/loss": 1}})
    done = FinishedStep(
        step=0,
        policy=Policy(),
        groups=(),
        bins={"rol_a": {"failed": 2}},
        checkpoint=None,
        packages=(package,),
        events=(metrics,),
    )
    await world.store.finish_step(ACCOUNT, "job_a", done)


async def test_another_account_sees_nothing_of_a_job(
    door: Door, api: httpx.AsyncClient, world: World, tmp_path: Path
):
    await create(api, world)
    await record(world, tmp_path / "tuned", save_adapter(tmp_path / "tuned"))
    async with door.client(await door.key(OTHER)) as stranger:
        statuses = [(await stranger.get(path)).status_code for path in READS]
        statuses += [(await stranger.post(path)).status_code for path in CHANGES]
        statuses.append((await stranger.delete("/api/v1/jobs/walk")).status_code)
        lists = [(await stranger.get(f"/api/v1/{kind}")).json() for kind in ("jobs", "models")]
    assert statuses == [404] * len(statuses)
    assert lists == [{"jobs": []}, {"models": []}]


async def test_a_limited_key_is_refused_what_it_does_not_allow(
    door: Door, api: httpx.AsyncClient, world: World, tmp_path: Path
):
    await create(api, world)
    await record(world, tmp_path / "tuned", save_adapter(tmp_path / "tuned"))
    reader = await door.key(actions=[Action.READ])
    agent = await door.key(actions=[Action.SAMPLE, Action.REPORT])
    other_job = await door.key(job_ids=["job_other"])
    async with (
        door.client(reader) as reading,
        door.client(agent) as sampling,
        door.client(other_job) as elsewhere,
    ):
        assert [(await reading.get(path)).status_code for path in READS] == [200] * len(READS)
        for client in (sampling, elsewhere):
            assert [(await client.get(path)).status_code for path in READS] == [403] * len(READS)
        for client in (reading, sampling, elsewhere):
            for path in CHANGES:
                assert (await client.post(path)).status_code == 403
            created = await client.post("/api/v1/jobs", json=world.job_file("run"))
            assert created.status_code == 403
        refused = await reading.post("/api/v1/jobs/walk/stop")
    assert error_of(refused) == (403, "Denied", "this key may not manage job 'job_a'")


async def test_a_waiting_reader_is_answered_by_the_next_event(api: httpx.AsyncClient, world: World):
    await create(api, world)
    page = (await api.get("/api/v1/jobs/walk/events")).json()["events"]
    assert [event["body"]["status"] for event in page] == ["PENDING", "RUNNING"]

    after = {"after": page[-1]["seq"], "wait_s": 5}
    waiting = asyncio.create_task(api.get("/api/v1/jobs/walk/events", params=after))
    await asyncio.sleep(0.02)
    event = status_event(JobStatus.RUNNING, Secondary.TRAINING)
    await world.store.append(ACCOUNT, "job_a", [event])

    (event_body,) = (await asyncio.wait_for(waiting, 1)).json()["events"]
    del event_body["at"]
    assert event_body == {
        "seq": 3,
        "kind": "status",
        "level": "info",
        "body": {"status": "RUNNING", "secondary": "Training", "message": ""},
    }


async def test_metrics_ledger_and_rollouts_are_read_back(
    api: httpx.AsyncClient, world: World, tmp_path: Path
):
    await create(api, world)
    await record(world, tmp_path / "tuned", save_adapter(tmp_path / "tuned"))
    fault = Fault(blame=Blame.AGENT, code="http_error", message="500")
    await world.store.move_rollout(
        ACCOUNT,
        "rol_a",
        [RolloutStatus.PENDING],
        status=RolloutStatus.FAILED,
        fault=fault,
        ended_at=1002.0,
    )

    curves = (await api.get("/api/v1/jobs/walk/metrics?metric=training/")).json()
    ledger = (await api.get("/api/v1/jobs/walk/ledger")).json()
    rollouts = (await api.get("/api/v1/jobs/walk/rollouts?status=FAILED&limit=1")).json()

    assert curves == {"metrics": {"training/loss": [{"step": 0, "value": 1.0, "seq": 3}]}}
    assert ledger == {"steps": [{"step": 0, "bins": {"failed": 2}}]}
    assert rollouts["next_after"] == rollouts["rollouts"][0]["seq"]
    assert rollouts["rollouts"][0] | {"seq": 1} == {
        "rollout_id": "rol_a",
        "job_id": "job_a",
        "group_id": "grp_a",
        "slot": 0,
        "attempt": 0,
        "incarnation": 1,
        "purpose": "train",
        "row_index": 0,
        "step": 0,
        "pinned_adapter_id": None,
        "status": "FAILED",
        "reward": None,
        "rewards": None,
        "metrics": {},
        "reason": "",
        "fault": {"blame": "agent", "code": "http_error", "message": "500", "retryable": True},
        "created_at": 1000.0,
        "ended_at": 1002.0,
        "seq": 1,
        "turns": 0,
        "tokens": 0,
    }


async def test_a_rollout_is_shown_with_its_messages_tokens_and_turns(
    api: httpx.AsyncClient, world: World, tmp_path: Path
):
    await create(api, world)
    await world.store.open_group(builders.group(job_id="job_a"))
    await world.store.open_rollouts([builders.rollout(job_id="job_a")])
    nodes, turn = builders.turn_with_nodes(prompt=(1, 2), completion=(7, 8))
    await world.store.commit_turn(ACCOUNT, "rol_a", nodes, turn)

    shown = (await api.get("/api/v1/rollouts/rol_a")).json()

    assert "secret" not in str(shown)
    assert (shown["sampled_tokens"], shown["nodes"]) == (
        2,
        [
            {
                "node_id": 0,
                "parent": None,
                "kind": "prompt",
                "messages": [{"role": "user", "content": "question 0"}],
                "tokens": [1, 2],
                "logprobs": None,
                "fork_cause": None,
                "tools": [],
            },
            {
                "node_id": 1,
                "parent": 0,
                "kind": "completion",
                "messages": [{"role": "assistant", "content": "answer 0"}],
                "tokens": [7, 8],
                "logprobs": [-0.5, -0.5],
                "fork_cause": None,
                "tools": [],
            },
        ],
    )
    assert shown["turns"] == [
        {
            "turn_id": "trn_0",
            "index": 0,
            "leaf": 1,
            "adapter_id": None,
            "policy_step": 0,
            "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 64},
            "seed": 11,
            "finish_reason": "stop",
            "delivery": "delivered",
            "prompt_tokens": 2,
            "cached_tokens": 0,
            "completion_tokens": 2,
            "past_stop_tokens": 0,
            "seconds": 0.5,
        }
    ]
    assert (await api.get("/api/v1/jobs/walk/usage")).json() == {
        "train_tokens": 0,
        "prefill_tokens": 2,
        "cached_prefill_tokens": 0,
        "sample_tokens": 2,
    }


async def test_a_model_is_listed_and_packed(api: httpx.AsyncClient, world: World, tmp_path: Path):
    folder = tmp_path / "tuned"
    await create(api, world)
    await record(world, folder, save_adapter(folder))

    models = (await api.get("/api/v1/models")).json()["models"]
    archive = await api.get("/api/v1/models/walk/archive")

    assert [(model["name"], model["path"], model["job_id"]) for model in models] == [
        ("walk/1", str(folder), "job_a")
    ]
    described = (await api.get("/api/v1/models/walk")).json()
    assert described == models[0] | {"validation": {}}
    assert archive.headers["content-type"] == "application/x-tar"
    assert archive.headers["content-length"] == str(len(archive.content))
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as tar:
        packed = {name: tar.extractfile(name) for name in tar.getnames()}
        contents = {name: file.read() for name, file in packed.items() if file is not None}
    assert contents == {file.name: file.read_bytes() for file in folder.iterdir()}


async def test_a_model_is_deleted_once_no_job_needs_it(
    api: httpx.AsyncClient, world: World, tmp_path: Path
):
    await create(api, world)
    await record(world, tmp_path / "tuned", save_adapter(tmp_path / "tuned"))
    status, kind, message = error_of(await api.delete("/api/v1/models/walk/1"))
    assert (status, kind) == (409, "Conflict")
    assert message.startswith("model walk/1 is needed by job 'walk', which has not ended")
    (await world.running("walk")).end(JobStatus.COMPLETED)
    await world.until("walk", JobStatus.COMPLETED)
    assert (await api.delete("/api/v1/models/walk/1")).json()["name"] == "walk/1"
    assert error_of(await api.get("/api/v1/models/walk/1"))[0] == 404


async def test_a_checkpoint_is_packed_without_the_optimizers_state(
    api: httpx.AsyncClient, world: World
):
    checkpoint = package(world)
    Path(checkpoint.path).mkdir()
    (Path(checkpoint.path) / "state.safetensors").write_text("large")
    await create(api, world)
    await register(world, checkpoint)
    archive = await api.get("/api/v1/models/walk/1/archive")
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as tar:
        assert tar.getnames() == ["adapter_config.json"]

    (Path(checkpoint.path) / "state.safetensors").write_text("changed")
    status, kind, message = error_of(await api.get("/api/v1/models/walk/1/archive"))
    assert (status, kind) == (500, "Corrupted")
    assert message.startswith(f"model walk/1 is damaged: checkpoint {checkpoint.path} has sha256 ")


async def test_a_damaged_model_is_not_exported(
    api: httpx.AsyncClient, world: World, tmp_path: Path
):
    folder = tmp_path / "tuned"
    await create(api, world)
    await record(world, folder, save_adapter(folder))
    weights = folder / "adapter_model.safetensors"

    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    changed = error_of(await api.get("/api/v1/models/walk/archive"))
    weights.unlink()
    lost = error_of(await api.get("/api/v1/models/walk/archive?merged=true"))

    assert changed[:2] == lost[:2] == (500, "Corrupted")
    assert changed[2].startswith(f"model walk/1 is damaged: the files at {folder} have sha256 ")
    assert changed[2].endswith("; use another version")
    assert lost[2].startswith(f"model walk/1 is damaged: adapter: '{folder}' cannot be read")


async def test_a_merge_without_its_base_is_refused(
    api: httpx.AsyncClient, world: World, tmp_path: Path
):
    await create(api, world)
    await record(world, tmp_path / "tuned", save_adapter(tmp_path / "tuned"))
    assert error_of(await api.get("/api/v1/models/walk/archive?merged=true")) == (
        404,
        "NotFound",
        "base model '/models/tiny' does not exist; put the folder back, or export the adapter",
    )


async def test_a_model_whose_files_are_gone_is_said_to_be(
    api: httpx.AsyncClient, world: World, tmp_path: Path
):
    await create(api, world)
    await record(world, tmp_path / "gone")
    status, _, message = error_of(await api.get("/api/v1/models/walk/archive"))
    assert status == 404
    assert message.endswith("/gone' does not exist; its files have been removed")


async def test_an_evaluations_results_are_read_as_json_and_as_csv(
    api: httpx.AsyncClient, door: Door, world: World
):
    evaluation = world.job_file("judged", kind="evaluation")
    assert (await api.post("/api/v1/jobs", json=evaluation)).status_code == 201
    await create(api, world, "trained")
    before = await api.get("/api/v1/jobs/judged/results")
    other = await api.get("/api/v1/jobs/trained/results.csv")
    world.blobs.path(results_key("job_a")).write_text('{"rows": 1}')
    world.blobs.path(table_key("job_a")).write_text("row,prompt\r\n0,gö\r\n", newline="")
    document = await api.get("/api/v1/jobs/judged/results")
    table = await api.get("/api/v1/jobs/judged/results.csv")

    assert error_of(before) == (
        409,
        "Conflict",
        "job 'judged' is RUNNING and has no results yet; they come at its end",
    )
    assert error_of(other) == (
        409,
        "Conflict",
        "job 'trained' is not an evaluation; `turnwise eval` makes one of its job file",
    )
    assert document.json() == {"rows": 1}
    assert table.text == "row,prompt\r\n0,gö\r\n"
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    async with door.client(await door.key(OTHER)) as stranger:
        for name in ("results", "results.csv"):
            assert (await stranger.get(f"/api/v1/jobs/judged/{name}")).status_code == 404


async def test_findings_come_with_evidence_remedy_and_the_rollouts_to_look_at(
    door: Door, api: httpx.AsyncClient, world: World
):
    await create(api, world)
    assert (await api.get("/api/v1/jobs/walk/findings")).json() == {"findings": []}

    body = {"step": 3, "values": {"rollout/turns/at_cap_frac": 0.5}}
    await world.store.append(ACCOUNT, "job_a", [EventDraft(kind=EventKind.METRICS, body=body)])
    [found] = (await api.get("/api/v1/jobs/walk/findings")).json()["findings"]

    assert found.pop("remedy").startswith("raise sampling_params.max_tokens")
    assert found == {
        "code": "truncation",
        "severity": "warning",
        "title": "50 % of turns are cut off by a token limit",
        "evidence": [{"step": 3, "metric": "rollout/turns/at_cap_frac", "value": 0.5}],
        "rollouts": {"step": "3"},
    }
    assert (await api.get("/api/v1/jobs/none/findings")).status_code == 404
    async with door.client(await door.key(job_ids=["job_other"])) as stranger:
        assert (await stranger.get("/api/v1/jobs/walk/findings")).status_code == 403
