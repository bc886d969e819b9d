"""Who calls, secrets, evaluators, models and runs that were made elsewhere."""

import gzip
from typing import Any

import httpx
import pytest

from tests import builders
from tests.builders import ACCOUNT
from tests.unit.control.kit import ADMIN
from tests.wire.fireworks.kit import HOME, Place, message_of
from tests.wire.fireworks.test_datasets import range_of
from turnwise.domain.access import Account, Action
from turnwise.domain.rollout import Policy
from turnwise.ports import FinishedStep

SECRETS, EVALUATORS = f"{HOME}/secrets", f"{HOME}/evaluators"


async def test_a_key_is_told_the_account_that_it_is_of(api: httpx.AsyncClient, place: Place):
    answer = await api.get("/verifyApiKey")
    assert answer.status_code == 200
    assert answer.headers["x-fireworks-account-id"] == "default"
    async with place.client("tw_wrong") as wrong, place.client() as nobody:
        for refused in (await wrong.get("/verifyApiKey"), await nobody.get("/verifyApiKey")):
            message_of(refused, 401)
            assert "x-fireworks-account-id" not in refused.headers


async def test_an_account_sees_itself_and_no_other(api: httpx.AsyncClient, place: Place):
    other = Account(account_id="acc_other", slug="other", number="000000000002")
    await place.world.store.create_account(other)
    assert (await api.get("/v1/accounts/default")).json()["state"] == "READY"
    [own] = (await api.get("/v1/accounts")).json()["accounts"]
    assert own["name"] == "accounts/default"
    for path in ("other", "other/datasets", "nobody", "fireworks"):
        said = message_of(await api.get(f"/v1/accounts/{path}"), 404)
        assert "this key is of 'default'" in said
    async with place.client(await place.key("acc_other")) as theirs:
        assert (await theirs.get("/v1/accounts/other/datasets")).json()["datasets"] == []
        message_of(await theirs.get(f"{HOME}/datasets"), 404)


async def test_what_is_not_served_says_so(api: httpx.AsyncClient):
    assert "is not served here" in message_of(await api.get(f"{HOME}/rlorTrainerJobs"), 404)
    assert "is not served here" in message_of(await api.put("/verifyApiKey"), 501)


# ── secrets ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body", [b'["very-secret"]', b'{"value": "very-secret"', b'"very-secret\xff"']
)
async def test_a_body_that_cannot_be_read_is_not_repeated(api: httpx.AsyncClient, body: bytes):
    said = message_of(await api.post(SECRETS, content=body), 400)
    assert f"({len(body)} bytes)" in said
    assert "very-secret" not in said


async def test_a_secret_goes_in_and_never_comes_out(
    api: httpx.AsyncClient, place: Place, caplog: pytest.LogCaptureFixture
):
    message_of(await api.get(f"{SECRETS}/my-token"), 404)
    given = {"keyName": "MY_TOKEN", "name": "my-token", "value": "very-secret"}
    made = await api.post(SECRETS, json=given)
    shown = await api.get(f"{SECRETS}/my-token")
    assert shown.json()["name"] == "accounts/default/secrets/my-token"
    assert shown.json()["keyName"] == "MY_TOKEN"
    message_of(await api.post(SECRETS, json=given), 409)
    assert await place.secrets.values(ACCOUNT) == {"MY_TOKEN": "very-secret"}
    change = {"keyName": "MY_TOKEN", "value": "newly-secret"}
    changed = await api.patch(f"{SECRETS}/my-token", json=change)
    assert await place.secrets.values(ACCOUNT) == {"MY_TOKEN": "newly-secret"}
    listed = await api.get(SECRETS)
    [record] = await place.world.store.resources(ACCOUNT, "secret")
    for text in (made.text, shown.text, changed.text, listed.text, caplog.text, str(record)):
        assert "very-secret" not in text
        assert "newly-secret" not in text
    assert (await api.delete(f"{SECRETS}/my-token")).json() == {}
    assert await place.secrets.values(ACCOUNT) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keyName": "A", "name": "Big", "value": "very-secret"}, "secret_id: 'Big'"),
        ({"keyName": "A B", "name": "a", "value": "very-secret"}, "key_name: 'A B'"),
        ({"keyName": "A", "name": "a", "value": ""}, "value: '' is empty"),
        ({"keyName": "A", "name": "a", "value": "very-secret\0"}, "value: '(12 bytes)'"),
        ({"keyName": "A", "name": "a", "value": "very-secret" * 6000}, "value: '(66000 bytes)'"),
        ({"keyName": "A", "name": "a", "value": ["very-secret"]}, "value: '(list)' is not text"),
        ({"keyName": "A", "name": "accounts/other/secrets/a", "value": "very-secret"}, "other"),
    ],
)
async def test_a_secret_that_cannot_be_kept_is_refused_without_being_repeated(
    api: httpx.AsyncClient, given: dict[str, Any], said: str
):
    refused = await api.post(SECRETS, json=given)
    assert said in message_of(refused, 404 if said == "other" else 400)
    assert "very-secret" not in refused.text
    assert (await api.get(SECRETS)).json()["secrets"] == []


