"""The door to Fireworks' clients, and the tracing gateway's paths."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.fuzz.building import Answer, Building, Sent, encoded
from tests.wire.fuzz.checks import Checked, fuzzing
from tests.wire.fuzz.values import NASTY_TEXTS, json_bodies, nasty

HOME = "/v1/accounts/default"
TINY = "accounts/fireworks/models/tiny"
JOB: dict[str, Any] = {
    "dataset": "accounts/default/datasets/rows",
    "evaluator": "judge",
    "displayName": "a job",
    "evaluationDataset": "rows",
    "evalAutoCarveout": False,
    "chunkSize": 1,
    "maxConcurrentRollouts": 4,
    "trainingConfig": {
        "baseModel": TINY,
        "outputModel": "accounts/default/models/out",
        "epochs": 2,
        "learningRate": 1e-4,
        "learningRateWarmupSteps": 1,
        "loraRank": 8,
        "batchSizeSamples": 4,
        "gradientAccumulationSteps": 1,
        "optimizerWeightDecay": 0.01,
    },
    "inferenceParameters": {
        "maxOutputTokens": 32,
        "temperature": 0.7,
        "topP": 1,
        "topK": 40,
        "responseCandidatesCount": 4,
        "extraBody": '{"stop": ["x"]}',
    },
    "lossConfig": {"method": "GRPO", "klBeta": 0.01},
    "wandbConfig": {"enabled": False, "project": "p"},
}
#: Bodies by the path that they are posted to.
POSTED: Mapping[str, Any] = {
    "/reinforcementFineTuningJobs": JOB,
    "/reinforcementFineTuningJobs/walker:cancel": {},
    "/reinforcementFineTuningJobs/walker:resume": {},
    "/datasets": {"datasetId": "more", "dataset": {"format": "CHAT", "exampleCount": "1"}},
    "/datasets/spare:getUploadEndpoint": {"filenameToSize": {"a.jsonl": "3"}},
    "/datasets/spare:validateUpload": {},
    "/evaluatorsV2": {
        "evaluatorId": "other",
        "evaluator": {"displayName": "d", "entryPoint": "a.py::b", "commitHash": "x"},
    },
    "/evaluators/judge:getUploadEndpoint": {"filenameToSize": {"p.tar.gz": "10"}},
    "/secrets": {"keyName": "MY_TOKEN", "name": "my-token", "value": "abc"},
    "/evaluationJobs": {
        "evaluationJobId": "run",
        "evaluationJob": {"evaluator": "accounts/default/evaluators/dummy"},
    },
    "/deployments": {"baseModel": TINY, "displayName": "d"},
}
READ = ("datasets", "evaluators", "secrets", "models", "deployments", "evaluationJobs")
READ = (*READ, "reinforcementFineTuningJobs")

ENTRY = {
    "program": "eval_protocol",
    "status": {"code": 100, "message": "Rollout finished", "details": []},
    "message": "done",
    "tags": ["rollout_id:a", "run_id:b"],
    "extras": {"level": "INFO", "k": 1},
}
FILTERS = ('state="JOB_STATE_RUNNING"', "state=", "a AND b", 'create_time > "2026"', "((", "*")


def is_refusal(answer: Answer) -> str:
    """An error as google.rpc writes it."""
    body = json.loads(answer.body)
    return "" if isinstance(body["code"], int) and isinstance(body["message"], str) else "?"


@pytest.fixture(scope="module")
def fireworks(checked: Checked) -> Checked:
    """The building with a dataset, an evaluator and a job in it."""
    ask = checked.building.ask
    for path, name, id in (
        ("/datasets", "datasetId", "rows"),
        ("/datasets", "datasetId", "spare"),
        ("/evaluatorsV2", "evaluatorId", "judge"),
    ):
        assert ask(posted(checked.building, path, POSTED[path] | {name: id})).status == 200
    row = '{"messages": [{"role": "user", "content": "2+2?"}]}\n'
    form = f'--x\r\nContent-Disposition: form-data; name="file"; filename="r.jsonl"\r\n\r\n{row}'
    sent = Sent(
        method="POST",
        target=f"{HOME}/datasets/rows:upload",
        headers=checked.building.bearer | {"content-type": "multipart/form-data; boundary=x"},
        body=f"{form}\r\n--x--\r\n".encode(),
    )
    assert ask(sent).status == 200
    activate(checked.building)
    job = posted(checked.building, "/reinforcementFineTuningJobs", JOB)
    job = replace(job, target=f"{job.target}?reinforcementFineTuningJobId=walker")
    assert (answer := ask(job)).status == 200, answer
    checked.observe()
    return checked


def activate(building: Building) -> None:
    """The evaluator as if it had been built."""
    store = building.house.base.store

    async def change() -> None:
        [record] = await store.resources("acc_default", "evaluator", prefix="judge")
        await store.change_resource(replace(record, body={**record.body, "state": "ACTIVE"}))

    building.run(change())


def posted(building: Building, path: str, body: Any) -> Sent:
    """A POST of JSON by the operator."""
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Sent(method="POST", target=HOME + path, headers=building.bearer, body=sent)


@fuzzing(40)
@given(data=st.data())
def test_what_is_posted_is_taken_or_refused(fireworks: Checked, data: st.DataObject):
    path = data.draw(st.sampled_from([*POSTED, *["/reinforcementFineTuningJobs"] * 8]))
    body = data.draw(json_bodies(st.builds(copy.deepcopy, st.just(POSTED[path]))), label="body")
    sent = posted(fireworks.building, path, body)
    fireworks.ask(sent, wrong=is_refusal, allowed=(501,))


@fuzzing(40)
@given(data=st.data())
def test_what_is_asked_for_by_odd_names_is_refused(fireworks: Checked, data: st.DataObject):
    collection = data.draw(st.sampled_from(READ))
    odd = st.sampled_from([text for text in NASTY_TEXTS if len(text) < 300])
    id = data.draw(st.sampled_from(["rows", "judge", "walker"]) | odd)
    verb = data.draw(st.sampled_from(["", "", "/metrics", ":upload", ":getDownloadEndpoint", ":x"]))
    method = data.draw(st.sampled_from(["GET", "GET", "POST", "PATCH", "PUT"]))
    path = f"{HOME}/{collection}/{quote(id, safe='', errors='surrogatepass')}{verb}"
    headers = fireworks.building.bearer | {"content-type": data.draw(odd) if verb else "a/b"}
    headers = {
        k: v.encode("utf-8", "replace").decode("latin-1").strip() for k, v in headers.items()
    }
    body = data.draw(st.sampled_from([b"", b"{}", b'{"displayName": 7}', b"\xff", b"[" * 3000]))
    sent = Sent(method=method, target=path, headers=headers, body=body)
    fireworks.ask(sent, wrong=is_refusal, allowed=(501,))


@fuzzing(30)
@given(data=st.data())
def test_lists_are_cut_and_filtered_or_refused(fireworks: Checked, data: st.DataObject):
    odd = nasty.filter(lambda value: len(str(value)) < 3000)
    asked = {
        "filter": data.draw(st.sampled_from(FILTERS) | odd),
        "orderBy": data.draw(st.sampled_from(["create_time desc", "name", ""]) | odd),
        "pageSize": data.draw(st.sampled_from(["1", "200", ""]) | odd),
        "pageToken": data.draw(st.sampled_from(["", "2"]) | odd),
        "readMask": data.draw(st.sampled_from(["name,state", ""]) | odd),
    }
    chosen = data.draw(st.lists(st.sampled_from(sorted(asked)), max_size=2, unique=True))
    query = encoded({name: asked[name] for name in chosen})
    path = f"{HOME}/{data.draw(st.sampled_from(READ))}?{query}"
    sent = Sent(method="GET", target=path, headers=fireworks.building.bearer)
    fireworks.ask(sent, wrong=is_refusal)


@fuzzing(20)
@given(data=st.data())
def test_signed_addresses_that_are_none_are_refused(fireworks: Checked, data: st.DataObject):
    token = data.draw(st.sampled_from([text for text in NASTY_TEXTS if len(text) < 300]))
    query = encoded({"token": token})
    target = f"/signed/datasets/rows/a.jsonl?{query}"
    fireworks.refused(Sent(method=data.draw(st.sampled_from(["GET", "PUT"])), target=target))


@fuzzing(40)
@given(data=st.data())
def test_the_tracing_gateway_takes_or_refuses(fireworks: Checked, data: st.DataObject):
    prefix = data.draw(st.sampled_from(["", "/v1", "/litellm-gateway", "/project_id/x"]))
    odd = st.sampled_from([text for text in NASTY_TEXTS if len(text) < 300])
    bearer = fireworks.building.bearer
    if data.draw(st.booleans()):
        body = data.draw(json_bodies(st.builds(copy.deepcopy, st.just(ENTRY))))
        sent = Sent(method="POST", target=f"{prefix}/logs", headers=bearer, body=body)
    else:
        path = data.draw(st.sampled_from(["/logs", "/status", "/traces/pointwise"]))
        names = ["tags", "limit", "hours_back", "rollout_id", "from_timestamp", "include_payloads"]
        query = encoded({data.draw(st.sampled_from(names)): data.draw(odd) for _ in range(2)})
        sent = Sent(method="GET", target=f"{prefix}{path}?{query}", headers=bearer)
    fireworks.ask(sent)


def test_a_job_that_is_right_is_taken(fireworks: Checked):
    """Else the tests above would see refusals alone."""
    answer = fireworks.building.ask(posted(fireworks.building, "/reinforcementFineTuningJobs", JOB))
    assert answer.status == 200, answer