async def test_a_key_that_may_only_read_keeps_no_secret(api: httpx.AsyncClient, place: Place):
    given = {"keyName": "MY_TOKEN", "name": "my-token", "value": "very-secret"}
    await api.post(SECRETS, json=given)
    async with place.client(await place.key(actions=[Action.READ])) as reader:
        message_of(await reader.post(SECRETS, json=given | {"name": "b"}), 403)
        message_of(await reader.patch(f"{SECRETS}/my-token", json=given), 403)
        message_of(await reader.delete(f"{SECRETS}/my-token"), 403)
    assert await place.secrets.values(ACCOUNT) == {"MY_TOKEN": "very-secret"}


# ── evaluators ────────────────────────────────────────────────────────────────────────────────

EVALUATOR = {
    "evaluatorId": "judge",
    "evaluator": {
        "displayName": "judge",
        "description": "Evaluator for test_math.test_math",
        "commitHash": "None+unknown",
        "entryPoint": "test_math.py::test_math",
    },
}


async def upload(api: httpx.AsyncClient, place: Place, content: bytes, name: str) -> None:
    sizes = {"filenameToSize": {name: str(len(content))}}
    answer = await api.post(f"{EVALUATORS}/judge:getUploadEndpoint", json=sizes)
    [(echoed, url)] = answer.json()["filenameToSignedUrls"].items()
    assert echoed == name
    async with place.client() as nobody:
        sent = await nobody.put(url, content=content, headers=range_of(len(content)))
    assert sent.status_code == 200, sent.text


async def test_an_evaluator_is_made_uploaded_and_built(api: httpx.AsyncClient, place: Place):
    made = await api.post(f"{HOME}/evaluatorsV2", json=EVALUATOR)
    assert made.json()["name"] == "accounts/default/evaluators/judge"
    assert made.json() | EVALUATOR["evaluator"] == made.json()
    assert (await api.get(f"{EVALUATORS}/judge")).json()["state"] == "BUILDING"
    message_of(await api.get(f"{EVALUATORS}/judge:getSourceCodeSignedUrl"), 404)
    archive = gzip.compress(b"project")
    await upload(api, place, archive, "my project.tar.gz")
    assert (await api.post(f"{EVALUATORS}/judge:validateUpload", json={})).json() == {}
    found = (await api.get(f"{EVALUATORS}/judge")).json()
    assert (found["state"], found["status"]) == ("ACTIVE", {"code": "OK", "message": "built"})
    async with place.client() as nobody:
        log = (await api.get(f"{EVALUATORS}/judge:getBuildLogEndpoint")).json()
        assert (await nobody.get(log["buildLogSignedUri"])).text == "built\n"
        source = (await api.get(f"{EVALUATORS}/judge:getSourceCodeSignedUrl")).json()
        [url] = source["filenameToSignedUrls"].values()
        assert (await nobody.get(url)).content == archive


async def test_a_build_that_fails_says_why(api: httpx.AsyncClient, place: Place):
    await api.post(f"{HOME}/evaluatorsV2", json=EVALUATOR)
    await api.post(f"{EVALUATORS}/judge:validateUpload", json={})
    found = (await api.get(f"{EVALUATORS}/judge")).json()
    assert found["state"] == "BUILD_FAILED"
    assert found["status"] == {"code": "FAILED_PRECONDITION", "message": "nothing was uploaded"}
    await upload(api, place, b"no gzip", "p.tar.gz")
    await api.post(f"{EVALUATORS}/judge:validateUpload", json={})
    found = (await api.get(f"{EVALUATORS}/judge")).json()
    assert found["status"]["message"] == "the archive is not a tar.gz"


async def test_an_evaluator_that_is_deleted_leaves_its_id_free(api: httpx.AsyncClient):
    await api.post(f"{HOME}/evaluatorsV2", json=EVALUATOR)
    assert "already exists" in message_of(
        await api.post(f"{HOME}/evaluatorsV2", json=EVALUATOR), 409
    )
    changed = await api.patch(
        f"{EVALUATORS}/judge?prepareCodeUpload=true", json={"description": "new"}
    )
    assert changed.json()["description"] == "new"
    assert (await api.get(EVALUATORS)).json()["totalSize"] == 1
    assert (await api.delete(f"{EVALUATORS}/judge")).json() == {}
    message_of(await api.get(f"{EVALUATORS}/judge"), 404)
    assert (await api.post(f"{HOME}/evaluatorsV2", json=EVALUATOR)).status_code == 200


async def test_an_evaluator_of_snippets_or_of_several_files_is_refused(api: httpx.AsyncClient):
    snippets = EVALUATOR["evaluator"] | {"criteria": [{"type": "CODE_SNIPPETS"}]}  # type: ignore[operator]
    refused = await api.post(
        f"{HOME}/evaluatorsV2", json={"evaluatorId": "judge", "evaluator": snippets}
    )
    assert "managed RFT requires an eval3 evaluator" in message_of(refused, 400)
    await api.post(f"{HOME}/evaluatorsV2", json=EVALUATOR)
    sizes = {"filenameToSize": {"a.tar.gz": 1, "b.tar.gz": 1}}
    refused = await api.post(f"{EVALUATORS}/judge:getUploadEndpoint", json=sizes)
    assert "send one tar.gz" in message_of(refused, 400)


# ── models ────────────────────────────────────────────────────────────────────────────────────


async def test_base_models_are_those_of_the_account_fireworks(api: httpx.AsyncClient):
    found = (await api.get("/v1/accounts/fireworks/models")).json()
    [base] = found["models"]
    assert (base["name"], base["kind"]) == ("accounts/fireworks/models/tiny", "HF_BASE_MODEL")
    assert base["contextLength"] == 512
    assert (await api.get("/v1/accounts/fireworks/models/tiny")).json() == base
    message_of(await api.get("/v1/accounts/fireworks/models/huge"), 404)
    message_of(await api.get(f"{HOME}/models/tiny"), 404)
    assert (await api.get(f"{HOME}/models")).json()["models"] == []


async def test_an_adapter_says_its_base_and_its_job(api: httpx.AsyncClient, place: Place):
    await place.world.create("walk")
    package = builders.package(
        package_id="package_a",
        kind="adapter",
        group="walker",
        base_model=str(place.world.folder / "models" / "tiny"),
        job_id=(await place.world.jobs.describe(ADMIN, "walk")).job_id,
        metadata={"job": {"name": "walk"}, "config": {"lora": {"rank": 4}}},
    )
    done = FinishedStep(
        step=0,
        policy=Policy(adapter_id=builders.ZERO_SHA256, policy_step=1),
        groups=(),
        bins={},
        checkpoint=None,
        packages=(package,),
        events=(),
    )
    await place.world.store.finish_step(ACCOUNT, package.job_id, done)
    found = (await api.get(f"{HOME}/models/walker")).json()
    assert found["kind"] == "HF_PEFT_ADDON"
    assert found["peftDetails"]["baseModel"] == "accounts/fireworks/models/tiny"
    assert found["peftDetails"]["r"] == 4
    assert found["fineTuningJob"] == "accounts/default/reinforcementFineTuningJobs/walk"


# ── runs that were made elsewhere ─────────────────────────────────────────────────────────────


async def test_a_run_of_the_clients_own_is_kept_as_one_that_has_ended(api: httpx.AsyncClient):
    job = {
        "evaluator": "accounts/default/evaluators/dummy",
        "inputDataset": "accounts/default/datasets/dummy",
        "outputDataset": "accounts/default/datasets/scored",
    }
    given = {"evaluationJobId": "run", "evaluationJob": job}
    made = (await api.post(f"{HOME}/evaluationJobs", json=given)).json()
    assert made["name"] == "accounts/default/evaluationJobs/run"
    assert made | job | {"state": "JOB_STATE_COMPLETED"} == made
    assert (await api.get(f"{HOME}/evaluationJobs/run")).json() == made
    assert (await api.get(f"{HOME}/evaluationJobs")).json()["evaluationJobs"] == [made]
    message_of(await api.post(f"{HOME}/evaluationJobs", json=given), 409)
    real = {"evaluationJob": job | {"evaluator": "judge"}}
    said = message_of(await api.post(f"{HOME}/evaluationJobs", json=real), 501)
    assert "reinforcement fine-tuning job" in said
